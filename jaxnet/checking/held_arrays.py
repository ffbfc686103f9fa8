"""The arrays that an object holds: found, matched by name and shape, and freed of entries that a call appended."""

from __future__ import annotations

import difflib
import re
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from jaxnet.checking.subject import is_array

MOST_DEPTH = 8


def arrays_in(thing: Any, kinds: str = "f") -> dict[str, Any]:
    """The arrays that an object holds, by path: `W`, `params['W']`, `layers[0].W`; each once. `kinds`: of dtypes."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(each: Any, path: str, depth: int) -> None:
        if id(each) in seen or depth > MOST_DEPTH:
            return
        if is_array(each) and type(each) not in (float, complex):
            seen.add(id(each))
            if np.dtype(each.dtype).kind in kinds:
                found[path.removeprefix(".")] = each
        elif isinstance(each, dict | list | tuple):
            seen.add(id(each))
            for key, value in each.items() if isinstance(each, dict) else enumerate(each):
                walk(value, f"{path}[{key!r}]", depth + 1)
        elif hasattr(each, "__dict__") and not isinstance(each, type | FunctionType | MethodType | ModuleType):
            seen.add(id(each))
            for name, value in vars(each).items():
                walk(value, f"{path}.{name}", depth + 1)

    walk(thing, "", 0)
    return found


def letters(path: str) -> str:
    """The letters and digits of a path."""
    return re.sub(r"[^a-z0-9]", "", path.lower())


def last(path: str) -> str:
    """Those of the last name in it."""
    return letters(re.findall(r"\w+", path)[-1])


def is_gradient(name: str, other: str) -> bool:
    """Whether an array is called the gradient of another: dW, grad_W, W_grad, grads['W'].

    >>> is_gradient("params['W']", "grads['W']"), is_gradient("W", "dW2")
    (True, False)
    """
    of = last(name)
    named = re.fullmatch(rf"(d|grad|nabla|delta|derror|dloss|dl){of}|{of}(grad|gradient)", last(other))
    return bool(named) or (name != other and last(other) == of and bool(re.search("grad|nabla|^d", letters(other))))


def rebound(names: dict[str, Any]) -> dict[str, Any]:
    """The same names, which the functions of their module among them have for globals."""
    new = dict(names)
    for name, value in names.items():
        if isinstance(value, FunctionType) and value.__globals__.get("__name__") == names.get("__name__"):
            new[name] = made = FunctionType(value.__code__, new, name, value.__defaults__, value.__closure__)
            made.__kwdefaults__ = value.__kwdefaults__
    return new


def matched(wanted: dict[str, Any], offered: dict[str, Any]) -> dict[str, str]:
    """For each wanted name the offered one called its gradient, else the one of its shape that has its name in it.

    The rest are taken in order where as many of a shape are left on both sides.

    >>> matched({"W": np.ones(3), "b": np.ones(2)}, {"db": np.ones(2), "grads['W']": np.ones(3)})
    {'b': 'db', 'W': "grads['W']"}
    >>> matched({"w[0]": np.ones(3), "w[1]": np.ones(3)}, {"x[0]": np.ones(3), "x[1]": np.ones(3)})
    {'w[0]': 'x[0]', 'w[1]': 'x[1]'}
    """

    def likeness(name: str, other: str) -> float:
        return difflib.SequenceMatcher(None, letters(name), letters(other), autojunk=False).ratio()

    fitting = [
        (exact, last(name) in letters(other), likeness(name, other), name, other)
        for name, value in wanted.items()
        for other, candidate in offered.items()
        if (exact := is_gradient(name, other)) or np.shape(value) == np.shape(candidate)
    ]
    found: dict[str, str] = {}
    for exact, contains, _, name, other in sorted(fitting, key=lambda each: (-each[0], -each[2])):
        if (exact or contains) and name not in found and other not in found.values():
            found[name] = other
    for shape in dict.fromkeys(map(np.shape, wanted.values())):
        names = [name for name, value in wanted.items() if name not in found and np.shape(value) == shape]
        rest = [name for name, value in offered.items() if name not in found.values() and np.shape(value) == shape]
        if len(names) == len(rest):
            found |= dict(zip(names, rest, strict=True))
    return found


def with_arrays(value: Any) -> Any:
    """A float, and each list of floats, as an array, in lists and dictionaries too: it may be another one."""
    if isinstance(value, dict):
        return {key: with_arrays(each) for key, each in value.items()}
    floats = isinstance(value, list) and any(isinstance(each, float) for each in value)
    if type(value) is float or (floats and all(isinstance(each, float | int) for each in value)):
        return np.asarray(value, float)
    return [with_arrays(each) for each in value] if type(value) is list else value


def shorten(thing: Any, before: Any, depth: int = 0) -> None:
    """Takes away the entries that a call appended to an object's lists; lists of objects stay."""
    if isinstance(thing, list) and isinstance(before, list):
        if not any(hasattr(each, "__dict__") for each in thing):
            del thing[len(before) :]
    elif isinstance(thing, dict) and isinstance(before, dict):
        for key, value in thing.items():
            shorten(value, before.get(key), depth + 1)
    elif depth < MOST_DEPTH and hasattr(thing, "__dict__") and hasattr(before, "__dict__"):
        for name, value in vars(thing).items():
            shorten(value, vars(before).get(name), depth + 1)
