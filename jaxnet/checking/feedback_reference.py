"""Declared deviations: networks whose error goes back another way than Wᵀ, as functions for autodiff.

The stand-in of a layer has its value, and for its derivative the declared one:

    z = f(W, sg(a)) + f(sg(B), a) − sg(f(sg(B), a))        sg: a constant for autodiff
    + f(B, sg(a)) − sg(f(B, sg(a)))                        where B is learned, f linear in W: by ∇_W
    out = last layer's + Σ (Bᵀ a − sg(Bᵀ a))                `direct`: every a sends its part to the last layer's δ
    out = f(sg(a)) + a − sg(a)                             `straight_through`

So ∇_W C is taken at W and ∂C/∂a at B, by JAX's rules alone; of the hand-written backward pass nothing is used.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.factors import dataclass_tree
from jaxnet.feedback import BESIDE, Way, bare, each_own, ways_in
from jaxnet.layer import Layer

constant = jax.lax.stop_gradient


def deviation(net: Layer) -> str:
    """What is declared of a network's backward pass, in words; empty where it is the derivative."""
    names = dict.fromkeys(way.name for way in ways_in(net))
    if not names:
        return ""
    return f"intended: the error goes back by feedback {', '.join(names)}, and each gradient is held against that"


def declared(net: Layer) -> Layer:
    """The network for autodiff: its value, with the declared backward pass for derivative. It is not to be run back."""
    if isinstance(net.rebuild, Way):
        return stand_in(net.rebuild, net.parts[0])
    if net.maker == "remat":  # saves nothing of what is inside, where `direct` looks
        return declared(net.parts[0])
    return net if net.rebuild is None else net.rebuild(*map(declared, net.parts))


def stand_in(way: Way, net: Layer) -> Layer:
    """The network inside a way back, for autodiff."""
    inner = declared(net)
    swapped = each_own(lambda leaf: by_matrix(way, leaf), inner)
    sinking = each_own(with_sink, inner)

    def forward(params, x, key=None, train=False):
        if way.through:
            out, saved = inner.forward(params, constant(x), key, train)
            return out + (x - constant(x)), saved
        out, saved = jax.eval_shape(lambda p, x: net.forward(p, x, key, train), params, x)
        beside = params if way.learned else way.beside(net, params, saved, out)
        if way.matrix is not None:
            return swapped.forward(beside, x, key, train)
        _, sinks = sinking.forward(beside, x, key, train)
        found = [node.value for node in jax.tree.leaves(sinks, is_leaf=is_sink) if is_sink(node)]
        sums = [value.reshape(-1, value.shape[-1]).sum(0) for value in found]
        own = [place.about for place in way.places(net, params, saved, out)[0] if place.about is not None]
        last, number = max(i for i, about in enumerate(own) if about.weights), itertools.count()
        ending = each_own(lambda leaf: with_constant_input(leaf, sum(sums) if next(number) == last else None), inner)
        return ending.forward(beside, x, key, train)

    return Layer(f"feedback {way.name}", way.around(net).init, forward, net.backward, (inner,), way)


def by_matrix(way: Way, leaf: Layer) -> Layer:
    """A leaf layer whose ∂/∂a is taken with the way's matrix for W."""

    def forward(params, x, key=None, train=False):
        own = bare(params)
        if own is params or way.matrix is None:
            return leaf.forward(params, x, key, train)
        instead = own | {"W": way.matrix(own["W"], params[BESIDE], way.scale)}
        out, saved = leaf.forward(own, constant(x), key, train)
        through, _ = leaf.forward(constant(instead), x, key, train)
        if way.learned:
            through = through + leaf.forward(constant(own) | {"W": params[BESIDE]}, constant(x), key, train)[0]
        return out + (through - constant(through)), saved

    return leaf._replace(forward=forward)


@dataclass_tree
class Sink:
    """What a layer sends to the last one: zero, with B for its derivative."""

    value: Any


def is_sink(node: Any) -> bool:
    """Whether a node of the saved values is a `Sink`."""
    return isinstance(node, Sink)


def with_sink(leaf: Layer) -> Layer:
    """A leaf layer whose ∂/∂a is zero, and which saves its `Sink`."""
    constant_input = with_constant_input(leaf)

    def forward(params, x, key=None, train=False):
        out, saved = constant_input.forward(params, x, key, train)
        if bare(params) is params:
            return out, saved
        to_last = jnp.tensordot(x, params[BESIDE].astype(x.dtype), x.ndim)
        return out, Sink(to_last - constant(to_last))

    return leaf._replace(forward=forward)


def with_constant_input(leaf: Layer, added: Any = None) -> Layer:
    """A leaf layer whose ∂/∂a is zero where a B stands beside its parameters, with something added to its value."""

    def forward(params, x, key=None, train=False):
        own = bare(params)
        out, saved = leaf.forward(own, x if own is params else constant(x), key, train)
        return out if added is None else out + added, saved

    return leaf._replace(forward=forward)
