"""The lines of an item's records: numbers and symbols for what is inside, and each record's equations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.expressions import Call, Expression, Listed, Name, Product, Sum
from jaxnet.explaining.kinds import LINEAR, is_activation, maker_of, options_of
from jaxnet.explaining.layer_source import quoted
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import Notation, Number
from jaxnet.explaining.notes import by_hand, notes_of, remark_of
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one, shape
from jaxnet.explaining.records import BLOCK, Record, opened
from jaxnet.explaining.site import Site, param_name
from jaxnet.explaining.source_lines import readable, recorded, written_lines
from jaxnet.explaining.ulp import ulps


@dataclass(frozen=True, eq=False)
class Inside:
    """An item's records with their symbols. below: the error at what the item takes, and its key.

    alone: whether the item is the whole network, and one layer. arrives: the error at what the item gives, where that
    is written as the layer above sends it.
    """

    place: NumberedLayer
    notation: Notation
    records: tuple[Record, ...]
    below: tuple[Expression, str]
    alone: bool = False
    arrives: Expression | None = None

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
            left, key = error_at(self.notation, self.place)
            return self.arrives or left, key
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


def error_at(notation: Notation, place: NumberedLayer) -> tuple[Expression, str]:
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
        follows = activates(record) and record.takes[0] >= 0 and records[record.takes[0]].word in LINEAR
        found.append(found[-1] if follows else (found[-1] if found else 0) + 1)
    return found


def inside(
    place: NumberedLayer, notation: Notation, below: tuple[Expression, str], items: int, arrives: Expression | None
) -> Inside:
    """What is inside an item, one of so many."""
    records = opened(place.item)
    return Inside(place, notation, records, below, items == len(records) == 1, arrives)


def activates(record: Record) -> bool:
    """Whether a record is an activation, or softmax."""
    return record.kind == "leaf" and (is_activation(record.layer) or record.word == "softmax")


# ---------------------------------------------------------------------------------------------------- lines


def forward_lines(within: Inside) -> list[Line]:
    """All lines forward."""
    found: list[Line] = []
    for n, record in enumerate(within.records):
        lines = lines_of(within, n, forward=True)
        if record.kind == "leaf":
            read = recorded(record) if record.layer.made is None else None
            lines[-1] = replace(lines[-1], quoted=quoted(record.layer, read.lines.values() if read else ()))
        found += lines
    return found


def backward_lines(within: Inside) -> list[Line]:
    """All lines backward, the last record first; where several errors meet, their sum."""
    found: list[Line] = []
    for n in reversed(range(len(within.records))):
        found += lines_of(within, n, forward=False)
        found += meetings(within, n)
    found += shared(within)
    return whole_check(within, found)


def lines_of(within: Inside, n: int, forward: bool) -> list[Line]:
    """A record's lines: what it is by itself, or read off its source; what these leave out by the layer's name."""
    record = within.records[n]
    if record.kind in JOINED:
        return [joined(within, n)] if forward else ways(within, n)
    read = source_lines(within, n, forward)
    if forward:
        return read if any(each.key == within.gives(n).key for each in read) else [*read, opaque_forward(within, n)]
    keys = {each.key for each in read}
    return [*read, *(each for each in opaque_backward(within, n) if each.key not in keys)]


def made(
    within: Inside, n: int, kind: str, symbol: tuple[Expression, str], right: Expression, value: Any, **more: Any
) -> Line:
    """A line of a record. symbol: its left side and key."""
    record, value, (left, key) = within.records[n], np.asarray(value), symbol
    others: dict[str, Any] = {"of": title(record), "within": record.within, "sizes": shape(value.shape)} | more
    layer = within.notation.number(within.number(n))
    return Line(key, kind, within.place.index, layer, left, right, (), value.shape, value, **others)


def named(symbol: Name) -> tuple[Expression, str]:
    """A symbol and its key."""
    return symbol, symbol.key


def hidden(within: Inside, n: int) -> bool:
    """Whether ∂C/∂x of a record is not shown: that of the network's input, unless the network is this layer alone."""
    return within.place.index == 0 and BLOCK in within.records[n].takes and not within.alone


def source_lines(within: Inside, n: int, forward: bool) -> list[Line]:
    """A leaf's lines as its source has them; none where it cannot be read."""
    record, site = within.records[n], within.site(n)
    if record.kind != "leaf" or by_hand(site) or not readable(record):
        return []
    alone = len(within.records) == 1
    found = []
    for each in written_lines(site):
        if each.forward != forward:
            continue
        key = {"out": within.gives(n).key, "dx": within.sent(n, 0)[1]}.get(each.gives, each.key)
        kind = "step" if forward else "error"
        if each.gives not in ("", "out", "dx"):
            kind = "db" if each.gives in ("b", "beta") or each.gives.startswith("b_") else "dW"
        found.append(made(
            within, n, kind, (each.left, key), each.right, each.value, sizes=each.sizes, notes=notes_of(record, each),
            ulp=None if forward else each.ulp, aside=each.gives == "dx" and hidden(within, n),
            gives=each.gives if alone and each.gives in ("out", "dx") else "",
            remarks=(*remarks_of(within, n, each.gives or each.name), *([each.shown] if each.shown else [])),
        ))  # fmt: skip
    return found


def remarks_of(within: Inside, n: int, name: str) -> tuple[str, ...]:
    """The sentence beside a line; of an error that is one of several, that it is."""
    record = within.records[n]
    said = remark_of(record, name)
    found = (said,) if said else ()
    if name == "dx" and record.kind == "leaf" and len(within.takers(record.takes[0])) > 1:
        return (*found, "e: the error by this way")
    return found


# ------------------------------------------------------------------------------------------- where ways meet

JOINED = {"sum": "a sum of {}", "product": "a product of {}", "concatenate": "ways side by side"}


def joined(within: Inside, n: int) -> Line:
    """Ways that meet: their sum, their product entry by entry, or one after the other along the last axis."""
    record, takes, gives = within.records[n], within.site(n).takes, within.gives(n)
    rights = {"sum": Sum(takes), "product": Product(takes, "⊙"), "concatenate": Listed(takes)}
    whole = "out" if len(within.records) == 1 else ""
    return made(within, n, "step", named(gives), rights[record.kind], record.out, gives=whole)


def ways(within: Inside, n: int) -> list[Line]:
    """The errors at the ways that meet; none for one that is the error of the sum."""
    record, site = within.records[n], within.site(n)
    found, end = [], 0
    for i, (taken, error) in enumerate(zip(record.xs, record.dxs, strict=True)):
        begin, end = end, end + taken.shape[-1]
        if site.back[i] == site.error:
            continue
        others = tuple(way for j, way in enumerate(site.takes) if j != i)
        right: Expression = Product((site.error, *others), "⊙")
        said = "a product: what the others gave is its slope"
        expected = np.asarray(record.d_out, np.float64)
        if record.kind == "sum":
            right, said = site.error, "a sum passes the error on to each of its terms"
        elif record.kind == "concatenate":
            right, said = Call(Name("piece"), site.error), f"entries {begin + 1} to {end}"
            expected = expected[..., begin:end]
        else:
            for j, other in enumerate(record.xs):
                expected = expected if j == i else expected * np.asarray(other, np.float64)
        symbol, ulp = (site.back[i], within.sent(n, i)[1]), ulps(expected.astype(np.asarray(error).dtype), error)
        found.append(made(within, n, "error", symbol, right, error, remarks=(said,), ulp=ulp, aside=hidden(within, n)))
    return found


def title(record: Record) -> str:
    """What a record is, in words: what stands above its lines; nothing above an activation's one line."""
    if activates(record) and record.word != "softmax":
        return ""
    ways = f"{'two' if len(record.takes) == 2 else len(record.takes)} ways"
    where = "" if not record.positions else " over the batch" if record.training else " at every position"
    said = JOINED.get(record.kind, record.layer.name).format(ways)
    return f"{said}{where}"


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
        terms = tuple(within.sent(m, i)[0] for m, i in ways)
        said = f"{'two' if len(terms) == 2 else len(terms)} ways lead from here to C, so {len(terms)} errors add up"
        aside = within.place.index == 0 and token == BLOCK
        found.append(made(within, n, "error", within.error(token), Sum(terms), value, remarks=(said,), ulp=ulp,
                          aside=aside))  # fmt: skip
    return found


def shared(within: Inside) -> list[Line]:
    """The gradient of a parameter that several layers share: the sum over its uses."""
    layer = within.place.item.layer
    if maker_of(layer) != "tied" or len(within.records) == 1:
        return []
    options = options_of(layer)
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
    """What a record gives, by the layer's name, or in a notation of its own."""
    record, site = within.records[n], within.site(n)
    value = np.asarray(record.out)
    sizes = f"{shape(np.shape(record.x))} → {shape(value.shape)}"
    symbol = named(site.gives)
    if record.kind == "blocks":
        count = len(record.blocks[0])
        said = "block 1" if count == 1 else f"blocks 1 to {count}"
        note = (f"‖out‖ of each block: {lengths(record.blocks[0])}",) if count > 1 else ()
        return made(within, n, "step", symbol, Call(Name(said), site.takes[0]), value, sizes=sizes, notes=note)
    gives = "out" if len(within.records) == 1 else ""
    hand = by_hand(site)
    if hand is not None:
        sizes = shape(value.shape) if value.shape == np.shape(record.x) else sizes
        return made(within, n, "step", (hand.out[0], symbol[1]), hand.out[1], value, gives=gives, notes=hand.notes,
                    sizes=sizes, remarks=remarks_of(within, n, "out"))  # fmt: skip
    right = Call(Name(record.layer.name), site.takes[0])
    return made(within, n, "layer", symbol, right, value, sizes=sizes, opaque=True, gives=gives)


def lengths(values: Any) -> str:
    """‖·‖ of each block's."""
    return ", ".join(one(float(np.linalg.norm(np.asarray(each, np.float64)))) for each in values)


def opaque_backward(within: Inside, n: int) -> list[Line]:
    """Gradients and the error sent back by the layer's own backward pass."""
    record, site = within.records[n], within.site(n)
    found = []
    notes: tuple[str, ...] = ()
    if record.kind == "blocks":
        count = len(record.blocks[1])
        said = "block 1, back" if count == 1 else f"blocks {count} to 1, back"
        notes = (f"‖∂C/∂out‖ of each block: {lengths(record.blocks[1])}",) if count > 1 else ()
        expected = within.place.item.reference[1] if record.takes == (BLOCK,) else None
    else:
        said, expected = f"{record.layer.name} backward", record.reference[1]
        references = dict(jax.tree_util.tree_leaves_with_path(record.reference[0]))
        leaves = jax.tree_util.tree_leaves_with_path(record.grads)
        largest = max((float(np.abs(leaf).max(initial=0)) for _, leaf in leaves), default=0.0)
        for path, gradient in leaves:
            name, ulp = param_name(within.notation, path, within.number(n)), ulps(gradient, references[path], largest)
            symbol = within.notation.gradient(name), f"d{name.key}"
            found.append(made(within, n, "dW", symbol, Call(Name(said), site.error), gradient, ulp=ulp, opaque=True))
    if record.dxs[0] is None:
        return found
    value = np.asarray(record.dxs[0])
    left, key = within.sent(n, 0)
    right: Expression = Call(Name(said), site.error)
    hand = by_hand(site) if record.kind == "leaf" else None
    if hand is not None:
        (left, right), notes = hand.dx, hand.back_notes
    before, after = shape(np.shape(record.d_out)), shape(value.shape)
    found.append(made(
        within, n, "error", (left, key), right, value, ulp=0.0 if expected is None else ulps(value, expected),
        sizes=after if before == after else f"{before} → {after}", notes=notes, aside=hidden(within, n),
        opaque=record.kind != "blocks" and hand is None, remarks=remarks_of(within, n, "dx"),
        gives="dx" if len(within.records) == 1 else "",
    ))  # fmt: skip
    return found
