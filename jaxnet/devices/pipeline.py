"""A pipeline: a network's backward pass over several devices, each with a stage of its own.

A schedule is a table: for each tick and stage an operation and a microbatch. In every tick each device does its own
entry, then activations move one stage on and errors one stage back. All of it is one program.

    F   x → out, saved                          forward through the stage's layers
    B   δ → dx, factors                         their backward passes, with the factors unread
    W   factors → ∇C += Σ δ aᵀ                  the factors multiplied out

A factor is a product that was put off, so a backward pass in two parts does no product twice. `jax.vjp` in two parts
computes the errors of all layers once for B and again for W.

Source: Qi et al., Zero Bubble Pipeline Parallelism, 2024, arXiv 2401.10241, §2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.backprop import keys_for, mean_weights, size
from jaxnet.combinators import Shared, backward_through, forward_through
from jaxnet.devices.schedules import Schedule, Task, schedule
from jaxnet.layer import Layer, Loss, Passing, Reading, ShapeError, Tree, is_untrained, split_key
from jaxnet.readings import total

unread = Reading(lambda passing: passing.factors, out_axes=0)
"""The factors of every parameter, not multiplied out."""


class PipelineError(ValueError):
    """A network, mesh or batch that cannot be a pipeline."""


class Cut(NamedTuple):
    """A network as a pipeline takes it: layers, a block repeated, layers.

    `alone`: the network is the `repeat` itself. `shared`: the parameter that layers of a `tied` network share.
    """

    before: tuple[Layer, ...]
    block: Layer
    after: tuple[Layer, ...]
    alone: bool
    shared: Shared | None

    def apart(self, params: Tree) -> tuple[tuple, Tree, tuple]:
        """The parameters of the layers before, of the block, and of the layers after."""
        if self.alone:
            return (), params, ()
        return self.three(params if self.shared is None else self.shared.borrowed(params))

    def three(self, t: Sequence) -> tuple[tuple, Any, tuple]:
        """An entry for each layer, cut at the block."""
        at = len(self.before)
        return tuple(t[:at]), t[at], tuple(t[at + 1 :])

    def together(self, before: tuple, block: Tree, after: tuple) -> Tree:
        """The gradients of the network from those three."""
        if self.alone:
            return block
        grads = (*before, block, *after)
        return grads if self.shared is None else self.shared.added_up(grads)

    def keys(self, key: jax.Array | None) -> tuple[Sequence, jax.Array | None, Sequence]:
        """The keys of those three, as `serial` gives them to its layers."""
        if self.alone:
            return (), key, ()
        return self.three(split_key(key, len(self.before) + 1 + len(self.after)))


def cut(net: Layer) -> Cut:
    """The network's parts.

    Raises `PipelineError` for one that is not `serial(…, repeat(block, times), …)` or `tied(…)` with one `repeat`.
    """
    made = None if net.made is None else net.made.root
    alone = made is None or made.maker not in ("serial", "tied")
    layers = (net,) if alone else net.parts
    at = [i for i, layer in enumerate(layers) if layer.made is not None and layer.made.root.maker == "repeat"]
    shared = Shared.of(made.options["share"], made.options["where"]) if made and made.maker == "tied" else None
    if len(at) != 1 or (shared and at[0] in (shared.owner, *shared.borrowers)):
        raise PipelineError(
            "a pipeline takes serial(…, repeat(block, times), …) or tied(…) with one repeat, whose blocks the stages "
            f"share out, got {net!r}"
        )
    [block] = layers[at[0]].parts
    return Cut(layers[: at[0]], block, layers[at[0] + 1 :], alone, shared)


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
    parts = cut(net)
    if loss.init is not None:
        raise PipelineError(f"a pipeline takes a loss without parameters, got {loss.name}")
    if axis not in mesh.shape:
        raise PipelineError(f"the mesh has no axis {axis!r}: it has {', '.join(mesh.axis_names)}")
    stages = mesh.shape[axis]
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
            stage.run,
            mesh=mesh,
            axis_names={axis, *data},
            in_specs=(by_layer, each),
            out_specs=(PartitionSpec(), by_layer),
            check_vma=False,
        )(*given)
        return value, parts.together(*grads)

    return batch


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


def put(buffers: Tree, i, values: Tree) -> Tree:
    """The buffers with values in slot i."""
    return jax.tree.map(lambda b, v: jax.lax.dynamic_update_index_in_dim(b, v, i, 0), buffers, values)


def at(buffers: Tree, i) -> Tree:
    """What lies in slot i."""
    return jax.tree.map(lambda b: jax.lax.dynamic_index_in_dim(b, i, 0, keepdims=False), buffers)


def most_at_once(plan: Schedule, first: tuple[Task, ...], last: tuple[Task, ...], shift: int = 0) -> int:
    """The most microbatches at once, on any stage, between the end of one operation and that of another.

    `shift`: the stage that does the first operation, counted from the one that does the last.
    """
    table = plan.table()[..., 0]
    begun, ended = (np.isin(table, ops).cumsum(axis=0) for ops in (first, last))
    if shift:
        begun = np.roll(begun, -shift, axis=1)
        begun[:, -1 if shift > 0 else 0] = 0
    # A slot is free in the tick after the one that empties it.
    before = np.vstack([np.zeros_like(ended[:1]), ended[:-1]])
    return max(1, int((begun - before).max()))


class Stage(NamedTuple):
    """The program of each device: it knows its stage by its place on the axis."""

    parts: Cut
    loss: Loss
    plan: Schedule
    axis: str
    data: tuple[str, ...]
    depth: int
    train: bool

    # ------------------------------------------------------------------- F, B and W of one microbatch

    def keys(self, key):
        """The keys of one example: for the layers before, for this stage's blocks, for the layers after."""
        before, own, after = self.parts.keys(key)
        if own is None:
            return before, None, after
        blocks = jax.random.split(own, self.depth)
        here = self.depth // self.plan.stages
        return before, jax.lax.dynamic_slice_in_dim(blocks, jax.lax.axis_index(self.axis) * here, here), after

    def enter(self, params, x, key):
        """The layers before the blocks, of a microbatch: x and their saved values."""
        return jax.vmap(lambda x, key: forward_through(self.parts.before, params, x, self.keys(key)[0], self.train))(
            x, key
        )

    def forward(self, params, x, key):
        """F: out and saved of this stage's blocks."""

        def one(x, key):
            return jax.lax.scan(
                lambda x, pk: self.parts.block.forward(pk[0], x, pk[1], self.train), x, (params, self.keys(key)[1])
            )

        return jax.vmap(one)(x, key)

    def backward(self, params, saved, delta):
        """B: dx and the factors, unread: of each example, of each block."""

        def one(saved, delta):
            return jax.lax.scan(
                lambda delta, ps: self.parts.block.backward(*ps, delta, unread), delta, (params, saved), reverse=True
            )

        return jax.vmap(one)(saved, delta)

    def weights(self, params, factors):
        """W: the factors multiplied out, Σ over the examples."""
        return jax.vmap(summed, (0, 1))(params, factors)

    def turn(self, params, x, y, weight, key):
        """The layers after the blocks and the loss: cost, δ for the last block, their gradients."""
        layers = self.parts.after

        def one(x, y, weight, key):
            out, saved = forward_through(layers, params, x, self.keys(key)[2], self.train)
            cost, d_out, _ = self.loss.turn((), out, y, weight, total)
            return cost, *backward_through(layers, params, saved, d_out, total)

        costs, delta, grads = jax.vmap(one, out_axes=(0, 0, None))(x, y, weight, key)
        return costs.sum(), delta, grads

    def leave(self, params, x, key, delta):
        """The gradients of the layers before the blocks, run again: their `saved` would lie on every stage."""

        def one(x, key, delta):
            _, saved = forward_through(self.parts.before, params, x, self.keys(key)[0], self.train)
            return backward_through(self.parts.before, params, saved, delta, total)[1]

        return jax.vmap(one, out_axes=None)(x, key, delta)

    # ------------------------------------------------------------------------------------- all ticks

    def run(self, params, examples):
        """Value and gradients of the batch: every tick of the table, in one scan."""
        before, blocks, after = params
        xs, ys, weights, keys = examples
        plan, axis = self.plan, self.axis
        table = jnp.asarray(plan.table())
        stage = jax.lax.axis_index(axis)
        is_first, is_last = stage == 0, stage == plan.stages - 1
        back = Task.B if any(task is Task.B for task, _ in plan.orders[0]) else Task.BW

        def shapes(f, *arguments):
            return jax.eval_shape(f, *arguments)

        def zeros(tree):
            return jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), tree)

        def slots(count, tree):
            return jax.tree.map(lambda t: jnp.zeros((count, *t.shape), t.dtype), tree)

        first_key = at(keys, 0)
        stream = shapes(lambda: self.enter(before, at(xs, 0), first_key)[0])
        out, saved = shapes(lambda x: self.forward(blocks, x, first_key), stream)
        if (out.shape, out.dtype) != (stream.shape, stream.dtype):
            raise ShapeError(f"the blocks take {stream.dtype}{stream.shape} and give {out.dtype}{out.shape}")
        _, factors = shapes(partial(self.backward, blocks), saved, stream)

        split = back is Task.B
        counts = {
            "activations": most_at_once(plan, (Task.F,), (Task.F,), shift=-1),
            "saved": most_at_once(plan, (Task.F,), (back,)),
            # The last stage has δ in the tick of its F, the others in that of the next one's B.
            "errors": max(most_at_once(plan, (back,), (back,), shift=1), most_at_once(plan, (Task.F,), (back,))),
            "factors": most_at_once(plan, (Task.B,), (Task.W,)) if split else 0,
        }
        state = {
            "cost": jnp.zeros(()),
            "grads": zeros((before, blocks, after)),
            "activations": slots(counts["activations"], stream),
            "saved": slots(counts["saved"], saved),
            "errors": slots(counts["errors"], stream),
            "factors": slots(counts["factors"], factors) if split else (),
            "out": zeros(stream),
            "dx": zeros(stream),
        }

        def slot(what, i):
            return i % counts[what]

        def idle(i, state):
            return state

        def f(i, state):
            key, held = at(keys, i), at(state["activations"], slot("activations", i))
            x = jax.lax.cond(is_first, lambda: self.enter(before, at(xs, i), key)[0], lambda: held)
            out, saved = self.forward(blocks, x, key)
            nothing = jnp.zeros(()), zeros(stream), zeros(after)
            cost, delta, grads = jax.lax.cond(
                is_last, lambda: self.turn(after, out, at(ys, i), at(weights, i), key), lambda: nothing
            )
            errors = state["errors"]
            held = at(errors, slot("errors", i))
            return state | {
                "cost": state["cost"] + cost,
                "grads": (*state["grads"][:2], jax.tree.map(jnp.add, state["grads"][2], grads)),
                "saved": put(state["saved"], slot("saved", i), saved),
                "errors": put(errors, slot("errors", i), jnp.where(is_last, delta, held)),
                "out": out,
            }

        def b(i, state, keep=True):
            delta = at(state["errors"], slot("errors", i))
            dx, factors = self.backward(blocks, at(state["saved"], slot("saved", i)), delta)
            of_before, *others = state["grads"]
            added = jax.lax.cond(
                is_first, lambda: self.leave(before, at(xs, i), at(keys, i), dx), lambda: zeros(before)
            )
            state = state | {"dx": dx, "grads": (jax.tree.map(jnp.add, of_before, added), *others)}
            if keep:
                return state | {"factors": put(state["factors"], slot("factors", i), factors)}
            return multiplied(state, factors)

        def multiplied(state, factors):
            of_before, of_blocks, of_after = state["grads"]
            own = jax.tree.map(jnp.add, of_blocks, self.weights(blocks, factors))
            return state | {"grads": (of_before, own, of_after)}

        def w(i, state):
            return multiplied(state, at(state["factors"], slot("factors", i)))

        does = {Task.IDLE: idle, Task.F: f, **({Task.B: b, Task.W: w} if split else {Task.BW: partial(b, keep=False)})}
        number = jnp.asarray([list(does).index(task) if task in does else 0 for task in Task])

        def tick(state, row):
            task, i = row[stage]
            state = jax.lax.switch(number[task], list(does.values()), i, state)
            on = [(s, s + 1) for s in range(plan.stages - 1)]
            arrived = jax.lax.ppermute(state["out"], axis, on)
            returned = jax.lax.ppermute(state["dx"], axis, [(after, before) for before, after in on])
            earlier, later = row[jnp.maximum(stage - 1, 0)], row[jnp.minimum(stage + 1, plan.stages - 1)]

            def received(what, neighbour, wanted, came):
                i = slot(what, neighbour[1])
                return put(state[what], i, jnp.where(wanted, came, at(state[what], i)))

            return state | {
                "activations": received("activations", earlier, ~is_first & (earlier[0] == Task.F), arrived),
                "errors": received("errors", later, ~is_last & (later[0] == back), returned),
            }, None

        state, _ = jax.lax.scan(tick, state, table)
        of_before, of_blocks, of_after = state["grads"]
        everywhere = (axis, *self.data)
        cost, of_before, of_after = jax.lax.psum((state["cost"], of_before, of_after), everywhere)
        return cost, (of_before, jax.lax.psum(of_blocks, self.data) if self.data else of_blocks, of_after)


def summed(params: Tree, factors: Tree) -> Tree:
    """The gradients of one layer from its factors, Σ over the examples: what `total` reads."""

    def one(factors):
        return total.at(Passing(params, (), (), (), factors))

    return jax.vmap(one, out_axes=None)(factors)
