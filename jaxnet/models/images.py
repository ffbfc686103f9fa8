"""Networks of convolutions, for images (height, width, channels)."""

import math
from collections.abc import Sequence
from typing import Literal

from jaxnet.combinators import repeat, residual, serial
from jaxnet.layer import Layer
from jaxnet.layers import (
    activation_named,
    average_pool,
    batch_norm,
    conv2d,
    dense,
    dropout,
    flatten,
    global_average_pool,
    group_norm,
    identity,
    max_pool,
)
from jaxnet.registry import Count, maker

POOLS = {"max": max_pool, "average": average_pool}
NORMS = ("group", "batch", "none")


@maker(kind="model", examples={"lenet5(5), softmax_cross_entropy": "float32[3,28,28,1], int32[3]<5"})
def lenet5(
    outputs: Count = 10,
    *,
    activation: str = "tanh",
    pool: Literal["max", "average"] = "average",
    init: str = "lecun_normal",
) -> Layer:
    """LeNet-5: two convolutions of 5×5, each pooled by 2, then dense layers of 120, 84 and `outputs`.

    Takes an image (28, 28, channels), which it pads to 32×32. 61,706 parameters for one channel and 10 outputs; every
    channel of the second convolution sees all of the first, and pooling has no weights.
    Raises `ValueError` for an unknown activation or pooling.
    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998, §II.B.

    >>> params = jax.eval_shape(lenet5().init, jax.random.key(0), jnp.ones((28, 28, 1)))
    >>> sum(p.size for p in jax.tree.leaves(params))
    61706
    """
    if pool not in POOLS:
        raise ValueError(f"lenet5 pools by one of {', '.join(POOLS)}, got {pool!r}")
    g, by_two = activation_named(activation), POOLS[pool](2)
    convolutions = [conv2d(6, 5, padding=2, init=init), g, by_two, conv2d(16, 5, init=init), g, by_two]
    return serial(
        *convolutions, flatten(), dense(120, init=init), g, dense(84, init=init), g, dense(outputs, init=init)
    )


@maker(
    kind="model",
    examples={"cnn([3, 4], [6], 5, kernel=3), softmax_cross_entropy": "float32[4,10,10,2], int32[4]<5"},
)
def cnn(
    channels: Sequence[int],
    hidden: Sequence[int],
    outputs: Count,
    *,
    kernel: Count = 5,
    activation: str = "relu",
    drop_rate: float = 0.0,
    init: str = "he_normal",
) -> Layer:
    """Convolutions, each pooled by 2, then dense layers: the networks of Nielsen's chapter 6.

    `channels`: of each convolution of kernel × kernel. `hidden`: units of each dense layer before the `outputs`.
    `activation`: after each but the last; after the maximum of the pooled, since rising functions keep it.
    `drop_rate`: of a dropout before each dense layer but the first, and before the last.
    Takes an image (height, width, channels). Raises `ValueError` for no convolution, or an activation that there is
    none of.
    Source: Nielsen, Neural Networks and Deep Learning, ch. 6.

    >>> cnn([20], [100], 10, init="lecun_normal").parts
    (conv2d(20, 5), max_pool(2), relu, flatten(), dense(100), relu, dense(10))
    """
    if not channels:
        raise ValueError("a cnn takes at least one convolution, got no channels")
    g, layers = activation_named(activation), []
    for count in channels:
        layers += [conv2d(count, kernel, init=init), max_pool(2), g]
    layers.append(flatten())
    for units in hidden:
        layers += [dense(units, init=init), g]
        layers += [dropout(drop_rate)] if drop_rate else []
    return serial(*layers, dense(outputs, init=init))


@maker(kind="model", examples={"residual_cnn([4, 8], 2, 5), softmax_cross_entropy": "float32[4,6,6,2], int32[4]<5"})
def residual_cnn(
    channels: Sequence[int],
    depth: Count,
    outputs: Count,
    *,
    norm: Literal["group", "batch", "none"] = "group",
    activation: str = "relu",
    init: str = "he_normal",
) -> Layer:
    """Residual blocks of two 3×3 convolutions, normalised and activated before each, in stages of half the size.

    `channels`: of each stage; from the second on a stage begins with a convolution of stride 2. `depth`: blocks in each
    stage, as one scan. `norm`: over groups of up to 8 channels of each image ("group"), over the batch ("batch"), or
    "none". After the last stage the mean over all places, and a dense layer to `outputs` logits.
    Takes an image (height, width, channels). Raises `ValueError` for no stage, or a norm or an activation that there is
    none of.
    Source: He et al., Identity Mappings in Deep Residual Networks, 2016, figure 1(b).

    >>> residual_cnn([16, 32], 2, 10).parts[-3:]
    (relu, global_average_pool(), dense(10))
    """
    if not channels:
        raise ValueError("a residual_cnn takes at least one stage, got no channels")
    if norm not in NORMS:
        raise ValueError(f"residual_cnn normalises by one of {', '.join(NORMS)}, got {norm!r}")
    g = activation_named(activation)

    def normalised(count: int) -> Layer:
        if norm == "none":
            return identity
        return batch_norm() if norm == "batch" else group_norm(math.gcd(count, 8))

    def convolution(count: int, stride: int = 1) -> Layer:
        return conv2d(count, 3, stride=stride, padding="SAME", bias=norm == "none", init=init)

    layers = []
    for stage, count in enumerate(channels):
        layers.append(convolution(count, stride=2 if stage else 1))
        half = [normalised(count), g, convolution(count)]
        layers.append(repeat(residual(serial(*half, *half)), depth))
    return serial(*layers, normalised(channels[-1]), g, global_average_pool(), dense(outputs))
