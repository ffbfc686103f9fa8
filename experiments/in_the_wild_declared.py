"""Rules that differ from the derivative on purpose, and the derivative that their authors mean.

Each is held to that in every entry, by `intended=`: a function with that derivative, written here from the package's
own description. So the choice is told from a mistake.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.in_the_wild_others import TFP, constant, part
from experiments.in_the_wild_points import Point, between, normal, spectrum

KAPPA = 1e-3  # the default smoothing of qpax
PENALTY = 10.0


def superspike(x: jax.Array, d_out: jax.Array) -> jax.Array:
    """Zenke and Ganguli's derivative of a step: 1 / (1 + 25 |x|)²."""
    return d_out / (1 + 25 * jnp.abs(x)) ** 2


def straight_through(x: jax.Array, d_out: jax.Array) -> jax.Array:
    """The derivative of a step by `spyx.axn.custom()`, as its description has it: 1."""
    return d_out


def smoothed(Q, q, A, b, G, h, x) -> jax.Array:
    """argmin ½ xᵀQx + qᵀx − κ Σ log(h − G x) with A x = b, from a point with G x < h, for symmetric Q.

    By Newton's method; the last step has the implicit derivative. With κ → 0 it is the quadratic program's.
    """

    def step(x, Q, q, A, b, G, h):
        room = h - G @ x
        slope = Q @ x + q + KAPPA * G.T @ (1 / room)
        curvature = Q + KAPPA * (G.T / room**2) @ G
        system = jnp.block([[curvature, A.T], [A, jnp.zeros((len(b), len(b)))]])
        dx = -jnp.linalg.solve(system, jnp.concatenate([slope, A @ x - b]))[: len(x)]
        return dx, jnp.minimum(1, 0.9 / jnp.max(G @ dx / room))

    program = (Q + Q.T) / 2, q, A, b, G, h

    def onward(_, x):
        dx, share = step(x, *constant(program))
        return x + jnp.where(share > 0, share, 1) * dx

    x = jax.lax.fori_loop(0, 60, onward, x.astype(q.dtype))
    return x + step(constant(x), *program)[0]


def smoothed_elastic(Q, q, G, h) -> jax.Array:
    """The same without A x = b, where G x ≤ h + t is bought for PENALTY Σ t, t ≥ 0."""
    n, m = len(q), len(h)
    wide = jnp.zeros((n + m, n + m), q.dtype).at[:n, :n].set(Q)
    eye = jnp.eye(m, dtype=q.dtype)
    bounds = jnp.block([[G, -eye], [jnp.zeros((m, n), q.dtype), -eye]])
    costs, limits = jnp.concatenate([q, jnp.full(m, PENALTY)]), jnp.concatenate([h, jnp.zeros(m)])
    start = jnp.concatenate([jnp.zeros(n), jnp.ones(m)])
    return smoothed(wide, costs, jnp.zeros((0, n + m), q.dtype), jnp.zeros(0, q.dtype), bounds, limits, start)[:n]


def box() -> tuple[jax.Array, jax.Array]:
    """|x_i| ≤ 0.3."""
    return jnp.concatenate([jnp.eye(4), -jnp.eye(4)]), jnp.full(8, 0.3)


def quadratic_programs() -> dict[str, Point]:
    """Both solvers of qpax, with and without elastic bounds."""
    found, note = {}, "as declared: smoothed by target_kappa, within the solver's own error"
    for kind in ("explicit", "implicit"):
        solve, elastic = f"qpax.{kind}.diff_qp:solve_qp_primal", f"qpax.{kind}.elastic_qp:solve_qp_elastic_primal"
        found[solve.replace(":", ".")] = Point(
            lambda: (spectrum(0), normal(4), jnp.ones((1, 4)), jnp.array([0.2]), *box()),
            through=lambda *args, solve=solve: part(solve)(*args),
            intended=lambda *args: smoothed(*args, x=jnp.full(4, 0.05)), tolerance=5e-3, note=note,
        )  # fmt: skip
        found[elastic.replace(":", ".")] = Point(
            lambda: (spectrum(0), normal(4), *box()),
            through=lambda *args, elastic=elastic: part(elastic)(*args, PENALTY),
            intended=smoothed_elastic, tolerance=5e-3, note=note,
        )  # fmt: skip
    return found


def by_argument(name: str, v: jax.Array, z: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient of a Bessel function of TensorFlow Probability by z, through its own steps; none by its order v."""
    primal = part(f"{TFP}.math.bessel:{name}").__wrapped__
    _, slope = jax.jvp(lambda z: primal(v, z), (z,), (jnp.ones_like(z),))
    return jnp.zeros_like(v), d_out * slope


def least_squares(A: jax.Array, _: Any, B: jax.Array) -> jax.Array:
    """argmin |A X − B|, for independent columns; nothing kept."""
    return jnp.linalg.solve(A.T @ A, A.T @ B)


def lanczos(transposed: bool, v: jax.Array, S: jax.Array) -> Any:
    """Three of matfree's steps, without reorthogonalisation."""
    estimate = part("matfree.decomp:tridiag_sym")(3, reortho="none", custom_vjp=not transposed)
    found = estimate(lambda s, S: S @ s, v, S.T if transposed else S)
    return found.Q_tall, found.J_small


def perturbed_maximum(declared: bool, x: jax.Array) -> jax.Array:
    """jaxopt's perturbed maximum, or E[max(x + σ Z) ∇ log p(Z)] declared."""
    module, key = part("jaxopt.perturbations"), jax.random.PRNGKey(0)
    if not declared:
        return module.make_perturbed_fun(jnp.max, 20, 0.5)(x, key)
    at = constant(x) + 0.5 * module.Gumbel().sample(seed=key, sample_shape=(20, *x.shape))
    log_p = -jnp.sum((at - x) / 0.5 + jnp.exp(-(at - x) / 0.5), -1)
    return jnp.mean(at.max(-1) * (1 + log_p - constant(log_p)))


@cache
def int8_layer(kind: str) -> Any:
    """A layer of keras, quantised."""
    keras = part("keras")
    keras.utils.set_random_seed(0)
    layer = keras.layers.Dense(3) if kind == "dense" else keras.layers.EinsumDense("ab,bc->ac", (3,))
    layer.build((4, 5))
    layer.quantize("int8")
    return layer


def dequantised(kind: str, x: jax.Array) -> jax.Array:
    """The layer's product with its kernel as floats: the rounding of x passed straight through."""
    layer = int8_layer(kind)
    return x @ (jnp.asarray(layer._kernel, x.dtype) / jnp.asarray(layer.kernel_scale, x.dtype))


def clipped(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Rounding to 8 bits between two bounds, passed straight through: the clipping to the nearest steps."""
    step = (high - low) / 255
    least = -jnp.floor(-low / step + 0.5) * step
    return jnp.where(x <= least, low, jnp.where(x >= least + 255 * step, high, x))


STEP, ORDER = "as declared: a surrogate of a step's derivative", "as declared: no derivative by the order"
CACHE = "as declared: what is kept between calls is constant"
ROUNDING = "as declared: rounding is passed straight through"
LAYERS = {
    "keras.src.layers.core.dense.Dense._int8_call.<locals>.matmul_with_inputs_gradient": "dense",
    "keras.src.layers.core.einsum_dense.EinsumDense._int8_call.<locals>.einsum_with_inputs_gradient": "einsum",
}
COTANGENT = "as declared: it changes the error that goes back"
TJAX: dict[str, Point] = {
    "scale_cotangent": Point(
        lambda: (normal(4, 5),), through=lambda x: part("tjax:scale_cotangent")(x, 0.3), intended=lambda x: 0.3 * x
    ),
    "replace_cotangent": Point(
        lambda: (normal(4, 5), normal(4, 5, seed=1)), intended=lambda x, new, d_out: (new, d_out)
    ),
    "copy_cotangent": Point(lambda: (normal(4, 5), normal(4, 5, seed=1)), intended=lambda x, y, d_out: (d_out, d_out)),
}
BESSEL = "bessel_iv_ratio", "bessel_ive", "bessel_kve", "log_bessel_ive", "log_bessel_kve"

POINTS: dict[str, Point] = {
    **{f"spyx.{name}": Point(lambda: (normal(4, 5),), intended=superspike, note=STEP)
       for name in ("experimental.parallel_reset._DEFAULT_ACTIVATION", "experimental.raven._DEFAULT_SPIKE",
                    "experimental.rf_ssm._DEFAULT_ACTIVATION", "nn._DEFAULT_ACTIVATION",
                    "phasor._DEFAULT_ACTIVATION")},
    **{f"tjax._src.cotangent_tools.{name}": point._replace(note=COTANGENT) for name, point in TJAX.items()},
    "spyx.axn.custom.<locals>.f": Point(lambda: (normal(4, 5),), intended=straight_through, note=STEP),
    **quadratic_programs(),
    **{f"{TFP}.math.bessel._{name}_custom_gradient":
       Point(lambda: (between(0.5, 3, 4), between(0.5, 3, 4, seed=1)),
             intended=partial(by_argument, f"_{name}_custom_gradient"), note=ORDER) for name in BESSEL},
    f"{TFP}.math.linalg._hpsd_solve_custom_gradient": Point(
        lambda: (spectrum(0), normal(4, 4), jnp.linalg.cholesky(spectrum(0))),
        intended=lambda S, B, _: jnp.linalg.solve((S + S.T) / 2, B), note=CACHE,
    ),
    **{f"dynamiqs.integrators.core.low_rank_integrator._{name}_solve_cached":
       Point(None, intended=least_squares, tolerance=1e-4, note=CACHE) for name in ("qr", "cholesky")},
    "matfree.decomp._tridiag_reortho_none.<locals>._estimate": Point(
        lambda: (normal(4), spectrum(0)), through=partial(lanczos, False), intended=partial(lanczos, True),
        note="as declared: of a symmetric matrix; its gradient is that of the transposed one",
    ),
    "jaxopt._src.perturbations.make_perturbed_fun.<locals>.forward_pert": Point(
        lambda: (normal(4),), through=partial(perturbed_maximum, False), intended=partial(perturbed_maximum, True),
        note="as declared: the derivative of the expectation, by samples",
    ),
    **{name: Point(lambda kind=kind: (int8_layer(kind) and normal(4, 5),), intended=partial(dequantised, kind),
                   through=lambda x, kind=kind: int8_layer(kind)(x), note=ROUNDING) for name, kind in LAYERS.items()},
    "keras.src.quantizers.quantizers.fake_quant_with_min_max_vars.<locals>._fake_quant_with_min_max_vars_per_channel":
        Point(lambda: (normal(4, 5), jnp.float32(-1.2), jnp.float32(0.9)), intended=clipped, note=ROUNDING),
}  # fmt: skip
