"""How arrays lie on a mesh where the compiler cannot tell: shares of a kernel's arrays, and shardings of types.

The compiler cannot cut a kernel or a loop over heads: it would gather their arrays on every device. So there each
device is given its share, of the examples and of the axes that operations give a name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


@dataclass(frozen=True)
class Shares:
    """A mesh, those of its axes that share out the examples, and (name of an axis, the mesh's axis that cuts it)."""

    mesh: Mesh
    examples: tuple[str, ...]
    cut: tuple[tuple[str, str], ...] = ()

    def on_each(self, f: Callable, axes: str, arrays: tuple) -> Callable:
        """`f`, which gives a tuple, run by each device on its share of the arrays.

        axes: the names of the axes of each array and result, "time heads, heads -> time heads"; "" for none. One is cut
        where the mesh divides its length in every array.
        """
        context = jax.sharding.get_abstract_mesh()
        mesh = context if context.manual_axes else self.mesh
        free = {name for name in mesh.axis_names if name not in context.manual_axes}
        if not free:
            return f
        taken, _, given = axes.partition("->")
        lengths: dict[str, list[int]] = {}
        for names, t in zip(taken.split(","), arrays, strict=True) if axes else ():
            for name, length in zip(names.split(), t.shape, strict=True):
                lengths.setdefault(name, []).append(length)
        cut = {
            name: on
            for name, on in self.cut
            if on in free and all(length % mesh.shape[on] == 0 for length in lengths.get(name, ()))
        }

        def specs(side: str) -> PartitionSpec | tuple[PartitionSpec, ...]:
            return tuple(PartitionSpec(*map(cut.get, names.split())) for names in side.split(",")) if side else whole

        whole = PartitionSpec()
        options = {"in_specs": specs(taken), "out_specs": specs(given), "check_vma": False}
        return jax.shard_map(f, mesh=mesh, axis_names=free, **options)


shares = jax.make_user_context(default_value=None)
"""The `Shares` of programs that are traced inside; None where the compiler shares out all."""


def axes_of_examples(batch: Any) -> tuple[str, ...] | None:
    """The mesh's axes that share out a batch, a tree of arrays, for `vmap`; None where none do."""
    if shares.value is None:
        return None
    axes = shares.value.examples
    devices = prod(shares.value.mesh.shape[name] for name in axes)
    return axes if len(jax.tree.leaves(batch)[0]) % devices == 0 else None


def explicit_sharding(p):
    """The sharding of `p` where its type carries one, else None."""
    sharding = jax.typeof(p).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def replicated(like) -> NamedSharding | None:
    """The whole array on every device of the mesh of `like`, where its type carries one, else None."""
    sharding = explicit_sharding(like)
    return sharding and NamedSharding(sharding.mesh, PartitionSpec())


@custom_vmap
def sum_over_axis(t):
    """Σ t over the axis that is mapped, the same for each entry of it."""
    return t


@sum_over_axis.def_vmap
def _(size, mapped, t):
    return t.sum(0) if mapped[0] else size * t, False


def mean_over_axis(t: jax.Array, axis: str) -> jax.Array:
    """The mean of t over a mapped axis.

    jax 0.10 and 0.12 give the mean over an explicitly sharded axis the sharding of its operand, and fail; so there it
    is a sum over the axis that is mapped.
    """
    if explicit_sharding(t) is None:
        return jax.lax.pmean(t, axis)
    return sum_over_axis(t) / jax.lax.axis_size(axis)
