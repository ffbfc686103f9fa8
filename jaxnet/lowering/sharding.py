"""Shardings that types carry, on a mesh with explicit axes: some operations must be told there how a result lies."""

import jax
from jax.custom_batching import custom_vmap
from jax.sharding import AxisType, NamedSharding, PartitionSpec


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
