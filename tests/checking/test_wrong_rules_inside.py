"""Several wrong rules inside one function: each is named, with its line and its patch."""

import jax
import jax.numpy as jnp

from jaxnet.checking import check


@jax.custom_vjp
def gated(x, w):
    return jax.nn.sigmoid(w) * x


def gated_forward(x, w):
    return gated(x, w), (x, w)


def gated_backward(saved, d_out):
    x, w = saved
    s = jax.nn.sigmoid(w)
    return s * d_out, d_out * x * s * (1 + s)


gated.defvjp(gated_forward, gated_backward)


@jax.custom_vjp
def centred(x):
    return x - x.mean(-1, keepdims=True)


def centred_backward(_, d_out):
    return (d_out - d_out.sum(-1, keepdims=True),)


centred.defvjp(lambda x: (centred(x), None), centred_backward)


def block(x, w):
    return jnp.tanh(centred(gated(x, w)))


def test_each_wrong_rule_has_its_line_and_patch():
    report = check(block, "float32[3,4], float32[3,4]", seeds=1, also=False, shapes=False, precise=False)
    assert not report.ok
    assert report.layer == "gated, centred"
    assert report.exact
    assert [inner.exact for inner in report.inside] == [True, True]
    assert report.cause.startswith("gated: ")
    assert "; centred: " in report.cause
    assert "could not be looked for" not in str(report)
    patches = [inner.repair.patch for inner in report.inside if inner.repair is not None]
    assert "+ return s * d_out, d_out * x * s * (1 - s)" in patches[0]
    assert "mean" in patches[1]
