"""The author's functions run with every expression marked: a mark is an operation `name` in the program."""

from __future__ import annotations

import ast
import builtins
import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer

from jaxnet.checking.author import Codes, Source, number_of, place_of, with_code

SEE = "__jaxnet_see__"


MARK = "jaxnet mark "


@dataclass(frozen=True)
class Mark:
    """One expression of a source, or a variable where it gets its value.

    `path`: the functions around it, from the outside; `defines`: whether it is a variable that gets its value here,
    `is_argument`: by the function's call.
    """

    number: int
    source: Source
    node: Any
    text: str
    path: tuple[int, ...]
    defines: bool = False
    is_argument: bool = False
    until: int = 0  # the byte after which its statement ends, or, for an argument, the unpacking that comes first


class Marker(ast.NodeTransformer):
    """Puts a call of `see` around every expression of every function of a source."""

    def __init__(self, source: Source, marks: list[Mark]):
        self.source, self.marks = source, marks
        self.path: tuple[int, ...] = ()

    def mark(self, node: Any, text: str = "", **options: Any) -> ast.Constant:
        """The number of a new mark."""
        number = len(self.marks)
        self.marks.append(Mark(number, self.source, node, text or self.source.segment(node), self.path, **options))
        return ast.copy_location(ast.Constant(number), node)

    def seen(self, node: Any, value: Any, number: ast.Constant) -> ast.expr:
        """The call of `see`."""
        name = ast.copy_location(ast.Name(SEE, ast.Load()), node)
        return ast.copy_location(ast.Call(name, [number, value], []), node)

    def defined(self, names: list[str], after: Any, **options: Any) -> list[ast.stmt]:
        """Statements that mark variables, each by its name."""
        found = []
        for name in names:
            load = ast.copy_location(ast.Name(name, ast.Load()), after)
            value = self.seen(after, load, self.mark(after, name, defines=True, **options))
            found.append(
                ast.copy_location(ast.Assign([ast.copy_location(ast.Name(name, ast.Store()), after)], value), after)
            )
        return found

    def visit(self, node: Any) -> Any:
        """An expression that is read is marked once its parts are."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return self.function(node)
        if not self.path:
            return self.generic_visit(node)
        if isinstance(node, ast.JoinedStr | ast.Constant | ast.Starred | ast.Slice | ast.Tuple | ast.List | ast.Dict):
            return node if isinstance(node, ast.JoinedStr | ast.Constant) else self.generic_visit(node)
        if isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            number = self.mark(node)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                node.args = [self.visit(each) for each in node.args]
                node.keywords = [self.visit(each) for each in node.keywords]
                return self.seen(node, node, number)
            return self.seen(node, self.generic_visit(node), number)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            node = self.generic_visit(node)
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in stored(target)]
            return [node, *self.defined(names, node, until=self.source.span(node)[1])]
        if isinstance(node, ast.For):
            names = stored(node.target)
            node = self.generic_visit(node)
            node.body = [*self.defined(names, node.target), *node.body]
            return node
        return self.generic_visit(node)

    def function(self, node: Any) -> Any:
        """A function: its arguments are marked before its body."""
        outer, self.path = self.path, (*self.path, number_of(node))
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if isinstance(node, ast.Lambda):
            marks = [self.mark(node, name, defines=True, is_argument=True) for name in arguments]
            body = self.visit(node.body)
            names = [ast.copy_location(ast.Name(name, ast.Load()), node) for name in arguments]
            seen = [self.seen(node, name, mark) for name, mark in zip(names, marks, strict=True)]
            index = ast.UnaryOp(ast.USub(), ast.Constant(1))
            node.body = ast.copy_location(ast.Subscript(ast.List([*seen, body], ast.Load()), index, ast.Load()), node)
        else:
            unpacking = list(itertools.takewhile(is_unpacking, node.body))
            until = self.source.span(unpacking[-1])[1] if unpacking else 0
            first = self.defined(arguments, node.body[0], is_argument=True, until=until)
            body = [each for statement in node.body for each in as_list(self.visit(statement))]
            node.body = [*first, *body]
        self.path = outer
        return node


def is_unpacking(statement: ast.stmt) -> bool:
    """Whether a statement only gives another name to a value; a docstring counts."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name | ast.Subscript | ast.Attribute)


def as_list(found: Any) -> list:
    """The result of a visit, as a list of statements."""
    return found if isinstance(found, list) else [found]


def stored(target: Any) -> list[str]:
    """The names that a target gives a value."""
    return [n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


class Marked(NamedTuple):
    """The marks of some files, and their code with calls of `see`."""

    marks: list[Mark]
    codes: Codes


def marked(functions: Iterable[FunctionType]) -> Marked:
    """The statements that some functions stand in, with every expression marked."""
    marks: list[Mark] = []
    codes: Codes = {}
    places = [place_of(function.__code__) for function in functions]
    for source, k in dict.fromkeys(place[:2] for place in places if place is not None):
        tree = Marker(source, marks).visit(source.statement(k))
        codes[source.file, k] = source.compiled(ast.fix_missing_locations(tree))
    return Marked(marks, codes)


@dataclass
class SeenConstants:
    """Values that the marks saw untraced: by a mark's number, numbers and constant arrays."""

    constants: dict[int, Any] = field(default_factory=dict)


@contextmanager
def seeing(functions: list[FunctionType], with_marks: Marked) -> Iterator[SeenConstants]:
    """Inside, functions mark the values of their expressions: a traced array by an operation `name` in the program."""
    seen = SeenConstants()

    def see(number: int, value: Any) -> Any:
        if isinstance(value, Tracer):
            return named(value, f"{MARK}{number}")
        if isinstance(value, int | float | np.ndarray | np.generic | jax.Array) and not isinstance(value, bool):
            seen.constants[number] = value
        elif with_marks.marks[number].defines and isinstance(value, tuple | list | dict):
            leaves, tree = jax.tree_util.tree_flatten_with_path(value)
            return jax.tree.unflatten(tree, [
                named(leaf, f"{MARK}{number} {jax.tree_util.keystr(path)}") if isinstance(leaf, Tracer) else leaf
                for path, leaf in leaves
            ])  # fmt: skip
        return value

    setattr(builtins, SEE, see)
    try:
        with with_code(functions, with_marks.codes):
            yield seen
    finally:
        delattr(builtins, SEE)


def named(value: Any, name: str) -> Any:
    """A traced array with a name; one without a gradient's dtype as it is."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or dtype == jax.dtypes.float0 or jnp.issubdtype(dtype, jax.dtypes.extended):
        return value
    return checkpoint_name(value, name)


def marked_by(operation: Any) -> tuple[int, str] | None:
    """The mark that an operation of a program is, and the path of the leaf; None for any other operation."""
    if operation.name != "name" or not str(operation.eqn.params["name"]).startswith(MARK):
        return None
    number, _, path = operation.eqn.params["name"].removeprefix(MARK).partition(" ")
    return int(number), path
