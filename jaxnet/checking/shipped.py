"""Everything that jaxnet ships, with inputs at which it is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

import jaxnet
from jaxnet import layers as leaf_layers
from jaxnet.checking.targets import Target
from jaxnet.combinators import COMBINATORS
from jaxnet.layer import Layer, leaf, no_params
from jaxnet.layers import ACTIVATIONS, Activation
from jaxnet.losses import LOSSES
from jaxnet.models import MODELS, cnn, lenet5, residual_cnn

VECTOR = "float32[6]"
LOOK_UPS = {"activation_named": ACTIVATIONS}  # functions that give a row of a table, each of whose rows is checked


THIRDS = leaf(
    "thirds",
    no_params,
    lambda params, x, key=None, train=False: (tuple(jnp.split(x, 3, axis=-1)), ()),
    lambda params, saved, d_outs: (jnp.concatenate(d_outs, axis=-1), ()),
)
"""The last axis cut into three: queries, keys and values of one array."""


def layers() -> dict[str, tuple[Any, str]]:
    """Layers and combinators beyond the tables, each with its input; the first word is the public name."""
    j = jaxnet
    small = j.serial(j.dense(6), j.tanh)
    return {
        "dense": (j.dense(4), VECTOR),
        "dense square": (j.dense(6), VECTOR),
        "dense batch": (j.dense(4), "float32[5,6]"),
        "conv1d": (j.conv1d(3, 3, stride=2, padding="SAME"), "float32[7,2]"),
        "conv2d": (j.conv2d(3, (3, 2), padding=1, dilation=(1, 2)), "float32[5,4,2]"),
        "conv2d depthwise": (j.conv2d(4, 2, stride=2, groups=2), "float32[4,5,2]"),
        "conv_transpose1d": (j.conv_transpose1d(3, 3, stride=2), "float32[4,2]"),
        "conv_transpose2d": (j.conv_transpose2d(2, 3, stride=2, padding="SAME", groups=2), "float32[3,2,4]"),
        "max_pool": (j.max_pool(2), "float32[4,5,2]"),
        "max_pool overlapping": (j.max_pool(3, stride=2, padding="SAME"), "float32[5,4,2]"),
        "average_pool": (j.average_pool(3, stride=2, padding="SAME"), "float32[5,4,2]"),
        "global_max_pool": (j.global_max_pool(), "float32[3,4,2]"),
        "global_average_pool": (j.global_average_pool(), "float32[3,4,2]"),
        "batch_norm": (j.serial(j.dense(4), j.batch_norm()), "float32[6,5]"),
        "dropout": (j.dropout(0.4), "float32[40]"),
        "flatten": (j.flatten(), "float32[3,4]"),
        "reshape": (j.reshape(3, 2), VECTOR),
        "elementwise": (j.elementwise(Activation("cube", lambda z: z**3, lambda z, a: 3 * z**2, "z")), VECTOR),
        "identity": (j.identity, VECTOR),
        "elu": (j.elu(0.7), VECTOR),
        "leaky_relu": (j.leaky_relu(0.2), VECTOR),
        "softmax": (j.softmax, "float32[3,6]"),
        "rnn": (j.rnn(4), "float32[5,6]"),
        "rnn relu": (j.rnn(4, activation="relu", reverse=True), "float32[5,6]"),
        "lstm": (j.lstm(4), "float32[5,6]"),
        "lstm reverse": (j.lstm(4, reverse=True), "float32[5,6]"),
        "gru": (j.gru(4), "float32[5,6]"),
        "gru reverse": (j.gru(4, reverse=True), "float32[5,6]"),
        "bidirectional": (j.bidirectional(j.gru(3), j.rnn(2, reverse=True)), "float32[5,6]"),
        "layer_norm": (j.layer_norm(), "float32[5,6]"),
        "layer_norm vector": (j.layer_norm(bias=False), VECTOR),
        "rms_norm": (j.rms_norm(), "float32[5,6]"),
        "group_norm": (j.group_norm(2), "float32[3,2,6]"),
        "embedding": (j.embedding(9, 4), "int32[5]<9"),
        "positional_embedding": (j.positional_embedding(7), "float32[5,6]"),
        "sinusoidal_positions": (j.sinusoidal_positions, "float32[5,6]"),
        "rotary": (j.rotary(), "float32[5,2,6]"),
        "attention": (j.attention(3, bias=True), "float32[5,6]"),
        "attention rotary": (j.attention(2, causal=False, kv_heads=1, rotary=True), "float32[5,8]"),
        "dot_product_attention": (j.serial(THIRDS, j.dot_product_attention()), "float32[5,2,24]"),
        "gated": (j.gated(8, 6), VECTOR),
        "pre_norm": (j.pre_norm(j.attention(2)), "float32[5,6]"),
        "serial": (j.serial(j.dense(5), j.sigmoid, j.dense(3)), VECTOR),
        "residual": (j.residual(small), VECTOR),
        "parallel": (j.parallel(small, j.dense(6)), VECTOR),
        "parallel product": (j.parallel(small, j.dense(6), join="product"), VECTOR),
        "parallel concatenate": (j.parallel(small, j.dense(2), join="concatenate"), VECTOR),
        "per_position": (j.per_position(j.serial(j.dense(4), j.relu)), "float32[5,6]"),
        "repeat": (j.repeat(j.residual(small), 3), VECTOR),
        "remat": (j.remat(small), VECTOR),
        "tied": (j.tied(j.dense(6), j.tanh, j.dense(6), where=(0, 2)), VECTOR),
    }


def models() -> dict[str, tuple[Any, str]]:
    """The models, with a loss and a batch."""
    j, batch, tokens = jaxnet, "float32[8,12], int32[8]<5", "int32[3,6]<11, int32[3,6]<11"
    return {
        "mlp": ((j.mlp([16, 16, 5]), j.softmax_cross_entropy), batch),
        "mlp sigmoid": ((j.mlp([9, 5], activation="sigmoid", out="sigmoid"), j.binary_cross_entropy), batch),
        "residual_mlp": ((j.residual_mlp(16, 3, 5), j.softmax_cross_entropy), batch),
        "lenet5": ((lenet5(5), j.softmax_cross_entropy), "float32[3,28,28,1], int32[3]<5"),
        "cnn": ((cnn([3, 4], [6], 5, kernel=3), j.softmax_cross_entropy), "float32[4,10,10,2], int32[4]<5"),
        "residual_cnn": ((residual_cnn([4, 8], 2, 5), j.softmax_cross_entropy), "float32[4,6,6,2], int32[4]<5"),
        "gpt": ((j.gpt(11, 8, 2, 2, 6), j.softmax_cross_entropy), tokens),
        "gpt rotary": ((j.gpt(11, 8, 4, 2, 6, gate=True, rotary=True), j.softmax_cross_entropy), tokens),
        "gpt2": ((j.gpt2(vocab=11, positions=6, width=8, heads=2, depth=2), j.softmax_cross_entropy), tokens),
        "char_lstm": ((j.char_lstm(11, 8, 2), j.softmax_cross_entropy), tokens),
    }


def loss_inputs(name: str) -> list[tuple[str, str]]:
    """Inputs of a loss: a name for them, and their shapes."""
    if name == "binary_cross_entropy":  # of probabilities
        return [("", "float32[6]<1>0, float32[6]<1>0"), ("index", "float32[6]<1>0, int32[]<6")]
    return [("", "float32[6], float32[6]"), ("index", "float32[6], int32[]<6"), ("tokens", "float32[5,6], int32[5]<6")]


def shipped() -> list[Target]:
    """Every layer, activation, combinator, loss and model, each as a target."""
    found = [Target(name, rule, (inputs,)) for name, (rule, inputs) in {**layers(), **models()}.items()]
    found += [Target(name, rule, (VECTOR,)) for name, rule in ACTIVATIONS.items()]
    for name, loss in LOSSES.items():
        found += [Target(f"{name} {which}".strip(), loss, (inputs,)) for which, inputs in loss_inputs(name)]
    return found


def unlisted() -> list[str]:
    """Public names that make a layer, a loss or a network and are not checked: there should be none."""
    listed = {target.name.split(" ")[0] for target in shipped()}
    tables: list[dict[str, Any]] = [ACTIVATIONS, LOSSES, COMBINATORS, MODELS]
    public = {name for table in tables for name in table} | {
        name for name in leaf_layers.__all__ if name not in LOOK_UPS and makes_layer(getattr(leaf_layers, name))
    }
    return sorted(public - listed)


def makes_layer(thing: Any) -> bool:
    """Whether something is a layer, or a function that says it returns one."""
    if isinstance(thing, Layer):
        return True
    returns = getattr(thing, "__annotations__", {}).get("return") if isinstance(thing, Callable) else None
    return returns in (Layer, "Layer")
