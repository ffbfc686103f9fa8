"""Convolution, and transposed convolution, over the places of an image or a sequence.

    z_p    = Σ_k W_k a_{sp+dk−l} + b               a: (*places, in)   z: (*positions, out)   W_k: (out, in)
    ∂C/∂a  : Σ_k W_kᵀ δ_p added at sp + dk − l     δ = ∂C/∂z: (*positions, out)
    ∇_W_k  = Σ_p δ_p a_{sp+dk−l}ᵀ                  W: (out, *kernel, in)
    ∇_b    = Σ_p δ_p                               (out,)

p a position, k a tap of the kernel, s the stride, d the dilation, l the padding before the first place. W as the matrix
(out, taps · in) times the patch that p sees is W a of the dense layer, so ∇_W is δ times the patches, transposed. The
second line is again a convolution: of δ, its entries s apart, with the kernel flipped and each W_k transposed. It is
the forward pass of a transposed convolution, whose backward pass is the first.

Source: Dumoulin and Visin, A Guide to Convolution Arithmetic for Deep Learning, 2016, §2 and §4.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.factors import Factor, Outer, Plain, dataclass_tree
from jaxnet.layer import Layer, ShapeError, fits_input, leaf
from jaxnet.layers.initializers import Initializer, initializer
from jaxnet.layers.windows import Padding, by, checked_padding, fits, for_each_axis, window_over
from jaxnet.lowering import conv as patches
from jaxnet.lowering import form, op
from jaxnet.lowering.products import accumulated
from jaxnet.lowering.sharding import replicated
from jaxnet.lowering.windows import Window, pieces
from jaxnet.registry import Count, maker

# ---------------------------------------------------------------------------------------------------- the two products


def numbers(rank: int) -> tuple[str, str, str]:
    """The order of the axes of input, kernel and output, as `jax.lax` takes it.

    The kernel's is XLA's own on CPUs, into which it puts others only outside of loops: within, it is 10 times slower.
    """
    axes = "HW"[-rank:]
    return f"N{axes}C", f"{axes}IO", f"N{axes}C"


def convolved(x, K, groups, **options):
    """`jax.lax`'s convolution of one example, in K's dtype, with a result in x's."""
    dtype = x.dtype
    out = jax.lax.conv_general_dilated(
        x.astype(K.dtype)[None],
        jnp.moveaxis(K, 0, -1),
        dimension_numbers=numbers(x.ndim - 1),
        feature_group_count=groups,
        preferred_element_type=None if dtype == K.dtype else accumulated(K.dtype),
        **options,
    )
    return out[0].astype(dtype)


def correlate(x: jax.Array, K: jax.Array, window: Window, groups: int) -> jax.Array:
    """out_p = Σ_k K_k x_{sp+dk−l}. x: (*places, in), K: (out, *kernel, in/groups), out: (*positions, out)."""
    return convolved(x, K, groups, window_strides=window.stride, padding=window.padding, rhs_dilation=window.dilation)


def spread(x: jax.Array, K: jax.Array, window: Window, groups: int, places: Sequence[int]) -> jax.Array:
    """out_{sp+dk−l} = Σ K_k x_p. x: (*positions, in), K: (out, *kernel, in/groups), out: (*places, out)."""
    rank = len(places)
    padding = []
    for n, p, s, (low, _), reach in zip(
        places, x.shape[:-1], window.stride, window.padding, window.reach(), strict=True
    ):
        before = reach - 1 - low
        padding.append((before, n + reach - 2 - (p - 1) * s - before))
    flipped = jnp.flip(K, range(1, rank + 1))
    return convolved(
        x,
        flipped,
        groups,
        window_strides=(1,) * rank,
        padding=padding,
        lhs_dilation=window.stride,
        rhs_dilation=window.dilation,
    )


def weight_gradient_plain(small: jax.Array, large: jax.Array, *, window: Window, groups: int) -> jax.Array:
    """Σ_p δ_p a_{sp+dk−l}ᵀ for each tap k, summed over the examples: one convolution of a with δ, its entries s apart.

    small: δ, (examples, *positions, out). large: a, (examples, *places, in). Gives (out, *kernel, in / groups).
    """
    axes = "HW"[-len(window.kernel) :]
    out = jax.lax.conv_general_dilated(
        large,
        small,
        window_strides=window.dilation,
        padding=window.padding,
        rhs_dilation=window.stride,
        dimension_numbers=(f"C{axes}N", f"I{axes}O", f"N{axes}C"),  # channels stand for a batch, examples are summed
        batch_group_count=groups,
        preferred_element_type=accumulated(small.dtype),
        out_sharding=replicated(small),
    )
    # A stride may leave places at the end that no position sees: there the convolution goes beyond the kernel.
    for axis, length in enumerate(window.kernel, start=1):
        out = jax.lax.slice_in_dim(out, 0, length, axis=axis)
    return jnp.swapaxes(out, 0, -1)


weight_gradient = op(weight_gradient_plain, cpu=form(patches.weight_gradient, manual=True))


def transposed(W: jax.Array, groups: int) -> jax.Array:
    """Each W_k transposed, group by group: (out, *kernel, in/groups) as (in, *kernel, out/groups)."""
    kernel = W.shape[1:-1]
    by_group = W.reshape(groups, W.shape[0] // groups, *kernel, W.shape[-1])
    return jnp.swapaxes(by_group, 1, -1).reshape(groups * W.shape[-1], *kernel, W.shape[0] // groups)


# ---------------------------------------------------------------------------------------------------------- the factor


@dataclass_tree
class Patches(Factor):
    """∇_W of a convolution: Σ over the first `sums` axes of δ and the patches of a, which are made when it is read.

    Of a transposed convolution, patches are of δ, and each ∇_W_k is transposed.
    """

    delta: Any  # (…, *positions, out)
    a: Any  # (…, *places, in)
    window: Window = field(metadata={"static": True})
    groups: int = field(default=1, metadata={"static": True})
    transposed: bool = field(default=False, metadata={"static": True})
    sums: int = field(default=0, metadata={"static": True})

    def ends(self):
        """The array at the positions, and the one that patches are cut from, with one leading axis of examples."""
        delta, a = self.delta.astype(self.a.dtype), self.a
        small, large = (a, delta) if self.transposed else (delta, a)
        return tuple(t.reshape(-1, *t.shape[self.sums :]) for t in (small, large))

    def multiply(self, out_sharding=None):
        W = weight_gradient(*self.ends(), window=self.window, groups=self.groups)
        W = transposed(W, self.groups) if self.transposed else W
        return W if out_sharding is None else jax.sharding.reshard(W, out_sharding)

    def summed_once_more(self):
        return replace(self, sums=self.sums + 1)

    def condensed(self):
        small, large = self.ends()
        size = math.prod(self.window.kernel) * small.shape[-1] * large.shape[-1] // self.groups
        return Plain(self.multiply()) if size <= small.size + large.size else self

    def projected(self, P):
        if self.groups > 1 or self.transposed:
            return super().projected(P)
        return replace(self, delta=self.delta @ P.astype(self.delta.dtype))

    def gram(self, other):
        if self.groups > 1 or not isinstance(other, Patches):
            return super().gram(other)
        return self.outer().gram(other.outer())

    def outer(self):
        """The same with the patches made, each W_k as it is or transposed, as an `Outer`."""
        small, large = self.ends()
        rows = jnp.concatenate(pieces(large, self.window), axis=-1)
        return Outer(small.reshape(-1, small.shape[-1]), rows.reshape(-1, rows.shape[-1]), sums=1)


# ---------------------------------------------------------------------------------------------------------- the layers


@maker(examples={'conv1d(3, 3, stride=2, padding="SAME")': "float32[7,2]"}, axes={"W": "out time in", "b": "out"})
def conv1d(
    channels: Count,
    kernel: int,
    *,
    stride: int = 1,
    padding: Padding = "VALID",
    dilation: int = 1,
    groups: Count = 1,
    bias: bool = True,
    init: str | Initializer | Callable = "lecun_normal",
) -> Layer:
    """z_p = Σ_k W_k a_{sp+dk−l} + b over a sequence (time, in), time first.

    Arguments as `conv2d`'s. Parameters: `{"W": (channels, kernel, in / groups), "b": (channels,)}`.
    Raises as `conv2d`.

    >>> net, x = conv1d(3, 3), jnp.ones((7, 2))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 3), (7, 2), {'W': (3, 3, 2), 'b': (3,)})
    """
    return convolution("conv1d", 1, channels, kernel, stride, padding, dilation, groups, bias, init)


@maker(
    examples={
        "conv2d(3, (3, 2), padding=1, dilation=(1, 2))": "float32[5,4,2]",
        "conv2d(4, 2, stride=2, groups=2)": "float32[4,5,2]",
    },
    axes={"W": "out height width in", "b": "out"},
)
def conv2d(
    channels: Count,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
    groups: Count = 1,
    bias: bool = True,
    init: str | Initializer | Callable = "lecun_normal",
) -> Layer:
    """z_p = Σ_k W_k a_{sp+dk−l} + b over an image (height, width, in).

    `channels`: of z. `kernel`, `stride`, `dilation`: a number, or one for each axis. `padding`: "VALID" for none,
    "SAME" for as many positions as places / stride, a number, or a pair (before, after) for each axis. `groups`: the
    channels in as many groups, each seeing its own group of the input; as many as the input has: depthwise.
    `init`: as `dense`'s; fan-in is taps · in / groups, fan-out taps · channels.
    Parameters: `{"W": (channels, *kernel, in / groups), "b": (channels,)}`.
    Raises `ShapeError` for an input that is no image, has other channels, or is smaller than the kernel; `ValueError`
    for options that do not hold.

    >>> net, x = conv2d(4, 3), jnp.ones((6, 5, 2))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4, 3, 4), (6, 5, 2), {'W': (4, 3, 3, 2), 'b': (4,)})
    """
    return convolution("conv2d", 2, channels, kernel, stride, padding, dilation, groups, bias, init)


@maker(examples={"conv_transpose1d(3, 3, stride=2)": "float32[4,2]"}, axes={"W": "out time in", "b": "out"})
def conv_transpose1d(
    channels: Count,
    kernel: int,
    *,
    stride: int = 1,
    padding: Padding = "VALID",
    dilation: int = 1,
    groups: Count = 1,
    bias: bool = True,
    init: str | Initializer | Callable = "lecun_normal",
) -> Layer:
    """z_{sp+dk−l} = Σ W_k a_p + b over a sequence (time, in), time first.

    Arguments as `conv_transpose2d`'s. Parameters: `{"W": (channels, kernel, in / groups), "b": (channels,)}`.
    Raises as `conv2d`.

    >>> net, x = conv_transpose1d(2, 3, stride=2), jnp.ones((4, 1))
    >>> net.forward(net.init(jax.random.key(0), x), x)[0].shape
    (9, 2)
    """
    return convolution("conv_transpose1d", 1, channels, kernel, stride, padding, dilation, groups, bias, init)


@maker(
    examples={'conv_transpose2d(2, 3, stride=2, padding="SAME", groups=2)': "float32[3,2,4]"},
    axes={"W": "out height width in", "b": "out"},
)
def conv_transpose2d(
    channels: Count,
    kernel: int | Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "VALID",
    dilation: int | Sequence[int] = 1,
    groups: Count = 1,
    bias: bool = True,
    init: str | Initializer | Callable = "lecun_normal",
) -> Layer:
    """z_{sp+dk−l} = Σ W_k a_p + b over an image (height, width, in): the transpose of a convolution.

    Arguments as `conv2d`'s, but that padding is cut off z: "VALID" leaves (n − 1) s + reach, "SAME" n s places of n.
    Parameters: `{"W": (channels, *kernel, in / groups), "b": (channels,)}`.
    Raises as `conv2d`.

    >>> net, x = conv_transpose2d(2, 3, stride=2, padding="SAME"), jnp.ones((4, 5, 1))
    >>> net.forward(net.init(jax.random.key(0), x), x)[0].shape
    (8, 10, 2)
    """
    return convolution("conv_transpose2d", 2, channels, kernel, stride, padding, dilation, groups, bias, init)


def convolution(name, rank, channels, kernel, stride, padding, dilation, groups, bias, init) -> Layer:
    """The layer of a name, over `rank` axes of places."""
    upward = name.startswith("conv_transpose")
    kernel = for_each_axis(f"{name}: kernel", kernel, rank)
    stride = for_each_axis(f"{name}: stride", stride, rank)
    dilation = for_each_axis(f"{name}: dilation", dilation, rank)
    padding = checked_padding(name, padding, rank)
    if channels % groups:
        raise ValueError(f"{name}: groups must divide its channels, got {groups} groups of {channels} channels")
    begin, title = initializer(init), f"{name} {channels}@{by(kernel)}"

    def window_of(places):
        """The window over the larger end's places, and these."""
        if upward:
            return window_from(places, kernel, stride, dilation, padding)
        return window_over(places, kernel, stride, dilation, padding), tuple(places)

    def accepts(a, params):
        image_of_rank(title, a, rank)
        if a.shape[-1] % groups:
            raise ShapeError(f"{title} takes channels that its {groups} groups divide, got {a.shape[-1]} in {a.shape}")
        fits_input(title, params, "W", (channels, *kernel, a.shape[-1] // groups), a)
        fits(title, *window_of(a.shape[:-1]))

    def new(key, a):
        dtype = a.dtype if jnp.issubdtype(a.dtype, jnp.floating) else jnp.float32
        W_key, b_key = jnp.unstack(jax.random.split(key))
        params = {"W": begin.W(W_key, (channels, *kernel, a.shape[-1] // groups), dtype)}
        return params | {"b": begin.b(b_key, (channels,), dtype)} if bias else params

    def forward(params, a, key=None, train=False):
        W, (window, places) = params["W"], window_of(a.shape[:-1])
        z = spread(a, W, window, groups, places) if upward else correlate(a, W, window, groups)
        return z + jnp.broadcast_to(params["b"], z.shape) if bias else z, a.astype(W.dtype)

    def backward(params, a, delta):  # z_p = Σ_k W_k a_{sp+dk−l} + b
        window, places = window_of(a.shape[:-1])
        W_T = transposed(params["W"], groups)
        da = correlate(delta, W_T, window, groups) if upward else spread(delta, W_T, window, groups, places)
        factors = {"W": Patches(delta, a, window, groups, upward)}
        return da, factors | {"b": Plain(delta, sums=rank)} if bias else factors

    return leaf(title, new, forward, backward, accepts)


def window_from(positions, kernel, stride, dilation, padding) -> tuple[Window, tuple[int, ...]]:
    """The window of a transposed convolution from so many positions, and the places that it spreads them over."""
    bare = Window(kernel, stride, dilation, ((0, 0),) * len(kernel))
    if padding == "SAME":
        # n s places: beyond them z is cut off, the odd one at the end; places not reached are zero.
        cuts = [reach - s for reach, s in zip(bare.reach(), stride, strict=True)]
        padding = tuple((max(cut, 0) // 2, cut - max(cut, 0) // 2) for cut in cuts)
    window = bare if padding == "VALID" else bare._replace(padding=padding)
    spans = zip(positions, stride, bare.reach(), window.padding, strict=True)
    return window, tuple((p - 1) * s + reach - low - high for p, s, reach, (low, high) in spans)


def image_of_rank(name: str, x, rank: int) -> None:
    """Raises `ShapeError` for an input that is no image, or no sequence."""
    if x.ndim == rank + 1:
        return
    what = "an image (height, width, channels)" if rank == 2 else "a sequence (time, channels)"
    if x.ndim == rank:
        wanted = ", ".join(map(str, (*x.shape, 1)))
    elif rank == 2 and x.ndim == 1 and math.isqrt(len(x)) ** 2 == len(x):
        side = math.isqrt(len(x))
        wanted = f"{side}, {side}, 1"
    else:
        wanted = "height, width, channels" if rank == 2 else "time, channels"
    raise ShapeError(f"{name} takes {what}, got shape {x.shape}: put reshape({wanted}) before it")
