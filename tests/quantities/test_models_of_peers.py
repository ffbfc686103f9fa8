"""Readings of models of Equinox and Flax (linen and NNX) as they stand, against `vmap(grad)` in float64."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxnet import squared_norm
from jaxnet.quantities.sinks import coverage, read
from tests.agreement import integers, normal
from tests.quantities.test_sinks import check_against_vmap_of_grad, in_float64, promotion_of_other_people  # noqa: F401 - for every test here
from tests.runs import ROOT

eqx = pytest.importorskip("equinox", reason="equinox comes with the extra `peers`")
nn = pytest.importorskip("flax.linen", reason="flax comes with the extra `peers`")
nnx = pytest.importorskip("flax.nnx", reason="flax comes with the extra `peers`")
pytestmark = pytest.mark.peers

KEY = jax.random.key(0)
VECTORS, IMAGES, TOKENS = normal(1, (4, 6)), normal(2, (4, 8, 8, 2)), integers(3, (4, 5), 7)
CLASSES = integers(4, (4,), 3)


def cross_entropy(z, y):
    return -jax.nn.log_softmax(z)[..., y].mean()


def next_token(logits, tokens):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=1).mean()


# ------------------------------------------------------------------------------------------------------------- equinox


class EquinoxCNN(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self):
        self.first = eqx.nn.Conv2d(2, 4, 3, padding=1, key=KEY)
        self.norm = eqx.nn.GroupNorm(2, 4)
        self.second = eqx.nn.Conv2d(4, 4, 3, stride=2, groups=2, key=KEY)
        self.head = eqx.nn.Linear(36, 3, key=KEY)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.first(jnp.moveaxis(x, -1, 0))))
        return self.head(jax.nn.gelu(self.second(x)).reshape(-1))


class EquinoxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norms: tuple
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        self.attention = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=key)
        self.norms = eqx.nn.LayerNorm(8), eqx.nn.RMSNorm(8)
        self.up, self.down = eqx.nn.Linear(8, 12, key=key), eqx.nn.Linear(12, 8, key=key)

    def __call__(self, x):
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
        return x + jax.vmap(lambda h: self.down(jax.nn.silu(self.up(self.norms[1](h)))))(x)


class EquinoxTransformer(eqx.Module):
    """Blocks in a scan, run again in the backward pass; the embedding shared with the head."""

    embedding: eqx.nn.Shared
    blocks: EquinoxBlock
    positions: jax.Array

    def __init__(self):
        embedding, head = eqx.nn.Embedding(7, 8, key=KEY), eqx.nn.Linear(8, 7, use_bias=False, key=KEY)
        self.embedding = eqx.nn.Shared((embedding, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)
        self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(KEY, 3))
        self.positions = jax.random.normal(KEY, (5, 8))

    def __call__(self, tokens):
        embedding, head = self.embedding()
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        block = jax.checkpoint(lambda x, own: (eqx.combine(own, rest)(x), None))
        x, _ = jax.lax.scan(block, jax.vmap(embedding)(tokens) + self.positions, arrays)
        return jax.vmap(head)(x)


def equinox_mlp(model, x, y):
    return cross_entropy(model(x), y)


def equinox_transformer(model, tokens):
    return next_token(model(tokens), tokens)


# ---------------------------------------------------------------------------------------------------------------- flax


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(5)(x)))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x)))
        x = nn.avg_pool(nn.Conv(4, (2, 3), strides=2, feature_group_count=2, padding="VALID")(x), (2, 2))
        return nn.Dense(3)(x.reshape(-1))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(jnp.ones(len(x)))
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, mask=mask)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.RMSNorm()(x)))), None


class LinenTransformer(nn.Module):
    """Blocks in `nn.scan` of `nn.remat`, the head tied to the embedding."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 8)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(0.1), (5, 8))
        blocks = nn.scan(nn.remat(LinenBlock), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks()(x, None)
        return embed.attend(nn.LayerNorm()(x))


class NNXNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        self.head = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).reshape(-1))


class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.first, self.head = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.sigmoid(self.first(x)))


class NNXTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, dtype=jnp.float64, rngs=rngs)  # it computes in the dtype that it was made with
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for _ in range(2):  # one block, used twice
            x = x + self.attention(self.norm(x), mask=nnx.make_causal_mask(tokens))
            x = x + self.down(nnx.gelu(self.up(x)))
        return self.embed.attend(x)


def linen(model, example, of_output):
    """The loss of a linen module and its parameters."""
    return lambda params, x, *y: of_output(model.apply(params, x), *y or (x,)), model.init(KEY, example)


def of_nnx(make, of_output):
    """The loss of an NNX module and its parameters."""
    graph, params, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    return lambda params, x, *y: of_output(nnx.merge(graph, params, rest)(x), *y or (x,)), params


MODELS = {
    "equinox_mlp": lambda: (equinox_mlp, eqx.nn.MLP(6, 3, 5, 2, key=KEY), VECTORS, CLASSES),
    "equinox_cnn": lambda: (equinox_mlp, EquinoxCNN(), IMAGES, CLASSES),
    "equinox_transformer": lambda: (equinox_transformer, EquinoxTransformer(), TOKENS),
    "linen_mlp": lambda: (*linen(LinenMLP(), VECTORS[0], cross_entropy), VECTORS, CLASSES),
    "linen_cnn": lambda: (*linen(LinenCNN(), IMAGES[0], cross_entropy), IMAGES, CLASSES),
    "linen_transformer": lambda: (*linen(LinenTransformer(), TOKENS[0], next_token), TOKENS),
    "nnx_mlp": lambda: (*of_nnx(NNXMLP, cross_entropy), VECTORS, CLASSES),
    "nnx_cnn": lambda: (*of_nnx(NNXNetwork, cross_entropy), IMAGES, CLASSES),
    "nnx_transformer": lambda: (*of_nnx(NNXTransformer, next_token), TOKENS),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_as_it_stands(make, x64):
    loss, *arguments = make()
    params, *batch = in_float64(arguments)
    rows = coverage(loss)(params, *(t[0] for t in batch))
    assert [row.path for row in rows if not row.factors] == []
    assert sum(row.share for row in rows) == pytest.approx(1)
    check_against_vmap_of_grad(loss, params, *batch)


def test_the_example_of_the_page_runs():
    page = (ROOT / "docs" / "readings.md").read_text()
    [shown] = re.findall(r"^```py\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    names = {"jax": jax, "jnp": jnp, "read": read, "squared_norm": squared_norm, "key": KEY, "__name__": "page"}
    exec(compile(shown, "docs/readings.md", "exec"), names)
    assert {leaf.shape for leaf in jax.tree.leaves(names["norms"])} == {(8,)}
    kernel = names["factors"]["params"]["Dense_0"]["kernel"]
    assert (kernel.A.shape, kernel.B.shape) == ((32, 32), (96, 96))
    dense = names["private"]["params"]["Dense_0"]["kernel"]
    assert 0 < jnp.linalg.norm(dense) <= 8


def test_batch_norm_is_refused():
    model, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, axis_name="batch", mode="batch")

    def loss(model, x):
        return model(x, state)[0].sum()

    with pytest.raises(ValueError, match="an example's own gradient must not depend on the other examples"):
        read(loss, squared_norm)(model, normal(1, (4, 3)))
