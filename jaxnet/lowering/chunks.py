"""Loops over a batch's examples a few at a time, where all at once would need too much memory.

A batch that is sharded over devices stays where it lies: its axis is split into (devices, examples on each), and the
loop runs over the second, so that each step handles a few examples of every device. A loop over the whole axis would
gather the batch on every device, and one summing into a single array would exchange sums in every step.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

Tree = Any  # a pytree of arrays


def sum_over_chunks(f: Callable, args: Tree, size: int) -> Tree:
    """Σ f(chunk) over chunks of at most `size` examples on each device: f gives one tree of sums for a chunk.

    `args`: a tuple of arrays with one leading axis of examples in common; f takes that many. `size`: at least 1.
    """
    args, devices = by_device(args)
    n = args[0].shape[1]
    whole = (n - 1) // size
    first = n - whole * size  # the remainder comes first: the loop begins with it
    over_devices = jax.vmap(f)

    def add(i, so_far):
        chunk = [jax.lax.dynamic_slice_in_dim(t, first + i * size, size, axis=1) for t in args]
        return jax.tree.map(jnp.add, so_far, over_devices(*chunk))

    sums = over_devices(*(t[:, :first] for t in args))
    if whole:
        sums = jax.lax.fori_loop(0, whole, add, sums)
    return jax.tree.map(lambda t: t[0] if devices == 1 else t.sum(0), sums)


def by_device(args: Tree) -> tuple[list[jax.Array], int]:
    """The arrays as (devices, examples on each, …), and how many devices share the examples."""
    devices = shared_by(args)
    return [t.reshape(devices, len(t) // devices, *t.shape[1:]) for t in args], devices


def shared_by(args: Tree) -> int:
    """Among how many devices the examples may be shared out: those of the mesh that the arrays' types name.

    The compiler decides on a mesh of automatic axes, so all of its devices count there; where they do not divide the
    examples, as many as do.
    """
    mesh = jax.typeof(args[0]).sharding.mesh
    sizes = [size for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind != AxisType.Manual]
    return math.gcd(math.prod(sizes), len(args[0]))
