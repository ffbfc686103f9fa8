"""Test points: inputs drawn from shape strings, random cotangents, other shapes, points like a given one."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.subject import CannotCheckError, Tree, on_device, why_passed_over

SPEC = re.compile(
    r"^(?P<dtype>[a-z_]+\d*)(?:\[(?P<shape>[\d\s,]*)\])?\s*(?P<bounds>(?:[<>]\s*[-+\d.e]+\s*)*)(?:\s(?P<rows>probabilities|one-hot))?$"
)
SHORT = {
    "float": "float32",
    "int": "int32",
    "complex": "complex64",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "i32": "int32",
    "c64": "complex64",
}
LONG = 8  # an axis that `smaller` leaves as it is, at most
SMALL = 3e-3  # a scale at which a variance is of the size of the usual ε = 1e-5


@dataclass(frozen=True)
class Spec:
    """Shape, dtype and range of one input to be drawn."""

    dtype: str
    shape: tuple[int, ...]
    below: float | None = None
    above: float | None = None
    rows: str = ""  # "probabilities": positive, their sum is 1; "one-hot": a single 1

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def parse_spec(text: str) -> Any:
    """One input: "float32[8,256]", "int32[8]<10" (0 to 9), "float32[8]>0<1", "key", or a number.

    The rows of "float32[8,10] probabilities" are positive and sum to 1; those of "float32[8,10] one-hot" have one 1.

    A number, True, None and 'text' stay as they are.

    Several in braces are a dict, "{W: float32[3,4], b: float32[3]}", in parentheses a tuple.
    """
    text = text.strip()
    if (text[:1], text[-1:]) in (("{", "}"), ("(", ")")):
        inner = parts_of(text[1:-1])
        if text[0] == "(":
            return tuple(map(parse_spec, inner))
        if not all(":" in part for part in inner):
            raise CannotCheckError(f'a dict of inputs is written "{{W: float32[3,4], b: float32[3]}}", got {text!r}')
        return {name.strip(" \"'"): parse_spec(spec) for name, _, spec in (part.partition(":") for part in inner)}
    if text == "key":
        return jax.random.key(0)
    if (value := number_in(text)) != text or not isinstance(value, str):
        return value
    match = SPEC.match(text)
    name = SHORT.get(match["dtype"], match["dtype"]) if match else ""
    try:
        dtype = jnp.dtype(name) if match else None
    except TypeError:
        dtype = None
    if match is None or dtype is None:
        raise CannotCheckError(
            f'inputs are dtypes with shapes, as "float32[8,256], int32[8]<10", got {text!r}: write so, or give arrays'
        )
    shape = tuple(int(n) for n in (match["shape"] or "").replace(" ", "").split(",") if n)
    if 0 in shape:
        raise CannotCheckError(f"an input must have entries to be checked at, got {text!r}: give every axis some")
    limits = {sign: float(limit) for sign, limit in re.findall(r"([<>])\s*([-+\d.e]+)", match["bounds"])}
    if jnp.issubdtype(dtype, jnp.integer) and "<" not in limits:
        raise CannotCheckError(f'integers are drawn below a bound, as "{text}<10" (0 to 9), got {text!r}: write one')
    return Spec(dtype.name, shape, limits.get("<"), limits.get(">"), match["rows"] or "")


def parts_of(arg: Any) -> list:
    """The inputs in one argument: a string may hold several, separated by commas outside brackets."""
    if not isinstance(arg, str):
        return [arg]
    parts, depth = [""], 0
    for letter in arg:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def number_in(text: str) -> Any:
    """The number, True, False, None or quoted text that a string is, or the string."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str | None) else text


def expand(args: Sequence, static: Sequence[int] = ()) -> tuple:
    """Parses every shape string in the arguments; one string may hold several arguments.

    At the `static` places (negative ones count from the end) a string is a number or itself, and never a shape.
    """
    whole = {place % len(args) for place in static} if len(args) > 1 else ()  # no string there holds several
    parts = [part for place, arg in enumerate(args) for part in ([arg] if place in whole else parts_of(arg))]
    fixed = {place % len(parts) if parts else 0 for place in static}

    def read(place: int, part: Any) -> Any:
        if place in fixed:
            return number_in(part) if isinstance(part, str) else part
        return jax.tree.map(lambda leaf: parse_spec(leaf) if isinstance(leaf, str) else leaf, part)

    return tuple(read(place, part) for place, part in enumerate(parts))


def is_spec(leaf) -> bool:
    """Whether a leaf is to be drawn."""
    return isinstance(leaf, Spec)


def has_specs(args: Tree) -> bool:
    """Whether anything in `args` is to be drawn."""
    return bool(specs_in(args))


def generator(seed: int, *more: int) -> np.random.Generator:
    """numpy's generator: points are drawn without a compilation."""
    return np.random.default_rng([seed % 2**32, *more])


def draw_spec(spec: Spec, rng: np.random.Generator, how: str) -> jax.Array:
    """Random numbers for one input; `how` is "plain", "small" (variances near the usual ε), "ties", "zeros", "bounds".

    With "zeros" the first row is zero, and the entries of the last row are equal; of a mask one is False, one True.
    With "bounds" the first row of an input with bounds is at the lower one, the last row at the upper one.
    """
    dtype = jnp.dtype(spec.dtype)
    if jnp.issubdtype(dtype, jnp.bool_):
        mask = rng.random(spec.shape) < 0.5
        if how == "zeros" and mask.size and mask.ndim:
            mask[-1], mask[0] = True, False
        return on_device(mask)
    if jnp.issubdtype(dtype, jnp.integer):
        low, high = int(spec.above + 1 if spec.above is not None else 0), spec.below
        return on_device(rng.integers(low, int(high) if high is not None else low + 8, spec.shape), dtype)
    scale, shift = rng.uniform(0.6, 1.4), rng.uniform(-0.4, 0.4)
    values = scale * rng.standard_normal(spec.shape) + shift
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.standard_normal(spec.shape)
    if how == "small":
        values = values * SMALL
    if how == "ties":
        values = np.round(2 * values.real) / 2 + (1j * np.round(2 * values.imag) / 2 if values.dtype.kind == "c" else 0)
    if how == "zeros" and spec.shape and values.size:
        values[-1], values[0] = values[-1].flat[0] if values.ndim > 1 else values[-1], 0
    if spec.above is not None and spec.below is not None:
        values = spec.above + (spec.below - spec.above) * rng.uniform(0.05, 0.95, spec.shape)
    elif spec.above is not None:
        values = spec.above + np.abs(values) + (0.05 if how != "small" else 0.05 * SMALL)
    elif spec.below is not None:
        values = spec.below - np.abs(spec.below - values)
    if how == "bounds" and spec.shape and values.size:
        values[-1] = values[-1] if spec.below is None else spec.below
        values[0] = values[0] if spec.above is None else spec.above
    if spec.rows:
        values = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    if spec.rows == "one-hot":
        values = np.eye(spec.shape[-1])[values.argmax(-1)]
    return on_device(values, dtype)


def draw(args: Tree, seed: int, how: str = "plain") -> Tree:
    """`args` with numbers for every spec in it."""
    leaves, treedef = jax.tree.flatten(args, is_leaf=is_spec)
    drawn = [draw_spec(leaf, generator(seed, i), how) if is_spec(leaf) else leaf for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, drawn)


def alike(values: Sequence, seed: int) -> tuple:
    """Other numbers in the range of the given ones: each array's entries in another order, each 0.7 to 1.3 times.

    A constant array (γ = 1, β = 0) gets random entries, since there another order is the same again. Of zeros and ones
    (masks, one-hot rows) whole rows change places.
    """
    fresh = []
    for i, value in enumerate(values):
        rng, host = generator(seed, 101, i), np.asarray(value, None if value.dtype.itemsize > 2 else np.float32)
        if host.size > 1 and np.all(host == host.flat[0]):
            fresh.append(on_device(host + 0.3 * rng.standard_normal(host.shape), value.dtype))
            continue
        if host.ndim and np.all((host == 0) | (host == 1)):
            fresh.append(on_device(rng.permutation(host), value.dtype))
            continue
        mixed = rng.permutation(host.reshape(-1)).reshape(host.shape) * rng.uniform(0.7, 1.3, host.shape)
        fresh.append(on_device(mixed, value.dtype))
    return tuple(fresh)


def random_like(shapes: Sequence, seed: int, positive: bool = False) -> tuple:
    """A random cotangent for leaves of these shapes and dtypes.

    Where its real entries are `positive`, sums over them grow, and an accumulator of few bits loses the last terms.
    """
    drawn = []
    for i, leaf in enumerate(shapes):
        rng = generator(seed, 202, i)
        values = rng.standard_normal(leaf.shape)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            values = values + 1j * rng.standard_normal(leaf.shape)
        drawn.append(on_device(np.abs(values) if positive and values.dtype.kind == "f" else values, leaf.dtype))
    return tuple(drawn)


def specs_in(args: Tree) -> list[Spec]:
    """Everything in `args` that is to be drawn."""
    return [leaf for leaf in jax.tree.leaves(args, is_leaf=is_spec) if is_spec(leaf)]


def reshaped(args: Tree, shape: Callable[[Spec], tuple[int, ...]]) -> Tree:
    """`args` with every spec in it at another shape."""
    return jax.tree.map(lambda leaf: replace(leaf, shape=shape(leaf)) if is_spec(leaf) else leaf, args, is_leaf=is_spec)


def resized(args: Tree, sizes: dict[int, int]) -> Tree:
    """`args` with every axis of a size in `sizes` at another one."""
    return reshaped(args, lambda spec: tuple(sizes.get(n, n) for n in spec.shape))


def with_leading(args: Tree, size: int) -> Tree:
    """`args` with the first input's first axis, and every first axis of that size, at another size."""
    old = next((spec.shape[:1] for spec in specs_in(args) if spec.shape), None)
    return reshaped(args, lambda spec: (size, *spec.shape[1:]) if spec.shape[:1] == old else spec.shape)


def other_ranks(args: Tree) -> list[tuple[str, Tree]]:
    """The first input, and all that share its first axis, with an axis less or one more before it: rank 1 to 3."""
    first = next((spec for spec in specs_in(args) if spec.shape), None)
    if first is None:
        return []

    def led(lead: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Tree:
        def shape(spec: Spec) -> tuple[int, ...]:
            beside = len(spec.shape) > 1 and spec.shape[0] == first.shape[0]
            return lead(spec.shape) if beside or spec is first else spec.shape

        return reshaped(args, shape)

    rank, found = len(first.shape), []
    if rank > 1:
        found.append((f"rank {rank - 1}", led(lambda shape: shape[1:])))
    if rank < 3:
        found.append((f"rank {rank + 1}", led(lambda shape: (2, *shape))))
    return found


def other_shapes(args: Tree) -> list[tuple[str, Tree]]:
    """Other shapes to try: one more in every axis, batch 1, an odd batch, square, the edges of blocks."""
    specs = specs_in(args)
    sizes = sorted({n for spec in specs for n in spec.shape if n > 1})
    if not sizes:
        return []
    first = next(spec for spec in specs if spec.shape)
    found: list[tuple[str, Tree]] = [("one more in every axis", resized(args, {n: n + 1 for n in sizes}))]
    if (largest := sizes[-1]) >= 64:
        found += [("around a block of 128", resized(args, {largest: n})) for n in (129, 127)]
    if len(first.shape) > 1:
        found.append(("batch 1", with_leading(args, 1)))
        found.append(("an odd batch", with_leading(args, first.shape[0] + 1 + first.shape[0] % 2)))
        found.append(("square", resized(args, {first.shape[0]: first.shape[1]})))
    unlike = [(how, shape) for how, shape in found if shape != args]
    return [each for i, each in enumerate(unlike) if each[1] not in [shape for _, shape in unlike[:i]]]


def grown(args: Tree) -> Tree:
    """Arrays with one more entry along every axis that has several: the first ones again."""

    def more(leaf: Any) -> Any:
        shape = np.shape(leaf)
        if not any(n > 1 for n in shape) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return leaf
        return on_device(np.pad(np.asarray(leaf), [(0, int(n > 1)) for n in shape], mode="wrap"), leaf.dtype)

    return jax.tree.map(more, args)


def smaller(args: Tree) -> Iterator[Tree]:
    """`args` with axes longer than 8 cut to 5 or a little more, axes of one length alike; as many as possible first."""
    shapes = [np.shape(leaf) if not is_spec(leaf) else leaf.shape for leaf in jax.tree.leaves(args, is_leaf=is_spec)]
    lengths = sorted({n for shape in shapes for n in shape})
    short = [n for n in range(5, 5 + len(lengths)) if n not in lengths]
    long = [n for n in reversed(lengths) if n > LONG]

    def cut(sizes: dict[int, int], leaf: Any) -> Any:
        if is_spec(leaf):
            return replace(leaf, shape=tuple(sizes.get(n, n) for n in leaf.shape))
        return leaf[tuple(slice(sizes.get(n, n)) for n in np.shape(leaf))] if np.shape(leaf) else leaf

    for count in range(len(long), 0, -1):
        for some in itertools.combinations(long, count):
            if count <= len(short):
                sizes = dict(zip(reversed(some), short, strict=False))
                yield jax.tree.map(partial(cut, sizes), args, is_leaf=is_spec)


def described(args: Tree) -> str:
    """Dtype and shape of the leaves of `args`, the dtype once where it is the same."""
    words, last = [], None
    for leaf in jax.tree.leaves(args, is_leaf=is_spec):
        if is_spec(leaf) or isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            dtype, shape = str(leaf.dtype), f"[{','.join(map(str, leaf.shape))}]"
            words.append(shape if dtype == last else dtype + shape)
            last = dtype
        elif why_passed_over(leaf) is None:
            words.append(f"{leaf:g}")
    shown = words if len(words) <= 12 else [*words[:11], f"… {len(words)} leaves"]
    return " ".join(shown)


@dataclass(frozen=True)
class Points:
    """Where a rule is checked: `draw(seed, how)` gives the arguments, `elsewhere()` the same at other shapes, by name.

    `ranks()` gives those of another rank, which the rule may not be meant for, `smaller()` those of shorter axes.
    `fresh` says whether another seed gives other arguments, `bounded` whether any is drawn between bounds; `words`
    describes them.
    """

    draw: Callable[[int, str], tuple]
    fresh: bool
    words: str
    elsewhere: Callable[[], list[tuple[str, Points]]] = list
    ranks: Callable[[], list[tuple[str, Points]]] = list
    smaller: Callable[[], Iterator[Points]] = lambda: iter(())
    bounded: bool = False


def points_of(template: tuple) -> Points:
    """Test points with these arguments, or drawn from these shapes."""
    fresh = has_specs(template)

    def elsewhere():
        return [(how, points_of(other)) for how, other in other_shapes(template)]

    def ranks():
        return [(how, points_of(other)) for how, other in other_ranks(template)]

    def shorter():
        return map(points_of, smaller(template))

    def at(seed, how="plain"):
        return draw(template, seed, how)

    drawn = [spec for spec in specs_in(template) if spec.shape and jnp.issubdtype(jnp.dtype(spec.dtype), jnp.inexact)]
    bounded = any((spec.above, spec.below) != (None, None) for spec in drawn)
    others = (elsewhere, ranks) if fresh else (lambda: [("one more in every axis", points_of(grown(template)))], list)
    return Points(at, fresh, described(template), *others, shorter, bounded)
