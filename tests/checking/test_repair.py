"""A repair names the author's line, and its patched source is right."""

import jax
import jax.numpy as jnp

from jaxnet.checking import check

QUICK = {"seeds": 1, "also": False, "inside": False}


def layer(derivative):
    @jax.custom_vjp
    def dense_tanh(W, x):
        return jnp.tanh(W @ x)

    def forward(W, x):
        a = jnp.tanh(W @ x)
        return a, (W, x, a)

    dense_tanh.defvjp(forward, derivative)
    return dense_tanh


def test_the_line_and_the_patch_of_a_wrong_derivative():
    def backward(saved, d_out):
        W, x, a = saved
        delta = d_out * (1 - a)
        return jnp.outer(delta, x), W.T @ delta

    report = check(layer(backward), "float32[4,4], float32[4]", budget=60.0, **QUICK)
    assert report.repair is not None
    assert report.repair.patch == "- delta = d_out * (1 - a)\n+ delta = d_out * (1 - a * a)"
    assert f"test_repair.py:{report.repair.line}" in str(report)


def test_no_repair_is_shown_where_no_change_of_one_expression_is_right():
    def backward(saved, d_out):
        W, x, _ = saved
        return jnp.zeros_like(W), jnp.zeros_like(x)

    report = check(layer(backward), "float32[4,3], float32[3]", budget=5.0, **QUICK)
    assert not report.ok
    assert report.repair is None
    assert "patch" not in str(report)
