"""Changes of the source's text that no value shows: of a number, an option, an argument, a function."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator

from jaxnet.checking.author import Change, Source
from jaxnet.checking.edits import OTHER, bracketed, distance
from jaxnet.checking.patches import Found


def changes(node: ast.expr, text: str) -> Iterator[str]:
    """Changes of one expression that its value does not show: of a number, an option, an argument, a function."""
    match node:
        case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
            for other in dict.fromkeys((value + 1, value - 1, -value, 2 * value, value / 2)):
                yield repr(other)
            if isinstance(value, int):
                yield from ("2", "None") if value not in (2,) else ("None",)
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
        for node in ast.walk(statement):
            if not isinstance(node, ast.expr):
                continue
            before = source.segment(node)
            start, end = source.span(node)
            for text in changes(node, before):
                if text != before:
                    said = f"{before} stands in the place of {text}"
                    change = Change(source, start, end, text)
                    yield Found(distance(before, text), OTHER, 0, len(text), change, before, said)
            if isinstance(node, ast.Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
                equal.setdefault(repr(node.value), []).append(node)
        start, end = source.span(statement)
        for before, nodes in equal.items():
            for after in dict.fromkeys(changes(nodes[0], before)) if len(nodes) > 1 else ():
                text = source.text[start:end]
                for a, b in sorted(map(source.span, nodes), reverse=True):
                    text = text[: a - start] + after.encode() + text[b - start :]
                yield Found(2 * len(nodes), OTHER, 0, len(nodes), Change(source, start, end, text.decode()), before,
                            f"{before} stands in the place of {after}, {len(nodes)} times")  # fmt: skip
