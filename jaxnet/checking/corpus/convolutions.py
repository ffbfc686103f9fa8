"""Mistakes in convolutions as jaxnet has them: dilation, stride, padding, groups; transposed ones."""

from __future__ import annotations

from collections.abc import Callable

from jaxnet.checking.corpus.case import Rules, normal
from jaxnet.layers.conv import Patches, conv2d, conv_transpose2d, correlate, spread, transposed, window_from
from jaxnet.layers.windows import window_over

RULES = Rules()

# (side, in, out, kernel): a kernel is smaller than an image, channels of square ones are equal
OBLONG = ((6, 2, 3, 3), (7, 3, 2, 3), (9, 4, 5, 3))
SQUARE = ((6, 3, 3, 3), (7, 2, 2, 3), (9, 4, 4, 3))
EVEN = ((6, 2, 3, 2), (7, 3, 2, 2), (9, 4, 5, 4))
FOURS = ((6, 4, 4, 3), (7, 6, 6, 3), (9, 8, 8, 3))


def primal_of(name: str, maker: Callable, sizes: tuple, groups: int = 1, **options) -> tuple[Callable, Callable]:
    """A layer's forward pass as a function of W, b and an image a; and inputs. With `groups` 0 each channel is one."""

    def primal(W, b, a):
        given = options if groups == 1 else {"groups": groups or len(W), **options}
        return maker(len(W), W.shape[1:3], **given).forward({"W": W, "b": b}, a)[0]

    primal.__name__ = name
    return primal, normal(
        lambda s, i, o, k: (o, k, k, i // (groups or i)), lambda s, i, o, k: (o,), lambda s, i, o, k: (s, s, i),
        sizes=sizes,
    )  # fmt: skip


@RULES.back_of(*primal_of("plain", conv2d, OBLONG, padding=1), padding=((1, 1), (1, 1)))
@RULES.back_of(*primal_of("square", conv2d, SQUARE, padding=1), padding=((1, 1), (1, 1)))
@RULES.back_of(*primal_of("dilated", conv2d, OBLONG, dilation=2), dilation=2)
@RULES.back_of(*primal_of("strided", conv2d, OBLONG, stride=2), stride=2)
@RULES.back_of(*primal_of("even", conv2d, EVEN, padding="SAME"), padding="SAME")
@RULES.back_of(*primal_of("grouped", conv2d, FOURS, 2), groups=2)
@RULES.back_of(*primal_of("depthwise", conv2d, FOURS, 0), groups=0)
def convolution_back(args, delta, padding="VALID", stride=1, dilation=1, groups=1):
    """Of a convolution: each tap's Wᵀ, and patches."""
    W, _b, a = args
    groups = groups or len(W)
    window = window_over(a.shape[:-1], W.shape[1:3], (stride,) * 2, (dilation,) * 2, padding)
    da = spread(delta, transposed(W, groups), window, groups, a.shape[:-1])
    dW = Patches(delta, a, window, groups).multiply().reshape(W.shape)
    return dW, delta.sum((0, 1)), da


@RULES.back_of(*primal_of("upward", conv_transpose2d, OBLONG, stride=2))
@RULES.back_of(*primal_of("square_upward", conv_transpose2d, SQUARE, stride=2))
def upward_back(args, delta):
    """Of a transposed convolution: a convolution of the error."""
    W, _b, a = args
    window, _ = window_from(a.shape[:-1], W.shape[1:3], (2, 2), (1, 1), "VALID")
    da = correlate(delta, transposed(W, 1), window, 1)
    dW = Patches(delta, a, window, 1, True).multiply().reshape(W.shape)
    return dW, delta.sum((0, 1)), da


def close(window):
    """The same window with neighbouring taps."""
    return window._replace(dilation=(1, 1))


def without_stride(delta, a, window):
    """The window at every place, and the first places, as many as there are positions."""
    reach = window.reach()
    return window._replace(stride=(1, 1)), a[: len(delta) + reach[0] - 1, : delta.shape[1] + reach[1] - 1]


MISTAKES: tuple[tuple[str, ...], ...] = (
    ("square", "56 W of each tap not transposed", "transposed(W, groups)", "W", "[2]", "transpos|channels"),
    ("dilated", "57 dilation forgotten going back", "transposed(W, groups), window",
     "transposed(W, groups), close(window)", "[2]", "dilat"),
    ("strided", "58 stride forgotten in dW", "dW = Patches(delta, a, window, groups)",
     "dense, first = without_stride(delta, a, window)\n    dW = Patches(delta, first, dense, groups)", "[0]",
     "stride|dilat"),
    ("even", "59 padding at the other end", "transposed(W, groups), window",
     "transposed(W, groups), window._replace(padding=tuple((h, l) for l, h in window.padding))", "[2]", "shift|pixel"),
    ("grouped", "60 W not transposed in its groups", "transposed(W, groups)", "W", "[2]", "transpos|channels"),
    ("plain", "61 bias averaged over the positions", "delta.sum((0, 1))", "delta.mean((0, 1))", "[1]", "1/|mean"),
    ("depthwise", "62 depthwise dW flipped", "multiply().reshape(W.shape)",
     "multiply().reshape(W.shape)[:, ::-1, ::-1]", "[0]", "flip"),
    ("upward", "63 transposed convolution: kernel flipped", "transposed(W, 1)", "transposed(W, 1)[:, ::-1, ::-1]",
     "[2]", "flip"),
    ("square_upward", "64 transposed convolution: dW not transposed", "return dW", "return dW.swapaxes(0, -1)",
     "[0]", "transpos|channels|exchanged"),
    ("upward", "65 transposed convolution: stride forgotten", "da = correlate(delta, transposed(W, 1), window, 1)",
     "dense, first = without_stride(a, delta, window)\n    da = correlate(first, transposed(W, 1), dense, 1)", "[2]",
     "stride|dilat"),
)  # fmt: skip
