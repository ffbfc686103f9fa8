"""A layer's own forward and backward, run with each operation of the author's source kept, and its value.

The functions are taken from their source and compiled again, with a call in place of each operator, call, index and
assignment. It runs the operation and keeps what it took, what it gave, and the name that the line assigns. Functions
that they call are opened likewise, those of libraries are not. Inside `jax.vmap` and `jax.lax.scan` the values come
back with the axis that these add.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import linecache
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.program_operations import from_program
from jaxnet.factors import Factor, is_factor
from jaxnet.layer import EXAMPLES, Layer, Reading, Tree
from jaxnet.lowering import plain_forms

LIBRARIES = {"jax", "jaxlib", "numpy", "scipy", "optax", "chex", "jaxtyping", "beartype"} | set(sys.stdlib_module_names)
RECORDER = "__recorder__"
CLOSE = 1e-9  # of the largest entry: rounding of sums in another order, in float64
OWN = 1  # how many calls deep a layer's own forward and backward are: `leaf` calls them
SAME = {"astype", "asarray", "array", "reshape", "ravel", "squeeze", "expand_dims", "broadcast_to", "stop_gradient",
        "convert_element_type", "block_until_ready", "float32", "float64", "copy"}  # fmt: skip
"""Functions that change no number, only its dtype or the shape."""
FUNCTIONS = {"exp": "exp", "log": "ln", "sqrt": "√", "tanh": "tanh", "sigmoid": "σ", "logistic": "σ", "abs": "abs",
             "absolute": "abs", "sign": "sign", "relu": "relu", "softplus": "softplus", "silu": "silu", "gelu": "gelu",
             "erf": "erf", "sin": "sin", "cos": "cos", "log1p": "log1p", "expm1": "expm1",
             "softmax": "softmax"}  # fmt: skip
"""What a library's function of one array is called in an equation."""
CAPTURE = Reading(lambda passing: passing, out_axes=0)
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


@dataclass(frozen=True)
class Array:
    """An array among the operands of an operation: its number, and its shape at one position or step."""

    ref: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class RecordedOperation:
    """An operator or a library's function, by name, with its operands: an `Array` in the place of each array.

    ref: the number of its value. part: whether it gives several values, of which this is one.
    """

    ref: int
    name: str
    args: tuple
    options: dict[str, Any]
    forward: bool
    part: bool = False


@dataclass
class Recording:
    """The operations of a layer's forward and backward with their values; each array has a number.

    - `operations`: by the number of what they give, in their order.
    - `values`: of each number; `others`: at other parameters and another d_out, since numbers may be equal by chance.
    - `given`: what the layer was given: ("param", path), "x", "d_out". `out`, `dx`: their numbers.
    - `names`: the names that values are assigned to; `depths`: how many calls deep; `lines`: by which line.
    - `stacked`: how many axes `vmap` or `scan` added in front. `early`: the numbers of the forward pass.
    - `same`: of a value in another shape or dtype, the number of the one that it was made of.
    - `moved`: of a value that is carried from step to step, the one that it was, and how many steps later.
    - `factors`: of each parameter, by its path; `grads`: what they give.
    - `slopes`: ∂C/∂ of the forward values that a line names, by jax.grad; `other_slopes`: at the other parameters.
    - `roots`: of the square root of a number of Python's that number.
    - `outside`: name, depth and line of what `vmap` gives, until its inner value is found.
    - `calls`: of what an author's function gives, its name and what it takes.
    """

    operations: dict[int, RecordedOperation] = field(default_factory=dict)
    values: dict[int, Any] = field(default_factory=dict)
    given: dict[int, tuple[str, tuple]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    depths: dict[int, int] = field(default_factory=dict)
    lines: dict[int, tuple] = field(default_factory=dict)
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
    roots: dict[float, float] = field(default_factory=dict)
    outside: dict[int, tuple[str, int, tuple]] = field(default_factory=dict)
    calls: dict[int, tuple[str, tuple]] = field(default_factory=dict)
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

    def root(self, ref: int) -> int:
        """The number of the value whose dtype or shape was changed to make this one; its own if it is no such."""
        while ref in self.same:
            ref = self.same[ref]
        return ref

    def operands(self, ref: int) -> Iterator[int]:
        """The numbers of the arrays that an operation takes."""
        made = self.operations[ref]
        yield from (self.root(each.ref) for each in arrays_in((made.args, made.options)))

    def varies(self, ref: int) -> bool:
        """Whether a value depends on what the layer was given."""
        found = [self.root(ref)]
        for each in found:  # which grows: a value that is linked to an earlier one may be among its own operands
            found += (of for of in self.operands(each) if of not in found) if each in self.operations else ()
        return not self.given.keys().isdisjoint(found)

    def made_of(self, ref: int) -> Iterator[int]:
        """The numbers of the values in one's expression: those that it takes, and theirs where they have no name."""
        for each in self.operands(ref):
            yield each
            if each in self.operations and each not in self.names:
                yield from self.made_of(each)


def arrays_in(operands: Any) -> Iterator[Array]:
    """The arrays among operands, at any depth."""
    if isinstance(operands, Array):
        yield operands
    elif isinstance(operands, tuple | list | dict):
        for each in operands.values() if isinstance(operands, dict) else operands:
            yield from arrays_in(each)


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


def is_float(value: Any) -> bool:
    """Whether an array is of floats, so that there is a derivative by it."""
    return jax.numpy.issubdtype(value.dtype, jax.numpy.inexact)


class Recorder:
    """Runs functions and keeps their operations in a `Recording`."""

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

    def numbered(self, operands: Any) -> Any:
        """Operands with an `Array` in the place of each array."""
        if is_array(operands):
            return Array(self.ref(operands), operands.shape)
        if type(operands) in (tuple, list):
            return type(operands)(map(self.numbered, operands))
        return operands

    # ------------------------------------------------------------------------------- called by the author's functions

    slice = staticmethod(slice)

    def operator(self, kind: str, *operands: Any) -> Any:
        """An operator of Python."""
        name, run = OPERATORS[kind]
        return self.kept(name, run(*operands), operands, {})

    def method(self, of: Any, name: str, *args: Any, **options: Any) -> Any:
        """A method of an array, or any other function that is an attribute."""
        if is_array(of):
            return self.kept(name, getattr(of, name)(*args, **options), (of, *args), options)
        found = getattr(of, name)
        if name == "get" and is_array(rows := getattr(of, "array", None)):  # W.at[i].get(…)
            return self.kept("getitem", found(*args, **options), (rows, getattr(of, "index", None)), {})
        return self.call(found, *args, **options)

    def call(self, f: Any, *args: Any, **options: Any) -> Any:
        """A call: of an opened function, or of a library's."""
        inner = self.opens(f)
        if inner is not f or getattr(f, "__module__", "") == __name__:
            self.depth += 1
            result = inner(*args, **options)
            self.depth -= 1
            if is_array(result):
                self.recording.calls.setdefault(self.root(result), (getattr(f, "__name__", ""), self.numbered(args)))
            return result
        result = f(*args, **options)
        if f is math.sqrt:
            self.recording.roots[result] = args[0]
        return self.kept(getattr(f, "__name__", ""), result, args, options)

    def kept(self, name: str, result: Any, args: tuple, options: dict[str, Any]) -> Any:
        """The result of an operation, kept where it is an array, or several."""
        several, taken = isinstance(result, tuple | list), self.numbered(args)
        chosen = {key: self.numbered(each) for key, each in options.items()}
        for each in result if several else (result,):
            if is_array(each) and id(each) not in self.recording.refs and any(arrays_in((taken, chosen))):
                ref = self.ref(each)
                self.recording.operations[ref] = RecordedOperation(ref, name, taken, chosen, self.forward, several)
                if name in SAME and is_array(args[0]) and each.size == args[0].size:
                    self.recording.same[ref] = self.ref(args[0])
        return result

    def assigned(self, names: Any, line: tuple, value: Any) -> Any:
        """A value is assigned to a name, or its parts to several."""
        if isinstance(value, Iterator):
            value = tuple(value)
        for name, part in named_parts(names, value):
            self.named(name, line, part)
        return tuple(map(self.probe, value)) if type(value) is tuple else self.probe(value)

    def named(self, name: str, line: tuple, value: Any) -> None:
        """The name of a value: the layer's own for it, or else that of the innermost function."""
        if not is_array(value):
            return
        recording, ref = self.recording, self.root(value)
        depth = min(self.depth, OWN + 1)
        if ref not in recording.operations and self.forward:
            recording.outside[ref] = (name, depth, (*line, name))
        if (ref in recording.operations and recording.operations[ref].forward == self.forward
                and depth < recording.depths.get(ref, OWN + 2)):  # fmt: skip
            recording.names[ref], recording.depths[ref], recording.lines[ref] = name, depth, (*line, name)

    def probe(self, value: Any) -> Any:
        """A forward value that a line names, with its probe added, a zero by which the cost is differentiated."""
        if not self.forward or len(self.arrays) > 1 or not is_array(value) or not is_float(value):
            return value
        self.probed.append((self.root(value), jax.typeof(value)))
        return value if self.probes is None else value + self.probes[len(self.probed) - 1]

    # ------------------------------------------------------------------------------------------- functions that are run

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
            inner = self.opens(f.__func__)
            return f if inner is f.__func__ else types.MethodType(inner, f.__self__)
        plain = author_function(f)
        if plain is None:
            return f
        if id(plain) not in self.opened:
            code = recording_code(plain.__code__)
            if code is not None:
                self.opened[id(plain)] = self.recording_function(plain, code)
            else:  # a function of the layer itself is then read off its program
                own = self.depth < OWN
                self.opened[id(plain)] = from_program(plain, self.kept, tuple(FUNCTIONS)) if own else f
            self.alive.append(plain)
        return self.opened[id(plain)]

    def recording_function(self, function: types.FunctionType, code: types.CodeType) -> Callable:
        """A function with the code that calls this recorder."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells[RECORDER] = types.CellType(self)
        closure = tuple(cells[name] for name in code.co_freevars)
        made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        made.__kwdefaults__ = function.__kwdefaults__
        return made


def named_parts(names: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The names of a target, `z` or `(a, b)`, each with its value."""
    if isinstance(names, str):
        yield names, value
    elif isinstance(names, tuple) and isinstance(value, tuple | list):
        for each, part in zip(names, value, strict=False):
            yield from named_parts(each, part)


# --------------------------------------------------------------------------------------------- source to code


def author_function(f: Any) -> types.FunctionType | None:
    """The plain function of something called, if an author wrote it; None for a library's."""
    plain = inspect.unwrap(f) if callable(f) and not isinstance(f, type) else None
    if not isinstance(plain, types.FunctionType) or inspect.isgeneratorfunction(plain):
        return None
    module = plain.__module__ or ""
    return None if module == __name__ or module.split(".")[0] in LIBRARIES else plain


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


# -------------------------------------------------------------------------------------------------- recording


def record(layer: Layer, params: Tree, x: Any, d_out: Any, positions: int = 0, training: bool = False) -> Recording:
    """A layer's operations at one example, in float64.

    positions: how many leading axes of x the layer is applied along; the values then have them in front. training:
    whether the first of these are the examples of a batch in training.
    """
    with jax.enable_x64(True), plain_forms():
        wide = jax.tree.map(in_float64, (params, x, d_out))
        leaves, structure = jax.tree.flatten(jax.tree.map(jax.typeof, wide))
        run, plan = compiled(layer, positions, training, tuple(leaves), structure)
        values, grads, slopes = jax.device_get(run(*wide))
        others, _, other_slopes = jax.device_get(run(elsewhere(wide[0], 1), wide[1], elsewhere(wide[2], 2)))
    summed = (np.asarray(value).sum(tuple(range(positions))) for value in grads)
    recording = replace(
        plan, values=values, slopes=slopes, others=others, other_slopes=other_slopes, same=dict(plan.same), moved={},
        names=dict(plan.names), depths=dict(plan.depths), lines=dict(plan.lines),
        stacked={ref: plan.stacked.get(ref, 0) + positions for ref in values},
        grads=dict(zip(plan.factors, summed, strict=True)),
    )  # fmt: skip
    if training:  # statistics of the batch are one for all examples
        same = [ref for ref, value in values.items() if len(value) > 1 and (value == value[:1]).all()
                and (others[ref] == others[ref][:1]).all()]  # fmt: skip
        for ref in same:
            values[ref], others[ref], recording.stacked[ref] = values[ref][0], others[ref][0], positions - 1
    link(recording)
    for ref, (kind, _) in recording.given.items():
        if kind == "param" and recording.stacked[ref]:  # a parameter is one for all positions
            value = recording.values[ref]
            recording.values[ref] = value.reshape(-1, *value.shape[recording.stacked[ref] :])[0]
            recording.stacked[ref] = 0
    return recording


@functools.lru_cache(maxsize=64)
def compiled(
    layer: Layer, positions: int, training: bool, types_of: tuple, structure: Any
) -> tuple[Callable, Recording]:
    """The program that gives all values of a layer, without optimisation, and the recording that lacks these values."""
    made: list[Recording] = []

    def one(params, x, d_out):
        recorder = Recorder()
        recording = recorder.recording
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            recording.given[recorder.ref(leaf)] = ("param", path)
        recording.given[recorder.ref(x)] = ("x", ())
        out, saved = recorder.opens(layer.forward)(params, x, None, training)
        recording.out = recorder.ref(out)
        recorder.forward = False
        recording.given.setdefault(recorder.ref(d_out), ("d_out", ()))
        dx, passing = recorder.opens(layer.backward)(params, saved, d_out, CAPTURE)
        recording.dx = recorder.ref(dx) if is_array(dx) else -1
        leaves = jax.tree_util.tree_leaves_with_path(passing.factors, is_leaf=is_factor)
        recording.factors = {path: factor for path, factor in leaves if is_factor(factor)}
        for leaf in jax.tree.leaves(list(recording.factors.values())):
            recorder.ref(leaf)

        def cost(probes):  # ⟨out, d_out⟩
            again = Recorder()
            again.probes = probes
            return jax.numpy.vdot(again.opens(layer.forward)(params, x, None, training)[0], d_out)

        slopes = jax.grad(cost)([jax.numpy.zeros(each.shape, each.dtype) for _, each in recorder.probed])
        made.append(recording)
        return (
            recorder.arrays[-1],
            [each.multiply() for each in recording.factors.values()],
            {ref: slope for (ref, _), slope in reversed([*zip(recorder.probed, slopes, strict=True)])},
        )

    run = one
    for i in range(positions):
        examples = EXAMPLES if training and i == positions - 1 else None
        run = jax.vmap(run, (None, 0, 0), axis_name=examples)
    lowered = jax.jit(run).lower(*jax.tree.unflatten(structure, types_of))
    return lowered.compile({"xla_backend_optimization_level": "0"}), made[-1]


def elsewhere(tree: Tree, seed: int) -> Tree:
    """The same tree with other floats, near by."""
    draw = np.random.default_rng(seed)

    def near(value):
        return value * draw.uniform(1, 1.5, value.shape) + draw.uniform(0, 0.5, value.shape)

    return jax.tree.map(lambda value: near(np.asarray(value)) if is_float(value) else value, tree)


def link(recording: Recording) -> None:
    """Finds the line of each value that came another way than by a line.

    A value is that of a line where it has the same numbers: inputs and outputs of a scan, forward values in backward.
    It is that of the step before, or after, where it has them one step later, or earlier: the carry of a scan.
    """
    operations = recording.operations
    sized: dict[int, list[int]] = {}
    for ref in [*recording.given, *sorted(operations, key=lambda each: each not in recording.names)]:
        sized.setdefault(recording.values[ref].size, []).append(ref)
    for ref, value in recording.values.items():
        if ref in recording.given or recording.root(ref) != ref or not is_float(value):
            continue
        made = operations.get(ref)
        made = None if made is None or made.part or made.name == "getitem" else made
        known = [
            each
            for each in sized.get(value.size, ())
            if each != ref
            and recording.root(each) != ref
            and (each in recording.given or not operations[each].part or operations[each].forward)
        ]
        if ref in recording.early:
            known = [each for each in known if each in recording.early]
        if made is not None:
            known = [each for each in known if each in recording.names and each in recording.early and not made.forward]
        same = next((each for each in known if recording.alike(ref, each)), None)
        if same is not None:
            recording.same[ref] = recording.root(same)
        elif value.ndim > 1 and len(value) > 1 and (made is None or made.name == "concatenate"):
            moved = ((each, steps) for each in known for steps in (-1, 1) if recording.alike(ref, each, steps))
            if (found := next(moved, None)) is not None:
                recording.moved[ref] = found
    for ref, (name, depth, line) in recording.outside.items():
        root = recording.root(ref)
        if root in operations and root not in recording.names:
            recording.names[root], recording.depths[root], recording.lines[root] = name, depth, line
        if root != ref and ref in recording.slopes and root not in recording.slopes:
            recording.slopes[root] = recording.slopes.pop(ref)
            recording.other_slopes[root] = recording.other_slopes.pop(ref)
    recording.out, recording.dx = recording.root(recording.out), recording.root(recording.dx)


def alike(value: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays hold the same numbers, not all of them 0, but for rounding."""
    if value.shape != other.shape:
        value, other = value.squeeze(), other.squeeze()
    return value.shape == other.shape and bool(np.any(value)) and close(value, other)


def close(got: np.ndarray, expected: np.ndarray, beside: float = 0.0) -> bool:
    """Whether two arrays are the same but for rounding. beside: the size of the terms of a sum."""
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0)), beside)
    return bool(np.allclose(got, expected, rtol=CLOSE, atol=CLOSE * (scale or 1), equal_nan=True))


def in_float64(value: Any) -> Any:
    """A float in float64; an integer stays."""
    value = np.asarray(value)
    return value.astype(np.float64) if is_float(value) else value
