"""A cause is said as it is: zero, a constant beside the cotangent, a term that is missing; none is made up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.checking import check
from jaxnet.checking.planting import planted
from jaxnet.checking.rules import subject_of

QUICK = {"seeds": 1, "also": False, "shapes": False, "inside": False, "precise": False}
X = jnp.asarray([0.3, 1.3, -2.3, 3.3])


def rule(primal, backward):
    made = jax.custom_vjp(primal)
    made.defvjp(lambda *args: (primal(*args), args), backward)
    return made


def test_a_gradient_that_is_left_out_is_zero_or_mended():
    def backward(saved, g):
        return g * jax.nn.softmax(-saved[0] / saved[1]), None

    soft = rule(lambda x, t: -t * jax.nn.logsumexp(-x / t), backward)
    report = check(soft, X, jnp.float32(0.7), **QUICK)
    assert [leaf.path for leaf in report.wrong] == ["∂t"]
    assert "∂t is zero" in report.cause


def numpy_cost_gradient(factor, constant):
    """The gradient of Σ w tanh(x)², in NumPy: a factor of it, and a constant beside it."""

    def gradient(w, x):
        a = np.tanh(x)
        return a**2, factor * 2 * w * a * (1 - a**2) + constant

    return gradient


def cost(w, x):
    return jnp.sum(w * jnp.tanh(x) ** 2)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (-1.0, "wrong sign"),
        (0.0, "zero"),
        (0.5, "the factor 2 is missing"),
        (4.0, "the factor 1/w.shape[0] is missing"),
    ],
)
def test_a_number_that_is_wrong_is_found_in_autodiffs_program(factor, words):
    subject = subject_of(numpy_cost_gradient(factor, 0.0), (X, X + 1), reference=cost)
    cause = planted(subject, [((X, X + 1), jnp.float32(1)), ((X + 2, X / 3), jnp.float32(1))])
    assert cause is not None
    assert cause.exact
    assert words in cause.words


def test_two_mistakes_are_two_that_hold_together():
    def gradients(W, x):  # one δ cannot be both twice and three times what it should be
        delta = 1 - np.tanh(W @ x) ** 2
        return np.outer(2 * delta, x), W.T @ (3 * delta)

    W = jax.random.normal(jax.random.key(0), (5, 4))
    subject = subject_of(gradients, (W, X), reference=lambda W, x: jnp.sum(jnp.tanh(W @ x)))
    cause = planted(subject, [((W, X), jnp.float32(1)), ((W + 1, X / 3), jnp.float32(1))])
    assert cause is not None
    assert cause.exact
    assert "∂W is 2 times" in cause.words
    assert "∂x is 3 times" in cause.words


def test_no_cause_is_exact_where_none_gives_the_gradient():
    def backward(w, x):
        wrong = np.zeros(4, np.float32)
        wrong[:] = np.cos(7 * w * x)  # no program that can be traced
        return np.tanh(x) ** 2, wrong

    report = check(backward, X, X + 1, reference=cost, **QUICK, budget=3.0)
    assert not report.ok
    assert not report.exact
    assert report.to_dict()["exact"] is False
    assert "not known" in report.cause


def test_a_constant_beside_the_cotangent():
    def f(x, y):
        return jnp.exp(-x * x) * jnp.cosh(x * y) - 2 * y

    def forward(x, y):
        return np.exp(-x * x) * np.cosh(x * y) - 2 * y, (x, y)

    def backward(saved, g):
        x, y = saved
        return (
            g * np.exp(-(x**2)) * (y * np.sinh(x * y) - 2 * x * np.cosh(x * y)),
            g * (np.exp(-(x**2)) * x * np.sinh(x * y) - 2) - 0.5,
        )

    report = check((forward, backward), jnp.float32(0.7), jnp.float32(0.4), reference=f, **QUICK)
    assert report.exact
    assert report.cause.startswith("the term 0.5 is too much in g * (np.exp")


@pytest.mark.parametrize("square", [lambda x: x * x, lambda x: x**2, jnp.square])
def test_a_missing_projection_is_one_term_however_the_square_is_written(square):
    def norm(x):
        return x / jnp.sqrt(jnp.mean(square(x), -1, keepdims=True) + 1e-5)

    def backward(saved, g):
        (x,) = saved
        return (g / jnp.sqrt(jnp.mean(square(x), -1, keepdims=True) + 1e-5),)

    report = check(rule(norm, backward), jnp.stack([X, X[::-1] + 1, 2 * X]), **QUICK)
    assert report.repair.patch
    assert report.cause.startswith("a term is missing in g")


def test_a_gradient_that_is_not_a_number_has_no_made_up_cause():
    power = rule(lambda x: 1.7**x, lambda saved, g: (g * 1.7 * saved[0] ** 0.7,))
    report = check(power, X, **QUICK)
    assert not report.ok
    assert report.repair is None or not report.repair.patch or "**" in report.repair.patch
    logs = check(rule(jnp.sin, lambda saved, g: (g * jnp.log(-saved[0] * saved[0]),)), X, **QUICK)
    assert not logs.ok
    assert "square root" not in str(logs)


def test_the_bias_lacks_the_slope_of_tanh():
    def forward(W, b, V, x, t):
        return jnp.mean(jnp.sum((jnp.tanh(x @ W + b[None]) @ V - t) ** 2, 1))

    def gradients(W, b, V, x, t):
        h = jnp.tanh(x @ W + b[None])
        dz = 2 * (h @ V - t) / len(x)
        dh = dz @ V.T
        return x.T @ (dh * (1 - h**2)), dh.sum(0), h.T @ dz, (dh * (1 - h**2)) @ W.T, -dz

    shapes = "float32[5,4], float32[4], float32[4,3], float32[7,5], float32[7,3]"
    report = check(gradients, shapes, reference=forward, **QUICK)
    assert [leaf.path for leaf in report.wrong] == ["∂b"]
    assert "1 - h" in report.repair.patch


def test_the_scale_of_a_dropout():
    def drop(key, x):
        return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)

    def backward(saved, g):
        key = saved[0]
        return np.zeros(key.shape, jax.dtypes.float0), jnp.where(jax.random.bernoulli(key, 0.7, g.shape), g, 0)

    report = check(rule(drop, backward), jax.random.PRNGKey(0), jnp.outer(X, X), **QUICK)
    assert "/ 0.7" in report.repair.patch


def test_a_fixed_copy_is_right_and_the_file_stays(tmp_path, capsys):
    from jaxnet.checking import command

    source = tmp_path / "rule.py"
    source.write_text(
        "import jax\nimport jax.numpy as jnp\n\nf = jax.custom_vjp(lambda x: jnp.tanh(x))\n"
        "f.defvjp(lambda x: (f(x), x), lambda x, g: (g * (1 - jnp.tanh(x)),))\n"
    )
    before, copy = source.read_text(), tmp_path / "fixed.py"
    assert command.run([f"{source}:f"], inputs="float32[4]", fix=copy) == 1
    said = capsys.readouterr().out
    assert source.read_text() == before
    assert command.run([f"{copy}:f"], inputs="float32[4]") == 0
    assert "+f.defvjp" in said
    assert command.run([f"{source}:f"], inputs="float32[4]", fix=copy) == 2
    assert "is there already" in capsys.readouterr().err
