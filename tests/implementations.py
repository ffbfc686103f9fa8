"""The ways a network's backward pass can be run, each held against `jax.vjp` of the forward pass."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest

import jaxnet
from tests.agreement import assert_agree, assert_as_exact, cast
from tests.problems import Problem


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


def contracted(problem: Problem, params, xs, d_outs):
    """The whole batch, each parameter's gradient contracted over the examples."""

    def one(x, d_out, key):
        out, saved = problem.net.forward(params, x, key, problem.train)
        dx, grads = problem.net.backward(params, saved, d_out, jaxnet.total)
        return out, grads, dx

    return jax.vmap(one, out_axes=(0, None, 0))(xs, d_outs, problem.keys())


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


COMPILED = (mapped, contracted, custom_vjp, custom_vjp_of_batch)


@cache
def compiled(problem: Problem, implementations=COMPILED):
    """Autodiff and all implementations as one program, so that each problem is compiled once."""
    return jax.jit(lambda *inputs: [f(problem, *inputs) for f in (by_autodiff, *implementations)])


def check_against_autodiff(problem: Problem) -> None:
    """Every implementation, in float64."""
    expected, *actual = compiled(problem)(*problem.inputs(jnp.float64))
    for implementation, result in zip(COMPILED, actual, strict=True):
        try:
            assert_agree(result, expected)
        except AssertionError as error:
            raise AssertionError(f"{implementation.__name__}: {error}") from error


def check_one_by_one(problem: Problem) -> None:
    """Each example by itself and uncompiled, against all of them mapped and compiled."""
    inputs = problem.inputs(jnp.float64)
    assert_agree(one_by_one(problem, *inputs), compiled(problem)(*inputs)[1])


# Of the two the narrower one shows every cast that is missing; both by `pytest -m "slow or not slow"`.
NARROW = [
    pytest.param(jnp.float32, id="float32", marks=pytest.mark.slow),
    pytest.param(jnp.bfloat16, id="bfloat16"),
]


def check_precision(problem: Problem, dtype) -> None:
    """In a narrower dtype the gradients are as exact as autodiff's."""
    inputs = problem.inputs(dtype)
    exact = compiled(problem)(*cast(inputs, jnp.float64))[0]
    theirs, *ours = compiled(problem, (mapped, contracted))(*inputs)
    for result in ours:
        assert_as_exact(result, theirs, exact, dtype)


def one_of_each(problems: list[Problem]) -> list[Problem]:
    """The first problem of each network."""
    return list({id(problem.net): problem for problem in reversed(problems)}.values())[::-1]
