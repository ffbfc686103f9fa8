"""JAX's own derivatives by every way: a planted fault is seen, and a right function raises none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.checking import primitives
from jaxnet.checking.primitives import check_function


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def disagreements(function):
    """The disagreements of a function that can be asked."""
    found = check_function("mine", function)
    assert not isinstance(found, str)
    return found


def sloped(slope):
    """The sine, with this derivative."""
    f = jax.custom_jvp(jnp.sin)
    f.defjvp(lambda p, t: (jnp.sin(p[0]), slope(p[0]) * t[0]))
    return f


@jax.custom_jvp
def held_cosine(x):
    """A cosine whose own derivative is zero."""
    return jnp.cos(x)


held_cosine.defjvp(lambda p, t: (jnp.cos(p[0]), 0 * t[0]))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (jnp.sin, set()),
        (jnp.linalg.inv, set()),
        (jax.nn.elu, set()),
        (jax.nn.hard_tanh, set()),
        (sloped(jnp.cos), set()),
        (sloped(jnp.sin), {"reverse against differences"}),
        (sloped(held_cosine), {"second, reverse against differences"}),
        (sloped(lambda x: jnp.where(x == 0, 0, jnp.cos(x))), {"reverse against differences"}),
    ],
)
def test_what_disagrees(function, said):
    found = {each.what for each in disagreements(function)}
    assert said <= found
    assert not found or said


def test_what_takes_no_arrays_is_not_asked():
    def refuses(text):
        raise TypeError("no text")

    assert check_function("mine", refuses) == "TypeError: no text"


@pytest.mark.parametrize("name", ["special.betainc", "jnp.einsum", "jnp.ceil"])
def test_written_calls_and_steps_are_asked(name):
    assert not disagreements(dict(primitives.functions())[name])


def test_every_function_is_asked_once():
    names = [name for name, _ in primitives.functions()]
    assert len(names) == len(set(names)) > 500
    assert {"jnp.sin", "special.i0", "jnp.linalg.svd", "jnp.fft.rfft", "lax.erf_inv"} <= set(names)


def test_the_command_tells_what_was_asked(capsys):
    assert primitives.run(("jnp.sin", "jnp.cos")) == 0
    assert "2 functions asked, 0 with derivatives that disagree" in capsys.readouterr().out


def test_what_says_that_it_has_no_second_derivative_is_asked_about_its_first():
    """The gradient of the regularised gamma function by its first argument has no derivative in JAX."""
    found = disagreements(jax.scipy.special.gammainc)
    assert not any("raises" in each.what for each in found)


def test_inputs_are_taken_from_the_domain():
    asked = primitives.inputs_of(jax.scipy.stats.chi2.logpdf, np.random.default_rng(0))
    assert not isinstance(asked, str)
    _, args, _ = asked
    assert all((arg > 0).all() for arg in args)
