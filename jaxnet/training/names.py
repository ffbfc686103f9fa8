"""The names that a config may use, and the options of each, which are those of its signature.

A row in one of these tables is all that a new layer, loss, model or optimizer needs to be known to configs, to their
errors and to `jaxnet schema`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

import optax
from pydantic import Field

from jaxnet import combinators, layers, models
from jaxnet.feedback import WAYS, Way
from jaxnet.layer import Layer, Loss
from jaxnet.layers.initializers import initializer
from jaxnet.losses import LOSSES, huber
from jaxnet.models import MODELS

Count = Annotated[int, Field(ge=1)]
Numbers = list[float]


def dense(
    units: Count,
    *,
    bias: bool = True,
    init: str | None = None,
    weights: list[Numbers] | None = None,
    biases: Numbers | None = None,
) -> Layer:
    """z = W a + b. `init`: an initialiser's name; `weights`, `biases`: the values with which they begin."""
    if biases is not None and not bias:
        raise ValueError("biases are given where bias = false leaves them out: drop one of the two")
    if weights is not None and len({len(row) for row in weights}) > 1:
        raise ValueError(f"weights must be rows of one length, got lengths {[len(row) for row in weights]}")
    begin = initializer("lecun_normal" if init is None else init)
    if weights is not None:
        begin = begin._replace(W=layers.pinned(weights))
    if biases is not None:
        begin = begin._replace(b=layers.pinned(biases))
    return layers.dense(units, bias=bias, init=begin)


def reshape(shape: Sequence[int]) -> Layer:
    """The same numbers in another shape; one -1 stands for what remains."""
    return layers.reshape(*shape)


def repeat(times: Count, block: Layer) -> Layer:
    """A block `times` times, each with parameters of its own, as one scan."""
    return combinators.repeat(block, times)


def residual(block: Layer) -> Layer:
    """out = x + block(x)."""
    return combinators.residual(block)


def parallel(branches: Sequence[Layer], join: Literal["sum", "product", "concatenate"] = "sum") -> Layer:
    """The same input through several branches, joined."""
    return combinators.parallel(*branches, join=join)


def bidirectional(branches: Sequence[Layer]) -> Layer:
    """Two recurrences over one sequence, the second with reverse = true."""
    if len(branches) != 2:
        raise ValueError(f"bidirectional takes two recurrences, the second with reverse = true, got {len(branches)}")
    return combinators.bidirectional(*branches)


def per_position(block: Layer) -> Layer:
    """A block at every position of a sequence."""
    return combinators.per_position(block)


def feedback(block: Layer, way: str, seed: int | None = None, scale: float | None = None) -> Layer:
    """A block whose error goes back another way than Wᵀ. `seed`, `scale`: of ways that draw a matrix, or scale one."""
    given = {name: value for name, value in (("seed", seed), ("scale", scale)) if value is not None}
    takes = [name for name in given if name not in parameters(WAYS[way])]
    if takes:
        raise ValueError(f'way = "{way}" takes no {" and no ".join(takes)}: leave it out')
    return WAYS[way](**given)(block)


def remat(block: Layer) -> Layer:
    """A block that saves only its input."""
    return combinators.remat(block)


def embedding(vocab: Count, width: Count) -> Layer:
    """A vector of `width` for each of `vocab` token ids."""
    return layers.embedding(vocab, width)


def positional_embedding(length: Count) -> Layer:
    """A learned vector added at each position of a sequence of at most `length`."""
    return layers.positional_embedding(length)


def attention(
    heads: Count,
    *,
    causal: bool = True,
    kv_heads: Count | None = None,
    rotary: bool = False,
    bias: bool = False,
    init: str = "lecun_normal",
    rotary_base: float = 10_000.0,
) -> Layer:
    """Self-attention of a sequence, (time, width)."""
    given = {"kv_heads": kv_heads, "rotary": rotary, "bias": bias, "init": init, "rotary_base": rotary_base}
    return layers.attention(heads, causal=causal, **given)


def gated(
    hidden: Count, width: Count, *, activation: str = "silu", bias: bool = False, init: str = "lecun_normal"
) -> Layer:
    """W_down (g(W_gate x) ⊙ W_up x)."""
    return models.gated(hidden, width, activation=activation, bias=bias, init=init)


def pre_norm(block: Layer) -> Layer:
    """out = x + block(layer_norm(x))."""
    return models.pre_norm(block)


def tied(layers: Sequence[Layer], where: Sequence[int], share: str = "W") -> Layer:
    """Layers in a row, those at `where` (from 0) with one parameter `share` in common."""
    return combinators.tied(*layers, share=share, where=tuple(where))


# The first option of each is its argument: { dense = 30 } is { dense = { units = 30 } }.
LAYERS: Mapping[str, Callable[..., Layer] | Layer] = MappingProxyType(
    {
        **layers.ACTIVATIONS,
        "identity": layers.identity,
        "softmax": layers.softmax,
        "leaky_relu": layers.leaky_relu,
        "elu": layers.elu,
        "dense": dense,
        "batch_norm": layers.batch_norm,
        "conv1d": layers.conv1d,
        "conv2d": layers.conv2d,
        "conv_transpose1d": layers.conv_transpose1d,
        "conv_transpose2d": layers.conv_transpose2d,
        "max_pool": layers.max_pool,
        "average_pool": layers.average_pool,
        "global_max_pool": layers.global_max_pool,
        "global_average_pool": layers.global_average_pool,
        "dropout": layers.dropout,
        "flatten": layers.flatten,
        "reshape": reshape,
        "rnn": layers.rnn,
        "lstm": layers.lstm,
        "gru": layers.gru,
        "layer_norm": layers.layer_norm,
        "rms_norm": layers.rms_norm,
        "group_norm": layers.group_norm,
        "embedding": embedding,
        "positional_embedding": positional_embedding,
        "sinusoidal_positions": layers.sinusoidal_positions,
        "rotary": layers.rotary,
        "attention": attention,
        "gated": gated,
        "pre_norm": pre_norm,
        "residual": residual,
        "repeat": repeat,
        "parallel": parallel,
        "bidirectional": bidirectional,
        "per_position": per_position,
        "remat": remat,
        "feedback": feedback,
        "tied": tied,
    }
)
"""What `model = [...]` may be made of."""

LOSS_NAMES: Mapping[str, Callable[..., Loss] | Loss] = MappingProxyType({**LOSSES, "huber": huber})
"""What `loss` may be."""

FEEDBACK_NAMES: Mapping[str, Callable[..., Way]] = WAYS
"""What `feedback` may be."""

MODEL_NAMES: Mapping[str, Callable[..., Layer]] = MappingProxyType(MODELS)
"""What `model.name` may be."""

# lbfgs and polyak_sgd need the cost beside the gradient, noisy_sgd a random key, which no file can give;
# optimistic_adam is deprecated; the scale_by_* are parts of optimizers.
NOT_OFFERED = ("lbfgs", "polyak_sgd", "noisy_sgd", "optimistic_adam", "scale_by_learning_rate", "scale_by_rprop")
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = MappingProxyType(
    {
        name: function
        for name, function in vars(optax).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and "learning_rate" in inspect.signature(function).parameters
        and name not in NOT_OFFERED
    }
)
"""What `train.optimizer.name` may be: optax's optimizers."""

SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = MappingProxyType(
    {
        name: function
        for name, function in vars(optax).items()
        if inspect.isfunction(function)
        and name.endswith(("_schedule", "exponential_decay", "join_schedules"))
        and not name.startswith(("scale_by_", "inject_"))
    }
)
"""What `learning_rate.schedule` may be: optax's schedules, counted in steps."""


def parameters(of: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a function, with their annotations evaluated; none of a value that is no function."""
    if not callable(of) or isinstance(of, Layer | Loss):
        return {}
    return dict(inspect.signature(of, eval_str=True).parameters)


def is_own(name: Any) -> bool:
    """Whether this is the name of an object of one's own, `"package.module:object"`."""
    if not isinstance(name, str):
        return False
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))


def gives_options(of: Any, value: Any) -> bool:
    """Whether a table beside a layer's name holds its options, and is not the one layer that is its argument."""
    takes = list(parameters(of).values())
    one_layer = isinstance(value, dict) and len(value) == 1 and (next(iter(value)) in LAYERS or is_own(*value))
    return isinstance(value, dict) and not (one_layer and takes[0].annotation is Layer)
