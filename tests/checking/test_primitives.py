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
    found = {each.what for each in check_function("mine", function) or ()}
    assert said <= found
    assert not found or said


def test_what_takes_no_arrays_is_not_asked():
    assert check_function("mine", lambda text: text.upper()) is None


def test_every_function_is_asked_once():
    names = [name for name, _ in primitives.functions()]
    assert len(names) == len(set(names)) > 500
    assert {"jnp.sin", "special.i0", "jnp.linalg.svd", "jnp.fft.rfft", "lax.erf_inv"} <= set(names)


def test_the_command_tells_what_was_asked(capsys):
    assert primitives.run(("jnp.sin", "jnp.cos")) == 0
    assert "2 functions asked, 0 with derivatives that disagree" in capsys.readouterr().out


def test_what_says_that_it_has_no_second_derivative_is_asked_about_its_first():
    """The gradient of the regularised gamma function by its first argument has no derivative in JAX."""
    found = check_function("mine", jax.scipy.special.gammainc)
    assert found is not None
    assert not any("raises" in each.what for each in found)


def test_inputs_are_taken_from_the_domain():
    _, args, _ = primitives.inputs_of(jax.scipy.stats.chi2.logpdf, np.random.default_rng(0))
    assert all((arg > 0).all() for arg in args)
