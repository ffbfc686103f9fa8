"""Rules for the checker's tests: a LayerNorm with any one of several mistakes, and small rules of every kind."""

import jax
import jax.numpy as jnp


def layer_norm_reference(x, gamma, beta):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype)) * gamma[None] + beta[None]


def layer_norm(mistake=None):
    """A hand-written LayerNorm, right or with a mistake."""

    @jax.custom_vjp
    def layer_norm(x, gamma, beta):
        return layer_norm_reference(x, gamma, beta)

    def forward(x, gamma, beta):
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        r = jax.lax.rsqrt(variance + jnp.asarray(1e-5, x.dtype))
        return (x - mean) * r * gamma[None] + beta[None], ((x - mean) * r, r, gamma)

    def backward(saved, g):
        x_hat, r, gamma = saved
        scaled = g * gamma[None]
        dx = scaled - scaled.mean(-1, keepdims=True)
        if mistake != "projection":
            dx = dx - x_hat * (scaled * x_hat).mean(-1, keepdims=True)
        dx, d_gamma = r * dx, (g * x_hat).sum(0)
        match mistake:
            case "one entry":
                dx = dx.at[1, 4].add(jnp.asarray(0.5, dx.dtype))
            case "zero entry":
                dx = dx.at[1, 4].set(0)
            case "per cent":
                dx = dx * jnp.asarray(1.01, dx.dtype)
            case "last block":
                dx = dx.at[:, 8:].set(0)
            case "sign":
                d_gamma = -d_gamma
            case "nan":
                dx = dx / jnp.zeros((), dx.dtype)
        return dx, d_gamma, g.sum(0)

    layer_norm.defvjp(forward, backward)
    return layer_norm


def shapes(dtype="float32"):
    return f"{dtype}[4,16], {dtype}[16], {dtype}[16]"


def cube(wrong=False):
    """x³ as a custom_jvp."""

    @jax.custom_jvp
    def cube(x):
        return x * x * x

    cube.defjvp(lambda p, t: (cube(*p), (2 if wrong else 3) * p[0] * p[0] * t[0]))
    return cube


def product(wrong=False):
    """sin(x) y as a custom_vjp."""

    @jax.custom_vjp
    def product(x, y):
        return jnp.sin(x) * y

    def backward(saved, g):
        x, y = saved
        return g * jnp.cos(x) * y, g * (jnp.cos(x) if wrong else jnp.sin(x))

    product.defvjp(lambda x, y: (product(x, y), (x, y)), backward)
    return product
