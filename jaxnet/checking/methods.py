"""Layers written as classes: `forward(*inputs)` gives the output, `backward(d_out)` the inputs' gradients."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.subject import CannotCheckError, cast, name_of

GRADIENTS = ("d{}", "d_{}", "grad_{}", "grad{}", "{}_grad")
"""Names of the attribute that holds the gradient of an attribute; it may stand in `grads` too."""


def has_methods(rule: Any) -> bool:
    """Whether `rule` is a layer written as a class, or an object of one."""
    return not isinstance(rule, tuple) and all(
        inspect.isroutine(getattr(rule, name, None)) for name in ("forward", "backward")
    )


class ParameterPlace(NamedTuple):
    """Where a parameter stands, and its gradient: each in an attribute that holds several, or in the object itself."""

    label: str
    holder: str
    key: Any
    grads: str
    place: Any


def pair_of(rule: Any, args: tuple, drawn: tuple) -> tuple[tuple[Callable, Callable], tuple]:
    """A pair (forward, backward) for a layer written as a class, and its arguments: the inputs, then the parameters.

    A parameter is an array that `forward` leaves alone, and whose gradient stands in the object after `backward`.
    """
    if isinstance(rule, type):
        try:
            rule = rule()
        except TypeError as error:
            raise CannotCheckError(f"{error}: give an object of the class, as layer = {rule.__name__}(...)") from error
    count, found = len(args), params_of(rule, drawn)
    floats = [leaf.dtype for leaf in jax.tree.leaves(drawn) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    values = cast([held(rule, each.holder, each.key) for each in found], jnp.result_type(jnp.float32, *floats))

    def forward(*args):
        layer = copy.deepcopy(rule)
        for each, value in zip(found, args[count:], strict=True):
            (getattr(layer, each.holder) if each.holder else vars(layer))[each.key] = value
        return layer.forward(*args[:count]), layer

    def backward(layer, d_out):
        given = layer.backward(d_out)
        grads = [held(layer, each.grads, each.place) for each in found]
        return (*(given if isinstance(given, tuple | list) else (given,)), *grads)

    inputs = list(inspect.signature(rule.forward).parameters)[:count]
    named = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in inputs]
    named += [inspect.Parameter(each.label, inspect.Parameter.POSITIONAL_ONLY) for each in found]
    vars(forward).update(__name__=name_of(type(rule)), __signature__=inspect.Signature(named))
    vars(backward).update(method=type(rule).backward)
    return (forward, backward), (*args, *values)


def params_of(rule: Any, inputs: tuple) -> list[ParameterPlace]:
    """The parameters that have a gradient after a call at some inputs."""
    layer = copy.deepcopy(rule)
    before = {place: held(layer, place.holder, place.key) for place in places(layer)}
    out = layer.forward(*jax.tree.map(np.asarray, inputs))
    layer.backward(jax.tree.map(np.ones_like, out))
    found: dict[int, ParameterPlace] = {}
    for place in places(layer):
        value, grad = held(layer, place.holder, place.key), held(layer, place.grads, place.place)
        is_param = isinstance(value, np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, jnp.floating)
        if is_param and value is before.get(place) and grad is not None and np.shape(grad) == value.shape:
            found.setdefault(id(value), place)
    return list(found.values())


def places(layer: Any) -> Iterator[ParameterPlace]:
    """The places at which a parameter and its gradient may stand."""
    for holder in ("", "params"):
        several = getattr(layer, holder, None) if holder else vars(layer)
        for key in list(several) if isinstance(several, dict) else range(len(several or ())):
            label = key if isinstance(key, str) else f"{holder}_{key}"
            yield from (ParameterPlace(label, holder, key, "grads", place) for place in (key, f"d{key}"))
            yield from (ParameterPlace(label, holder, key, "", each.format(key)) for each in GRADIENTS)


def held(layer: Any, holder: str, key: Any) -> Any:
    """What an object holds at a key; None where there is nothing."""
    try:
        return (getattr(layer, holder) if holder else vars(layer))[key]
    except (AttributeError, TypeError, LookupError):
        return None
