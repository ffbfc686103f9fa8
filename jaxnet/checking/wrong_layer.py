"""The first wrong layer of a wrong network.

Every layer but one is replaced by a reference of itself, whose backward is `jax.vjp` of its forward. So each layer in
turn gets the right δ from above, and none is blamed for another's mistake. Where all parts of a combination are right
and the combination is not, the combinator is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.checking import points
from jaxnet.checking.agreement import CheckOptions, Findings, asks_finer, judge_finer, judge_seeds
from jaxnet.checking.network_subjects import Use, layer_subject
from jaxnet.checking.points import Points
from jaxnet.checking.reference import Runs
from jaxnet.checking.report import Report
from jaxnet.checking.subject import Subject
from jaxnet.checking.verdict import check_subject
from jaxnet.factors import Plain
from jaxnet.layer import Layer, Passing, Static, split_state


def reference_layer(layer: Layer) -> Layer:
    """The same layer with autodiff of its forward for its backward."""

    def forward(params, x, key=None, train=False):
        return layer.forward(params, x, key, train)[0], (x, key, Static(train))

    def backward(params, saved, d_out, read):
        x, key, train = saved
        d_params, dx = jax.vjp(lambda p, x: layer.forward(p, x, key, train.value)[0], params, x)[1](d_out)
        dx = jax.tree.map(lambda d, t: d if jnp.issubdtype(t.dtype, jnp.inexact) else jnp.zeros(t.shape), dx, x)
        return dx, read.at(Passing(params, saved, d_out, dx, jax.tree.map(Plain, d_params)))

    return Layer(layer.name, layer.init, forward, backward)


def all_but(node: Layer, kept: int | None, part: Layer | None = None) -> Layer:
    """A combination with references for all its parts but one, for which `part` may stand."""
    assert node.rebuild is not None
    parts = [(part or each) if i == kept else reference_layer(each) for i, each in enumerate(node.parts)]
    return node.rebuild(*parts)


def bisected(net: Layer, report: Report, subject: Subject, where: Points, use: Use, options: CheckOptions) -> Report:
    """The report of a wrong network with the first wrong layer, and the repair of that layer."""

    whole = Runs.at(subject, where.draw(options.seed, "plain"))

    def right(candidate: Layer) -> bool:
        """Whether the network with these layers hand-written, and references for the others, gives the gradient."""
        found, few = Findings(), replace(options, seeds=1)
        runs = whole.with_rule(use.backward(candidate))
        first = judge_seeds(runs, where, few, found)
        if first is None:
            return False
        if asks_finer(options, *first[:2]):
            judge_finer(runs, where, few, found)
        return all(leaf.ok for leaf in found.leaves) and not found.problems and not runs.faults

    path, others = [], []
    node: Layer = net
    around: Callable[[Layer], Layer] = itself
    # A combination is held with references for all its parts first: where that is wrong, the combinator is.
    while node.rebuild is not None and right(around(all_but(node, None))):
        guilty = [i for i in reversed(range(len(node.parts))) if not right(around(all_but(node, i)))]
        if not guilty:
            break
        first = guilty[0]
        others += [f"layer {i + 1} of {len(node.parts)}: {node.parts[i].name}" for i in guilty[1:]]
        path.append(f"layer {first + 1} of {len(node.parts)}" if len(node.parts) > 1 else node.name)
        around = one_further(around, node, first)
        node = node.parts[first]
    notes = (*report.notes, *([f"wrong by themselves too: {', '.join(others)}"] if others else []))
    found = alone(net, node, subject, where, use, options) if options.diagnose else None
    report = replace(report, layer=" › ".join([*path, node.name]), notes=notes)
    if found is None:
        return report
    failed = () if found.repair or found.planted else found.notes  # why there is no cause
    notes = tuple(dict.fromkeys((*notes, *failed)))
    return replace(report, repair=found.repair, planted=found.planted, notes=notes)


def itself(part: Layer) -> Layer:
    """The whole network, with nothing around it."""
    return part


def one_further(around: Callable[[Layer], Layer], node: Layer, place: int) -> Callable[[Layer], Layer]:
    """A layer in its place inside `node` and the nodes around it; all else references."""
    return lambda part: around(all_but(node, place, part))


def couples(node: Layer, x: Any) -> bool:
    """Whether a layer keeps statistics of the batch beside its parameters."""
    example = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), x, is_leaf=points.is_spec)
    params = jax.eval_shape(node.init, jax.random.key(0), example)
    return bool(jax.tree.leaves(split_state(params)[1]))


def alone(net: Layer, node: Layer, subject: Subject, where: Points, use: Use, options: CheckOptions) -> Report | None:
    """The report of one layer by itself, at fresh inputs of the shape that reaches it in the network."""
    options = replace(options, shapes=False, also=False)
    if node is net:
        return check_subject(subject, where, options)
    seen: list = []

    def watched(layer: Layer) -> Layer:
        if layer is node:

            def forward(params, x, key=None, train=False):
                seen.append(jax.tree.map(lambda t: points.Spec(str(t.dtype), tuple(t.shape)), x))
                return layer.forward(params, x, key, train)

            return layer._replace(forward=forward, rebuild=None, parts=())
        return layer if layer.rebuild is None else layer.rebuild(*map(watched, layer.parts))

    jax.eval_shape(use.forward(watched(net)), *subject.args)
    if not seen:
        return None
    # A layer that couples the examples has a derivative on a whole batch alone.
    batched = use.batched and use.train and couples(node, seen[0])
    some = jax.tree.map(lambda spec: replace(spec, shape=(5, *spec.shape)), seen[0], is_leaf=points.is_spec)
    inner, there = layer_subject(node, (some if batched else seen[0],), batched, use.train, options.seed, None)
    return check_subject(inner, there, options)
