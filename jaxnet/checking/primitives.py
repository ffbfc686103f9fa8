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

from jaxnet.checking.reference import RATIO, extrapolated

MODULES: dict[str, Any] = {
    "jnp": jnp, "jnp.linalg": jnp.linalg, "jnp.fft": jnp.fft, "nn": jax.nn, "lax": jax.lax,
    "special": jax.scipy.special, "scipy.linalg": jax.scipy.linalg,
    **{f"stats.{name}": getattr(jax.scipy.stats, name)
       for name in ("norm", "beta", "gamma", "t", "cauchy", "expon", "laplace", "logistic", "chi2", "uniform")},
}  # fmt: skip
DOMAINS = ((-2.0, 2.0), (0.1, 2.0), (0.1, 0.9), (1.1, 3.0))
EDGES = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-6, 20.0, -20.0)
STEPS = tuple(2e-2 * RATIO**-k for k in range(7))
CLOSE = 1e-5  # relative: what differences of differences can tell
SHAPES = (4,), (3, 3), ()
NOT_ASKED = {"save", "savez", "load", "fromfile", "frombuffer", "empty", "empty_like", "printoptions"}


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
            yield f"{prefix}.{name}", value


def arity(function: Callable) -> int:
    """How many arguments must be given."""
    if isinstance(function, jnp.ufunc):
        return function.nin
    try:
        asked = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    return max(1, sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in asked))


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


def inputs_of(function: Callable, rng: np.random.Generator) -> tuple[tuple, Callable] | None:
    """The first inputs that a function takes and where it is finite and moves, with its cost; None where none is."""
    for shape in SHAPES:
        for low, high in DOMAINS:
            args: tuple = tuple(rng.uniform(low, high, shape) for _ in range(arity(function)))
            if len(shape) == 2:
                args = tuple(a @ a.T + np.eye(3) for a in args)
            try:
                cost = cost_of(function, rng, args)
                moves = cost is not None and any(np.any(g) for g in jax.grad(cost, tuple(range(len(args))))(*args))
            except Exception:  # it is no function of such arrays, or has no derivative
                continue
            if cost is not None and moves:
                return args, cost
    return None


def edges_of(function: Callable, args: tuple, rng: np.random.Generator) -> tuple[tuple, Callable] | None:
    """An elementwise function's arguments at the edges of domains, as far as it is finite there; else None."""
    if not 1 <= len(args) <= 2 or np.shape(args[0]) != (4,):
        return None
    grid = np.stack(np.meshgrid(*[EDGES] * len(args)), -1).reshape(-1, len(args)).T
    try:
        out = function(*grid)
        if jax.tree.structure(out) != jax.tree.structure(0) or np.shape(out) != grid[0].shape or np.iscomplexobj(out):
            return None
        alone = np.stack([np.asarray(function(*column)) for column in grid.T[:3, :, None]]).ravel()
        if not np.allclose(alone, np.asarray(out)[:3], equal_nan=True):  # a sum or a sort over all, not elementwise
            return None
        kept = tuple(row[np.isfinite(out)] for row in grid)
        cost = cost_of(function, rng, kept) if kept[0].size else None
    except Exception:  # it refuses such inputs
        return None
    return None if cost is None else (kept, cost)


def flat(cost: Callable, args: tuple) -> tuple[Callable, np.ndarray]:
    """The cost of one vector, and the vector."""
    shapes, ends = [np.shape(a) for a in args], np.cumsum([np.size(a) for a in args])[:-1]

    def whole(vector):
        return cost(*(part.reshape(s) for part, s in zip(jnp.split(vector, ends), shapes, strict=True)))

    return whole, np.concatenate([np.ravel(a) for a in args])


def table_of(cost: Callable, x: jax.Array) -> jax.Array:
    """Central differences of a cost in every entry, a row for each step."""

    def one(step, i):
        up, down = (x.at[i].add(sign * step * jnp.maximum(jnp.abs(x[i]), 0.1)) for sign in (1, -1))
        return (cost(up) - cost(down)) / (up[i] - down[i])

    return jax.lax.map(
        lambda step: jax.lax.map(lambda i: one(step, i), jnp.arange(x.size)), jnp.asarray(STEPS, x.dtype)
    )


def derivatives(cost: Callable, x: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
    """First and second derivatives of a cost by every way, by name."""
    grad = jax.grad(cost)

    def along(v):
        return grad(v) @ u

    def run(v):
        return {
            "reverse": grad(v),
            "forward": jax.jacfwd(cost)(v),
            "differences": table_of(cost, v),
            "second, reverse": jax.grad(along)(v),
            "second, forward": jax.jacfwd(along)(v),
            "second, differences": table_of(along, v),
        }

    return {name: np.asarray(value) for name, value in jax.jit(run)(jnp.asarray(x)).items()}


def compared(name: str, cost: Callable, args: tuple, rng: np.random.Generator, edges: bool) -> list[Disagreement]:
    """The disagreements of one function at one point; at `edges` only where differences converge."""
    whole, x = flat(cost, args)
    found, tables = [], derivatives(whole, x, rng.uniform(0.5, 1.5, x.shape))
    for order in ("", "second, "):
        reverse, forward = tables[f"{order}reverse"], tables[f"{order}forward"]
        numeric, sure = extrapolated_entries(tables[f"{order}differences"])
        for other, said, mask in ((forward, "forward", sure | (not edges)), (numeric, "differences", sure)):
            found += at_worst(name, f"{order}reverse against {said}", reverse, other, mask, x, CLOSE)
    steep = np.abs(tables["reverse"]) + np.abs(x * tables["second, reverse"])
    for dtype in (jnp.float32, jnp.bfloat16):
        rounded = jnp.asarray(x, dtype)
        if not np.isfinite(steep).all():
            break
        try:
            got = np.asarray(jax.jit(jax.grad(whole))(rounded), np.float64)
            exact = np.asarray(jax.jit(jax.grad(whole))(jnp.asarray(rounded, jnp.float64)))
        except Exception:  # there is no such function in this dtype
            continue
        off = np.abs(got - exact) > 1e3 * float(jnp.finfo(dtype).eps) * (steep + np.abs(exact).max() * 1e-2)
        found += at_worst(name, f"{jnp.dtype(dtype).name} against float64", got, exact, off | np.isnan(got), x, 0.5)
    return found


def extrapolated_entries(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extrapolated differences, and the entries where they converge: their last changes are small."""
    value = extrapolated(table)[0]
    change = np.min(np.abs(np.diff(table, axis=0)), axis=0)
    with np.errstate(invalid="ignore"):
        return value, np.isfinite(table).all(0) & (change < 1e-3 * (1e-3 + np.abs(value)))


def at_worst(
    name: str, what: str, a: np.ndarray, b: np.ndarray, where: np.ndarray, x: np.ndarray, close: float
) -> list:
    """One disagreement where two derivatives differ by more than `close` of their size; none where they agree."""
    scale = np.maximum(np.abs(a), np.abs(b)) + 1e-3
    with np.errstate(invalid="ignore"):
        off = np.where(np.asarray(where, bool), np.nan_to_num(np.abs(a - b) / scale, nan=np.inf), 0)
    off = np.where(np.isnan(a) & np.isnan(b), 0, off)
    if not (off > close).any():
        return []
    i = int(np.argmax(off))
    return [Disagreement(name, what, f"x = {x[i]:.6g}", (float(a[i]), float(b[i])))]


def check_function(name: str, function: Callable, seed: int = 0) -> list[Disagreement] | None:
    """The disagreements of one function; None where it cannot be asked."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        asked = inputs_of(function, rng)
        if asked is None:
            return None
        found = []
        for edges, point in enumerate((asked, edges_of(function, asked[0], rng))):
            if point is not None:
                try:
                    found += compared(name, point[1], point[0], rng, bool(edges))
                except Exception as error:
                    found.append(
                        Disagreement(name, f"a derivative raises {type(error).__name__}", "", (np.nan, np.nan))
                    )
    return found


def run(names: tuple[str, ...] = ()) -> int:
    """Checks JAX's functions, or those of these names, and prints where derivatives disagree; 1 where any do."""
    asked, out, found = 0, 0, []
    for name, function in functions():
        if names and name not in names:
            continue
        said = check_function(name, function)
        asked, out = asked + (said is not None), out + (said is None)
        for each in said or ():
            print(each, flush=True)
            found.append(each)
    wrong = len({each.function for each in found})
    print(f"\njax {jax.__version__}: {asked} functions asked, {wrong} with derivatives that disagree; {out} not asked")
    return 1 if found else 0
