"""Every layer, loss, combinator and model of the core, as problems that every implementation is held against.

A problem is one network (or loss) at one shape of an example and one size of batch.
"""

import re
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import jaxnet
from jaxnet import (
    attention,
    average_pool,
    conv1d,
    conv2d,
    dense,
    dropout,
    embedding,
    global_average_pool,
    global_max_pool,
    max_pool,
    parallel,
    per_position,
    remat,
    repeat,
    residual,
    serial,
    sigmoid,
    softmax,
    tanh,
    tied,
)
from jaxnet.layer import leaf, no_params
from jaxnet.layers import ACTIVATIONS, conv_transpose1d, conv_transpose2d, positional_embedding
from jaxnet.models import cnn, gated, lenet5, pre_norm, residual_cnn
from jaxnet.registry import example, makers
from tests.agreement import cast, integers, normal, random_like, uniform


@dataclass(frozen=True)
class Problem:
    """A network, the shape of one example, the size of a batch, whether it is run in training mode, what x may be."""

    id: str
    net: jaxnet.Layer
    shape: tuple[int, ...]
    batch: int = 3
    train: bool = False
    tokens: int | None = None  # inputs are whole numbers below this

    def key(self):
        """The key of the problem's randomness in training mode; none in evaluation."""
        return jax.random.key(7) if self.train else None

    def keys(self):
        """A key for each example, split as the library splits it."""
        return jax.random.split(jax.random.key(7), self.batch) if self.train else None

    def inputs(self, dtype=jnp.float32):
        """Random parameters (biases too), a batch, and a cotangent for each output."""
        x = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        params = random_like(1, jax.eval_shape(self.net.init, jax.random.key(0), x))
        out = jax.eval_shape(lambda p, x, k: self.net.forward(p, x, k, self.train)[0], params, x, self.key())
        shape = (self.batch, *self.shape)
        xs = normal(2, shape) if self.tokens is None else integers(2, shape, self.tokens).astype(jnp.float32)
        return cast((params, xs, normal(3, (self.batch, *out.shape))), dtype)


def several(
    name: str, net: jaxnet.Layer, *shapes: tuple[int, ...], train: bool = False, tokens: int | None = None
) -> list[Problem]:
    """A problem for each shape: the last one with a batch of one, the others of three."""
    batches = [3] * (len(shapes) - 1) + [1]
    return [
        Problem(f"{name}-{'x'.join(map(str, shape)) or 'scalar'}-batch{batch}", net, shape, batch, train, tokens)
        for shape, batch in zip(shapes, batches, strict=True)
    ]


def block(width: int) -> jaxnet.Layer:
    """tanh(W x + b), for blocks that keep the width."""
    return serial(dense(width), tanh)


ids = leaf("ids", no_params, lambda _, x, key=None, train=False: (x.astype(jnp.int32), ()), lambda _, saved, d: (d, ()))
"""Whole numbers as integers: so what takes token ids has an x and a dx as all other problems have."""


def as_llama(vocab: int) -> jaxnet.Layer:
    """A GPT with all of LLaMA's options."""
    return jaxnet.models.gpt(
        vocab, 8, 4, 2, 9, hidden=6, norm="rms_norm", activation="silu", gate=True, rotary=True, kv_heads=2, bias=False
    )


def small_gpt2(vocab: int) -> jaxnet.Layer:
    """A GPT-2 with dropout, its blocks run again in backward."""
    return jaxnet.models.gpt2(vocab=vocab, positions=4, width=4, heads=2, depth=2, drop_rate=0.3, remat=True)


LAYERS = [
    *several("dense", dense(4), (3,), (1,), (3,)),
    *several("dense_one_unit", dense(1), (3,), (3,)),
    *several("dense_without_bias", dense(4, bias=False), (3,), (3,)),
    *[p for name, g in ACTIVATIONS.items() for p in several(name, g, (5,), (2, 3), (), (5,))],
    *[p for g in (jaxnet.leaky_relu(0.2), jaxnet.elu(0.7)) for p in several(g.name, g, (5,), (2, 3), (5,))],
    *several("identity", jaxnet.identity, (5,), (5,)),
    *several("softmax", softmax, (5,), (2, 3), (1,), (5,)),
    *several("reshape", jaxnet.reshape(3, -1), (6,), (2, 3), (6,)),
    *several("flatten", jaxnet.flatten(), (2, 3), (2, 1, 3), (), (2, 3)),
    *several("dropout_training", dropout(0.4), (5,), (2, 3), (5,), train=True),
    *several("dropout_evaluation", dropout(0.4), (5,), (5,)),
    *several("dropout_of_rate_0", dropout(0.0), (5,), (5,), train=True),
    *several("layer_norm", jaxnet.layer_norm(), (5,), (2, 3), (2, 1, 4), (5,)),
    *several("layer_norm_without_bias", jaxnet.layer_norm(1e-2, bias=False), (5,)),
    *several("layer_norm_at_each_position", per_position(jaxnet.layer_norm()), (2, 3)),
    *several("rms_norm", jaxnet.rms_norm(), (5,), (2, 3), (5,)),
    *several("group_norm", jaxnet.group_norm(2), (3, 2, 6), (6,), (3, 6)),
    *several("group_norm_of_one", jaxnet.group_norm(1), (3, 4)),
    *several("rnn", jaxnet.rnn(4), (3, 2), (1, 2)),
    *several("rnn_relu_reverse", jaxnet.rnn(4, activation="relu", reverse=True), (3, 2)),
    *several("lstm", jaxnet.lstm(3), (4, 2), (1, 2)),
    *several("lstm_reverse", jaxnet.lstm(3, reverse=True), (4, 2)),
    *several("gru", jaxnet.gru(3), (4, 2), (1, 2)),
    *several("gru_reverse", jaxnet.gru(3, reverse=True), (4, 2)),
    *several("recurrences_repeated", repeat(remat(serial(jaxnet.gru(3), jaxnet.lstm(3))), 2), (3, 3)),
    *several("per_position_rnn", per_position(jaxnet.rnn(3)), (2, 3, 2)),
    *several("norms_repeated", repeat(remat(serial(jaxnet.rms_norm(), jaxnet.layer_norm())), 2), (2, 4)),
]

IMAGE_LAYERS = [
    # 10×10 positions: a loop over the examples. The others are so small that several are taken at once.
    *several("conv2d", conv2d(3, 3), (12, 12, 2)),
    *several("conv2d_of_one_channel", conv2d(2, 3, padding="SAME"), (4, 5, 1), (4, 5, 1)),
    *several("conv2d_strided", conv2d(2, (3, 2), stride=(2, 3), padding="SAME", dilation=(1, 2)), (7, 8, 2), (7, 8, 2)),
    *several("conv2d_groups", conv2d(4, 3, stride=2, padding=((2, 0), (1, 3)), groups=2), (6, 5, 4)),
    *several("conv2d_depthwise", conv2d(6, 3, padding=1, groups=3, bias=False), (4, 5, 3)),
    *several("conv1d", conv1d(3, 3, dilation=2, padding=((4, 0),)), (6, 2), (6, 2)),
    *several("conv_transpose2d", conv_transpose2d(3, (3, 2), stride=2), (3, 4, 2), (3, 4, 2)),
    *several("conv_transpose2d_groups", conv_transpose2d(4, 3, stride=(2, 4), padding="SAME", groups=2), (3, 2, 6)),
    *several("conv_transpose1d", conv_transpose1d(3, 4, stride=3, dilation=2, padding=((1, 2),), bias=False), (4, 2)),
    *several("max_pool", max_pool(2), (4, 5, 2), (5, 3), (4, 5, 2)),
    *several("max_pool_overlapping", max_pool((3, 2), stride=(2, 1), padding="SAME"), (5, 4, 2)),
    *several("average_pool", average_pool(2), (4, 5, 2), (4, 5, 2)),
    *several("average_pool_padded", average_pool(3, stride=2, padding=((1, 2), (0, 1))), (6, 4, 2)),
    *several("global_max_pool", global_max_pool(), (3, 2, 2)),
    *several("global_average_pool", global_average_pool(), (3, 2, 2)),
    *several("repeat_of_conv2d", repeat(residual(serial(conv2d(2, 3, padding="SAME"), tanh)), 2), (4, 3, 2)),
    *several("per_position_of_conv2d", per_position(remat(conv2d(2, 2))), (2, 3, 4, 1)),
    *several("tied_conv1d", tied(conv1d(2, 2), tanh, conv1d(2, 2), where=(0, 2)), (5, 2)),
]

MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1]], bool)

SEQUENCE_LAYERS = [
    *several("embedding", serial(ids, embedding(5, 3)), (2, 3), (), tokens=5),
    *several("embedding_of_few_tokens", serial(ids, embedding(50, 3)), (4,), tokens=2),  # ids stand there twice
    *several("positional_embedding", positional_embedding(4), (3, 2)),
    *several("sinusoidal_positions", jaxnet.layers.sinusoidal_positions, (3, 4)),
    *several("rotary", jaxnet.layers.rotary(), (3, 2, 4)),
    *several("attention", attention(2), (5, 4), (1, 4)),
    *several("attention_full_with_biases", attention(3, causal=False, bias=True), (4, 6)),
    *several("attention_grouped_rotary", attention(4, kv_heads=2, rotary=True, bias=True), (4, 8)),
    *several("attention_masked", attention(2, causal=False, mask=MASK), (4, 4)),
    *several("attention_masked_causal", attention(2, kv_heads=1, mask=MASK | np.eye(4, dtype=bool)), (4, 4)),
    *several("pre_norm_attention_repeated", repeat(remat(pre_norm(attention(2))), 2), (3, 4)),
    *several("per_position_attention", per_position(attention(1)), (2, 3, 2)),
    *several("gated", gated(5, 2, activation="gelu"), (3,)),
    *several("gated_at_each_position", repeat(per_position(pre_norm(gated(4, 3, bias=True))), 2), (2, 3)),
    *several("parallel_product", parallel(dense(4), block(4), sigmoid, join="product"), (4,)),
    *several(
        "embedding_tied_to_head",
        serial(ids, tied(embedding(5, 4), attention(2), per_position(dense(5, bias=False)), where=(0, 2))),
        (4,), tokens=5,
    ),
]  # fmt: skip

COMBINATORS = [
    *several("serial", serial(dense(4), sigmoid, dense(2)), (3,), (3,)),
    *several("serial_of_none", serial(), (3,), (3,)),
    *several("residual", residual(block(3)), (3,), (3,)),
    *several("parallel_sum", parallel(dense(4), block(4)), (3,), (3,)),
    *several("parallel_concatenate", parallel(dense(2), jaxnet.identity, dense(3), join="concatenate"), (3,), (3,)),
    *several("bidirectional", jaxnet.bidirectional(jaxnet.rnn(2), jaxnet.rnn(3, reverse=True)), (3, 2)),
    *several("per_position", per_position(dense(4)), (5, 3), (1, 3), (5, 3)),
    *several("per_position_twice", per_position(per_position(block(4))), (2, 5, 3), (2, 5, 3)),
    *several("per_position_of_mixed", per_position(residual(serial(dense(4), softmax, dense(3)))), (5, 3), (5, 3)),
    *several("per_position_dropout", per_position(serial(dense(4), dropout(0.5))), (5, 3), (5, 3), train=True),
    *several("repeat", repeat(block(3), 4), (3,), (3,)),
    *several("repeat_once", repeat(block(3), 1), (3,)),
    *several("repeat_dropout", repeat(serial(dense(3), dropout(0.5)), 3), (3,), (3,), train=True),
    *several("repeat_of_repeat", repeat(residual(repeat(block(3), 2)), 2), (3,), (3,)),
    *several("repeat_of_per_position", repeat(per_position(block(3)), 3), (5, 3), (5, 3)),
    *several("per_position_of_repeat", per_position(repeat(block(3), 3)), (5, 3), (5, 3)),
    *several("remat", remat(serial(dense(4), sigmoid)), (3,), (3,)),
    *several("remat_dropout", remat(serial(dense(4), dropout(0.5), sigmoid)), (3,), (3,), train=True),
    *several("repeat_of_remat", repeat(remat(residual(block(3))), 3), (3,), (3,)),
    *several("remat_of_repeat", remat(repeat(block(3), 3)), (3,), (3,)),
    *several("tied", tied(dense(3), tanh, dense(3), where=(0, 2)), (3,), (3,)),
    *several("tied_thrice", tied(dense(3), tanh, dense(3), dense(3, bias=False), where=(3, 0, 2)), (3,), (3,)),
    *several("tied_bias", tied(dense(4), tanh, dense(4), share="b", where=(0, 2)), (3,), (3,)),
    *several("tied_sequence", tied(per_position(dense(3)), tanh, per_position(dense(3)), where=(0, 2)), (5, 3), (5, 3)),
    *several("per_position_of_tied", per_position(tied(dense(3), tanh, dense(3), where=(0, 2))), (5, 3), (5, 3)),
    *several("repeat_of_tied", repeat(tied(dense(3), tanh, dense(3), where=(0, 2)), 2), (3,), (3,)),
]

MODELS = [
    *several("mlp", jaxnet.models.mlp([4, 4, 2], activation="tanh", out="sigmoid"), (3,), (3,)),
    *several("mlp_dropout", jaxnet.models.mlp([4, 2], activation="silu", drop_rate=0.5), (3,), (3,), train=True),
    *several("residual_mlp", jaxnet.models.residual_mlp(4, 3, 2, activation="gelu"), (3,), (3,)),
]

IMAGE_MODELS = [
    *several("lenet5", lenet5(3, pool="max"), (28, 28, 1)),
    *several("cnn", cnn([2, 3], [4], 2, kernel=2, activation="tanh", drop_rate=0.3), (7, 7, 1), train=True),
    *several("residual_cnn", residual_cnn([2, 4], 1, 3, activation="tanh"), (5, 4, 1)),
]

LANGUAGE_MODELS = [
    *several("gpt", serial(ids, jaxnet.models.gpt(5, 4, 2, 2, 4)), (3,), tokens=5),
    *several("gpt_as_llama", serial(ids, as_llama(5)), (3,), tokens=5),
    *several("gpt2", serial(ids, small_gpt2(5)), (4,), train=True, tokens=5),
    *several("char_lstm", serial(ids, jaxnet.models.char_lstm(5, 3, 2)), (3,), tokens=5),
]

NETWORKS = LAYERS + COMBINATORS + MODELS


def of_registry() -> list[Problem]:
    """The examples of every layer and model in the registry: so a new one is held against autodiff by its decorator."""
    found = []
    for entry in makers("layer", "model").values():
        for call, inputs in entry.examples.items():
            made = example(entry, call)
            batched = not isinstance(made, jaxnet.Layer)  # a model comes with a loss, and a batch
            net = made[0] if batched else made
            [(dtype, shape, below)] = re.findall(r"^(\w+)\[([\d,]*)\](?:<(\d+))?", inputs[0])
            sizes = tuple(int(size) for size in shape.split(",") if size)[1 if batched else 0 :]
            tokens = int(below) if dtype == "int32" else None
            found.append(Problem(call, net if tokens is None else serial(ids, net), sizes, tokens=tokens))
    return found


def makers_in(net: jaxnet.Layer) -> set[str]:
    """The makers of a network and of all that stands in it."""
    return set().union({made.maker for made in [net.made] if made}, *map(makers_in, net.parts))


WRITTEN = LAYERS + IMAGE_LAYERS + SEQUENCE_LAYERS + COMBINATORS + MODELS + IMAGE_MODELS + LANGUAGE_MODELS
HELD = set().union(*(makers_in(problem.net) for problem in WRITTEN))
REGISTERED = [
    problem
    for problem in of_registry()
    # batch_norm couples the examples; feedback gives another dx than autodiff, as it should
    if not makers_in(problem.net) <= HELD and not re.search("batch_norm|feedback", problem.id)
]
"""The examples of the makers that no problem above has: a new layer is held against autodiff by its decorator."""

LOSSES = {name: entry() for name, entry in makers("loss").items() if entry.configs}
"""The losses of outputs and targets, by name."""


@dataclass(frozen=True)
class LossProblem:
    """A loss, the shape of the network's output for one example, and what its target is."""

    id: str
    loss: jaxnet.Loss
    shape: tuple[int, ...]
    target: str  # "index", "one_hot", "values"
    batch: int = 3
    ignored: bool = field(default=False)

    def inputs(self, dtype=jnp.float32):
        """Outputs of a network (probabilities where the loss takes such), targets, a weight for each example."""
        shape = (self.batch, *self.shape)
        probabilities = self.loss.name == "binary_cross_entropy"
        xs = uniform(4, shape, 0.05, 0.95) if probabilities else normal(4, shape, 2.0)
        return cast((xs, targets(self), uniform(5, (self.batch,), 0.5, 2.0)), dtype)


def targets(problem: LossProblem):
    """Class indices, the same as one-hot arrays, or any values in [0, 1]; the first term of each ignored if asked."""
    if problem.target == "values":
        return uniform(6, (problem.batch, *problem.shape))
    ys = integers(6, (problem.batch, *problem.shape[:-1]), problem.shape[-1])
    if problem.ignored:
        ys = ys.at[:, 0].set(-1)
    return jax.nn.one_hot(ys, problem.shape[-1]) if problem.target == "one_hot" else ys


def _losses():
    for name, loss in {**LOSSES, "huber_0.3": jaxnet.losses.huber(0.3)}.items():
        yield LossProblem(f"{name}-5-index", loss, (5,), "index")
        yield LossProblem(f"{name}-5-one_hot-batch1", loss, (5,), "one_hot", batch=1)
        yield LossProblem(f"{name}-2x3-index_ignored", jaxnet.ignoring(loss, -1), (2, 3), "index", ignored=True)
        if name != "multiclass_hinge":  # its target is a class
            yield LossProblem(f"{name}-5-values", loss, (5,), "values")
            yield LossProblem(f"{name}-2x3-values-batch1", loss, (2, 3), "values", batch=1)


LOSS_PROBLEMS = list(_losses())
