"""A file run statement by statement: its definitions, and its own computation as a cost with gradients.

A script may train while it is imported, print, or read files that are not there. Its loops are stopped after some
seconds, and a statement that raises is left out.

Its computation is its last loop's body, or all its statements. The gradient of a variable v is a variable named after
it (dv, grad_v), or the step that moves it. Each is held against the cost where v is moved right after its assignment.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import io
import itertools
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet.checking.differentiation import raised
from jaxnet.checking.held_arrays import arrays_in, is_gradient, matched, rebound, with_arrays
from jaxnet.checking.host_functions import NumpyInJax, same_draws, slope_along
from jaxnet.checking.numpy_conventions import OF_TARGETS, best_factor, fits
from jaxnet.checking.numpy_rules import LayerRule, identifier, pair_of, rounding_of
from jaxnet.checking.subject import CannotCheckError

SECONDS = 3.0  # of the processor's time, for a loop or a bare call
RUNS = ast.For, ast.While, ast.Expr
COST = re.compile(r"loss|cost|error|mse|nll|^[jle]$", re.IGNORECASE)
MOST_COSTS, DEEPEST, MOST_SECONDS = 200, 2, 20.0


class TooLongError(BaseException):
    """A statement took too long. No `except Exception` of a script's own catches it."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside, `TooLongError` is raised after some seconds of the processor's time, where the system can do that."""

    def stop(*_: Any) -> None:
        raise TooLongError(f"stopped after {seconds:g} s")

    try:
        before = signal.signal(signal.SIGPROF, stop)
    except (AttributeError, ValueError):  # another system, another thread
        yield
        return
    rest, _ = signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, rest)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed, and there is nothing to read."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            yield
    finally:
        sys.stdin = stdin


@dataclass
class FileRun:
    """The statements of a file, run one after the other in some names."""

    file: Path
    names: dict[str, Any]
    left_out: list[str] = field(default_factory=list)

    def tree(self) -> ast.Module:
        """The file's statements. Raises `SyntaxError` where it is no Python."""
        return ast.parse(self.file.read_bytes(), str(self.file))

    def run(self, statement: ast.stmt, names: dict[str, Any] | None = None) -> None:
        """Runs a statement; imports from the file's own package are found beside it."""
        if isinstance(statement, ast.ImportFrom) and statement.level:
            sys.path.append(str(self.file.resolve().parents[statement.level - 1]))
            of = (statement.module, statement.names, 0) if statement.module else None
            statement = ast.copy_location(ast.ImportFrom(*of) if of else ast.Import(statement.names), statement)
        flags = __future__.annotations.compiler_flag
        code = compile(ast.Module([statement], []), str(self.file), "exec", flags=flags, dont_inherit=True)
        exec(code, self.names if names is None else names)

    def tried(self, statement: ast.stmt) -> None:
        """Runs a statement for some seconds; it is left out where it raises."""
        try:
            with limited(SECONDS) if isinstance(statement, RUNS) else contextlib.nullcontext():
                self.run(statement)
        except (Exception, SystemExit, TooLongError) as error:
            self.left_out.append(f"line {statement.lineno}: {raised(error)}")

    def all(self) -> None:
        """Runs the whole file."""
        with quiet():
            for statement in self.tree().body:
                self.tried(statement)


# --------------------------------------------------------------------------------------------- a script's results


def stored(statement: ast.AST) -> set[str]:
    """The variables that a statement gives a value, or changes."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            while not isinstance(node, ast.Name):
                node = getattr(node, "value", ast.Name(""))
            found.add(node.id)
    return found


@dataclass(frozen=True, eq=False)
class Statements:
    """Statements with the names before them: a loop's body, or a whole file."""

    script: FileRun
    body: list[ast.stmt]
    names: dict[str, Any]
    stored: frozenset[str]

    def last(self, name: str, before: int | None = None) -> int:
        """The last statement that gives a variable a value; −1 where none does."""
        every = enumerate(self.body[:before])
        return max((k for k, statement in every if name in stored(statement)), default=-1)

    def run(self, moved: Sequence[Moved] = (), until: int | None = None) -> dict[str, Any]:
        """The names after the statements up to `until`, with other values of some variables."""
        traced = any(isinstance(each.value, Tracer) for each in moved)
        numpy = {name: NumpyInJax("numpy") if value is np else jnp.asarray(value) for name, value in self.names.items()
                 if traced and (value is np or is_numeric(value))}  # fmt: skip
        held = {id(each.known): each.value if traced else np.array(each.value) for each in moved if each.after < 0}
        names = rebound(numpy | copied({k: v for k, v in self.names.items() if k not in numpy or id(v) in held},
                                       held, self.stored))  # fmt: skip
        with quiet(), same_draws(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for k, statement in enumerate(self.body[:until]):
                self.script.run(statement, names)
                for each in moved:
                    if each.after == k:
                        names[each.path] = names[each.path] + (each.value - each.known)
        return names


def is_numeric(value: Any) -> bool:
    """Whether something is an array of numbers."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


class Moved(NamedTuple):
    """A variable moved from its value, before the statements or after the one with this number."""

    path: str
    known: Any
    value: Any
    after: int


def copied(names: dict[str, Any], held: dict[int, Any] | None = None, stored: Collection[str] = ()) -> dict[str, Any]:
    """Copies of the values of some names, those of one object once; arrays that nothing stores to stay."""
    memo: dict[int, Any] = dict(held or {})
    found = {}
    for name, value in names.items():
        known = id(value) in memo or not isinstance(value, np.ndarray) or name in stored
        try:
            found[name] = copy.deepcopy(value, memo) if known and not name.startswith("__") else value
        except Exception:  # a module, a file, a generator
            found[name] = value
    return found


def arrays_of(names: dict[str, Any]) -> dict[str, Any]:
    """The arrays of floats among some names, numbers too."""
    return arrays_in(SimpleNamespace(**{k: with_arrays(each) for k, each in names.items() if not k.startswith("__")}))


def blocks(script: FileRun, statements: list[ast.stmt], depth: int = 0) -> Iterator[Statements]:
    """A file and the bodies of its loops, each with the names that it begins with; a loop is run after that."""
    before = {name: with_arrays(value) for name, value in copied(script.names, stored=script.names).items()}
    yield Statements(script, statements, before, frozenset().union(*map(stored, statements)))
    for statement in statements:
        if isinstance(statement, ast.For | ast.While) and depth < DEEPEST:
            inner = FileRun(script.file, copied(script.names, stored=script.names))
            if isinstance(statement, ast.For):
                start = f"{ast.unparse(statement.target)} = next(iter({ast.unparse(statement.iter)}))"
                inner.tried(ast.copy_location(ast.parse(start).body[0], statement))
            if not inner.left_out:
                yield from blocks(inner, statement.body, depth + 1)
        script.tried(statement)


@dataclass(frozen=True, eq=False)
class ScriptRule:
    """The gradients of a script: of which variables, where each is, of which cost."""

    block: Statements
    moved: tuple[Moved, ...]
    gradients: dict[str, str]  # by path; the path itself where a step moves it
    cost: Callable[[dict[str, Any]], Any]
    words: str
    until: int
    factor: float = 1.0
    right: int = 0

    def at(self, values: Sequence) -> list[Moved]:
        """The variables at other values."""
        return [each._replace(value=value) for each, value in zip(self.moved, values, strict=True)]

    def forward(self, *values):
        """The cost, and the values."""
        return self.factor * self.cost(self.block.run(self.at(values), self.until)), values

    def backward(self, values, d_out):
        """The gradients."""
        found = arrays_of(self.block.run(self.at(values)))
        return tuple(
            d_out * (each.value - found[each.path] if self.gradients[each.path] == each.path
                     else found[self.gradients[each.path]])
            for each in self.at(values)
        )  # fmt: skip

    def values(self) -> tuple[np.ndarray, ...]:
        """The values of the variables."""
        return tuple(np.asarray(each.value, np.float64) for each in self.moved)

    def as_pair(self) -> LayerRule:
        """The rule as a pair of functions of the variables."""
        of = f"{self.factor:g} · {self.words}".removeprefix("1 · ")
        steps = any(path == of for path, of in self.gradients.items())
        said = f"{'steps along the gradients' if steps else 'gradients'} of {of}"
        name = self.block.script.file.name
        values = self.values()
        rounding = rounding_of(values, self.backward(values, 1.0)) if steps else 0.0
        paths = [each.path for each in self.moved]
        return pair_of(name, self.forward, self.backward, paths, (said,), rounding=rounding)

    def lines(self) -> dict[str, tuple[int, str]]:
        """By leaf the line at which its gradient gets its value, and the words that say so."""
        found = {}
        for path, *_ in self.moved:
            of = self.gradients[path]
            line = self.block.body[self.block.last(re.split(r"\W", of)[0])].lineno
            said = f"the step of {of}" if of == path else of
            found[f"∂{identifier(path)}"] = line, f"{said} at {self.block.script.file.name}:{line}"
        return found


def rules_of(block: Statements) -> Iterator[ScriptRule]:
    """The rules that the statements may be: gradients by name, or steps, each with a cost of theirs or a known one."""
    after = block.run()
    for name in block.stored & set(block.names):  # w = 0, of which a step makes a float
        if type(block.names[name]) is int and isinstance(after[name], float):
            block.names[name] = np.asarray(block.names[name], float)
    arrays, known = arrays_of(after), arrays_of(block.names)
    own = {path: each for path, each in arrays.items() if re.split(r"\W", path)[0] in block.stored}
    before = {path: each for path, each in known.items() if path in arrays and np.shape(arrays[path]) == np.shape(each)}
    wanted = before | {name: each for name, each in own.items() if name.isidentifier() and name not in before}
    named = {path: of for path, of in matched(wanted, own).items() if is_gradient(path, of)}
    steps = {path: path for path, each in before.items() if not np.array_equal(each, arrays[path], equal_nan=True)}
    costs: list[tuple] = [
        (name, lambda names, name=name: names[name], (name,))
        for name in own if COST.search(name) and np.size(after[name]) == 1 and np.ndim(after[name]) == 0
    ]  # fmt: skip
    others = block.run([Moved(path, each, 1.01 * each + 0.01, -1) for path, each in before.items() if path in steps])
    same = {name for name, each in after.items()
            if isinstance(each, np.ndarray) and np.array_equal(each, others[name])}  # fmt: skip
    costs += [
        (each.words.replace("out", out).replace("target", target),
         lambda names, each=each, out=out, target=target: each.value(None, names[out], names[target]), (out, target))
        for out in own if out in after and np.ndim(after[out]) and out not in {*same, *before, *named.values()}
        for target in same if fits(after[out], after[target])
        for each in OF_TARGETS
    ]  # fmt: skip
    for gradients in filter(None, (named, steps)):
        for words, cost, names in costs[:MOST_COSTS]:
            until = max(map(block.last, names)) + 1
            moved = []
            for path in gradients:
                k = block.last(path, until) if path.isidentifier() and gradients[path] != path else -1
                if k >= 0 or path in known:
                    value = np.asarray(block.run(until=k + 1)[path] if k >= 0 else known[path])
                    moved.append(Moved(path, value if k >= 0 else known[path], value, k))
            yield ScriptRule(block, tuple(moved), gradients, cost, words, until)


def held_up(rule: ScriptRule) -> tuple[int, int, ScriptRule]:
    """(right gradients, those of which the cost is a function), and the rule with the factor that suits most."""
    rng, values = np.random.default_rng(2), [each.value for each in rule.moved]
    out, slopes = rule.forward(*values)[0], []
    for k, (grad, value) in enumerate(zip(rule.backward(values, 1.0), values, strict=True)):
        directions = rng.standard_normal((2, *value.shape))
        along = [slope_along(lambda at, k=k: rule.forward(*values[:k], *at, *values[k + 1 :])[0], [value], [each])
                 for each in directions]  # fmt: skip
        if np.shape(grad) == value.shape and np.any(along) and np.isfinite(out):
            slopes.append((np.asarray([np.sum(grad * each) for each in directions]), np.asarray(along)))
    own = rule.words.isidentifier() and all(path != of for path, of in rule.gradients.items())
    count, factor = best_factor(slopes, [1.0], measured=not own)
    return count, len(slopes), replace(rule, factor=factor)


def rule_of_script(file: Path) -> ScriptRule:
    """The gradients of a script and its variables, as a rule; those of which most are right with some cost."""
    found: list[tuple[int, int, ScriptRule]] = []
    script = FileRun(file, {"__name__": file.stem, "__file__": str(file)})
    end = time.process_time() + MOST_SECONDS
    failing = contextlib.suppress(Exception, TooLongError)  # one block or cost may fail where another does not
    with quiet():
        try:
            statements = script.tree().body
        except SyntaxError as error:
            raise CannotCheckError(f"{file.name} is no Python 3: {error}") from error
        for block in itertools.takewhile(lambda _: time.process_time() < end, blocks(script, statements)):
            rules: list[ScriptRule] = []
            with failing, limited(SECONDS):
                rules += rules_of(block)
            for rule in rules:
                with failing, limited(SECONDS):
                    found.append(held_up(rule))
    best = max(found, key=lambda each: each[:2], default=(0, 0, None))
    rule = best[2]
    if rule is None or not best[1] or not (best[0] or rule.words.isidentifier()):
        said = "".join(f"\n  {each}" for each in script.left_out)
        raise CannotCheckError(
            f"{file.name} must compute a cost (loss) and gradients named after its variables (dW, grad_W), or move "
            f"its arrays along them{said}\nname a function or a class in it, as {file.name}:loss"
        )
    return rule
