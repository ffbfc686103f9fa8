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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxnet.factors import Factor, is_factor
from jaxnet.layer import Layer, Reading, Tree
from jaxnet.lowering import plain_forms

LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "optax", "chex", "jaxtyping", "beartype"} | set(sys.stdlib_module_names)
RECORD, FRAME = "__record__", "__frame__"
CLOSE = 1e-9  # of the largest entry: rounding of sums in another order, in float64
OWN = 1  # how many calls deep a layer's own forward and backward are: `leaf` calls them
SAME = {"astype", "asarray", "array", "reshape", "ravel", "squeeze", "expand_dims", "broadcast_to", "stop_gradient",
        "convert_element_type", "block_until_ready", "float32", "float64", "copy"}  # fmt: skip
"""Functions that change no number, only its dtype or the shape."""
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
    """A line: the number of its value, the expression that gives it, and the scope of that.

    name: what it assigns. part: whether the expression gives several values, of which this is one.
    """

    ref: int
    node: ast.expr
    scope: Scope
    name: str
    forward: bool
    part: bool = False


@dataclass
class Recording:
    """The lines of a layer's forward and backward with their values; each array has a number.

    - `values`: of each number; `others`: at other parameters and another d_out, since numbers may be equal by chance.
    - `given`: what the layer was given: ("param", path), "x", "d_out". `out`, `dx`: their numbers.
    - `names`: the names that values are assigned to; `depths`: how many calls deep; `nodes`: by what expression.
    - `stacked`: how many axes `vmap` or `scan` added in front. `early`: the numbers of the forward pass.
    - `same`: of a value in another shape or dtype, the number of the one that it was made of.
    - `moved`: of a value that is carried from step to step, the one that it was, and how many steps later.
    - `factors`: of each parameter, by its path; `grads`: what they give.
    - `slopes`: ∂C/∂ of the forward values that a line names, by jax.grad; `other_slopes`: at the other parameters.
    """

    lines: list[Assigned] = field(default_factory=list)
    values: dict[int, Any] = field(default_factory=dict)
    given: dict[int, tuple[str, tuple]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, tuple[ast.expr, str]] = field(default_factory=dict)
    stacked: dict[int, int] = field(default_factory=dict)
    factors: dict[tuple, Factor] = field(default_factory=dict)
    grads: dict[tuple, Any] = field(default_factory=dict)
    refs: dict[int, int] = field(default_factory=dict)
    early: set[int] = field(default_factory=set)
    same: dict[int, int] = field(default_factory=dict)
    moved: dict[int, tuple[int, int]] = field(default_factory=dict)
    slopes: dict[int, Any] = field(default_factory=dict)
    others: dict[int, Any] = field(default_factory=dict)
    other_slopes: dict[int, Any] = field(default_factory=dict)
    out: int = -1
    dx: int = -1

    def number(self, value: Any) -> int | None:
        """The number of an array; None for one that was not kept."""
        found = self.refs.get(id(value))
        return None if found is None else self.root(found)

    def alike(self, ref: int, other: int, steps: int = 0) -> bool:
        """Whether two values hold the same numbers, or those of so many steps later."""
        for values in (self.values, self.others):
            one, two = values[ref], values[other]
            if steps and one.shape != two.shape:
                return False
            one, two = (one[1:], two[:-1]) if steps < 0 else (one[:-1], two[1:]) if steps > 0 else (one, two)
            if not alike(one, two):
                return False
        return True

    def factor_values(self, factor: Factor) -> Factor:
        """A factor with the values of its arrays in their places."""
        return jax.tree.map(lambda leaf: self.values[self.refs[id(leaf)]], factor)

    def root(self, ref: int) -> int:
        """The number of the value whose dtype or shape was changed to make this one; its own if it is no such."""
        while ref in self.same:
            ref = self.same[ref]
        return ref


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree; what can be gone through only once is left alone."""
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Iterator))


def is_float(value: Any) -> bool:
    """Whether an array is of floats, so that there is a derivative by it."""
    return jax.numpy.issubdtype(value.dtype, jax.numpy.inexact)


class Recorder:
    """Runs functions and keeps the values of their lines in a `Recording`."""

    def __init__(self):
        self.recording = Recording()
        self.alive: list[Any] = []
        self.arrays: list[dict[int, Any]] = [{}]
        self.forward = True
        self.opened: dict[int, Callable] = {}
        self.depth = 0
        self.probed: list[tuple[int, Any]] = []
        self.probes: Sequence[Any] | None = None

    def ref(self, value: Any) -> int:
        """The number of an array, a new one for a new array."""
        known = self.recording.refs
        if id(value) not in known:
            known[id(value)] = len(self.alive)
            self.alive.append(value)
            if self.forward:
                self.recording.early.add(known[id(value)])
            self.arrays[-1][known[id(value)]] = value
        return known[id(value)]

    def root(self, value: Any) -> int:
        """The number of the value that an array was before its dtype or shape was changed."""
        return self.recording.root(self.ref(value))

    def unchanged(self, result: Any, of: Any) -> None:
        """Says that one array is another in a new dtype or shape."""
        if is_array(result) and is_array(of) and result is not of and result.size == of.size:
            self.recording.same.setdefault(self.ref(result), self.ref(of))

    def probe(self, value: Any) -> Any:
        """A forward value that a line names, with its probe added, a zero by which the cost is differentiated."""
        if not self.forward or len(self.arrays) > 1 or not is_array(value) or not is_float(value):
            return value
        self.probed.append((self.root(value), jax.typeof(value)))
        return value if self.probes is None else value + self.probes[len(self.probed) - 1]

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

    def call(self, index: int, f: Any, names: dict[str, Any]) -> Callable:
        """What is called in a function's place."""
        inner = self.recorder.opens(f)

        def called(*args, **kwargs):
            if inner is not f:  # what the function takes has a line too, where it is made here
                nodes = self.source.calls[index].args
                scope = Scope({**self.names, **names}, self.globals, dict(self.results), self.source.calls)
                for node, arg in zip(nodes, args, strict=False):
                    if not any(isinstance(each, ast.Starred) for each in nodes):
                        self.line(arg, node, scope, "")
            self.recorder.depth += 1
            result = inner(*args, **kwargs)
            self.recorder.depth -= 1
            func = self.source.calls[index].func
            if (func.attr if isinstance(func, ast.Attribute) else getattr(f, "__name__", "")) in SAME:
                self.recorder.unchanged(result, getattr(f, "__self__", *args[:1]))
            if inner is f and is_array(result) and is_float(result):
                self.recorder.ref(result)
            self.results[index] = None if index in self.results else result  # several in a comprehension: not one
            return result

        return called

    def assigned(self, index: int, value: Any, names: dict[str, Any]) -> Any:
        """A value is assigned; `names` as they were before."""
        statement = self.source.values[index]
        scope = self.scope(names)
        if isinstance(value, Iterator):
            value = tuple(value)
        for name, node, part in targets_of(statement, value):
            self.line(part, node, scope, name, node is statement.value and part is not value)
        self.factors(statement, scope)
        return tuple(map(self.recorder.probe, value)) if type(value) is tuple else self.recorder.probe(value)

    def returned(self, index: int, value: Any, names: dict[str, Any]) -> Any:
        """A value is returned: its parts are lines too, where no line before gave them."""
        statement = self.source.values[index]
        node = statement.body if isinstance(statement, ast.Lambda) else statement.value
        scope = self.scope(dict(names))
        for each, part in parts_of(node, value):
            self.line(part, each, scope, "")
        self.factors(statement, scope)
        return value

    def scope(self, names: dict[str, Any]) -> Scope:
        """What names stand for now. Their arrays are kept, since a line may name them."""
        for leaf in leaves(names):
            if is_array(leaf):
                self.recorder.ref(leaf)
        self.names, results, self.results = dict(names), self.results, {}
        return Scope(dict(names), self.globals, results, self.source.calls)

    def line(self, value: Any, node: ast.expr, scope: Scope, name: str, part: bool = False) -> None:
        """A line, unless its value was there before; then another name for it."""
        if not is_array(value) or any(value is leaf for leaf in leaves(scope.names)):
            return
        recorder = self.recorder
        recording, ref = recorder.recording, recorder.root(value)
        known = next((each for each in recording.lines if each.ref == ref), None)
        if ref in recording.given:
            return
        if name and (known is None or known.forward == recorder.forward):
            deep = recorder.depth if recorder.depth <= OWN else OWN + 1
            if deep < recording.depths.get(
                ref, OWN + 2
            ):  # the layer's own name for a value, or the innermost function's
                recording.names[ref], recording.depths[ref], recording.nodes[ref] = name, deep, (node, name)
        if known is None:
            recording.lines.append(Assigned(ref, node, scope, name, recorder.forward, part))

    def factors(self, statement: ast.AST, scope: Scope) -> None:
        """What factors are made of are lines, where no line before gave them."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(factor := scope.result(node), Factor):
                for each, value in zip(node.args, vars(factor).values(), strict=False):
                    if not isinstance(each, ast.Name):
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


def targets_of(statement: Any, value: Any) -> Iterator[tuple[str, ast.expr, Any]]:
    """The names that a statement assigns, each with the expression of its value and that value."""
    for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
        if isinstance(target, ast.Name):
            yield target.id, right_side(statement), value
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, tuple | list):
            node = statement.value
            nodes = node.elts if isinstance(node, ast.Tuple) else [node] * len(target.elts)
            for each, piece, part in zip(target.elts, nodes, value, strict=False):
                if isinstance(each, ast.Name):
                    yield each.id, piece, part


def parts_of(node: Any, value: Any) -> Iterator[tuple[ast.expr, Any]]:
    """The values in what is returned, each with its expression."""
    if isinstance(node, ast.Tuple | ast.List) and isinstance(value, tuple | list):
        for each, part in zip(node.elts, value, strict=False):
            yield from parts_of(each, part)
    elif isinstance(node, ast.Dict) and isinstance(value, dict):
        for each, part in zip(node.values, value.values(), strict=False):
            yield from parts_of(each, part)
    else:
        yield node, value


def right_side(statement: Any) -> Any:
    """The expression that a statement assigns: of x += y, x + y."""
    if not isinstance(statement, ast.AugAssign):
        return statement.value
    assert isinstance(statement.target, ast.Name)
    old = ast.copy_location(ast.Name(statement.target.id, ast.Load()), statement)
    return ast.copy_location(ast.BinOp(old, statement.op, statement.value), statement)


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
        called = ast.Call(in_frame("call"), [index, self.visit(node.func), names_here()], [])
        keywords = [ast.keyword(each.arg, self.visit(each.value)) for each in node.keywords]
        return ast.copy_location(ast.Call(called, [self.visit(each) for each in node.args], keywords), node)

    def assigning(self, node):
        """A statement whose value is kept on its way."""
        if node.value is None or (isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name)):
            return self.generic_visit(node)
        self.values.append(self.origin[id(node)])
        targets: list[Any] = node.targets if isinstance(node, ast.Assign) else [node.target]
        index, value = ast.Constant(len(self.values) - 1), self.visit(right_side(node))
        return ast.copy_location(
            ast.Assign(targets, ast.Call(in_frame("assigned"), [index, value, names_here()], [])), node
        )

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
        slopes = slopes_of(layer, params, x, d_out, [each for _, each in recorder.probed])
        recording.slopes = {ref: slope for (ref, _), slope in zip(recorder.probed, slopes, strict=True)}
        made.append(recording)
        return recorder.arrays[-1], [factor.multiply() for _, factor in leaves], recording.slopes

    run = one
    for _ in range(positions):
        run = jax.vmap(run, (None, 0, 0))
    with jax.enable_x64(True), plain_forms():
        wide = jax.tree.map(in_float64, (params, x, d_out))
        level: Any = {"xla_backend_optimization_level": 0}  # it runs twice alone
        run = jax.jit(run).lower(*wide).compile(level)
        values, grads, slopes = jax.device_get(run(*wide))
        others, _, other_slopes = jax.device_get(run(elsewhere(wide[0], 1), wide[1], elsewhere(wide[2], 2)))
        recording = made[-1]
        recording.values, recording.slopes = values, slopes
        recording.others, recording.other_slopes = others, other_slopes
        recording.grads = {
            path: np.asarray(value).sum(tuple(range(positions)))
            for path, value in zip(recording.factors, grads, strict=True)
        }
    for ref in recording.values:
        recording.stacked[ref] = recording.stacked.get(ref, 0) + positions
    link(recording)
    for ref, (kind, _) in recording.given.items():
        if kind == "param":  # a parameter is one for all positions
            recording.values[ref] = recording.values[ref].reshape(-1, *recording.values[ref].shape[positions:])[0]
            recording.stacked[ref] = 0
    return recording


def elsewhere(tree: Tree, seed: int) -> Tree:
    """The same tree with other floats, near by."""
    draw = np.random.default_rng(seed)

    def near(value):
        value = np.asarray(value)
        return (
            value * draw.uniform(1, 1.5, value.shape) + draw.uniform(0, 0.5, value.shape) if is_float(value) else value
        )

    return jax.tree.map(near, tree)


def link(recording: Recording) -> None:
    """Finds the line of each value that came another way than by a line.

    A value is that of a line where it has the same numbers: what a scan takes and gives, what backward computes again.
    It is that of the step before, or after, where it has them one step later, or earlier: what a scan carries.
    """
    lines = {line.ref: line for line in recording.lines}
    sized: dict[int, list[int]] = {}
    for ref in [*recording.given, *lines]:
        if ref in recording.values:
            sized.setdefault(recording.values[ref].size, []).append(ref)
    for ref, value in recording.values.items():
        if ref in recording.given or recording.root(ref) != ref or not is_float(value):
            continue
        own = lines.get(ref)
        made = None if own is None or own.part or isinstance(own.node, ast.Subscript) else own  # by a line
        known = [
            each
            for each in sized.get(value.size, ())
            if each != ref
            and recording.root(each) != ref
            and (each in recording.given or not lines[each].part or lines[each].forward)
        ]
        if ref in recording.early:
            known = [each for each in known if each in recording.early]
        if made is not None:
            known = [each for each in known if each in lines and lines[each].forward and not made.forward]
        same = next((each for each in known if recording.alike(ref, each)), None)
        if same is not None:
            recording.same[ref] = recording.root(same)
        elif value.ndim > 1 and len(value) > 1 and (made is None or joined(made.node)):
            moved = ((each, steps) for each in known for steps in (-1, 1) if recording.alike(ref, each, steps))
            if (found := next(moved, None)) is not None:
                recording.moved[ref] = found
    recording.out, recording.dx = recording.root(recording.out), recording.root(recording.dx)


def joined(node: ast.expr) -> bool:
    """Whether an expression puts pieces together."""
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "concatenate"


def alike(value: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, not all of them 0, but for rounding."""
    if value.shape != other.shape:
        value, other = value.squeeze(), other.squeeze()
    return value.shape == other.shape and bool(np.any(value)) and close(value, other)


def close(got: np.ndarray, expected: np.ndarray, beside: float = 0.0) -> bool:
    """Whether two arrays are the same but for rounding. beside: a size of what was added up to make them."""
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0)), beside)
    return bool(np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * (scale or 1), equal_nan=True))


def slopes_of(layer: Layer, params: Tree, x: Any, d_out: Any, types_of: list[Any]) -> list[Any]:
    """∂C/∂ of every forward value that a line names, in their order, by jax.grad: C is ⟨out, d_out⟩."""

    def cost(probes):
        recorder = Recorder()
        recorder.probes = probes
        return jax.numpy.vdot(recorder.opens(layer.forward)(params, x)[0], d_out)

    return jax.grad(cost)([jax.numpy.zeros(each.shape, each.dtype) for each in types_of])


def in_float64(value: Any) -> Any:
    """A float in float64; what is whole stays."""
    value = np.asarray(value)
    return value.astype(np.float64) if jax.numpy.issubdtype(value.dtype, jax.numpy.inexact) else value
