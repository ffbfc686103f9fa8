"""Changes of the source's text that no value shows: of a number, an option, an argument, a function."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from jaxnet.checking.author import Change, Source
from jaxnet.checking.edits import OTHER, bracketed, distance
from jaxnet.checking.patches import Found


def number_of(node: ast.AST) -> int | float | None:
    """The number that an expression is, with its sign."""
    match node:
        case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(value)) if isinstance(value, int | float):
            return -value
    return None


def changes(node: ast.expr, text: str) -> Iterator[str]:
    """Changes of one expression that its value does not show: of a number, an option, an argument, a function."""
    if (value := number_of(node)) is not None:
        for other in dict.fromkeys((value + 1, value - 1, -value, 2 * value, value / 2)):
            yield repr(other)
        if isinstance(value, int):
            yield from ("2", "None") if value not in (2,) else ("None",)
    match node:
        case ast.Constant(bool() as value):
            yield repr(not value)
        case ast.IfExp(_, body, orelse):
            yield ast.unparse(body)
            yield ast.unparse(orelse)
        case ast.Attribute(value, attribute):
            renamed = {"T": "", "set": ".add", "mean": ".sum", "sum": ".mean", "inv": "", "max": ".min", "min": ".max",
                       "add": ".set", "sin": ".cos", "cos": ".sin", "floor": ".ceil"}  # fmt: skip
            if renamed.get(attribute):
                yield ast.unparse(value) + renamed[attribute]
        case ast.Call(function, arguments, keywords):
            yield from (ast.unparse(each) for each in arguments if not isinstance(each, ast.Starred))
            for i, j in itertools.combinations(range(len(arguments)), 2):
                swapped = [*arguments]
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield ast.unparse(ast.Call(function, swapped, keywords))
            for dropped in keywords:
                yield ast.unparse(ast.Call(function, arguments, [k for k in keywords if k is not dropped]))
            for dropped in arguments[1:]:
                yield ast.unparse(ast.Call(function, [a for a in arguments if a is not dropped], keywords))
        case ast.Compare(left, [operator], [right]):
            for other in {ast.Gt: ">= <", ast.GtE: "> <=", ast.Lt: "<= >", ast.LtE: "< >="}.get(
                type(operator), ""
            ).split():
                yield f"{ast.unparse(left)} {other} {ast.unparse(right)}"
        case ast.Tuple(parts) | ast.List(parts) if 1 < len(parts) <= 6:
            for i, j in itertools.combinations(range(len(parts)), 2):
                swapped = [*parts]
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield ast.unparse(type(node)(swapped, ast.Load()))
        case ast.BinOp(left, operator, right):
            other = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}.get(type(operator))
            if other:
                yield f"{bracketed(ast.unparse(left))} {other} {bracketed(ast.unparse(right))}"


def changes_of(source: Source, function: ast.FunctionDef | ast.Lambda) -> Iterator[Found]:
    """The changes of each expression of a function's body, and of a number wherever it stands in a statement."""
    for statement in function.body if isinstance(function.body, list) else [function.body]:
        equal: dict[str, list[ast.expr]] = {}
        nodes = list(ast.walk(statement))
        signed = [node.operand for node in nodes if isinstance(node, ast.UnaryOp) and number_of(node) is not None]
        options = {id(node.value): f"{node.arg}=" for node in nodes if isinstance(node, ast.keyword) and node.arg}
        for node in nodes:
            if not isinstance(node, ast.expr) or node in signed:
                continue
            before = source.segment(node)
            start, end = source.span(node)
            for text in changes(node, before):
                if text != before:
                    option = options.get(id(node), "")
                    said = f"{option}{before} stands in the place of {option}{text}"
                    change = Change(source, start, end, text)
                    yield Found(distance(before, text), OTHER, 0, len(text), change, before, said)
            if isinstance(value := number_of(node), int):
                equal.setdefault(repr(value), []).append(node)
        start, end = source.span(statement)
        for before, those in equal.items():
            for after in dict.fromkeys(changes(those[0], before)) if len(those) > 1 else ():
                text = source.text[start:end]
                for a, b in sorted(map(source.span, those), reverse=True):
                    text = text[: a - start] + after.encode() + text[b - start :]
                yield Found(2 * len(those), OTHER, 0, len(those), Change(source, start, end, text.decode()), before,
                            f"{before} stands in the place of {after}, {len(those)} times")  # fmt: skip
