"""The options of windows: kernel, stride, dilation and padding as people give them, checked."""

from collections.abc import Sequence

from jaxnet.layer import ShapeError
from jaxnet.lowering.windows import Window

Padding = str | int | Sequence[Sequence[int]]


def for_each_axis(what: str, value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number of at least 1 for each axis, of one for all of them or of as many."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"{what} must be a whole number of at least 1, or {rank} of them, got {value!r}")
    return values


def checked_padding(name: str, padding: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """The padding by name, or its pairs, (before, after) for each axis."""
    if isinstance(padding, str):
        if padding in ("SAME", "VALID"):
            return padding
    elif isinstance(padding, int):
        return ((padding, padding),) * rank
    elif len(padding) == rank and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in padding):
        return tuple((int(low), int(high)) for low, high in padding)
    raise ValueError(
        f'{name}: padding must be "SAME", "VALID", a number, or {rank} pairs (before, after), one for each axis, '
        f"got {padding!r}"
    )


def window_over(places: Sequence[int], kernel, stride, dilation, padding) -> Window:
    """The window with its padding in numbers.

    "VALID": none. "SAME": so much that there is a position for each `stride` places, the odd one after them.
    """
    bare = Window(kernel, stride, dilation, ((0, 0),) * len(kernel))
    if padding == "VALID":
        return bare
    if padding != "SAME":
        return bare._replace(padding=padding)
    # The last position, ⌈n / s⌉ − 1, ends at (⌈n / s⌉ − 1) s + reach.
    totals = [
        max((-(-n // s) - 1) * s + reach - n, 0) for n, s, reach in zip(places, stride, bare.reach(), strict=True)
    ]
    return bare._replace(padding=tuple((total // 2, total - total // 2) for total in totals))


def fits(name: str, window: Window, places: Sequence[int]) -> None:
    """Raises `ShapeError` where the window has no position."""
    if min(window.positions(places)) < 1:
        padded = tuple(n + low + high for n, (low, high) in zip(places, window.padding, strict=True))
        raise ShapeError(
            f"{name} spans {by(window.reach())} places, more than its input has: {by(places)}"
            f"{'' if padded == tuple(places) else f', {by(padded)} with its padding'}; "
            'take a smaller one, padding="SAME", or less pooling before it'
        )


def by(lengths: Sequence[int]) -> str:
    """Lengths as people write them: 28×28."""
    return "×".join(map(str, lengths))
