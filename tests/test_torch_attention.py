"""Embeddings, attention and token losses against torch's, values and gradients, its weights copied over."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet import attention, embedding, ignoring, softmax_cross_entropy, total, vjp
from jaxnet.heads import linear_cross_entropy
from jaxnet.layers import dot_product_attention

torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
pytestmark = pytest.mark.peers

TIME, WIDTH, HEADS = 5, 8, 4
RNG = np.random.default_rng(0)


def numbers(*shape) -> torch.Tensor:
    """Normal numbers in float64 that ask for their gradient."""
    return torch.tensor(RNG.standard_normal(shape), requires_grad=True)


def ours(t: torch.Tensor):
    """A tensor as an array."""
    return jnp.asarray(t.detach().numpy())


def assert_close(mine, theirs):
    """Equal to float64's noise."""
    np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=0, atol=1e-12)


def test_embedding(x64):
    theirs = torch.nn.Embedding(7, 3, dtype=torch.float64)
    tokens, d_out = torch.tensor([[1, 0, 1], [6, 1, 2]]), numbers(2, 3, 3)
    out = theirs(tokens)
    out.backward(d_out)
    mine, pullback = vjp(embedding(7, 3))({"W": ours(theirs.weight)}, ours(tokens))
    assert_close(mine, out)
    assert_close(pullback(ours(d_out))[0]["W"], theirs.weight.grad)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_multihead_attention(causal, x64):
    theirs = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
    x, d_out = numbers(TIME, WIDTH), numbers(TIME, WIDTH)
    hidden = torch.ones(TIME, TIME, dtype=torch.bool).triu(1) if causal else None
    out, _ = theirs(x, x, x, attn_mask=hidden, need_weights=False)
    out.backward(d_out)

    def named(W, b, W_o, b_o):
        """torch keeps W_q, W_k and W_v in one matrix."""
        parts = zip("qkv", np.split(ours(W), 3), np.split(ours(b), 3), strict=True)
        params = {f"{kind}_{p}": t for p, W, b in parts for kind, t in (("W", W), ("b", b))}
        return params | {"W_o": ours(W_o), "b_o": ours(b_o)}

    projections = theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias
    mine, pullback = vjp(attention(HEADS, causal=causal, bias=True))(named(*projections), ours(x))
    grads, dx = pullback(ours(d_out))
    assert_close(mine, out)
    assert_close(dx, x.grad)
    for name, grad in named(*(t.grad for t in projections)).items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=1e-12, err_msg=name)


NEAR = np.abs(np.subtract.outer(np.arange(TIME), np.arange(TIME))) < 2


@pytest.mark.parametrize(
    ("causal", "mask", "kv_heads"),
    [(True, None, HEADS), (False, None, 2), (True, None, 1), (False, NEAR, HEADS)],
    ids=["causal", "grouped", "causal-one", "masked"],
)
def test_scaled_dot_product_attention(causal, mask, kv_heads, x64):
    q, k, v, d_out = (numbers(TIME, heads, 3) for heads in (HEADS, kv_heads, kv_heads, HEADS))
    heads_first = (t.transpose(0, 1)[None] for t in (q, k, v))
    seen = None if mask is None else torch.tensor(mask)
    out = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=seen, is_causal=causal, enable_gqa=kv_heads < HEADS
    )[0].transpose(0, 1)
    out.backward(d_out)
    layer = dot_product_attention(causal=causal, mask=mask)
    mine, pullback = vjp(layer)((), tuple(ours(t) for t in (q, k, v)))
    assert_close(mine, out)
    for dx, t in zip(pullback(ours(d_out))[1], (q, k, v), strict=True):
        assert_close(dx, t.grad)


def test_cross_entropy_of_tokens_of_which_some_do_not_count(x64):
    """The mean over those that count; with the head whose logits they are, and without."""
    W, x = numbers(7, WIDTH), numbers(TIME, WIDTH)
    y = torch.tensor([2, -1, 6, 0, -1])
    z = x @ W.T
    z.retain_grad()
    cost = torch.nn.functional.cross_entropy(z, y, ignore_index=-1)
    cost.backward()
    weight = 1 / 3
    mine, delta, _ = ignoring(softmax_cross_entropy, -1).turn((), ours(z), ours(y), weight, total)
    assert_close(mine, cost)
    assert_close(delta, z.grad)
    mine, dx, grads = ignoring(linear_cross_entropy(7, chunks=2), -1).turn(
        {"W": ours(W)}, ours(x), ours(y), weight, total
    )
    assert_close(mine, cost)
    assert_close(dx, x.grad)
    assert_close(grads["W"], W.grad)
