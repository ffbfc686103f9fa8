"""Functions that share arrays by their names, and autograd engines, as objects with a forward and a backward pass.

`forward_prop(W1, b1, X)` and `backward_prop(A1, A2, X, Y)` are called one after the other: each takes by name an
input, or a variable that one before it returns. Arrays of the module that they read are parameters too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import jax

from jaxnet.checking.author import codes_in, functions_of
from jaxnet.checking.held_arrays import arrays_in, rebound, with_arrays
from jaxnet.checking.numpy_layers import LARGE, host, names_returned
from jaxnet.checking.subject import CannotCheckError

RATE_ARGUMENT = re.compile(r"^(lr|l_rate|eta|alpha|step_size)$|learning_?rate", re.IGNORECASE)
UNARY = ("exp", "log", "tanh", "sigmoid", "relu", "sin", "cos", "sqrt", "abs", "__neg__", "softmax")
THERE = 0.7390851  # a gradient that a number has before; no factor that a patch would try
BINARY = ("__add__", "__mul__", "__sub__", "__truediv__", "__matmul__", "matmul", "dot")


class Functions:
    """Functions called one after the other. Their inputs, and arrays of their module that they read, are attributes."""

    is_authors = True

    def __init__(self, functions: Sequence[FunctionType], inputs: Sequence):
        self._functions, space = tuple(functions), functions[0].__globals__
        self.__name__ = functions[0].__name__
        read = {name for each in functions_of(*functions) for code in codes_in(each.__code__) for name in code.co_names}
        given = {name for each in functions for name in names_returned(each)}
        needed = dict.fromkeys(name for each in functions for name in required(each))
        asked = [name for name in needed if name in required(functions[0]) or name not in given]
        rates = [name for name in asked if RATE_ARGUMENT.search(name)]
        asked = [name for name in asked if name not in rates]
        if len(asked) != len(inputs):  # arrays of that name in the module are taken
            asked = [name for name in asked if not arrays_in(with_arrays([space.get(name)]))]
        if len(asked) != len(inputs):
            raise CannotCheckError(f"--inputs must be for {', '.join(asked)}, got {len(inputs)} inputs")
        self._inputs = tuple(name for name in needed if name in asked or (name in space and name not in rates))
        self._globals = tuple(sorted(name for name in read & set(space) if arrays_in(with_arrays([space[name]]))))
        vars(self).update({name: with_arrays(space[name]) for name in (*self._inputs, *self._globals) if name in space})
        vars(self).update(zip(asked, host(inputs), strict=True))
        if rates:
            self.learning_rate = LARGE

    def _called(self, count: int) -> list[dict[str, Any]]:
        """The variables that the first functions return, of each."""
        space = rebound(self._functions[0].__globals__ | {name: getattr(self, name) for name in self._globals})
        names, found = {name: getattr(self, name) for name in self._inputs}, []
        for each in self._functions[:count]:
            given = [names.get(name, LARGE) for name in required(each)]
            out = space.get(each.__name__, each)(*given)
            called, several = names_returned(each), out if isinstance(out, tuple) else (out,)
            called = called if len(called) == len(several) else range(len(several))
            found.append(dict(zip(called, several, strict=True)))
            names |= found[-1]
        return found

    def forward(self) -> tuple:
        """The results of the first function."""
        return tuple(map(with_arrays, self._called(1)[0].values()))

    def backward(self) -> dict[str, Any]:
        """The variables that the functions after it return."""
        return {name: value for each in self._called(len(self._functions))[1:] for name, value in each.items()}

    def cost(self) -> tuple:
        """The cost, and by name all else that a single function returns."""
        (_, cost), *others = self._called(1)[0].items()
        return cost, {name: value for name, value in others if name}


def required(function: FunctionType) -> list[str]:
    """The names of a function's arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def as_object(rule: Any, inputs: Sequence) -> tuple[Any, Sequence]:
    """Functions to be called by the names of their arguments, and classes with a context, as objects; other rules.

    The functions are several that take more inputs than the first, or one that reads arrays of its module. They hold
    their inputs: the second result are the arguments that remain.
    """
    if has_context(rule):
        return WithContext(rule), inputs
    functions = rule if isinstance(rule, tuple) else (rule,)
    if not functions or not all(isinstance(each, FunctionType) for each in functions):
        return rule, inputs
    first, *others = functions
    if others:
        several = len(others) > 1 or len(inputs) > len(inspect.signature(first).parameters)
        return (Functions(functions, inputs), ()) if several else (rule, inputs)
    if len(inputs) != len(required(first)) or len(names_returned(first)) < 2:
        return rule, inputs
    thing = Functions(functions, inputs)
    return (thing.cost, ()) if thing._globals else (rule, inputs)


# ------------------------------------------------------------------------------------------------ autograd engines


class WithContext:
    """A class with static methods `forward(ctx, *inputs)` and `backward(ctx, d_out)`, as an object."""

    is_authors = True

    def __init__(self, kind: type):
        self.__name__, self.ctx = kind.__name__, Context()
        self.forward, self.backward = partial(kind.forward, self.ctx), partial(kind.backward, self.ctx)


class Context(SimpleNamespace):
    """Where a forward pass saves its tensors, as PyTorch's `ctx`."""

    def save_for_backward(self, *saved):
        """Keeps arrays for the backward pass."""
        self.saved_tensors = self.saved_values = saved


def has_context(kind: Any) -> bool:
    """Whether a class has a static `forward` whose first argument is a context."""
    forward = isinstance(kind, type) and inspect.getattr_static(kind, "forward", None)
    return isinstance(forward, staticmethod) and next(iter(inspect.signature(forward.__func__).parameters), "") in (
        "ctx", "context")  # fmt: skip


def is_engine(kind: Any) -> bool:
    """Whether a class is a number, or an array, that knows its gradient: it has operators and a backward pass."""
    if not isinstance(kind, type) or "__add__" not in vars(kind) or not isinstance(kind.__init__, FunctionType):
        return False
    return callable(getattr(kind, "backward", None)) or "_backward" in kind.__init__.__code__.co_names


def operators(kind: type) -> list[tuple[str, tuple, int]]:
    """The operators of an engine: a name, a pair of functions, how many numbers they take."""
    own = {name: method for name, method in vars(kind).items() if isinstance(method, FunctionType)}
    found = [(name, own[name], 2 if name in BINARY else 1) for name in (*BINARY, *UNARY) if name in own]
    found += [("x**3", lambda x: x**3, 1)] * ("__pow__" in own) + [("x * x", lambda x: x * x, 1)] * ("__mul__" in own)
    pairs = [(name.strip("_"), operator(kind, of, count), count) for name, of, count in found]
    return [
        (f"{kind.__name__}: {name}{' (overwrites gradients: write +=)' * overwrites(pair, count)}", pair, count)
        for name, pair, count in pairs
    ]


def overwrites(pair: tuple, count: int) -> bool:
    """Whether an operator's gradients take the place of those that there are."""
    found = []
    for there in (0.0, 1.0):
        try:
            _, saved = pair[0](*(0.7, 0.9)[:count])
            found.append(pair[1](saved, 1.0, there))
        except Exception:  # it is told where it is compared
            return False
    return any(abs(one - other) > 0.5 for one, other in zip(*found, strict=True))


def operator(kind: type, of: Any, count: int) -> tuple:
    """(forward, backward) of an operator of an engine; of an array ⟨d_out, out⟩ is gone back through.

    Gradients must be added to those that there are: each begins at a number.
    """

    def forward(*values):
        given = [kind(value) for value in values]
        out = of(*given)
        return out.data, (out, given)

    def backward(saved, d_out, there=THERE):
        out, given = saved
        several = bool(jax.numpy.ndim(d_out))
        for each in given:
            each.grad = there + 0 * each.data
        if not hasattr(kind, "backward"):
            out.grad = d_out
            out._backward()
            return tuple(each.grad - there for each in given)
        ((out * kind(d_out)).sum() if several else out).backward()
        return tuple((each.grad - there) * (1.0 if several else d_out) for each in given)

    names = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY) for name in ("a", "b")[:count]]
    vars(forward)["__signature__"] = inspect.Signature(names)
    return forward, backward
