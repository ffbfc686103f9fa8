"""The smallest change of an author's own source that makes a wrong `jax.custom_vjp` right.

Every change of one expression is tried: its text is put into the source, and the source is compiled and run. A repair
is a change whose gradients are right in float64 at the point where the rule failed, on fresh draws, and at another
shape. Changes are tried in the order of their length, so the shortest repair is found first.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.reference import in_float64
from jaxnet.checking.rules import differentiated, flat_gradients, short
from jaxnet.checking.subject import Subject, leaves_of

TOLERANCE = 1e-7  # relative to a gradient's largest entry, in float64
FRESH = (501, 502, 503)
MOST_EQUAL = 3


@dataclass(frozen=True)
class Repair:
    """A change of one expression that makes every gradient right.

    `file`, `line`: where it stands; `before`, `after`: the expression and its replacement; `patch`: the changed lines,
    each after `- ` or `+ `; `equal`: patches as short as this one that are right too.
    """

    file: str
    line: int
    before: str
    after: str
    patch: str
    equal: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}   {self.before} → {self.after}"


class Edit(NamedTuple):
    """`text` in place of the bytes from `start` to `end`; `cost` is the number of characters that change."""

    cost: int
    rank: int
    start: int
    end: int
    text: str


class Written(NamedTuple):
    """A function with its source."""

    function: FunctionType
    file: str
    first: int
    source: bytes


def written(function: Callable | None) -> Written | None:
    """The source of a function that a `def` makes; None where there is none to be read."""
    if not isinstance(function, FunctionType):
        return None
    try:
        lines, first = inspect.getsourcelines(function)
        source = textwrap.dedent("".join(lines))
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, made by a program, or a lambda inside a call
        return None
    if not isinstance(tree.body[0], ast.FunctionDef):
        return None
    return Written(function, inspect.getsourcefile(function) or "", first, source.encode())


def compiled(part: Written, source: bytes) -> FunctionType:
    """The function that `source` makes, with the globals, closure and defaults of the original.

    Raises `SyntaxError` where the source is none, `ValueError` where it reads a name that the original does not see.
    """
    old: Any = part.function
    tree = ast.parse(source)
    tree.body[0].decorator_list = []  # pyright: ignore[reportAttributeAccessIssue]
    free = old.__code__.co_freevars
    arguments = ast.arguments([], [ast.arg(name) for name in free], None, [], [], None, [])
    outer = ast.FunctionDef("outer", arguments, tree.body, [])
    module = ast.fix_missing_locations(ast.Module([outer], []))
    constants = compile(module, part.file, "exec").co_consts
    inner = next(c for code in constants if isinstance(code, CodeType) for c in code.co_consts if is_code(c, old))
    cells = dict(zip(free, old.__closure__ or (), strict=True))
    new = FunctionType(
        inner, old.__globals__, old.__name__, old.__defaults__, tuple(cells[n] for n in inner.co_freevars)
    )
    new.__kwdefaults__ = old.__kwdefaults__
    return new


def is_code(constant: Any, function: FunctionType) -> bool:
    """Whether a constant is the code of a function of this name."""
    return isinstance(constant, CodeType) and constant.co_name == function.__name__


# ---------------------------------------------------------------------------------------------------------- the edits


def edits(part: Written) -> list[Edit]:
    """Every change of one expression, the shortest first; among equals, a missing factor or term before a sign."""
    tree = ast.parse(part.source)
    starts = np.cumsum([0, *(len(line) for line in part.source.splitlines(keepends=True))])
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    names = in_scope(function)
    found: dict[tuple[int, int, str], Edit] = {}
    for node in (each for statement in function.body for each in ast.walk(statement)):
        if not isinstance(node, ast.expr) or isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        start = int(starts[node.lineno - 1]) + node.col_offset
        end = int(starts[(node.end_lineno or 0) - 1]) + (node.end_col_offset or 0)
        before = part.source[start:end].decode()
        for rank, text in changes(node, before, [n for n, line in names.items() if line < node.lineno]):
            if text != before:
                edit = Edit(distance(before, text), rank, start, end, f"({text})" if compound(text) else text)
                found.setdefault((start, end, edit.text), edit)
    return sorted(found.values())


def in_scope(function: ast.FunctionDef) -> dict[str, int]:
    """The names that a function assigns, with the line where each is first known."""
    arguments = function.args
    names = {a.arg: 0 for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names[node.id] = min(node.lineno, names.get(node.id, node.lineno))
    return names


def distance(before: str, after: str) -> int:
    """How many characters are taken out and put in."""
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return len(before) + len(after) - 2 * sum(block.size for block in blocks)


def compound(text: str) -> bool:
    """Whether an expression needs brackets to stand inside another."""
    node = ast.parse(text, mode="eval").body
    return isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp | ast.IfExp | ast.Lambda)


def bracketed(text: str) -> str:
    """An expression as it stands inside another."""
    return f"({text})" if compound(text) else text


MISSING, OTHER, SIGN = 0, 1, 2


def changes(node: ast.expr, text: str, names: list[str]) -> Iterator[tuple[int, str]]:
    """The changes of one expression: (rank, new text)."""
    inside = bracketed(text)
    match node:
        case ast.BinOp(left, op, right):
            a, b = ast.unparse(left), ast.unparse(right)
            yield OTHER, a
            yield OTHER, b
            swapped = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}.get(type(op))
            if swapped:
                yield SIGN, f"{bracketed(a)} {swapped} {bracketed(b)}"
            if isinstance(op, ast.MatMult):
                a, b = bracketed(a), bracketed(b)
                yield OTHER, f"{a}.T @ {b}"
                yield OTHER, f"{a} @ {b}.T"
                yield OTHER, f"{b} @ {a}"
                yield OTHER, f"{b}.T @ {a}"
        case ast.UnaryOp(ast.USub(), operand):
            yield SIGN, ast.unparse(operand)
        case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
            for other in (value + 1, value - 1, -value, 2 * value, value / 2, *((1 / value,) if value else ())):
                yield OTHER, repr(other)
        case ast.Attribute(value, attribute):
            for other in {"T": ("",), "set": (".add",), "mean": (".sum",), "sum": (".mean",)}.get(attribute, ()):
                yield OTHER, bracketed(ast.unparse(value)) + other
        case ast.Name(name):
            for other in names:
                yield OTHER, other
            if name not in names:  # a module or a function
                return
        case ast.Call(_, arguments, keywords):
            for argument in arguments:
                if not isinstance(argument, ast.Starred):
                    yield OTHER, ast.unparse(argument)
            for dropped in keywords:
                kept = [k for k in keywords if k is not dropped]
                yield OTHER, ast.unparse(ast.Call(node.func, arguments, kept))
        case ast.Tuple() | ast.List() | ast.Slice() | ast.Starred() | ast.JoinedStr():
            return
    if isinstance(node, ast.Constant):
        return
    yield OTHER, f"{inside}.T"
    yield SIGN, f"-{inside}"
    for factor in ("2", "0.5"):
        yield MISSING, f"{factor} * {inside}"
    yield OTHER, f"{inside}.sum(0)"
    yield OTHER, f"{inside}.mean(0)"
    for name in names:
        yield MISSING, f"{inside} * {name}"
        yield MISSING, f"{inside} + {name}"
        yield MISSING, f"{inside} - {name}"
        yield MISSING, f"{inside} / {name}"
        yield MISSING, f"{inside} / len({name})"
        yield MISSING, f"{inside} * (1 - {name})"
        yield MISSING, f"{inside} * (1 - {name}**2)"
    yield MISSING, f"{inside} - {inside}.mean(-1, keepdims=True)"


# --------------------------------------------------------------------------------------------------------- the search


class Trial(NamedTuple):
    """Arguments, a cotangent, and the right gradients at them."""

    args: tuple
    d_out: Any
    right: list[np.ndarray]


class Trials:
    """A rule's two functions, and the points at which a changed one must be right."""

    def __init__(self, subject: Subject, forward: Callable, backward: Callable):
        self.subject, self.forward, self.backward = subject, forward, backward
        self.given = differentiated(subject.primal, subject.fixed)

    def at(self, args: tuple, d_out: Any) -> Trial:
        """A point with its right gradients."""

        def gradients(args, d_out):
            return flat_gradients(leaves_of(args, self.subject.fixed), self.given(args, d_out)[1])[0]

        return Trial(args, d_out, [np.asarray(g) for g in in_float64(gradients, args, d_out)])

    def right(self, forward: Callable, backward: Callable, trial: Trial) -> bool:
        """Whether the two functions give every gradient rightly. They may raise anything."""
        fixed = self.subject.fixed

        def gradients(args, d_out):
            given = iter(backward(*(args[i] for i in fixed), forward(*args)[1], d_out))
            grads = tuple(None if i in fixed else next(given) for i in range(len(args)))
            return flat_gradients(leaves_of(args, fixed), grads)

        grads, problems = in_float64(gradients, trial.args, trial.d_out)
        return not problems and all(map(close, grads, trial.right))


def close(got: Any, right: np.ndarray) -> bool:
    """Whether a gradient is the right one, entry by entry; NaN never is."""
    scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
    return bool(np.all(np.abs(np.asarray(got) - right) <= TOLERANCE * scale))


def repair(
    subject: Subject,
    first: tuple[tuple, Any],
    draw: Callable[[int], tuple[tuple, Any]],
    redraw: Callable[[int], tuple[tuple, Any]] | None,
    *,
    seconds: float = 3.0,
) -> Repair | None:
    """The shortest change of one expression of a rule's backward or forward function that makes it right.

    Args:
        subject: the rule; only a `jax.custom_vjp` whose functions are written with `def` has a source to change.
        first: arguments and cotangent at which the rule is wrong.
        draw: (seed) -> fresh arguments and cotangent; `redraw` the same of another shape, None where there is none.
        seconds: the time to spend.

    Returns:
        The repair; None where no change of one expression is right, or where there is no source.
    """
    rule, until = subject.custom, time.perf_counter() + seconds
    if not isinstance(rule, jax.custom_vjp) or subject.declared is not None:
        return None
    forward, backward = (getattr(rule, name, None) for name in ("fwd", "bwd"))
    parts = [part for part in (written(backward), written(forward)) if part is not None]
    if not parts or not callable(forward) or not callable(backward):
        return None
    trials = Trials(subject, forward, backward)
    where = trials.at(*first)
    further: list[Trial] = []
    every = ((edit, i) for i, part in enumerate(parts) for edit in edits(part))
    ordered = sorted(every, key=lambda each: (each[0].cost, each[1], each[0]))  # the backward function first
    found: list[tuple[Edit, Written]] = []
    for edit, i in ordered:
        if time.perf_counter() > until or (found and edit.cost > found[0][0].cost) or len(found) > MOST_EQUAL:
            break
        part = parts[i]
        try:
            new = compiled(part, changed(part, edit))
            pair = (new, backward) if part.function is forward else (forward, new)
            if not trials.right(*pair, where):
                continue
            if not further:
                further = [trials.at(*draw(seed)) for seed in FRESH]
                further += [] if redraw is None else [trials.at(*redraw(FRESH[0]))]
            if all(trials.right(*pair, trial) for trial in further):
                found.append((edit, part))
        except Exception:  # a changed source may raise anything: it is no repair
            continue
    if not found:
        return None
    (edit, part), *others = found
    return Repair(
        part.file,
        part.first + part.source[: edit.start].count(b"\n"),
        part.source[edit.start : edit.end].decode(),
        shown(part, edit).text,
        patch(part, edit),
        tuple(patch(part, edit) for edit, part in others),
    )


def shown(part: Written, edit: Edit) -> Edit:
    """The edit without brackets that change nothing."""
    if not edit.text.startswith("("):
        return edit
    bare = edit._replace(text=edit.text[1:-1])
    return bare if same(changed(part, bare), changed(part, edit)) else edit


def changed(part: Written, edit: Edit) -> bytes:
    """The source with an edit."""
    return part.source[: edit.start] + edit.text.encode() + part.source[edit.end :]


def same(one: bytes, other: bytes) -> bool:
    """Whether two sources are the same program."""
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except SyntaxError:  # without its brackets the text may be no expression
        return False


def patch(part: Written, edit: Edit) -> str:
    """The lines that an edit changes, as `- line` and `+ line`."""
    before, after = (text.decode().splitlines() for text in (part.source, changed(part, shown(part, edit))))
    lines = (line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ "))
    return "\n".join(line[:2] + line[2:].strip() for line in lines)


def repaired(*args: Any, **options: Any) -> tuple[Repair | None, str]:
    """`repair`, and one line on why there is none where the search itself failed: a verdict never depends on it."""
    try:
        return repair(*args, **options), ""
    except Exception as error:  # the primal and the draws are the user's, and may raise anything
        return None, f"no repair was looked for: {short(error)}"
