"""Builds network, loss and optimizer from a config, and tries them on the shapes of the data.

Every function raises ConfigError for an option that cannot be used.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnet.backprop import backpropagate, initialize
from jaxnet.combinators import serial
from jaxnet.heads import fused_head
from jaxnet.layer import Layer, Loss, ShapeError, output, own_params, split_state
from jaxnet.losses import ignoring
from jaxnet.quantities.kronecker import kronecker
from jaxnet.readings import total
from jaxnet.registry import Maker, did_you_mean, maker_of, makers
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import Dataset, import_object
from jaxnet.training.data.own import raised
from jaxnet.training.names import (
    FEEDBACK,
    LAYERS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    gives_options,
    layers_in,
    parameters,
)


class Experiment(NamedTuple):
    """Network, loss and optimizer. `example`: shape and dtype of one input, as `initialize` takes it."""

    net: Layer
    loss: Loss
    optimizer: optax.GradientTransformation
    example: jax.ShapeDtypeStruct


def build(config: Config, dataset: Dataset) -> Experiment:
    """The experiment of a config on a data set; nothing is computed but shapes.

    Raises ConfigError for options that cannot be used or do not fit the data, ShapeError with the layer's name for a
    network that does not take the data's shape.
    """
    n = len(dataset.train.x)
    counts = {
        "train.batch": config.train.batch,
        "monitor.mean_delta": config.monitor.mean_delta,
        "monitor.angles": config.monitor.angles,
        "monitor.dead_units": config.monitor.dead_units or 0,
    }
    for key, value in counts.items():
        if value > n:
            raise ConfigError(f"{key} must be at most {n}, the examples of {dataset.name} to train on, got {value}")
    net, loss = network(config), loss_of(config.loss)
    if dataset.ignore is not None:
        loss = ignoring(loss, dataset.ignore)
    if (chunks := config.train.head_chunks) > 1:
        make("train.head_chunks", lambda: fused_head(net, loss, chunks=chunks))
    example = one_input(config, dataset)
    with jax.enable_x64(True) if config.precision == "float64" else nullcontext():
        params = fits(net, loss, example, dataset)
        asked = [f"train.chunks = {config.train.chunks}"] * (config.train.chunks > 1)
        asked += ["monitor.noise_scale"] * config.monitor.noise_scale + ["[privacy]"] * (config.privacy is not None)
        if asked and keeps_state(net, loss, example):
            raise ConfigError(
                f"{asked[0]} takes a batch apart, and the statistics of batch_norm are a whole batch's: leave it out, "
                "or take layer_norm or group_norm"
            )
    optimizer = optimizer_of(config, n, blocks_of(config, net, loss, example, dataset))
    if config.train.freeze is not None:
        optimizer = freezing(optimizer, list(map(str, config.train.freeze)), params)
    return Experiment(net, loss, optimizer, example)


def takes_blocks(config: Config, option: str = "curvature") -> bool:
    """Whether the optimizer of a config asks for the curvature of each batch; or, by "shapes", for its shapes alone."""
    name, _ = split_name(config.train.optimizer)
    return name in OPTIMIZERS and option in parameters(OPTIMIZERS[name])


def blocks_of(config: Config, net: Layer, loss: Loss, example: Any, dataset: Dataset) -> dict[str, Callable]:
    """The optimizer's option that gives Kronecker-factored curvature: (params) -> that of a batch of one.

    Raises ConfigError for a network without one.
    """
    option = next((option for option in ("curvature", "shapes") if takes_blocks(config, option)), None)
    if option is None:
        return {}
    chunked = config.train.chunks > 1 or config.train.head_chunks > 1
    if (chunked and option == "curvature") or keeps_state(net, loss, example):
        raise ConfigError(
            f"train.optimizer: {split_name(config.train.optimizer)[0]} takes the curvature of each example of a whole "
            "batch: leave out train.chunks and train.head_chunks, and take layer_norm or group_norm for batch_norm, "
            "which couples the examples"
        )
    curvature = make("train.optimizer", lambda: kronecker(net, loss))
    xs, ys = jnp.zeros((1, *example.shape), example.dtype), jnp.asarray(dataset.train.y[:1])
    return {option: lambda params: curvature(params, xs, ys, key=jax.random.key(0))}


def one_input(config: Config, dataset: Dataset) -> jax.ShapeDtypeStruct:
    """One input of the network: tokens stay whole numbers, the rest is float64 or float32."""
    x = dataset.train.x
    return jax.ShapeDtypeStruct(x.shape[1:], config.typed(x[:0]).dtype)


# ----------------------------------------------------------------------------------------------- by name


def make(where: str, of: Maker | Callable, /, **options: Any) -> Any:
    """Calls a maker or a function with options; its errors name the place in the config."""
    args, rest = of.arguments(options) if isinstance(of, Maker) else ((), options)
    function = of.make if isinstance(of, Maker) else of
    if not inspect.isfunction(function) and isinstance(of, Maker):
        return function
    try:
        inspect.signature(function).bind(*args, **rest)
    except TypeError as error:
        given = ", ".join(f"{name} = {value!r}" for name, value in options.items()) or "no options"
        raise ConfigError(f"{where} cannot be made with {given}: {error}") from None
    try:
        return function(*args, **rest)
    except ShapeError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where} failed: {raised(error)}") from error


def own(where: str, name: str, kind: type, options: Mapping[str, Any]) -> Any:
    """An object of the user's, or the result of a user's function called with the options."""
    found = imported(where, name)
    if not isinstance(found, kind) and callable(found):
        found = make(f'{where}: "{name}"', found, **options)
    elif options:
        raise ConfigError(f'{where}: "{name}" is no function, so it takes no options, got {", ".join(options)}')
    if not isinstance(found, kind):
        raise ConfigError(
            f'{where}: "{name}" must be a {kind.__name__} or a function that gives one, got a {type(found).__name__}'
        )
    return found


def imported(where: str, name: str) -> Any:
    """The object of a custom name; "jaxnet:NAME" is the maker NAME, whatever its module."""
    module, _, own = name.partition(":")
    if module == "jaxnet" and "." not in own:
        known = makers("layer", "model", "loss")
        if own not in known:
            raise ConfigError(f'{where}: "{name}": jaxnet has no {own}: {did_you_mean(own, known)}')
        return known[own].make
    try:
        return import_object(name)
    except ImportError as error:
        raise ConfigError(f"{where}: {error}") from None


def split_name(spec: str | Mapping[str, Any], key: str = "name") -> tuple[str, dict[str, Any]]:
    """The name and the options of a name, or of a table with a name."""
    if isinstance(spec, str):
        return spec, {}
    options = dict(spec)
    return options.pop(key), options


def with_init(of: Maker, options: Mapping[str, Any], init: str | None) -> dict[str, Any]:
    """The options, and the config's initialiser where there is none and one is taken by name."""
    takes = "init" in of.options and isinstance(of.options["init"].default, str)
    return ({"init": init} if takes and init is not None else {}) | dict(options)


def network(config: Config) -> Layer:
    """The network of a config, with its feedback path."""
    net = forward_network(config)
    name, options = split_name(config.feedback)
    return net if name == "transpose" else make("feedback", FEEDBACK[name], **options)(net)


def forward_network(config: Config) -> Layer:
    """The network of a config with its ordinary backward pass."""
    spec = config.model
    if isinstance(spec, list):
        return block_of(spec, config.init, "model")
    name, options = split_name(spec)
    if name not in MODELS:
        return own("model", name, Layer, options)
    return make("model", MODELS[name], **with_init(MODELS[name], options, config.init))


def block_of(spec: Any, init: str | None, where: str) -> Layer:
    """A layer, or several in a row."""
    if not isinstance(spec, list):
        return layer_of(spec, init, where)
    return serial(*(layer_of(each, init, f"{where}.{i}") for i, each in enumerate(spec)))


def layer_of(spec: Any, init: str | None, where: str) -> Layer:
    """One layer of a config's list, with the layers inside it."""
    name, value = (spec, {}) if isinstance(spec, str) else next(iter(spec.items()))
    of = LAYERS.get(name) or maker_of(imported(where, name))
    if not isinstance(value, Mapping) and (of is None or not of.options):
        raise ConfigError(f'{where}: "{name}" must have a table of options, such as {{ units = 32 }}, got {value!r}')
    if of is None:
        return own(where, name, Layer, value)
    if not of.options:
        return make(f"{where}.{name}", of, **value)
    options = dict(value) if gives_options(of, value) else {next(iter(of.options)): value}
    for key, inside in options.items():
        if key not in of.options or layers_in(of.options[key]) == "none":
            continue
        if layers_in(of.options[key]) == "one":
            options[key] = block_of(inside, init, f"{where}.{name}")
        else:
            options[key] = [block_of(each, init, f"{where}.{name}.{i}") for i, each in enumerate(inside)]
    return make(f"{where}.{name}", of, **(with_init(of, options, init) if name in LAYERS else options))


def loss_of(spec: Any) -> Loss:
    """The loss of a config."""
    name, options = split_name(spec)
    if name not in LOSSES:
        return own("loss", name, Loss, options)
    return make("loss", LOSSES[name], **options)


# --------------------------------------------------------------------------------------------- optimizer


def optimizer_of(config: Config, n: int, blocks: dict[str, Callable] | None = None) -> optax.GradientTransformation:
    """Clipping, the optimizer, Nielsen's L2 and accumulation, in that order; n is the training set's size.

    blocks: the option with the curvature, for an optimizer that takes one.
    """
    train = config.train
    name, given = split_name(train.optimizer)
    options = {key: argument(value, f"train.optimizer.{key}") for key, value in given.items()}
    if name in OPTIMIZERS:
        optimizer = make("train.optimizer", OPTIMIZERS[name], **options, **(blocks or {}))
    else:
        optimizer = own("train.optimizer", name, optax.GradientTransformation, options)
    steps = [optimizer]
    if train.clip_norm is not None:
        steps.insert(0, optax.clip_by_global_norm(train.clip_norm))
    if train.l2:
        if "learning_rate" not in options:
            raise ConfigError("train.l2 needs a learning rate, by which weights shrink: give train.optimizer one")
        steps.append(shrink(options["learning_rate"], train.l2 / n))
    chained = optax.chain(*steps)
    if train.accumulate > 1:
        chained = optax.MultiSteps(chained, every_k_schedule=train.accumulate).gradient_transformation()
    return promoting(chained)


def freezing(
    optimizer: optax.GradientTransformation, frozen: Sequence[str], params: Any
) -> optax.GradientTransformation:
    """The optimizer for the parameters outside the frozen places; those inside stay as they are."""
    names = jax.tree.leaves(parameter_names(params))
    for place in frozen:
        if not any(is_inside(name, [place]) for name in names):
            raise ConfigError(f'train.freeze: there is no parameter in "{place}": {did_you_mean(place, names)}')
    if all(is_inside(name, frozen) for name in names):
        raise ConfigError("train.freeze must leave a parameter to train, got all of them")

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda name: "frozen" if is_inside(name, frozen) else "trained", parameter_names(params))

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def parameter_names(params: Any) -> Any:
    """The dotted place of each parameter (`0.W`), in a tree of the same structure."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), params
    )


def is_inside(name: str, places: Sequence[str]) -> bool:
    """Whether a dotted name is one of these places or inside one."""
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer with JAX's usual promotion of dtypes and ranks, as optax needs it; the rest is strict."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return optax.with_extra_args_support(optimizer).update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def argument(value: Any, where: str) -> Any:
    """An option of an optimizer or of a schedule as optax takes it: a table with a schedule becomes one."""
    if isinstance(value, list):
        return [argument(each, f"{where}.{i}") for i, each in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "schedule" not in value:  # steps stand as keys, which TOML holds as text
        return {int(key) if key.isdecimal() else key: each for key, each in value.items()}
    name, options = split_name(value, "schedule")
    return make(where, SCHEDULES[name], **{key: argument(each, f"{where}.{key}") for key, each in options.items()})


def shrink(learning_rate: float | optax.Schedule, rate: float) -> optax.GradientTransformation:
    """Nielsen's L2: w → (1 − ηλ/n) w, beside the optimizer's update. `rate`: λ/n.

    Source: Nielsen, Neural Networks and Deep Learning, ch. 3, (93).
    """
    if callable(learning_rate):
        schedule = learning_rate
        return optax.add_decayed_weights(lambda step: -jnp.asarray(schedule(step)) * rate, mask=is_weight)
    return optax.add_decayed_weights(-learning_rate * rate, mask=is_weight)


def is_weight(params: Any) -> Any:
    """For each parameter whether it is a weight: its name has a capital letter, as in the equations."""

    def named_so(path: Any, _: Any) -> bool:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return bool(names) and str(names[-1])[:1].isupper()

    return jax.tree_util.tree_map_with_path(named_so, params)


# -------------------------------------------------------------------------------------------- shapes


def fits(net: Layer, loss: Loss, example: jax.ShapeDtypeStruct, dataset: Dataset) -> Any:
    """Tries network and loss on the shapes of the data, forward and backward; gives the parameters' shapes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    y = dataset.train.y
    target = jax.ShapeDtypeStruct(y.shape[1:], example.dtype if np.issubdtype(y.dtype, np.floating) else y.dtype)
    took = f"{dataset.name} has inputs of shape {example.shape}"
    try:
        params = make("model", lambda: jax.eval_shape(lambda k: initialize(net, loss, k, example), key))
        last = output(net, own_params(loss, params)[0], example)
        step = backpropagate(net, loss, total)
        make(
            "model",
            lambda: jax.eval_shape(
                lambda p, x, y, k: step(p, x[None], y[None], key=k, train=True), params, example, target, key
            ),
        )
    except ShapeError as error:
        told = in_toml(f"the network and the data do not fit: {error} ({took}, targets of {target.shape})")
        raise ShapeError(told) from None
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if 0 in leaf.shape:
            raise ShapeError(f"the parameter {jax.tree_util.keystr(path)} is empty, got shape {leaf.shape}: give units")
    enough_classes(last, dataset)
    return params


CALL = re.compile(r"\b(\w+)\(((?:[^()]|\([^()]*\))*)\)")


def in_toml(message: str) -> str:
    """A message with each call of a layer as a config has it: `flatten()` as `"flatten"`, `dense(30)` as a table."""

    def written(call: re.Match[str]) -> str:
        name, inside = call[1], CALL.sub(written, call[2])
        if name not in LAYERS:
            return f"{name}({inside})"
        listed = any(option.kind is option.VAR_POSITIONAL for option in LAYERS[name].options.values())
        return f"{{ {name} = {f'[{inside}]' if listed else inside} }}" if inside else f'"{name}"'

    return CALL.sub(written, message)


def keeps_state(net: Layer, loss: Loss, example: jax.ShapeDtypeStruct) -> bool:
    """Whether a layer keeps statistics beside its parameters. Such a layer couples the examples of a batch."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return bool(jax.tree.leaves(jax.eval_shape(lambda k: split_state(initialize(net, loss, k, example))[1], key)))


def enough_classes(last: Any, dataset: Dataset) -> None:
    """The network gives a number for each class of the data."""
    if dataset.classes is None or not hasattr(last, "shape") or not np.issubdtype(dataset.train.y.dtype, np.integer):
        return
    width = last.shape[-1] if last.shape else 0
    if width < dataset.classes:
        raise ShapeError(
            f"the last layer must give a number for each of the {dataset.classes} classes of {dataset.name}, "
            f"got {width}: end the model with {{ dense = {dataset.classes} }}"
        )
