"""The compiled program of the hand-written gradient: as many matrix products as autodiff's, and no more memory."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxnet import (
    dense,
    per_position,
    remat,
    repeat,
    residual,
    serial,
    sigmoid,
    softmax_cross_entropy,
    tanh,
    total,
    value_and_grad,
)

WIDTH = 64
BLOCK = residual(serial(dense(WIDTH), tanh))
NETWORKS = {
    "mlp": (serial(dense(WIDTH), sigmoid, dense(WIDTH), sigmoid, dense(10)), (WIDTH,)),
    "repeat": (serial(dense(WIDTH), repeat(BLOCK, 6), dense(10)), (WIDTH,)),
    "sequence": (per_position(serial(dense(WIDTH), sigmoid, dense(WIDTH), sigmoid, dense(10))), (8, WIDTH)),
    "repeat_of_sequence": (serial(repeat(per_position(BLOCK), 6), per_position(dense(10))), (8, WIDTH)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def abstract(net, shape, batch):
    """Shapes of parameters, batch and classes; nothing is computed here."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    ys = jax.ShapeDtypeStruct((batch, *shape[:-1]), jnp.int32)
    return params, jax.ShapeDtypeStruct((batch, *shape), jnp.float32), ys


def by_autodiff(net):
    """The same forward pass and mean cost, differentiated by JAX."""

    def cost(params, xs, ys):
        def one(x, y):
            return softmax_cross_entropy.turn((), net.forward(params, x)[0], y, 1 / ys.size, total)[0]

        return jax.vmap(one)(xs, ys).sum()

    return jax.value_and_grad(cost)


def compiled(f, net, shape, batch):
    return jax.jit(f).lower(*abstract(net, shape, batch)).compile()


def dots(program) -> int:
    """Matrix products in a compiled program, loops' bodies counted once."""
    return len(re.findall(r"= \S+ dot\(|custom_call_target=\"[^\"]*(?:matmul|gemm)", program.as_text()))


def memory(program) -> int:
    return program.memory_analysis().temp_size_in_bytes


@every_network
def test_as_many_matrix_products(name):
    net, shape = NETWORKS[name]
    ours, theirs = (compiled(f, net, shape, 32) for f in (value_and_grad(net, softmax_cross_entropy), by_autodiff(net)))
    layers = {"mlp": 3, "repeat": 3, "sequence": 3, "repeat_of_sequence": 2}[name]
    assert dots(theirs) >= 2 * layers, "the counter no longer sees matrix products"
    assert dots(ours) <= dots(theirs)
    # Forward, back and gradient of each dense, but for the first one's dx, which nobody asks for.
    assert dots(ours) <= 3 * layers


@every_network
def test_no_more_memory(name):
    """Where activations are four times the gradients and more."""
    net, shape = NETWORKS[name]
    batch = 4096 if len(shape) == 1 else 512
    params, xs, _ = abstract(net, shape, batch)
    assert xs.size >= 4 * sum(p.size for p in jax.tree.leaves(params))
    ours, theirs = (
        compiled(f, net, shape, batch) for f in (value_and_grad(net, softmax_cross_entropy), by_autodiff(net))
    )
    assert memory(ours) <= memory(theirs)


def test_remat_inside_repeat_saves_two_thirds():
    block = serial(*[layer for _ in range(4) for layer in (dense(WIDTH), tanh)])
    kept, again = (
        compiled(value_and_grad(net, softmax_cross_entropy), net, (WIDTH,), 1024)
        for net in (serial(repeat(block, 12), dense(10)), serial(repeat(remat(block), 12), dense(10)))
    )
    assert memory(again) <= memory(kept) / 3


def test_repeat_compiles_one_block():
    """The program does not grow with the times."""
    few, many = (
        compiled(value_and_grad(net, softmax_cross_entropy), net, (WIDTH,), 8)
        for net in (serial(repeat(BLOCK, times), dense(10)) for times in (3, 30))
    )
    assert dots(few) == dots(many)
