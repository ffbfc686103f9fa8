"""Layers, networks and losses; the first wrong layer is named and no other."""

import jax
import jax.numpy as jnp
import pytest

import jaxnet as j
from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.targets import shipped
from jaxnet.layer import Loss

QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False, "precise": False}


def doubled(layer):
    """The layer with twice its dx."""

    def backward(params, saved, d_out, read):
        dx, reading = layer.backward(params, saved, d_out, read)
        return 2 * dx, reading

    return layer._replace(backward=backward)


def lost_skip(layer):
    """A residual whose backward pass forgets the skip connection."""
    right = j.residual(layer)

    def backward(params, saved, d_out, read):
        return layer.backward(params, saved, d_out, read)

    return right._replace(backward=backward, rebuild=lost_skip)


def network(middle):
    return j.serial(j.dense(6), j.tanh, middle, j.sigmoid, j.dense(3))


@pytest.mark.parametrize("inputs", ["float32[5]", "float32[4,5]"])
def test_a_right_network_passes_for_one_example_and_for_a_batch(inputs):
    report = check(network(j.residual(j.dense(6))), inputs, **{**QUICK, "precise": True})
    assert report.ok, str(report)
    assert {leaf.path for leaf in report.leaves} >= {"∂params[0]['W']", "∂params[2]['b']", "∂x"}


def test_the_first_wrong_layer_is_named_and_later_ones_are_not_blamed():
    report = check(network(doubled(j.dense(6))), "float32[5]", **QUICK)
    assert report.layer == "layer 3 of 5 › dense 6"
    assert "∂params[0]['W']" in [leaf.path for leaf in report.wrong]


def test_a_wrong_layer_inside_combinators_is_found():
    block = j.residual(j.serial(doubled(j.dense(6)), j.relu))
    report = check(j.serial(j.dense(6), j.repeat(block, 2)), "float32[5]", **QUICK)
    assert report.layer.endswith("layer 1 of 2 › dense 6"), report.layer
    assert report.layer.startswith("layer 2 of 2 › repeat 2")


def test_a_combinator_whose_parts_are_right_is_blamed_itself():
    report = check(j.serial(j.dense(6), lost_skip(j.dense(6)), j.tanh), "float32[5]", **QUICK)
    assert report.layer == "layer 2 of 3 › residual"


def test_two_wrong_layers_are_both_mentioned():
    report = check(j.serial(doubled(j.dense(6)), j.tanh, doubled(j.dense(3))), "float32[5]", **QUICK)
    assert report.layer == "layer 3 of 3 › dense 3"
    assert any("layer 1 of 3: dense 6" in note for note in report.notes)


def test_training_mode_is_checked_where_it_is_another_program():
    report = check(j.serial(j.dense(20), j.dropout(0.5)), "float32[5]", **QUICK)
    assert report.ok
    assert "right in training mode too" in report.notes
    right = j.dropout(0.5)

    def backward(params, saved, d_out, read):  # the mask, without 1/(1 − p)
        return jnp.sign(right.backward(params, saved, d_out, read)[0]) * jnp.abs(d_out), ()

    network = j.serial(j.dense(20), right._replace(backward=backward))
    wrong = check(network, "float32[5]", **{**QUICK, "precise": True})  # in float64 the mask is another one
    assert not wrong.ok
    assert "dropout" in wrong.layer
    assert "training" in wrong.name


def test_losses():
    assert check(j.softmax_cross_entropy, "float32[6], int32[]<6", **QUICK).ok
    right = j.quadratic

    def turn(params, x, y, weight, read):
        cost, dx, reading = right.turn(params, x, y, weight, read)
        return cost, 2 * dx, reading

    wrong = check(Loss("twice", turn, right.terms), "float32[6], float32[6]", **QUICK)
    assert not wrong.ok
    assert wrong.wrong[0].path == "∂x"


def test_a_network_with_its_loss_names_which_of_them_is_wrong():
    net, inputs = j.serial(j.dense(6), j.tanh, j.dense(3)), ("float32[4,5], int32[4]<3",)
    assert check((net, j.softmax_cross_entropy), *inputs, **QUICK).ok
    bad_net = j.serial(j.dense(6), doubled(j.tanh), j.dense(3))
    assert check((bad_net, j.softmax_cross_entropy), *inputs, **QUICK).layer == "layer 2 of 3 › tanh"

    def turn(params, x, y, weight, read):
        cost, dx, reading = j.quadratic.turn(params, x, y, weight, read)
        return cost, -dx, reading

    report = check((net, Loss("backwards", turn, j.quadratic.terms)), *inputs, **QUICK)
    assert report.layer == "the loss, backwards"


def test_given_parameters_are_kept():
    net = j.dense(3)
    params = {"W": jnp.ones((3, 2)), "b": jnp.zeros(3)}
    report = check(net, params, jnp.asarray([1.0, 2.0]), **QUICK)
    assert report.ok
    expected = next(leaf for leaf in report.leaves if leaf.path == "forward").arrays[1]
    assert jnp.allclose(jnp.asarray(expected), 3.0)


def test_an_input_that_a_network_does_not_take_is_said_to_be():
    with pytest.raises(CannotCheckError, match="neither as one example"):
        check(j.dense(3), "float32[2,3,4]")


def test_everything_shipped_is_right_at_one_point():
    wrong = [t.name for t in shipped()[::8] if not check(t.rule, *t.args, **QUICK).ok]
    assert wrong == []


@pytest.mark.slow
def test_everything_shipped_is_right():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert [t.name for t in shipped() if not check(t.rule, *t.args, diagnose=False).ok] == []
