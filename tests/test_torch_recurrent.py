"""Norms and recurrences against torch's: values and gradients, the weights copied over."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import bidirectional, group_norm, gru, layer_norm, lstm, rms_norm, rnn
from jaxnet.layers import Piece
from tests.agreement import assert_agree, normal, random_like

torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
pytestmark = pytest.mark.peers

BATCH, TIME, IN, UNITS = 3, 4, 2, 3


def to_torch(array) -> torch.Tensor:
    return torch.tensor(np.asarray(array), requires_grad=True)


def contracted(net, params, xs, d_outs):
    """Outputs, gradients summed over the batch, and each dx."""

    def one(x, d_out):
        out, saved = net.forward(params, x)
        dx, grads = net.backward(params, saved, d_out, jaxnet.total)
        return out, grads, dx

    return jax.jit(jax.vmap(one, out_axes=(0, None, 0)))(xs, d_outs)


def given(net, shape):
    """Random parameters, a batch and cotangents of the outputs, in float64."""
    x = jax.ShapeDtypeStruct(shape, jnp.float64)
    params = random_like(1, jax.eval_shape(net.init, jax.random.key(0), x))
    out = jax.eval_shape(lambda p, x: net.forward(p, x)[0], params, x)
    return params, normal(2, (BATCH, *shape)).astype(x.dtype), normal(3, (BATCH, *out.shape)).astype(x.dtype)


NORMS = {
    "layer_norm": (layer_norm(1e-3), (TIME, 6), lambda x, p: torch.nn.functional.layer_norm(x, (6,), *p, 1e-3)),
    "rms_norm": (rms_norm(1e-3), (TIME, 6), lambda x, p: torch.nn.functional.rms_norm(x, (6,), *p, 1e-3)),
    "group_norm": (
        group_norm(3, epsilon=1e-3),
        (2, 4, 6),
        lambda x, p: torch.nn.functional.group_norm(x.movedim(-1, 1), 3, *p, 1e-3).movedim(1, -1),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name, x64):
    net, shape, of = NORMS[name]
    params, xs, d_outs = given(net, shape)
    names = ["gamma", "beta"][: len(params)]
    theirs, x = [to_torch(params[n]) for n in names], to_torch(xs)
    out = of(x, theirs)
    out.backward(torch.tensor(np.asarray(d_outs)))
    expected = (out, {n: t.grad for n, t in zip(names, theirs, strict=True)}, x.grad)
    assert_agree(contracted(net, params, xs, d_outs), jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), expected))


def packed(params, kind: str) -> list:
    """A direction's parameters as torch has them: W, U, b of W x, b of U h."""
    b_U = np.zeros(params["b"].shape)
    if kind == "gru":
        b_U[2 * UNITS :] = params["c"]
    return [to_torch(t) for t in (params["W"], params["U"], params["b"], b_U)]


def unpacked(theirs: list, kind: str) -> dict:
    """torch's gradients with the structure of ours."""
    dW, dU, db, db_U = (t.grad for t in theirs)
    grads = {"W": dW, "U": dU, "b": db}
    return grads | {"c": db_U[2 * UNITS :]} if kind == "gru" else grads


KINDS = {
    "rnn": (rnn, torch.nn.RNN, {}),
    "rnn_relu": (partial(rnn, activation="relu"), torch.nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (lstm, torch.nn.LSTM, {}),
    "gru": (gru, torch.nn.GRU, {}),
}


@pytest.mark.parametrize("both_ways", [False, True], ids=["ahead", "bidirectional"])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrences(kind, both_ways, x64):
    ours, theirs, options = KINDS[kind]
    net = bidirectional(ours(UNITS), ours(UNITS, reverse=True)) if both_ways else ours(UNITS)
    params, xs, d_outs = given(net, (TIME, IN))
    directions = params if both_ways else (params,)
    peer = theirs(IN, UNITS, batch_first=True, bidirectional=both_ways, dtype=torch.float64, **options)
    weights = [packed(p, kind) for p in directions]
    x = to_torch(xs)
    names = [name for name, _ in peer.named_parameters()]
    state = dict(zip(names, [t for direction in weights for t in direction], strict=True))
    out, _ = torch.func.functional_call(peer, state, (x,))
    out.backward(torch.tensor(np.asarray(d_outs)))
    grads = [unpacked(w, kind) for w in weights]
    expected = (out, tuple(grads) if both_ways else grads[0], x.grad)
    assert_agree(contracted(net, params, xs, d_outs), jax.tree.map(lambda t: jnp.asarray(t.detach().numpy()), expected))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_lengths_and_the_last_state(kind, x64):
    """Against torch's packed sequences, both ways, each direction from a state of its own."""
    ours, theirs, _ = KINDS[kind]
    net = bidirectional(ours(UNITS), ours(UNITS, reverse=True))
    params, xs, _ = given(net, (TIME, IN))
    lengths = [4, 2, 1]
    begun = {name: normal(5, (2, BATCH, UNITS)).astype(xs.dtype) for name in ("hc" if kind == "lstm" else "h")}
    carry = tuple({name: t[i] for name, t in begun.items()} for i in range(2))
    outs, last = jax.jit(jax.vmap(lambda piece: net.forward(params, piece)[0]))(Piece(xs, carry, jnp.array(lengths)))

    peer = theirs(IN, UNITS, batch_first=True, bidirectional=True, dtype=torch.float64)
    with torch.no_grad():
        for mine, parameter in zip(
            [t for p in params for t in packed(p, kind)], (p for _, p in peer.named_parameters()), strict=True
        ):
            parameter.copy_(mine)
        sequences = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(np.asarray(xs)), lengths, batch_first=True)
        h, *c = (torch.tensor(np.asarray(t)) for t in begun.values())
        packed_out, peer_last = peer(sequences, (h, *c) if c else h)
        expected = torch.nn.utils.rnn.pad_packed_sequence(packed_out, batch_first=True)[0]
    np.testing.assert_allclose(outs, expected, atol=1e-12)
    for mine, their in zip(begun, peer_last if c else (peer_last,), strict=True):
        np.testing.assert_allclose(jnp.stack([state[mine] for state in last]), their, atol=1e-12)
