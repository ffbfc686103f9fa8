"""Where the rules of equinox, flax, diffrax, lineax and optimistix are checked, as far as these are installed.

`POINTS` are of rules that `in_the_wild` finds by name; `USES` of functions whose rules are made as they run.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from experiments.in_the_wild_points import Point, between, matrices, normal, one, root_in_closed_form

FP8 = "flax.linen.fp8_ops"
UPDATED = "in the place of the gradients of scale and history stand their new values, as meant"


def quantised(straight: bool) -> Point:
    """Flax's float8 rounding of an input, passed straight through; or of an error going back."""

    def intended(dtype, q_dtype, inp, scale, history, d_out):
        from flax.linen import fp8_ops  # pyright: ignore[reportMissingImports]

        rounded = inp if straight else d_out
        rounded, scale, history = fp8_ops.quantize_dequantize_update(rounded, q_dtype, scale, history, dtype)
        return None, None, d_out if straight else rounded, scale, history

    kind = jnp.float8_e4m3fn if straight else jnp.float8_e5m2
    return Point(
        lambda: (jnp.float32, kind, normal(4, 5), between(0.5, 1, 1), between(1, 3, 8)), intended=intended, note=UPDATED
    )


POINTS: dict[str, Point] = {
    "equinox._ad._nondifferentiable": Point(None, note="it raises, as meant: no derivative there"),
    "equinox.internal.nextafter": one(0.3, 3, intended=lambda x: x, note="that of the identity, as meant"),
    "equinox.internal.prevbefore": one(0.3, 3, intended=lambda x: x, note="that of the identity, as meant"),
    f"{FP8}.in_qdq": quantised(straight=True),
    f"{FP8}.out_qdq": quantised(straight=False),
    f"{FP8}.in_q": Point(None, note="its output is float8, of which it takes no error: the scale is passed on"),
    f"{FP8}.out_dq": Point(
        lambda: (jnp.float32, between(0.5, 1, 1), between(0.5, 1, 1, seed=1), normal(4, 5)),
        intended=lambda dtype, left, right, out, d_out: (None, None, None, d_out),
        note="the error passed straight through, as meant",
    ),
    f"{FP8}.quantized_dot": Point(None, note="float8 operands: no autodiff to hold it against"),
    f"{FP8}.dot_general_with_precision": Point(
        lambda: (normal(4, 5), normal(5, 3, seed=1), (((1,), (0,)), ((), ())), None, None)
    ),
    "lineax._misc._asarray": Point(lambda: (jnp.dtype("float32"), normal(4))),
    "lineax._norm._two_norm": matrices(4, 3),
    "lineax._norm._zero_grad_at_zero": one(0.2, 3),
    "rlax.clip_gradient": Point(
        lambda: (normal(4), -0.5, 0.5), intended=lambda x, low, high, g: (jnp.clip(g, low, high), 0.0, 0.0)
    ),
    "optimistix._misc._asarray": Point(lambda: (jnp.dtype("float32"), normal(4))),
}


# ------------------------------------------------------------------------------------- rules that are made as they run


def solved(adjoint: str, y0: jax.Array, rate: jax.Array) -> jax.Array:
    """y′ = −rate y t from 0 to 1, by diffrax, its derivative by one of its adjoints."""
    import diffrax  # pyright: ignore[reportMissingImports]

    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, rate: -rate * y * t),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.05,
        y0,
        rate,
        stepsize_controller=diffrax.PIDController(1e-6, 1e-6),
        adjoint=getattr(diffrax, adjoint)(),
    ).ys[0]  # pyright: ignore[reportOptionalSubscript]


def in_closed_form(y0, rate):
    """y₀ exp(−rate/2)."""
    return y0 * jnp.exp(-rate / 2)


def system(solver: str, A: jax.Array, b: jax.Array) -> jax.Array:
    """The x with A x = b by lineax; where A has more rows than columns, the nearest."""
    import lineax  # pyright: ignore[reportMissingImports]

    return lineax.linear_solve(lineax.MatrixLinearOperator(A), b, getattr(lineax, solver)()).value


def least_squares(A, b):
    """(AᵀA)⁻¹ Aᵀ b."""
    return jnp.linalg.solve(A.T @ A, A.T @ b)


def looped(W, x):
    """tanh(W x) six times, in a loop whose backward pass keeps three of its steps."""
    import equinox.internal as eqxi  # pyright: ignore[reportMissingImports]

    def step(carry):
        return carry[0] + 1, jnp.tanh(W @ carry[1])

    return eqxi.while_loop(
        lambda carry: carry[0] < 6, step, (jnp.asarray(0), x), max_steps=8, kind="checkpointed", checkpoints=3
    )[1]


def unrolled(W, x):
    """The same without a loop."""
    for _ in range(6):
        x = jnp.tanh(W @ x)
    return x


def rooted(a):
    """The root of x³ + x = a by optimistix, differentiated implicitly."""
    import optimistix  # pyright: ignore[reportMissingImports]

    return optimistix.root_find(
        lambda x, a: x**3 + x - a, optimistix.Newton(1e-6, 1e-6), jnp.ones_like(a), a, max_steps=64
    ).value


def through(
    function: Callable, args: Callable[[], tuple], reference: Callable, tolerance: float, note: str = ""
) -> Point:
    """A function whose rules are found inside."""
    return Point(args, reference=reference, through=function, tolerance=tolerance, note=note)


def ode(adjoint: str) -> Point:
    """One of diffrax's adjoints on an equation whose solution is known."""

    def args() -> tuple:
        return between(0.5, 2, 3), between(0.3, 1.5, 3, seed=1)

    return through(partial(solved, adjoint), args, in_closed_form, 1e-3, "within the solver's own error")


USES: dict[str, Point] = {
    **{f"diffrax.{name}": ode(name) for name in ("RecursiveCheckpointAdjoint", "BacksolveAdjoint", "DirectAdjoint")},
    "lineax.LU": through(partial(system, "LU"), lambda: (normal(4, 4), normal(4, seed=1)), jnp.linalg.solve, 1e-4),
    "lineax.QR": through(partial(system, "QR"), lambda: (normal(5, 3), normal(5, seed=1)), least_squares, 1e-4),
    "lineax.SVD": through(partial(system, "SVD"), lambda: (normal(5, 3), normal(5, seed=1)), least_squares, 1e-4),
    "equinox.internal.while_loop": through(looped, lambda: (0.5 * normal(4, 4), normal(4, seed=1)), unrolled, 1e-5),
    "optimistix.root_find": through(rooted, lambda: (between(0.5, 3),), root_in_closed_form, 1e-5),
}
