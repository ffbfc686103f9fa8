"""A repair in words and as a patch: the changed lines, and the mistake that they mend."""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxnet.checking import author
from jaxnet.checking.alignment import MarkedPlace
from jaxnet.checking.author import Change
from jaxnet.checking.edits import Edit, alike, bracketed

CLEAR = 20  # tokens: a longer edit is another expression, and its cause says so
LONGEST_CAUSE = 120  # letters of the two expressions in a cause


@dataclass(frozen=True)
class Repair:
    """Changes of the author's source that make every gradient right; without a patch, the line alone.

    `file`, `line`: where the first stands; `before`, `after`: the expression and its replacement; `patch`: the changed
    lines, each after `- ` or `+ `; `cause`: the mistake, in words; `equal`: patches as short that are right too;
    `mended`: the text of the whole file with the patch.
    """

    file: str
    line: int
    before: str
    after: str
    patch: str
    cause: str = ""
    equal: tuple[str, ...] = ()
    mended: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}   {self.before} → {self.after}"


class Found(NamedTuple):
    """An edit that was found, ordered by its cost, its rank, how many values it reaches, and its length."""

    cost: float
    rank: int
    reach: int
    length: int
    change: Change
    before: str
    cause: str


def kind_of(before: str, after: str) -> tuple[str, str]:
    """How an expression differs from another: a missing sign, term or factor, or a replacement, and its text."""
    v = bracketed(before)
    if after in (f"-{v}", f"-{before}"):
        return "sign", after
    for sign, kind in ((" + ", "term"), (" - ", "term"), (" * ", "factor")):
        for text in (v, before):
            rest = after.removeprefix(text + sign)
            node = ast.parse(after, mode="eval").body
            if rest != after and isinstance(node, ast.BinOp):
                if kind == "term" and isinstance(node.op, ast.Add | ast.Sub):
                    return kind, rest
                if kind == "factor" and isinstance(node.op, ast.Mult | ast.Div):
                    return kind, rest
    match ast.parse(after, mode="eval").body:
        case ast.BinOp(left, ast.Div(), by) if ast.unparse(left) in (v, before):
            return "factor", f"1 / {bracketed(ast.unparse(by))}"
    return "replaced", after


def cause(edit: Edit, before: str) -> str:
    """The mistake, in words."""
    brief = len(edit.what) + len(before) <= LONGEST_CAUSE
    match edit.kind:
        case "sign":
            return f"{before} has the wrong sign"
        case "transposed":
            return f"{before} is not transposed"
        case "factor" if brief:
            return f"the factor {bracketed(edit.what)} is missing in {before}"
        case "term":
            return f"a term is missing in {before}" + (f": {edit.what}" if brief else "")
        case "order":
            return f"the entries of {before} are in another order"
        case "shifted":
            return f"the entries of {before} stand one step off"
    if (said := too_much(before, edit.text)) is not None and brief:
        return said
    if edit.cost > CLEAR or not brief:
        return f"{before} is not the right value; the patch gives it"
    return f"{before} stands in the place of {edit.what or edit.text}"


def too_much(before: str, after: str) -> str | None:
    """The factor or the term that an expression has too much, in words; None where that is not the mistake."""
    match ast.parse(before, mode="eval").body:
        case ast.BinOp(left, ast.Mult() | ast.Div() | ast.Add() | ast.Sub() as operator, right):
            kind = "factor" if isinstance(operator, ast.Mult | ast.Div) else "term"
            over = "1 / " if isinstance(operator, ast.Div) else ""
            if alike(ast.unparse(left), after):
                return f"the {kind} {over}{ast.unparse(right)} is too much in {before}"
            if alike(ast.unparse(right), after) and isinstance(operator, ast.Mult | ast.Add):
                return f"the {kind} {ast.unparse(left)} is too much in {before}"
    return None


def shown(change: Change) -> Change:
    """The change with brackets where it needs them."""
    if change.start == change.end or change.text in ("+", "-"):
        return change
    inside = change._replace(text=f"({change.text})")
    return change if same(change, inside) else inside


def same(one: Change, other: Change) -> bool:
    """Whether two changes make the same program."""
    try:
        k = one.source.statement_at(one.start)
        first, second = (ast.dump(author.changed_statement(one.source, k, [each])) for each in (one, other))
        return first == second
    except SyntaxError:  # without brackets the text may be no expression
        return False


def as_repair(found: Sequence[Found], equal: Sequence[Found]) -> Repair:
    """Edits as a repair."""
    first = found[0]
    every = [each.change for each in found]
    every += author.imports_of(every)
    return Repair(
        first.change.source.file,
        first.change.line,
        first.before,
        first.change.text,
        patch(every),
        "; and ".join(each.cause for each in found),
        tuple(dict.fromkeys(patch([each.change, *author.imports_of([each.change])]) for each in equal)),
        author.changed_text(
            first.change.source, [shown(each) for each in every if each.source.file == first.change.source.file]
        ).decode(),
    )


def line_alone(places: Sequence[MarkedPlace | None]) -> Repair | None:
    """The first of some places, with no patch; None where there is none."""
    for place in places:
        if place is not None:
            mark = place.mark
            said = f"{mark.text} is not the right value: with autodiff's in its place the gradient is right"
            line = Change(mark.source, *mark.source.span(mark.node), mark.text).line
            return Repair(mark.source.file, line, mark.text, "", "", said)
    return None


def patch(some: Sequence[Change]) -> str:
    """The lines that changes change, as `- line` and `+ line`."""
    source, lines = some[0].source, []
    for source in {change.source.file: change.source for change in some}.values():
        after = author.changed_text(source, map(shown, some)).decode().splitlines()
        difference = difflib.unified_diff(source.text.decode().splitlines(), after, n=0, lineterm="")
        lines += [
            f"{line[0]} {line[1:].strip()}" for line in difference if line[:3] not in ("---", "+++") and line[0] in "-+"
        ]
    return "\n".join(lines)
