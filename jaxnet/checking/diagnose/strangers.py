"""Another value in a value's place: another layer's z, another step's h, a function of them, another derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.special

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.scene import Mutant, Scene, Where, on_operand, on_output, replaced, swapped
from jaxnet.checking.diagnose.tape import Op, Site

_LINEAR_IN_OPERAND = {"mul", "div", "dot_general", "conv_general_dilated"}


def donors(scene: Scene) -> Iterator[Mutant]:
    """Another array of the same shape in an operand's place, or a multiple of it beside the operand."""
    tape = scene.tape
    for site, op in scene.linear():
        for j, i in enumerate(op.inputs):
            if not numeric.is_float(tape.values[i]) or np.ndim(tape.values[i]) == 0:
                continue
            moving = tape.linear[i]
            if not moving and not tape.depends[i] and op.name != "dot_general":
                continue
            for nth, donor in enumerate(scene.donors(op, i, linear=moving)):
                fit = (
                    "add" if op.name in _LINEAR_IN_OPERAND and not moving and not (op.name == "div" and j == 1) else ""
                )
                change = on_operand(j, lambda op, x, look, w=donor.where: look(w))

                def graded(c, site=site, j=j, w=donor.where):
                    return {site: on_operand(j, lambda op, x, look: x + c * look(w))}

                yield Mutant(
                    (site, "donor", j, donor.where),
                    {site: change},
                    (2.6 if moving else 1.5) + 0.01 * nth,
                    _say(op, j, donor.number),
                    site,
                    fit,
                    graded,
                )
            if op.name == "dot_general" and not moving and np.ndim(tape.values[i]) == 2:
                for donor in scene.donors(op, i, linear=False, transposed=True):
                    change = on_operand(j, lambda op, x, look, w=donor.where: swapped(look(w)))
                    yield Mutant(
                        (site, "donor.T", j, donor.where), {site: change}, 1.8, _say(op, j, donor.number, ".T"), site
                    )
    for site, op in scene.residual():
        if op.name in ("step", "stack", "expand", "reshape", "broadcast_in_dim") or not numeric.is_float(
            tape.values[op.outputs[0]]
        ):
            continue
        for j, i in enumerate(op.inputs):
            if tape.depends[i] and numeric.is_float(tape.values[i]) and np.ndim(tape.values[i]):
                for nth, donor in enumerate(scene.donors(op, i, linear=False)):
                    change = on_operand(j, lambda op, x, look, w=donor.where: look(w))
                    yield Mutant(
                        (site, "donor", j, donor.where),
                        {site: change},
                        1.7 + 0.01 * nth,
                        _say(op, j, donor.number),
                        site,
                    )
    for site, op in scene.residual():
        if op.name in ("gt", "ge", "lt", "le"):
            for j, i in enumerate(op.inputs):
                for donor in scene.donors(op, i, linear=True):
                    change = on_operand(j, lambda op, x, look, w=donor.where: look(w))
                    yield Mutant((site, "donor", j, donor.where), {site: change}, 1.7, _say(op, j, donor.number), site)


def updated(scene: Scene) -> Iterator[Mutant]:
    """A weight that has already been moved along its own gradient when the error passes it."""
    tape = scene.tape
    for site, op in scene.linear():
        if op.name not in ("dot_general", "conv_general_dilated", "mul"):
            continue
        for j, i in enumerate(op.inputs):
            shape = np.shape(tape.values[i])
            if tape.linear[i] or not tape.depends[i] or not shape:
                continue
            for path, n in tape.leaves.items():
                for turned in (False, True):
                    own = np.shape(tape.values[n])
                    if (own[:-2] + own[:-3:-1] if turned else own) != shape or (turned and len(own) < 2):
                        continue

                    def gradient(look, path=path, turned=turned):
                        value = look.tape.values[look.tape.leaves[path]]
                        return swapped(value) if turned else value

                    def graded(c, site=site, j=j, gradient=gradient):
                        return {site: on_operand(j, lambda op, x, look: x + np.asarray(c, x.dtype) * gradient(look))}

                    change = on_operand(j, lambda op, x, look, gradient=gradient: gradient(look))
                    yield Mutant(
                        (site, "updated", j, (path, turned)),
                        {site: change},
                        1.7,
                        _say_updated(op, j, path),
                        site,
                        "add",
                        graded,
                    )


def _say_updated(op: Op, j: int, path: str):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        what, gradient = namer.expr(op.inputs[j], 4).removesuffix(".T"), f"∂{namer.leaf(path)}"
        if not c:
            return f"{gradient} stands in the place of {what} in {right}", right
        return (
            f"{what} is already updated or stale: {what} {c:+.4g}·{gradient} stands in the place of {what} in {right}",
            right,
        )

    return say


def _say(op: Op, j: int, number: int, after: str = ""):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        donor, place = namer.expr(number, 4) + after, namer.expr(op.inputs[j], 4)
        if c:
            return f"{c:+.4g}·{donor} is added to {place} in {right}", right
        when = ", this step's in that of the step before," if place == f"{donor}[t-1]" else ""
        return f"{donor} stands in the place of {place}{when} in {right}", right

    return say


def _normal(x):
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi).astype(x.dtype)


def _phi(x):
    return scipy.special.ndtr(x)


def _tanh_gelu_slope(x):
    k, c = np.sqrt(2 / np.pi), 0.044715
    t = np.tanh(k * (x + c * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * c * x * x)


def _sigmoid_slope(x):
    s = scipy.special.expit(x)
    return s * (1 - s)


SLOPES: tuple[tuple[str, Callable[[Any], Any], float], ...] = (
    ("{0}", lambda x: x, 2.0),
    ("(1 - {0})", lambda x: 1 - x, 2.0),
    ("{0}(1 - {0})", lambda x: x * (1 - x), 2.0),
    ("(1 - {0}²)", lambda x: 1 - x * x, 2.0),
    ("(1 + {0})", lambda x: 1 + x, 2.1),
    ("{0}²", lambda x: x * x, 2.1),
    ("[{0} > 0]", lambda x: x > 0, 2.0),
    ("[{0} < 0]", lambda x: x < 0, 2.2),
    ("[|{0}| < 1]", lambda x: np.abs(x) < 1, 2.2),
    ("[|{0}| <= 1]", lambda x: np.abs(x) <= 1, 2.3),
    ("sign({0})", np.sign, 2.1),
    ("σ({0})", scipy.special.expit, 2.0),
    ("σ′({0}) = σ(1 - σ)", _sigmoid_slope, 2.0),
    ("tanh′({0}) = 1 - tanh²", lambda x: 1 - np.tanh(x) ** 2, 2.0),
    ("tanh({0})", np.tanh, 2.1),
    ("Φ({0})", _phi, 2.0),
    ("gelu′({0}) = Φ + {0}φ, the exact form's", lambda x: _phi(x) + x * _normal(x), 2.0),
    ("gelu′({0}) of the tanh approximation", _tanh_gelu_slope, 2.0),
    ("1.702-sigmoid gelu′({0})", lambda x: scipy.special.expit(1.702 * x) + 1.702 * x * _sigmoid_slope(1.702 * x), 2.1),
    ("σ(1.702 {0})", lambda x: scipy.special.expit(1.702 * x), 2.1),
    ("silu′({0}) = σ + {0}σ′", lambda x: scipy.special.expit(x) + x * _sigmoid_slope(x), 2.0),
    ("exp({0})", np.exp, 2.1),
    ("elu′({0})", lambda x: np.where(x > 0, 1, np.exp(x)), 2.2),
    ("1/{0}", lambda x: 1 / x, 2.1),
    ("1/{0}²", lambda x: 1 / (x * x), 2.1),
    ("sqrt({0})", np.sqrt, 2.1),
    ("1/sqrt({0})", lambda x: 1 / np.sqrt(x), 2.1),
    ("1/(2 sqrt({0}))", lambda x: 0.5 / np.sqrt(x), 2.1),
    ("1/(1 + {0}²)", lambda x: 1 / (1 + x * x), 2.2),
    ("1/(1 + {0})", lambda x: 1 / (1 + x), 2.2),
    ("1/(1 + |{0}|)²", lambda x: 1 / (1 + np.abs(x)) ** 2, 2.2),
    ("cos({0})", np.cos, 2.2),
    ("sin({0})", np.sin, 2.2),
    ("-sin({0})", lambda x: -np.sin(x), 2.2),
    ("2{0}", lambda x: 2 * x, 2.1),
    ("3{0}²", lambda x: 3 * x * x, 2.2),
    ("log({0})", np.log, 2.2),
    ("exp(-{0})", lambda x: np.exp(-x), 2.2),
    ("exp(-{0}²)", lambda x: np.exp(-x * x), 2.2),
)

_DIAGONAL = {"mul", "div", "neg", "copy", "convert_element_type", "add_any", "add", "sub", "select_n"}


def dominators(scene: Scene) -> dict[int, int]:
    """For each value that the error reaches entry by entry from one value, the nearest such value."""
    tape, above, depth = scene.tape, {}, {}
    for op in tape.ops:
        if len(op.outputs) != 1 or not tape.linear[op.outputs[0]] or op.name not in _DIAGONAL:
            continue
        out = op.outputs[0]
        moving = [i for i in op.inputs if tape.linear[i]]
        if any(np.shape(tape.values[i]) != np.shape(tape.values[out]) for i in moving) or (
            op.name == "div" and tape.linear[op.inputs[1]]
        ):
            continue
        if len(moving) < len(op.inputs) and op.name in ("add_any", "add", "sub"):
            continue
        a = moving[0]
        for b in moving[1:]:
            while a != b:
                if depth.get(a, 0) < depth.get(b, 0):
                    a, b = b, a
                if a not in above:
                    break
                a = above[a]
            if a != b:
                break
        else:
            above[out] = a
            depth[out] = depth.get(a, 0) + 1
    return above


def slopes(scene: Scene) -> Iterator[Mutant]:
    """Where the error is multiplied entry by entry: by another function's derivative, or by this one's elsewhere."""
    for site, op, entry, where, levels in _spans(scene):
        for nth, donor in enumerate(scene.donors(op, op.outputs[0], linear=False)):
            for words, function, cost in SLOPES:

                def change(op, ins, look, w=where, d=donor.where, f=function):
                    u = look(w)
                    return u * np.asarray(f(look(d))).astype(u.dtype)

                say = _say_slope(op, entry, donor.number, words)
                key = (site, "slope", where, donor.where, words)
                yield Mutant(key, {site: replaced(change)}, cost + 0.01 * nth + 0.02 * levels, say, site)


def passed(scene: Scene) -> Iterator[Mutant]:
    """A derivative left out: the error passed on as it came."""
    for site, op, entry, where, levels in _spans(scene):
        change = replaced(lambda op, ins, look, w=where: look(w))
        yield Mutant((site, "passed", where), {site: change}, 1.15 + 0.02 * levels, _say_passed(op, entry), site)


def skipped(scene: Scene) -> Iterator[Mutant]:
    """A whole step of the way left out: the error passed on as it was some lines before."""
    tape, above, depth = scene.tape, {}, {}
    for site, op in ((site, op) for site, op in scene.sites if tape.linear[op.outputs[0]]):
        moving = [i for i in op.inputs if tape.linear[i]]
        entry = moving[0]
        for other in moving[1:]:
            entry = _meeting(above, depth, entry, other)
        for out in op.outputs:
            above[out], depth[out] = entry, depth.get(entry, 0) + 1
        for levels in range(24 if len(op.outputs) == 1 else 0):
            if entry < 0 or (entry not in tape.maker and entry not in tape.cotangents):
                break
            made = tape.ops[tape.maker[entry]] if entry in tape.maker else None
            if entry not in op.inputs and np.shape(tape.values[entry]) == np.shape(tape.values[op.outputs[0]]):
                where = (None, entry) if made is None else (made.site, made.outputs.index(entry))
                change = replaced(lambda op, ins, look, w=where: look(w))
                yield Mutant(
                    (site, "skipped", where), {site: change}, 1.3 + 0.02 * levels, _say_skipped(op, entry), site
                )
            entry = above.get(entry, -1)


def _meeting(above: dict[int, int], depth: dict[int, int], a: int, b: int) -> int:
    """The nearest value that all of the error passes before both of two; −1 where there is none."""
    while a != b:
        if depth.get(a, 0) < depth.get(b, 0):
            a, b = b, a
        if a not in above:
            return -1
        a = above[a]
    return a


def _say_skipped(op: Op, entry: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 7)[0]
        return f"a step back is left out: {namer.expr(entry, 4)} is passed on where it should become {right}", right

    return say


def behind(scene: Scene, mutants: Iterable[Mutant]) -> Iterator[Mutant]:
    """Those mistakes in what the forward pass computes that leave the forward pass as it is: a value saved wrong."""
    tape = scene.tape
    for mutant in mutants:
        op = tape.ops[scene.first[mutant.site]]
        if not mutant.behind and not any(tape.linear[i] for i in op.inputs) and not tape.forward.isdisjoint(op.outputs):
            yield replace(mutant, key=(*mutant.key, "behind"), cost=mutant.cost + 0.05, behind=True)


def extra(scene: Scene) -> Iterator[Mutant]:
    """A factor too many: the error multiplied by another derivative besides its own."""
    tape = scene.tape
    for site, op in scene.linear():
        out = op.outputs[0]
        if (
            op.name not in ("mul", "dot_general", "sub", "add_any", "select_n", "neg", "div")
            or np.size(tape.values[out]) < 3
        ):
            continue
        for nth, donor in enumerate(scene.donors(op, out, linear=False)):
            for words, function, cost in SLOPES:
                change = on_output(
                    lambda op, x, look, d=donor.where, f=function: x * np.asarray(f(look(d))).astype(x.dtype)
                )
                yield Mutant(
                    (site, "extra", donor.where, words),
                    {site: change},
                    cost + 0.2 + 0.01 * nth,
                    _say_extra(op, donor.number, words),
                    site,
                )


def _spans(scene: Scene) -> Iterator[tuple[Site, Op, int, Where, int]]:
    """The sites whose result is an earlier value times something, entry by entry, with each such value."""
    tape = scene.tape
    above = dominators(scene)
    for site, op in scene.linear():
        out = op.outputs[0]
        if np.size(tape.values[out]) < 3:
            continue
        entry, levels = out, 0
        while entry in above and levels < 4:
            entry = above[entry]
            made = tape.ops[tape.maker[entry]] if entry in tape.maker else None
            yield site, op, entry, (None, entry) if made is None else (made.site, made.outputs.index(entry)), levels
            levels += 1


def _say_extra(op: Op, number: int, words: str):
    def say(namer, c):
        value = namer.expr(number, 4)
        value = value if value.isidentifier() or value.endswith(")") else f"({value})"
        right = namer.operation(op, op.inputs, 7)[0]
        return f"a factor {words.format(value)} too many in {right}", right

    return say


def _say_passed(op: Op, entry: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 7)[0]
        if op.name == "select_n":
            return f"the mask {namer.expr(op.inputs[0], 4)} is not applied (dropped) in {right}", right
        return (
            (
                f"the derivative is left out: {namer.expr(entry, 3)} is passed on as it is, the factor that makes it"
                f" {right} is missing"
            ),
            right,
        )

    return say


def _say_slope(op: Op, entry: int, number: int, words: str):
    def say(namer, c):
        value = namer.expr(number, 4)
        value = value if value.isidentifier() or value.endswith(")") else f"({value})"
        right = namer.operation(op, op.inputs, 7)[0]
        return f"the error is multiplied by {words.format(value)}, where it should become {right}", right

    return say
