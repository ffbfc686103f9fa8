"""NumPy classes as rules: a pair of functions of the inputs and the parameters, with the words about it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import numpy as np

from jaxnet.checking.differentiation import raised
from jaxnet.checking.numpy_layers import (
    BACKWARD,
    FORWARD,
    LARGE,
    BackwardCall,
    NumpyLayer,
    built,
    host,
    method_of,
    way_of,
)
from jaxnet.checking.subject import CannotCheckError, Tree, is_array


@dataclass(frozen=True, eq=False)
class LayerRule:
    """A layer of NumPy as a pair of functions of its inputs and its parameters."""

    pair: tuple[Callable, Callable]
    fixed: tuple[int, ...]  # arguments without a gradient
    notes: tuple[str, ...]
    rounding: float = 0.0  # the relative error of gradients that are read off a step, W − (W − step)


def identifier(path: str) -> str:
    """A path as a name: layers_0_W."""
    return re.sub(r"\W+", "_", path).strip("_")


def pair_of(
    name: str, forward: Callable, backward: Callable, paths: Sequence[str], notes: Sequence[str],
    fixed: Sequence[int] = (), method: Any = None, rounding: float = 0.0,
) -> LayerRule:  # fmt: skip
    """Two functions with a name, and arguments called by their paths; `method`: the author's, to be mended."""

    def there(*args):
        return forward(*args)

    def back(saved, d_out):
        return backward(saved, d_out)

    kind = inspect.Parameter.POSITIONAL_ONLY
    there.__name__ = name
    vars(there)["__signature__"] = inspect.Signature([inspect.Parameter(identifier(path), kind) for path in paths])
    vars(back)["method"] = method
    return LayerRule((there, back), tuple(fixed), tuple(notes), rounding)


def rounding_of(values: Sequence, steps: Sequence) -> float:
    """The relative error of steps that are the differences of two values."""
    pairs = [(np.asarray(value), np.abs(step).max(initial=0)) for value, step in zip(values, steps, strict=True)]
    return max((4 * np.finfo(v.dtype).eps * np.abs(v).max(initial=0) / step for v, step in pairs if step), default=0.0)


def rule_of_way(way: BackwardCall, unseen: Sequence[str], args: Sequence) -> LayerRule:
    """The rule at some arguments; `unseen` are the parameters that have no gradient, and stay as they are."""
    kind = type(way.layer.thing)
    name = getattr(way.layer.thing, "__name__", kind.__name__)
    fixed = [k for k, name in enumerate(way.names) if name not in way.places]
    notes = [way.called_as()]
    notes += [f"no gradient was found for {', '.join(unseen)}: backward leaves no array of its shape"] * bool(unseen)
    method = getattr(kind, way.layer.backward, None)
    rounding = 0.0
    if way.rate != LARGE and (moved := [k for k, name in enumerate(way.names) if way.places.get(name) == name]):
        out, saved = way.forward(*copy.deepcopy(args))
        grads = way.backward(saved, np.ones_like(out))
        rounding = rounding_of([args[k] for k in moved], [(way.rate or 1.0) * grads[k] for k in moved])
    return pair_of(name, way.forward, way.backward, way.names, notes, fixed, method, rounding)


def fed(thing: Any, forward: str, inputs: Sequence) -> int:
    """How many of the inputs a forward pass takes: the others are targets."""
    signature = inspect.signature(getattr(thing, forward))
    for count in range(len(inputs), -1, -1):
        try:
            signature.bind(*inputs[:count])
        except TypeError:
            continue
        return count
    raise CannotCheckError(f"{forward} must take the inputs, as {forward}(x), got {forward}{signature}: write it so")


def made(kind: type, inputs: Sequence) -> tuple[Any, Sequence]:
    """An object of a class whose constructor takes no arguments, or the inputs; and the inputs of its methods."""
    try:
        return kind(), inputs
    except TypeError as error:
        needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        if inputs and len(needed) == len(inputs):
            return kind(*inputs), []
        said = f"{kind.__name__}({', '.join(needed)})"
        raise CannotCheckError(f"{kind.__name__} is a class: give an object of the class, as {said}") from error


def rule_of_layer(thing: Any, inputs: Tree, *, is_cost: bool = False) -> tuple[LayerRule, Sequence, tuple]:
    """An object with a forward and a backward method as a rule, its inputs, and its parameters as further arguments.

    Instead of the object a method of it may be given: the backward pass, or one that returns a cost and its gradients
    (`is_cost`). A class whose constructor takes the inputs keeps them. Constant parameters
    (γ = 1, β = 0) get random entries: at them a mistake may not show.
    """
    forward, backward = method_of(thing, FORWARD) or "", method_of(thing, BACKWARD) or ""
    inputs = host(inputs)
    if isinstance(thing, type):
        thing, inputs = made(thing, inputs)
    if isinstance(thing, MethodType):
        thing, backward = thing.__self__, thing.__name__
        forward = backward if is_cost else method_of(thing, FORWARD) or ""
    layer = NumpyLayer(thing, forward, backward, fed(thing, forward, inputs), {})
    try:
        layer = built(layer, inputs)
    except CannotCheckError:
        raise
    except Exception as error:  # the user's forward pass may raise anything
        raise CannotCheckError(f"{forward} must run on these inputs, but it raises {raised(error)}") from error
    way = way_of(layer, inputs)
    unseen = [name for name in layer.params if name not in way.places]
    seen = {name: value for name, value in layer.params.items() if name in way.places}
    names = tuple(name for name in way.names if name not in unseen)
    way = replace(way, layer=replace(layer, params=seen), names=names)
    dtype = next((x.dtype for x in inputs if is_array(x) and np.issubdtype(x.dtype, np.floating)), None) or (
        np.float32 if inputs else np.float64
    )
    rng = np.random.default_rng(3)
    values = [
        (value + 0.3 * rng.standard_normal(value.shape) * np.all(value == value.flat[0])).astype(dtype)
        for value in seen.values()
    ]
    return rule_of_way(way, unseen, (*inputs, *values)), inputs, tuple(values)
