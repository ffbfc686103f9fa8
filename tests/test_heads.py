"""Heads fused with their loss: the numbers of the unfused pair in every reading, without its logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import (
    Layer,
    attention,
    backpropagate,
    deltas,
    dense,
    embedding,
    ignoring,
    initialize,
    pair,
    per_example,
    per_position,
    product,
    serial,
    softmax_cross_entropy,
    squared_norm,
    tied,
    total,
    value_and_grad,
)
from jaxnet.heads import fused_head, in_chunks, linear_cross_entropy
from jaxnet.training.low_precision import in_precision
from tests.agreement import assert_agree, cast, integers, random_like
from tests.test_attention import largest_array

VOCAB, WIDTH, TIME = 7, 4, 5
BODY = (embedding(VOCAB, WIDTH), attention(2))
cross_entropy = ignoring(softmax_cross_entropy, -1)
HEAD = per_position(dense(VOCAB, bias=False))
NETS = {
    "own": serial(*BODY, per_position(dense(VOCAB))),
    "tied": tied(*BODY, HEAD, where=(0, 2)),
    "nested": serial(BODY[0], serial(BODY[1], HEAD)),
}
READINGS = (total, product, squared_norm, pair(total, squared_norm), pair(total, product))


def batch(net: Layer, dtype=jnp.float64):
    """Parameters, ids, and targets of which some tokens do not count: a whole example's, and none of another's."""
    xs = integers(1, (3, TIME), VOCAB)
    ys = integers(2, (3, TIME), VOCAB).at[0, 1:3].set(-1).at[1].set(-1)
    params = random_like(3, jax.eval_shape(net.init, jax.random.key(0), xs[0]))
    return cast(params, dtype), xs, ys


@pytest.mark.parametrize("name", NETS)
def test_a_fused_head_reads_what_the_unfused_one_reads(name, x64):
    """2 chunks of 5 positions: the last one is filled up."""
    net = NETS[name]
    params, xs, ys = batch(net)
    fused = fused_head(net, cross_entropy, chunks=2)
    weights = jnp.linspace(0.5, 2.0, ys.size).reshape(ys.shape)

    def read(of, w):
        return [backpropagate(*of, reading)(params, xs, ys, weights=w) for reading in READINGS]

    ours, theirs = jax.jit(lambda w: (read(fused, w), read((net, cross_entropy), w)))(weights)
    assert_agree(ours, theirs)


def test_parameters_of_a_fused_network_are_the_networks():
    net = NETS["tied"]
    key, x = jax.random.key(0), jnp.zeros(TIME, jnp.int32)
    fused = fused_head(net, cross_entropy)
    assert_agree(initialize(*fused, key, x), net.init(key, x), 0)


@pytest.mark.parametrize("chunks", [1, 5, 8])
def test_a_loss_with_a_head_of_its_own(chunks, x64):
    """As a network that ends in that head, and the loss alone."""
    net, loss = serial(*BODY), ignoring(linear_cross_entropy(VOCAB, chunks=chunks, bias=True), -1)
    whole = NETS["own"]
    params, xs, ys = batch(whole)
    (*body, head) = params
    cost, (d_body, d_head) = jax.jit(value_and_grad(net, loss))((tuple(body), head), xs, ys)
    assert_agree((cost, (*d_body, d_head)), jax.jit(value_and_grad(whole, cross_entropy))(params, xs, ys))
    _, norms = per_example(net, loss, squared_norm)((tuple(body), head), xs, ys)
    assert norms[1]["W"].shape == (3,)


def test_a_tied_weights_gradients_are_read_as_the_error_passes(x64):
    """`total` of a tied network, in which no use waits for the others, is the sum that `product` gives."""
    net = NETS["tied"]
    params, xs, ys = batch(net)

    def read(params):
        return [backpropagate(net, cross_entropy, reading)(params, xs, ys)[1] for reading in (total, product)]

    whole, each = jax.jit(read)(params)
    assert_agree(whole, jax.tree.map(lambda g: g.sum(0), each))


def test_logits_are_never_whole():
    vocab, time, width = 512, 64, 8
    net = tied(embedding(vocab, width), per_position(dense(vocab, bias=False)), where=(0, 1))
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(time, jnp.int32))
    xs = jax.ShapeDtypeStruct((3, time), jnp.int32)

    def largest(*of):
        return largest_array(value_and_grad(*of), params, xs, xs)

    assert largest(*fused_head(net, chunks=8)) == 3 * time // 8 * vocab
    assert largest(net, cross_entropy) == 3 * time * vocab


def test_in_bfloat16_the_head_multiplies_in_it_and_its_gradient_is_not_rounded():
    net = in_precision(NETS["tied"], "bfloat16")
    params, xs, ys = batch(net, jnp.float32)
    ours = value_and_grad(*fused_head(net, cross_entropy, chunks=5))
    theirs = value_and_grad(net, cross_entropy)
    assert "bf16[15,7]" not in str(jax.make_jaxpr(ours)(params, xs, ys))
    assert "bf16[7,4]" in str(jax.make_jaxpr(ours)(params, xs, ys))
    assert_agree(jax.jit(ours)(params, xs, ys), jax.jit(theirs)(params, xs, ys), 1e-5)
    fused_first = value_and_grad(
        *((in_precision(n, "bfloat16"), loss) for n, loss in [fused_head(NETS["tied"], cross_entropy)]).__next__()
    )
    assert_agree(jax.jit(fused_first)(params, xs, ys), jax.jit(theirs)(params, xs, ys), 1e-5)


def test_one_term_a_sequence_of_one(x64):
    net = NETS["own"]
    params, xs, ys = batch(net)
    ours = value_and_grad(*fused_head(net, cross_entropy))(params, xs[:, :1], ys[:, :1])
    assert_agree(ours, value_and_grad(net, cross_entropy)(params, xs[:, :1], ys[:, :1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fused_head(serial(*BODY)), r"ends in a layer that works position by position, got attention\(2\)"),
        (lambda: fused_head(NETS["own"], chunks=0), "at least one chunk, got 0"),
        (lambda: fused_head(NETS["own"], linear_cross_entropy(3)), "has parameters of its own"),
        (lambda: in_chunks(HEAD, linear_cross_entropy(3)), "has parameters of its own"),
    ],
)
def test_what_cannot_be_fused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("y", [jnp.zeros((TIME, VOCAB)), jnp.zeros((), jnp.int32)], ids=["values", "one"])
def test_targets_that_are_no_tokens(y):
    loss = linear_cross_entropy(VOCAB)
    x = jnp.zeros((TIME, WIDTH))
    with pytest.raises(ValueError, match=r"class labels of shape \(5,\) for a sequence of shape \(5, 4\)"):
        loss.turn(loss.init(jax.random.key(0), x), x, y, 1.0, total)


def test_every_delta_can_be_read_still():
    net = NETS["tied"]
    params, xs, ys = batch(net, jnp.float32)
    _, ours = per_example(*fused_head(net, cross_entropy), deltas)(params, xs, ys)
    _, theirs = per_example(net, cross_entropy, deltas)(params, xs, ys)
    assert_agree(ours, theirs, 1e-6)
    assert np.shape(ours[2]) == (3, TIME, VOCAB)
