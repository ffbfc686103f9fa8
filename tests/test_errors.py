"""Every refusal of the core: it names the layer, says what came, and how to mend it."""

import jax
import jax.numpy as jnp
import pytest

import jaxnet
from jaxnet import ShapeError, dense, models, parallel, per_position, repeat, residual, serial, sigmoid, tied
from jaxnet.layers import pinned
from jaxnet.losses import huber

KEY = jax.random.key(0)


def start(net, *shape):
    return net.init(KEY, jnp.zeros(shape))


def run(net, init_shape, shape):
    return net.forward(start(net, *init_shape), jnp.zeros(shape))


def turn(loss, x_shape, y):
    return loss.turn((), jnp.zeros(x_shape), y, 1.0, jaxnet.total)


def batch_of(net, *, chunks=1, read=jaxnet.total, size=4):
    f = jaxnet.backpropagate(net, jaxnet.softmax_cross_entropy, read, chunks=chunks)
    return f(start(net, 3), jnp.zeros((size, 3)), jnp.zeros(size, jnp.int32))


SHAPES = {
    "dense_of_a_picture": (
        lambda: start(dense(5), 28, 28, 1),
        "dense 5 takes a vector, got shape (28, 28, 1): put flatten() before it, "
        "or per_position(dense(5)) for a sequence of vectors",
    ),
    "dense_of_a_number": (lambda: start(dense(5)), "dense 5 takes a vector, got shape ()"),
    "dense_of_another_length": (
        lambda: run(dense(5), (3,), (4,)),
        "dense 5 takes W of shape (5, 4) for an input of shape (4,), got (5, 3): initialise it for this input",
    ),
    "dense_of_another_rank_at_forward": (
        lambda: run(dense(5), (3,), (2, 3)),
        "dense 5 takes a vector, got shape (2, 3)",
    ),
    "reshape": (
        lambda: start(jaxnet.reshape(4, 3), 5),
        "reshape 4×3 takes an input whose size fills it, got shape (5,)",
    ),
    "reshape_with_a_rest": (lambda: start(jaxnet.reshape(-1, 3), 5), "reshape -1×3 takes an input whose size fills it"),
    "reshape_with_two_rests": (lambda: start(jaxnet.reshape(-1, -1), 4), "got shape (4,) of size 4"),
    "residual": (
        lambda: start(residual(dense(5)), 3),
        "residual takes a layer that gives back the shape it takes, got (3,) in and (5,) out: "
        "end the layer with one of 3 units",
    ),
    "residual_at_forward": (
        lambda: residual(dense(5)).forward(start(dense(5), 3), jnp.zeros(3)),
        "residual takes a layer that gives back the shape it takes",
    ),
    "repeat": (lambda: start(repeat(dense(5), 2), 3), "repeat 2 takes a layer that gives back the shape it takes"),
    "parallel_sum": (
        lambda: start(parallel(dense(2), dense(3)), 4),
        "parallel (sum) takes layers that give the same shape, got [(2,), (3,)]",
    ),
    "parallel_concatenate": (
        lambda: start(parallel(jaxnet.identity, jaxnet.flatten(), join="concatenate"), 4, 3),
        "parallel (concatenate) takes layers that give shapes that differ in the last axis only, got [(4, 3), (12,)]",
    ),
    "per_position_of_a_number": (
        lambda: start(per_position(sigmoid)),
        "per_position takes a sequence, (positions, …), got shape ()",
    ),
    "per_position_of_numbers": (lambda: start(per_position(dense(2)), 4), "dense 2 takes a vector, got shape ()"),
    "tied": (
        lambda: start(tied(dense(3), dense(5), where=(0, 1)), 4),
        "tied layers need W of one shape, got [(3, 4), (5, 3)]",
    ),
    "target_of_values": (
        lambda: turn(jaxnet.quadratic, (5,), jnp.zeros(4)),
        "quadratic takes a target of shape () (class labels) or (5,) (values) for an output of shape (5,), "
        "got float32 (4,)",
    ),
    "target_of_indices": (
        lambda: turn(jaxnet.softmax_cross_entropy, (2, 5), jnp.zeros(3, jnp.int32)),
        "got int32 (3,)",
    ),
    "output_without_features": (
        lambda: turn(huber(), (), jnp.zeros(())),
        "huber takes a target of shape",
    ),
    "where_in_serial": (
        lambda: start(serial(sigmoid, serial(sigmoid, sigmoid, dense(2))), 4, 3),
        "layer 2 of 2: layer 3 of 3: dense 2 takes a vector, got shape (4, 3)",
    ),
    "where_in_serial_at_forward": (lambda: run(serial(sigmoid, dense(2)), (3,), (4,)), "layer 2 of 2: dense 2 takes W"),
    "where_in_parallel": (lambda: start(parallel(sigmoid, dense(3)), 4, 3), "layer 2 of 2: dense 3 takes a vector"),
    "one_example_as_a_batch": (
        lambda: grads(dense(3), start(dense(3), 4), jnp.zeros(4), jnp.zeros(3)),
        "xs and ys must have as many examples, along the first axis, got xs of shape (4,), ys of shape (3,): "
        "give a target for each example; for one example give x[None] and y[None]",
    ),
    "one_example_of_the_size_of_its_target": (
        lambda: grads(dense(4), start(dense(4), 4), jnp.zeros(4), jnp.zeros(4)),
        "dense 4 takes a vector, got shape (): put flatten() before it, or per_position(dense(4)) for a sequence of "
        "vectors; xs of shape (4,) is one example, and a batch has the examples along its first axis",
    ),
    "one_example_to_predict": (
        lambda: jaxnet.predict(dense(4))(start(dense(4), 4), jnp.zeros(4)),
        "is one example, and a batch has the examples along its first axis: for one example give x[None]",
    ),
    "a_target_without_axes": (
        lambda: jaxnet.per_example(dense(3), jaxnet.softmax_cross_entropy)(start(dense(3), 4), jnp.zeros(4), 1),
        "got ys without axes: for one example give x[None] and y[None]",
    ),
    "batches_of_two_sizes": (
        lambda: grads(dense(3), start(dense(3), 4), jnp.zeros((8, 4)), jnp.zeros((7, 3))),
        "got xs of shape (8, 4), ys of shape (7, 3)",
    ),
    "parameters_of_another_network": (
        lambda: grads(serial(dense(3), sigmoid), start(dense(3), 4), jnp.zeros((8, 4)), jnp.zeros((8, 3))),
        "the parameters are another network's: this one takes ({'W': (3, 4), 'b': (3,)}, ()), "
        "got {'W': (3, 4), 'b': (3,)}: initialise it",
    ),
    "parameters_of_a_wider_network": (
        lambda: grads(
            serial(dense(3), sigmoid), start(serial(dense(7), sigmoid), 4), jnp.zeros((8, 4)), jnp.zeros((8, 3))
        ),
        "layer 1 of 2: dense 3 takes W of shape (3, 4) for an input of shape (4,), got (7, 4): initialise it",
    ),
    "parameters_of_a_longer_network": (
        lambda: jaxnet.predict(serial(dense(3)))(start(serial(dense(3), sigmoid), 4), jnp.zeros((8, 4))),
        "the parameters are another network's",
    ),
    "a_bias_of_another_length": (
        lambda: grads(dense(3), start(dense(3), 4) | {"b": jnp.zeros(4)}, jnp.zeros((8, 4)), jnp.zeros((8, 3))),
        "the parameters are another network's: this one takes {'W': (3, 4), 'b': (3,)}, got {'W': (3, 4), 'b': (4,)}",
    ),
    "a_bias_that_is_broadcast": (
        lambda: grads(dense(3), start(dense(3), 4) | {"b": jnp.zeros(1)}, jnp.zeros((8, 4)), jnp.zeros((8, 3))),
        "a parameter of shape (1,) has a gradient of shape (3,): give it this shape",
    ),
    "a_bias_that_is_broadcast_for_each_example": (
        lambda: jaxnet.per_example(dense(3), jaxnet.quadratic)(
            start(dense(3), 4) | {"b": jnp.zeros(())}, jnp.zeros((8, 4)), jnp.zeros((8, 3))
        ),
        "a parameter of shape () has a gradient of shape (3,): give it this shape",
    ),
    "trace": (
        lambda: jaxnet.trace(dense(2), jaxnet.quadratic)(start(dense(2), 3), jnp.zeros((4, 5)), jnp.zeros((4, 2))),
        "dense 2 takes W of shape (2, 5) for an input of shape (5,), got (2, 3)",
    ),
}

VALUES = {
    "initializer": (lambda: dense(3, init="he"), "an initialiser is one of lecun_normal, lecun_uniform"),
    "pinned": (
        lambda: start(dense(3, init=pinned([[1.0]])), 2),
        "pinned values must have the shape (3, 2) of the parameter, got (1, 1)",
    ),
    "drop_rate_of_one": (lambda: jaxnet.dropout(1.0), "a drop rate is at least 0 and below 1, got 1.0"),
    "drop_rate_below_zero": (lambda: jaxnet.dropout(-0.1), "a drop rate is at least 0 and below 1, got -0.1"),
    "dropout_without_key": (
        lambda: jaxnet.dropout(0.5).forward((), jnp.ones(3), train=True),
        "dropout draws its mask from a key while training, got none: pass key=jax.random.key(…)",
    ),
    "huber": (lambda: huber(0.0), "Huber's threshold is positive, got 0.0"),
    "join": (
        lambda: parallel(dense(3), join="mean"),
        'parallel joins by "sum", "product" or "concatenate", got \'mean\'',
    ),
    "parallel_of_none": (lambda: parallel(), "parallel takes at least one layer, got none"),
    "mlp_without_widths": (
        lambda: models.mlp([]),
        "an mlp takes at least one width, that of its output, got none",
    ),
    "mlp_of_a_misspelt_activation": (lambda: models.mlp([3, 2], activation="rleu"), "relu, softplus"),
    "residual_mlp_of_no_activation": (
        lambda: models.residual_mlp(3, 2, 1, activation=""),
        "an activation is one of",
    ),
    "repeat_never": (lambda: repeat(dense(3), 0), "repeat: times must be a whole number of at least 1, got 0"),
    "no_units": (lambda: dense(0), "dense: units must be a whole number of at least 1, got 0"),
    "units_as_a_float": (lambda: dense(2.0), "dense: units must be a whole number of at least 1, got 2.0"),
    "units_as_a_truth_value": (lambda: dense(True), "dense: units must be a whole number of at least 1, got True"),
    "tied_once": (
        lambda: tied(dense(3), dense(3), where=(1, 1)),
        "tied takes at least two different indices of its 2 layers, got (1, 1)",
    ),
    "tied_beyond": (lambda: tied(dense(3), dense(3), where=(0, 2)), "indices of its 2 layers, got (0, 2)"),
    "tied_without_parameter": (
        lambda: start(tied(dense(3), sigmoid, where=(0, 1)), 3),
        "tied takes layers with a parameter 'W'; layer 1 (sigmoid) has none",
    ),
    "chunks_that_do_not_divide": (
        lambda: batch_of(dense(2), chunks=3),
        "chunks must divide the batch, got 3 chunks of 4 examples",
    ),
    "chunks_of_what_does_not_add_up": (
        lambda: batch_of(dense(2), chunks=2, read=jaxnet.product),
        "only additive readings (total, pairs of them) may run in chunks: call it with chunks=1",
    ),
    "per_example_of_a_sum": (
        lambda: jaxnet.per_example(dense(2), jaxnet.quadratic, jaxnet.total),
        "per_example takes readings that are one for each example (product, squared_norm, deltas)",
    ),
    "per_example_of_a_pair_with_a_sum": (
        lambda: jaxnet.per_example(dense(2), jaxnet.quadratic, jaxnet.pair(jaxnet.product, jaxnet.total)),
        "per_example takes readings that are one for each example",
    ),
}

TYPES = {
    "layers_in_a_list": (
        lambda: serial([dense(3), sigmoid]),
        "serial: layers must be a Layer, got a list: give its layers one by one, serial(*layers)",
    ),
    "a_maker_that_was_not_called": (
        lambda: serial(dense, sigmoid),
        "serial: layers must be a Layer, got the function dense: call it, dense(units, *, bias=True, ",
    ),
    "no_layer": (lambda: residual(3), "residual: block must be a Layer, got 3, a int"),
    "no_layer_or_none": (lambda: models.pre_norm(dense(3), "rms"), "pre_norm: norm must be a Layer, got 'rms', a str"),
    "a_loss_by_name": (
        lambda: jaxnet.value_and_grad(dense(3), "quadratic"),
        "the loss must be a Loss, got 'quadratic': write quadratic",
    ),
    "a_loss_that_was_not_called": (
        lambda: jaxnet.per_example(dense(3), huber),
        "write huber(threshold=1.0)",
    ),
    "another_loss": (lambda: jaxnet.trace(dense(3), None), "the loss must be a Loss, got None: make one, as quadratic"),
    "a_network_that_was_not_called": (
        lambda: jaxnet.initialize(dense, jaxnet.quadratic, KEY, jnp.zeros(3)),
        "the network must be a Layer, got <function dense",
    ),
}  # fmt: skip


def grads(net, params, xs, ys, loss=jaxnet.quadratic):
    return jaxnet.value_and_grad(net, loss)(params, xs, ys)


@pytest.mark.parametrize("name", TYPES)
def test_type_error(name, unchecked):
    call, says = TYPES[name]
    with pytest.raises(TypeError) as error:
        call()
    assert says in str(error.value)


@pytest.mark.parametrize("name", SHAPES)
def test_shape_error(name, unchecked):
    call, says = SHAPES[name]
    with pytest.raises(ShapeError) as error:
        call()
    assert says in str(error.value)


@pytest.mark.parametrize("name", VALUES)
def test_value_error(name, unchecked):
    call, says = VALUES[name]
    with pytest.raises(ValueError) as error:  # noqa: PT011, the message is held below
        call()
    assert type(error.value) is ValueError
    assert says in str(error.value)


def test_annotations_are_enforced_in_tests():
    """The import hook holds shapes: a matrix where a vector belongs does not pass."""
    from jaxnet.layers.dense import times

    with pytest.raises(Exception, match="Type-check error"):
        times(jnp.zeros((3, 4)), jnp.zeros((4, 2)))
