"""Where NaN or infinity first appeared: the step, found by going through a call again, and the layer, by its trace."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import Step, trace, value_and_grad
from jaxnet.layer import Tree
from jaxnet.training import monitors, step
from jaxnet.training.session import Session
from jaxnet.training.step import State, StepCall


class Trouble(NamedTuple):
    """The step, counted from 1 over the whole run, and a description of the place."""

    step: int
    where: str


def first_trouble(session: Session, seed: int, before: State, call: StepCall, order: Any) -> Trouble:
    """The first step of a call that leaves an unsound state, and the first place in it.

    before: one seed's state before the call, sound. order: that seed's order of the epoch.
    """
    recipe = session.recipe
    train, order, begin = session.given(call, order)
    key = step.key_data(session.seeds[seed])
    one = jax.jit(step.many_steps(recipe, 1, call.batch))
    for i in range(call.count):
        start = begin + np.int32(i * call.batch)
        after, good = one(before, train, order, start, key)
        if not good:
            xs, ys, _ = step.batch_of(recipe, train, order[start : start + call.batch], key, before.step)
            return Trouble(int(after.step), place(session, before, after, xs, ys, step.step_key(key, before.step)))
        before = after
    return Trouble(int(before.step), "somewhere in this call; step by step it does not appear")


def place(session: Session, before: State, after: State, xs: jax.Array, ys: jax.Array, key: jax.Array) -> str:
    """The first place in one step that is NaN or infinite: forward, at the loss, backward, or in the update."""
    net, loss = session.recipe.net, session.recipe.loss
    seen = jax.jit(lambda *args, key: trace(net, loss)(*args, key=key, train=True))(before.whole, xs, ys, key=key)
    steps = seen.steps
    for i, layer in enumerate(steps):
        if not finite(layer.out):
            return f"the value of {named(steps, i)}"
    if not finite(seen.cost):
        return f"the loss ({loss.name})"
    for i, layer in reversed([*enumerate(steps)]):
        if not finite(layer.delta):  # δ of a layer's value is what the next one's backward pass gives
            return f"the backward pass of {named(steps, i + 1) if i + 1 < len(steps) else f'the loss ({loss.name})'}"
    _, grads = jax.jit(lambda *args, key: value_and_grad(net, loss)(*args, key=key, train=True))(
        before.whole, xs, ys, key=key
    )
    for what, tree in (("the gradient", grads), ("the updated parameters", after.params)):
        numbers = np.asarray(monitors.in_order(net, monitors.by_layer(step.layer_ranks(session.recipe), tree)))
        if not np.isfinite(numbers).all():
            return f"{what} of layer {int(np.argmin(np.isfinite(numbers))) + 1} of those with parameters"
    return "the optimiser's state"


def finite(tree: Tree) -> bool:
    """Whether all numbers are finite."""
    return all(bool(jnp.isfinite(t).all()) for t in jax.tree.leaves(tree))


def named(steps: Sequence[Step], i: int) -> str:
    """A layer by its place and name."""
    return f"layer {i + 1} of {len(steps)} ({steps[i].layer.value})"
