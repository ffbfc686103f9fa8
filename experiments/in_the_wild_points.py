"""Where the rules of `in_the_wild` are checked: inputs at which a wrong derivative would show.

Parameters such as ε stand at values that matter, arrays are random and not symmetric.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import ode

PALLAS = "jax.experimental.pallas.ops"


class Point(NamedTuple):
    """Inputs of a rule, made when asked for; None where it cannot run here, and `note` says why.

    `reference`, `intended`, `tolerance`: as `check` takes them. `through`: a function that uses the rule, where it
    cannot be called itself.
    """

    args: Callable[[], tuple] | None
    reference: Callable | None = None
    intended: Callable | None = None
    tolerance: float | None = None
    through: Callable | None = None
    note: str = ""


def between(low: float, high: float, *shape: int, seed: int = 0) -> jax.Array:
    """Uniformly drawn, float32."""
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape), jnp.float32)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normally drawn, float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def one(low: float, high: float, **more: Any) -> Point:
    """A function of one array, between two bounds."""
    return Point(lambda: (between(low, high, 4, 5),), **more)


def two(low: float, high: float, low2: float, high2: float, **more: Any) -> Point:
    """A function of two arrays, each between its bounds."""
    return Point(lambda: (between(low, high, 4, 5), between(low2, high2, 4, 5, seed=1)), **more)


def three(*bounds: tuple[float, float]) -> Point:
    """A function of arrays, each between its bounds."""
    return Point(lambda: tuple(between(*each, 4, seed=k) for k, each in enumerate(bounds)))


def matrices(*shape: int, extra: tuple = ()) -> Point:
    """A function of a random matrix, or of several."""
    return Point(lambda: (normal(*shape), *extra))


def spectrum(k: int) -> jax.Array:
    """A positive definite matrix."""
    A = between(-1, 1, 4, 4, seed=k)
    return A @ A.T + jnp.eye(4)


EPSILON = 0.3
"""Large enough to matter beside a variance of about 1."""


def pallas(module: str) -> Any:
    """A module of Pallas' own kernels, imported when its rule is run: newer releases of jax call some deprecated."""
    return import_module(f"{PALLAS}.{module}")


def normed(name: str, centred: bool) -> Point:
    """A normalisation kernel in interpret mode, of each row of x: (batch, time, features)."""

    def reference(x, weight, bias):
        x = x - jnp.mean(x, -1, keepdims=True) if centred else x
        root = jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + EPSILON)
        return x * root * weight[None, None] + bias[None, None]

    return Point(
        lambda: (normal(2, 8, 128), normal(128, seed=1), normal(128, seed=2)),
        through=lambda *arrays: getattr(pallas(f"gpu.{name}"), name)(*arrays, None, 3, EPSILON, "triton", True),
        reference=reference,
        note="interpret mode",
    )


def heads(q, k, v):
    """The GPU attention kernel: causal, a scale other than 1, interpret mode."""
    attention = pallas("gpu.attention")
    blocks = attention.BlockSizes.get_default()
    return attention.mha(q, k, v, None, 0.4, True, blocks, "triton", None, 2, None, True, False, False)


def masked_scores(q, k, v):
    """The reference of splash attention, which has a rule of its own."""
    mask = jnp.tril(jnp.ones((6, 6), bool))
    splash = pallas("tpu.splash_attention.splash_attention_kernel")
    return splash._attention_reference_custom(mask, q, k, v, None, None, -1e9, False, "flash", None)


def plain_attention(q, k, v, scale=1.0):
    """softmax of the causal scores, times v; q, k, v: (time, head)."""
    scores = jnp.where(jnp.tril(jnp.ones((len(q), len(k)), bool)), scale * q @ k.T, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


def grouped(lhs, rhs, group_sizes, *_):
    """Rows of `lhs` times the matrix of their group."""
    group = jnp.repeat(jnp.arange(len(rhs)), group_sizes, total_repeat_length=len(lhs))
    return jnp.einsum("mk,mkn->mn", lhs, rhs[group])


def groups() -> tuple:
    """Arguments of the grouped matrix product."""
    sizes = jnp.array([40, 88], jnp.int32)
    return normal(128, 128), normal(2, 128, 128, seed=1), sizes, jnp.float32, (128, 128, 128), None, None, False, True


def decay(y, t, rate):
    """y' = −rate y t, a differential equation whose solution is known."""
    return -rate * y * t


def solved(y0, ts, rate):
    """The differential equation by the adaptive solver."""
    return ode._odeint(decay, 1e-6, 1e-6, np.inf, np.inf, y0, ts, rate)


def in_closed_form(y0, ts, rate):
    """y₀ exp(−rate (t² − t₀²) / 2)."""
    return y0[None] * jnp.exp(-rate[None] * (ts[:, None] ** 2 - ts[0] ** 2) / 2)


def mantissa(x):
    """x over its power of two, and that power, which is constant but at its steps."""
    power = jax.lax.stop_gradient(jnp.frexp(x)[1])
    return x * jnp.exp2(-power.astype(x.dtype)), power


def root(a):
    """The root of x³ + x = a, found by Newton's method, its derivative by the implicit function theorem."""

    def solve(f, x):
        return jax.lax.fori_loop(0, 30, lambda _, x: x - f(x) / (3 * x**2 + 1), x)

    return jax.lax.custom_root(lambda x: x**3 + x - a, jnp.ones_like(a), solve, lambda g, y: y / g(jnp.ones_like(y)))


def root_in_closed_form(a):
    """Cardano's root of x³ + x = a."""
    s = jnp.sqrt(a**2 / 4 + 1 / 27)
    return jnp.cbrt(a / 2 + s) + jnp.cbrt(a / 2 - s)


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


SPECIAL = "jax.scipy.special"
HIDDEN = "jax._src.scipy.special"
LINALG = "jax._src.numpy.linalg"
GPU = "needs a GPU"

POINTS: dict[str, Point] = {
    "jax.nn.relu": one(-2, 2),
    "jax.nn.relu6": one(-3, 9),
    "jax._src.nn.functions._softmax": Point(lambda: (normal(4, 5), -1)),
    "jax.nn.log1mexp": one(0.1, 3),
    "jax._src.lax.other.logaddexp": two(-3, 3, -3, 3),
    "jax._src.lax.other.logaddexp2": two(-3, 3, -3, 3),
    "jax._src.numpy.lax_numpy._i0": one(-4, 4),
    "jax._src.numpy.ufuncs._frexp": one(0.3, 9, reference=mantissa),
    "jax._src.numpy.ufuncs._sinc_maclaurin": Point(
        lambda: (1, jnp.zeros(3)),
        reference=lambda k, x: -x / 3,
        note="the first derivative at 0",
    ),
    f"{LINALG}._slogdet_small": matrices(2, 2),
    f"{LINALG}._slogdet_lu": matrices(5, 5),
    f"{LINALG}._slogdet_qr": matrices(5, 5),
    f"{LINALG}._det": matrices(4, 4),
    f"{LINALG}._pinv": matrices(5, 3, extra=(None, False)),
    f"{HIDDEN}._wofz": Point(lambda: (jax.lax.complex(between(-2, 2, 5), between(0.2, 2, 5, seed=1)),)),
    f"{HIDDEN}._erfcx": one(-2, 3),
    f"{HIDDEN}._dawsn": one(-3, 3),
    f"{SPECIAL}.logit": one(0.05, 0.95),
    f"{SPECIAL}.xlogy": two(0.2, 3, 0.2, 3),
    f"{SPECIAL}.xlog1py": two(0.2, 3, -0.7, 3),
    f"{HIDDEN}._xlogx": one(0.1, 3),
    f"{SPECIAL}.zeta": two(1.5, 6, 0.5, 4),
    f"{SPECIAL}.log_ndtr": Point(lambda: (between(-8, 4, 12),)),
    f"{SPECIAL}.expi": Point(lambda: (between(0.2, 4),)),
    f"{SPECIAL}.sici": one(0.2, 8),
    f"{SPECIAL}.expn": Point(lambda: (3, between(0.3, 4, 6))),
    f"{SPECIAL}.poch": two(0.5, 4, 0.5, 3),
    f"{SPECIAL}.hyp1f1": three((0.5, 2), (2, 4), (-2, 2)),
    f"{SPECIAL}.hyp2f1": three((0.5, 2), (0.5, 2), (3, 4), (-0.5, 0.5)),
    f"{HIDDEN}._owens_t_impl": two(-2, 2, -0.9, 0.9),
    f"{SPECIAL}.fresnel": one(-3, 3),
    "jax._src.ad_checkpoint.primal_left_tangent_right": Point(
        lambda: (normal(5), normal(5, seed=1)), intended=lambda x, y: y, note="the tangent of the second, as meant"
    ),
    "jax._src.lax.control_flow.solves._custom_root": Point(
        lambda: (between(0.5, 3),),
        reference=root_in_closed_form,
        through=root,
        tolerance=1e-5,
        note="through jax.lax.custom_root",
    ),
    "jax._src.state.discharge._eval_jaxpr_ad_error": Point(None, note="it raises, as meant: no derivative there"),
    "jax.experimental.ode._odeint": Point(
        lambda: (between(0.5, 2, 3), jnp.array([0.2, 0.7, 1.1]), between(0.3, 1.5, 3, seed=1)),
        through=solved,
        reference=in_closed_form,
        tolerance=1e-3,
        note="within the solver's own error",
    ),
    f"{PALLAS}.gpu.layer_norm.layer_norm": normed("layer_norm", centred=True),
    f"{PALLAS}.gpu.rms_norm.rms_norm": normed("rms_norm", centred=False),
    f"{PALLAS}.gpu.attention.mha": Point(
        lambda: tuple(normal(1, 64, 2, 16, seed=k) for k in range(3)),
        through=heads,
        reference=jax.vmap(jax.vmap(partial(plain_attention, scale=0.4), 1, 1)),
        note="interpret mode",
    ),
    f"{PALLAS}.gpu.attention_mgpu.attention": Point(None, note=GPU),
    f"{PALLAS}.tpu.flash_attention._mha_reference": Point(
        lambda: (
            *(normal(1, 2, 6, 4, seed=k) for k in range(3)),
            normal(1, 2, 6, 6, seed=3),
            None,
            True,
            -1e9,
            1.0,
            False,
        ),
    ),
    f"{PALLAS}.tpu.megablox.gmm": Point(groups, reference=grouped),
    f"{PALLAS}.tpu.splash_attention.splash_attention_kernel._attention_reference_custom": Point(
        lambda: tuple(normal(6, 4, seed=k) for k in range(3)), through=masked_scores, reference=plain_attention
    ),
    "jax.experimental.rnn.lstm": Point(None, note=GPU),
    "jax._src.cudnn.fused_attention_stablehlo._dot_product_attention": Point(None, note=GPU),
    "jax._src.cudnn.fused_attention_stablehlo._dot_product_attention_fp8": Point(None, note=GPU),
    "jax._src.cudnn.scaled_matmul_stablehlo.scaled_dot_general_fn": Point(None, note=GPU),
    "optax._src.utils._scale_gradient": Point(
        lambda: (normal(4, 5), jnp.asarray(0.3)),
        intended=lambda inputs, scale, d_out: (d_out * scale, None),
        note="the gradient times the scale, as meant",
    ),
    "optax.losses._classification.weighted_logsoftmax": Point(lambda: (normal(4, 5), between(0.1, 1, 4, 5, seed=1))),
    "optax.projections._projections._projection_unit_simplex": matrices(7),
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
