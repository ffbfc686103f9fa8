"""Lines of an item's records: numbers for what is inside, symbols, and the steps of each kind as equations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.expressions import Call, Expression, Name, Sum
from jaxnet.explaining.layers import LINEAR, kind_of
from jaxnet.explaining.layers.evaluate import Found, evaluated
from jaxnet.explaining.layers.opening import BLOCK, Record, closed_over, opened
from jaxnet.explaining.layers.steps import Equations, Number, Site, Step
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import NIELSEN, Notation
from jaxnet.explaining.numbers import one, shape
from jaxnet.explaining.observe import Item
from jaxnet.explaining.places import Place
from jaxnet.explaining.source_lines import param_name, readable, written_lines
from jaxnet.explaining.sources import quoted
from jaxnet.explaining.ulp import ulps


@dataclass(frozen=True, eq=False)
class Inside:
    """An item's records with their symbols. below: the error at what the item takes, and its key."""

    place: Place
    notation: Notation
    records: tuple[Record, ...]
    below: tuple[Expression, str]

    def number(self, n: int) -> Number:
        """A record's number: the item's own where there is but one."""
        return self.place.number if len(self.records) == 1 else (self.place.number, numbers(self.records)[n])

    def is_z(self, n: int) -> bool:
        """Whether a record gives z; the last is what the item is."""
        return self.place.is_z if n == len(self.records) - 1 else self.records[n].word in LINEAR

    def gives(self, token: int) -> Name:
        """The symbol of what a record gives; of `BLOCK` what the item takes."""
        if token == BLOCK:
            return self.place.takes
        if token == len(self.records) - 1:
            return self.place.gives
        return self.notation.z(self.number(token)) if self.is_z(token) else self.notation.a(self.number(token))

    def error(self, token: int) -> tuple[Expression, str]:
        """The error at what a record gives, and its key."""
        if token == BLOCK:
            return self.below
        if token == len(self.records) - 1:
            return error_at(self.notation, self.place)
        if self.is_z(token):
            return self.notation.delta(self.number(token)), key_of("delta", self.notation, self.number(token))
        return self.notation.partial(self.gives(token)), f"d{self.gives(token).key}"

    def takers(self, token: int) -> list[int]:
        """The records that take what one gives."""
        return [n for n, each in enumerate(self.records) for taken in each.takes if taken == token]

    def sent(self, n: int, i: int) -> tuple[Expression, str]:
        """What a record sends back to what it takes: the error there, or one of several errors that add up."""
        token = self.records[n].takes[i]
        if len(self.takers(token)) == 1:
            return self.error(token)
        if self.records[n].kind == "sum":
            return self.error(n)
        symbol = self.notation.name_of("e", self.number(n))
        return symbol, symbol.key

    def site(self, n: int) -> Site:
        """A record's symbols."""
        record = self.records[n]
        back = tuple(self.sent(n, i)[0] for i in range(len(record.takes)))
        takes = tuple(self.gives(token) for token in record.takes)
        return Site(record, self.notation, self.number(n), takes, self.gives(n), self.error(n)[0], back)


def error_at(notation: Notation, place: Place) -> tuple[Expression, str]:
    """The error at what a place gives, and its key."""
    if place.is_z:
        return notation.delta(place.number), key_of("delta", notation, place.number)
    return notation.partial(place.gives), f"d{place.gives.key}"


def key_of(base: str, notation: Notation, number: Number) -> str:
    """A quantity's key."""
    return notation.name_of(base, number).key


def numbers(records: tuple[Record, ...]) -> list[int]:
    """Their numbers within the item: an activation that follows a z counts with it."""
    found: list[int] = []
    for record in records:
        follows = is_activation(record) and record.takes[0] >= 0 and records[record.takes[0]].word in LINEAR
        found.append(found[-1] if follows else (found[-1] if found else 0) + 1)
    return found


def is_activation(record: Record) -> bool:
    """Whether a record is an activation."""
    kind = kind_of(record)
    return kind is not None and kind.__name__ in ("activation", "softmax")


def inside(place: Place, notation: Notation, below: tuple[Expression, str]) -> Inside:
    """What is inside an item."""
    return Inside(place, notation, opened(place.item), below)


@lru_cache(maxsize=256)
def values_of(place_item: Item, n: int) -> dict[str, Found]:
    """The values of a record's steps, which are those of any notation."""
    record = opened(place_item)[n]
    kind = kind_of(record)
    assert kind is not None
    names = tuple(Name(f"x{i}") for i in range(len(record.takes)))
    site = Site(record, NIELSEN, 1, names, Name("a"), Name("e"), tuple(Name(f"e{i}") for i in range(len(names))))
    return evaluated(record, kind(site))


def equations(within: Inside, n: int) -> Equations | None:
    """A record's steps; None where there are none for its kind."""
    kind = kind_of(within.records[n])
    return None if kind is None else kind(within.site(n))


# ---------------------------------------------------------------------------------------------------- lines


def forward_lines(within: Inside) -> list[Line]:
    """All steps forward."""
    found: list[Line] = []
    for n, record in enumerate(within.records):
        made = equations(within, n)
        quote = quoted(record.layer) if record.kind == "leaf" else None
        if made is None:
            read = source_lines(within, n, forward=True)
            read = read if any(each.gives == "out" for each in read) else [*read, opaque_forward(within, n)]
            found += [*read[:-1], replace(read[-1], quoted=quote)]
            continue
        values = values_of(within.place.item, n)
        lines = [line(within, n, step, values[step.key], forward_key(within, n, step)) for step in made.forward
                 if step.key in values]  # fmt: skip
        found += [*lines[:-1], replace(lines[-1], quoted=quote)]
    return found


def backward_lines(within: Inside) -> list[Line]:
    """All steps backward, the last record first; where several errors meet, their sum."""
    found: list[Line] = []
    for n in reversed(range(len(within.records))):
        made = equations(within, n)
        if made is None:
            read = source_lines(within, n, forward=False)
            keys = {each.key for each in read}
            found += [*read, *(each for each in opaque_backward(within, n) if each.key not in keys)]
        else:
            values = values_of(within.place.item, n)
            found += [
                line(within, n, step, values[step.key], backward_key(within, n, step), backward=True)
                for step in made.backward if step.key in values and not left_out(within, n, step)
            ]  # fmt: skip
        found += meetings(within, n)
    found += shared(within)
    return whole_check(within, found)


def left_out(within: Inside, n: int, step: Step) -> bool:
    """Whether a way passes the error on as it is, into a sum that has a line of its own."""
    return step.gives.startswith("dx") and step.left == step.right


def source_lines(within: Inside, n: int, forward: bool) -> list[Line]:
    """A leaf's lines as its source has them; none where it cannot be read."""
    record, notation = within.records[n], within.notation
    if not readable(record):
        return []
    alone = len(within.records) == 1
    found = []
    for each in written_lines(within.site(n)):
        if each.forward != forward:
            continue
        key = {"out": within.gives(n).key, "dx": within.sent(n, 0)[1]}.get(each.gives, each.key)
        kind = "step" if forward else "error"
        if each.gives not in ("", "out", "dx"):
            kind = "db" if each.gives in ("b", "beta") or each.gives.startswith("b_") else "dW"
        found.append(
            Line(
                key=key, kind=kind, item=within.place.index, layer=notation.number(within.number(n)), left=each.left,
                right=each.right, factors=(), shape=each.value.shape, value=each.value, sizes=each.sizes,
                ulp=None if forward else each.ulp, of=title(record), within=record.within,
                aside=each.gives == "dx" and within.place.index == 0 and BLOCK in record.takes,
                gives=each.gives if alone and each.gives in ("out", "dx") else "",
            )
        )  # fmt: skip
    return found


def forward_key(within: Inside, n: int, step: Step) -> str:
    """A value's key in the derivation."""
    return within.gives(n).key if step.gives == "out" else key_of(step.key, within.notation, within.number(n))


def backward_key(within: Inside, n: int, step: Step) -> str:
    """An error's key, or a gradient's."""
    if step.gives.startswith("dx"):
        return within.sent(n, int(step.gives[2:] or 0))[1]
    return f"d{key_of(step.key[1:], within.notation, within.number(n))}"


def line(within: Inside, n: int, step: Step, found: Found, key: str, backward: bool = False) -> Line:
    """A step as a line."""
    record, notation = within.records[n], within.notation
    kind = "step"
    if backward:
        kind = "error"
        if step.gives and not step.gives.startswith("dx"):
            kind = "db" if step.gives in ("b", "beta") or step.gives.startswith("b_") else "dW"
    first = within.place.index == 0 and BLOCK in record.takes
    return Line(
        key=key, kind=kind, item=within.place.index, layer=notation.number(within.number(n)), left=step.left,
        right=step.right, factors=(), shape=found.value.shape, value=found.value,
        remarks=remarks_of(step, within, n), ulp=found.ulp if backward else None, sizes=step.sizes,
        notes=found.notes, of=title(record), within=record.within, aside=first and (step.for_dx or step.gives == "dx"),
        gives=step.gives if len(within.records) == 1 else "",
    )  # fmt: skip


def remarks_of(step: Step, within: Inside, n: int) -> tuple[str, ...]:
    """A step's remark; of an error that is one of several, that it is."""
    said = (step.remark,) if step.remark else ()
    if (
        step.gives.startswith("dx")
        and within.records[n].kind == "leaf"
        and len(within.takers(within.records[n].takes[0])) > 1
    ):
        return (*said, "e: the error by this way")
    return said


def title(record: Record) -> str:
    """What a record is, in words: what stands above its lines; nothing above an activation's one line."""
    if is_activation(record) and record.word != "softmax":
        return ""
    ways = "two" if len(record.takes) == 2 else str(len(record.takes))
    met = {"sum": f"a sum of {ways} ways", "product": f"a product of {ways} ways", "concatenate": "ways side by side"}
    return f"{met.get(record.kind, record.layer.name)}{' at every position' if record.positions else ''}"


def meetings(within: Inside, n: int) -> list[Line]:
    """The sums of errors at whatever this record is the first to take."""
    found = []
    for token in dict.fromkeys(within.records[n].takes):
        takers = within.takers(token)
        if len(takers) < 2 or min(takers) != n:
            continue
        ways = [(m, i) for m in sorted(set(takers), reverse=True) for i, taken in enumerate(within.records[m].takes)
                if taken == token]  # fmt: skip
        errors = [within.records[m].dxs[i] for m, i in ways]
        if any(each is None for each in errors):
            continue
        item = within.place.item
        own, expected = (item.dx, item.reference[1]) if token == BLOCK else (within.records[token].d_out, None)
        value = np.asarray(own if own is not None else sum(errors[1:], start=errors[0]))
        summed = np.sum([np.asarray(each, np.float64) for each in errors], axis=0).astype(value.dtype)
        largest = max(float(np.abs(each).max(initial=0)) for each in errors)
        ulp = max(ulps(summed, value, largest), 0.0 if expected is None else ulps(value, expected))
        left, key = within.error(token)
        terms = tuple(within.sent(m, i)[0] for m, i in ways)
        said = f"{'two' if len(terms) == 2 else len(terms)} ways lead from here to C, so {len(terms)} errors add up"
        found.append(
            Line(key, "error", within.place.index, within.notation.number(within.number(n)), left, Sum(terms), (),
                 value.shape, value, (said,), ulp, sizes=shape(value.shape), of=title(within.records[n]),
                 within=within.records[n].within, aside=within.place.index == 0 and token == BLOCK)
        )  # fmt: skip
    return found


def shared(within: Inside) -> list[Line]:
    """The gradient of a parameter that several layers share: the sum over its uses."""
    layer = within.place.item.layer
    if layer.rebuild is None or len(within.records) == 1 or layer.name != "tied":
        return []
    options = closed_over(layer.rebuild)
    share, owner = options["share"], min(options["where"])
    item, notation = within.place.item, within.notation
    uses = [n for n, each in enumerate(within.records) if isinstance(each.params, dict) and share in each.params
            and np.shape(each.params[share]) == np.shape(item.params[owner][share])
            and np.array_equal(each.params[share], item.params[owner][share])]  # fmt: skip
    value, expected = np.asarray(item.grads[owner][share]), item.reference[2][owner][share]
    total = np.sum([np.asarray(within.records[n].grads[share], np.float64) for n in uses], axis=0).astype(value.dtype)
    symbol = notation.param(share, within.place.number)
    terms = tuple(notation.gradient(notation.param(share, within.number(n))) for n in reversed(uses))
    return [
        Line(f"d{symbol.key}", "dW", within.place.index, notation.number(within.place.number),
             notation.gradient(symbol), Sum(terms), (), value.shape, value,
             (f"one {share}, used {len(uses)} times: the gradients of its uses add up",),
             max(ulps(value, expected), ulps(total, value)), sizes=shape(value.shape), of=layer.name)
    ]  # fmt: skip


def whole_check(within: Inside, found: list[Line]) -> list[Line]:
    """The last line answers for all gradients of a composed layer, those of blocks that are not opened too."""
    item = within.place.item
    if len(within.records) == 1 or not found:
        return found
    expected = dict(jax.tree_util.tree_leaves_with_path(item.reference[2]))
    pairs = [(leaf, expected[path]) for path, leaf in jax.tree_util.tree_leaves_with_path(item.grads)]
    largest = max((float(np.abs(leaf).max(initial=0)) for leaf, _ in pairs), default=0.0)
    worst = max([found[-1].ulp or 0.0, *(ulps(leaf, other, largest) for leaf, other in pairs)])
    return [*found[:-1], replace(found[-1], ulp=worst)]


# ----------------------------------------------------------------------- layers that are explained by their source


def opaque_forward(within: Inside, n: int) -> Line:
    """A layer without equations here: what it gives, and its source. Blocks that are not opened: what comes out."""
    record, site = within.records[n], within.site(n)
    value = np.asarray(record.out)
    common: dict[str, Any] = {
        "key": site.gives.key, "item": within.place.index, "layer": within.notation.number(within.number(n)),
        "left": site.gives, "factors": (), "shape": value.shape, "value": value, "of": title(record),
        "within": record.within,
    }  # fmt: skip
    sizes = f"{shape(np.shape(record.x))} → {shape(value.shape)}"
    if record.kind == "blocks":
        count = len(record.blocks[0])
        said = "block 1" if count == 1 else f"blocks 1 to {count}"
        note = (f"‖out‖ of each block: {lengths(record.blocks[0])}",) if count > 1 else ()
        return Line(kind="step", right=Call(Name(said), site.takes[0]), sizes=sizes, notes=note, **common)
    right = Call(Name(record.layer.name), site.takes[0])
    gives = "out" if len(within.records) == 1 else ""
    return Line(kind="layer", right=right, sizes=sizes, quoted=quoted(record.layer), opaque=True, gives=gives, **common)


def lengths(values: Any) -> str:
    """‖·‖ of each block's."""
    return ", ".join(one(float(np.linalg.norm(np.asarray(each, np.float64)))) for each in values)


def opaque_backward(within: Inside, n: int) -> list[Line]:
    """Gradients and the error sent back by the layer's own backward pass."""
    record, site = within.records[n], within.site(n)
    common: dict[str, Any] = {"item": within.place.index, "layer": within.notation.number(within.number(n)),
                              "factors": (), "of": title(record), "within": record.within}  # fmt: skip
    found = []
    if record.kind == "blocks":
        count = len(record.blocks[1])
        said = "block 1, back" if count == 1 else f"blocks {count} to 1, back"
        notes: tuple[str, ...] = (f"‖∂C/∂out‖ of each block: {lengths(record.blocks[1])}",) if count > 1 else ()
        expected = within.place.item.reference[1] if record.takes == (BLOCK,) else None
    else:
        said, notes, expected = f"{record.layer.name} backward", (), record.reference[1]
        references = dict(jax.tree_util.tree_leaves_with_path(record.reference[0]))
        leaves = jax.tree_util.tree_leaves_with_path(record.grads)
        largest = max((float(np.abs(leaf).max(initial=0)) for _, leaf in leaves), default=0.0)
        for path, gradient in leaves:
            name = param_name(within.notation, path, within.number(n))
            gradient = np.asarray(gradient)
            found.append(
                Line(f"d{name.key}", "dW", left=within.notation.gradient(name), right=Call(Name(said), site.error),
                     shape=gradient.shape, value=gradient, ulp=ulps(gradient, references[path], largest),
                     sizes=shape(gradient.shape), opaque=True, **common)
            )  # fmt: skip
    if record.dxs[0] is None:
        return found
    value = np.asarray(record.dxs[0])
    left, key = within.sent(n, 0)
    sizes = f"{shape(np.shape(record.d_out))} → {shape(value.shape)}"
    first = within.place.index == 0 and BLOCK in record.takes
    ulp = 0.0 if expected is None else ulps(value, expected)
    opaque = record.kind != "blocks"
    found.append(
        Line(key, "error", left=left, right=Call(Name(said), site.error), shape=value.shape, value=value, ulp=ulp,
             sizes=sizes, notes=notes, opaque=opaque, aside=first,
             gives="dx" if len(within.records) == 1 else "", **common)
    )  # fmt: skip
    return found
