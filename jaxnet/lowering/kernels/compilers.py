"""Pallas' two compilers, as the text of a kernel sees them: how it reads and writes a block of a head's rows.

    Triton    GPU: arrays in the device's memory, (time, heads, width); rows beyond the end are masked
    Mosaic    TPU: heads copied to the core's memory, (heads, time, width), filled up with zeros to whole blocks

Of numbers for each row, (heads, time), a kernel sees columns (block, 1).
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LANES = 128  # numbers in a row of a TPU's registers
MEMORY = 14 * 2**20  # bytes of a TPU core's memory that a kernel may take, of 16 MiB


def product(a, b, trans_a: bool = False, trans_b: bool = False):
    """a b of two matrices, either one transposed; summed in float32."""
    contracted = (0 if trans_a else 1,), (1 if trans_b else 0,)
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


class Triton(NamedTuple):
    """Kernels for a GPU."""

    block: int = 64
    interpret: bool = False

    def laid(self, t):
        """An array as kernels of this compiler take it."""
        return t

    def as_before(self, t, like):
        """A result in the shape of `like`."""
        return t

    def spec(self, t, heads: int = 1, shared: int = 1) -> pl.BlockSpec:
        """In a grid (heads, blocks): so many heads for each program, or one for `shared` of them in a row."""
        if t.ndim == 2:
            return pl.BlockSpec((heads, t.shape[1]), lambda h, i: (h // shared, 0))
        return pl.BlockSpec((t.shape[0], heads, t.shape[2]), lambda h, i: (0, h // shared, 0))

    def options(self) -> dict[str, Any]:
        """Of `pallas_call`."""
        parameters = triton.CompilerParams(num_warps=4, num_stages=2)
        return {"interpret": self.interpret, "compiler_params": parameters}

    def inside(self, start, count: int):
        """Which rows of a block there are."""
        return start + jnp.arange(self.block) < count

    def rows(self, ref, start, count: int, head=0):
        """A block of a head's rows, zeros after the last."""
        mask = self.inside(start, count)[:, None]
        return triton.load(ref.at[pl.ds(start, self.block), jnp.int32(head)], mask=mask, other=0)

    def column(self, ref, start, count: int, head=0):
        """A block of numbers, one for each row."""
        mask = self.inside(start, count)
        return triton.load(ref.at[jnp.int32(head), pl.ds(start, self.block)], mask=mask, other=0)[:, None]

    def put_rows(self, ref, start, count: int, values) -> None:
        """Write a block of rows."""
        mask = self.inside(start, count)[:, None]
        triton.store(ref.at[pl.ds(start, self.block), jnp.int32(0)], values.astype(ref.dtype), mask=mask)

    def put_column(self, ref, start, count: int, values) -> None:
        """Write a number for each row."""
        triton.store(ref.at[jnp.int32(0), pl.ds(start, self.block)], values[:, 0], mask=self.inside(start, count))


class Mosaic(NamedTuple):
    """Kernels for a TPU."""

    block: int = LANES
    interpret: bool = False

    def laid(self, t):
        """An array as kernels of this compiler take it."""
        whole = [(0, 0), (0, -(t.shape[1] if t.ndim == 2 else t.shape[0]) % self.block)]
        if t.ndim == 2:
            return jnp.pad(t, whole)[:, None]
        return jnp.pad(t.swapaxes(0, 1), [*whole, (0, 0)])

    def as_before(self, t, like):
        """A result in the shape of `like`."""
        if len(like.shape) == 2:
            return t[:, 0, : like.shape[1]]
        return t[:, : like.shape[0]].swapaxes(0, 1)

    def spec(self, t, heads: int = 1, shared: int = 1) -> pl.BlockSpec:
        """In a grid (heads, blocks): so many heads for each program, or one for `shared` of them in a row."""
        return pl.BlockSpec((heads, *t.shape[1:]), lambda h, i: (h // shared, 0, 0))

    def options(self) -> dict[str, Any]:
        """Of `pallas_call`."""
        return {"interpret": self.interpret}

    def at(self, start):
        """A block from `start` on."""
        return pl.ds(pl.multiple_of(start, self.block), self.block)

    def rows(self, ref, start, count: int, head=0):
        """A block of a head's rows, zeros after the last."""
        return ref[head, self.at(start)]

    def column(self, ref, start, count: int, head=0):
        """A block of numbers, one for each row."""
        return ref[head, :, self.at(start)].reshape(self.block, 1)

    def put_rows(self, ref, start, count: int, values) -> None:
        """Write a block of rows."""
        ref[0, self.at(start)] = values.astype(ref.dtype)

    def put_column(self, ref, start, count: int, values) -> None:
        """Write a number for each row."""
        ref[0, :, self.at(start)] = values.reshape(1, self.block)


Compiler: TypeAlias = Triton | Mosaic


def compiler(platform: str, time: int, interpret: bool = False) -> Compiler:
    """The compiler for a platform, with blocks for sequences of this length."""
    if platform == "cuda":
        return Triton(interpret=interpret)
    return Mosaic(LANES if time <= LANES else 2 * LANES, interpret)
