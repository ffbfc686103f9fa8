"""Recurrences beyond whole sequences: cut into pieces, padded, backwards, in narrow dtypes, sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxnet
from jaxnet import ShapeError, bidirectional, gru, lstm, rnn
from jaxnet.layers import Piece
from tests.agreement import assert_agree, cast, normal, random_like
from tests.test_sharding import by_autodiff, exchanges

TIME, IN, UNITS = 5, 2, 3
NETS = {
    "rnn": rnn(UNITS),
    "lstm": lstm(UNITS),
    "gru": gru(UNITS),
    "gru_reverse": gru(UNITS, reverse=True),
    "bidirectional": bidirectional(lstm(UNITS), rnn(2, reverse=True)),
}
AHEAD = ["rnn", "lstm", "gru"]


def given(net, dtype=jnp.float64):
    """Random parameters, a sequence, and a carry as the network gives one."""
    xs = normal(2, (TIME, IN))
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), xs))
    carry = jax.eval_shape(lambda p, x: net.forward(p, Piece(x))[0][1], params, xs)
    return cast((params, xs, random_like(4, carry)), dtype)


def by_hand(net, params, piece, d_out):
    out, pullback = jaxnet.vjp(net)(params, piece)
    grads, dx = pullback(d_out)
    return out, grads, dx


def by_jax(net, params, piece, d_out):
    """The same by `jax.vjp` in parameters, sequence and carry."""

    def forward(params, xs, carry):
        return net.forward(params, Piece(xs, carry, piece.length))[0]

    out, pullback = jax.vjp(forward, params, piece.xs, piece.carry)
    grads, dxs, d_carry = pullback(d_out)
    return out, grads, Piece(dxs, d_carry)


@pytest.mark.parametrize("name", NETS)
def test_a_piece_with_carry_and_length_agrees_with_autodiff(name, x64):
    net = NETS[name]
    params, xs, carry = given(net)

    @jax.jit
    def both(params, xs, carry, length, d_out):
        piece = Piece(xs, carry, length)
        return by_hand(net, params, piece, d_out), by_jax(net, params, piece, d_out)

    d_out = cast(random_like(3, jax.eval_shape(lambda p, x: net.forward(p, Piece(x))[0], params, xs)), jnp.float64)
    for length in (0, 3, TIME):
        ours, theirs = both(params, xs, carry, jnp.int32(length), d_out)
        assert_agree(ours, theirs)


@pytest.mark.parametrize("name", AHEAD)
def test_two_pieces_with_the_carry_handed_on_are_one_long_sequence(name, x64):
    """Values, and gradients where the carry's error is handed back too."""
    net = NETS[name]
    params, xs, _ = given(net)
    d_outs = cast(normal(3, (TIME, UNITS)), jnp.float64)

    @jax.jit
    def pieces(params, xs, d_outs):
        (first, carry), back_first = jaxnet.vjp(net)(params, Piece(xs[:2]))
        (second, last), back_second = jaxnet.vjp(net)(params, Piece(xs[2:], carry))
        second_grads, d_second = back_second((d_outs[2:], jax.tree.map(jnp.zeros_like, last)))
        first_grads, d_first = back_first((d_outs[:2], d_second.carry))
        assert d_first.carry is None  # there was none
        return (
            jnp.concatenate([first, second]),
            jax.tree.map(jnp.add, first_grads, second_grads),
            jnp.concatenate([d_first.xs, d_second.xs]),
        )

    whole = jax.jit(lambda *args: by_hand(net, *args))(params, xs, d_outs)
    assert_agree(pieces(params, xs, d_outs), whole)


def test_truncated_backpropagation_is_the_derivative_of_the_truncated_computation(x64):
    """No error handed back: as `jax.grad` with the carry held fixed."""
    net = NETS["lstm"]
    params, xs, _ = given(net)
    d_outs = cast(normal(3, (TIME, UNITS)), jnp.float64)

    def truncated(params):
        first, carry = net.forward(params, Piece(xs[:2]))[0]
        second, _ = net.forward(params, Piece(xs[2:], jax.lax.stop_gradient(carry)))[0]
        return jnp.sum(jnp.concatenate([first, second]) * d_outs)

    def pieces(params):
        (_, carry), back_first = jaxnet.vjp(net)(params, Piece(xs[:2]))
        (_, last), back_second = jaxnet.vjp(net)(params, Piece(xs[2:], carry))
        nothing = jax.tree.map(jnp.zeros_like, last)
        return jax.tree.map(jnp.add, back_first((d_outs[:2], nothing))[0], back_second((d_outs[2:], nothing))[0])

    ours, theirs, untruncated = jax.jit(lambda p: (pieces(p), jax.grad(truncated)(p), by_hand(net, p, xs, d_outs)[1]))(
        params
    )
    assert_agree(ours, theirs)
    with pytest.raises(AssertionError):
        assert_agree(ours, untruncated)


@pytest.mark.parametrize("name", NETS)
def test_padding_changes_nothing(name, x64):
    """A padded sequence gives the cut one's outputs and gradients, its padding 0, the state of its last own step."""
    net, length = NETS[name], 3
    params, xs, _ = given(net)
    shapes = jax.eval_shape(lambda p, x: net.forward(p, Piece(x))[0], params, xs)
    d_outs, d_carry = cast(random_like(3, shapes), jnp.float64)
    padded, cut = jax.jit(
        lambda length: (
            by_hand(net, params, Piece(xs.at[3:].set(1e3), length=length), (d_outs, d_carry)),
            by_hand(net, params, Piece(xs[:3]), (d_outs[:3], d_carry)),
        )
    )(jnp.int32(length))
    (outs, carry), grads, dx = padded
    np.testing.assert_array_equal(outs[length:], 0)
    np.testing.assert_array_equal(dx.xs[length:], 0)
    assert_agree(((outs[:length], carry), grads, dx.xs[:length]), (cut[0], cut[1], cut[2].xs))


def test_a_batch_of_pieces_of_different_lengths_in_the_functions_of_the_library(x64):
    """vmap over carry and length, `as_custom_vjp` and its reverse rule."""
    net = NETS["lstm"]
    params, xs, carry = given(net)
    batch = Piece(jnp.stack([xs, 2 * xs]), jax.tree.map(lambda t: jnp.stack([t, -t]), carry), jnp.array([5, 2]))
    f = jaxnet.as_custom_vjp(net, batched=True)

    def cost(of):
        def total(params, xs, carry):
            outs, last = of(params, Piece(xs, carry, batch.length))
            return jnp.sum(outs**2) + sum(jnp.sum(t**2) for t in jax.tree.leaves(last))

        return jax.grad(total, (0, 1, 2))(params, batch.xs, batch.carry)

    plain = jax.vmap(lambda p, piece: net.forward(p, piece)[0], (None, 0))
    assert_agree(*jax.jit(lambda: (cost(f), cost(plain)))())


def test_reversed_runs_from_the_last_step(x64):
    params, xs, _ = given(lstm(UNITS))
    ahead, back = (jax.jit(lambda x, net=net: net.forward(params, x)[0]) for net in (lstm(3), lstm(3, reverse=True)))
    assert_agree(back(xs), ahead(xs[::-1])[::-1])


def test_the_cell_is_kept_in_float32():
    """In bfloat16 a small gain at each step would be rounded away."""
    net = lstm(1)
    params, _, _ = given(net, jnp.bfloat16)
    outs, carry = net.forward(params, Piece(jnp.zeros((TIME, IN), jnp.bfloat16)))[0]
    assert (outs.dtype, carry["h"].dtype, carry["c"].dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # Forget nothing, and add σ(−5.5) tanh(10) = 0.0041 at each of 100 steps.
    still = {"W": jnp.zeros((4, IN)), "U": jnp.zeros((4, 1)), "b": jnp.array([-5.5, 20.0, 10.0, 0.0])}
    begun = {"h": jnp.zeros(1, jnp.bfloat16), "c": jnp.full(1, 2.0)}
    (_, carry), _ = net.forward(cast(still, jnp.bfloat16), Piece(jnp.zeros((100, IN), jnp.bfloat16), begun))
    np.testing.assert_allclose(carry["c"], 2 + 100 * jax.nn.sigmoid(-5.5), rtol=1e-4)


def test_parameters_begin_gate_by_gate():
    xs = jax.ShapeDtypeStruct((TIME, 200), jnp.float32)
    params = jax.jit(lambda: lstm(100, init="glorot_uniform").init(jax.random.key(0), xs))()
    assert {k: p.shape for k, p in params.items()} == {"W": (400, 200), "U": (400, 100), "b": (400,)}
    np.testing.assert_allclose(params["W"].reshape(4, -1).var(1), 2 / 300, rtol=0.05)
    for U in params["U"].reshape(4, 100, 100):
        np.testing.assert_allclose(U.T @ U, np.eye(100), atol=1e-5)
    np.testing.assert_array_equal(params["b"].reshape(4, 100).mean(1), [0, 1, 0, 0])


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("net", [lstm(8), jaxnet.serial(gru(8), jaxnet.layer_norm())], ids=["lstm", "gru_norm"])
def test_a_sharded_batch_has_no_more_exchanges_than_autodiffs(net, kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType[kind],))
    head = jaxnet.serial(net, jaxnet.per_position(jaxnet.dense(5)))
    xs, ys = normal(1, (16, 3, 6)), jnp.zeros((16, 3), jnp.int32)
    params = random_like(1, jax.eval_shape(head.init, jax.random.key(0), xs[0]))
    gradient = jaxnet.value_and_grad(head, jaxnet.softmax_cross_entropy)
    expected = jax.jit(gradient)(params, xs, ys)
    with jax.set_mesh(mesh):
        whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
        sharded = jax.device_put(params, whole), *jax.device_put((xs, ys), split)
        ours, theirs = (jax.jit(f).lower(*sharded).compile() for f in (gradient, by_autodiff(head)))
        assert exchanges(ours) <= exchanges(theirs)  # autodiff sums over the devices in the scan too
        assert set(exchanges(ours)) == {"all-reduce"}
        got = jax.device_get(ours(*sharded))
    assert_agree(got, expected, 1e-5)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (jnp.zeros(3), r"a sequence of vectors, \(time, in\), got shape \(3,\)"),
        (jnp.zeros((TIME, 4)), "takes W of shape"),
        (Piece(jnp.zeros((TIME, IN)), {"h": jnp.zeros(3)}), "a carry of shapes .*'c': .* hand on the one it gave"),
        (Piece(jnp.zeros((TIME, IN)), length=jnp.zeros(2, int)), "one whole number"),
        (Piece(jnp.zeros((TIME, IN)), length=2.5), "one whole number"),
        (jnp.zeros((0, IN)), r"at least one step, got shape \(0, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(x, says):
    params, _, _ = given(NETS["lstm"], jnp.float32)
    with pytest.raises(ShapeError, match=f"lstm 3 .*{says}"):
        NETS["lstm"].forward(params, x)


def test_options_that_there_are_none_of_are_refused(unchecked):
    with pytest.raises(ValueError, match="tanh or relu"):
        rnn(3, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a whole number of at least 1, got 0"):
        gru(0)
