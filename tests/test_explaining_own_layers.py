"""A layer of one's own is explained by its own lines: their text, their values, and that a false one is not shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet as j
from jaxnet.explaining import derive, observe
from jaxnet.explaining.expressions import written
from jaxnet.explaining.notation import notation
from jaxnet.factors import Outer, Plain
from jaxnet.layer import leaf


@pytest.fixture(autouse=True)
def usual_promotion():
    """A user's layer is written for JAX as it comes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def squeeze_excite(units, *, wrong=False):
    """Each channel scaled by a gate, which a small network makes of the mean of all channels."""

    def init(key, x):
        channels = x.shape[-1]
        first, second = jax.random.split(key)
        return {
            "W_1": jax.random.normal(first, (units, channels)), "b_1": jnp.zeros(units),
            "W_2": jax.random.normal(second, (channels, units)), "b_2": jnp.zeros(channels),
        }  # fmt: skip

    def forward(params, x, key=None, train=False):
        s = jnp.mean(x, axis=(0, 1))
        z = params["W_1"] @ s + params["b_1"]
        h = jax.nn.relu(z)
        u = params["W_2"] @ h + params["b_2"]
        g = jax.nn.sigmoid(u)
        return x * g, (x, s, h, g)

    def backward(params, saved, d_out):
        x, s, h, g = saved
        dg = jnp.sum(d_out * x, axis=(0, 1))
        delta_u = dg * g * (1 - g)
        delta_z = params["W_2"].T @ delta_u * (h > 0)
        ds = params["W_1"].T @ (2 * delta_z if wrong else delta_z)
        dx = d_out * g + ds / (x.shape[0] * x.shape[1])
        factors = {"W_1": Outer(delta_z, s), "b_1": Plain(delta_z), "W_2": Outer(delta_u, h), "b_2": Plain(delta_u)}
        return dx, factors

    return leaf("squeeze_excite", init, forward, backward)


def explained(layer, shape, symbols=None):
    x = jax.random.normal(jax.random.key(0), shape)
    params = j.initialize(layer, j.quadratic, jax.random.key(1), x)
    out = layer.forward(params, x)[0]
    return derive(observe(layer, j.quadratic, params, x, jnp.zeros(out.shape)), symbols or notation())


def said(derivation):
    return [f"{written(each.left)} = {written(each.right)}" for each in (*derivation.forward, *derivation.backward)]


@pytest.fixture(scope="module")
def squeezed():
    return explained(squeeze_excite(3), (2, 2, 4))


def test_a_layer_of_ones_own_is_explained_by_its_own_lines(squeezed):
    assert said(squeezed)[:6] == [
        "s² = meanₚ(xₚ)", "z² = W_1²s² + b_1²", "h² = relu(z²)", "u² = W_2²h² + b_2²", "g² = σ(u²)", "a²ₚ = xₚ ⊙ g²",
    ]  # fmt: skip
    assert "∂C/∂g² = Σₚ ∂C/∂a²ₚ ⊙ xₚ" in said(squeezed)
    assert "δ_z² = W_2²ᵀδ_u² ⊙ (h² > 0)" in said(squeezed)
    assert "∇W_1² = δ_z²s²ᵀ" in said(squeezed)
    assert squeezed.checked.ok


def test_the_values_of_its_lines_are_those_of_jax_grad(squeezed):
    found = {line.key: line for line in squeezed.backward}
    layer, params = squeeze_excite(3), squeezed.layers[0].params
    x = jax.random.normal(jax.random.key(0), (2, 2, 4))
    expected = jax.grad(lambda p: 0.5 * jnp.sum(layer.forward(p, x)[0] ** 2) / 4)(params)
    np.testing.assert_allclose(found["dW_12"].value, expected["W_1"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["db_22"].value, expected["b_2"], rtol=1e-4, atol=1e-6)


def test_its_lines_are_written_in_the_notation_that_was_chosen():
    rows = said(explained(squeeze_excite(3), (2, 2, 4), notation("ng", weights="in-out")))
    assert "z[1] = s[1]W_1[1] + b_1[1]" in rows


def test_a_wrong_backward_pass_fails_the_check():
    assert not explained(squeeze_excite(3, wrong=True), (2, 2, 4)).checked.ok


def test_a_line_whose_text_does_not_give_its_value_is_not_shown():
    def forward(params, x, key=None, train=False):
        s = jnp.sum(x, axis=0, keepdims=True)  # of each column; as text the sum of all
        c = jnp.cumsum(x, axis=0)
        return x * s + c, (x, s)

    def backward(params, saved, d):
        x, s = saved
        return d * s + jnp.sum(d * x, axis=0, keepdims=True) + jnp.flip(jnp.cumsum(jnp.flip(d, 0), 0), 0), ()

    lines = said(explained(leaf("mixed", lambda key, x: (), forward, backward), (3, 3)))
    assert lines[0] == "a² = mixed(x)"  # the layer by its name, as no line of its own is true as text
    assert not any(line.startswith("s²") for line in lines)


SOURCELESS = """
def forward(params, x, key=None, train=False):
    h = jax.nn.relu(params["W_1"] @ x + params["b_1"])
    a = jnp.tanh(params["W_2"] @ h)
    return a, (x, h, a)

def backward(params, saved, d_out):
    x, h, a = saved
    delta_u = d_out * (1 - a**2)
    delta_z = params["W_2"].T @ delta_u * (h > 0)
    factors = {"W_1": Outer(delta_z, x), "b_1": Plain(delta_z), "W_2": Outer(delta_u, h)}
    return params["W_1"].T @ delta_z, factors
"""


def test_a_layer_without_source_is_read_off_its_program():
    names = {"jax": jax, "jnp": jnp, "Outer": Outer, "Plain": Plain}
    exec(SOURCELESS, names)  # Python keeps no lines of it

    def init(key, x):
        first, second = jax.random.split(key)
        W_1, W_2 = jax.random.normal(first, (4, 3)), jax.random.normal(second, (2, 4))
        return {"W_1": W_1 / 4, "b_1": jnp.ones(4) / 4, "W_2": W_2 / 4}

    found = explained(leaf("two", init, names["forward"], names["backward"]), (3,))
    assert said(found)[0] == "a² = tanh(W_2²relu(W_1²x + b_1²))"
    assert "∇W_2² = (∂C/∂a² ⊙ (1 − a²²))relu(W_1²x + b_1²)ᵀ" in said(found)
    assert found.checked.ok
