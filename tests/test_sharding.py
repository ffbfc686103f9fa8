"""Batches sharded over devices: the numbers of one device, and no more exchanges than autodiff's."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnet import (
    backpropagate,
    dense,
    dropout,
    pair,
    per_position,
    relu,
    repeat,
    residual,
    serial,
    sigmoid,
    softmax_cross_entropy,
    squared_norm,
    total,
    value_and_grad,
)

BLOCK = residual(serial(dense(16), relu))
NETWORKS = {
    "unrolled": (serial(dense(16), sigmoid, dense(16), relu, dense(5)), (6,)),
    "repeat": (serial(dense(16), repeat(BLOCK, 3), dense(5)), (6,)),
    "sequence": (per_position(serial(dense(16), sigmoid, dense(5))), (3, 6)),
    "sequence-repeat": (per_position(serial(dense(16), repeat(BLOCK, 2), dense(5))), (3, 6)),
}
AXES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
EXCHANGES = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"


@pytest.fixture(params=AXES)
def mesh(request):
    """Eight devices along "data", the axis's kind as named."""
    return jax.make_mesh((8,), ("data",), axis_types=(AXES[request.param],))


@pytest.fixture(params=NETWORKS)
def problem(request):
    """A network with its parameters and a batch of 16, whole on one device."""
    net, shape = NETWORKS[request.param]
    key = jax.random.key(0)
    xs = jax.random.normal(key, (16, *shape))
    ys = jax.random.randint(key, (16, *shape[:-1]), 0, 5)
    return net, net.init(jax.random.key(1), xs[0]), xs, ys


def over(mesh, tree, *axes):
    """The tree on the mesh, its leading axis along the axes named, whole where there are none."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))


def by_autodiff(net):
    """The same mean cost under jax.value_and_grad."""

    def mean(params, xs, ys):
        logits = jax.vmap(lambda x: net.forward(params, x)[0])(xs)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.sum(logits * jax.nn.one_hot(ys, 5), axis=-1))

    return jax.value_and_grad(mean)


def exchanges(compiled) -> Counter:
    """How many exchanges of each kind a compiled program has."""
    return Counter(re.findall(rf" ({EXCHANGES})\(", compiled.as_text()))


def epoch(gradient):
    """Four steps of gradient descent in a scan."""

    def run(params, xs, ys):
        def step(params, _):
            _, grads = gradient(params, xs, ys)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        return jax.lax.scan(step, params, None, length=4)[0]

    return run


def assert_close(got, expected):
    """Equal to float32's noise, leaf by leaf."""
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("program", [pytest.param(lambda gradient: gradient, marks=pytest.mark.slow), epoch],
                         ids=["step", "epoch"])  # fmt: skip
def test_as_many_exchanges_as_autodiff_and_the_numbers_of_one_device(mesh, problem, program):
    net, params, xs, ys = problem
    by_hand = program(value_and_grad(net, softmax_cross_entropy))
    expected = jax.device_get(jax.jit(by_hand)(params, xs, ys))
    with jax.set_mesh(mesh):
        sharded = over(mesh, params), over(mesh, xs, "data"), over(mesh, ys, "data")
        ours, theirs = (jax.jit(f).lower(*sharded).compile() for f in (by_hand, program(by_autodiff(net))))
        mine = exchanges(ours)
        assert mine == exchanges(theirs)
        got = jax.device_get(ours(*sharded))
    assert mine["all-reduce"] >= 1
    assert mine["all-gather"] == 0
    assert_close(got, expected)


def test_keys_weights_and_readings_for_each_example_are_sharded_as_the_batch(mesh):
    net = serial(dense(16), dropout(0.3), relu, dense(5))
    key = jax.random.key(0)
    xs, ys, weights = jax.random.normal(key, (16, 6)), jnp.arange(16) % 5, jnp.linspace(1.0, 2.0, 16)
    params = net.init(key, xs[0])
    read = backpropagate(net, softmax_cross_entropy, pair(total, squared_norm))

    def run(params, xs, ys, weights):
        return read(params, xs, ys, key=key, train=True, weights=weights)

    expected = jax.device_get(jax.jit(run)(params, xs, ys, weights))
    with jax.set_mesh(mesh):
        got = jax.jit(run)(over(mesh, params), *(over(mesh, t, "data") for t in (xs, ys, weights)))
        _, (_, norms) = got = jax.device_get(got)
    assert all(norm.shape[0] == 16 for norm in jax.tree.leaves(norms))
    assert_close(got, expected)


def test_in_shard_map_a_mean_over_the_devices_is_right_and_none_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    net, shape = NETWORKS["repeat"]
    key = jax.random.key(0)
    xs, ys = jax.random.normal(key, (16, *shape)), jnp.arange(16) % 5
    params = net.init(key, xs[0])
    gradient = value_and_grad(net, softmax_cross_entropy)
    whole, batch = PartitionSpec(), PartitionSpec("data")

    def mapped(function):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(whole, batch, batch), out_specs=whole))

    mean = mapped(lambda *args: jax.lax.pmean(gradient(*args), "data"))
    assert_close(mean(params, xs, ys), jax.jit(gradient)(params, xs, ys))
    with pytest.raises(ValueError, match="out_specs"):
        mapped(gradient)(params, xs, ys)
