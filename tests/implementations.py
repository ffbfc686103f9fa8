"""The ways a network's backward pass can be run, each held against `jax.vjp` of the forward pass."""

from functools import cache

import jax
import jax.numpy as jnp
import pytest

import jaxnet
from jaxnet.checking import check
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


def norms(problem: Problem, params, xs, d_outs):
    """Each example's ‖∂C/∂p‖², as it is read, and of its own gradient by `jax.vjp`; of a stack the sum over it."""

    def one(x, d_out, key):
        def forward(p):
            return problem.net.forward(p, x, key, problem.train)

        _, pullback, saved = jax.vjp(forward, params, has_aux=True)
        _, read = problem.net.backward(params, saved, d_out, jaxnet.squared_norm)
        return jax.tree.map(jnp.sum, read), jax.tree.map(lambda g: jnp.sum(g**2), *pullback(d_out))

    return jax.vmap(one)(xs, d_outs, problem.keys())


COMPILED = (mapped, contracted, custom_vjp, custom_vjp_of_batch)


@cache
def compiled(problem: Problem, implementations=(*COMPILED, norms)):
    """Autodiff and all implementations as one program, so that each problem is compiled once."""
    return jax.jit(lambda *inputs: [f(problem, *inputs) for f in (by_autodiff, *implementations)])


def check_against_autodiff(problem: Problem) -> None:
    """Every implementation, in float64. A failure says what the checker finds wrong."""
    inputs = problem.inputs(jnp.float64)
    expected, *actual, (read, brute_force) = compiled(problem)(*inputs)
    pairs = {f.__name__: (result, expected) for f, result in zip(COMPILED, actual, strict=True)}
    for name, (result, right) in {**pairs, "norms": (read, brute_force)}.items():
        try:
            assert_agree(result, right)
        except AssertionError as error:
            report = check(problem.net, inputs[1][0], name=problem.id)  # in evaluation mode
            raise AssertionError(f"{name}: {error}\n{report}") from error


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
