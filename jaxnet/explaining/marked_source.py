"""The source of an author's function as code in which a recorder stands in place of each operation.

The function is taken from its source and compiled again, with a call in place of each operator, call, index and
assignment.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import operator
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "optax", "chex", "jaxtyping", "beartype"} | set(sys.stdlib_module_names)
RECORDER = "__recorder__"
OPERATORS: dict[str, tuple[str, Callable]] = {
    "Add": ("add", operator.add), "Sub": ("subtract", operator.sub), "Mult": ("multiply", operator.mul),
    "Div": ("divide", operator.truediv), "MatMult": ("matmul", operator.matmul), "Pow": ("power", operator.pow),
    "FloorDiv": ("floor_divide", operator.floordiv), "Mod": ("remainder", operator.mod),
    "USub": ("negative", operator.neg), "Gt": ("greater", operator.gt), "Lt": ("less", operator.lt),
    "GtE": ("greater_equal", operator.ge), "LtE": ("less_equal", operator.le), "Eq": ("equal", operator.eq),
    "NotEq": ("not_equal", operator.ne), "Subscript": ("getitem", operator.getitem),
    "T": ("transpose", operator.attrgetter("T")), "mT": ("transpose", operator.attrgetter("mT")),
}  # fmt: skip
"""Operators of Python by the node of their syntax: its name in `jax.numpy`, and the function."""


def author_function(f: Any) -> types.FunctionType | None:
    """The plain function of something called, if an author wrote it; None for a library's."""
    plain = inspect.unwrap(f) if callable(f) and not isinstance(f, type) else None
    if not isinstance(plain, types.FunctionType) or inspect.isgeneratorfunction(plain):
        return None
    module = plain.__module__ or ""
    return None if module.split(".")[0] in LIBRARIES else plain


@functools.lru_cache(maxsize=1024)
def recording_code(code: types.CodeType) -> types.CodeType | None:
    """A function's code with the recorder's calls in it; None where Python has no source of it."""
    lines = linecache.getlines(code.co_filename)
    tree = parsed("".join(lines)) if lines else None
    found: list[Any] = [each for each in ast.walk(tree) if is_source(each, code)] if tree is not None else []
    if len(found) > 1:  # lambdas of one line: the one whose code is the same
        bare = [compile(ast.fix_missing_locations(ast.Expression(each)), "", "eval").co_consts for each in found]
        found = [each for each, consts in zip(found, bare, strict=True)
                 if code.co_code in (getattr(of, "co_code", None) for of in consts)][:1]  # fmt: skip
    if not found:
        return None
    marked = Marking(code.co_filename).function(copy.deepcopy(found[0]))
    return inner_code(marked, [*code.co_freevars, RECORDER], code)


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> ast.Module | None:
    """The tree of a module's source."""
    try:
        return ast.parse(text)
    except SyntaxError:
        return None


def is_source(node: ast.AST, code: types.CodeType) -> bool:
    """Whether a node of a module's tree is a function's."""
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        return False
    return min([node.lineno, *(each.lineno for each in node.decorator_list)]) == code.co_firstlineno


def inner_code(node: ast.FunctionDef | ast.Lambda, outer: list[str], code: types.CodeType) -> types.CodeType:
    """The code of a function whose free names are `outer`."""
    is_lambda = isinstance(node, ast.Lambda)
    body: list[Any] = [ast.Return(node)] if is_lambda else [node, ast.Return(ast.Name(node.name, ast.Load()))]
    names = ast.arguments([], [ast.arg(name) for name in outer], None, [], [], None, [])
    module = compile(ast.fix_missing_locations(ast.Module([ast.FunctionDef("around", names, body, [])], [])),
                     code.co_filename, "exec")  # fmt: skip
    [made] = [each for each in module.co_consts if isinstance(each, types.CodeType)]
    return next(each for each in made.co_consts if isinstance(each, types.CodeType) and each.co_name == code.co_name)


class Marking(ast.NodeTransformer):
    """Puts the recorder's calls into a copy of a function's tree."""

    def __init__(self, file: str):
        self.file = file

    def function(self, node: Any) -> Any:
        """A function with its own body marked, without defaults and annotations; functions inside it stay as they are.

        The defaults are given to the function that is made.
        """
        for each in ast.walk(node.args):
            if isinstance(each, ast.arg):
                each.annotation = None
        node.args.defaults, node.args.kw_defaults = [], [None] * len(node.args.kwonlyargs)
        if isinstance(node, ast.Lambda):
            node.body = self.visit(node.body)
        else:
            node.body, node.decorator_list, node.returns = list(map(self.visit, node.body)), [], None
        return node

    def visit(self, node: Any) -> Any:
        """A call of the recorder in the place of an operator, a call, an index or an assigned value."""
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            return node
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not isinstance(node, ast.AugAssign) or isinstance(node.target, ast.Name):
                return self.assignment(node, targets)
        self.generic_visit(node)
        match node:
            case ast.Call(ast.Attribute(of, name), args, keywords):
                return self.to(node, "method", of, ast.Constant(name), *args, keywords=keywords)
            case ast.Call(function, args, keywords):
                return self.to(node, "call", function, *args, keywords=keywords)
            case ast.Attribute(of, "T" | "mT", ast.Load()):
                kind, operands = node.attr, [of]
            case ast.Subscript(of, index, ast.Load()):
                kind, operands = "Subscript", [of, index_of(index)]
            case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
                kind, operands = type(op).__name__, [left, right]
            case ast.UnaryOp(ast.USub(), of):
                kind, operands = "USub", [of]
            case _:
                return node
        return self.to(node, "operator", ast.Constant(kind), *operands) if kind in OPERATORS else node

    def assignment(self, node: Any, targets: list[Any]) -> ast.Assign:
        """A statement whose value is kept on its way; x += y as x = x + y."""
        value, line = node.value, (self.file, node.lineno, node.col_offset)
        if isinstance(node, ast.AugAssign):
            value = ast.copy_location(ast.BinOp(ast.Name(targets[0].id, ast.Load()), node.op, value), node)
        of: Any = names_of(targets[0]), line
        marked = self.to(node, "assigned", *map(ast.Constant, of), self.visit(value))
        return ast.copy_location(ast.Assign(targets, marked), node)

    def to(self, node: ast.AST, method: str, *args: ast.expr, keywords: Sequence[ast.keyword] = ()) -> ast.Call:
        """A call of the recorder in a node's place."""
        called = ast.Attribute(ast.Name(RECORDER, ast.Load()), method, ast.Load())
        return ast.copy_location(ast.Call(called, list(args), list(keywords)), node)


def names_of(target: Any) -> Any:
    """The names in a target of an assignment: `z`, or a tuple of such; None for any other."""
    if isinstance(target, ast.Tuple | ast.List):
        return tuple(map(names_of, target.elts))
    return target.id if isinstance(target, ast.Name) else None


def index_of(node: Any) -> ast.expr:
    """An index as an expression: a slice as a call."""
    if isinstance(node, ast.Tuple):
        return ast.copy_location(ast.Tuple(list(map(index_of, node.elts)), ast.Load()), node)
    if not isinstance(node, ast.Slice):
        return node
    ends = [ast.Constant(None) if each is None else each for each in (node.lower, node.upper, node.step)]
    return ast.copy_location(
        ast.Call(ast.Attribute(ast.Name(RECORDER, ast.Load()), "slice", ast.Load()), ends, []), node
    )
