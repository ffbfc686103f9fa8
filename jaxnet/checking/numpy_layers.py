"""Layers, losses and networks written as NumPy classes: an object with a forward and a backward method.

A parameter is an array of the object that changes the output. Its gradient is an array of the same shape that the
backward pass returns or writes under a name like the parameter's (dW, grads["W"], W_grad). Where backward moves the
parameter, its gradient is the step. Every call runs on a copy of the object, so that sums and buffers start anew.
Classes call their backward pass in many ways. All are tried, and the one that makes the most gradients right is taken.
The report names it.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet.checking.differentiation import raised
from jaxnet.checking.held_arrays import arrays_in, matched, shorten
from jaxnet.checking.host_functions import same_draws, slope_along
from jaxnet.checking.numpy_conventions import (
    AND_RATE,
    OF_A_COST,
    OF_A_NETWORK,
    OF_TARGETS,
    OUT,
    OUTPUT,
    WITH_COTANGENT,
    WITHOUT_INPUTS,
    Arguments,
    Cost,
    best_factor,
    costs,
)
from jaxnet.checking.subject import CannotCheckError, is_array

FORWARD = (
    "forward",
    "forward_pass",
    "forward_propagation",
    "forward_prop",
    "forward_propagate",
    "feedforward",
    "feed_forward",
    "loss",
    "__call__",
)
BACKWARD = (
    "backward",
    "backward_pass",
    "backward_propagation",
    "backward_prop",
    "backpropagate",
    "backpropagation",
    "back_propagation",
    "back_prop",
    "backprop",
    "grad",
)
INPUT_GRADIENT = "dinputs"  # where a backward pass that returns nothing leaves it
RATES = ("lr", "learning_rate", "eta", "alpha")
LIBRARIES = ("jaxnet", "jax", "jaxlib", "torch", "flax", "equinox", "numpy")
RATE_NAME = re.compile(r"rate|lr|eta|alpha|step|^mu$", re.IGNORECASE)
TARGET = re.compile(r"target|label|true|actual|expected|^y$|^t$")
LARGE = 2.0**20  # a learning rate so large that the parameter does not round the step


def method_of(thing: Any, names: Sequence[str]) -> str | None:
    """The first of some methods that an object has."""
    return next((name for name in names if callable(getattr(thing, name, None))), None)


def has_passes(thing: Any) -> bool:
    """Whether an object, or a class of somebody's own, has a forward and a backward method."""
    kind = thing if isinstance(thing, type) else type(thing)
    library = any(each.__module__.partition(".")[0] in LIBRARIES for each in kind.__mro__)
    own = not library or hasattr(kind, "is_authors")
    return own and method_of(thing, FORWARD) is not None and method_of(thing, BACKWARD) is not None


def kind_of_layer(rule: Any, inputs: Sequence) -> str:
    """The kind of a rule that is an object: "layer", "cost", or "" where it is neither.

    - "layer": a class of somebody's own with a forward and a backward method, an object of one, or its backward method.
    - "cost": a method that gives the cost and gradients of an object that holds NumPy arrays.
    """
    if not isinstance(rule, MethodType):
        is_object = not isinstance(rule, tuple | FunctionType | ModuleType)
        return "layer" if is_object and has_passes(rule) else ""
    thing = rule.__self__
    if not any(isinstance(a, np.ndarray) for a in arrays_in(thing).values()):
        return ""
    try:
        given = getattr(copy.deepcopy(thing), rule.__name__)(*host(inputs))
    except Exception:  # it is told where it is run
        given = None
    if isinstance(given, tuple) and len(given) > 1 and is_array(given[0]) and np.ndim(given[0]) == 0:
        return "cost"
    return "" if method_of(thing, FORWARD) in (None, rule.__name__) else "layer"


def host(inputs: Sequence) -> list:
    """Inputs as NumPy arrays and numbers."""
    return [np.array(x)[()] if is_array(x) else x for x in inputs]


# ------------------------------------------------------------------------------------------------- the forward pass


@dataclass(frozen=True, eq=False)
class NumpyLayer:
    """An object with its methods, its parameters by path, and how many inputs its forward pass takes."""

    thing: Any
    forward: str
    backward: str
    takes: int
    params: dict[str, Any]

    @property
    def is_cost(self) -> bool:
        """Whether one method gives the cost and its gradients."""
        return self.forward == self.backward

    def copied(self, params: Sequence = ()) -> Any:
        """A copy of the object with copies of other parameters, at every place that holds them."""
        new = [np.array(each) if isinstance(each, np.ndarray) else each for each in params]  # it may be written to
        traced = any(isinstance(each, Tracer) for each in params)
        others = {id(old): jnp.asarray(old) for old in arrays_in(self.thing, "biuf").values() if traced}
        held = {id(old): each for old, each in zip(self.params.values(), new, strict=False)}
        return copy.deepcopy(self.thing, others | held)

    def outputs(self, thing: Any, inputs: Sequence) -> tuple:
        """The outputs of the forward pass of a copy: arrays and numbers alone."""
        with same_draws():
            out = getattr(thing, self.forward)(*inputs[: self.takes])
        out = getattr(thing, OUTPUT, None) if out is None else out
        outs = tuple(each for each in (out if isinstance(out, tuple | list) else (out,)) if is_array(each))
        outs = (
            (np.asarray(out),) if isinstance(out, list) and not any(getattr(each, "ndim", 0) for each in outs) else outs
        )
        if not outs:
            raise CannotCheckError(f"{self.forward} must return its output, got {type(out).__name__}: return an array")
        return outs


def parameters(layer: NumpyLayer, inputs: Sequence) -> dict[str, np.ndarray]:
    """The arrays of an object that change its output, by path."""
    outs, found = layer.outputs(layer.copied(), inputs), {}
    rng = np.random.default_rng(0)
    for path, array in arrays_in(layer.thing).items():
        if not isinstance(array, np.ndarray) or not array.size:
            continue
        moved = (array + 0.1 * rng.standard_normal(array.shape)).astype(array.dtype)
        changed = replace(layer, params={path: array})
        try:
            others = changed.outputs(changed.copied([moved]), inputs)
        except Exception:  # the user's object may refuse another array in any way: it is no parameter
            continue
        if any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(outs, others, strict=True)):
            found[path] = array
    return found


def built(layer: NumpyLayer, inputs: Sequence) -> NumpyLayer:
    """The layer with its parameters; where its first forward pass makes them, after one."""
    if found := parameters(layer, inputs):
        return replace(layer, params=found)
    warm = layer.copied()
    layer.outputs(warm, inputs)
    shorten(warm, layer.thing)
    later = replace(layer, thing=warm)
    return replace(later, params=parameters(later, inputs))


# ------------------------------------------------------------------------------------------------ the backward pass


class UnlikeArgumentsError(Exception):
    """A backward pass takes another number of arguments."""


@dataclass(frozen=True, eq=False)
class BackwardCall:
    """A way to call the backward pass, and the place of each gradient: among the results, or in the object."""

    layer: NumpyLayer
    count: int  # of the inputs, targets included
    words: str
    arguments: Arguments
    cotangents: int  # how many the backward pass takes; 0 for a derivative
    names: tuple[str, ...]
    cost: Cost = OUT
    places: dict[str, str] = field(default_factory=dict)  # by argument; of a parameter that is moved, itself

    @property
    def of_network(self) -> bool:
        """Whether it gives the gradients of a cost that is not computed: the forward pass gives the output."""
        return not self.cotangents and (self.layer.takes < self.count or self.count == 0)

    @property
    def rate(self) -> float | None:
        """The learning rate of its steps, where it is known."""
        return LARGE if self.words.endswith(AND_RATE) else rate_of(self.layer.thing)

    def called_as(self) -> str:
        """The call, in words."""
        of = f"{self.cost.factor:g} · {self.cost.words}".removeprefix("1 · ")
        return f"called as {self.layer.backward}({self.words})" + (f", held against {of}" if self.cost.words else "")

    def forward(self, *args):
        """The outputs that have a cotangent, or the cost; and all that the backward pass reads."""
        traced = any(isinstance(each, Tracer) for each in args)
        args = [jnp.asarray(each) if traced and isinstance(each, np.ndarray) else each for each in args]
        inputs, thing = args[: self.count], self.layer.copied(args[self.count :])
        outs = self.layer.outputs(thing, inputs)
        if self.cotangents > 1:
            return outs[: self.cotangents], (thing, args, outs)
        targets = [*inputs[self.layer.takes :], *(arrays_in(thing, "biuf")[path] for path in self.cost.target)]
        out = self.cost.value(copy.copy(thing), outs[self.cost.out], targets[0] if targets else None)
        return out if self.cost.factor == 1 else self.cost.factor * out, (thing, args, outs)

    def gives(self, thing: Any, args: Sequence, outs: Sequence, d_outs: Sequence) -> dict[str, Any]:
        """The results of the backward pass, by place."""
        inputs, takes = args[: self.count], self.layer.takes
        backward = getattr(thing, self.layer.backward)
        try:
            given = list(self.arguments(thing, inputs[:takes], inputs[takes:], outs, d_outs))
            given += [LARGE] * self.words.endswith(AND_RATE)
            bound = inspect.signature(backward).bind(*given)
            if self.words.endswith(AND_RATE) and not RATE_NAME.search([*bound.arguments][-1]):
                raise TypeError("its last argument is no learning rate")
        except (AttributeError, TypeError) as error:
            raise UnlikeArgumentsError from error
        returned = backward(*given)
        names = names_returned(backward) if not takes or takes < self.count or self.layer.is_cost else ()
        if self.layer.is_cost:
            names, returned = names[1:], returned[1] if len(returned) == 2 else returned[1:]
        if not isinstance(returned, dict):
            several = returned if isinstance(returned, tuple | list) else [returned]
            named = len(names) == len(several) and any(names)
            returned = {name: each for name, each in zip(names, several, strict=False) if name} if named else several
        return {f"returned{path}": value for path, value in arrays_in(returned).items()}

    def backward(self, saved, d_out):
        """The gradients, None for an argument that has none."""
        thing, args, outs = saved
        params = zip(self.names[self.count :], args[self.count :], strict=True)
        before = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in params}
        given = self.gives(thing, args, outs, d_out if self.cotangents > 1 else (d_out,))
        found = arrays_in(thing) | given

        def gradient(name: str) -> Any:
            if name not in self.places:
                return None
            value = found[self.places[name]]
            if self.places[name] == name:
                value = (before[name] - value) / (self.rate or 1.0)
            return value if self.cotangents or np.shape(d_out) not in ((), np.shape(value)) else value * d_out

        return tuple(map(gradient, self.names))

    def changes(self, args: Sequence, d_outs: Sequence) -> dict[str, Any]:
        """By place, the results of the backward pass, and the arrays that it changes in the object."""
        args = copy.deepcopy(args)
        thing = self.layer.copied(args[self.count :])
        outs = self.layer.outputs(thing, args[: self.count])
        before = {path: np.array(value) for path, value in arrays_in(thing).items()}
        with same_draws():
            returned = self.gives(thing, args, outs, d_outs)
        after = arrays_in(thing).items()
        same = {path for path, value in after if path in before and np.array_equal(before[path], value, equal_nan=True)}
        return {path: value for path, value in after if path not in same} | returned


def names_returned(method: Callable) -> tuple[str, ...]:
    """The names of the variables that a function returns last; "" of anything else."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return ()
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    last = values[-1] if values else None
    parts = last.elts if isinstance(last, ast.Tuple | ast.List) else [last]
    return tuple(each.id if isinstance(each, ast.Name) else "" for each in parts)


def rate_of(thing: Any) -> float | None:
    """The learning rate that an object holds."""
    return next(
        (vars(thing)[name] for name in RATES if isinstance(getattr(thing, "__dict__", {}).get(name), float)), None
    )


# --------------------------------------------------------------------------------------------------- the findings


def ways(layer: NumpyLayer, inputs: Sequence, names: tuple[str, ...], tried: list[str]) -> Iterator[BackwardCall]:
    """The ways to call a backward pass that run, with a gradient for an argument at least."""
    args = (*inputs, *layer.params.values())
    outs = layer.outputs(layer.copied(), inputs)
    rng = np.random.default_rng(1)
    d_outs = tuple(np.asarray(rng.standard_normal(np.shape(o)), np.result_type(o))[()] for o in outs)
    calls = [(len(outs), WITH_COTANGENT), (1, WITH_COTANGENT), (0, OF_A_COST)]
    if layer.takes < len(inputs) or not inputs:
        calls = [(0, OF_A_NETWORK if inputs else WITHOUT_INPUTS)]
    for cotangents, conventions in calls:
        for words, arguments in conventions.items():
            for rate in ("", AND_RATE):
                said = (words + rate).removeprefix(", ")
                way = BackwardCall(layer, len(inputs), said, arguments, cotangents, names)
                try:
                    found = way.changes(args, d_outs[: max(cotangents, 1)])
                except UnlikeArgumentsError:
                    continue
                except Exception as error:  # the user's backward pass may raise anything: that way is not meant
                    tried.append(f"{layer.backward}({said}): {raised(error)}")
                    continue
                of = [OUT] if cotangents else costs(layer, outs, inputs)
                for places in gradients(way, inputs, found):
                    yield from (replace(way, places=places, cost=cost) for cost in of)


def gradients(way: BackwardCall, inputs: Sequence, found: dict[str, Any]) -> Iterator[dict[str, str]]:
    """By argument, the place of its gradient; where one is returned for several inputs, for each of them."""
    wanted, params = dict(zip(way.names, inputs, strict=False)), way.layer.params
    wanted = {name: value for name, value in wanted.items() if is_array(value) and np.result_type(value).kind == "f"}
    in_order = [place for place in found if re.fullmatch(r"returned\[\d+\]", place)]
    if not in_order and INPUT_GRADIENT in found:
        in_order = [INPUT_GRADIENT]
    by_order = [list(wanted)]
    if len(in_order) == 1:
        by_order = [[name] for name in wanted if not TARGET.search(name.lower())] or [[name] for name in wanted]
    if way.of_network:  # a network returns gradients of its parameters
        by_order = [[], *by_order]
    for some in by_order or [[]]:
        places = dict(zip(some, in_order, strict=False))
        rest = {place: value for place, value in found.items() if place not in places.values() and place not in params}
        others = params if some and len(in_order) == 1 else wanted | params
        places |= matched({name: value for name, value in others.items() if name not in places}, rest)
        rated = way.rate or way.of_network
        places |= {name: name for name in params if rated and name in found and name not in places}
        if places:
            yield places


def held_up(way: BackwardCall, args: Sequence) -> tuple[tuple[int, int], BackwardCall]:
    """(right gradients, gradients of the right shape), and the call with the factor of its cost that suits most.

    A gradient is right where it gives the slopes along random directions.
    """
    rng = np.random.default_rng(2)
    out, saved = way.forward(*copy.deepcopy(args))
    if way.cost.words and np.ndim(out):
        return (-1, -1), way
    d_outs = [np.asarray(rng.standard_normal(np.shape(o)))[()] for o in jax.tree.leaves(out)]
    grads = way.backward(saved, copy.deepcopy(d_outs[0] if way.cotangents < 2 else tuple(d_outs)))

    def cost(at: Sequence) -> float:
        outs = jax.tree.leaves(way.forward(*copy.deepcopy(at))[0])
        return sum(float(np.sum(d * o)) for d, o in zip(d_outs, outs, strict=True))

    slopes = []  # of each gradient along two directions: its own, and that of the cost
    for k, (grad, value) in enumerate(zip(grads, args, strict=True)):
        if grad is not None and np.shape(grad) == np.shape(value):
            directions = rng.standard_normal((2, *np.shape(value)))
            own = np.asarray([np.sum(grad * each) for each in directions])
            along = [
                slope_along(lambda at, k=k: cost([*args[:k], *at, *args[k + 1 :]]), [value], [each])
                for each in directions
            ]
            slopes.append((own, np.asarray(along)))

    factors = [1.0]
    if way.cost.words in {each.words for each in OF_TARGETS}:
        sizes = dict.fromkeys([1, *np.shape(saved[2][0]), np.size(saved[2][0])])
        factors = [k / n for n in sizes for k in (1, 2, 0.5)]
    steps = not way.rate and any(name == place for name, place in way.places.items())  # of a rate that is not known
    count, factor = best_factor(slopes, factors, measured=steps)
    return (count, len(slopes)), replace(way, cost=way.cost._replace(factor=factor))


def way_of(layer: NumpyLayer, inputs: Sequence) -> BackwardCall:
    """The way to call a backward pass by which most gradients are right; of several the first."""
    inputs = [np.asarray(x, np.float64) if is_array(x) and np.result_type(x).kind == "f" else x for x in inputs]
    params = {path: value.astype(np.float64) for path, value in layer.params.items()}
    args, tried, found = (*inputs, *params.values()), [], []
    for way in ways(layer, inputs, (*input_names(layer, len(inputs)), *layer.params), tried):
        try:
            with np.errstate(all="ignore"):
                counts, chosen = held_up(way, args)
        except Exception as failure:  # as in `ways`
            tried.append(f"{layer.backward}({way.words}): {raised(failure)}")
            continue
        found.append((counts, chosen))
        if counts[0] > len(layer.params):
            break
    if not found:
        method = getattr(layer.thing, layer.backward)
        said = (
            "".join(f"\n  {each}" for each in dict.fromkeys(tried))
            or f", got {layer.backward}{inspect.signature(method)}"
        )
        raise CannotCheckError(
            f"{layer.backward} must give gradients when it is called with d_out, the inputs, the output, a target, "
            f"or a learning rate{said}\nwrite the layer as two functions of its inputs and parameters"
        )
    return max(found, key=lambda each: each[0])[1]


def input_names(layer: NumpyLayer, count: int) -> tuple[str, ...]:
    """The names of the inputs of the forward pass, and `target`."""
    given = list(inspect.signature(getattr(layer.thing, layer.forward)).parameters)[: layer.takes]
    given = given if len(given) == layer.takes else [f"x{i}" for i in range(layer.takes)]
    return (*given, *["target", "target2", "target3"][: count - layer.takes])
