"""A constant named after the size that it equals: n, 1/n, √d, n/(n − 1), 1/(1 − p)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.diagnose.program import cotangent_leaves

_PLAIN = (
    (0.0, "0"),
    (-1.0, "−1"),
    (2.0, "2"),
    (0.5, "½"),
    (-2.0, "−2"),
    (-0.5, "−½"),
    (4.0, "4"),
    (0.25, "¼"),
    (3.0, "3"),
)


class Name(NamedTuple):
    """A name for a constant, and what it is worth at other inputs; a `plain` one is a number, whatever the sizes."""

    words: str
    value: Callable[[tuple, Any], float]
    plain: bool = False


def names(
    c: float, args: tuple, cotangent: Any, labels: tuple[str, ...], constants: tuple[float, ...], near: float
) -> list[Name]:
    """What a constant may be, the plainest first; empty where nothing of the problem equals it."""
    found = [Name(words, lambda a, ct, v=v: v, True) for v, words in _PLAIN if abs(c - v) <= near * max(1.0, abs(v))]
    if found and abs(c) in (0.0, 1.0):
        return found
    for sign, mark in ((1.0, ""), (-1.0, "−")):
        for words, value in _forms(args, cotangent, labels, constants):
            at = sign * value(args, cotangent)
            if np.isfinite(at) and abs(at - c) <= near * max(abs(at), 1e-12) and abs(at) != 1.0:
                found.append(Name(mark + words, lambda a, ct, v=value, s=sign: s * v(a, ct)))
    return found[:40]


def _forms(args, cotangent, labels, constants) -> Iterator[tuple[str, Callable[[tuple, Any], float]]]:
    sizes = list(_sizes(args, cotangent, labels))
    unary = (
        ("{0}", lambda s: s),
        ("1/{0}", lambda s: 1 / s),
        ("√{0}", lambda s: s**0.5),
        ("1/√{0}", lambda s: s**-0.5),
        ("{0}²", lambda s: s * s),
        ("1/{0}²", lambda s: s**-2.0),
        ("n/(n − 1), n = {0}", lambda s: s / (s - 1)),
        ("(n − 1)/n, n = {0}", lambda s: (s - 1) / s),
        ("2/{0}", lambda s: 2 / s),
        ("{0}/2", lambda s: s / 2),
    )
    for words, function in unary:
        for name, size in [*sizes, *_areas(args, cotangent, labels)]:
            yield words.format(name), lambda a, ct, f=function, s=size: _safely(f, s(a, ct))
    for constant in constants:
        for words, function in (
            ("{0}", lambda s: s),
            ("1/{0}", lambda s: 1 / s),
            ("1 − {0}", lambda s: 1 - s),
            ("1/(1 − {0})", lambda s: 1 / (1 - s)),
            ("√{0}", lambda s: s**0.5),
            ("{0}²", lambda s: s * s),
            ("2·{0}", lambda s: 2 * s),
            ("1/{0}²", lambda s: s**-2.0),
        ):
            yield words.format(f"{constant:.6g}"), lambda a, ct, f=function, s=constant: _safely(f, s)
    for k, (one, first) in enumerate(sizes):
        for j, (other, second) in enumerate(sizes):
            if k < j:
                yield f"{one} · {other}", lambda a, ct, p=first, q=second: p(a, ct) * q(a, ct)
                yield f"1/({one} · {other})", lambda a, ct, p=first, q=second: 1 / (p(a, ct) * q(a, ct))
            if k != j:
                yield f"{one} / {other}", lambda a, ct, p=first, q=second: p(a, ct) / q(a, ct)


def _areas(args, cotangent, labels) -> Iterator[tuple[str, Callable[[tuple, Any], int]]]:
    """The products of two axes of one array: examples times positions, rows times columns."""
    given = [(label, leaf, jax.tree.leaves) for label, leaf in zip(labels, jax.tree.leaves(args), strict=True)]
    given += [("the output", leaf, cotangent_leaves) for leaf in cotangent_leaves(cotangent)]
    for k, (label, leaf, leaves) in enumerate(given):
        for a, b in combinations(range(np.ndim(leaf)), 2):
            if min(np.shape(leaf)[a], np.shape(leaf)[b]) > 1:

                def size(args, ct, k=k, a=a, b=b, leaves=leaves):
                    inside = leaves(args)[k] if leaves is jax.tree.leaves else leaves(ct)[k - len(labels)]
                    return np.shape(inside)[a] * np.shape(inside)[b]

                yield f"{np.shape(leaf)[a] * np.shape(leaf)[b]} (axes {a} and {b} of {label})", size


def _safely(function, s):
    try:
        value = function(s)
    except ZeroDivisionError:
        return float("nan")
    return value if isinstance(value, (int, float)) else float("nan")


def _sizes(args, cotangent, labels) -> Iterator[tuple[str, Callable[[tuple, Any], int]]]:
    seen: set[tuple[int, ...]] = set()
    for k, leaf in enumerate(jax.tree.leaves(args)):
        shape = np.shape(leaf)
        for axis, n in enumerate(shape):
            if n > 1:
                yield f"{n} (axis {axis} of {labels[k]})", lambda a, ct, k=k, x=axis: np.shape(jax.tree.leaves(a)[k])[x]
        kind = getattr(leaf, "dtype", np.dtype(object))
        if len(shape) and kind in (np.bool_, np.int32, np.int64):
            for words, test in (("valid", lambda v: v > 0), ("non-negative", lambda v: v >= 0)):
                count = int(np.sum(test(np.asarray(leaf))))
                if 1 < count < np.size(leaf):
                    yield (
                        f"{count} ({words} entries of {labels[k]})",
                        lambda a, ct, k=k, t=test: int(np.sum(t(np.asarray(jax.tree.leaves(a)[k])))),
                    )
        if len(shape) > 1 and shape not in seen:
            seen.add(shape)
            yield f"{np.size(leaf)} (entries of {labels[k]})", lambda a, ct, k=k: np.size(jax.tree.leaves(a)[k])
    for k, leaf in enumerate(cotangent_leaves(cotangent)):
        for axis, n in enumerate(np.shape(leaf)):
            if n > 1:
                yield (
                    f"{n} (axis {axis} of the output)",
                    lambda a, ct, k=k, x=axis: np.shape(cotangent_leaves(ct)[k])[x],
                )
