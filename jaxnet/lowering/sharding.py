"""Shardings that types carry, on a mesh with explicit axes: some operations must be told there how a result lies."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(p):
    """The sharding of `p` where its type carries one, else None."""
    sharding = jax.typeof(p).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def replicated(like) -> NamedSharding | None:
    """The whole array on every device of the mesh of `like`, where its type carries one, else None."""
    sharding = explicit_sharding(like)
    return sharding and NamedSharding(sharding.mesh, PartitionSpec())
