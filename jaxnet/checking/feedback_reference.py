"""Declared deviations: networks whose error goes back by another path than Wᵀ, as functions for autodiff.

The stand-in of a layer has its value, and for its derivative the declared one:

    z = W sg(a) + sg(B) a − sg(sg(B) a)                    for each product with W; sg: a constant for autodiff
    + B sg(a) − sg(B sg(a))                                where B is learned by ∇_W
    out = last layer's + Σ (Bᵀ a − sg(Bᵀ a))                `direct`: every a sends its part to the last layer's δ
    out = f(sg(a)) + a − sg(a)                             `straight_through`

So ∇_W C is taken at W and ∂C/∂a at B, by JAX's rules alone; of the hand-written backward pass nothing is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.factors import dataclass_tree
from jaxnet.feedback.feedback_path import FeedbackPath, beside_in, each_own, feedback_paths_in, unstated
from jaxnet.layer import Layer
from jaxnet.lowering import plain_forms
from jaxnet.program import Evaluation, Operation, graph_of
from jaxnet.program.calls import bind
from jaxnet.program.evaluate import Kept
from jaxnet.readings import Beside, bare

constant = jax.lax.stop_gradient


def deviation(net: Layer) -> str:
    """The declared feedback of a network, in words; empty where its backward pass is the derivative."""
    names = dict.fromkeys(path.name for path in feedback_paths_in(net))
    if not names:
        return ""
    return f"intended: the error goes back by feedback {', '.join(names)}, and each gradient is held against that"


def declared(net: Layer) -> Layer:
    """The network for autodiff: its value, with the declared backward pass for derivative. It is not to be run back."""
    if isinstance(net.rebuild, FeedbackPath):
        return stand_in(net.rebuild, net.parts[0])
    if net.maker == "remat":  # saves no inner value, and `direct` needs one
        return declared(net.parts[0])
    return net if net.rebuild is None else net.rebuild(*map(declared, net.parts))


def stand_in(path: FeedbackPath, net: Layer) -> Layer:
    """The network inside a feedback path, for autodiff."""
    inner = declared(net)
    swapped = each_own(lambda leaf: by_matrix(path, leaf), inner)
    sinking = each_own(with_sink, inner)

    def forward(params, x, key=None, train=False):
        if path.through:
            out, saved = inner.forward(params, constant(x), key, train)
            return out + (x - constant(x)), saved
        out, saved = jax.eval_shape(lambda p, x: net.forward(p, x, key, train), bare(params), x)
        beside = params if path.learned else path.beside(net, params, saved, out)
        if path.matrix is not None:
            return swapped.forward(beside, x, key, train)
        _, sinks = sinking.forward(beside, x, key, train)
        found = [node.value for node in jax.tree.leaves(sinks, is_leaf=is_sink) if is_sink(node)]
        sums = [value.reshape(-1, value.shape[-1]).sum(0) for value in found]
        own = [place.about for place in path.places(net, params, saved, out)[0] if place.about is not None]
        last, number = max(i for i, about in enumerate(own) if about.weights), itertools.count()
        ending = each_own(lambda leaf: with_constant_input(leaf, sum(sums) if next(number) == last else None), inner)
        return ending.forward(beside, x, key, train)

    return Layer(f"feedback {path.name}", path.around(net).init, forward, net.backward, (inner,), path)


def by_matrix(path: FeedbackPath, leaf: Layer) -> Layer:
    """A leaf layer with the path's matrix for W wherever autodiff sends the error back through a product with W."""

    def forward(params, x, key=None, train=False):
        own = bare(params)
        fed = beside_in(params)
        if not fed or path.matrix is None:
            return leaf.forward(own, x, key, train)
        _, saved = leaf.forward(own, x, key, train)
        instead = {
            name: constant(path.matrix(constant(node.p), unstated(node.own), path.scale)) for name, node in fed.items()
        }
        learned = {name: node.own for name, node in fed.items()} if path.learned == "gradient" else {}
        with plain_forms():
            program = jax.make_jaxpr(lambda weights, own, x: leaf.forward(own | weights, x, key, train)[0])
            weights = {name: own[name] for name in fed}
            rest = {name: p for name, p in own.items() if name not in fed}
            program = program(weights, rest, x)
        fields = [Beside(weights[name], (instead[name], learned.get(name))) for name in sorted(fed)]
        [out] = FedBack().run(graph_of(program), [*fields, *jax.tree.leaves((rest, x))])
        return out, saved

    return leaf._replace(forward=forward)


class FedBack(Evaluation):
    """Replaces z = W x as above wherever a value is a W with something `Beside` it."""

    def outcome(self, operation: Operation, values: Sequence) -> tuple[Sequence, Kept]:
        """The results of an operation. Raises `ValueError` for a W that is used other than as a factor of a product."""
        at = [i for i, t in enumerate(values) if isinstance(t, Beside)]
        if at and operation.kind == "scan":
            return super().outcome(operation, values)
        return fed_back(operation.eqn, values, at) if at else bind(operation.eqn, values), {}


def fed_back(eqn: Any, values: Sequence, at: list[int]) -> list[Any]:
    """The results of an equation with weights among its inputs."""

    def of(W):
        return bind(eqn, [W if i in at else t for i, t in enumerate(values)])

    node = values[at[0]]
    if len(values) == 1:  # reshaped, transposed, in another dtype: the same is done to what stands beside
        instead, learned = node.own
        [W], [B] = of(node.p), of(instead)
        return [Beside(W, (B, None if learned is None else of(learned)[0]))]
    if eqn.primitive.name not in ("dot_general", "conv_general_dilated") or len(at) > 1:
        raise ValueError(f"feedback takes weights that are factors of products, got one in {eqn.primitive.name}")
    [other] = [i for i in (0, 1) if i not in at]

    def product(W, x):
        return bind(eqn, [x if i == other else W for i in range(len(values))])[0]

    x, (instead, learned) = values[other], node.own
    through = product(instead, x)
    if learned is not None:
        through = through + product(learned, constant(x))
    return [product(node.p, constant(x)) + (through - constant(through))]


@dataclass_tree
class Sink:
    """The message of a layer to the last one: zero, with B for its derivative."""

    value: Any


def is_sink(node: Any) -> bool:
    """Whether a node of the saved values is a `Sink`."""
    return isinstance(node, Sink)


def with_sink(leaf: Layer) -> Layer:
    """A leaf layer whose ∂/∂a is zero, and which saves its `Sink`."""
    constant_input = with_constant_input(leaf)

    def forward(params, x, key=None, train=False):
        out, saved = constant_input.forward(params, x, key, train)
        if not beside_in(params):
            return out, saved
        [B] = [node.own for node in beside_in(params).values()]
        to_last = jnp.tensordot(x, B.astype(x.dtype), x.ndim)
        return out, Sink(to_last - constant(to_last))

    return leaf._replace(forward=forward)


def with_constant_input(leaf: Layer, added: Any = None) -> Layer:
    """A leaf layer whose ∂/∂a is zero where a B stands beside its parameters, with something added to its value."""

    def forward(params, x, key=None, train=False):
        own = bare(params)
        out, saved = leaf.forward(own, constant(x) if beside_in(params) else x, key, train)
        return out if added is None else out + added, saved

    return leaf._replace(forward=forward)
