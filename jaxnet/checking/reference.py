"""The reference of a rule: autodiff of its primal in any dtype; else forward mode, else finite differences.

Sources: reverse and forward mode as in Griewank and Walther, "Evaluating Derivatives"; differences with Richardson's
extrapolation as in Ridders (1982); the complex step of Squire and Trapp (1998).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxnet.checking.differentiation import GradientFault, flat_gradients
from jaxnet.checking.host_functions import OnHost
from jaxnet.checking.subject import (
    CannotCheckError,
    Leaves,
    Subject,
    Tree,
    cast,
    is_array,
    leaves_of,
    why_passed_over,
)
from jaxnet.program import draws_numbers, in_numpy, widened_program, with_longer_loops
from jaxnet.program.calls import equations
from jaxnet.program.evaluate import UNOPTIMISED

MOST_COLUMNS = 16384  # entries of which a Jacobian is taken column by column
MOST_DIFFERENCES = 4096
RATIO = 4.0
STEPS = tuple(RATIO**-k for k in range(2, 10))
COMPLEX_STEP = 1e-30
SIDE = 1e-6
MOST_ENTRIES, MANY_ENTRIES = 5e6, 4e7  # computed in NumPy in the time of a compilation: in some 60 runs, in five


@dataclass
class Runs:
    """The rule and its reference at one shape, compiled once, as functions (values, d_out) of flat leaves."""

    subject: Subject
    leaves: Leaves
    outs: Leaves
    faults: dict[str, GradientFault] = field(default_factory=dict)  # in the structure of gradients, by argument
    curve: list[tuple[float, float]] = field(default_factory=list)  # of finite differences: step, change
    compiled: dict = field(default_factory=dict)
    iterates: bool = False  # the primal has a while loop
    elsewhere: bool = False  # at another shape than the first: each program runs a few times
    x64: bool = field(default_factory=lambda: jnp.result_type(float) == jnp.float64)  # whether the user has float64 on

    @classmethod
    def at(cls, subject: Subject, args: tuple) -> Runs:
        """The rule and its reference at the shapes of `args`."""
        leaves = leaves_of(args, subject.fixed)
        leaves.require()
        subject = replace(subject, transforms=subject.transforms and not isinstance(subject.run, OnHost))
        program, shapes = jax.make_jaxpr(lambda values: subject.primal(*leaves.tree(values)), return_shape=True)(
            leaves.values
        )
        outs = leaves_of(shapes)
        if not outs.where:
            raise CannotCheckError("no output has a gradient: all are integers, booleans or keys")
        if subject.custom is not None and subject.fixed:
            leaves = replace(leaves, static=frozenset(range(len(leaves.everything))))
        return cls(subject, leaves, outs, iterates=any(eqn.primitive.name == "while" for eqn in equations(program)))

    def moved(self, args: tuple) -> Runs:
        """The same functions at other arguments; compiled programs are kept where the shapes are the same."""
        leaves = replace(leaves_of(args, self.subject.fixed), static=self.leaves.static)
        if signature(leaves) != signature(self.leaves) or any(
            leaves.everything[i] is not self.leaves.everything[i] for i in leaves.static if i not in leaves.where
        ):
            return replace(Runs.at(replace(self.subject, args=args), args), elsewhere=True)
        return replace(self, subject=replace(self.subject, args=args), leaves=leaves)

    def with_rule(self, run: Callable) -> Runs:
        """Another rule for the same function: its reference stays compiled."""
        for key in [key for key in self.compiled if key[0] == "rule"]:
            del self.compiled[key]
        return replace(self, subject=replace(self.subject, run=run), faults={})

    def seed_shapes(self) -> tuple:
        """The leaves that a random cotangent (or tangent) is drawn for."""
        return self.leaves.values if self.subject.tangents else self.outs.values

    def args(self, values: Sequence, rest: Sequence | None = None) -> tuple:
        """The arguments with `values` in them; in float64 the other float arrays (targets) are in float64 too."""
        args = self.leaves.tree(values, rest)
        return cast(args, jnp.float64) if all(wide(v) for v in values) else args

    def labels(self) -> list[str]:
        """The names of the compared leaves."""
        if self.subject.tangents:
            return [f"∂out{path}" for path in self.outs.paths]
        return ["∂" + self.subject.label(path) for path in self.leaves.paths]

    def rule(self, values, seed, rest=None):
        """out, gradients by the rule, as flat lists; the compiled function notes faults of their structure."""
        args = self.args(values, rest)
        if self.subject.tangents:
            out, tangents = self.subject.run(args, seed)
            return self.flat_out(out), self.flat_out(tangents)
        out, grads = self.subject.run(args, self.outs.zeros_elsewhere(seed))
        flat, faults = flat_gradients(leaves_of(args, self.subject.fixed), grads, self.subject.label)
        if not self.finer(values):  # structure and dtypes are those at the user's own inputs
            self.faults.update(faults)
        return self.flat_out(out), [
            jnp.zeros_like(v) * jnp.nan if g is None else g for g, v in zip(flat, values, strict=True)
        ]

    def flat_out(self, out):
        """The outputs that have a gradient."""
        found = leaves_of(out)
        if found.paths != self.outs.paths:
            raise TypeError(f"the rule's forward gives {list(found.paths)}, the primal {list(self.outs.paths)}")
        return list(found.values)

    def expected(self, values, seed, rest=None):
        """out, gradients by the reference, as flat lists."""
        args, subject = self.args(values, rest), self.subject

        def call(values):
            return subject.primal(*self.args(values, rest))

        if subject.tangents:
            return self.pushed(values, seed, rest)
        if subject.declared is not None:
            grads, faults = flat_gradients(
                leaves_of(args, subject.fixed), subject.declared(args, self.outs.zeros_elsewhere(seed))
            )
            if faults:
                said = "; ".join(fault.words for fault in faults.values())
                raise CannotCheckError(f"intended must give a gradient for each argument: {said}")
            return self.flat_out(call(values)), grads
        if subject.mode == "forward":
            return self.flat_out(call(values)), by_columns(lambda v: self.flat_out(call(v)), values, seed)
        out, pull = jax.vjp(call, tuple(values))
        outs = self.flat_out(out)
        # a function that is told its dtype gives that in float64 too
        seed = [s.astype(o.dtype) for s, o in zip(seed, outs, strict=True)]
        return outs, list(pull(self.outs.zeros_elsewhere(seed))[0])

    def continued(self, values, seed, rest=None):
        """out, gradients by the reference with its while loops run on, as flat lists."""
        primal, fixed = self.subject.primal, self.subject.fixed

        def longer(*args):
            inner = leaves_of(args, fixed)
            return with_longer_loops(lambda *values: primal(*inner.tree(values)))(*inner.values)

        return replace(self, subject=replace(self.subject, primal=longer)).expected(values, seed, rest)

    def outputs(self, values, seed, rest=None):
        """out by the primal alone, as a flat list; no gradients."""
        return self.flat_out(self.subject.primal(*self.args(values, rest))), []

    def pushed(self, values, tangents, rest=None):
        """out and its tangents by forward mode of the primal, as flat lists."""
        out, moved = jax.jvp(lambda v: self.subject.primal(*self.args(v, rest)), (tuple(values),), (tuple(tangents),))
        return self.flat_out(out), self.flat_out(moved)

    def run(self, which: str, values, seed) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """`which` ("rule", "expected" or "pushed") at a point, as numpy arrays in float64 or complex128."""
        if which == "expected" and self.subject.mode == "differences" and self.subject.declared is None:
            point = "differences", *map(bits, (*values, *seed, *self.leaves.rest))
            if point not in self.compiled:
                self.compiled[point] = self.differences(values, seed), list(self.curve)
            found, self.curve[:] = self.compiled[point]
            return found
        key = which, self.subject.transforms, self.finer(values), tuple(str(v.dtype) for v in values)
        if key not in self.compiled:
            self.compiled[key] = self.executable(which, values, seed)
        out, grads = self.compiled[key](list(values), list(seed), self.leaves.rest)
        return [widened(o) for o in out], [widened(g) for g in grads]

    def executable(self, which: str, values, seed) -> Callable:
        """The method of this name: in NumPy where that is quicker, else compiled.

        The rounding of the user's own dtype is measured with compiled programs: the rule's, and at the first shape
        the reference's too.
        """
        function = self.function(which, values, seed)
        if which == "rule" and not self.subject.transforms:
            return function
        compiled = jax.jit(function, compiler_options=UNOPTIMISED if self.elsewhere else None)
        if not self.finer(values) and (which == "rule" or not self.elsewhere):
            return compiled
        traced = compiled.trace(list(values), list(seed), self.leaves.rest)
        run = in_numpy(traced.jaxpr, MANY_ENTRIES if self.elsewhere else MOST_ENTRIES)
        tree = jax.tree.structure(traced.out_info)
        if run is None:
            return compiled
        return lambda *args: jax.tree.unflatten(tree, run(*jax.tree.leaves(args)))

    def finer(self, values) -> bool:
        """Whether values are in float64 where the user's are not."""
        return all(map(wide, values)) and not all(map(wide, self.leaves.values))

    def function(self, which: str, values, seed) -> Callable:
        """The method of this name, for values of these dtypes.

        In float64 it is traced anew. Where that fails, or where it draws random numbers, which would be others, it is
        the user's own program with every float in it widened.
        """
        function = getattr(self, which)
        if not self.finer(values) or (which == "rule" and not self.subject.transforms):
            return function
        own = self.leaves.values if which == "pushed" else self.seed_shapes()
        try:
            with warnings.catch_warnings():  # casts back to the user's own dtype: noted where it counts
                warnings.simplefilter("ignore", FutureWarning)
                program = jax.jit(function).trace(list(values), list(seed), self.leaves.rest).jaxpr
        except CannotCheckError:
            raise
        except Exception:  # a function may be for its own dtypes alone: widened, it is asked again
            return self.widened_function(function, own) or function
        return (draws_numbers(program) and self.widened_function(function, own)) or function

    def widened_function(self, function: Callable, own: Sequence) -> WidenedFunction | None:
        """The user's own program with every float in it widened; None where it cannot be traced at their dtypes."""
        shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in own]
        try:
            with jax.enable_x64(self.x64):
                trace = jax.make_jaxpr(function, return_shape=True)
                return WidenedFunction(*trace(list(self.leaves.values), shapes, self.leaves.rest))
        except Exception:  # the user's function may raise anything; it is told where the function is compared
            return None

    def differences(self, values, seed) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Differences of ⟨cotangent, primal⟩: central ones extrapolated; by a complex step where the two agree."""
        size = sum(v.size for v in values)
        if size > MOST_DIFFERENCES or any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in values):
            raise CannotCheckError(
                f"finite differences are for up to {MOST_DIFFERENCES} real numbers, got {size}: give `reference=`"
            )

        sampled = self.sampled_on_host if isinstance(self.subject.primal, OnHost) else self.sampled
        outs, table, complex_step = sampled(values, seed)
        best, levels = extrapolated(np.asarray(table, np.float64))
        self.curve[:] = zip(STEPS[1:], levels, strict=True)
        try:
            exact = np.asarray(complex_step(), np.float64)
        except Exception:  # the function is not for complex numbers
            exact = best
        if exact is not best and np.abs(exact - best).max() <= 8 * min(levels) + 1e-9 * np.abs(best).max():
            best = exact
            self.curve.append((COMPLEX_STEP, float(np.finfo(np.float64).eps * np.abs(best).max())))
        ends = np.cumsum([v.size for v in values])[:-1]
        grads = [part.reshape(v.shape) for part, v in zip(np.split(best, ends), values, strict=True)]
        return [widened(o) for o in outs], grads

    def sampled(self, values, seed) -> tuple[Sequence, Any, Callable[[], Any]]:
        """The outputs, central differences by step and entry, and the slopes by a complex step, in one program each."""
        outputs = self.function("outputs", values, seed)

        def call(v):
            return outputs(v, seed, self.leaves.rest)[0]

        flat, back = flattened(values)
        scale = jnp.maximum(jnp.abs(flat), 0.1)

        def cost(vector, part=jnp.real):
            return sum(part(jnp.sum(s * o)) for s, o in zip(seed, call(back(vector)), strict=True))

        def complex_step(i):
            step = jnp.zeros_like(flat).at[i].set(COMPLEX_STEP)
            return cost(jax.lax.complex(flat, step), jnp.imag) / COMPLEX_STEP

        def all_of(steps):
            return call(values), jax.lax.map(lambda step: central_differences(cost, flat, step * scale), steps)

        outs, table = jax.jit(all_of)(jnp.asarray(STEPS, flat.dtype))
        return outs, table, jax.jit(lambda: jax.lax.map(complex_step, jnp.arange(flat.size)))

    def sampled_on_host(self, values, seed) -> tuple[Sequence, Any, Callable[[], Any]]:
        """The same of a function of NumPy: called entry by entry, and nothing is compiled."""
        outs, places, slope = self.slopes(values, seed)

        def complex_step() -> list:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # where a complex number loses its imaginary part
                return [np.imag(slope(place, COMPLEX_STEP * 1j)) / COMPLEX_STEP for place in places]

        table = []
        for step in STEPS:
            sizes = [step * max(abs(np.asarray(values[which]).flat[i]), 0.1) for which, i in places]
            table.append([(slope(at, h) - slope(at, -h)) / (2 * h) for at, h in zip(places, sizes, strict=True)])
        return outs, table, complex_step

    def slopes(self, values, seed) -> tuple[Sequence, list[tuple[int, int]], Callable[[tuple[int, int], complex], Any]]:
        """Of a function of NumPy: its outputs; (leaf, entry) for each input; ⟨cotangent, outputs⟩ with one moved."""
        primal, inner = self.subject.primal, leaves_of(self.args(values), self.subject.fixed)
        assert isinstance(primal, OnHost)
        inner = replace(inner, everything=tuple(np.asarray(x) if is_array(x) else x for x in inner.everything))
        parts, cotangent = inner.values, [np.asarray(s) for s in seed]

        def outputs(moved: Sequence) -> list[np.ndarray]:
            leaves = jax.tree.leaves(primal.directly(*inner.tree(moved)))
            return [leaf for leaf in leaves if why_passed_over(leaf) is None]

        def slope(place: tuple[int, int], step: complex) -> Any:
            which, i = place
            moved = list(parts)
            moved[which] = parts[which].astype(np.result_type(parts[which], step))
            moved[which].flat[i] += step
            return sum(np.sum(s * o) for s, o in zip(cotangent, outputs(moved), strict=True))

        return outputs(parts), [(which, i) for which, part in enumerate(parts) for i in range(part.size)], slope

    def sides(self, values, seed) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of a function of NumPy: the slopes to the left and to the right of each input."""
        _, places, slope = self.slopes(values, seed)
        here, table = slope(places[0], 0), []
        for place in places:
            h = SIDE * max(abs(np.asarray(values[place[0]]).flat[place[1]]), 0.1)
            table.append(((here - slope(place, -h)) / h, (slope(place, h) - here) / h))
        ends = np.cumsum([v.size for v in values])[:-1]
        halves = [np.split(each, ends) for each in np.asarray(table).T]
        return [
            tuple(half.reshape(v.shape) for half in pair)
            for pair, v in zip(zip(*halves, strict=True), values, strict=True)
        ]


def bits(array: Any) -> tuple[str, bytes]:
    """An array's dtype and bytes; of a random key its data's."""
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        array = jax.random.key_data(array)
    return str(array.dtype), np.asarray(array).tobytes()


def central_differences(cost: Callable, x: jax.Array, steps: jax.Array) -> jax.Array:
    """(c(x + h e_i) − c(x − h e_i)) / 2h for every entry, each with a step of its own."""

    def one(i):
        up, down = (x.at[i].add(sign * steps[i]) for sign in (1, -1))
        return (cost(up) - cost(down)) / (up[i] - down[i])

    return jax.lax.map(one, jnp.arange(x.size))


def extrapolated(table: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Richardson's extrapolation of central differences: a row for each step, each a `RATIO`-th of the one before.

    Returns the value of each entry where its last extrapolation changed least, and the largest change at each step.
    """
    rows, levels = [table[0]], []
    best, least = table[0], np.full(table[0].shape, np.inf)
    for row in table[1:]:
        new = [row]
        for order, old in enumerate(rows, 1):
            new.append(new[-1] + (new[-1] - old) / (RATIO ** (2 * order) - 1))
        changes = [np.maximum(np.abs(b - a), np.abs(b - old)) for a, b, old in zip(new, new[1:], rows, strict=False)]
        for value, change in zip(new[1:], changes, strict=True):
            better = change < least
            best, least = np.where(better, value, best), np.where(better, change, least)
        levels.append(float(np.max(least, initial=0)))
        rows = new
    return best, levels


@dataclass(frozen=True, eq=False)
class WidenedFunction:
    """(values, seed, rest) -> the results of a traced program, computed in float64 throughout."""

    program: ClosedJaxpr
    shapes: Tree

    def __call__(self, values, seed, rest=None):
        outs = widened_program(self.program)(*jax.tree.leaves((values, seed, rest)))
        return jax.tree.unflatten(jax.tree.structure(self.shapes), outs)


def signature(leaves: Leaves) -> tuple:
    """Structure, shapes and dtypes."""
    arrays = (
        (leaf.shape, str(leaf.dtype)) if hasattr(leaf, "dtype") and i not in leaves.static else None
        for i, leaf in enumerate(leaves.everything)
    )
    return leaves.treedef, leaves.where, tuple(arrays)


def flattened(values) -> tuple[jax.Array, Callable]:
    """Leaves as one vector, and back."""
    dtype = jnp.result_type(*values)
    sizes = np.cumsum([v.size for v in values])[:-1]

    def back(vector):
        return [p.reshape(v.shape).astype(v.dtype) for p, v in zip(jnp.split(vector, sizes), values, strict=True)]

    return jnp.concatenate([v.reshape(-1).astype(dtype) for v in values]), back


def by_columns(call: Callable, values, seed) -> list:
    """⟨cotangent, J e_i⟩ for every entry i of the inputs: the gradient where reverse mode cannot go."""
    flat, back = flattened(values)
    if flat.size > MOST_COLUMNS or jnp.issubdtype(flat.dtype, jnp.complexfloating):
        raise CannotCheckError(
            f"forward mode takes up to {MOST_COLUMNS} real numbers, got {flat.size}: give a `reference=`"
        )

    def one(i):
        direction = jnp.zeros_like(flat).at[i].set(1)
        _, tangents = jax.jvp(lambda v: call(back(v)), (flat,), (direction,))
        return sum(jnp.vdot(s, t) for s, t in zip(seed, tangents, strict=True))

    return back(jax.lax.map(one, jnp.arange(flat.size), batch_size=min(64, flat.size)))


def wide(value) -> bool:
    """Whether a value is in float64 or complex128."""
    return value.dtype in (jnp.float64, jnp.complex128)


def widened(value) -> np.ndarray:
    """An array on the host in float64 or complex128."""
    host = np.asarray(value)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)


def in_float64(function: Callable, *trees):
    """`function` of the trees in float64, with float64 switched on; promotion as users have it by default."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return function(*(cast(tree, jnp.float64) for tree in trees))
