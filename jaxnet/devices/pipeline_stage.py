"""One stage of a pipeline: its tasks on a microbatch, and all ticks of its device.

    F   x → out, saved                          forward through the stage's layers
    B   δ → dx, factors                         their backward passes, with the factors unread
    W   factors → ∇C += Σ δ aᵀ                  the factors multiplied out

The first stage runs the layers before the blocks too, the last one those after them, and the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.combinators import backward_through, forward_through
from jaxnet.devices.pipeline_parts import Cut
from jaxnet.devices.schedules import Schedule, Task
from jaxnet.factors import dataclass_tree
from jaxnet.layer import Loss, Passing, Reading, ShapeError, Tree
from jaxnet.readings import total

unread = Reading(lambda passing: passing.factors, out_axes=0)
"""The factors of every parameter, not multiplied out."""


class Stage(NamedTuple):
    """The program of each device: it knows its stage by its place on the axis."""

    parts: Cut
    loss: Loss
    plan: Schedule
    axis: str
    data: tuple[str, ...]
    depth: int
    train: bool

    @property
    def back(self) -> Task:
        """The task that sends an error back: B, or BW where the schedule has them in one."""
        return Task.B if any(task is Task.B for task, _ in self.plan.orders[0]) else Task.BW

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


def summed(params: Tree, factors: Tree) -> Tree:
    """The gradients of one layer from its factors, Σ over the examples, as `total` reads them."""

    def one(factors):
        return total.at(Passing(params, (), (), (), factors))

    return jax.vmap(one, out_axes=None)(factors)


# ------------------------------------------------------------------------------------------------ all ticks


def at(arrays: Tree, i) -> Tree:
    """The entry i along the leading axis."""
    return jax.tree.map(lambda t: jax.lax.dynamic_index_in_dim(t, i, 0, keepdims=False), arrays)


def zeros(shapes: Tree, *leading: int) -> Tree:
    """Arrays of zeros of these shapes and dtypes, after `leading` axes."""
    return jax.tree.map(lambda t: jnp.zeros((*leading, *t.shape), t.dtype), shapes)


def added(so_far: Tree, more: Tree) -> Tree:
    """Σ, array by array."""
    return jax.tree.map(jnp.add, so_far, more)


@dataclass_tree
class Ring:
    """Something of the last few microbatches: that of microbatch i lies in place i modulo their number."""

    places: Tree

    def place(self, i) -> jax.Array:
        """Where microbatch i lies."""
        return i % len(jax.tree.leaves(self.places)[0])

    def of(self, i) -> Tree:
        """That of microbatch i."""
        return at(self.places, self.place(i))

    def put(self, i, values: Tree) -> "Ring":
        """With that of microbatch i."""
        place = self.place(i)
        return Ring(jax.tree.map(lambda t, v: jax.lax.dynamic_update_index_in_dim(t, v, place, 0), self.places, values))


class StageState(NamedTuple):
    """The state of a device between ticks. `out`, `dx`: the arrays that it sends on and back."""

    cost: jax.Array
    before: Tree  # gradients of the layers before the blocks
    blocks: Tree
    after: Tree
    activations: Ring
    saved: Ring
    errors: Ring
    factors: Ring
    out: jax.Array
    dx: jax.Array


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


@dataclass(frozen=True)
class Ticks:
    """The ticks of one device. `params`: of the layers before, the blocks, the layers after; `keys`: or None."""

    stage: Stage
    params: tuple[Tree, Tree, Tree]
    xs: Tree
    ys: Tree
    weights: Tree
    keys: Any

    def is_first(self) -> jax.Array:
        """Whether this device has the first stage."""
        return jax.lax.axis_index(self.stage.axis) == 0

    def is_last(self) -> jax.Array:
        """Whether it has the last one."""
        return jax.lax.axis_index(self.stage.axis) == self.stage.plan.stages - 1

    def begin(self) -> StageState:
        """Zeros, and for each thing as many places as microbatches have it at once."""
        before, blocks, _ = self.params
        stage, back = self.stage, self.stage.back

        def onward():
            x, _ = stage.enter(before, at(self.xs, 0), at(self.keys, 0))
            return x, *stage.forward(blocks, x, at(self.keys, 0))

        x, out, saved = jax.eval_shape(onward)
        if (out.shape, out.dtype) != (x.shape, x.dtype):
            raise ShapeError(f"the blocks take {x.dtype}{x.shape} and give {out.dtype}{out.shape}")
        _, factors = jax.eval_shape(stage.backward, blocks, saved, x)
        most = partial(most_at_once, stage.plan)
        # The last stage has δ in the tick of its F, the others in that of the next one's B.
        errors = max(most((back,), (back,), shift=1), most((Task.F,), (back,)))
        return StageState(
            jnp.zeros(()),
            *zeros(self.params),
            activations=Ring(zeros(x, most((Task.F,), (Task.F,), shift=-1))),
            saved=Ring(zeros(saved, most((Task.F,), (back,)))),
            errors=Ring(zeros(x, errors)),
            factors=Ring(zeros(factors, most((Task.B,), (Task.W,))) if back is Task.B else ()),
            out=zeros(x),
            dx=zeros(x),
        )

    def forward(self, i, state: StageState) -> StageState:
        """F of microbatch i, and on the last stage the turn."""
        before, blocks, after = self.params
        key, held = at(self.keys, i), state.activations.of(i)
        x = jax.lax.cond(self.is_first(), lambda: self.stage.enter(before, at(self.xs, i), key)[0], lambda: held)
        out, saved = self.stage.forward(blocks, x, key)
        nothing = jnp.zeros(()), zeros(out), zeros(after)
        cost, delta, grads = jax.lax.cond(
            self.is_last(),
            lambda: self.stage.turn(after, out, at(self.ys, i), at(self.weights, i), key),
            lambda: nothing,
        )
        return state._replace(
            cost=state.cost + cost,
            after=added(state.after, grads),
            saved=state.saved.put(i, saved),
            errors=state.errors.put(i, jnp.where(self.is_last(), delta, state.errors.of(i))),
            out=out,
        )

    def backward(self, i, state: StageState) -> tuple[StageState, Tree]:
        """dx of microbatch i, and the factors; on the first stage the gradients of the layers before."""
        before, blocks, _ = self.params
        dx, factors = self.stage.backward(blocks, state.saved.of(i), state.errors.of(i))
        grads = jax.lax.cond(
            self.is_first(),
            lambda: self.stage.leave(before, at(self.xs, i), at(self.keys, i), dx),
            lambda: zeros(before),
        )
        return state._replace(dx=dx, before=added(state.before, grads)), factors

    def multiplied(self, state: StageState, factors: Tree) -> StageState:
        """With the gradients of the blocks from these factors."""
        return state._replace(blocks=added(state.blocks, self.stage.weights(self.params[1], factors)))

    def tasks(self) -> dict[Task, Callable[[Any, StageState], StageState]]:
        """The function of each of the schedule's tasks."""

        def b(i, state):
            state, factors = self.backward(i, state)
            return state._replace(factors=state.factors.put(i, factors))

        both = {Task.IDLE: lambda i, state: state, Task.F: self.forward}
        if self.stage.back is Task.BW:
            return both | {Task.BW: lambda i, state: self.multiplied(*self.backward(i, state))}
        return both | {Task.B: b, Task.W: lambda i, state: self.multiplied(state, state.factors.of(i))}

    def tick(self, state: StageState, row) -> tuple[StageState, None]:
        """One row of the table: this stage's task, then activations move on and errors back."""
        stages, axis = self.stage.plan.stages, self.stage.axis
        here, does = jax.lax.axis_index(axis), self.tasks()
        number = jnp.asarray([list(does).index(task) if task in does else 0 for task in Task])
        task, i = row[here]
        state = jax.lax.switch(number[task], list(does.values()), i, state)
        on = [(s, s + 1) for s in range(stages - 1)]
        arrived = jax.lax.ppermute(state.out, axis, on)
        returned = jax.lax.ppermute(state.dx, axis, [(after, before) for before, after in on])

        def received(ring, neighbour, wanted, came):
            i = neighbour[1]
            return ring.put(i, jnp.where(wanted, came, ring.of(i)))

        earlier, later = row[jnp.maximum(here - 1, 0)], row[jnp.minimum(here + 1, stages - 1)]
        from_before = ~self.is_first() & (earlier[0] == Task.F)
        from_after = ~self.is_last() & (later[0] == self.stage.back)
        return state._replace(
            activations=received(state.activations, earlier, from_before, arrived),
            errors=received(state.errors, later, from_after, returned),
        ), None

    def run(self) -> tuple[jax.Array, tuple[Tree, Tree, Tree]]:
        """Value and gradients of the batch: every row of the table, in one scan."""
        state, _ = jax.lax.scan(self.tick, self.begin(), jnp.asarray(self.stage.plan.table()))
        axis, data = self.stage.axis, self.stage.data
        cost, before, after = jax.lax.psum((state.cost, state.before, state.after), (axis, *data))
        return cost, (before, jax.lax.psum(state.blocks, data) if data else state.blocks, after)
