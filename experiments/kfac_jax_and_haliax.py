"""Readings against kfac-jax 0.0.8, and of a model of haliax 1.3, on the same weights in float64.

    pip install kfac-jax tfp-nightly haliax equinox
    python -m experiments.kfac_jax_and_haliax

Neither runs on JAX 0.10 as published, since private names of JAX that they use are gone: three stand here in their
place. So this is no test.
"""

import importlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet import dense, serial, softmax_cross_entropy, squared_norm, tanh
from jaxnet.quantities.kronecker import kronecker
from jaxnet.quantities.sinks import read


def stand_in(module: str, name: str, value: Any) -> None:
    """Puts a value into a module."""
    setattr(importlib.import_module(module), name, value)


def bound(eqn: Any, values: list) -> list:
    """kfac-jax's evaluation of one operation, without `get_bind_params`, which gives one value now."""
    out = eqn.primitive.bind(*values, **eqn.params)
    return out if eqn.primitive.multiple_results else [out]


def farthest(found: Any, expected: Any) -> float:
    """The largest difference over the largest entry."""
    pairs = [*zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)]
    return float(max(jnp.abs(f - e).max() for f, e in pairs) / max(jnp.abs(e).max() for _, e in pairs))


def with_kfac_jax() -> float:
    """A and B of each dense layer, by the exact Fisher matrix; theirs has the bias as one more input of 1."""
    kfac_jax = importlib.import_module("kfac_jax")
    stand_in("kfac_jax._src.tag_graph_matcher", "eval_jaxpr_eqn", bound)
    net = serial(dense(16), tanh, dense(8), tanh, dense(10))
    xs, ys = jax.random.normal(jax.random.key(1), (32, 20)), jnp.arange(32) % 10
    params = net.init(jax.random.key(0), xs[0])

    def loss(layers, batch):
        x, y = batch
        for i, p in enumerate(layers):
            x = (jnp.tanh(x) if i else x) @ p["W"] + p["b"]
        kfac_jax.register_softmax_cross_entropy_loss(x, y)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1).mean()

    func_args = [{"W": p["W"].T, "b": p["b"]} for p in params[::2]], (xs, ys)
    curvature = kfac_jax.BlockDiagonalCurvature(loss, default_estimation_mode="fisher_exact", index_to_block_ctor={})
    given = {"rng": jax.random.key(0), "func_args": func_args}
    state = curvature.init(**given, exact_powers_to_cache=None, approx_powers_to_cache=None, cache_eigenvalues=False)
    state = curvature.update_curvature_matrix_estimate(
        state, ema_old=0.0, ema_new=1.0, identity_weight=0.0, batch_size=len(xs), **given
    )
    ours = kronecker(net, softmax_cross_entropy, samples=None)(params, xs, ys)
    theirs = [[factor.value for factor in block.factors] for block in state.blocks_states]
    return farthest([(p["W"].A, p["W"].B) for p in ours[::2]], [(A[:-1, :-1], B) for A, B in theirs])


def of_haliax() -> float:
    """Each example's squared norms, against `vmap(grad)`."""
    stand_in("jax._src.tree_util", "BuiltInKeyEntry", Any)
    stand_in("jax._src.numpy.lax_numpy", "_einsum", importlib.import_module("jax._src.numpy.einsum")._einsum)
    hax = importlib.import_module("haliax")
    position, ins, mid, outs = (hax.Axis(name, size) for name, size in zip("pimo", (5, 6, 8, 3), strict=True))
    key = jax.random.key(0)
    first, norm, last = (
        hax.nn.Linear.init(ins, mid, key=key),
        hax.nn.LayerNorm.init(mid),
        hax.nn.Linear.init(mid, outs, key=key),
    )

    def loss(model, x):
        first, norm, last = model
        return (last(norm(hax.tanh(first(hax.named(x, (position, ins)))))) ** 2).sum().array

    model, xs = (first, norm, last), jax.random.normal(key, (4, 5, 6))
    _, found = jax.jit(read(loss, squared_norm))(model, xs)
    grads = jax.vmap(jax.grad(loss), (None, 0))(model, xs)
    return farthest(found, jax.tree.map(lambda g: jnp.sum(g.reshape(len(g), -1) ** 2, 1), grads))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    print(f"kfac-jax, A and B of each layer: {with_kfac_jax():.1e}")
    print(f"haliax, squared norms of each example: {of_haliax():.1e}")
