"""The gradient of a close relative: the primal itself with one small thing different, differentiated anew.

ε outside the root, a variance over n − 1, all sums over another axis, a mask left out, a straight-through estimator:
here several places of the backward pass change at once, and a change of the primal is what they have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.candidate import Candidate
from jaxnet.checking.diagnose.points import Point
from jaxnet.checking.diagnose.problem import Problem
from jaxnet.checking.diagnose.program import Program, trace
from jaxnet.checking.diagnose.source import line_of
from jaxnet.checking.diagnose.tape import Site
from jaxnet.program.calls import scan_counts

_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


@dataclass(frozen=True)
class Step:
    """An equation of the primal about to run: its inputs, and the equation that made each."""

    eqn: Any
    inputs: Sequence[Any]
    makers: Sequence[Any]

    def literal(self) -> tuple[int, float] | None:
        """The position and value of the one operand that is a number in the program."""
        found = [
            (j, float(v.val))
            for j, v in enumerate(self.eqn.invars)
            if isinstance(v, core.Literal) and np.ndim(v.val) == 0
        ]
        return found[0] if len(found) == 1 else None

    def other(self) -> Any:
        """The operand that is not the number."""
        found = self.literal()
        if found is None:
            raise ValueError("no number here")
        return self.inputs[1 - found[0]]

    def bind(self, inputs: Sequence[Any] | None = None, **params) -> list[Any]:
        """The equation itself, on other inputs or with other parameters."""
        out = self.eqn.primitive.bind(
            *(self.inputs if inputs is None else inputs),
            **{**self.eqn.primitive.get_bind_params(self.eqn.params), **params},
        )
        return list(out) if self.eqn.primitive.multiple_results else [out]


Hook = Callable[[Site, Step], list[Any] | None]


def evaluate(jaxpr, consts: Sequence[Any], args: Sequence[Any], hook: Hook, path: Site = ()) -> list[Any]:
    """Run a program with `hook` asked at each equation what should happen in its place (None: the equation)."""
    env: dict[Any, Any] = {}
    makers: dict[Any, Any] = {}
    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))

    def read(v: Any) -> Any:
        return jnp.asarray(v.val, getattr(v.aval, "dtype", None)) if isinstance(v, core.Literal) else env[v]

    for k, eqn in enumerate(jaxpr.eqns):
        inputs = [read(v) for v in eqn.invars]
        step = Step(eqn, inputs, [None if isinstance(v, core.Literal) else makers.get(v) for v in eqn.invars])
        outs = hook((*path, k), step)
        if outs is None:
            outs = _inner(eqn, inputs, hook, (*path, k)) or step.bind()
        for v, out in zip(eqn.outvars, outs, strict=True):
            env[v] = out
            makers[v] = (eqn, inputs)
    return [read(v) for v in jaxpr.outvars]


def _inner(eqn, inputs, hook: Hook, path: Site) -> list[Any] | None:
    inner = next((eqn.params[key] for key in ("call_jaxpr", "jaxpr", "fun_jaxpr") if key in eqn.params), None)
    if eqn.primitive.name in _CALLS and inner is not None:
        consts = inner.consts if hasattr(inner, "consts") else []
        return evaluate(getattr(inner, "jaxpr", inner), consts, inputs, hook, path)
    if eqn.primitive.name == "scan" and inner is not None:
        n, m = scan_counts(eqn)

        def body(carry, x):
            outs = evaluate(inner.jaxpr, inner.consts, [*inputs[:n], *carry, *x], hook, (*path, "body"))
            return outs[:m], outs[m:]

        carry, ys = lax.scan(
            body,
            list(inputs[n : n + m]),
            list(inputs[n + m :]),
            length=eqn.params["length"],
            reverse=eqn.params["reverse"],
        )
        return [*carry, *ys]
    return None


def relative(primal: Callable, hook: Hook) -> Callable:
    """The primal with a hook in its program."""

    def function(*args):
        closed, shape = jax.make_jaxpr(primal, return_shape=True)(*args)
        outs = evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), hook)
        return jax.tree.unflatten(jax.tree.structure(shape), outs)

    return function


def walk(jaxpr, path: Site = ()) -> Iterator[tuple[Site, Any]]:
    """The equations of a program and of what it calls."""
    for k, eqn in enumerate(jaxpr.eqns):
        yield (*path, k), eqn
        inner = next((eqn.params[key] for key in ("call_jaxpr", "jaxpr", "fun_jaxpr") if key in eqn.params), None)
        if inner is not None and (eqn.primitive.name in _CALLS or eqn.primitive.name == "scan"):
            yield from walk(
                getattr(inner, "jaxpr", inner), (*path, k, "body") if eqn.primitive.name == "scan" else (*path, k)
            )


def relatives(problem: Problem, point: Point, program: Program) -> Iterator[Candidate]:
    """Every relative of the primal, as a candidate."""
    closed = jax.make_jaxpr(problem.primal)(*point.args)
    reductions: dict[tuple, Any] = {}
    for path, eqn in walk(closed.jaxpr):
        for kind, words, cost, rule in _rules(eqn):
            yield _candidate(problem, (kind, path), words, cost, _at(path, rule), eqn)
        if eqn.primitive.name.startswith("reduce_") and len(eqn.params["axes"]) < eqn.invars[0].aval.ndim:
            reductions.setdefault((tuple(eqn.params["axes"]), eqn.invars[0].aval.ndim), eqn)
    for (axes, ndim), eqn in reductions.items():
        rest = tuple(a for a in range(ndim) if a not in axes)
        for other in {rest, *((a,) for a in range(ndim))} - {axes}:
            words = (
                f"all sums run over axis {_list(other)} and not over axis {_list(axes)}: the wrong axis (over the batch"
                " and not the features, or the other way round)"
            )
            yield _candidate(problem, ("axes", axes, other), words, 1.9, _axes(axes, other), eqn)


def _list(axes) -> str:
    return ", ".join(map(str, axes))


def _candidate(problem: Problem, key: tuple, words: str, cost: float, hook: Hook, eqn: Any) -> Candidate:
    changed = relative(problem.primal, hook)

    def predict(point: Point):
        try:
            tape = trace(changed, point.args).at(point.args, point.cotangent)
        except Exception as error:  # a relative may be no program at all, and jax says so in many ways
            raise ValueError(f"this relative cannot be differentiated: {error}") from error
        return {path: np.asarray(tape.values[n]) for path, n in tape.leaves.items()}

    line = line_of(eqn)

    def say(namer):
        return words.replace("{name}", line.assigns or f"{eqn.primitive.name}(…)"), line.text

    return Candidate(("relative", *key), cost, predict, say, line)


def _at(path: Site, rule: Callable[[Step], list[Any] | None]) -> Hook:
    return lambda here, step: rule(step) if here == path else None


Rule = tuple[str, str, float, Callable[[Step], list[Any] | None]]
"""What is different at one equation: its kind, its words, how simple it is, and what stands in the equation's place."""

_IDENTITY = ("abs", "tanh", "logistic", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "erf", "max", "min", "clamp")
_APPROXIMATE = "the tanh approximation's derivative stands in the place of the exact GELU's"


def _as_mean(step: Step) -> list[Any]:
    return [jnp.mean(step.inputs[0], step.eqn.params["axes"])]


def _other_way(step: Step) -> list[Any]:
    return step.bind(reverse=not step.eqn.params["reverse"])


_EXCHANGED: dict[str, tuple[Rule, ...]] = {
    "stop_gradient": (("through", "the gradient passes through stop_gradient", 1.4, lambda s: list(s.inputs)),),
    "tanh": (
        ("sigmoid", "σ stands in the place of tanh", 1.9, lambda s: [jax.nn.sigmoid(s.inputs[0])]),
        (
            "hard",
            "the hard tanh's derivative stands in the place of tanh's",
            1.9,
            lambda s: [jnp.clip(s.inputs[0], -1, 1)],
        ),
    ),
    "logistic": (
        ("tanh", "tanh stands in the place of σ", 1.9, lambda s: [jnp.tanh(s.inputs[0])]),
        (
            "hard",
            "the hard sigmoid's derivative stands in the place of σ's",
            1.9,
            lambda s: [jnp.clip(s.inputs[0] / 6 + 0.5, 0, 1)],
        ),
        ("steep", "σ(1.702 x) stands in the place of σ", 1.9, lambda s: [jax.nn.sigmoid(1.702 * s.inputs[0])]),
    ),
    "max": (
        (
            "softened",
            "softplus' derivative stands in the place of relu's",
            2.0,
            lambda s: [jnp.logaddexp(s.inputs[0], s.inputs[1])],
        ),
        (
            "at ties",
            "the cut-off's derivative is that of the other side at ties",
            2.0,
            lambda s: [jnp.where(s.inputs[0] >= s.inputs[1], s.inputs[0], s.inputs[1])],
        ),
    ),
    **{name: (("tanh", _APPROXIMATE, 1.5, lambda s: _erf_by_tanh(s)),) for name in ("erf", "erfc")},
    **{
        name: (("straight", f"{name} is passed straight through: as if {name} were the identity", 1.5,
                lambda s: list(s.inputs)),)
        for name in ("round", "floor", "ceil", "sign")
    },
    **{
        name: (("summed", f"{name} is treated as a mean", 2.0, _as_mean),)
        for name in ("reduce_max", "reduce_min", "argmax")
    },
    **{
        name: (("direction", f"{name} runs in the wrong direction", 1.5, _other_way),)
        for name in ("cumsum", "cumprod", "cummax", "cumlogsumexp")
    },
}  # fmt: skip


def _rules(eqn: Any) -> Iterator[Rule]:
    """What may be different at one equation of the primal."""
    name, aval = eqn.primitive.name, eqn.outvars[0].aval
    inexact = hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)
    if not inexact or name in ("broadcast_in_dim", "reshape", "squeeze", "iota"):
        return
    if name not in _CALLS or len(eqn.outvars) == 1:
        yield "held", "{name} is held constant: as if it were stop_gradient({name})", 1.4, _held
    yield from _EXCHANGED.get(name, ())
    if name in _IDENTITY:
        yield "identity", f"{name} is left out, as if it were the identity", 1.6, _identity
    if name in ("sqrt", "rsqrt", "log", "div", "integer_pow"):
        yield from _epsilons(name)
    literals = [float(v.val) for v in eqn.invars if isinstance(v, core.Literal) and np.ndim(v.val) == 0]
    if name == "add" and literals and 0 < abs(literals[0]) < 0.02:
        yield "no epsilon", f"{literals[0]:.3g} (ε) is left out", 1.5, lambda s: [s.other()]
    if name in ("div", "mul") and literals:
        yield from _denominators(name, literals[0])
    for j in (1, 2) if name == "select_n" and len(eqn.invars) == 3 else ():
        words = f"the mask of {{name}} is not applied (branch {j - 1} everywhere)"
        yield f"unmasked{j}", words, 1.5, lambda s, j=j: [s.inputs[j]]
    for y in (eqn.params["y"] - 1, eqn.params["y"] + 1) if name == "integer_pow" else ():
        words = f"the power {y} stands in the place of {eqn.params['y']}"
        yield f"power{y}", words, 1.8, lambda s, y=y: [s.inputs[0] ** y]


def _held(step: Step) -> list[Any]:
    return [lax.stop_gradient(out) if numeric.is_float(out) else out for out in step.bind()]


def _identity(step: Step) -> list[Any]:
    which = 1 if step.eqn.primitive.name == "clamp" else 0
    return [jnp.broadcast_to(step.inputs[which], step.eqn.outvars[0].aval.shape)]


def _epsilons(name: str) -> Iterator[Rule]:
    """ε moved: sqrt(v + ε) for sqrt(v) + ε and its kin."""

    def inside(step: Step):
        maker = step.makers[0]
        if maker is None or maker[0].primitive.name != "add":
            return None
        small = [(j, v) for j, v in enumerate(maker[0].invars) if isinstance(v, core.Literal) and np.ndim(v.val) == 0]
        return (maker[1][1 - small[0][0]], maker[1][small[0][0]]) if len(small) == 1 else None

    def outside(step: Step):
        parts = inside(step)
        if parts is None:
            raise ValueError("no ε under this root")
        v, eps = parts
        return [jnp.sqrt(v) + eps if name == "sqrt" else 1 / (jnp.sqrt(v) + eps)]

    def without(step: Step):
        parts = inside(step)
        if parts is None:
            raise ValueError("no ε under this function")
        return step.bind([parts[0], *step.inputs[1:]])

    def squared(step: Step):
        parts = inside(step)
        if parts is None:
            raise ValueError("no ε under this root")
        return step.bind([parts[0] + parts[1] ** 2])

    if name in ("sqrt", "rsqrt"):
        yield "outside", "ε stands outside the root: sqrt(v) + ε for sqrt(v + ε)", 1.5, outside
        yield "squared", "ε is squared under the root", 1.9, squared
    if name in ("sqrt", "rsqrt", "log"):
        yield "without", "ε is left out", 1.55, without


def _denominators(name: str, c: float) -> Iterator[Rule]:
    """A mean over n − 1, a number left out."""
    if name == "div" and c > 1 and c == int(c):
        for off in (-1, 1):
            sign = "−" if off < 0 else "+"
            words = (
                f"the mean {{name}} is taken over n {sign} 1 = {int(c) + off} where the forward pass has n = {int(c)}"
                f" (variance over n {sign} 1)"
            )
            yield f"ddof{off}", words, 1.5, lambda s, o=off: s.bind([s.inputs[0], s.inputs[1] + o])
    if c != 1:
        yield "number", f"the number {c:.6g} is left out", 1.6, lambda s: [s.other()]


def _erf_by_tanh(step: Step) -> list[Any]:
    x = step.inputs[0] * np.sqrt(2).astype(step.inputs[0].dtype)
    near = jnp.tanh(float(np.sqrt(2 / np.pi)) * (x + 0.044715 * x**3))
    return [near if step.eqn.primitive.name == "erf" else 1 - near]


def _axes(axes: tuple[int, ...], other: tuple[int, ...]) -> Hook:
    """All reductions over `axes` taken over `other`: ones and divisors go with them."""
    placed: dict[str, tuple[int, ...]] = {}

    def hook(path: Site, step: Step):
        name, eqn = step.eqn.primitive.name, step.eqn
        if name.startswith("reduce_") and tuple(eqn.params["axes"]) == axes and max(other) < step.inputs[0].ndim:
            full = step.inputs[0].shape
            placed["old"] = tuple(full[a] for a in axes)
            placed["new"] = tuple(full[a] for a in other)
            out = step.bind(axes=other)[0]
            return [out]
        if not placed:
            return None
        if name in ("broadcast_in_dim", "reshape") and step.inputs[0].shape != eqn.invars[0].aval.shape:
            shape = eqn.outvars[0].aval.shape
            if all(shape[a] == 1 for a in axes) and step.inputs[0].ndim == len(shape) - len(other):
                return [jnp.expand_dims(step.inputs[0], other)]
        literal = step.literal()
        if name == "div" and literal and literal[0] == 1 and literal[1] == float(np.prod(placed["old"])):
            return [step.inputs[0] / jnp.asarray(float(np.prod(placed["new"])), step.inputs[0].dtype)]
        return None

    return hook
