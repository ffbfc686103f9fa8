"""The device certificate: noise by layer and dtype, against float64."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

from jaxnet.checking.device_noise import holds, measured, noise_of, run
from jaxnet.checking.subject import CannotCheckError
from jaxnet.checking.targets import Target, shipped
from jaxnet.layers import dense


def test_noise_grows_as_bits_are_lost():
    rows = {row.name: row.noise for row in measured(shipped("dense", "layer_norm"))}
    assert len(rows) >= 3
    for float32, bfloat16, float16 in rows.values():
        assert 0 <= float32 < 1e-6
        assert 1e-4 < float16 < bfloat16 < 3e-2
    assert measured(shipped("relu"))[0].noise == (0, 0, 0)


def test_of_a_batch_one_example_is_taken():
    """The examples of layers that couple a batch are batches."""
    [target] = [each for each in shipped("batch_norm") if "dense" in each.name]
    assert 0 < noise_of(target, "float32", 0) < 1e-5


def test_products_in_fewer_bits_are_seen():
    """As a device that multiplies float32 in bfloat16, and float64 as it is."""
    exact = dense(20)

    def backward(params, saved, d_out, read):
        low = d_out.astype(jnp.bfloat16).astype(d_out.dtype) if d_out.dtype == jnp.float32 else d_out
        return exact.backward(params, saved, low, read)

    args = ("float32[30]",)
    assert noise_of(Target("dense", exact, args), "float32", 0) < 1e-6
    assert noise_of(Target("low", exact._replace(backward=backward), args), "float32", 0) > 1e-3


def test_the_tolerance_holds_for_all(tmp_path, capsys):
    file = tmp_path / "device.json"
    assert run(["dense", "softmax"], file) == 0
    shown, made = capsys.readouterr().out, json.loads(file.read_text())
    assert "tolerance that holds" in shown
    for dtype, tolerance in made["tolerance"].items():
        assert tolerance > max(of[dtype] for of in made["noise"].values())
    assert jnp.finfo("bfloat16").eps / 10 < made["tolerance"]["bfloat16"] < 0.1


@pytest.mark.parametrize("name", ["quadratic", "linear_cross_entropy", "mlp"])
def test_losses_and_networks_have_noise_too(name):
    *_, target = shipped(name)
    float32, bfloat16 = (noise_of(target, dtype, 0) for dtype in ("float32", "bfloat16"))
    assert 0 <= float32 < 1e-6
    assert 1e-4 < bfloat16 < 3e-2


def test_the_backward_pass_of_a_loss_is_what_is_measured():
    [target] = shipped("linear_cross_entropy")

    def turn(*arguments):
        cost, dx, grads = target.rule.turn(*arguments)
        return cost, dx.astype(jnp.bfloat16).astype(dx.dtype) if dx.dtype == jnp.float32 else dx, grads

    off = replace(target, rule=target.rule._replace(turn=turn))
    assert noise_of(off, "float32", 0) > 1e-4 > noise_of(target, "float32", 0)


def test_a_gradient_that_is_zero_but_for_rounding_has_the_noise_of_the_others():
    """The bias of keys adds one number to all scores of a query, so softmax does not see it."""
    [target, _] = shipped("attention")
    assert 0 < noise_of(target, "float32", 0) < 1e-5


def a_function():
    return jnp.sin, ("float32[3]",)


def test_a_function_has_no_device_noise():
    with pytest.raises(CannotCheckError, match="a layer, a loss or a pair"):
        run([f"{__name__}:a_function"])


def test_tolerance_in_one_digit():
    rows = measured(shipped("relu"))
    assert holds(rows)["float32"] == 0
