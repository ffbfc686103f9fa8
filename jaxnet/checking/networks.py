"""Layers, networks and losses: their backward pass against autodiff of their forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.backprop import initialize, value_and_grad
from jaxnet.checking import points
from jaxnet.checking.agreement import CheckOptions
from jaxnet.checking.differentiation import mode_of
from jaxnet.checking.network_subjects import (
    Use,
    as_declared,
    example_of,
    layer_subject,
    modes,
    points_for,
    random_params,
    takes_batch,
)
from jaxnet.checking.report import Report
from jaxnet.checking.subject import CannotCheckError, Subject
from jaxnet.checking.verdict import check_subject
from jaxnet.checking.wrong_layer import bisected
from jaxnet.layer import Layer, Loss, Static
from jaxnet.readings import product


def is_network(rule: Any) -> bool:
    """Whether `rule` is a layer, a network, a loss, or a pair (network, loss)."""
    return isinstance(rule, Layer | Loss) or (
        isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], Layer) and isinstance(rule[1], Loss)
    )


def check_network(
    rule: Any, template: tuple, options: CheckOptions, *, name: str | None = None, reference: Callable | None = None
) -> Report:
    """The check of a layer or network at (x) or (params, x), of a loss at (x, y), of a pair at (xs, ys)."""
    if isinstance(rule, Loss):
        return check_loss(rule, template, options, name)
    if isinstance(rule, Layer):
        return check_layer(rule, template, options, name, reference)
    return check_pair(rule[0], rule[1], template, options, name)


def check_layer(
    net: Layer, template: tuple, options: CheckOptions, name: str | None = None, reference: Callable | None = None
) -> Report:
    """A layer or a network, in evaluation mode, and in training mode where that is another program."""
    if len(template) not in (1, 2):
        raise CannotCheckError(
            f"a layer is checked at (x) or (params, x), one example or a batch; got {len(template)} arguments"
        )
    batched = takes_batch(net, template)
    reports = []
    for train in modes(net, template, batched, options.seed):
        subject, where = layer_subject(net, template, batched, train, options.seed, name)
        if reference is not None:
            subject = replace(subject, primal=reference, mode=mode_of(reference, subject.args))
        report = check_subject(subject, where, replace(options, diagnose=False))
        if not report.ok and subject.declared is not None:
            return report
        if not report.ok:
            use = Use(batched, jax.random.key(options.seed + 17) if train else None, train)
            return bisected(net, report, subject, where, use, options)
        reports.append(report)
    if len(reports) == 1:
        return reports[0]
    return replace(reports[0], notes=(*reports[0].notes, "right in training mode too"))


def check_loss(loss: Loss, template: tuple, options: CheckOptions, name: str | None) -> Report:
    """A loss of one example: δ and the gradients of its own parameters, where it has some."""
    own = loss.init is not None
    count = 3 if own else 2
    if len(template) not in {2, count}:
        raise CannotCheckError(f"a loss is checked at (x, y) of one example, got {len(template)} arguments")
    init = loss.init or (lambda key, x: ())

    where = points_for(template, 2, False, random_params(init)) if own else points.points_of(template)

    def with_params(args):
        return args if own else ((), *args)

    def primal(*args):
        params, x, y = with_params(args)
        return loss.turn(params, x, y, 1.0, product)[0]

    def run(args, weight):
        params, x, y = with_params(args)
        _, dx, d_params = loss.turn(params, x, y, weight, product)
        return primal(*args), (d_params, dx, None) if own else (dx, None)

    args, names = where.draw(options.seed, "plain"), ("params", "x", "y") if own else ("x", "y")
    parts = (loss.turn,)
    subject = Subject(name or loss.name, args, run, primal, fixed=(len(names) - 1,), names=names, parts=parts)
    return check_subject(replace(subject, mode=mode_of(primal, args, subject.fixed)), where, options)


def mean_cost(net: Layer, loss: Loss) -> Callable:
    """(params, xs, ys) -> the mean cost of a batch, for autodiff."""

    def cost(params, xs, ys):
        net_params, loss_params = params if loss.init is not None else (params, ())

        def one(x, y):
            return loss.turn(loss_params, net.forward(net_params, x)[0], y, 1.0, product)[0]

        terms = jax.vmap(loss.terms)(ys)
        n = terms.value * len(jax.tree.leaves(ys)[0]) if isinstance(terms, Static) else terms.sum()
        costs = jax.vmap(one)(xs, ys)
        return costs.sum() / jnp.asarray(n).astype(costs.dtype)

    return cost


def check_pair(net: Layer, loss: Loss, template: tuple, options: CheckOptions, name: str | None) -> Report:
    """A network with its loss, on a batch: every entry of the gradient of the mean cost."""
    if len(template) not in (2, 3):
        raise CannotCheckError(
            f"a network with its loss is checked at (xs, ys) of a batch, got {len(template)} arguments"
        )

    init = net.init if loss.init is None else lambda key, example: initialize(net, loss, key, example)
    where = points_for(template, 2, True, random_params(init))
    args, both = where.draw(options.seed, "plain"), value_and_grad(net, loss)

    def run(args, d_out):
        value, grads = both(*args)
        return value, (grads, None, None)

    cost = mean_cost(net, loss)
    subject = Subject(
        name or f"{net.name} with {loss.name}",
        args,
        run,
        cost,
        fixed=(1, 2),
        names=("params", "xs", "ys"),
        seed_one=True,
    )
    subject = replace(subject, mode=mode_of(cost, args, subject.fixed))
    subject = as_declared(subject, net, lambda stand_in: mean_cost(stand_in, loss))
    report = check_subject(subject, where, replace(options, diagnose=False))
    if report.ok or subject.declared is not None:
        return report
    return replace(report, **placed(net, loss, template, args, options))


def placed(net: Layer, loss: Loss, template: tuple, args: tuple, options: CheckOptions) -> dict[str, Any]:
    """Layer and repair of a wrong gradient: the network by itself, the loss by itself, or their junction."""
    inner = replace(options, shapes=False, also=False)
    at_net = check_layer(net, template[:-1] if loss.init is None else (template[-2],), inner)
    if not at_net.ok:
        return {"layer": at_net.layer, "repair": at_net.repair, "planted": at_net.planted}
    params = args[0] if loss.init is None else args[0][0]
    out = jax.eval_shape(lambda p, x: net.forward(p, x)[0], params, example_of(args[1], True))
    y = jax.tree.map(lambda t: t[0], args[2])
    at_loss = check_loss(loss, (points.Spec(str(out.dtype), out.shape), y), inner, None)
    if not at_loss.ok:
        return {"layer": f"the loss, {loss.name}", "repair": at_loss.repair, "planted": at_loss.planted}
    return {"layer": "between network and loss, each right by itself (the mean over the batch?)"}
