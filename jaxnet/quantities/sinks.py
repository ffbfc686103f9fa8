"""Readings of any JAX function: a model of Flax or Equinox, or plain JAX, as it stands.

    z = W x + 0        ∂C/∂0 = ∂C/∂z = δ        ∇_W C = Σ δ xᵀ

Wherever a parameter W enters an operation that is linear in it, a zero is added to the result: a *sink*. The derivative
of the cost by the sink is δ, and x comes out beside it. So one backward pass, the model's own, gives the factors of
every parameter's gradient, and a `Reading` reads them. A parameter with several uses has the sum of their factors. In a
scan each step has a sink of its own.

All other uses of a parameter share one sink, added to the parameter itself: there the gradient is formed.
Of a bias or a scale nothing is smaller. Of a matrix it is as large as that of `vmap(grad)`, and `coverage` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Var

from jaxnet.factors import Factor, FactorSum, Plain
from jaxnet.layer import Passing, Reading, Tree
from jaxnet.program.calls import as_closed, bind, opened, scan_counts
from jaxnet.quantities.parameter_uses import (
    RULES,
    LinearUse,
    ParameterView,
    Stacked,
    rearranged,
    seen_through,
    smallest,
)
from jaxnet.readings import apart


class Formed(NamedTuple):
    """A use whose gradient is formed: which parameter, the name of the operation, and whether nothing is smaller."""

    param: int
    operation: str
    smallest: bool


@dataclass(frozen=True)
class Plan:
    """The plan for each equation of a program: a use, or a plan for the program that it runs."""

    program: Any
    at: dict[int, Any]
    uses: tuple[LinearUse, ...]
    formed: tuple[Formed, ...]


# ----------------------------------------------------------------------------------------------------------- the plan


def plan(program: Any, views: dict[Any, ParameterView]) -> Plan:
    """The plan for each equation of a program in which some variables are views of parameters."""
    program, views = as_closed(program), dict(views)
    at: dict[int, Any] = {}
    uses: list[LinearUse] = []
    formed: list[Formed] = []
    for index, eqn in enumerate(program.jaxpr.eqns):
        mine = {i: views[v] for i, v in enumerate(eqn.invars) if isinstance(v, Var) and v in views}
        if not mine:
            continue
        if 0 in mine and (seen := seen_through(eqn, mine[0])) is not None:
            views[eqn.outvars[0]] = seen
            continue
        found = planned(eqn, mine)
        if found is not None:
            at[index] = found
        if isinstance(found, LinearUse):
            uses.append(found)
        elif found is not None:
            uses += found.uses
            formed += found.formed
        else:
            formed += [Formed(view.param, eqn.primitive.name, smallest(eqn, i)) for i, view in mine.items()]
    formed += [Formed(views[v].param, "result", True) for v in program.jaxpr.outvars
               if isinstance(v, Var) and v in views]  # fmt: skip
    return Plan(program, at, tuple(uses), tuple(formed))


def planned(eqn: Any, mine: dict[int, ParameterView]) -> LinearUse | Plan | None:
    """The use that an equation makes of a view, or the plan of the program that it runs; None where no rule covers."""
    call = opened(eqn)
    if call is None or call.kind not in ("call", "scan"):
        [(at, view), *others] = mine.items()
        rule = RULES.get(eqn.primitive.name)
        use = rule(eqn, at) if rule is not None and not others else None
        return None if use is None else rearranged(use, view)
    [program] = call.programs
    consts, carries = scan_counts(eqn) if call.kind == "scan" else (len(eqn.invars), 0)
    inside = {i: v for i, v in mine.items() if not consts <= i < consts + carries}
    inner = plan(program, {program.jaxpr.invars[i]: ParameterView(i) for i in inside})
    if call.kind == "scan":
        inner = replace(inner, uses=tuple(over_steps(use, use.param < consts, eqn.params["length"])
                                          for use in inner.uses))  # fmt: skip
    carried = tuple(Formed(v.param, "scan", False) for i, v in mine.items() if i not in inside)
    return replace(
        inner,
        uses=tuple(rearranged(use, mine[use.param]) for use in inner.uses),
        formed=carried + tuple(one._replace(param=mine[one.param].param) for one in inner.formed),
    )


def over_steps(use: LinearUse, shared: bool, length: int) -> LinearUse:
    """A use in the body of a scan: its gradients summed over the steps where they share the parameter, else stacked."""

    def factor(delta, x):
        inner = use.factor(*jax.tree.map(lambda t: t[0], (delta, x)))
        skeleton = jax.tree.structure(inner)
        leaves = jax.tree.leaves(jax.vmap(use.factor)(delta, x))
        whole = jax.tree.unflatten(skeleton, leaves)
        return whole.summed_once_more() if shared else Stacked(whole)

    sink = jax.ShapeDtypeStruct((length, *use.sink.shape), use.sink.dtype)
    return replace(use, sink=sink, factor=factor)


# ---------------------------------------------------------------------------------------------- running with the sinks


def run(made: Plan, values: Sequence[Any], sinks: Iterator[Any]) -> tuple[list[Any], list[Any]]:
    """The program's results with each sink added at its use, and the input x of each use; uses in the plan's order."""
    jaxpr, saved = made.program.jaxpr, []
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*made.program.consts, *values), strict=True))
    for index, eqn in enumerate(jaxpr.eqns):
        inputs = [v.val if isinstance(v, Literal) else env[v] for v in eqn.invars]
        found = made.at.get(index)
        if found is None:
            outs = bind(eqn, inputs)
        elif isinstance(found, LinearUse):
            # The gradient of this use goes into its own sink alone.
            own = 0 if found.saved is None else 1 - found.saved
            inputs[own] = jax.lax.stop_gradient(inputs[own])
            [out] = bind(eqn, inputs)
            outs = [out + next(sinks)]
            saved.append(None if found.saved is None else inputs[found.saved])
        else:
            mine = [next(sinks) for _ in found.uses]
            outs, inner = (scanned if eqn.primitive.name == "scan" else called)(found, eqn, inputs, mine)
            saved += inner
        env.update(zip(eqn.outvars, outs, strict=True))
    results = [v.val if isinstance(v, Literal) else env[v] for v in jaxpr.outvars]
    return results, saved


def called(made: Plan, eqn: Any, inputs: list[Any], sinks: list[Any]) -> tuple[list[Any], list[Any]]:
    """A program that is run once; rematerialisation stays, but for the inputs of the uses."""

    def inner(inputs, sinks):
        return run(made, inputs, iter(sinks))

    if "prevent_cse" in eqn.params:
        inner = jax.checkpoint(inner, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return inner(inputs, sinks)


def scanned(made: Plan, eqn: Any, inputs: list[Any], sinks: list[Any]) -> tuple[list[Any], list[Any]]:
    """A scan with a sink for each step."""
    consts, carries = scan_counts(eqn)

    def step(carry, scanned):
        own, sinks = scanned
        outs, saved = run(made, [*inputs[:consts], *carry, *own], iter(sinks))
        return outs[:carries], (outs[carries:], saved)

    carry, (stacked, saved) = jax.lax.scan(
        step, inputs[consts : consts + carries], (inputs[consts + carries :], sinks),
        length=eqn.params["length"], reverse=eqn.params["reverse"], unroll=eqn.params["unroll"],
    )  # fmt: skip
    return [*carry, *stacked], saved


# ------------------------------------------------------------------------------------------------------------- reading


class Traced(NamedTuple):
    """A cost of one example as a program, its parameters by their paths, and the plan for its sinks."""

    params: list[Any]
    paths: list[str]
    rebuild: Callable[[Sequence[Any]], Tree]
    made: Plan

    @property
    def own_sinks(self) -> list[int]:
        """The parameters with uses that no rule covers."""
        return sorted({each.param for each in self.made.formed})


def is_trained(leaf: Any) -> bool:
    """Whether a leaf of a model is a parameter: an array of real or complex numbers."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def traced(loss: Callable, params: Tree, example: Sequence[Tree]) -> Traced:
    """The cost of one example, of the shapes given, as a program with a plan."""
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in with_paths]
    at = [i for i, leaf in enumerate(leaves) if is_trained(leaf)]

    def rebuild(trained: Sequence[Any], others: Sequence[Any] | None = None) -> Tree:
        whole: list[Any] = [None] * len(leaves) if others is None else list(others)
        for i, p in zip(at, trained, strict=True):
            whole[i] = p
        return jax.tree.unflatten(structure, whole)

    def cost(trained, example):
        return loss(rebuild(trained, leaves), *example)

    trained = [leaves[i] for i in at]
    try:
        program, out = jax.make_jaxpr(cost, return_shape=True)(trained, tuple(example))
    except NameError as error:
        raise ValueError(
            f"an example's own gradient must not depend on the other examples, but the loss looks across the batch "
            f"({error}): normalise by running statistics, as in evaluation, or by group or layer norm"
        ) from error
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(each.shape) for each in jax.tree.leaves(tuple(example)))
        raise ValueError(
            f"the loss must be the cost of one example, here of the shapes {shapes}, but it raises "
            f"{type(error).__name__}: {error}\nwrite it without the axis of the examples: `read` maps it over them"
        ) from error
    if getattr(out, "shape", None) != ():
        raise ValueError(f"the loss of one example must be a number, got {jax.tree.map(lambda t: t.shape, out)}")
    views = {v: ParameterView(i) for i, v in enumerate(program.jaxpr.invars[: len(at)])}
    paths = [jax.tree_util.keystr(with_paths[i][0]) for i in at]
    return Traced(trained, paths, rebuild, plan(program, views))


class Covered(NamedTuple):
    """How one parameter is read: by factors, or by its gradient formed for each example; `by` names the operations."""

    path: str
    size: int
    share: float
    factors: bool
    by: tuple[str, ...]


def coverage(loss: Callable) -> Callable[..., list[Covered]]:
    """How each parameter of a model would be read, and its share of all parameters.

    `loss(params, *example) -> number`. Returns `(params, *example) -> rows`, of one example.

    >>> import jax.numpy as jnp
    >>> def loss(params, x):
    ...     return jnp.sum(params["W"] @ x) + jnp.sort(params["M"])[0, 0]
    >>> for row in coverage(loss)({"W": jnp.ones((3, 4)), "M": jnp.eye(2)}, jnp.ones(4)):
    ...     print(row.path, row.share, "factors" if row.factors else "formed: " + ", ".join(row.by))
    ['M'] 0.25 formed: sort
    ['W'] 0.75 factors
    """

    def of(params, *example):
        found = traced(loss, params, example)
        whole = sum(p.size for p in found.params)
        rows = []
        for i, (path, p) in enumerate(zip(found.paths, found.params, strict=True)):
            formed = sorted({each.operation for each in found.made.formed if each.param == i and not each.smallest})
            rows.append(Covered(path, p.size, p.size / whole, not formed, tuple(formed)))
        return rows

    return of


def read(loss: Callable, reading: Reading, *, form: bool = False) -> Callable:
    """A reading of the backward pass of each example's cost, of any model as it stands.

    `loss(params, *example) -> number`: the cost of one example. Returns `(params, *batch, weights=None) -> costs,
    readings`; the batch's arrays have the examples as leading axis. A weight, one for each example, multiplies its
    cost: so `total` with weights 1/n is the gradient of the mean, and without weights that of the sum. Readings have
    the structure of params; a leaf that is no parameter has None. `params` may be an Equinox or NNX module.
    form: read parameters that no rule covers (`coverage`) by forming each example's gradient.
    Raises `ValueError` for a loss that couples the examples, one that is no number, and, without `form`, for a
    parameter that no rule covers.

    >>> import jax.numpy as jnp
    >>> from jaxnet import squared_norm
    >>> def loss(params, x, y):
    ...     return jnp.sum((params["W"] @ jnp.tanh(params["W"] @ x) - y) ** 2)
    >>> params, xs, ys = {"W": jnp.eye(3)}, jnp.ones((5, 3)), jnp.zeros((5, 3))
    >>> costs, norms = read(loss, squared_norm)(params, xs, ys)
    >>> norms["W"].shape
    (5,)
    """

    def batch(params, *batch, weights=None):
        example = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), batch)
        found = traced(loss, params, example)
        refused = sorted({found.paths[each.param] for each in found.made.formed if not each.smallest})
        if refused and not form:
            raise ValueError(
                f"every parameter must be used in a way that a rule covers, {', '.join(refused)} is not: call "
                "read(…, form=True) to form its gradient for each example; `coverage(loss)` shows what it costs"
            )
        one = one_example(found, reading)
        weights = jnp.ones(len(jax.tree.leaves(batch)[0])) if weights is None else weights
        return jax.vmap(one, (None, 0, 0), (0, reading.out_axes))(found.params, batch, weights)

    return batch


def one_example(found: Traced, reading: Reading) -> Callable:
    """(trained parameters, example, weight) -> cost, reading."""
    made = found.made

    def one(params, example, weight):
        def cost(sinks):
            inner, own = sinks
            with_own = list(params)
            for i, sink in own.items():
                with_own[i] = with_own[i] + sink
            [out], saved = run(made, [*with_own, *jax.tree.leaves(example)], iter(inner))
            return out, saved

        sinks = (
            [jnp.zeros(use.sink.shape, use.sink.dtype) for use in made.uses],
            {i: jnp.zeros_like(params[i]) for i in found.own_sinks},
        )
        value, pullback, saved = jax.vjp(cost, sinks, has_aux=True)
        deltas, formed = pullback(weight.astype(value.dtype))[0]
        factors: list[list[Factor]] = [[] for _ in params]
        for use, delta, x in zip(made.uses, deltas, saved, strict=True):
            factors[use.param].append(use.factor(delta, x))
        for i, gradient in formed.items():
            factors[i].append(Plain(gradient))
        sums = [
            Plain(jnp.zeros_like(p)) if not own else own[0] if len(own) == 1 else FactorSum(tuple(own))
            for p, own in zip(params, factors, strict=True)
        ]
        tree = found.rebuild(sums)
        seen = reading.at(Passing(found.rebuild(params), saved, deltas, None, tree))
        return value * weight.astype(value.dtype), apart(seen, reading.out_axes)

    return one
