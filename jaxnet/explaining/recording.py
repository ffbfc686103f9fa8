"""A layer's own forward and backward, run with the value of each line of the author's source kept.

The functions are taken from their source, and compiled again with one call after each assignment: it keeps the value
under the name that the line gives it. Functions that they call are opened likewise, those of libraries are not.
Inside `jax.vmap` and `jax.lax.scan` the values come back with the axis that these add.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxnet.factors import Factor, is_factor
from jaxnet.layer import Layer, Reading, Tree
from jaxnet.lowering import plain_forms

LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "optax", "chex", "jaxtyping", "beartype"} | set(sys.stdlib_module_names)
RECORD, FRAME = "__record__", "__frame__"
CAPTURE = Reading(lambda passing: passing, out_axes=0)


@dataclass(frozen=True, eq=False)
class Source:
    """A function's source: its calls and its statements that give a value, each by its number."""

    node: ast.FunctionDef | ast.Lambda
    calls: tuple[ast.Call, ...]
    values: tuple[Any, ...]
    code: types.CodeType


@dataclass(frozen=True, eq=False)
class Scope:
    """What the names of a line stand for. results: what each call in it gave, by the call's number."""

    names: dict[str, Any]
    globals: dict[str, Any]
    results: dict[int, Any]
    calls: tuple[ast.Call, ...]

    def result(self, node: ast.Call) -> Any:
        """What a call gave; None where that is not known."""
        return next((self.results.get(i) for i, each in enumerate(self.calls) if each is node), None)


@dataclass(frozen=True, eq=False)
class Assigned:
    """A line: the number of its value, the expression that gives it, and the scope of that. name: what it assigns."""

    ref: int
    node: ast.expr
    scope: Scope
    name: str
    forward: bool


@dataclass
class Recording:
    """The lines of a layer's forward and backward with their values.

    values: of each number. given: the names of what the layer was given: ("param", path), "x", "d_out". out, dx: the
    numbers of these. names: the name under which a value was first assigned. stacked: how many axes `vmap` or `scan`
    added in front. factors: of each parameter, by its path; `numbered` says which numbers their arrays have.
    """

    lines: list[Assigned] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)
    given: dict[int, tuple[str, tuple]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    stacked: dict[int, int] = field(default_factory=dict)
    factors: dict[tuple, Factor] = field(default_factory=dict)
    grads: dict[tuple, Any] = field(default_factory=dict)
    refs: dict[int, int] = field(default_factory=dict)
    out: int = -1
    dx: int = -1

    def number(self, value: Any) -> int | None:
        """The number of an array; None for one that was not kept."""
        return self.refs.get(id(value))


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


class Recorder:
    """Runs functions and keeps the values of their lines in a `Recording`."""

    def __init__(self):
        self.recording = Recording()
        self.alive: list[Any] = []
        self.arrays: list[dict[int, Any]] = [{}]
        self.forward = True
        self.opened: dict[int, Callable] = {}

    def ref(self, value: Any) -> int:
        """The number of an array, a new one for a new array."""
        known = self.recording.refs
        if id(value) not in known:
            known[id(value)] = len(self.alive)
            self.alive.append(value)
            self.arrays[-1][known[id(value)]] = value
        return known[id(value)]

    def nested(self, f: Callable) -> Callable:
        """A function that gives the values kept while it runs beside its own."""

        def run(*args, **kwargs):
            self.arrays.append({})
            try:
                result = f(*args, **kwargs)
                return result, self.arrays[-1]
            finally:
                self.arrays.pop()

        return run

    def keep(self, arrays: dict[int, Any]) -> None:
        """Values of an inner function, with one axis more."""
        for ref, value in arrays.items():
            self.arrays[-1][ref] = value
            self.recording.stacked[ref] = self.recording.stacked.get(ref, 0) + 1

    def vmap(self, f: Callable, in_axes: Any = 0, out_axes: Any = 0, **options: Any) -> Callable:
        """`jax.vmap` of an opened function."""

        def mapped(*args):
            run = self.nested(self.opens(f))
            result, arrays = jax.vmap(run, in_axes, (out_axes, 0), **options)(*args)
            self.keep(arrays)
            return result

        return mapped

    def scan(self, f: Callable, init: Any, xs: Any = None, *args: Any, **options: Any) -> Any:
        """`jax.lax.scan` of an opened function."""
        run = self.nested(self.opens(f))

        def step(carry, x):
            (carry, y), arrays = run(carry, x)
            return carry, (y, arrays)

        carry, (ys, arrays) = jax.lax.scan(step, init, xs, *args, **options)
        self.keep(arrays)
        return carry, ys

    def opens(self, f: Any) -> Callable:
        """The function to be called in another's place: opened, where its source is the author's."""
        if f is jax.vmap:
            return self.vmap
        if f is jax.lax.scan:
            return self.scan
        if f is jax.lax.optimization_barrier:
            return lambda operand: operand
        if isinstance(f, functools.partial):
            return functools.partial(self.opens(f.func), *f.args, **f.keywords)
        if isinstance(f, types.MethodType):
            return types.MethodType(self.opens(f.__func__), f.__self__)
        plain = author_function(f)
        if plain is None:
            return f
        if id(plain) not in self.opened:
            source = source_of(plain.__code__)
            self.opened[id(plain)] = compiled(plain, source, self) if source is not None else f
            self.alive.append(plain)
        return self.opened[id(plain)]

    def enter(self, function: types.FunctionType, names: dict[str, Any]) -> Frame:
        """A call of an opened function begins."""
        return Frame(self, source_of(function.__code__), function.__globals__, dict(names))


class Frame:
    """One call of an opened function: what its lines gave so far."""

    def __init__(self, recorder: Recorder, source: Source | None, names_around: dict[str, Any], names: dict[str, Any]):
        assert source is not None
        self.recorder, self.source, self.globals, self.names = recorder, source, names_around, names
        self.results: dict[int, Any] = {}

    def call(self, index: int, f: Any) -> Callable:
        """What is called in a function's place."""
        inner = self.recorder.opens(f)

        def called(*args, **kwargs):
            result = inner(*args, **kwargs)
            self.results[index] = result
            return result

        return called

    def assigned(self, index: int, names: dict[str, Any]) -> None:
        """The statement of this number was run."""
        statement = self.source.values[index]
        targets = targets_of(statement)
        before = {**names, **{name: self.names[name] for name, _ in targets if name in self.names}}
        scope = self.scope(before)
        for name, node in targets:
            if is_array(names.get(name)):
                self.line(names[name], node, scope, name)
        self.factors(statement, scope)
        self.names = dict(names)

    def returned(self, index: int, value: Any, names: dict[str, Any]) -> Any:
        """A value is returned: its parts are lines too, where no line before gave them."""
        statement = self.source.values[index]
        node = statement.body if isinstance(statement, ast.Lambda) else statement.value
        scope = self.scope(dict(names))
        parts = zip(node.elts, value, strict=True) if isinstance(node, ast.Tuple) else [(node, value)]
        for each, part in parts:
            if is_array(part):
                self.line(part, each, scope, "")
        self.factors(statement, scope)
        return value

    def scope(self, names: dict[str, Any]) -> Scope:
        """What names stand for now. Their arrays are kept, since a line may name them."""
        for value in names.values():
            for leaf in jax.tree.leaves(value):
                if is_array(leaf):
                    self.recorder.ref(leaf)
        return Scope(names, self.globals, dict(self.results), self.source.calls)

    def line(self, value: Any, node: ast.expr, scope: Scope, name: str) -> None:
        """A line, unless its value was there before."""
        recording = self.recorder.recording
        ref = self.recorder.ref(value)
        if name and ref not in recording.given:
            recording.names.setdefault(ref, name)
        if ref in recording.given or any(each.ref == ref for each in recording.lines):
            return
        recording.lines.append(Assigned(ref, node, scope, name, self.recorder.forward))

    def factors(self, statement: ast.AST, scope: Scope) -> None:
        """What factors are made of are lines, where no line before gave them."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(factor := scope.result(node), Factor):
                for each, value in zip(node.args, vars(factor).values(), strict=False):
                    if is_array(value) and not isinstance(each, ast.Name):
                        self.line(value, each, scope, "")


# --------------------------------------------------------------------------------------------- source to code


def author_function(f: Any) -> types.FunctionType | None:
    """The plain function of something called, if an author wrote it; None for what a library made."""
    plain = inspect.unwrap(f) if callable(f) and not isinstance(f, type) else None
    if not isinstance(plain, types.FunctionType) or inspect.isgeneratorfunction(plain):
        return None
    return None if (plain.__module__ or "").split(".")[0] in LIBRARIES else plain


@functools.lru_cache(maxsize=1024)
def source_of(code: types.CodeType) -> Source | None:
    """A function's source with calls in it that keep its values; None where Python has no source of it."""
    lines = linecache.getlines(code.co_filename)
    tree = parsed("".join(lines)) if lines else None
    found: list[Any] = [each for each in ast.walk(tree) if is_source(each, code)] if tree is not None else []
    if len(found) > 1:  # lambdas of one line: the one whose code is the same
        found = [each for each in found if bare_code(each).co_code == code.co_code][:1]
    if not found:
        return None
    node = found[0]
    twin = copy.deepcopy(node)
    marked = Marking({id(new): old for old, new in zip(ast.walk(node), ast.walk(twin), strict=True)})
    made = marked.function(twin)
    outer = [*code.co_freevars, RECORD]
    return Source(node, tuple(marked.calls), tuple(marked.values), inner_code(made, outer, code))


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


def bare_code(node: ast.Lambda) -> types.CodeType:
    """A lambda's code as Python compiles it."""
    module = compile(ast.fix_missing_locations(ast.Expression(node)), "", "eval")
    return next(each for each in module.co_consts if isinstance(each, types.CodeType))


def inner_code(node: ast.FunctionDef | ast.Lambda, outer: list[str], code: types.CodeType) -> types.CodeType:
    """The code of a function whose free names are `outer`."""
    is_lambda = isinstance(node, ast.Lambda)
    body: list[Any] = [ast.Return(node)] if is_lambda else [node, ast.Return(ast.Name(node.name, ast.Load()))]
    around = ast.FunctionDef("around", arguments(outer), body, [])
    module = compile(ast.fix_missing_locations(ast.Module([around], [])), code.co_filename, "exec")
    [made] = [each for each in module.co_consts if isinstance(each, types.CodeType)]
    return next(each for each in made.co_consts if isinstance(each, types.CodeType) and each.co_name == code.co_name)


def arguments(names: list[str]) -> ast.arguments:
    """Arguments of these names."""
    return ast.arguments([], [ast.arg(name) for name in names], None, [], [], None, [])


def compiled(function: types.FunctionType, source: Source, recorder: Recorder) -> Callable:
    """The function that keeps its values with a recorder."""
    begin = functools.partial(recorder.enter, function)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells[RECORD] = types.CellType(begin)
    closure = tuple(cells[name] for name in source.code.co_freevars)
    made = types.FunctionType(source.code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def targets_of(statement: Any) -> list[tuple[str, ast.expr]]:
    """The names that a statement assigns, each with the expression of its value."""
    if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
        old = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
        return [(statement.target.id, ast.copy_location(ast.BinOp(old, statement.op, statement.value), statement))]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value is not None:
        return [(statement.target.id, statement.value)]
    found = []
    for target in statement.targets if isinstance(statement, ast.Assign) else ():
        value = statement.value
        if isinstance(target, ast.Name):
            found.append((target.id, value))
        elif isinstance(target, ast.Tuple | ast.List):
            pieces = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            found += [(each.id, piece) for each, piece in zip(target.elts, pieces, strict=False)
                      if isinstance(each, ast.Name)]  # fmt: skip
    return found


class Marking(ast.NodeTransformer):
    """Puts into a copy of a function's tree the calls that keep its values. origin: the nodes that it is a copy of."""

    def __init__(self, origin: dict[int, ast.AST]):
        self.origin = origin
        self.calls: list[Any] = []
        self.values: list[ast.AST] = []

    def function(self, node: ast.FunctionDef | ast.Lambda) -> ast.FunctionDef | ast.Lambda:
        """A function with its own body marked; functions inside it stay as they are."""
        begin = ast.Call(ast.Name(RECORD, ast.Load()), [names_here()], [])
        if isinstance(node, ast.Lambda):
            value = self.returning(node, self.visit(node.body))
            inside = ast.Call(ast.Lambda(arguments([FRAME]), value), [begin], [])
            return ast.copy_location(ast.Lambda(without_defaults(node.args), inside), node)
        body: list[ast.stmt] = [ast.Assign([ast.Name(FRAME, ast.Store())], begin)]
        for statement in node.body:
            made = self.visit(statement)
            body += made if isinstance(made, list) else [made]
        return ast.copy_location(ast.FunctionDef(node.name, without_defaults(node.args), body, []), node)

    def visit_FunctionDef(self, node):
        return node

    def visit_Lambda(self, node):
        return node

    def visit_Call(self, node):
        self.calls.append(self.origin[id(node)])
        index = ast.Constant(len(self.calls) - 1)
        called = ast.Call(in_frame("call"), [index, self.visit(node.func)], [])
        keywords = [ast.keyword(each.arg, self.visit(each.value)) for each in node.keywords]
        return ast.copy_location(ast.Call(called, [self.visit(each) for each in node.args], keywords), node)

    def assigning(self, node):
        """A statement, and after it the call that keeps what it gave."""
        self.values.append(self.origin[id(node)])
        keep = ast.Call(in_frame("assigned"), [ast.Constant(len(self.values) - 1), names_here()], [])
        fields = {name: getattr(node, name, None) for name in node._fields}
        if node.value is not None:
            fields["value"] = self.visit(node.value)
        return [ast.copy_location(type(node)(**fields), node), ast.copy_location(ast.Expr(keep), node)]

    visit_Assign = visit_AugAssign = visit_AnnAssign = assigning  # noqa: N815 - named by ast

    def visit_Return(self, node):
        return ast.copy_location(ast.Return(self.returning(node, self.visit(node.value))), node) if node.value else node

    def returning(self, node: ast.AST, value: ast.expr) -> ast.Call:
        """A value that is returned, kept."""
        self.values.append(self.origin[id(node)])
        return ast.Call(in_frame("returned"), [ast.Constant(len(self.values) - 1), value, names_here()], [])


def names_here() -> ast.Call:
    """locals()."""
    return ast.Call(ast.Name("locals", ast.Load()), [], [])


def in_frame(name: str) -> ast.Attribute:
    """A method of the frame."""
    return ast.Attribute(ast.Name(FRAME, ast.Load()), name, ast.Load())


def without_defaults(args: ast.arguments) -> ast.arguments:
    """Arguments without their defaults and annotations: the function that is made has the defaults."""

    def bare(arg: Any) -> Any:
        return None if arg is None else ast.arg(arg.arg)

    return ast.arguments(
        [bare(each) for each in args.posonlyargs], [bare(each) for each in args.args], bare(args.vararg),
        [bare(each) for each in args.kwonlyargs], [None] * len(args.kwonlyargs), bare(args.kwarg), [],
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- recording


def record(layer: Layer, params: Tree, x: Any, d_out: Any, positions: int = 0) -> Recording:
    """A layer's lines at one example, in float64.

    positions: how many leading axes of x the layer is applied along; the values then have them in front.
    """
    made: list[Recording] = []

    def one(params, x, d_out):
        recorder = Recorder()
        recording = recorder.recording
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            recording.given[recorder.ref(leaf)] = ("param", path)
        recording.given[recorder.ref(x)] = ("x", ())
        out, saved = recorder.opens(layer.forward)(params, x)
        recording.out = recorder.ref(out)
        recorder.forward = False
        recording.given.setdefault(recorder.ref(d_out), ("d_out", ()))
        dx, passing = recorder.opens(layer.backward)(params, saved, d_out, CAPTURE)
        recording.dx = recorder.ref(dx) if is_array(dx) else -1
        leaves = jax.tree_util.tree_leaves_with_path(passing.factors, is_leaf=is_factor)
        leaves = [(path, factor) for path, factor in leaves if is_factor(factor)]
        for path, factor in leaves:
            recording.factors[path] = factor
            for leaf in jax.tree.leaves(factor):
                recorder.ref(leaf)
        made.append(recording)
        return recorder.arrays[-1], [factor.multiply() for _, factor in leaves]

    run = one
    for _ in range(positions):
        run = jax.vmap(run, (None, 0, 0))
    with jax.enable_x64(True), plain_forms():
        wide = jax.tree.map(in_float64, (params, x, d_out))
        values, grads = jax.jit(run)(*wide)
        recording = made[-1]
        recording.values = {ref: np.asarray(value) for ref, value in values.items()}
        recording.grads = {
            path: np.asarray(value).sum(tuple(range(positions)))
            for path, value in zip(recording.factors, grads, strict=True)
        }
    for ref in recording.values:
        recording.stacked[ref] = recording.stacked.get(ref, 0) + positions
    for ref, (kind, _) in recording.given.items():
        if kind == "param":  # a parameter is one for all positions
            recording.values[ref] = recording.values[ref].reshape(-1, *recording.values[ref].shape[positions:])[0]
            recording.stacked[ref] = 0
    return recording


def in_float64(value: Any) -> Any:
    """A float in float64; what is whole stays."""
    value = np.asarray(value)
    return value.astype(np.float64) if jax.numpy.issubdtype(value.dtype, jax.numpy.inexact) else value
