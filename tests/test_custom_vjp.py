"""The function that carries its own reverse rule, in a user's programs: grad, vmap, scan, an Optax loop."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxnet
from jaxnet import as_custom_vjp, serial
from tests.agreement import assert_agree, integers
from tests.batches import SEQUENCE, VECTOR, plain_forward, sequences, vectors


def of_custom(f, params, xs, ys):
    """A user's own mean cross-entropy, by Optax, of the function that we hand out."""
    outs = jax.vmap(f, (None, 0))(params, xs)
    return optax.softmax_cross_entropy_with_integer_labels(outs, ys).mean()


@pytest.mark.parametrize("wrap", [lambda g: g, jax.jit], ids=["grad", "jit_of_grad"])
def test_custom_vjp_under_grad(wrap, x64):
    inputs = vectors()
    expected = jax.grad(lambda p: of_custom(plain_forward(VECTOR), p, *inputs[1:]))(inputs[0])
    f = as_custom_vjp(VECTOR)
    assert_agree(wrap(jax.grad(lambda *inputs: of_custom(f, *inputs)))(*inputs), expected)
    batched = as_custom_vjp(VECTOR, batched=True)

    def of_batch(params, xs, ys):
        return optax.softmax_cross_entropy_with_integer_labels(batched(params, xs), ys).mean()

    assert_agree(wrap(jax.grad(of_batch))(*inputs), expected)


@pytest.mark.parametrize("case", [(VECTOR, vectors), (SEQUENCE, sequences)], ids=["vector", "sequence"])
def test_vmap_of_grad_gives_per_example_gradients(case, x64):
    net, inputs = case
    params, xs, _ = inputs()
    f = as_custom_vjp(net)

    def each(of):
        return jax.jit(jax.vmap(jax.grad(lambda p, x: jnp.sum(jnp.sin(of(p, x)))), (None, 0)))(params, xs)

    ours = each(f)
    assert_agree(ours, each(plain_forward(net)))
    assert jax.tree.leaves(ours)[0].shape[0] == len(xs)


def test_custom_vjp_gives_the_inputs_gradient(x64):
    params, xs, _ = vectors()
    for f, of in [(as_custom_vjp(VECTOR), xs[0]), (as_custom_vjp(VECTOR, batched=True), xs)]:
        plain = plain_forward(VECTOR) if of.ndim == 1 else jax.vmap(plain_forward(VECTOR), (None, 0))
        ours, theirs = (jax.jit(jax.grad(lambda x, g=g: jnp.sum(g(params, x) ** 2)))(of) for g in (f, plain))
        assert_agree(ours, theirs)


@pytest.mark.parametrize("batched", [False, True])
def test_custom_vjp_of_whole_numbers(batched):
    """Pixels of uint8 have no gradient, and ask for none."""
    params = vectors(dtype=jnp.float32)[0]
    xs = integers(1, (4, 5), 255).astype(jnp.uint8)
    f = as_custom_vjp(serial(scaled, VECTOR), batched=batched)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(f(p, xs if batched else xs[0]))))(((), params))
    chex.assert_trees_all_equal_structs(grads, ((), params))


scaled = jaxnet.Layer(
    "over 255",
    lambda key, x: (),
    lambda params, x, key=None, train=False: (x.astype(jnp.float32) / 255, ()),
    lambda params, saved, d_out, read: (d_out / 255, ()),
)


def test_custom_vjp_with_keys_in_training(x64):
    params, xs, _ = vectors()
    key = jax.random.key(5)
    f = as_custom_vjp(VECTOR, batched=True, train=True)

    def plain(p):
        keys = jax.random.split(key, len(xs))
        return jax.vmap(lambda x, k: VECTOR.forward(p, x, k, True)[0])(xs, keys)

    assert_agree(
        jax.grad(lambda p: jnp.sum(f(p, xs, key) ** 2))(params), jax.grad(lambda p: jnp.sum(plain(p) ** 2))(params)
    )


def test_custom_vjp_inside_scan(x64):
    """A user's scan over steps of descent, differentiated inside."""
    params, xs, ys = vectors()

    def descend(of):
        def step(p, _):
            value, grads = jax.value_and_grad(lambda p: of_custom(of, p, xs, ys))(p)
            return jax.tree.map(lambda p, g: p - 0.5 * g, p, grads), value

        return jax.lax.scan(step, params, length=3)

    assert_agree(descend(as_custom_vjp(VECTOR)), descend(plain_forward(VECTOR)))


def test_custom_vjp_in_an_optax_loop():
    params, xs, ys = vectors(8, jnp.float32)
    f = as_custom_vjp(VECTOR, batched=True)
    optimizer = optax.sgd(0.5, momentum=0.9)

    def cost(params):
        return optax.softmax_cross_entropy_with_integer_labels(f(params, xs), ys).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(cost)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("check", [True, False])
def test_custom_vjp_inside_shard_map(batched, check, x64):
    """Parameters that every device has, and examples that are shared out: the gradient is the sum over the devices."""
    params, _, _ = vectors()
    xs = jnp.sin(jnp.arange(16.0 * vectors()[1].shape[1])).reshape(16, -1)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    f = as_custom_vjp(VECTOR, batched=batched)
    spec = jax.sharding.PartitionSpec

    def cost(of):
        return lambda params, xs: jnp.mean((of if batched else jax.vmap(of, (None, 0)))(params, xs) ** 2)

    def spread(params, xs):
        return jax.lax.pmean(cost(f)(params, xs), "d")

    over = jax.shard_map(spread, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec(), check_vma=check)
    plain = jax.vmap(plain_forward(VECTOR), (None, 0)) if batched else plain_forward(VECTOR)
    expected = jax.grad(cost(plain), (0, 1))(params, xs)
    assert_agree(jax.jit(jax.grad(over, (0, 1)))(params, xs), expected)
