"""The arrays that an object holds: found, matched by name and shape, and freed of entries that a call appended."""

from __future__ import annotations

import difflib
import re
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from jaxnet.checking.subject import is_array

MOST_DEPTH = 8


def arrays_in(thing: Any) -> dict[str, Any]:
    """The arrays of floats that an object holds, by path: `W`, `params['W']`, `layers[0].W`; each once."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(each: Any, path: str, depth: int) -> None:
        if id(each) in seen or depth > MOST_DEPTH:
            return
        if is_array(each) and not isinstance(each, float | complex):
            seen.add(id(each))
            if np.issubdtype(each.dtype, np.floating):
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


def matched(wanted: dict[str, Any], offered: dict[str, Any]) -> dict[str, str]:
    """For each wanted name the offered one of the same shape that has its name in it; else the only one of its shape.

    >>> matched({"W": np.ones(3), "b": np.ones(2)}, {"db": np.ones(2), "grads['W']": np.ones(3)})
    {'b': 'db', 'W': "grads['W']"}
    """

    def letters(path: str) -> str:
        return re.sub(r"[^a-z0-9]", "", path.lower())

    def likeness(name: str, other: str) -> float:
        return difflib.SequenceMatcher(None, letters(name), letters(other), autojunk=False).ratio()

    fitting = [
        (letters(re.findall(r"\w+", name)[-1]) in letters(other), likeness(name, other), name, other)
        for name, value in wanted.items()
        for other, candidate in offered.items()
        if np.shape(value) == np.shape(candidate)
    ]
    found: dict[str, str] = {}
    for named in (True, False):
        for contains, _, name, other in sorted(fitting, key=lambda each: -each[1]):
            free = name not in found and other not in found.values()
            alone = [n for n in offered if np.shape(offered[n]) == np.shape(wanted[name]) and n not in found.values()]
            if free and (contains if named else len(alone) == 1):
                found[name] = other
    return found


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
