"""The primal's own lines: its expressions, the values of its variables, and its numbers."""

from __future__ import annotations

import ast
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jax
import numpy as np

from jaxnet.checking import author
from jaxnet.checking.execution import Execution, Inputs, is_traced
from jaxnet.checking.marks import Mark, marked, marked_by, seeing
from jaxnet.checking.subject import Subject, leaves_of
from jaxnet.program import graph_of

MOST_FUNCTIONS = 3  # of the primal, itself first


def parsed(text: str) -> ast.expr:
    """An expression's tree."""
    return ast.parse(f"({text})", mode="eval").body


def fingerprint(values: Sequence) -> tuple:
    """A text that tells the values of an expression at several points from others."""
    return tuple((np.shape(value), np.asarray(value).tobytes()) for value in values)


@dataclass(frozen=True, eq=False)
class Expression:
    """An expression of the primal, with its value at each point and those of the primal's variables."""

    mark: Mark
    values: tuple
    variables: dict[str, tuple]
    texts: dict[tuple, str | None] = field(default_factory=dict)  # by the names of the variables

    def text_in(self, names: dict[tuple, str], assigned: dict[tuple, ast.expr]) -> str | None:
        """Its text in other names, by value; None where a variable has no value there."""
        key = tuple(names.get(value) for value in self.variables.values())
        if key not in self.texts:
            renaming = Renaming(self, names, assigned)
            text = ast.unparse(renaming.visit(parsed(self.mark.text)))
            self.texts[key] = None if renaming.missing or len(text) > 200 else text
        return self.texts[key]


class Renaming(ast.NodeTransformer):
    """Writes an expression of the primal in other names: a variable without one as the expression assigned to it."""

    def __init__(self, of: Expression, names: dict[tuple, str], assigned: dict[tuple, ast.expr]):
        self.of, self.names, self.assigned = of, names, dict(assigned)
        self.missing = False

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.of.variables:
            return node
        name = self.names.get(self.of.variables[node.id])
        if name is not None:
            return parsed(name)
        value = self.assigned.pop((self.of.mark.path, node.id), None)  # once: it may be made of the same variable
        if value is None:
            self.missing = True
            return node
        renamed = self.visit(copy.deepcopy(value))
        self.assigned[self.of.mark.path, node.id] = value
        return renamed


@dataclass(frozen=True, eq=False)
class Primal:
    """The primal's own lines: its expressions with their values, and the numbers that others of them give, by text."""

    expressions: tuple[Expression, ...] = ()
    constants: dict[str, float] = field(default_factory=dict)

    @cached_property
    def names(self) -> dict[tuple, ast.expr]:
        """By function and name, the expression that the primal assigns to a variable, where it does so once."""
        paths = {(each.mark.source.file, each.mark.node.lineno): each.mark.path for each in self.expressions}
        found: dict[tuple, list] = {}
        for source in {each.mark.source for each in self.expressions}:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    path = paths.get((source.file, node.value.lineno))
                    found.setdefault((path, node.targets[0].id), []).append(node.value)
        return {key: values[0] for key, values in found.items() if len(values) == 1}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The numbers that the primal's lines name."""
        found = {}
        for each in self.expressions:
            for node in ast.walk(parsed(each.mark.text)):
                if (
                    isinstance(node, ast.Constant)
                    and isinstance(node.value, int | float)
                    and node.value not in (0, 1, -1)
                ):
                    found[repr(node.value)] = float(node.value)
        return found


def primal_of(subject: Subject, inputs: list[Inputs]) -> Primal:
    """The primal's own lines."""
    functions = author.functions_of(subject.primal, rules=False)[:MOST_FUNCTIONS]
    if not functions:
        return Primal()
    marks = marked(functions)

    with seeing(functions, marks) as seen:
        leaves = leaves_of(inputs[0].args, subject.fixed)
        n = len(leaves.values)

        def primal(*flat):
            return [
                leaf for leaf in jax.tree.leaves(subject.primal(*leaves.tree(flat[:n], flat[n:]))) if is_traced(leaf)
            ]

        count = n + len(leaves.rest)
        graph = graph_of(jax.make_jaxpr(primal)(*inputs[0].flat[:count]))
    values = Execution.of(graph, [each.flat[:count] for each in inputs]).values
    found: dict[int, tuple] = {}
    for operation in graph.operations:
        mark = marked_by(operation)
        if mark is not None and not mark[1]:
            found[mark[0]] = tuple(each[operation.outputs[0]] for each in values)
    named = {
        (marks.marks[k].text, marks.marks[k].path): v for k, v in found.items() if marks.marks[k].text.isidentifier()
    }
    expressions = []
    for k, value in found.items():
        mark = marks.marks[k]
        if mark.defines or mark.text.isidentifier() or np.asarray(value[0]).dtype.kind not in "fb":
            continue
        variables = {n: fingerprint(value) for (n, path), value in named.items() if path == mark.path}
        expressions.append(Expression(mark, value, variables))
    numbers = {marks.marks[k].text: np.asarray(value) for k, value in seen.constants.items()}
    constants = {text: float(v) for text, v in numbers.items() if not v.ndim and v.dtype.kind in "fiu"}
    return Primal(tuple(expressions), constants)
