"""Equations of every kind of layer beside dense ones and activations on vectors, step by step, forward and backward.

`opening` takes composed layers apart at one example; a kind (`patches`, `norms`, `attention`, …) gives a leaf's steps,
each with its equation and the program beside it; `evaluate` computes them in float64 and holds the layer and `jax.grad`
against them; `writing` makes lines of them, which the terminal and the page show like those of any other layer. A new
kind of layer is one function `(Site) -> Equations` and one row here.
"""

from jaxnet.combinators import per_position, remat
from jaxnet.explaining.layers import attention, embeddings, norms, patches, recurrent, simple
from jaxnet.explaining.layers.opening import Record
from jaxnet.explaining.layers.steps import Kind
from jaxnet.explaining.sources import inner
from jaxnet.layer import Layer

KINDS: dict[str, Kind] = {
    "dense": simple.dense,
    "softmax": simple.softmax,
    "identity": simple.activation,
    "flatten": simple.reshaped,
    "reshape": simple.reshaped,
    "dropout": simple.dropout,
    "sum": simple.met,
    "product": simple.met,
    "concatenate": simple.met,
    "conv1d": patches.convolution,
    "conv2d": patches.convolution,
    "conv_transpose1d": patches.transposed,
    "conv_transpose2d": patches.transposed,
    "average_pool": patches.average_pool,
    "global_average_pool": patches.average_pool,
    "max_pool": patches.max_pool,
    "global_max_pool": patches.max_pool,
    "layer_norm": norms.layer_norm,
    "rms_norm": norms.rms_norm,
    "group_norm": norms.group_norm,
    "batch_norm": norms.batch_norm,
    "embedding": embeddings.embedding,
    "positional_embedding": embeddings.positional,
    "sinusoidal_positions": embeddings.sinusoidal,
    "rotary": embeddings.rotary,
    "attention": attention.attention,
    "rnn": recurrent.rnn,
    "lstm": recurrent.lstm,
    "gru": recurrent.gru,
}
"""The kinds of layers by the first word of their names; the places where ways meet by theirs."""

AT_POSITIONS = frozenset(["dense", "softmax", "identity", "dropout", "layer_norm", "rms_norm"])
"""Kinds whose equations hold at every position of a sequence too."""


def kind_of(record: Record) -> Kind | None:
    """The kind of a record; None where there are no equations for it."""
    if record.kind != "leaf":
        return KINDS.get(record.kind)
    forward = inner(record.layer)[0]
    if not forward.__module__.startswith("jaxnet.layers"):
        return None
    if forward.__qualname__.startswith("elementwise."):
        return simple.activation
    if record.positions and record.word not in AT_POSITIONS:
        return None
    return KINDS.get(record.word)


LINEAR = ("dense", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")
"""Kinds that make a z: W a + b, at every position of a sequence or an image."""


def gives_z(layer: Layer) -> bool:
    """Whether a layer, or the one inside it, is one of these."""
    while layer.rebuild in (per_position, remat):
        (layer,) = layer.parts
    return layer.rebuild is None and layer.name.split(" ")[0] in LINEAR
