"""Where NaN or infinity first appeared: the step, found by going through a call again, the layer and the examples."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.backprop import value_and_grad
from jaxnet.quantities.nonfinite import finite, first_nonfinite
from jaxnet.readings import in_order
from jaxnet.training import monitors, step
from jaxnet.training.data.on_disk import ReadAhead
from jaxnet.training.session import Session
from jaxnet.training.step import State, StepCall
from jaxnet.training.text_windows import examples_at


class Trouble(NamedTuple):
    """The step, counted from 1 over the whole run, and a description of the place."""

    step: int
    where: str


def first_trouble(session: Session, seed: int, before: State, call: StepCall, order: Any) -> Trouble:
    """The first step of a call that leaves an unsound state, and the first place in it.

    before: one seed's state before the call, sound. order: that seed's order of the epoch.
    """
    recipe = session.recipe
    train, read, begin = session.given(call, order)
    key = step.key_data(session.seeds[seed])
    one = jax.jit(step.many_steps(recipe, 1, call.batch))
    for i in range(call.count):
        start = begin + np.int32(i * call.batch)
        after, good = one(before, train, read, start, key)
        if not good:
            places, counts = step.drawn(recipe, read[start : start + call.batch], key, before.step)
            batch = examples_at(train, places)
            found = place(session, before, after, *batch, step.step_key(key, before.step))
            if isinstance(found, str):
                return Trouble(int(after.step), found)
            if isinstance(order, ReadAhead):
                places = order.order[call.start + i * call.batch :]
            counted = np.ones(len(batch[0])) if counts is None else np.asarray(counts)
            return Trouble(int(after.step), f"{found.where}, {examples(session, found.examples, places, counted)}")
        before = after
    return Trouble(int(before.step), "somewhere in this call; step by step it does not appear")


def examples(session: Session, bad: np.ndarray, places: Any, counts: np.ndarray) -> str:
    """Which examples of a batch are meant: all of them, or the first one by its place in the training data."""
    bad, size = bad[counts[bad] > 0], int(counts.sum())
    if len(bad) == size > 1:
        return f"in all {size} examples of the batch"
    what = "training example" if session.dataset.text is None else "the window that begins at token"
    others = f" and {len(bad) - 1} more of the batch's {size}" if len(bad) > 1 else ""
    return f"in {what} {int(places[bad[0]]):,}{others}"


def place(session: Session, before: State, after: State, xs: jax.Array, ys: jax.Array, key: jax.Array) -> Any:
    """The first place in one step that is NaN or infinite: an `Origin`, or in words one that has no examples."""
    net, loss = session.recipe.net, session.recipe.loss

    def flags(params, xs, ys, key):
        return finite(net, loss)(params, xs, ys, key=key, train=True)

    arguments = (before.whole, xs, ys, key)
    if origin := first_nonfinite(net, loss, session.program(("finite", len(xs)), flags, *arguments)(*arguments)):
        return origin
    _, grads = jax.jit(lambda *args, key: value_and_grad(net, loss)(*args, key=key, train=True))(
        before.whole, xs, ys, key=key
    )
    for what, tree in (("the gradient", grads), ("the updated parameters", after.params)):
        numbers = np.asarray(in_order(net, monitors.by_layer(session.recipe.layer_ranks, tree)))
        if not np.isfinite(numbers).all():
            return f"{what} of layer {int(np.argmin(np.isfinite(numbers))) + 1} of those with parameters"
    return "the optimiser's state"
