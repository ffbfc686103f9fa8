"""What the error is multiplied with: factors left out, inverted, squared, or computed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.scene import (
    Mutant,
    Scene,
    on_operand,
    on_output,
    replaced,
)
from jaxnet.checking.diagnose.tape import Op, Tape

_FACTORS: tuple[tuple[str, Callable[[Any, Any], Any], str, float], ...] = (
    ("dropped", lambda u, d: u, "the factor {0} is missing", 1.1),
    ("inverted", lambda u, d: u / d, "divided by {0} where it should be multiplied", 1.4),
    ("squared", lambda u, d: u * d * d, "the factor {0} is applied twice", 1.3),
    ("complement", lambda u, d: u * (1 - d), "the factor 1 - {0} in the place of {0}", 1.4),
    ("plus one", lambda u, d: u * (1 + d), "the factor 1 + {0} in the place of {0}", 1.5),
    ("minus one", lambda u, d: u * (d - 1), "the factor {0} - 1 in the place of {0}", 1.5),
    ("root", lambda u, d: u * np.sqrt(d), "the square root of the factor {0} in its place", 1.6),
    ("positive", lambda u, d: u * (d > 0), "only the sign ({0} > 0) of the factor {0}", 1.6),
    ("sign", lambda u, d: u * np.sign(d), "only the sign of the factor {0}", 1.65),
    ("absolute", lambda u, d: u * np.abs(d), "the factor |{0}| in the place of {0}", 1.7),
    ("conjugate", lambda u, d: u * np.conj(d), "the factor conj({0}) in the place of {0}: conjugation", 1.2),
    ("mean", lambda u, d: u * np.mean(d), "the mean of the factor {0} in its place", 1.8),
    (
        "alone",
        lambda u, d: np.broadcast_to(d, np.broadcast_shapes(np.shape(u), np.shape(d))),
        "the factor {0} stands alone: the error that it multiplies is missing (cotangent ignored)",
        1.5,
    ),
    ("sigmoid half", lambda u, d: u * d * (1 - d), "the factor {0}(1 - {0}) in the place of {0}", 1.7),
    ("own square", lambda u, d: u * (1 - d * d), "the factor 1 - {0}² in the place of {0}", 1.7),
    (
        "cotangent's sign",
        lambda u, d: u * (u > 0),
        "gated by the sign of the cotangent (d_out > 0) in the place of the factor {0}",
        1.5,
    ),
)


def factors(scene: Scene) -> Iterator[Mutant]:
    """Each factor that the error meets: dropped, inverted, squared, its complement, its sign."""
    tape = scene.tape
    for site, op in scene.linear():
        sides = scene.split(op)
        if sides is None or op.name not in ("mul", "div"):
            continue
        moving, fixed = sides
        if op.name == "div" and moving == 1:
            continue
        u = tape.values[op.inputs[moving]]
        for axis in range(np.ndim(u)):
            if np.shape(u)[axis] > 1:
                centred = on_operand(moving, lambda op, x, look, a=axis: x - np.mean(x, a, keepdims=True))
                yield Mutant((site, "centred", axis), {site: centred}, 1.6, _say_centred(op, moving, axis), site)
        constant = not tape.depends[op.inputs[fixed]]
        for kind, function, words, cost in _FACTORS:
            if kind == "conjugate" and not np.iscomplexobj(tape.values[op.inputs[fixed]]):
                continue
            if constant and kind not in ("dropped", "inverted", "squared", "root", "complement"):
                continue

            def other(op, ins, look, f=function, m=moving, d=fixed):
                return f(ins[m], ins[d] if op.name == "mul" else 1 / ins[d])

            def say(namer, c, op=op, words=words, fixed=fixed):
                factor = namer.expr(op.inputs[fixed], 5)
                factor = factor if op.name == "mul" else f"1/({factor})"
                right = namer.operation(op, op.inputs, 6)[0]
                return words.format(factor) + f" in {right}", right

            yield Mutant((site, "factor", kind), {site: replaced(other)}, cost, say, site)


def _say_centred(op: Op, j: int, axis: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 6)[0]
        error = namer.expr(op.inputs[j], 5)
        return f"the mean of {error} over axis {axis} is subtracted from it in {right}: a mean term too many", right

    return say


_RESIDUAL: tuple[tuple[str, Callable[[Any], Any], str, float], ...] = (
    ("one", lambda x: np.ones_like(x), "1 stands in the place of {0}", 1.8),
    ("zero", lambda x: np.zeros_like(x), "{0} is missing (0 in its place)", 1.7),
    ("negated", lambda x: -x, "{0} has the wrong sign", 1.6),
    ("square", lambda x: x * x, "{0} is squared", 1.8),
    ("root", lambda x: np.sqrt(x), "the square root of {0} in its place", 1.8),
    ("inverse", lambda x: 1 / x, "1/({0}) in its place", 1.8),
    ("complement", lambda x: 1 - x, "1 - {0} in its place", 1.8),
    ("half", lambda x: x / 2, "{0} is halved", 1.9),
    ("double", lambda x: x * 2, "{0} is doubled", 1.9),
)


def ranges(scene: Scene) -> Iterator[Mutant]:
    """What the error is multiplied with, computed otherwise: an operand left out, a result inverted."""
    tape = scene.tape
    for site, op in scene.residual():
        value = tape.values[op.outputs[0]]
        if not numeric.is_float(value) or op.name in ("step", "stack", "expand", "reshape", "broadcast_in_dim", "copy"):
            continue
        if len(op.inputs) <= 2 and op.name in (
            "add",
            "sub",
            "mul",
            "div",
            "integer_pow",
            "square",
            "sqrt",
            "rsqrt",
            "tanh",
            "logistic",
            "exp",
            "log",
            "erf",
            "pow",
            "max",
            "min",
            "sin",
            "cos",
            "log1p",
            "abs",
            "neg",
            "erfc",
        ):
            for j, i in enumerate(op.inputs):
                if tape.depends[i] and numeric.is_float(tape.values[i]):
                    yield Mutant(
                        (site, "only", j),
                        {site: replaced(lambda op, ins, look, j=j: ins[j])},
                        1.5,
                        _say_only(op, j),
                        site,
                    )
        divisor = _constant(tape, op)
        if divisor > 1 and divisor == int(divisor):
            for off, n in ((-1, "n − 1"), (1, "n + 1")):
                change = on_operand(1, lambda op, x, look, o=off: x + np.asarray(o, x.dtype))
                yield Mutant(
                    (site, "count", off),
                    {site: change},
                    1.4,
                    _say_value(
                        op,
                        f"the mean {{0}} is taken over {n} = {int(divisor) + off} where the forward pass has n ="
                        f" {int(divisor)} (variance over {n})",
                    ),
                    site,
                )
        for kind, function, words, cost in _RESIDUAL:
            yield Mutant(
                (site, kind), {site: on_output(lambda op, x, look, f=function: f(x))}, cost, _say_value(op, words), site
            )


def _constant(tape: Tape, op: Op) -> float:
    """The number by which an operation divides; 0 where it does not divide by a number."""
    if op.name != "div" or np.ndim(tape.values[op.inputs[-1]]) or tape.depends[op.inputs[-1]]:
        return 0.0
    return float(tape.values[op.inputs[-1]])


def _say_only(op: Op, j: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        other = [namer.expr(i, 4) for k, i in enumerate(op.inputs) if k != j]
        lost = f"{other[0]} is left out" if other else f"{op.name} is left out"
        return f"{lost}: {namer.expr(op.inputs[j], 5)} stands where {right} should", right

    return say


def _say_value(op: Op, words: str):
    def say(namer, c):
        name = namer.names.get(op.outputs[0])
        right = namer.operation(op, op.inputs, 5)[0]
        return words.format(name or right), f"{name} = {right}" if name else right

    return say
