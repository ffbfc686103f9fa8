"""Linear uses of a parameter in a program, each with the factor of its gradient.

    z = W x        ∇_W C = δ xᵀ        δ = ∂C/∂z

`RULES` knows the primitives that are linear in a parameter: products, convolutions, rows of a table, slices. It sees
through a reshape or a transpose of the parameter before its use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.factors import Factor, Outer, dataclass_tree
from jaxnet.layers.conv import Patches
from jaxnet.layers.embedding import Rows
from jaxnet.lowering.windows import Window

Steps = tuple[tuple[str, tuple[int, ...]], ...]  # ("reshape", shape) or ("transpose", permutation), one after another


# ------------------------------------------------------------------------------------------------------------- factors


@dataclass_tree
class Rearranged(Factor):
    """The gradient that `factor` has of a parameter reshaped or transposed, in the parameter's own layout."""

    factor: Any
    steps: Steps = field(metadata={"static": True})

    def multiply(self, out_sharding=None):
        return self.placed(self.factor.multiply())

    def weighted(self, c):
        return self.placed(self.factor.weighted(c))

    def placed(self, array: jax.Array) -> jax.Array:
        """The factor's gradient, in the parameter's own layout."""
        for kind, numbers in self.steps:
            array = array.reshape(numbers) if kind == "reshape" else array.transpose(numbers)
        return array

    def summed_once_more(self):
        return replace(self, factor=self.factor.summed_once_more())

    def condensed(self):
        return replace(self, factor=self.factor.condensed())

    def gram(self, other):
        # An inner product does not depend on the order of the entries.
        if isinstance(other, Rearranged) and self.steps == other.steps:
            return self.factor.gram(other.factor)
        return super().gram(other)


@dataclass_tree
class Stacked(Factor):
    """A gradient for each entry of an axis: of the layers in a scan. The axis is `axis` of the factor's leaves."""

    factor: Any
    axis: int = field(default=0, metadata={"static": True})

    def multiply(self, out_sharding=None):
        return jax.vmap(lambda factor: factor.multiply(), self.axis)(self.factor)

    def summed_once_more(self):
        return Stacked(self.factor.summed_once_more(), self.axis + 1)

    def condensed(self):
        return Stacked(jax.vmap(lambda factor: factor.condensed(), self.axis)(self.factor))

    def weighted(self, c):
        return jax.vmap(lambda factor: factor.weighted(c), self.axis + 1)(self.factor)

    def gram(self, other):
        if not isinstance(other, Stacked):
            return super().gram(other)
        return jax.vmap(lambda f, g: f.gram(g), (self.axis, other.axis))(self.factor, other.factor).sum()


# --------------------------------------------------------------------------------------------------- uses of parameters


class ParameterView(NamedTuple):
    """A value that is a parameter, reshaped or transposed; `steps` take a gradient of it back to the parameter."""

    param: int
    steps: Steps = ()


@dataclass(frozen=True)
class LinearUse:
    """A linear use of a parameter. `sink`: shape and dtype of the result; `factor(δ, x)`; `saved`: which input is x."""

    param: int
    sink: Any
    saved: int | None
    factor: Callable[[Any, Any], Factor]


def rearranged(use: LinearUse, view: ParameterView) -> LinearUse:
    """A use of a view as a use of its parameter."""
    steps = view.steps
    if not steps:
        return replace(use, param=view.param)
    return replace(use, param=view.param, factor=lambda delta, x: Rearranged(use.factor(delta, x), steps))


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes another."""
    return tuple(sorted(range(len(permutation)), key=lambda i: permutation[i]))


def seen_through(eqn: Any, view: ParameterView) -> ParameterView | None:
    """The view that an operation gives of a view: reshaped, transposed, or in another floating dtype; else None."""
    before, after, name = eqn.invars[0].aval, eqn.outvars[0].aval, eqn.primitive.name
    if name == "transpose":
        return view._replace(steps=(("transpose", inverse(eqn.params["permutation"])), *view.steps))
    if name == "convert_element_type" and jnp.issubdtype(after.dtype, jnp.floating):
        return view
    if name == "broadcast_in_dim" and before.size != after.size:
        return None
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        return view._replace(steps=(("reshape", tuple(before.shape)), *view.steps))
    return None


def of_product(eqn: Any, at: int) -> LinearUse:
    """Σ over the contracted axes, p one of the two operands: ∇_p = Σ δ xᵀ over the free axes of x."""
    contracted, batched = eqn.params["dimension_numbers"]
    p, x = eqn.invars[at].aval, eqn.invars[1 - at].aval
    p_in, x_in, p_batch, x_batch = contracted[at], contracted[1 - at], batched[at], batched[1 - at]
    p_free, x_free = ([i for i in range(t.ndim) if i not in (*c, *b)]
                      for t, c, b in ((p, p_in, p_batch), (x, x_in, x_batch)))  # fmt: skip
    lead = [p.shape[i] for i in p_batch]
    outs, ins = math.prod(p.shape[i] for i in p_free), math.prod(p.shape[i] for i in p_in)
    steps = (
        ("reshape", tuple(p.shape[i] for i in (*p_batch, *p_free, *p_in))),
        ("transpose", inverse((*p_batch, *p_free, *p_in))),
    )

    def factor(delta, x):
        delta = delta.reshape(*lead, -1, outs) if at == 1 else jnp.swapaxes(delta.reshape(*lead, outs, -1), -1, -2)
        a = x.transpose(*x_batch, *x_free, *x_in).reshape(*lead, -1, ins)
        result = Outer(delta, a, sums=1)
        for _ in lead:
            result = Stacked(result)
        return Rearranged(result, steps)

    return LinearUse(0, eqn.outvars[0].aval, 1 - at, factor)


def of_convolution(eqn: Any, at: int) -> LinearUse | None:
    """A kernel over an image or a sequence: ∇_W = Σ over the positions of δ and the patch that it saw."""
    numbers, rank = eqn.params["dimension_numbers"], len(eqn.params["window_strides"])
    if at != 1 or rank > 2 or eqn.params["batch_group_count"] > 1 or set(eqn.params["lhs_dilation"]) - {1}:
        return None

    def last(spec):  # (batch, *places, channels)
        return (spec[0], *spec[2:], spec[1])

    W = eqn.invars[1].aval
    window = Window(tuple(W.shape[i] for i in numbers.rhs_spec[2:]), tuple(eqn.params["window_strides"]),
                    tuple(eqn.params["rhs_dilation"]), tuple(map(tuple, eqn.params["padding"])))  # fmt: skip

    def factor(delta, x):
        delta, a = delta.transpose(last(numbers.out_spec)), x.transpose(last(numbers.lhs_spec))
        patches = Patches(delta, a, window, eqn.params["feature_group_count"], sums=1)
        return Rearranged(patches, (("transpose", inverse(last(numbers.rhs_spec))),))

    return LinearUse(0, eqn.outvars[0].aval, 0, factor)


def rows(eqn: Any, saved: int | None, tokens_of: Callable, offsets: Sequence[int] | None = None) -> LinearUse:
    """Whole rows of W by their number: ∇_W = Σ of δ in the row of its token. `offsets`: the result's axes of a row."""
    W, out = eqn.invars[0].aval, eqn.outvars[0].aval
    offsets = range(out.ndim) if offsets is None else offsets
    places = [i for i in range(out.ndim) if i not in offsets]

    def factor(delta, indices):
        tokens = tokens_of(indices)
        delta = delta.transpose(*places, *offsets).reshape(*tokens.shape, -1)
        return Rearranged(Rows(tokens, delta, W.shape[0]), (("reshape", tuple(W.shape)),))

    return LinearUse(0, out, saved, factor)


def of_gather(eqn: Any, at: int) -> LinearUse | None:
    """Rows by an array of tokens."""
    W, numbers, mode = eqn.invars[0].aval, eqn.params["dimension_numbers"], eqn.params["mode"]
    held = mode in (jax.lax.GatherScatterMode.CLIP, jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS)
    # An index into another axis, which is taken whole, can only be 0 where it is held within its range.
    ours = 0 in numbers.start_index_map and (held or numbers.start_index_map == (0,))
    whole = tuple(eqn.params["slice_sizes"]) == (1, *W.shape[1:]) and not numbers.operand_batching_dims
    if at != 0 or not ours or not whole:
        return None

    def tokens_of(indices):
        tokens = indices[..., numbers.start_index_map.index(0)]
        return jnp.clip(tokens, 0, W.shape[0] - 1) if held else tokens

    return rows(eqn, 1, tokens_of, numbers.offset_dims)


def of_dynamic_slice(eqn: Any, at: int) -> LinearUse | None:
    """One row by its number."""
    W = eqn.invars[0].aval
    if at != 0 or tuple(eqn.params["slice_sizes"]) != (1, *W.shape[1:]):
        return None
    return rows(eqn, 1, lambda index: jnp.clip(index, 0, W.shape[0] - 1))


def of_slice(eqn: Any, at: int) -> LinearUse | None:
    """Rows one after another: learned positions."""
    W, out = eqn.invars[0].aval, eqn.outvars[0].aval
    if eqn.params["strides"] is not None or out.shape[1:] != W.shape[1:]:
        return None
    return rows(eqn, None, lambda _: eqn.params["start_indices"][0] + jnp.arange(out.shape[0]))


ADDED = {"add", "add_any", "sub", "neg", "broadcast_in_dim"}


def smallest(eqn: Any, at: int) -> bool:
    """Whether the gradient of a parameter used here has no smaller form: it is added, or it is a vector of factors."""
    shape = eqn.invars[at].aval.shape
    return eqn.primitive.name in ADDED or max(shape, default=1) == math.prod(shape)


RULES: dict[str, Callable[[Any, int], LinearUse | None]] = {
    "dot_general": of_product,
    "conv_general_dilated": of_convolution,
    "gather": of_gather,
    "dynamic_slice": of_dynamic_slice,
    "slice": of_slice,
}
"""For a primitive the use that it makes of the parameter at one of its inputs; None where it is used otherwise."""
