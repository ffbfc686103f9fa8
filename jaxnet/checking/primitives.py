"""`jaxnet check --primitives`: JAX's own derivatives, in reverse against forward mode against differences.

For each function of real arrays f, with random weights w and a direction u, in float64:

    c(x) = Σ w · f(x)      ∇c by reverse mode = by forward mode = by differences of c
    h(x) = u · ∇c(x)       ∇h by reverse over reverse = by forward over reverse = by differences of h

and ∇c in float32 and bfloat16 against float64. The inputs are drawn from the first domain where f is finite, and an
elementwise f is also asked at the edges of domains. Where differences do not converge (a kink, a pole), none is asked.

Idea: Yang et al., "Fuzzing Automatic Differentiation in Deep-Learning Libraries" (2023).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.differentiation import short
from jaxnet.checking.reference import RATIO, central_differences, extrapolated

MODULES: dict[str, Any] = {
    "jnp": jnp, "jnp.linalg": jnp.linalg, "jnp.fft": jnp.fft, "nn": jax.nn, "lax": jax.lax,
    "special": jax.scipy.special, "scipy.linalg": jax.scipy.linalg,
    **{f"stats.{name}": getattr(jax.scipy.stats, name)
       for name in ("norm", "beta", "gamma", "t", "cauchy", "expon", "laplace", "logistic", "chi2", "uniform")},
}  # fmt: skip
DOMAINS = ((-2.0, 2.0), (0.1, 2.0), (0.1, 0.9), (1.1, 3.0))
EDGES = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-6, 20.0, -20.0)
STEPS = tuple(2e-2 * RATIO**-k for k in range(7))
CLOSE = 1e-5  # relative: the accuracy of differences of differences
SHAPES = (4,), (3, 3), ()
INSTEAD: dict[str, Any] = {
    "axis": 0, "axes": (0,), "axis1": 0, "axis2": -1, "source": 0, "destination": -1, "dimension": 0,
    "dimensions": (0,), "shape": (2, 2), "sizes": (2, 3), "new_sizes": (2, 2), "pad_width": 1, "shift": 1, "repeats": 2,
    "reps": 2, "num": 3, "indices": (0, 2), "obj": (1,), "indices_or_sections": 2, "n": 2, "d": 1, "k": 1,
    "exponents": 2, "y_int": 2, "dtype": "float64", "new_dtype": "float64", "start_index": 1, "limit_index": 3,
    "num_classes": 4, "max_iter": 10,
}  # fmt: skip
"""Arguments that are no arrays of numbers, by name."""
WRITTEN: dict[str, Callable] = {
    "special.betainc": lambda x: jax.scipy.special.betainc(2.0, 1.5, x),
    "special.zeta": lambda q: jax.scipy.special.zeta(2.5, q),
    "special.bessel_jn": lambda x: jax.scipy.special.bessel_jn(x, v=3),
    "special.sph_harm_y": lambda theta, phi: jax.scipy.special.sph_harm_y(
        jnp.full(theta.size, 2), jnp.full(theta.size, 1), theta.ravel(), phi.ravel(), n_max=2
    ),
    "jnp.einsum": lambda a, b: jnp.einsum("...i,...i->...", a, b),
    "jnp.apply_along_axis": lambda a: jnp.apply_along_axis(jnp.sin, 0, a),
    "jnp.apply_over_axes": lambda a: jnp.apply_over_axes(jnp.sum, a, (0,)),
    "jnp.choose": lambda a, b: jnp.choose(jnp.array([0, 1, 1, 0]), [a, b]),
    "jnp.compress": lambda a: jnp.compress(np.array([True, False, True]), a, axis=0),
    "jnp.delete": lambda a: jnp.delete(a, 1),
    "jnp.extract": lambda a: jnp.extract(np.array([True, False, True, True]), a),
    "jnp.insert": lambda a, b: jnp.insert(a, 1, b[:1]),
    "jnp.piecewise": lambda a: jnp.piecewise(a, [a < 1, a >= 1], [jnp.sin, jnp.cos]),
    "jnp.place": lambda a, b: jnp.place(a, np.array([True, False, True, True]), b, inplace=False),
    "jnp.put": lambda a, b: jnp.put(a, np.array([0, 2]), b[:2], inplace=False),
    "jnp.put_along_axis": lambda a, b: jnp.put_along_axis(a, np.array([1]), b[:1], 0, inplace=False),
    "jnp.select": lambda a, b: jnp.select([a < 1, b < 1], [a, b], a * b),
    "jnp.take": lambda a: jnp.take(a, np.array([0, 2]), axis=0),
    "jnp.take_along_axis": lambda a: jnp.take_along_axis(a, np.array([1, 0]), 0),
    "jnp.dsplit": lambda a: jnp.dsplit(a.reshape(1, 1, -1), 1),
    "jnp.linalg.multi_dot": lambda a, b: jnp.linalg.multi_dot([a, b, a]),
    "jnp.linalg.tensorsolve": lambda a, b: jnp.linalg.tensorsolve(a, b[0]),
    "jnp.linalg.matrix_power": lambda a: jnp.linalg.matrix_power(a, 3),
    "lax.dot_general": lambda a, b: jax.lax.dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ()))),
    "lax.conv": lambda a, b: jax.lax.conv(a.reshape(1, 1, -1), b.reshape(1, 1, -1)[..., :3], (1,), "SAME"),
    "lax.conv_transpose": lambda a, b: jax.lax.conv_transpose(
        a.reshape(1, -1, 1), b.reshape(-1, 1, 1)[:3], (2,), "SAME"
    ),
    "lax.integer_pow": lambda x: jax.lax.integer_pow(x, 3),
    "lax.select": lambda a, b: jax.lax.select(a < b, a, b),
    "lax.clamp": lambda x: jax.lax.clamp(0.5, x, 1.5),
    "lax.polygamma": lambda x: jax.lax.polygamma(jnp.full_like(x, 1), x),
    "lax.igamma": lambda x: jax.lax.igamma(jnp.full_like(x, 1.5), x),
    "lax.betainc": lambda x: jax.lax.betainc(jnp.full_like(x, 2), jnp.full_like(x, 1.5), x),
    "lax.map": lambda a: jax.lax.map(jnp.sin, a),
    "lax.scan": lambda a: jax.lax.scan(lambda c, x: (c * x, c + x), a[0], a),
    "lax.associative_scan": lambda a: jax.lax.associative_scan(jnp.multiply, a),
    "lax.cond": lambda a, b: jax.lax.cond(True, jnp.multiply, jnp.add, a, b),
    "lax.fori_loop": lambda a: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), a),
    "nn.scaled_dot_general": lambda a, b: jax.nn.scaled_dot_general(a, b, (((1,), (0,)), ((), ()))),
    "nn.dot_product_attention": lambda a, b: jax.nn.dot_product_attention(
        a.reshape(1, -1, 1, 1), b.reshape(1, -1, 1, 1), (a * b).reshape(1, -1, 1, 1)
    ),
}
"""A call of functions whose arguments no name tells; those that it does not take have no derivative in JAX."""
NOT_ASKED = {
    "save", "savez", "load", "fromfile", "frombuffer", "empty", "empty_like", "printoptions", "stop_gradient",
}  # fmt: skip


@dataclass(frozen=True)
class Disagreement:
    """Two derivatives of a function that differ, at the entry where they differ most."""

    function: str
    what: str
    at: str
    values: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.function:34} {self.what:44} {self.values[0]:<12.6g} {self.values[1]:<12.6g} at {self.at}"


def functions() -> Iterator[tuple[str, Callable]]:
    """Every public function of the modules, once."""
    seen: set[int] = set()
    for prefix, module in MODULES.items():
        for name, value in sorted(vars(module).items()):
            known = id(inspect.unwrap(value)) if callable(value) else 0
            if name[0] == "_" or inspect.isclass(value) or not known or known in seen or name in NOT_ASKED:
                continue
            seen.add(known)
            yield f"{prefix}.{name}", WRITTEN.get(f"{prefix}.{name}", value)


def drawn(function: Callable, rng: np.random.Generator, low: float, high: float, shape: tuple) -> dict[str, Any]:
    """A function's arguments by name: a number or a shape where the name says so, else random numbers."""
    if isinstance(function, jnp.ufunc):
        names = [f"x{k}" for k in range(function.nin)]
    else:
        try:
            asked = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            asked = ()
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [p.name for p in asked if p.default is p.empty and p.kind in kinds] or ["x"]
    values = {name: INSTEAD[name] if name in INSTEAD else rng.uniform(low, high, shape) for name in names}
    return {name: v @ v.T + np.eye(3) if np.shape(v) == (3, 3) else v for name, v in values.items()}


def of_arrays(function: Callable, args: dict[str, Any]) -> tuple[Callable, tuple]:
    """The function of its arrays alone, the rest of its arguments held, and the arrays."""
    arrays = [name for name in args if name not in INSTEAD]
    return (
        lambda *values: function(*{**args, **dict(zip(arrays, values, strict=True))}.values()),
        tuple(args[name] for name in arrays),
    )


def cost_of(function: Callable, rng: np.random.Generator, args: tuple) -> Callable | None:
    """c(*x) = Σ w · f(x), of all real and imaginary parts; None where f gives no floats, or not finite ones."""
    leaves = [leaf for leaf in jax.tree.leaves(function(*args)) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
    if not leaves or not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
        return None
    weights = [[rng.uniform(0.5, 1.5, np.shape(leaf)) for _ in "ri"] for leaf in leaves]

    def cost(*values):
        outs = [leaf for leaf in jax.tree.leaves(function(*values)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        total = 0.0
        for out, (real, imag) in zip(outs, weights, strict=True):
            total += jnp.sum(real.astype(out.real.dtype) * out.real)
            total += jnp.sum(imag.astype(out.real.dtype) * out.imag) if jnp.iscomplexobj(out) else 0.0
        return total

    return cost


def inputs_of(function: Callable, rng: np.random.Generator) -> tuple[Callable, tuple, Callable] | str:
    """A function of arrays, inputs that it takes and where it is finite and moves, and its cost; else why not.

    The first inputs at which every gradient is finite and not zero; where there are none, the first that move it, or
    the first where every gradient is zero.
    """
    found, still, why = None, None, "it gives no finite real or complex numbers"
    for shape in SHAPES:
        for low, high in DOMAINS:
            call, args = of_arrays(function, drawn(function, rng, low, high, shape))
            try:
                cost = cost_of(call, rng, args)
                grads = () if cost is None else jax.grad(cost, tuple(range(len(args))))(*args)
            except Exception as error:  # it is no function of such arrays, or has no derivative
                why = short(error)
                continue
            if cost is None:
                continue
            if all(np.any(g) and np.isfinite(g).all() for g in grads) and pushes(cost, args):
                return call, args, cost
            if found is None and any(np.any(g) for g in grads):
                found = call, args, cost
            if still is None and args and not any(np.any(g) for g in grads):
                still = call, args, cost
    return found or still or why


def pushes(cost: Callable, args: tuple) -> bool:
    """Whether forward mode gives a number."""
    return bool(np.isfinite(jax.jvp(cost, args, tuple(map(np.ones_like, args)))[1]))


def edges_of(function: Callable, args: tuple) -> np.ndarray | None:
    """Points at the edges of domains where an elementwise function is finite, a row for each; None for other ones."""
    if not 1 <= len(args) <= 2 or np.shape(args[0]) != (4,):
        return None
    grid = np.stack(np.meshgrid(*[EDGES] * len(args)), -1).reshape(-1, len(args))
    try:
        out = function(*grid.T)
        if jax.tree.structure(out) != jax.tree.structure(0) or np.shape(out) != (len(grid),) or np.iscomplexobj(out):
            return None
        alone = np.stack([np.asarray(function(*row[:, None])) for row in grid[:3]]).ravel()
    except Exception:  # it refuses such inputs
        return None
    if not np.allclose(alone, np.asarray(out)[:3], equal_nan=True):  # a sum or a sort over all, not elementwise
        return None
    return grid[np.isfinite(out)]


def flat(cost: Callable, args: tuple) -> Callable:
    """The cost as a function of one vector."""
    shapes, ends = [np.shape(a) for a in args], np.cumsum([np.size(a) for a in args])[:-1]
    return lambda v: cost(*(part.reshape(s) for part, s in zip(jnp.split(v, ends), shapes, strict=True)))


def derivatives(cost: Callable, points: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """First and second derivatives of a cost at each point, a row, by every way, by name."""
    grad = jax.grad(cost)

    def along(v):
        return grad(v) @ u

    def differences(function: Callable, v):
        scale = jnp.maximum(jnp.abs(v), 0.1)
        table = jax.lax.map(lambda h: central_differences(function, v, h * scale), jnp.asarray(STEPS, v.dtype))
        h, here = STEPS[-1] * scale, function(v)
        around = jax.lax.map(lambda i: function(v.at[i].add(h[i])) + function(v.at[i].add(-h[i])), jnp.arange(v.size))
        return jnp.concatenate([table, ((around - 2 * here) / h)[None]])

    def first(v):
        return {"reverse": grad(v), "forward": jax.jacfwd(cost)(v), "differences": differences(cost, v)}

    def second(v):
        ways = jax.grad(along)(v), jax.jacfwd(along)(v), differences(along, v)
        return dict(zip(("second, reverse", "second, forward", "second, differences"), ways, strict=True))

    orders: list[Callable] = [first]
    try:
        jax.eval_shape(second, points[0])
    except NotImplementedError:  # it says that it has no second derivative
        pass
    else:
        orders.append(second)
    found = jax.jit(jax.vmap(lambda v: {name: way for order in orders for name, way in order(v).items()}))(points)
    return {name: np.asarray(value) for name, value in found.items()}


def compared(name: str, cost: Callable, points: np.ndarray, rng: np.random.Generator, count: int) -> list[Disagreement]:
    """The disagreements of a function of `count` arrays at some points, each a row.

    Where there are several points, only where differences converge.
    """
    found, tables = [], derivatives(cost, points, rng.uniform(0.5, 1.5, points.shape[1]))
    for order in ("", "second, ") if "second, reverse" in tables else ("",):
        reverse, forward = tables[f"{order}reverse"], tables[f"{order}forward"]
        numeric, sure = extrapolated_entries(np.moveaxis(tables[f"{order}differences"], 1, 0))
        for other, said, mask in ((forward, "forward", sure | (len(points) == 1)), (numeric, "differences", sure)):
            found += at_worst(name, f"{order}reverse against {said}", (reverse, other), mask, points, CLOSE, count)
    steep = np.abs(tables["reverse"]) + np.abs(points * tables.get("second, reverse", 0))
    gradient = jax.jit(jax.vmap(jax.grad(cost)))
    for dtype in (jnp.float32, jnp.bfloat16) if np.isfinite(steep).all() else ():
        rounded = jnp.asarray(points, dtype)
        try:
            got = np.asarray(gradient(rounded), np.float64)
        except Exception:  # there is no such function in this dtype
            continue
        exact = np.asarray(gradient(jnp.asarray(rounded, jnp.float64)))
        limits = jnp.finfo(dtype)
        off = np.abs(got - exact) > 1e3 * float(limits.eps) * (steep + np.abs(exact).max() * 1e-2)
        off = (off | np.isnan(got)) & (np.abs(exact) < float(limits.max))
        found += at_worst(name, f"{jnp.dtype(dtype).name} against float64", (got, exact), off, points, 0.5, count)
    return found


def extrapolated_entries(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extrapolated differences, and where they are a derivative: they converge, and both sides have one slope.

    The last row of the table is the slope to the right less that to the left: at a kink autodiff may take either.
    """
    table, bend = table[:-1], table[-1]
    value = extrapolated(table)[0]
    change = np.min(np.abs(np.diff(table, axis=0)), axis=0)
    with np.errstate(invalid="ignore"):
        small, size = change < 1e-3 * (1e-3 + np.abs(value)), 1e-2 * (1e-2 + np.abs(value))
        return value, np.isfinite(table).all(0) & small & (np.abs(table[-1] - value) < size) & (np.abs(bend) < size)


def at_worst(
    name: str, what: str, pair: tuple, where: np.ndarray, points: np.ndarray, close: float, count: int
) -> list[Disagreement]:
    """One disagreement where two derivatives differ by more than `close` of their size; none where they agree.

    It tells the point: at a single point with `count` arrays of one size, their values at the entry.
    """
    a, b = pair
    scale = np.maximum(np.abs(a), np.abs(b)) + 1e-3
    with np.errstate(invalid="ignore"):
        off = np.where(np.asarray(where, bool), np.nan_to_num(np.abs(a - b) / scale, nan=np.inf), 0)
    off = np.where(np.isnan(a) & np.isnan(b), 0, off)
    if not (off > close).any():
        return []
    i = np.unravel_index(np.argmax(off), off.shape)
    at = points[i[0]]
    if len(points) == 1:
        at = at.reshape(count, -1)[:, i[1] % (at.size // count)] if at.size % count == 0 else at[i[1]][None]
    return [Disagreement(name, what, f"x = {', '.join(f'{x:.6g}' for x in at)}", (float(a[i]), float(b[i])))]


def check_function(name: str, function: Callable, seed: int = 0) -> list[Disagreement] | str:
    """The disagreements of one function; why, where it cannot be asked."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        asked = inputs_of(function, rng)
        if isinstance(asked, str):
            return asked
        call, args, cost = asked
        drawn_at = flat(cost, args), np.concatenate([np.ravel(a) for a in args])[None]
        found = []
        for each, points in (drawn_at, (lambda v: jnp.sum(call(*jnp.split(v, len(args)))), edges_of(call, args))):
            if points is not None and len(points):
                try:
                    found += compared(name, each, points, rng, len(args))
                except Exception as error:
                    raises = f"a derivative raises {short(error)}"
                    found.append(Disagreement(name, raises, "", (np.nan, np.nan)))
    return found


def run(names: tuple[str, ...] = ()) -> int:
    """Checks JAX's functions, or those of these names, and prints where derivatives disagree; 1 where any do."""
    asked, out, found = 0, [], []
    for name, function in functions():
        if names and name not in names:
            continue
        said = check_function(name, function)
        if isinstance(said, str):
            out.append(f"{name:34} not asked: {said}")
            continue
        asked += 1
        for each in said:
            print(each, flush=True)
            found.append(each)
    wrong = len({each.function for each in found})
    print("", *out, sep="\n")
    counts = f"{asked} functions asked, {wrong} with derivatives that disagree; {len(out)} not asked"
    print(f"\njax {jax.__version__}: {counts}")
    return 1 if found else 0
