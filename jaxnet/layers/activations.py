"""Activations: a = g(z), entry by entry, so the Jacobian is diagonal and the error passes as da ⊙ g′(z).

One table of g and g′. g′ is written in z and a = g(z), whichever is shorter, and only that one is saved: a for
the sigmoid, since σ′ = a (1 − a); one bit an entry for relu.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from jaxnet.layer import Layer, leaf, no_params
from jaxnet.lowering.products import accumulated
from jaxnet.registry import maker, row

SQRT_2_OVER_PI = (2 / jnp.pi) ** 0.5


class Activation(NamedTuple):
    """A row of the table: `g(z)`, `g_prime(z, a)` with a = g(z), and the one of z, a, g′ that is saved for backward."""

    name: str
    g: Callable
    g_prime: Callable
    saves: Literal["z", "a", "g_prime"]


def normal_cdf(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ(z) = ½ (1 + erf z/√2). JAX's own cuts z into ranges, several times the work, for digits of Φ far below ε."""
    return (1 + jax.lax.erf(z * 0.5**0.5)) / 2


def exact_gelu(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """g = z Φ(z), Φ the normal distribution function, in float32 or better."""
    wide = z.astype(accumulated(z.dtype))
    return (wide * normal_cdf(wide)).astype(z.dtype)


def exact_gelu_prime(z: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """g′ = Φ(z) + z φ(z), in float32 or better."""
    z = z.astype(accumulated(z.dtype))
    return normal_cdf(z) + z * norm.pdf(z)


def gelu_tanh_prime(z: Float[Array, "..."], a: Float[Array, "..."]) -> Float[Array, "..."]:
    """g′ of ½ z (1 + tanh u), u = √(2/π) (z + 0.044715 z³). Source: Hendrycks and Gimpel, GELUs, 2016, §2."""
    t = jnp.tanh(SQRT_2_OVER_PI * (z + 0.044715 * z**3))
    u_prime = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * z**2)
    return (1 + t) / 2 + z / 2 * (1 - t**2) * u_prime


def rows() -> tuple[Activation, ...]:
    """The table."""
    sigma = jax.nn.sigmoid
    return (
        #          name         g                g′                                                saves
        Activation("sigmoid",   sigma,           lambda z, a: a * (1 - a),                         "a"),
        Activation("tanh",      jnp.tanh,        lambda z, a: 1 - a**2,                            "a"),
        Activation("relu",      jax.nn.relu,     lambda z, a: z > 0,                               "g_prime"),
        Activation("softplus",  jax.nn.softplus, lambda z, a: sigma(z),                            "z"),
        Activation("silu",      jax.nn.silu,     lambda z, a: sigma(z) * (1 + z * (1 - sigma(z))), "z"),
        Activation("gelu",      exact_gelu,      exact_gelu_prime,                                 "z"),
        Activation("gelu_tanh", jax.nn.gelu,     gelu_tanh_prime,                                  "z"),
    )  # fmt: skip


@maker(
    configs=False,
    examples={'elementwise(Activation("cube", lambda z: z**3, lambda z, a: 3 * z**2, "z"))': "float32[6]"},
)
def elementwise(activation: Activation) -> Layer:
    """a = g(z), dz = da ⊙ g′(z): the layer of a row of the table, or of your own row.

    Takes and gives arrays of any one shape.

    >>> square = elementwise(Activation("square", jnp.square, lambda z, a: 2 * z, "z"))
    >>> a, back = vjp(square)((), jnp.array([1.0, -3.0]))
    >>> print(a, back(jnp.ones(2))[1])
    [1. 9.] [ 2. -6.]
    """
    name, g, g_prime, saves = activation

    def forward(params, z, key=None, train=False):
        a = g(z)
        return a, {"z": z, "a": a}[saves] if saves != "g_prime" else g_prime(z, a)

    def backward(params, saved, da):
        slope = saved if saves == "g_prime" else g_prime(saved, saved)  # it names only the one that is saved
        return da * slope.astype(da.dtype), ()

    return leaf(name, no_params, forward, backward)


@maker(examples={"leaky_relu(0.2)": "float32[6]"})
def leaky_relu(slope: float = 0.01) -> Layer:
    """a = z for z ≥ 0, else slope · z, for z of any shape.

    >>> a, back = vjp(leaky_relu(0.1))((), jnp.array([-1.0, 2.0]))
    >>> _, dz = back(jnp.ones(2))
    >>> print(np.asarray(a).round(3), np.asarray(dz).round(3))
    [-0.1  2. ] [0.1 1. ]
    """
    return elementwise(
        Activation(
            f"leaky_relu {slope:g}",
            lambda z: jax.nn.leaky_relu(z, slope),
            lambda z, a: jnp.where(z >= 0, 1.0, slope),
            "z",
        )
    )


@maker(examples={"elu(0.7)": "float32[6]"})
def elu(alpha: float = 1.0) -> Layer:
    """a = z for z > 0, else α (eᶻ − 1), for z of any shape.

    >>> a, back = vjp(elu())((), jnp.array([-1.0, 2.0]))
    >>> _, dz = back(jnp.ones(2))
    >>> print(np.asarray(a).round(3), np.asarray(dz).round(3))
    [-0.632  2.   ] [0.368 1.   ]
    """
    return elementwise(
        Activation(f"elu {alpha:g}", lambda z: jax.nn.elu(z, alpha), lambda z, a: jnp.where(a > 0, 1.0, a + alpha), "a")
    )


ACTIVATIONS: dict[str, Layer] = {each.name: row(elementwise(each), __name__, "float32[6]") for each in rows()}
"""The activations without options, by name."""


def activation_named(name: str) -> Layer:
    """The activation of a name, for arrays of any one shape.

    Raises `ValueError` for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


sigmoid, tanh, relu, softplus, silu, gelu, gelu_tanh = ACTIVATIONS.values()
"""a = g(z), dz = da ⊙ g′(z), for z of any shape: the rows of the table above.

>>> a, back = vjp(sigmoid)((), jnp.array([-1.0, 2.0]))
>>> _, dz = back(jnp.ones(2))
>>> print(np.asarray(a).round(3), np.asarray(dz).round(3))
[0.269 0.881] [0.197 0.105]
"""

identity = row(
    leaf("identity", no_params, lambda params, z, key=None, train=False: (z, ()), lambda params, _, da: (da, ())),
    *(__name__, "float32[6]"),
)
"""a = z and dz = da, for z of any shape.

>>> a, back = vjp(identity)((), jnp.array([-1.0, 2.0]))
>>> _, dz = back(jnp.ones(2))
>>> print(np.asarray(a).round(3), np.asarray(dz).round(3))
[-1.  2.] [1. 1.]
"""


def _softmax_forward(params, z, key=None, train=False):
    p = jax.nn.softmax(z, axis=-1)
    return p, p


def _softmax_backward(params, p, dp):  # p = eᶻ / Σ eᶻ;  ∂p/∂z = diag(p) − p pᵀ
    return p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)), ()


softmax = row(leaf("softmax", no_params, _softmax_forward, _softmax_backward), __name__, "float32[3,6]")
"""p = eᶻ / Σ eᶻ over the last axis, with its whole Jacobian: dz = p ⊙ (dp − ⟨p, dp⟩).

>>> a, back = vjp(softmax)((), jnp.array([-1.0, 2.0]))
>>> _, dz = back(jnp.ones(2))
>>> print(np.asarray(a).round(3), np.asarray(dz).round(3))
[0.047 0.953] [0. 0.]
"""
