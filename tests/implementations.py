"""The ways a network's backward pass can be run, each held against `jax.vjp` of the network written out.

Written out it is plain calls of its leaf layers, one after another. To what each of them gives an array of zeros is
added, a tap: the derivative by it is the layer's δ.
"""

import math
from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp

import jaxnet
from jaxnet import readings
from jaxnet.checking import check
from jaxnet.layer import Static, split_key
from jaxnet.readings import apart, pair
from tests.agreement import assert_agree, assert_as_exact, cast
from tests.problems import Problem

# ---------------------------------------------------------------------------------------------------- by brute force


def written_out(net: jaxnet.Layer, params, x, key, train: bool, taps=None):
    """The value, and what each leaf layer gave with its tap added, in the structure of the parameters."""
    if net.rebuild is None:
        out, _ = net.forward(params, x, key, train)
        if taps is not None and jnp.issubdtype(jax.tree.leaves(out)[0].dtype, jnp.inexact):
            out = jax.tree.map(jnp.add, out, taps)
        return out, out
    assert net.made is not None, f"{net!r} was changed"
    name, options, parts = net.maker, net.made.root.options, net.parts
    if name == "tied":
        owner, *borrowers = sorted(options["where"])
        share = options["share"]
        params = [p | {share: params[owner][share]} if i in borrowers else p for i, p in enumerate(params)]
    if name in ("serial", "tied", "parallel", "bidirectional"):
        values, outs = [], []
        own_taps = [None] * len(parts) if taps is None else taps
        for part, p, k, tap in zip(parts, params, split_key(key, len(parts)), own_taps, strict=True):
            value, out = written_out(part, p, x, k, train, tap)
            values.append(value)
            outs.append(out)
            x = value if name in ("serial", "tied") else x
        if name in ("parallel", "bidirectional"):
            join = {"sum": sum, "product": math.prod, "concatenate": lambda t: jnp.concatenate(t, axis=-1)}
            x = join[options.get("join", "concatenate")](values)
        return x, tuple(outs)
    [part] = parts
    if name == "repeat":
        outs = []
        for i, k in enumerate(split_key(key, options["times"])):
            p, tap = jax.tree.map(lambda t, i=i: t[i], (params, taps))
            x, out = written_out(part, p, x, k, train, tap)
            outs.append(out)
        return x, jax.tree.map(lambda *t: jnp.stack(t), *outs)
    if name == "per_position":
        keys, behind = None if key is None else jax.random.split(key, len(x)), stacks(part)
        run = jax.vmap(
            lambda x, k, tap: written_out(part, params, x, k, train, tap),
            in_axes=(0, 0, None if taps is None else behind),
            out_axes=(0, behind),
        )
        return run(x, keys, taps)
    assert name in ("residual", "remat"), f"{name}: say here how it is written out"
    out, outs = written_out(part, params, x, key, train, taps)
    return x + out if name == "residual" else out, outs


def stacks(net: jaxnet.Layer):
    """For each leaf layer in how many `repeat`s it stands: so many leading axes have its parameters and its δ."""
    if net.rebuild is None:
        return 0
    if len(net.parts) > 1 or net.maker == "serial":
        return tuple(map(stacks, net.parts))
    return jax.tree.map(lambda times: times + (net.maker == "repeat"), stacks(net.parts[0]))


def brute_force(problem: Problem, params, xs, d_outs):
    """Of each example the output, its own gradients, dx, and δ of each leaf layer."""

    def one(x, d_out, key):
        def forward(params, x, taps=None):
            return written_out(problem.net, params, x, key, problem.train, taps)

        outs = jax.eval_shape(forward, params, x)[1]
        taps = jax.tree.map(lambda t: jnp.zeros(t.shape, x.dtype), outs)
        out, pullback, _ = jax.vjp(forward, params, x, taps, has_aux=True)
        return out, *pullback(d_out)

    return jax.vmap(one)(xs, d_outs, problem.keys())


def squares(t, leading: int):
    """Σ of squares over all but the leading axes."""
    return jnp.sum(t**2, axis=tuple(range(leading, t.ndim)))


def where_params(read: Callable, otherwise=()) -> Callable:
    """Read δ at layers with parameters."""
    return lambda grads, delta, times: read(delta, times) if jax.tree.leaves(grads) else otherwise


READINGS: dict[str, tuple[jaxnet.Reading, Callable]] = {
    "total": (readings.total, lambda grads, delta, times: jax.tree.map(lambda g: g.sum(0), grads)),
    "product": (readings.product, lambda grads, delta, times: grads),
    "squared_norm": (
        readings.squared_norm,
        lambda grads, delta, times: jax.tree.map(lambda g: squares(g, 1 + times), grads),
    ),
    "second_moment": (
        readings.second_moment,
        lambda grads, delta, times: jax.tree.map(lambda g: jnp.square(g).sum(0), grads),
    ),
    "deltas": (readings.deltas, lambda grads, delta, times: delta),
    "squared_delta": (readings.squared_delta, where_params(lambda delta, times: squares(delta, 1 + times))),
    "sum_of_deltas": (readings.sum_of_deltas, where_params(lambda delta, times: delta.sum(0))),
}
"""Each reading, and the same at one leaf layer by brute force: from each example's gradients and δ, (examples, …), and
in how many stacks the layer stands."""


def expected(problem: Problem, grads, deltas) -> dict:
    """Every reading by brute force."""

    def at_each(at: Callable):
        return jax.tree.map(lambda times, *of: at(*of, times), stacks(problem.net), grads, deltas)

    return {name: at_each(at) for name, (_, at) in READINGS.items()}


# ------------------------------------------------------------------------------------------------ the implementations


def by_autodiff(problem: Problem, params, xs, d_outs):
    """Outputs, gradients summed over the batch, and each dx, by `jax.vjp` of the forward pass."""

    def forward(params, xs):
        def one(x, key):
            return problem.net.forward(params, x, key, problem.train)[0]

        return jax.vmap(one)(xs, problem.keys())

    outs, pullback = jax.vjp(forward, params, xs)
    return outs, *pullback(d_outs)


def one_by_one(problem: Problem, params, xs, d_outs):
    """Each example by itself, nothing mapped, nothing compiled as a whole."""
    keys = [None] * problem.batch if problem.keys() is None else problem.keys()
    outs, grads, dxs = [], [], []
    for x, d_out, key in zip(xs, d_outs, keys, strict=True):
        out, pullback = jaxnet.vjp(problem.net)(params, x, key=key, train=problem.train)
        grad, dx = pullback(d_out)
        outs.append(out)
        grads.append(grad)
        dxs.append(dx)
    return jnp.stack(outs), jax.tree.map(lambda *t: sum(t[1:], start=t[0]), *grads), jnp.stack(dxs)


def mapped(problem: Problem, params, xs, d_outs):
    """`vjp` of one example, under vmap."""

    def one(x, d_out, key):
        out, pullback = jaxnet.vjp(problem.net)(params, x, key=key, train=problem.train)
        return out, *pullback(d_out)

    outs, grads, dxs = jax.vmap(one)(xs, d_outs, problem.keys())
    return outs, jax.tree.map(lambda t: t.sum(0), grads), dxs


def read(problem: Problem, params, xs, d_outs, by: jaxnet.Reading = readings.total):
    """The whole batch: outputs, what is read, each dx. By default each parameter's gradient over the examples."""

    def one(x, d_out, key):
        out, saved = problem.net.forward(params, x, key, problem.train)
        dx, found = problem.net.backward(params, saved, d_out, by)
        return out, apart(found, by.out_axes), dx

    return jax.vmap(one, out_axes=(0, by.out_axes, 0))(xs, d_outs, problem.keys())


def custom_vjp(problem: Problem, params, xs, d_outs):
    """The function of one example that carries its own reverse rule, mapped and then differentiated by JAX."""
    f = jaxnet.as_custom_vjp(problem.net, train=problem.train)
    outs, pullback = jax.vjp(lambda p, xs: jax.vmap(lambda x, key: f(p, x, key))(xs, problem.keys()), params, xs)
    return outs, *pullback(d_outs)


def custom_vjp_of_batch(problem: Problem, params, xs, d_outs):
    """The same function's batched form."""
    f = jaxnet.as_custom_vjp(problem.net, batched=True, train=problem.train)
    outs, pullback = jax.vjp(lambda p, xs: f(p, xs, problem.key()), params, xs)
    return outs, *pullback(d_outs)


def read_at_once(problem: Problem, params, xs, d_outs):
    """Every reading in one backward pass."""
    out, found, dx = read(problem, params, xs, d_outs, pair(*(reading for reading, _ in READINGS.values())))
    return out, dict(zip(READINGS, found, strict=True)), dx


@cache
def compiled(problem: Problem):
    """Brute force and all implementations as one program, so that each problem is compiled once."""

    @jax.jit
    def run(*inputs):
        outs, grads, dxs, deltas = brute_force(problem, *inputs)
        right = expected(problem, grads, deltas)
        pairs = {f.__name__: (f(problem, *inputs), (outs, right["total"], dxs))
                 for f in (mapped, custom_vjp, custom_vjp_of_batch)}  # fmt: skip
        return pairs | {"read": (read_at_once(problem, *inputs), (outs, right, dxs))}

    return run


def check_against_autodiff(problem: Problem) -> None:
    """Every implementation and every reading, in float64. A failure says what the checker finds wrong."""
    inputs = problem.inputs(jnp.float64)
    for name, (result, right) in compiled(problem)(*inputs).items():
        try:
            assert_agree(result, right)
        except AssertionError as error:
            report = check(problem.net, inputs[1][0], name=problem.id)  # in evaluation mode
            raise AssertionError(f"{name}: {error}\n{report}") from error


def check_one_by_one(problem: Problem) -> None:
    """Each example by itself and uncompiled, against all of them mapped and compiled."""
    inputs = problem.inputs(jnp.float64)
    assert_agree(one_by_one(problem, *inputs), compiled(problem)(*inputs)["mapped"][0])


def check_readings_by_themselves(problem: Problem, one_delta: bool) -> None:
    """Each reading by `backpropagate`, in a pass of its own, for two sets of parameters at once.

    The loss is linear, C = 1/n Σ d_out·out. `one_delta`: with the first example's d_out for all of them, which is then
    not mapped over the examples.
    """
    params, xs, d_outs = problem.inputs(jnp.float64)

    def turn(_, out, d_out, weight, read):
        d_out = d_outs[0] if one_delta else d_out
        return weight * jnp.sum(d_out * out), weight * d_out, ()

    linear = jaxnet.Loss("linear", turn, lambda y, weight=None: Static(1))
    mean_of = jnp.broadcast_to(d_outs[0], d_outs.shape) if one_delta else d_outs

    @jax.jit
    def run(params):
        found = {name: jaxnet.backpropagate(problem.net, linear, reading)(params, xs, d_outs)[1]
                 for name, (reading, _) in READINGS.items()}  # fmt: skip
        _, grads, _, deltas = brute_force(problem, params, xs, mean_of / len(xs))
        return found, expected(problem, grads, deltas)

    found, right = jax.vmap(run)(jax.tree.map(lambda p: jnp.stack([0.5 * p, p]), params))
    for name in READINGS:
        assert_agree(found[name], right[name])


def check_precision(problem: Problem, dtype) -> None:
    """In a narrower dtype the gradients are as exact as autodiff's."""
    inputs = problem.inputs(dtype)
    _, exact = compiled(problem)(*cast(inputs, jnp.float64))["mapped"]
    theirs, *ours = jax.jit(lambda *inputs: [f(problem, *inputs) for f in (by_autodiff, mapped, read)])(*inputs)
    for result in ours:
        assert_as_exact(result, theirs, exact, dtype)


def one_of_each(problems: list[Problem]) -> list[Problem]:
    """The first problem of each network."""
    return list({id(problem.net): problem for problem in reversed(problems)}.values())[::-1]
