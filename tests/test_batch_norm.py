"""BatchNorm: it couples the examples of a batch, so it has suites of its own, and state that comes back apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnet
from jaxnet import batch_norm, dense, remat, repeat, serial, softmax_cross_entropy, tanh
from jaxnet.layer import EXAMPLES, Static, split_state, with_state
from tests.agreement import assert_agree, cast, normal, random_like
from tests.test_sharding import exchanges

BLOCK = serial(dense(4), batch_norm(), tanh)
NETWORKS = {
    "alone": (serial(batch_norm(), dense(3)), (5,)),
    "positions": (serial(batch_norm(), jaxnet.flatten(), dense(3)), (2, 3, 4)),
    "repeat": (serial(dense(4), repeat(BLOCK, 3), dense(3)), (5,)),
    "remat-residual": (serial(repeat(remat(jaxnet.residual(BLOCK)), 2), dense(3)), (4,)),
}


def problem(name: str, batch: int = 5, dtype=jnp.float64):
    """Network, parameters and state apart (both random), inputs and targets."""
    net, shape = NETWORKS[name]
    xs, ys = normal(2, (batch, *shape)), jnp.arange(batch) % 3
    params, state = split_state(jaxnet.initialize(net, softmax_cross_entropy, jax.random.key(0), xs[0]))
    state = jax.tree.map(lambda t: jnp.abs(t) + 0.5, random_like(4, state))
    params, state, xs = cast((random_like(1, params), state, xs), dtype)
    return net, params, state, xs, ys


def by_autodiff(net, state):
    """The same mean cost under jax.value_and_grad, in training mode."""

    def mean(params, xs, ys):
        def one(x, y):
            logits, _ = net.forward(with_state(params, state), x, None, True)
            return jax.nn.logsumexp(logits) - logits[y]

        return jax.vmap(one, axis_name=EXAMPLES)(xs, ys).mean()

    return jax.value_and_grad(mean)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [5, 2])
def test_gradients_are_autodiffs_through_the_batch_statistics(name, batch):
    net, params, state, xs, ys = problem(name, batch)
    run = jax.jit(jaxnet.value_and_grad(net, softmax_cross_entropy), static_argnames="train")
    value, grads, _ = run(params, xs, ys, state=state, train=True)
    assert_agree((value, grads), jax.jit(by_autodiff(net, state))(params, xs, ys))


@pytest.mark.usefixtures("x64")
def test_dx_is_autodiffs():
    net, params, state, xs, _ = problem("positions")
    f = jaxnet.as_custom_vjp(net, batched=True, train=True)
    d_outs = normal(7, (5, 3)).astype(jnp.float64)
    whole = with_state(params, state)

    def plain(xs):
        return jax.vmap(lambda x: net.forward(whole, x, None, True)[0], axis_name=EXAMPLES)(xs)

    (got,) = jax.jit(lambda xs: jax.vjp(lambda xs: f(whole, xs), xs)[1](d_outs))(xs)
    (expected,) = jax.jit(lambda xs: jax.vjp(plain, xs)[1](d_outs))(xs)
    assert_agree(got, expected)
    assert float(jnp.abs(got.sum((0, 1, 2))).max()) < 1e-12  # a shift of a channel changes nothing


def test_outputs_in_training_have_mean_beta_and_deviation_gamma():
    layer, xs = batch_norm(), normal(3, (400, 6), 3.0) + 2
    params = {"gamma": normal(1, (6,)), "beta": normal(2, (6,)), "population": None}
    out = jax.vmap(lambda x: layer.forward(params, x, None, True)[0], axis_name=EXAMPLES)(xs)
    np.testing.assert_allclose(out.mean(0), params["beta"], atol=1e-5)
    np.testing.assert_allclose(out.std(0), jnp.abs(params["gamma"]), rtol=1e-4)


def test_the_population_moves_by_the_rate_towards_the_batch():
    net, params, state, xs, ys = problem("alone", 5, jnp.float32)
    _, _, after = jaxnet.value_and_grad(net, softmax_cross_entropy)(params, xs, ys, state=state, train=True)
    old, new = (t[0]["population"].value for t in (state, after))
    batch = np.asarray(xs)
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * batch.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["variance"], 0.9 * old["variance"] + 0.1 * batch.var(0, ddof=1), rtol=1e-5)
    _, _, kept = jaxnet.value_and_grad(net, softmax_cross_entropy)(params, xs, ys, state=state)
    assert_agree(kept, state, 0)


def test_evaluation_uses_the_population_and_couples_nothing():
    net, params, state, xs, ys = problem("repeat", 5, jnp.float32)
    outs = jaxnet.predict(net)(params, xs, state)
    np.testing.assert_allclose(outs[:2], jaxnet.predict(net)(params, xs[:2], state), rtol=1e-6)
    _, grads = jaxnet.per_example(net, softmax_cross_entropy)(params, xs, ys, state=state)
    _, expected, _ = jaxnet.value_and_grad(net, softmax_cross_entropy)(params, xs, ys, state=state)
    assert_agree(jax.tree.map(lambda t: t.mean(0), grads), expected, 1e-5)


@pytest.mark.parametrize(
    "run",
    [
        lambda net, p, s, xs, ys: jaxnet.per_example(net, softmax_cross_entropy)(p, xs, ys, state=s, train=True),
        lambda net, p, s, xs, ys: jaxnet.backpropagate(net, softmax_cross_entropy, jaxnet.squared_norm)(
            p, xs, ys, state=s, train=True
        ),
        lambda net, p, s, xs, ys: jaxnet.value_and_grad(net, softmax_cross_entropy, chunks=5)(p, xs, ys, train=True),
        lambda net, p, s, xs, ys: jaxnet.vjp(net)(with_state(p, s), xs[0], train=True),
    ],
    ids=["per_example", "squared_norm", "chunks", "vjp"],
)
def test_what_has_no_meaning_for_coupled_examples_is_refused(run):
    with pytest.raises(ValueError, match="coupled"):
        run(*problem("alone", 5, jnp.float32))


def test_state_in_chunks_is_refused():
    net, params, state, xs, ys = problem("alone", 6, jnp.float32)
    with pytest.raises(ValueError, match="3 chunks"):
        jaxnet.value_and_grad(net, softmax_cross_entropy, chunks=3)(params, xs, ys, state=state, train=True)


def test_bad_inputs_say_what_is_taken():
    net, params, _, xs, _ = problem("alone", 5, jnp.float32)
    with pytest.raises(jaxnet.ShapeError, match="a single number"):
        batch_norm().init(jax.random.key(0), jnp.zeros(()))
    with pytest.raises(jaxnet.ShapeError, match="takes gamma of shape"):
        batch_norm().forward(batch_norm().init(jax.random.key(0), jnp.zeros(3)), jnp.zeros(4))
    with pytest.raises(ValueError, match="give state"):
        jaxnet.predict(net)(params, xs)
    with pytest.raises(jaxnet.ShapeError, match="give the sequence to it whole"):
        jaxnet.per_position(batch_norm()).init(jax.random.key(0), jnp.zeros((4, 3)))


def test_over_seeds():
    net, params, state, xs, ys = problem("repeat", 5, jnp.float32)
    seeds = [jax.tree.map(lambda t, k=k: t * k, (params, state)) for k in (1.0, 1.5)]
    stacked = jax.tree.map(lambda *t: jnp.stack(t), *seeds)
    step = jaxnet.value_and_grad(net, softmax_cross_entropy)

    def of(p, s):
        return step(p, xs, ys, state=s, train=True)

    got = jax.jit(jax.vmap(of))(*stacked)
    for i, (p, s) in enumerate(seeds):
        assert_agree(jax.tree.map(lambda t, i=i: t[i], got), jax.jit(of)(p, s), 1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_sharded_batch_has_the_numbers_of_one_device(kind):
    net, params, state, xs, ys = problem("repeat", 16, jnp.float32)
    step = jaxnet.value_and_grad(net, softmax_cross_entropy)
    expected = jax.jit(lambda p, s, xs, ys: step(p, xs, ys, state=s, train=True))(params, state, xs, ys)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))

    def over(tree, *axes):
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

    with jax.set_mesh(mesh):
        sharded = over(params), over(state), over(xs, "data"), over(ys, "data")

        def run(p, s, xs, ys):
            return step(p, xs, ys, state=s, train=True)

        program = jax.jit(run).lower(*sharded).compile()
        counts = exchanges(program)
        got = jax.device_get(program(*sharded))
    assert counts["all-gather"] == 0
    assert_agree(got, jax.device_get(expected), 1e-5)


def test_the_checker_holds_it_in_both_modes_and_names_what_is_missing():
    from jaxnet.checking import check

    net = serial(dense(4), batch_norm(), dense(3))
    quick = {"diagnose": False, "also": False, "shapes": False, "precise": False, "seeds": 1}
    report = check(net, "float32[6,5]", **quick)
    assert report.ok
    assert "right in training mode too" in report.notes

    right = batch_norm()

    def backward(params, saved, d_out, read):  # as if μ and σ² were the population's
        x_hat, inverse_sigma, after, _ = saved
        return right.backward(params, (x_hat, inverse_sigma, after, Static(False)), d_out, read)

    wrong = check(serial(dense(4), right._replace(backward=backward), dense(3)), "float32[6,5]", **quick)
    assert not wrong.ok
    assert wrong.layer == "layer 2 of 3 › batch_norm"


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(4,), (3, 2, 4)], ids=["vectors", "images"])
def test_values_gradients_and_population_are_torchs(shape):
    torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
    theirs = (torch.nn.BatchNorm1d if len(shape) == 1 else torch.nn.BatchNorm2d)(4)
    layer, xs, d_outs = batch_norm(), normal(1, (6, *shape)), normal(2, (6, *shape))
    params, state = split_state(layer.init(jax.random.key(0), xs[0]))
    params = params | {"gamma": normal(3, (4,)), "beta": normal(4, (4,))}
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.asarray(params["gamma"])))
        theirs.bias.copy_(torch.tensor(np.asarray(params["beta"])))

    def channels_first(t):
        return torch.tensor(np.moveaxis(np.asarray(t), -1, 1).copy())

    x = channels_first(xs).requires_grad_()
    out = theirs(x)
    out.backward(channels_first(d_outs))

    def one(x, d_out):
        out, saved = layer.forward(with_state(params, state), x, None, True)
        dx, grads = layer.backward(with_state(params, state), saved, d_out, jaxnet.total)
        return out, dx, grads, saved[2].value

    outs, dxs, grads, population = jax.vmap(one, axis_name=EXAMPLES, out_axes=(0, 0, None, None))(xs, d_outs)
    for mine, other in [
        (outs, np.moveaxis(out.detach().numpy(), 1, -1)),
        (dxs, np.moveaxis(x.grad.numpy(), 1, -1)),
        (grads["gamma"], theirs.weight.grad.numpy()),
        (grads["beta"], theirs.bias.grad.numpy()),
        (population["mean"], theirs.running_mean.numpy()),
        (population["variance"], theirs.running_var.numpy()),
    ]:
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
