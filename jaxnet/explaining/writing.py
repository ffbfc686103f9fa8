"""The lines of an item's records: numbers and symbols of the records, and their equations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.expressions import Call, Expression, Listed, Name, Product, Sum, key_of
from jaxnet.explaining.kinds import LINEAR, is_activation, options_of
from jaxnet.explaining.layer_source import quoted
from jaxnet.explaining.model import Line
from jaxnet.explaining.notation import Notation, Number
from jaxnet.explaining.notes import by_hand, notes_of, remark_of
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one, shape
from jaxnet.explaining.records import BLOCK, Record, Site, param_name
from jaxnet.explaining.source_lines import recorded, written_lines
from jaxnet.explaining.ulp import largest, ulps


@dataclass(frozen=True, eq=False)
class Inside:
    """An item's records with their symbols. below: the error at the item's input.

    alone: whether the item is the whole network, and one layer. arrives: the error at the item's output, where that
    is written as the layer above sends it.
    """

    place: NumberedLayer
    notation: Notation
    records: tuple[Record, ...]
    below: Expression
    alone: bool = False
    arrives: Expression | None = None

    def number(self, n: int) -> Number:
        """A record's number: the item's own where there is but one."""
        return self.place.number if len(self.records) == 1 else (self.place.number, numbers(self.records)[n])

    def is_z(self, n: int) -> bool:
        """Whether a record gives z; the last record gives the item's own output."""
        return self.place.is_z if n == len(self.records) - 1 else self.records[n].word in LINEAR

    def gives(self, token: int) -> Name:
        """The symbol of a record's output; of `BLOCK` the item's input."""
        if token == BLOCK:
            return self.place.takes
        if token == len(self.records) - 1:
            return self.place.gives
        return self.notation.z(self.number(token)) if self.is_z(token) else self.notation.a(self.number(token))

    def error(self, token: int) -> Expression:
        """The error at a record's output."""
        if token == BLOCK:
            return self.below
        if token == len(self.records) - 1:
            return self.arrives or error_at(self.notation, self.place)
        of = self.gives(token)
        return self.notation.delta(self.number(token)) if self.is_z(token) else self.notation.partial(of)

    def takers(self, token: int) -> list[int]:
        """The records that take one's output."""
        return [n for n, each in enumerate(self.records) for taken in each.takes if taken == token]

    def sent(self, n: int, i: int) -> Expression:
        """The error that a record sends back to an input; where several add up, its own part."""
        token = self.records[n].takes[i]
        if len(self.takers(token)) == 1:
            return self.error(token)
        return self.error(n) if self.records[n].kind == "sum" else self.notation.name_of("e", self.number(n))

    def site(self, n: int) -> Site:
        """A record's symbols."""
        record = self.records[n]
        back = tuple(self.sent(n, i) for i in range(len(record.takes)))
        takes = tuple(self.gives(token) for token in record.takes)
        return Site(record, self.notation, self.number(n), takes, self.gives(n), self.error(n), back)


def error_at(notation: Notation, place: NumberedLayer) -> Expression:
    """The error at a place's output."""
    return notation.delta(place.number) if place.is_z else notation.partial(place.gives)


def numbers(records: tuple[Record, ...]) -> list[int]:
    """Their numbers within the item: an activation that follows a z counts with it."""
    found: list[int] = []
    for record in records:
        follows = activates(record) and record.takes[0] >= 0 and records[record.takes[0]].word in LINEAR
        found.append(found[-1] if follows else (found[-1] if found else 0) + 1)
    return found


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
    """A record's lines: by hand, or read off its source; the rest by the layer's name."""
    record = within.records[n]
    if record.kind in JOINED:
        return [joined(within, n)] if forward else ways(within, n)
    read = source_lines(within, n, forward)
    if forward:
        return read if any(each.key == within.gives(n).key for each in read) else [*read, opaque_forward(within, n)]
    keys = {each.key for each in read}
    return [*read, *(each for each in opaque_backward(within, n) if each.key not in keys)]


def made(within: Inside, n: int, kind: str, left: Expression, right: Expression, value: Any, **more: Any) -> Line:
    """A line of a record."""
    record, value = within.records[n], np.asarray(value)
    others: dict[str, Any] = {"of": title(record), "within": record.within, "sizes": shape(value.shape)} | more
    layer = within.notation.number(within.number(n))
    return Line(key_of(left), kind, within.place.index, layer, left, right, (), value.shape, value, **others)


def hidden(within: Inside, n: int) -> bool:
    """Whether ∂C/∂x of a record is not shown: that of the network's input, unless the network is this layer alone."""
    return within.place.index == 0 and BLOCK in within.records[n].takes and not within.alone


def source_lines(within: Inside, n: int, forward: bool) -> list[Line]:
    """A leaf's lines as its source has them; none where it cannot be read."""
    record, site = within.records[n], within.site(n)
    found = []
    for each in () if by_hand(site) else written_lines(site):
        if each.forward != forward:
            continue
        whole, kind = each.gives in ("", "out", "dx"), "step" if forward else "error"
        if not whole:
            kind = "db" if each.gives in ("b", "beta") or each.gives.startswith("b_") else "dW"
        found.append(made(
            within, n, kind, each.left, each.right, each.value, sizes=each.sizes, notes=notes_of(record, each),
            ulp=None if forward else each.ulp, aside=each.gives == "dx" and hidden(within, n),
            gives=each.gives if whole and len(within.records) == 1 else "",
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
    return made(within, n, "step", gives, rights[record.kind], record.out, gives=whole)


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
        ulp = ulps(expected.astype(np.asarray(error).dtype), error)
        found.append(made(within, n, "error", site.back[i], right, error, remarks=(said,), ulp=ulp,
                          aside=hidden(within, n)))  # fmt: skip
    return found


def title(record: Record) -> str:
    """The title above a record's lines; none above an activation's one line."""
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
        ulp = max(ulps(summed, value, largest(errors)), 0.0 if expected is None else ulps(value, expected))
        terms = tuple(within.sent(m, i) for m, i in ways)
        said = f"{'two' if len(terms) == 2 else len(terms)} ways lead from here to C, so {len(terms)} errors add up"
        aside = within.place.index == 0 and token == BLOCK
        found.append(made(within, n, "error", within.error(token), Sum(terms), value, remarks=(said,), ulp=ulp,
                          aside=aside))  # fmt: skip
    return found


def shared(within: Inside) -> list[Line]:
    """The gradient of a parameter that several layers share: the sum over its uses."""
    layer = within.place.item.layer
    if layer.maker != "tied" or len(within.records) == 1:
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
    beside = largest([leaf for leaf, _ in pairs])
    worst = max([found[-1].ulp or 0.0, *(ulps(leaf, other, beside) for leaf, other in pairs)])
    return [*found[:-1], replace(found[-1], ulp=worst)]


# ----------------------------------------------------------------------- layers that are explained by their source


def blocks(values: Any, said: str, back: str) -> tuple[str, tuple[str, ...]]:
    """The name of the blocks before the last, and ‖·‖ of each one's values."""
    lengths = [one(float(np.linalg.norm(np.asarray(each, np.float64)))) for each in values]
    if len(lengths) == 1:
        return f"block 1{back}", ()
    ends = (len(lengths), 1) if back else (1, len(lengths))
    return f"blocks {ends[0]} to {ends[1]}{back}", (f"‖{said}‖ of each block: {', '.join(lengths)}",)


def opaque_forward(within: Inside, n: int) -> Line:
    """The output of a record, by the layer's name, or in a notation of its own."""
    record, site, value = within.records[n], within.site(n), np.asarray(within.records[n].out)
    more: dict[str, Any] = {"sizes": f"{shape(np.shape(record.x))} → {shape(value.shape)}"}
    if record.kind == "blocks":
        said, notes = blocks(record.blocks[0], "out", "")
        return made(within, n, "step", site.gives, Call(Name(said), site.takes[0]), value, notes=notes, **more)
    more["gives"] = "out" if len(within.records) == 1 else ""
    if (hand := by_hand(site)) is None:
        right = Call(Name(record.layer.name), site.takes[0])
        return made(within, n, "layer", site.gives, right, value, opaque=True, **more)
    more |= {"sizes": shape(value.shape)} if value.shape == np.shape(record.x) else {}
    return made(within, n, "step", *hand.out, value, notes=hand.notes, remarks=remarks_of(within, n, "out"), **more)


def opaque_backward(within: Inside, n: int) -> list[Line]:
    """Gradients and the error sent back by the layer's own backward pass."""
    record, site, found = within.records[n], within.site(n), []
    said, expected, notes = f"{record.layer.name} backward", record.reference[1], ()
    references = dict(jax.tree_util.tree_leaves_with_path(record.reference[0]))
    leaves = jax.tree_util.tree_leaves_with_path(record.grads)
    beside = largest([leaf for _, leaf in leaves])
    for path, gradient in leaves:
        left = within.notation.gradient(param_name(within.notation, path, within.number(n)))
        ulp = ulps(gradient, references[path], beside)
        found.append(made(within, n, "dW", left, Call(Name(said), site.error), gradient, ulp=ulp, opaque=True))
    if record.dxs[0] is None:
        return found
    if record.kind == "blocks":
        said, notes = blocks(record.blocks[1], "∂C/∂out", ", back")
        expected = within.place.item.reference[1] if record.takes == (BLOCK,) else None
    value, sides = np.asarray(record.dxs[0]), (site.back[0], Call(Name(said), site.error))
    if (hand := by_hand(site)) is not None:
        sides, notes = hand.dx, hand.back_notes
    before, after = shape(np.shape(record.d_out)), shape(value.shape)
    return [*found, made(
        within, n, "error", *sides, value, ulp=0.0 if expected is None else ulps(value, expected),
        sizes=after if before == after else f"{before} → {after}", notes=notes, aside=hidden(within, n),
        opaque=record.kind != "blocks" and hand is None, remarks=remarks_of(within, n, "dx"),
        gives="dx" if len(within.records) == 1 else "",
    )]  # fmt: skip
