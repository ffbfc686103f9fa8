"""Layers, losses and networks written as NumPy classes: an object with a forward and a backward method.

A parameter is an array of the object that changes the output. Its gradient is an array of the same shape that the
backward pass returns or writes under a name like the parameter's (dW, grads["W"], W_grad). Where backward moves the
parameter, its gradient is the step. Every call runs on a copy of the object, so that sums and buffers start anew.
Classes call their backward pass in many ways. All are tried, and the one that makes the most gradients right is taken.
The report names it.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

from jaxnet.checking.differentiation import raised
from jaxnet.checking.held_arrays import arrays_in, matched, shorten
from jaxnet.checking.host_functions import same_draws, slope_along
from jaxnet.checking.numpy_conventions import (
    OF_A_COST,
    OF_A_NETWORK,
    OF_TARGETS,
    OUT,
    OUTPUT,
    RATE,
    WITH_COTANGENT,
    Arguments,
    Cost,
    costs,
)
from jaxnet.checking.subject import CannotCheckError, Tree, is_array

FORWARD = (
    "forward",
    "forward_pass",
    "forward_propagation",
    "forward_prop",
    "feedforward",
    "feed_forward",
    "loss",
    "__call__",
)
BACKWARD = ("backward", "backward_pass", "backward_propagation", "backward_prop", "backpropagate", "backprop", "grad")
INPUT_GRADIENT = "dinputs"  # where a backward pass that returns nothing leaves it
RATES = ("lr", "learning_rate", "eta", "alpha")
LIBRARIES = ("jaxnet", "jax", "jaxlib", "torch", "flax", "equinox", "numpy")
TARGET = re.compile(r"target|label|true|actual|expected|^y$|^t$")
NEAR, ZERO = 1e-3, 1e-7  # relative errors of a slope; slopes below the second tell nothing
LARGE = 2.0**20  # a learning rate so large that the parameter does not round the step


def method_of(thing: Any, names: Sequence[str]) -> str | None:
    """The first of some methods that an object has."""
    return next((name for name in names if callable(getattr(thing, name, None))), None)


def has_passes(thing: Any) -> bool:
    """Whether an object, or a class of somebody's own, has a forward and a backward method."""
    kind = thing if isinstance(thing, type) else type(thing)
    own = not any(each.__module__.partition(".")[0] in LIBRARIES for each in kind.__mro__)
    return own and method_of(thing, FORWARD) is not None and method_of(thing, BACKWARD) is not None


def is_numpy_layer(thing: Any) -> bool:
    """Whether something is a class of somebody's own with a forward and a backward method, or an object of one."""
    return not isinstance(thing, tuple | FunctionType | MethodType | ModuleType) and has_passes(thing)


def is_cost_of_object(rule: Any, inputs: Sequence) -> bool:
    """Whether something is a method, of an object that holds NumPy arrays, that gives a cost and gradients of it."""
    thing = getattr(rule, "__self__", None)
    if not isinstance(rule, MethodType) or not any(isinstance(a, np.ndarray) for a in arrays_in(thing).values()):
        return False
    try:
        given = getattr(copy.deepcopy(thing), rule.__name__)(*host(inputs))
    except Exception:  # it is told where it is run as a function
        return False
    return isinstance(given, tuple) and len(given) > 1 and is_array(given[0]) and np.ndim(given[0]) == 0


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

    def copied(self, params: Sequence = ()) -> Any:
        """A copy of the object with copies of other parameters, at every place that holds them."""
        new = [np.array(each) if isinstance(each, np.ndarray) else each for each in params]  # it may be written to
        return copy.deepcopy(self.thing, {id(old): each for old, each in zip(self.params.values(), new, strict=False)})

    def outputs(self, thing: Any, inputs: Sequence) -> tuple:
        """The outputs of the forward pass of a copy: arrays and numbers alone."""
        with same_draws():
            out = getattr(thing, self.forward)(*inputs[: self.takes])
        out = getattr(thing, OUTPUT, None) if out is None else out
        outs = tuple(each for each in (out if isinstance(out, tuple | list) else (out,)) if is_array(each))
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

    def called_as(self) -> str:
        """The call, in words."""
        of = f"{self.cost.factor:g} · {self.cost.words}".removeprefix("1 · ")
        return f"called as {self.layer.backward}({self.words})" + (f", held against {of}" if self.cost.words else "")

    def forward(self, *args):
        """The outputs that have a cotangent, or the cost; and all that the backward pass reads."""
        inputs, thing = args[: self.count], self.layer.copied(args[self.count :])
        outs = self.layer.outputs(thing, inputs)
        if self.cotangents > 1:
            return outs[: self.cotangents], (thing, args, outs)
        targets = inputs[self.layer.takes :]
        out = self.cost.value(copy.copy(thing), outs[0], targets[0] if targets else None)
        return out if self.cost.factor == 1 else self.cost.factor * out, (thing, args, outs)

    def gives(self, thing: Any, args: Sequence, outs: Sequence, d_outs: Sequence) -> dict[str, Any]:
        """The results of the backward pass, by place."""
        inputs, takes = args[: self.count], self.layer.takes
        backward = getattr(thing, self.layer.backward)
        try:
            given = list(self.arguments(thing, inputs[:takes], inputs[takes:], outs, d_outs))
            given += [LARGE] * self.words.endswith(RATE)
            inspect.signature(backward).bind(*given)
        except (AttributeError, TypeError) as error:
            raise UnlikeArgumentsError from error
        returned = backward(*given)
        if self.layer.backward == self.layer.forward:  # it returns the cost and the gradients
            returned = returned[1] if len(returned) == 2 else returned[1:]
        if not isinstance(returned, dict):
            returned = dict(enumerate(returned if isinstance(returned, tuple | list) else [returned]))
        return {f"returned[{key!r}]": value for key, value in returned.items() if is_array(value)}

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
                value = (before[name] - value) / (LARGE if self.words.endswith(RATE) else rate_of(thing) or 1.0)
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


def rate_of(thing: Any) -> float | None:
    """The learning rate that an object holds."""
    return next(
        (vars(thing)[name] for name in RATES if isinstance(getattr(thing, "__dict__", {}).get(name), float)), None
    )


# --------------------------------------------------------------------------------------------------- what is found


def ways(layer: NumpyLayer, inputs: Sequence, names: tuple[str, ...], tried: list[str]) -> Iterator[BackwardCall]:
    """The ways to call a backward pass that run, with a gradient for an argument at least."""
    args = (*inputs, *layer.params.values())
    outs = layer.outputs(layer.copied(), inputs)
    rng = np.random.default_rng(1)
    d_outs = tuple(np.asarray(rng.standard_normal(np.shape(o)), np.result_type(o))[()] for o in outs)
    calls = [(len(outs), WITH_COTANGENT), (1, WITH_COTANGENT), (0, OF_A_COST)]
    if layer.takes < len(inputs):
        calls = [(0, OF_A_NETWORK)]
    for cotangents, conventions in calls:
        for words, arguments in conventions.items():
            for rate in ("", RATE):
                said = (words + rate).removeprefix(", ")
                way = BackwardCall(layer, len(inputs), said, arguments, cotangents, names)
                try:
                    found = way.changes(args, d_outs[: max(cotangents, 1)])
                except UnlikeArgumentsError:
                    continue
                except Exception as error:  # the user's backward pass may raise anything: that way is not meant
                    tried.append(f"{layer.backward}({said}): {raised(error)}")
                    continue
                of = [OUT] if cotangents else costs(layer.thing, outs[0], inputs, layer.takes)
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
    if way.layer.takes < len(inputs):  # what a network returns is for its parameters
        by_order = [[], *by_order]
    for some in by_order or [[]]:
        places = dict(zip(some, in_order, strict=False))
        rest = {place: value for place, value in found.items() if place not in places.values() and place not in params}
        others = params if some and len(in_order) == 1 else wanted | params
        places |= matched({name: value for name, value in others.items() if name not in places}, rest)
        rated = way.words.endswith(RATE) or rate_of(way.layer.thing) or way.layer.takes < len(inputs)
        places |= {name: name for name in params if rated and name in found and name not in places}
        if places:
            yield places


def held_up(way: BackwardCall, args: Sequence) -> tuple[tuple[int, int], BackwardCall]:
    """(right gradients, gradients of the right shape), and the call with the factor of its cost that suits most.

    A gradient is right where it gives the slope along a random direction.
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

    slopes = []
    for k, (grad, value) in enumerate(zip(grads, args, strict=True)):
        if grad is not None and np.shape(grad) == np.shape(value):
            direction = rng.standard_normal(np.shape(value))
            slope = slope_along(lambda at, k=k: cost([*args[:k], *at, *args[k + 1 :]]), [value], [direction])
            slopes.append((float(np.sum(grad * direction)), slope))

    def right(factor: float) -> int:
        return sum(abs(g - factor * e) <= NEAR * max(abs(g), abs(factor * e)) for g, e in slopes if abs(g) > ZERO)

    factors = [1.0]
    if way.cost in OF_TARGETS:
        sizes = dict.fromkeys([1, *np.shape(saved[2][0]), np.size(saved[2][0])])
        factors = [k / n for n in sizes for k in (1, 2, 0.5)]
    best = max(factors, key=right)
    return (right(best), len(slopes)), replace(way, cost=way.cost._replace(factor=best))


def way_of(layer: NumpyLayer, inputs: Sequence) -> BackwardCall:
    """The way to call a backward pass by which most gradients are right; of several the first."""
    inputs = [np.asarray(x, np.float64) if is_array(x) and np.result_type(x).kind == "f" else x for x in inputs]
    params = {path: value.astype(np.float64) for path, value in layer.params.items()}
    args, tried, found = (*inputs, *params.values()), [], []
    for way in ways(layer, inputs, (*input_names(layer, len(inputs)), *layer.params), tried):
        try:
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


# ------------------------------------------------------------------------------------------------------- the rule


@dataclass(frozen=True, eq=False)
class LayerRule:
    """A layer of NumPy as a pair of functions of its inputs and its parameters."""

    pair: tuple[Callable, Callable]
    fixed: tuple[int, ...]  # arguments without a gradient
    notes: tuple[str, ...]


def rule_of_way(way: BackwardCall, unseen: Sequence[str]) -> LayerRule:
    """The rule; `unseen` are the parameters that have no gradient, and stay as they are."""

    def forward(*args):
        return way.forward(*args)

    def backward(saved, d_out):
        return way.backward(saved, d_out)

    kind = inspect.Parameter.POSITIONAL_ONLY
    names = [inspect.Parameter(re.sub(r"\W+", "_", name).strip("_"), kind) for name in way.names]
    forward.__name__ = type(way.layer.thing).__name__
    vars(forward)["__signature__"] = inspect.Signature(names)
    vars(backward)["method"] = getattr(type(way.layer.thing), way.layer.backward)
    fixed = tuple(k for k, name in enumerate(way.names) if name not in way.places)
    notes = [way.called_as()]
    notes += [f"no gradient was found for {', '.join(unseen)}: backward leaves no array of its shape"] * bool(unseen)
    return LayerRule((forward, backward), fixed, tuple(notes))


def fed(thing: Any, forward: str, inputs: Sequence) -> int:
    """How many of the inputs a forward pass takes: the others are targets."""
    signature = inspect.signature(getattr(thing, forward))
    for count in range(len(inputs), 0, -1):
        try:
            signature.bind(*inputs[:count])
        except TypeError:
            continue
        return count
    raise CannotCheckError(f"{forward} must take the inputs, as {forward}(x), got {forward}{signature}: write it so")


def made(kind: type) -> Any:
    """An object of a class whose constructor takes no arguments."""
    try:
        return kind()
    except TypeError as error:
        needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
        said = f"{kind.__name__}({', '.join(needed)})"
        raise CannotCheckError(f"{kind.__name__} is a class: give an object of the class, as {said}") from error


def rule_of_layer(thing: Any, inputs: Tree) -> tuple[LayerRule, tuple]:
    """An object with a forward and a backward method as a rule, and its parameters as further arguments.

    Instead of the object a method of it may be given that returns a cost and its gradients. Constant parameters
    (γ = 1, β = 0) get random entries: at them a mistake may not show.
    """
    forward, backward = method_of(thing, FORWARD) or "", method_of(thing, BACKWARD) or ""
    if isinstance(thing, type):
        thing = made(thing)
    if isinstance(thing, MethodType):
        thing, forward, backward = thing.__self__, thing.__name__, thing.__name__
    inputs = host(inputs)
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
    dtype = next((x.dtype for x in inputs if is_array(x) and np.issubdtype(x.dtype, np.floating)), np.float32)
    rng = np.random.default_rng(3)
    values = [
        (value + 0.3 * rng.standard_normal(value.shape) * np.all(value == value.flat[0])).astype(dtype)
        for value in seen.values()
    ]
    return rule_of_way(way, unseen), tuple(values)
