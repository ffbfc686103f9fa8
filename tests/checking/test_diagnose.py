"""The diagnosis of a wrong backward pass: the tape, the fits, the mutants, and what it says where nothing fits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnet.checking.corpus import CASES, Case, dense_layers, normalisation, sequences
from jaxnet.checking.corpus.case import saving_arguments
from jaxnet.checking.diagnose import diagnose
from jaxnet.checking.diagnose.program import trace
from jaxnet.checking.diagnose.source import line_of
from tests.checking.helpers import drawn, named, problem


def chain(W1, W2, W3, x):
    a1 = jnp.tanh(x @ W1.T)
    a2 = jnp.tanh(a1 @ W2.T)
    return a2 @ W3.T


def chain_args(size, seed, dtype):
    shapes = ((6, 4), (5, 6), (3, 5), (8 + size, 4))
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(s) / 2, dtype) for s in shapes)


def chain_backward(args, g, *, B3=None, B2=None, slope1=lambda z, a: 1 - a**2):
    W1, W2, W3, x = args
    z1 = x @ W1.T
    a1 = jnp.tanh(z1)
    a2 = jnp.tanh(a1 @ W2.T)
    d2 = (g @ (W3 if B3 is None else B3)) * (1 - a2**2)
    dW2 = d2.T @ a1
    d1 = (d2 @ (W2 if B2 is None else B2(W2, dW2))) * slope1(z1, a1)
    return d1.T @ x, dW2, g.T @ a2, d1 @ W1


def diagnosed(primal, backward, make, size=0, budget=10.0):
    case = Case("", primal, saving_arguments(primal, backward), make, (), ())
    asked, _ = problem(case, size, 0)
    return diagnose(asked, budget=budget)


@pytest.mark.slow
def test_feedback_alignment_is_found_by_probing():
    B3, B2 = jax.random.normal(jax.random.key(3), (3, 5)), jax.random.normal(jax.random.key(4), (5, 6))
    found = diagnosed(chain, lambda a, g: chain_backward(a, g, B3=B3, B2=lambda W, dW: B2), chain_args)
    assert found.best.exact
    assert set(found.best.leaves) == {"[0]", "[1]", "[3]"}
    assert "fixed matrix" in found.best.cause
    assert "W3" in found.best.cause
    assert "W2" in found.best.cause


def test_weight_updated_too_early_is_found_with_its_step():
    found = diagnosed(chain, lambda a, g: chain_backward(a, g, B2=lambda W, dW: W - 0.1 * dW), chain_args)
    assert found.best.exact
    assert "W2 -0.1·∂W2" in found.best.cause


def test_derivative_of_one_layer_at_its_own_output():
    found = diagnosed(chain, lambda a, g: chain_backward(a, g, slope1=lambda z, a: 1 - jnp.tanh(a) ** 2), chain_args)
    assert found.best.exact
    assert "tanh′(a1)" in found.best.cause
    assert found.best.where.startswith("test_diagnose.py:")
    assert "a1 = jnp.tanh(x @ W1.T)" in found.best.where


def test_two_leaves_with_two_causes():
    def backward(args, g):
        W, _b, a = args
        return g.T @ a, g.mean(0), g @ W * 3

    found = diagnosed(dense_layers.dense, backward, dense_layers.dense_args)
    assert set(found.best.leaves) == {"[1]", "[2]"}
    assert "; and " in found.best.cause
    assert "∂a is 3 times" in found.best.cause
    assert "∂b" in found.best.cause


@pytest.mark.slow
def test_long_lstm_is_made_short_and_answered_in_time(own_time):
    case = next(c for c in CASES if c.name.startswith("44"))
    asked, _ = problem(case, 2, 0)
    assert len(asked.args[2]) == 128
    found = diagnose(asked)
    assert named(case, found)
    assert found.best.exact
    assert found.seconds < 10
    assert "at the whole length" in found.best.evidence


def test_unknown_mistake_is_not_explained_but_described():
    def backward(args, g):
        x, gamma, _beta = args
        xh, r = normalisation.normed(x)
        strange = normalisation.right_dx(x, g, gamma[None, :], xh, r) * jnp.cos(7 * g + x)
        return strange, jnp.sum(g * xh, 0), g.sum(0)

    found = diagnosed(normalisation.layer_norm, backward, normalisation.norm_args, budget=2)
    assert found.best is None
    assert found.tried > 300
    assert "cosine" in found.known
    assert "got" in found.known
    assert "expected" in found.known


def test_not_finite_is_said_and_nothing_invented():
    def backward(args, g):
        x, gamma, _beta = args
        xh, r = normalisation.normed(x)
        dx = normalisation.right_dx(x, g, gamma[None, :], xh, r)
        return dx.at[1].set(jnp.nan), jnp.sum(g * xh, 0), g.sum(0)

    found = diagnosed(normalisation.layer_norm, backward, normalisation.norm_args, budget=1.5)
    assert found.best is None
    assert "row 1" in found.known
    assert "not finite" in found.known


def test_budget_is_kept(own_time):
    def backward(args, g):
        _W, _b, _x = args
        dW, db, dx = sequences.lstm_backward(args, g)
        return dW * jnp.cos(dW * 30), db, dx

    case = Case("", sequences.lstm, saving_arguments(sequences.lstm, backward), sequences.lstm_args, (), ())
    asked, _ = problem(case, 1, 0)
    asked.backward(asked.args, asked.cotangent)  # its compilation is not the diagnosis'
    assert diagnose(asked, budget=1.5).seconds < 3.0


def test_holds_at_one_shape_only_is_not_called_the_cause():
    def backward(args, g):
        W, _b, a = args
        return g.T @ a, g.sum(0) / 7, g @ W

    found = diagnosed(dense_layers.dense, backward, dense_layers.dense_args)  # 7 examples at this size, 10 at the other
    assert not found.best.exact or "1/7" not in found.best.cause
    assert "0.142857" in found.best.cause


def test_float64_is_held_to_float64(x64):
    case = next(c for c in CASES if c.name.startswith("27"))
    asked, _ = problem(case, 0, 0, jnp.float64)
    found = diagnose(asked)
    assert named(case, found)
    assert found.best.residual < 1e-12


def test_bfloat16_rule_is_diagnosed():
    def backward(args, g):
        W, b, a = args
        return g.T @ a, jnp.zeros_like(b), g @ W

    case = Case(
        "",
        dense_layers.dense,
        saving_arguments(dense_layers.dense, backward),
        dense_layers.dense_args,
        ("zero",),
        ("[1]",),
    )
    asked, _ = problem(case, 0, 0, jnp.bfloat16)
    found = diagnose(dataclasses.replace(asked, wrong=("[1]",), tolerance=1e-2))
    assert "∂b is zero" in found.best.cause


def looping(W, x):
    h = lax.fori_loop(0, 3, lambda i, h: jnp.tanh(W @ h), x)
    h = jax.checkpoint(jnp.sin)(h)
    return lax.cond(h[0] > 0, lambda h: h * h, lambda h: jnp.exp(h), jax.nn.relu(h) + h)


def test_tape_is_autodiff_through_loops_branches_remat_and_custom_rules():
    W, x = 0.5 * jax.random.normal(jax.random.key(0), (4, 4)), jax.random.normal(jax.random.key(1), (4,))
    ct = jax.random.normal(jax.random.key(2), (4,))
    tape = trace(looping, (W, x)).at((W, x), ct)
    for path, expected in zip(("[0]", "[1]"), jax.vjp(looping, W, x)[1](ct), strict=True):
        np.testing.assert_allclose(tape.values[tape.leaves[path]], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in CASES if c.name[:2] in ("25", "30", "41", "44", "51", "52", "54")]
)
def test_tape_is_autodiff(case):
    args, ct = drawn(case, 1, 3)
    moving = [k for k, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]

    def primal(*some):
        return case.primal(*[some[moving.index(k)] if k in moving else a for k, a in enumerate(args)])

    tape = trace(case.primal, args).at(args, ct)
    for k, expected in zip(moving, jax.vjp(primal, *(args[k] for k in moving))[1](ct), strict=True):
        np.testing.assert_allclose(tape.values[tape.leaves[f"[{k}]"]], expected, rtol=2e-4, atol=2e-5)


def test_lines_are_those_of_the_primal():
    closed = jax.make_jaxpr(normalisation.layer_norm)(jnp.ones((2, 3)), jnp.ones(3), jnp.ones(3))
    lines = [line_of(eqn) for eqn in closed.jaxpr.eqns]
    assert [n for n in dict.fromkeys(line.assigns for line in lines) if n] == ["m", "v", "r"]
    assert all(line.file.endswith("normalisation.py") for line in lines)
