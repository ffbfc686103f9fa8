"""A layer or a network as the subject of a check: how it is run, its parameters, its points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import vjp
from jaxnet.checking import points
from jaxnet.checking.differentiation import mode_of
from jaxnet.checking.feedback_reference import declared, deviation
from jaxnet.checking.points import Points
from jaxnet.checking.rules import declared_by
from jaxnet.checking.subject import CannotCheckError, Subject, Tree, on_device, why_passed_over
from jaxnet.layer import EXAMPLES, Layer, ShapeError, Untrained, is_untrained, split_state, with_state
from jaxnet.readings import total


def example_of(x: Tree, batched: bool) -> Tree:
    """Shape and dtype of one example."""

    def leaf(t):
        return jax.ShapeDtypeStruct(tuple(t.shape)[1 if batched else 0 :], t.dtype)

    return jax.tree.map(leaf, x, is_leaf=points.is_spec)


def takes_batch(net: Layer, template: tuple) -> bool:
    """Whether x is a batch for this network; an x that it takes as one example is one."""
    key = jax.random.key(0)
    errors = []
    for batched in (False, True):
        try:
            example = example_of(template[-1], batched)
            params = jax.eval_shape(net.init, key, example) if len(template) == 1 else points.draw(template[0], 0)
            jax.eval_shape(lambda p, x: net.forward(p, x)[0], params, example)
            return batched
        except (ShapeError, TypeError, ValueError, IndexError) as error:
            errors.append(str(error).splitlines()[0])
    raise CannotCheckError(
        f"{net.name} takes this input neither as one example ({errors[0]}) nor as a batch ({errors[1]})"
    )


def modes(net: Layer, template: tuple, batched: bool, seed: int) -> list[bool]:
    """Evaluation, and training where its program is another one (dropout, batch statistics)."""
    key, example = jax.random.key(0), example_of(template[-1], batched)
    params = jax.eval_shape(net.init, key, example) if len(template) == 1 else points.draw(template[0], seed)
    two = jax.tree.map(lambda t: jax.ShapeDtypeStruct((2, *t.shape) if batched else t.shape, t.dtype), example)
    programs = []
    for train in (False, True):
        try:
            programs.append(str(jax.make_jaxpr(Use(batched, key, train).forward(net))(params, two)))
        except Exception:  # a mode that a network does not run in is not checked
            programs.append(None)
    return [
        train for train in (False, True) if programs[train] is not None and (not train or programs[1] != programs[0])
    ] or [False]


def starting(init: Callable) -> Callable[[Tree, int], Tree]:
    """(example, seed) -> `init(key, example)`, compiled once for each shape of an example."""
    compiled: dict[str, Callable] = {}

    def start(example: Tree, seed: int) -> Tree:
        shape = str(example)
        if shape not in compiled:
            compiled[shape] = jax.jit(lambda key: init(key, example))
        return compiled[shape](jax.random.key(seed))

    return start


def asymmetric(params: Tree, seed: int) -> Tree:
    """Parameters of which none is symmetric: a bias of zeros, a γ of ones get random entries."""
    leaves, treedef = jax.tree.flatten(params)
    fresh = []
    for i, leaf in enumerate(leaves):
        if why_passed_over(leaf) is not None:
            fresh.append(leaf)
            continue
        rng, host = points.generator(seed, 505, i), np.asarray(leaf, np.float64)
        constant = host.size < 2 or np.all(host == host.flat[0])
        noise = 0.3 if constant else 0.1 * float(host.std())
        fresh.append(on_device(host + noise * rng.standard_normal(host.shape), leaf.dtype))
    return jax.tree.unflatten(treedef, fresh)


def random_params(init: Callable) -> Callable[[Tree, int], Tree]:
    """(example, seed) -> fresh parameters, none of them symmetric."""
    start = starting(init)
    return lambda example, seed: asymmetric(start(example, seed), seed)


def network_points(template: tuple, batched: bool, parameters: Callable) -> Points:
    """Points of a network: x and the arguments after it and parameters, as given or drawn."""
    made: dict[int, Tree] = {}

    def draw(seed: int, how: str = "plain") -> tuple:
        rest = points.draw(template, seed, how)
        if seed not in made:
            made[seed] = parameters(example_of(rest[0], batched), seed)
        return (made[seed], *rest)

    def elsewhere() -> list[tuple[str, Points]]:
        others = points.other_shapes(template) if points.has_specs(template) else []
        if batched:
            others = [each for each in others if each[0] in ("batch 1", "an odd batch")]
        return [(how, network_points(other, batched, parameters)) for how, other in others]

    return Points(draw, True, points.described(template), elsewhere)


def points_for(template: tuple, inputs: int, batched: bool, parameters: Callable) -> Points:
    """Points for `inputs` arguments with drawn parameters, or with given ones before them."""
    if len(template) == inputs:
        return network_points(template, batched, parameters)
    return points.points_of(template)


def layer_subject(
    net: Layer, template: tuple, batched: bool, train: bool, seed: int, name: str | None
) -> tuple[Subject, Points]:
    """The layer's backward pass as a subject (params, x), and its points."""
    where = points_for(template, 1, batched, random_params(net.init))
    args = where.draw(seed, "plain")
    use = Use(batched, jax.random.key(seed + 17) if train else None, train)
    label = (name or net.name) + (" (training)" if train else "")
    subject = Subject(label, args, use.backward(net), use.forward(net), names=("params", "x"), parts=(net.backward,))
    subject = replace(subject, mode=mode_of(subject.primal, args))
    return as_declared(subject, net, use.forward), where


def as_declared(subject: Subject, net: Layer, function: Callable[[Layer], Callable]) -> Subject:
    """The subject, held against the declared backward pass where the feedback is not Wᵀ. `function`: a network's."""
    words = deviation(net)
    if not words:
        return subject
    return replace(subject, declared=declared_by(function(declared(net)), subject), notes=(*subject.notes, words))


def held_still(params: Tree) -> Tree:
    """The parameters; autodiff differentiates the trained ones alone."""

    def still(node):
        return jax.tree.map(jax.lax.stop_gradient, node) if isinstance(node, Untrained) else node

    return jax.tree.map(still, params, is_leaf=is_untrained)


def zero_for_state(params: Tree, d_params: Tree) -> Tree:
    """Gradients with zeros for the parameters that are not trained, as autodiff gives them."""
    _, state = split_state(params)
    return with_state(d_params, jax.tree.map(jnp.zeros_like, state))


@dataclass(frozen=True)
class Use:
    """How a network is run: on one example or on a batch, with a key and in training or without."""

    batched: bool
    key: Any
    train: bool

    def keys(self, x: Tree) -> Any:
        """A key for each example."""
        return None if self.key is None else jax.random.split(self.key, len(jax.tree.leaves(x)[0]))

    def forward(self, net: Layer) -> Callable:
        """(params, x) -> out, for autodiff."""

        def one(params, x, key):
            return net.forward(params, x, key, self.train)[0]

        def forward(params, x):
            params = held_still(params)
            if self.batched:
                return jax.vmap(one, (None, 0, 0), axis_name=EXAMPLES)(params, x, self.keys(x))
            return one(params, x, self.key)

        return forward

    def backward(self, net: Layer) -> Callable:
        """(args, d_out) -> out, (d_params, dx), by the hand-written backward pass."""

        def of_batch(params, x, d_out):
            there = jax.vmap(lambda x, key: net.forward(params, x, key, self.train), axis_name=EXAMPLES)
            out, saved = there(x, self.keys(x))
            one = jax.vmap(lambda s, d: net.backward(params, s, d, total), out_axes=(0, None), axis_name=EXAMPLES)
            dx, d_params = one(saved, d_out)
            return out, (zero_for_state(params, d_params), dx)

        def run(args, d_out):
            params, x = args
            if self.batched:
                return of_batch(params, x, d_out)
            out, pullback = vjp(net)(params, x, key=self.key, train=self.train)
            d_params, dx = pullback(d_out)
            return out, (zero_for_state(params, d_params), dx)

        return run
