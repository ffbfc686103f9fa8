"""Mistakes in convolutions as jaxnet has them: dilation, stride, padding, groups; transposed ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxnet.checking.corpus.case import Case, completed, entering, normal
from jaxnet.layer import Layer
from jaxnet.layers.conv import Patches, conv2d, conv_transpose2d, correlate, spread, transposed, window_from
from jaxnet.layers.windows import window_over

CASES: list[Case] = []
wrong = entering(CASES)


def primal_of(name: str, layer: Callable[[Any], Layer]) -> Callable:
    """The forward pass of the layer that `layer(W)` makes, as a function of W, b and an image a."""

    def primal(W, b, a):
        return layer(W).forward({"W": W, "b": b}, a)[0]

    primal.__name__ = name
    return primal


LAYERS: dict[str, Callable[[Any], Layer]] = {
    "plain": lambda W: conv2d(len(W), W.shape[1:3], padding=1),
    "dilated": lambda W: conv2d(len(W), W.shape[1:3], dilation=2),
    "strided": lambda W: conv2d(len(W), W.shape[1:3], stride=2),
    "even": lambda W: conv2d(len(W), W.shape[1:3], padding="SAME"),
    "grouped": lambda W: conv2d(len(W), W.shape[1:3], groups=2),
    "depthwise": lambda W: conv2d(len(W), W.shape[1:3], groups=len(W)),
    "upward": lambda W: conv_transpose2d(len(W), W.shape[1:3], stride=2),
}
plain, dilated, strided, even, grouped, depthwise, upward = (primal_of(*each) for each in LAYERS.items())


# (side, in, out, kernel): a kernel is smaller than an image, channels of square ones are equal
OBLONG = ((6, 2, 3, 3), (7, 3, 2, 3), (9, 4, 5, 3))
SQUARE = ((6, 3, 3, 3), (7, 2, 2, 3), (9, 4, 4, 3))
EVEN = ((6, 2, 3, 2), (7, 3, 2, 2), (9, 4, 5, 4))
FOURS = ((6, 4, 4, 3), (7, 6, 6, 3), (9, 8, 8, 3))


def images(sizes, groups=1):
    """W, b and an image; as many groups as channels where `groups` is 0."""
    return normal(
        lambda s, i, o, k: (o, k, k, i // (groups or i)), lambda s, i, o, k: (o,), lambda s, i, o, k: (s, s, i),
        sizes=sizes,
    )  # fmt: skip


def gradients(W, a, delta, window, groups=1):
    """What computes da, ∇_W and ∇_b of a convolution, by name."""
    return {
        "a": lambda: spread(delta, transposed(W, groups), window, groups, a.shape[:-1]),
        "W": lambda: Patches(delta, a, window, groups).multiply(),
        "b": lambda: delta.sum((0, 1)),
    }


def _rule(name, words, leaves, primal, args, mistaken, groups=1, upwards=False, **options):
    """Enter a wrong rule: `mistaken(W, a, delta, window, right)` gives what is not as `right` computes it, by leaf."""

    def back(args, delta):
        W, _b, a = args
        kernel, stride, dilation = W.shape[1:3], (options.get("stride", 1),) * 2, (options.get("dilation", 1),) * 2
        if upwards:
            window, _ = window_from(a.shape[:-1], kernel, stride, dilation, "VALID")
            right = gradients(W, a, delta, window) | {
                "a": lambda: correlate(delta, transposed(W, 1), window, 1),
                "W": lambda: Patches(delta, a, window, 1, True).multiply(),
            }
        else:
            padding = options.get("padding", "VALID")
            window = window_over(a.shape[:-1], kernel, stride, dilation, padding)
            right = gradients(W, a, delta, window, groups or len(W))
        found = completed(mistaken(W, a, delta, window, right), right)
        return found["W"].reshape(W.shape), found["b"], found["a"]

    wrong(primal, args, words, leaves, name)(back)


def close(window):
    """The same window with neighbouring taps."""
    return window._replace(dilation=(1, 1))


def without_stride(delta, a, window):
    """The window at every place, and the first places, as many as there are positions."""
    reach = window.reach()
    return window._replace(stride=(1, 1)), a[: len(delta) + reach[0] - 1, : delta.shape[1] + reach[1] - 1]


def _strideless(W, a, delta, window, right):
    """∇_W with patches from neighbouring places."""
    dense, first = without_stride(delta, a, window)
    return {"W": Patches(delta, first, dense).multiply()}


def _stride_of_delta(W, a, delta, window, right):
    """∂C/∂a of a transposed convolution with δ read at neighbouring places."""
    dense, first = without_stride(a, delta, window)
    return {"a": correlate(first, transposed(W, 1), dense, 1)}


_rule(
    "56 W of each tap not transposed", "transpos|channels", ("[2]",), plain, images(SQUARE),
    lambda W, a, delta, window, right: {"a": spread(delta, W, window, 1, a.shape[:-1])}, padding=((1, 1), (1, 1)),
)  # fmt: skip
_rule(
    "57 dilation forgotten going back", "dilat", ("[2]",), dilated, images(OBLONG),
    lambda W, a, delta, window, right: {"a": spread(delta, transposed(W, 1), close(window), 1, a.shape[:-1])},
    dilation=2,
)  # fmt: skip
_rule("58 stride forgotten in dW", "stride|dilat", ("[0]",), strided, images(OBLONG), _strideless, stride=2)
_rule(
    "59 padding at the other end", "shift|pixel", ("[2]",), even, images(EVEN),
    lambda W, a, delta, window, right: {
        "a": spread(delta, transposed(W, 1), window._replace(padding=tuple((h, l) for l, h in window.padding)), 1,
                    a.shape[:-1]),
    },
    padding="SAME",
)  # fmt: skip
_rule(
    "60 W not transposed in its groups", "transpos|channels", ("[2]",), grouped, images(FOURS, 2),
    lambda W, a, delta, window, right: {"a": spread(delta, W, window, 2, a.shape[:-1])}, groups=2,
)  # fmt: skip
_rule(
    "61 bias averaged over the positions", "1/|mean", ("[1]",), plain, images(OBLONG),
    lambda W, a, delta, window, right: {"b": delta.mean((0, 1))}, padding=((1, 1), (1, 1)),
)  # fmt: skip
_rule(
    "62 depthwise dW flipped", "flip", ("[0]",), depthwise, images(FOURS, 0),
    lambda W, a, delta, window, right: {"W": jnp.flip(right["W"]().reshape(W.shape), (1, 2))}, groups=0,
)  # fmt: skip
_rule(
    "63 transposed convolution: kernel flipped", "flip", ("[2]",), upward, images(OBLONG),
    lambda W, a, delta, window, right: {"a": correlate(delta, jnp.flip(transposed(W, 1), (1, 2)), window, 1)},
    upwards=True, stride=2,
)  # fmt: skip
_rule(
    "64 transposed convolution: dW not transposed", "transpos|channels|exchanged", ("[0]",), upward, images(SQUARE),
    lambda W, a, delta, window, right: {"W": jnp.swapaxes(right["W"]().reshape(W.shape), 0, -1)},
    upwards=True, stride=2,
)  # fmt: skip
_rule(
    "65 transposed convolution: stride forgotten", "stride|dilat", ("[2]",), upward, images(OBLONG), _stride_of_delta,
    upwards=True, stride=2,
)  # fmt: skip
