"""Norms over the last axis on a GPU: one kernel forward and one backward.

Each program of a kernel holds a block of rows; a row is one position. Backward also sums δ ⊙ x̂ and δ over ROWS rows,
and XLA adds these sums up to the gradients of γ and β. No array is read twice.

    forward      μ, σ of each row;  x̂ = (x − μ)/σ;  out = γ ⊙ x̂ + β
    backward     ĝ = γ ⊙ δ;  dx = (ĝ − mean ĝ − x̂ mean(ĝ ⊙ x̂))/σ;  dγ += δ ⊙ x̂;  dβ += δ

Compiled for an H100, 8 examples of (512, 256) in float32: forward 1 launch and 12 MiB moved, plain equations 3 and 20;
backward 2 launches (the kernel, and the sum over the examples) and 13 MiB, plain equations 3 and 28. With atomic
additions there are 4 launches: zeros are written before, and two rows are taken apart after.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

WIDEST = 8192  # a row lies in the registers of one program
ENTRIES = 4096  # of a block
ROWS = 32  # whose gradients of γ and β one program sums


def fits(*arrays: jax.Array | None, groups: int | None, **options) -> bool:
    """Whether the kernels take these arrays: norms over the last axis, in float32 or half."""
    given = jax.tree.leaves(arrays)
    halves = (jnp.float32, jnp.bfloat16, jnp.float16)
    return groups is None and all(t.shape[-1] <= WIDEST and t.dtype in halves for t in given)


def block_sizes(width: int) -> tuple[int, int]:
    """Rows and columns of a block, powers of 2."""
    columns = pl.next_power_of_2(width)
    return min(ROWS, max(1, ENTRIES // columns)), columns


def block(ref, start, size: tuple[int, int]):
    """Where a block of rows of (rows, width) lies, and which of its entries the array has."""
    at = start + jnp.arange(size[0])[:, None], jnp.arange(size[1])[None]
    return ref.at[at], (at[0] < ref.shape[0]) & (at[1] < ref.shape[1])


def rows(ref, start, size):
    """A block of rows, in float32, zeros outside of the array."""
    at, mask = block(ref, start, size)
    return triton.load(at, mask=mask, other=0).astype(jnp.float32)


def put(ref, start, values) -> None:
    """Write a block of rows."""
    at, mask = block(ref, start, values.shape)
    triton.store(at, values.astype(ref.dtype), mask=mask)


def forward_kernel(x_ref, gamma_ref, *refs, centred: bool, epsilon: float):
    """out, x̂ and σ of a block of rows."""
    *beta_refs, out_ref, x_hat_ref, sigma_ref = refs  # a norm has one β or none
    width = x_ref.shape[1]
    size = block_sizes(width)
    start = pl.program_id(0) * size[0]
    x = rows(x_ref, start, size)
    if centred:  # zeros stay where the row has ended
        x = jnp.where(jnp.arange(size[1])[None] < width, x - x.sum(1, keepdims=True) / width, 0)
    sigma = jnp.sqrt(jnp.square(x).sum(1, keepdims=True) / width + epsilon)
    x_hat = x / sigma
    one_row = 1, size[1]
    put(out_ref, start, sum((rows(ref, 0, one_row) for ref in beta_refs), rows(gamma_ref, 0, one_row) * x_hat))
    put(x_hat_ref, start, x_hat)
    put(sigma_ref, start, sigma)


def backward_kernel(gamma_ref, delta_ref, x_hat_ref, sigma_ref, dx_ref, sums_ref, *, centred: bool):
    """dx of ROWS rows, and their sums δ ⊙ x̂ and δ."""
    width = delta_ref.shape[1]
    size = block_sizes(width)
    part = pl.program_id(0)
    gamma = rows(gamma_ref, 0, (1, size[1]))

    def step(i, sums):
        start = part * ROWS + i * size[0]
        delta, x_hat = rows(delta_ref, start, size), rows(x_hat_ref, start, size)
        at, mask = block(sigma_ref, start, (size[0], 1))
        g = gamma * delta
        mean_g = g.sum(1, keepdims=True) / width if centred else 0.0
        along = (g * x_hat).sum(1, keepdims=True) / width
        put(dx_ref, start, (g - mean_g - x_hat * along) / triton.load(at, mask=mask, other=1))
        return sums[0] + (delta * x_hat).sum(0), sums[1] + delta.sum(0)

    sums = jax.lax.fori_loop(0, ROWS // size[0], step, (jnp.zeros(size[1]), jnp.zeros(size[1])))
    put(sums_ref, 2 * part, sums[0][None])
    put(sums_ref, 2 * part + 1, sums[1][None])


def whole(t) -> pl.BlockSpec:
    """All of a matrix, for every program."""
    return pl.BlockSpec(t.shape, lambda i: (0, 0))


def call(kernel, programs: int, arrays: list, results: list, name: str, interpret: bool):
    """A kernel on matrices, all of each for every program."""
    return pl.pallas_call(
        kernel,
        grid=(programs,),
        in_specs=list(map(whole, arrays)),
        out_specs=list(map(whole, results)),
        out_shape=results,
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4),
        name=name,
    )(*arrays)


def matrix(t: jax.Array) -> jax.Array:
    """An array as rows along its last axis."""
    return t.reshape(-1, t.shape[-1])


def forward(
    x: Float[Array, "*positions width"],
    gamma: Float[Array, " width"],
    beta: Float[Array, " width"] | None,
    *,
    groups: None,
    centred: bool,
    epsilon: float,
    interpret: bool = False,
) -> tuple[Float[Array, "*positions width"], Float[Array, "*positions width"], Float[Array, "*positions 1"]]:
    """out, x̂ and σ."""
    arrays = [matrix(t) for t in (x, gamma, beta) if t is not None]
    n = len(arrays[0])
    row = jax.ShapeDtypeStruct(arrays[0].shape, x.dtype)
    results = [row, row, jax.ShapeDtypeStruct((n, 1), jnp.float32)]
    kernel = partial(forward_kernel, centred=centred, epsilon=epsilon)
    found = call(kernel, pl.cdiv(n, block_sizes(x.shape[-1])[0]), arrays, results, "norm_forward", interpret)
    return tuple(t.reshape(*x.shape[:-1], t.shape[-1]) for t in found)


def backward(
    gamma: Float[Array, " width"],
    delta: Float[Array, "*positions width"],
    x_hat: Float[Array, "*positions width"],
    sigma: Float[Array, "*positions 1"],
    *,
    groups: None,
    centred: bool,
    interpret: bool = False,
) -> tuple[Float[Array, "*positions width"], Float[Array, " width"], Float[Array, " width"]]:
    """dx, dγ and dβ. One sum gives both: the programs write them into one array, row by row."""
    arrays = list(map(matrix, (gamma, delta, x_hat, sigma)))
    n, width = arrays[1].shape
    parts = pl.cdiv(n, ROWS)
    results = [jax.ShapeDtypeStruct((n, width), delta.dtype), jax.ShapeDtypeStruct((2 * parts, width), jnp.float32)]
    kernel = partial(backward_kernel, centred=centred)
    dx, sums = call(kernel, parts, arrays, results, "norm_backward", interpret)
    return dx.reshape(delta.shape), sums[::2].sum(0), sums[1::2].sum(0)
