"""The author's own functions: found, run with every expression marked, and run with a changed text.

The text of a whole file is compiled anew, and the new code is put into the functions that exist. So closures, lambdas
and helpers need nothing of their own.
"""

from __future__ import annotations
import __future__

import ast
import bisect
import inspect
import itertools
import linecache
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnet.checking.subject import Subject
from jaxnet.layer import Layer

MOST_OBJECTS = 5000
HERE = os.path.dirname(os.path.realpath(__file__))
LIBRARIES = tuple(
    {os.path.realpath(sysconfig.get_paths()[key]) + os.sep for key in ("stdlib", "platstdlib")}
    | {os.path.dirname(os.path.realpath(module.__file__ or "")) + os.sep for module in (jax, np)}
    | {os.path.realpath(sys.modules[Layer.__module__].__file__ or "")}  # its functions are around every layer's own
)
MODULES: dict[str, dict[str, ModuleType]] = {}
"""By file, the modules in the globals of its functions: a notebook's cell may import none itself."""
trace_number = jax.make_user_context(default_value=0)
numbers = itertools.count(1)


# ------------------------------------------------------------------------------------------------ the functions


def functions_of(*parts: Any, rules: bool = True) -> list[FunctionType]:
    """The functions that some parts are made of: themselves, those that they call by name, those that they close over.

    `rules`: whether the functions that give a derivative belong to it.
    """
    found: dict[int, FunctionType] = {}
    seen: set[int] = set()
    queue = list(parts)
    while queue and len(seen) < MOST_OBJECTS:
        each = queue.pop(0)
        if id(each) in seen or isinstance(each, ModuleType | str | bytes | int | float | np.ndarray | jax.Array):
            continue
        seen.add(id(each))
        if isinstance(each, FunctionType):
            if is_library(each.__code__.co_filename):
                queue += closed_over(each)  # a wrapper of the author's function
                continue
            found[id(each)] = each
            queue += [*closed_over(each), *called(each), *(each.__defaults__ or ()), getattr(each, "__wrapped__", None)]
        elif isinstance(each, MethodType):
            queue += [each.__func__, each.__self__]
        elif isinstance(each, partial):
            queue += [each.func, *each.args, *each.keywords.values()]
        elif isinstance(each, tuple | list):
            queue += each._replace(backward=None, origin=None) if isinstance(each, Layer) and not rules else each
        elif isinstance(each, dict):
            queue += each.values()
        elif isinstance(each, type):
            if not is_library(getattr(inspect.getmodule(each), "__file__", None) or ""):
                queue += [f for f in vars(each).values() if isinstance(f, FunctionType)]
        else:
            queue += [type(each), getattr(each, "__wrapped__", None)]
            if isinstance(each, jax.custom_vjp | jax.custom_jvp):
                queue += [getattr(each, name, None) for name in ("fwd", "bwd", "jvp")] if rules else []
            else:
                queue += getattr(each, "__dict__", {}).values()
    for each in found.values():
        if (file := each.__code__.co_filename) not in MODULES:
            MODULES[file] = {name: v for name, v in each.__globals__.items() if isinstance(v, ModuleType)}
    return list(found.values())


def editable(subject: Subject) -> list[FunctionType]:
    """The functions that a change may be made in: those of the rule that its primal does not call.

    A loss gives its value and δ in one function: there it may be any. jaxnet's own only where there are no others.
    """
    custom = subject.custom
    if isinstance(custom, jax.custom_vjp):
        parts: tuple = (getattr(custom, "fwd", None), getattr(custom, "bwd", None))
        given: tuple = (custom.__wrapped__, subject.primal)
    elif isinstance(custom, jax.custom_jvp):
        parts, given = (getattr(custom, "jvp", None),), (custom.__wrapped__, subject.primal)
    else:
        parts, given = subject.parts, (subject.primal, subject.plain)
    shared = {id(function) for function in functions_of(*given, rules=False)}
    shared -= {id(getattr(part, "method", None)) for part in parts}  # the primal's object has it
    functions = functions_of(*parts)
    functions = [function for function in functions if id(function) not in shared] or functions
    return [function for function in functions if not (function.__module__ or "").startswith("jaxnet.")] or functions


@lru_cache(maxsize=4096)
def is_library(file: str) -> bool:
    """Whether a file belongs to Python, JAX, NumPy or this folder, or is none; a notebook's cell has a source."""
    if not file or file.startswith("<"):
        return not linecache.getlines(file)
    path = os.path.realpath(file)
    return path.startswith(LIBRARIES) or os.path.dirname(path) == HERE


def closed_over(function: FunctionType) -> list:
    """The values that a function closes over."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # a cell that is not filled yet
            continue
    return found


def called(function: FunctionType) -> list:
    """The globals that a function's code names, and the attributes of modules that it names."""
    names = dict.fromkeys(name for code in codes_in(function.__code__) for name in code.co_names)
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    for module in [each for each in found if isinstance(each, ModuleType)]:
        if not is_library(getattr(module, "__file__", None) or ""):
            found += [vars(module)[name] for name in names if name in vars(module)]
    return found


def codes_in(code: CodeType) -> list[CodeType]:
    """A code object and those inside it, in order."""
    return [code, *(inner for const in code.co_consts if isinstance(const, CodeType) for inner in codes_in(const))]


# ------------------------------------------------------------------------------------------------------ the text


class Source(NamedTuple):
    """A file: its text, its tree, the byte at which each line starts, the code objects of each statement in order."""

    file: str
    text: bytes
    tree: ast.Module
    starts: tuple[int, ...]
    codes: tuple[tuple[CodeType, ...], ...]

    @property
    def modules(self) -> dict[str, Any]:
        """The modules that the file has or imports, by the name that it gives them."""
        return MODULES.get(self.file, {}) | {name: sys.modules.get(of) for name, of in imported(self.file)}

    def span(self, node: Any) -> tuple[int, int]:
        """The bytes that a node takes."""
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def segment(self, node: Any) -> str:
        """A node's text on one line."""
        start, end = self.span(node)
        return " ".join(line.strip() for line in self.text[start:end].decode().splitlines())

    def statement_at(self, start: int) -> int:
        """Which statement of the file a byte stands in."""
        line = bisect.bisect_right(self.starts, start)
        return next(k for k, node in enumerate(self.tree.body) if line <= (node.end_lineno or 0))

    def statement(self, k: int, text: bytes | None = None) -> ast.Module:
        """A statement of the file as a module, with its own lines; `text` in the place of the file's."""
        first, last = self.lines(k)
        if text is None:
            text = self.text[self.starts[first] : self.starts[last]]
        return ast.parse(b"\n" * first + text)

    def lines(self, k: int) -> tuple[int, int]:
        """The lines of a statement, decorators included: the first, and the one after the last."""
        node = self.tree.body[k]
        decorators = [each.lineno for each in getattr(node, "decorator_list", [])]
        return min([node.lineno, *decorators]) - 1, node.end_lineno or 0

    def compiled(self, tree: ast.Module) -> tuple[CodeType, ...]:
        """The code objects of a statement, in order."""
        future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in self.tree.body)
        flags = __future__.annotations.compiler_flag if future else 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return tuple(codes_in(compile(tree, self.file, "exec", flags=flags, dont_inherit=True)))


@lru_cache(maxsize=64)
def source_of(file: str) -> Source | None:
    """A file's source; None where it cannot be read."""
    lines = linecache.getlines(file)
    text = "".join(lines)
    starts = tuple(itertools.accumulate((len(line.encode()) for line in lines), initial=0))
    try:
        source = Source(file, text.encode(), ast.parse(text), starts, ())
        return source._replace(codes=tuple(map(source.compiled, map(source.statement, range(len(source.tree.body))))))
    except (SyntaxError, ValueError):
        return None


@lru_cache(maxsize=64)
def imported(file: str) -> tuple[tuple[str, str], ...]:
    """The names that a file's imports define, each with the full name of the object."""
    source, found = source_of(file), []
    for node in ast.walk(source.tree) if source is not None else ():
        if isinstance(node, ast.Import):
            for each in node.names:
                name = each.name if each.asname else each.name.partition(".")[0]
                found.append((each.asname or name, name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(each.asname or each.name, f"{node.module}.{each.name}") for each in node.names]
    return tuple(found)


@lru_cache(maxsize=64)
def functions_in(file: str) -> tuple[ast.FunctionDef | ast.Lambda, ...]:
    """The functions that a file defines."""
    source = source_of(file)
    nodes = ast.walk(source.tree) if source is not None else ()
    return tuple(node for node in nodes if isinstance(node, ast.FunctionDef | ast.Lambda))


def arguments_at(place: str) -> tuple[str, ...]:
    """The names of the arguments of the function that is defined at file:line; none where there is no such function."""
    file, _, line = place.rpartition(":")
    for node in functions_in(file) if line.isdigit() else ():
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        if first == int(line):
            return tuple(a.arg for a in (*node.args.posonlyargs, *node.args.args))
    return ()


def number_of(function: ast.FunctionDef | ast.Lambda) -> int:
    """A function's number in its file: its line and column."""
    return function.lineno * 1000 + function.col_offset


@lru_cache(maxsize=4096)
def place_of(code: CodeType) -> tuple[Source, int, int] | None:
    """A code object's source, the statement that it stands in, and which of the statement's code objects it is."""
    source = source_of(code.co_filename)
    if source is None:
        return None
    same = [
        (k, i)
        for k, codes in enumerate(source.codes)
        for i, other in enumerate(codes)
        if (other.co_qualname, other.co_firstlineno) == (code.co_qualname, code.co_firstlineno)
    ]
    if len(same) > 1:
        # A name that the file imports is called by other instructions where a statement is compiled by itself.
        positions = set(code.co_positions())
        same = [(k, i) for k, i in same if set(source.codes[k][i].co_positions()) == positions]
    return (source, *same[0]) if same else None


Codes = dict[tuple[str, int], tuple[CodeType, ...]]
"""Code objects by the file and the statement that they stand in."""


@contextmanager
def with_code(functions: Iterable[FunctionType], codes: Codes) -> Iterator[None]:
    """Inside, the functions of some statements run other code. Nothing that JAX has traced before is used again.

    Raises `ValueError` where the new code reads a variable that the function does not close over.
    """
    before = []
    try:
        for function in functions:
            place = place_of(function.__code__)
            if place is not None and (place[0].file, place[1]) in codes:
                new = codes[place[0].file, place[1]][place[2]]
                if new.co_freevars != function.__code__.co_freevars:
                    raise ValueError(f"{function.__name__} closes over {function.__code__.co_freevars}, "
                                     f"its new code over {new.co_freevars}")  # fmt: skip
                before.append((function, function.__code__))
                function.__code__ = new
        with trace_number(next(numbers)):
            yield
    finally:
        for function, code in before:
            function.__code__ = code


# ----------------------------------------------------------------------------------------------------- the change


class Change(NamedTuple):
    """`text` in place of the bytes from `start` to `end` of a source."""

    source: Source
    start: int
    end: int
    text: str

    @property
    def line(self) -> int:
        """The line where it starts."""
        return self.source.text[: self.start].count(b"\n") + 1


def changed_text(source: Source, changes: Iterable[Change]) -> bytes:
    """A source's text with changes that do not overlap."""
    text = source.text
    for change in sorted(changes, key=lambda c: -c.start):
        text = text[: change.start] + change.text.encode() + text[change.end :]
    return text


def changed_statement(source: Source, k: int, changes: Iterable[Change]) -> ast.Module:
    """A statement with changes of its text."""
    changes = list(changes)
    first, last = source.lines(k)
    more = sum(len(change.text.encode()) - (change.end - change.start) for change in changes)
    text = changed_text(source, changes)
    return source.statement(k, text[source.starts[first] : source.starts[last] + more])


def same_variables(change: Change) -> Change:
    """The same change with every variable still read: a function keeps the variables that it closes over."""
    before = change.source.text[change.start : change.end].decode()
    try:
        old, new = (read_in(ast.parse(text.strip())) for text in (f"({before})", f"({change.text})"))
    except SyntaxError:  # a statement
        return change
    lost = sorted(old - new)
    return change._replace(text=f"[{change.text}, {', '.join(lost)}][0]") if lost else change


def read_in(tree: ast.AST) -> set[str]:
    """The variables that an expression reads and does not set itself."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    return {node.id for node in names} - {node.id for node in names if isinstance(node.ctx, ast.Store)}


def the_same(before: tuple[CodeType, ...], after: tuple[CodeType, ...]) -> tuple[CodeType, ...]:
    """The functions of a changed statement in the places of the old ones; comprehensions may come or go.

    Raises `ValueError` where a function was added or taken away.
    """
    if len(before) == len(after):
        return after

    def is_function(code: CodeType) -> bool:
        return not code.co_name.endswith(("comp>", "genexpr>"))

    kept = list(filter(is_function, after))
    if [code.co_qualname for code in filter(is_function, before)] != [code.co_qualname for code in kept]:
        raise ValueError("a change must not add or remove a function")
    functions = iter(kept)
    return tuple(next(functions) if is_function(code) else code for code in before)


def imports_of(changes: Iterable[Change]) -> list[Change]:
    """The line `import jax` for each source whose changes need it and that lacks it."""
    sources = {each.source.file: each.source for each in changes if re.search(r"\bjax\.", each.text)}
    found = []
    for source in sources.values():
        if "jax" not in source.modules:
            lines = [
                node.lineno
                for node in source.tree.body
                if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__"
            ]
            start = source.starts[lines[0] - 1] if lines else 0
            found.append(Change(source, start, start, "import jax\n"))
    return found


@contextmanager
def changed(functions: list[FunctionType], changes: Iterable[Change]) -> Iterator[None]:
    """Inside, functions run their changed source.

    Raises `SyntaxError` or `ValueError` where the changed source is no program of the same functions.
    """
    changes = list(changes)
    spaces = [f.__globals__ for f in functions if "jax" not in f.__globals__] if imports_of(changes) else []
    by_statement: dict[tuple[str, int], list[Change]] = {}
    for change in changes:
        by_statement.setdefault((change.source.file, change.source.statement_at(change.start)), []).append(change)
    codes: Codes = {}
    for (file, k), some in by_statement.items():
        source = some[0].source
        codes[file, k] = the_same(source.codes[k], source.compiled(changed_statement(source, k, some)))
    try:
        for space in spaces:
            space["jax"] = jax
        with with_code(functions, codes):
            yield
    finally:
        for space in spaces:
            space.pop("jax", None)
