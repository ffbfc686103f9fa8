"""A pipeline: a network's backward pass over several devices, each with a stage of its own.

A schedule is a table: for each tick and stage an operation and a microbatch. In every tick each device does its own
entry, then activations move one stage on and errors one stage back. All of it is one program.

A factor is a product that was put off, so a backward pass in two parts does no product twice. `jax.vjp` in two parts
computes the errors of all layers once for B and again for W.

Source: Qi et al., Zero Bubble Pipeline Parallelism, 2024, arXiv 2401.10241, §2.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.backprop import keys_for, mean_weights, size
from jaxnet.devices.pipeline_parts import PipelineError, cut
from jaxnet.devices.pipeline_stage import Stage, Ticks
from jaxnet.devices.schedules import schedule
from jaxnet.layer import Layer, Loss, Tree, is_untrained


def pipeline(
    net: Layer,
    loss: Loss,
    mesh: Mesh,
    *,
    microbatches: int,
    schedule_name: str = "zb-h1",
    axis: str = "stage",
    data: tuple[str, ...] | None = None,
) -> Callable:
    """As `value_and_grad`, with the blocks of the network's `repeat` shared out over an axis of the mesh.

    Returns `(params, xs, ys, *, key=None, train=False, weights=None) -> value, grads`. The layers before the `repeat`
    run on the first stage, those after it and the loss on the last. Parameters as `net`'s; those of the `repeat` come
    back sharded along `axis` by their leading axis.

    - `microbatches`: into how many the batch is cut.
    - `schedule_name`: one of `SCHEDULES`.
    - `data`: the axes of the mesh that share out each microbatch's examples; by default all others. The compiler shares
      out each stage's layers along an axis that is left, as the parameters lie.

    Raises `PipelineError` for a network without one `repeat`, a loss with parameters, a depth that the stages do not
    divide, a batch that microbatches and devices do not divide, layers that keep state, or a mesh without the axis.
    """
    parts, stages = cut(net), stages_of(mesh, axis, loss)
    data = tuple(name for name in mesh.axis_names if name != axis) if data is None else data
    shared_by = int(np.prod([mesh.shape[name] for name in data], dtype=int))
    plan = schedule(schedule_name, stages, microbatches)

    def batch(params, xs, ys, *, key=None, train=False, weights=None):
        by_part = parts.apart(params)
        depth = len(jax.tree.leaves(by_part[1])[0])
        fits(params, depth, stages, size(xs), microbatches, shared_by)
        weights = mean_weights(loss, ys, weights)

        def in_microbatches(t):
            return t.reshape(microbatches, -1, *t.shape[1:])

        examples = jax.tree.map(in_microbatches, (xs, ys, weights, keys_for(key, xs)))
        stage = Stage(parts, loss, plan, axis, data, depth, train)
        each = PartitionSpec(None, data) if data else PartitionSpec()
        by_layer = (PartitionSpec(), PartitionSpec(axis), PartitionSpec())
        given = (by_part, examples)
        if AxisType.Explicit in mesh.axis_types:  # there shard_map takes arrays only as they lie
            given = jax.reshard(given, jax.tree.map(partial(NamedSharding, mesh), (by_layer, each)))
        value, grads = jax.shard_map(
            lambda params, examples: Ticks(stage, params, *examples).run(),
            mesh=mesh,
            axis_names={axis, *data},
            in_specs=(by_layer, each),
            out_specs=(PartitionSpec(), by_layer),
            check_vma=False,
        )(*given)
        return value, parts.together(*grads)

    return batch


def stages_of(mesh: Mesh, axis: str, loss: Loss) -> int:
    """How many stages a mesh has. Raises `PipelineError` for one without the axis, or a loss with parameters."""
    if loss.init is not None:
        raise PipelineError(f"a pipeline takes a loss without parameters, got {loss.name}")
    if axis not in mesh.shape:
        raise PipelineError(f"the mesh has no axis {axis!r}: it has {', '.join(mesh.axis_names)}")
    return mesh.shape[axis]


def fits(params: Tree, depth: int, stages: int, n: int, microbatches: int, shared_by: int) -> None:
    """Raises `PipelineError` for sizes that do not divide, or parameters with state."""
    if any(is_untrained(node) for node in jax.tree.leaves(params, is_leaf=is_untrained)):
        raise PipelineError("a pipeline takes layers without state: batch_norm couples the examples of a whole batch")
    if depth % stages:
        divide = [str(p) for p in range(1, depth + 1) if depth % p == 0]
        raise PipelineError(f"{stages} stages do not divide the {depth} blocks of repeat: take {', '.join(divide)}")
    if n % (microbatches * shared_by):
        devices = f" × {shared_by} devices that share each" if shared_by > 1 else ""
        raise PipelineError(f"the batch must be a multiple of {microbatches} microbatches{devices}, got {n} examples")
