"""Are other people's hand-written derivatives right?

    python -m experiments.in_the_wild ask [PACKAGE …] --out FILE.jsonl      # one line a rule
    python -m experiments.in_the_wild table FILE.jsonl …                    # the table of the docs

Finds every `jax.custom_vjp` and `jax.custom_jvp` of the installed packages: those that modules and classes hold, and
those made as the lines of `in_the_wild.toml` run. Asks each by `check` at the arguments of its first call there; else
at a point of `in_the_wild_points`; else at the first guess that the rule and its derivative take. A rule that no call
reaches and no guess fits is not asked, and never counted as right.
"""

import contextlib
import importlib
import inspect
import io
import json
import os
import pkgutil
import signal
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from jax.core import Tracer

from experiments.in_the_wild_declared import POINTS as DECLARED_POINTS
from experiments.in_the_wild_kernels import POINTS as KERNELS
from experiments.in_the_wild_kernels import interpreted
from experiments.in_the_wild_others import POINTS as OTHERS
from experiments.in_the_wild_points import POINTS as FIRST
from experiments.in_the_wild_points import Point, between, normal, spectrum
from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.differentiation import mode_of

CALLS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
NAMESPACE: dict[str, Any] = {
    "jax": jax, "jnp": jnp, "np": np, "grad": jax.grad, "key": jax.random.PRNGKey(0),
    "x": normal(4, 5), "y": normal(4, 5, seed=1), "v": normal(4), "w": normal(4, seed=1), "u": between(0.1, 0.9, 4),
    "p": between(0.5, 3, 4), "q": between(0.5, 3, 4, seed=1), "A": normal(4, 4), "S": spectrum(0),
    "between": between, "normal": normal,
}  # fmt: skip
POINTS = FIRST | OTHERS | KERNELS | DECLARED_POINTS
SECONDS = 240  # of CPU time, that one rule or line may take
RIGHT, DECLARED, NOT_ASKED, CRASH = "right", "as declared", "not asked", "CRASH"
WRAPPERS = "jax._src.custom_derivatives", "equinox._ad", "keras.src.backend.jax.core"  # around `fun` or `fn`
RULES = jax.custom_jvp | jax.custom_vjp
app = typer.Typer(add_completion=False, help=__doc__)


class OutOfTime(BaseException):
    """An answer took too long. No rule's own error: nothing that tells of such errors catches it."""


class Found(NamedTuple):
    """A custom rule: the name under which it is reached, the object, file:line of its function, and those of a call.

    Of a call: its arguments, and which of their leaves were differentiated; None where all may be.
    """

    name: str
    rule: Any
    file: str
    args: tuple | None = None
    moved: tuple[bool, ...] | None = None


# ---------------------------------------------------------------------------------------------------------- to find


def imported(package: str) -> tuple[list[str], list[str]]:
    """Imports all that is in a package but its tests; the names, and the modules that fail, with the reason."""
    failed = []

    def tried(name: str) -> None:
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            failed.append(f"{name} does not import: {type(error).__name__}: {error}".splitlines()[0])

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tried(package)
        path = getattr(sys.modules.get(package), "__path__", ())
        for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None):
            if not ("test" in module.name or ".mlir" in module.name or module.name.endswith("__main__")):
                tried(module.name)
    jax.config.update("jax_enable_x64", False)  # some packages switch it on
    # Folders without an `__init__` are not walked into; other modules import theirs.
    return [name for name in sorted(sys.modules) if f"{name}.".startswith(f"{package}.")], failed


def custom_rule(thing: Any) -> Any:
    """The custom rule that a public object is or wraps; None for other objects."""
    for _ in range(6):
        if isinstance(thing, RULES):
            return thing
        try:
            thing = inspect.getattr_static(thing, "__wrapped__", None)
        except Exception:  # somebody else's object may raise anything
            return None
        if thing is None:
            return None
    return None


def held(package: str) -> tuple[list[Found], list[str]]:
    """The rules of a package's modules and classes, under their shortest names, and the modules that fail to import."""
    names, failed = imported(package)
    known: dict[int, tuple[Any, list[str]]] = {}
    for module in names:
        for attribute, value in attributes(sys.modules[module]):
            if (rule := custom_rule(value)) is not None:
                known.setdefault(id(rule), (rule, []))[1].append(f"{module}.{attribute}")
    found = [
        Found(min(names, key=lambda n: ("._" in n, len(n), n)), rule, place(rule)) for rule, names in known.values()
    ]
    return [each for each in found if each.file.split("/")[0] == package.split(".")[0]], failed


def attributes(module: Any) -> list[tuple[str, Any]]:
    """The objects of a module and of its own classes."""
    found = list(vars(module).items())
    for name, value in list(found):
        if inspect.isclass(value) and value.__module__ == module.__name__:
            found += [(f"{name}.{inner}", getattr(each, "__func__", each)) for inner, each in vars(value).items()]
    return found


def written(rule: Any) -> Callable:
    """The function that the author of a rule wrote, without the wrappers of libraries."""
    function = inspect.unwrap(rule.__wrapped__)
    while getattr(function, "__module__", None) in WRAPPERS:
        inner = inspect.getclosurevars(function).nonlocals
        value = inner.get("fun", getattr(inner.get("self"), "fn", inner.get("fn")))
        if not callable(value):
            break
        function = inspect.unwrap(value)
    return function


def place(rule: Any) -> str:
    """file:line of a rule's function, from its package on."""
    code = getattr(written(rule), "__code__", None)
    return f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno}" if code else ""


# -------------------------------------------------------------------------------------------------------- to record


def concrete(leaf: Any) -> tuple[Any, bool]:
    """The array under the tracers of transformations (of a batch its first example), and whether it is differentiated.

    Raises where there is no array.
    """
    moved = False
    while isinstance(leaf, Tracer):
        tracer: Any = leaf
        if hasattr(tracer, "batch_dim"):
            leaf = tracer.val if tracer.batch_dim is None else jnp.take(tracer.val, 0, axis=tracer.batch_dim)
        elif hasattr(tracer, "primal"):
            leaf, moved = tracer.primal, True
        else:
            raise TypeError("an array that is traced has no value")
    return leaf, moved


def called_with(rule: Any, args: tuple, kwargs: dict) -> Found:
    """A rule at the arguments of a call. Raises where they have no values, or cannot be given by their places."""
    bound = inspect.signature(rule.__wrapped__).bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.kwargs:
        raise TypeError("a rule is asked at arguments that are given by their places")
    leaves, tree = jax.tree.flatten(bound.args)
    values, moved = zip(*map(concrete, leaves), strict=True)
    function = written(rule)
    name = f"{function.__module__}.{function.__qualname__}"
    return Found(name, rule, place(rule), jax.tree.unflatten(tree, values), moved if any(moved) else None)


@contextlib.contextmanager
def recorded() -> Iterator[dict[int, Found]]:
    """Collects each rule that is called meanwhile, with the arguments of its first call that is differentiated."""
    calls: dict[int, Found] = {}
    before = {kind: kind.__call__ for kind in (jax.custom_jvp, jax.custom_vjp)}

    def recording(call: Callable) -> Callable:
        def called(rule, *args, **kwargs):
            key = id(rule)
            if key not in calls or calls[key].moved is None:
                with contextlib.suppress(Exception):  # arguments without values: a later call may have them
                    found = called_with(rule, args, kwargs)
                    if key not in calls or found.moved is not None:
                        calls[key] = found
            return call(rule, *args, **kwargs)

        return called

    for kind, call in before.items():
        setattr(kind, "__call__", recording(call))  # noqa: B010 - a method is no name to assign to, for pyright
    try:
        yield calls
    finally:
        for kind, call in before.items():
            setattr(kind, "__call__", call)  # noqa: B010 - likewise


def run_calls(lines: str) -> tuple[list[Found], list[str]]:
    """Runs a package's lines, each by itself; the rules called, and the lines that raise.

    A line that reaches no new rule with values, since they are called inside a compiled function, is run uncompiled.
    """
    scope, failed = dict(NAMESPACE), []
    with recorded() as calls:
        for line in filter(None, map(str.strip, lines.splitlines())):
            known, imports = len(calls), " import " in f" {line}" or line.split("=")[0].strip().isidentifier()
            try:
                with limited(SECONDS), interpreted():
                    exec(line, scope)
                    if len(calls) == known and not imports:
                        with jax.disable_jit():
                            exec(line, scope)
            except (Exception, OutOfTime) as error:
                failed.append(f"{line}: {type(error).__name__}: {error}".splitlines()[0])
            jax.config.update("jax_enable_x64", False)
    return list(calls.values()), failed


def find(package: str) -> tuple[list[Found], list[str]]:
    """A package's rules, each with the arguments of a call where one reaches it, and what failed on the way."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, failed = held(package)
        calls, raised = run_calls(CALLS.get(package, ""))
    reached = {id(call.rule): call for call in calls}
    known = {id(each.rule) for each in found}
    own = f"{package.split('.')[0]}/"
    made = {call.file: call for call in reversed(calls) if id(call.rule) not in known and call.file.startswith(own)}
    found = [reached.get(id(each.rule), each)._replace(name=each.name) for each in found] + list(made.values())
    return sorted(found, key=lambda each: each.name), failed + raised


# --------------------------------------------------------------------------------------------------------- to check


KINDS: tuple[Callable[[int], Any], ...] = (
    lambda k: between(0.2, 0.9, 4, 5, seed=k),
    spectrum,
    lambda k: between(0.2, 0.9, 4, seed=k),
    lambda k: between(0.2, 0.9, seed=k),
    lambda k: between(0.2, 0.9, 3, seed=k),
)
BY_NAME: dict[str, Callable[[], Any]] = {
    "axis": lambda: -1,
    "axes": lambda: (-1,),
    "shape": lambda: (4,),
    "dtype": lambda: jnp.dtype("float32"),
    "key": lambda: jax.random.PRNGKey(0),
    "seed": lambda: jax.random.PRNGKey(0),
    "normalize": lambda: True,
    "rng": lambda: jax.random.PRNGKey(0),
}
"""Arguments that are no numbers, by the name of the parameter."""


def guessed(rule: Any) -> Point | None:
    """The first guess at a rule's inputs that it and its derivative take, and where it gives finite numbers."""
    names = list(parameters(written(rule)))
    for kind in KINDS:
        args = tuple(BY_NAME[name]() if name in BY_NAME else kind(k) for k, name in enumerate(names))
        try:
            out = [leaf for leaf in jax.tree.leaves(rule(*args)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
            refused = mode_of(rule, args, rule.nondiff_argnums) == "differences"
        except Exception:  # somebody else's rule may refuse a guess in any way
            continue
        if out and not refused and all(bool(jnp.isfinite(leaf).all()) for leaf in out):
            return Point(lambda args=args: args)
    return None


def parameters(function: Any) -> Iterable[str]:
    """The names of the parameters that must be given."""
    try:
        asked = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return [each.name for each in asked if each.default is each.empty and each.kind is not each.VAR_KEYWORD]


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `OutOfTime` after so many seconds of work."""

    def stop(*_):
        raise OutOfTime(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def point_of(found: Found) -> tuple[Point | None, str]:
    """The inputs at which a rule is asked, and their origin."""
    point = POINTS.get(found.name)
    if point is not None and (point.args is not None or found.args is None or point == Point(None, note=point.note)):
        return point, "point"
    if found.args is not None:
        return at_call(found, point or Point(None)), "call"
    return guessed(found.rule), "guess"


def at_call(found: Found, point: Point) -> Point:
    """The arguments of a call; leaves that it did not differentiate are held."""
    leaves, tree = jax.tree.flatten(found.args)
    moved = found.moved or (True,) * len(leaves)
    if all(moved):
        return point._replace(args=lambda: found.args)

    def alone(*given):
        live = iter(given)
        return found.rule(*tree.unflatten([next(live) if m else x for x, m in zip(leaves, moved, strict=True)]))

    return point._replace(args=lambda: tuple(x for x, m in zip(leaves, moved, strict=True) if m), through=alone)


def judged(found: Found, point: Point) -> tuple[str, str]:
    """Verdict and cause of a rule at its point."""
    if point.args is None:
        return NOT_ASKED, point.note
    try:
        with limited(SECONDS), interpreted():
            report = check(
                point.through or found.rule,
                *point.args(),
                reference=point.reference,
                intended=point.intended,
                tolerance=point.tolerance,
                precise=point.tolerance is None,
                inside=False,
                seeds=1,
                budget=3.0,
                name=found.name,
            )
    except CannotCheckError as error:
        return "could not be checked", str(error).splitlines()[0]
    except OutOfTime as error:
        return "no answer", str(error)
    except Exception as error:  # the check itself failed: that is a fault of ours, and is told as one
        return CRASH, f"{type(error).__name__}: {error}".splitlines()[0]
    if not report.ok:
        wrong = ", ".join(leaf.path for leaf in report.wrong)
        return report.verdict, f"{wrong}: {report.cause}" if wrong else report.cause
    remarks = [f"{leaf.path} {leaf.verdict}" for leaf in report.leaves if leaf.verdict != "ok"]
    return DECLARED if point.intended else RIGHT, "; ".join([*remarks, *filter(None, [point.note])])


def blank(package: str, found: Found) -> dict[str, Any]:
    """The row that stands for a rule while it is asked: what kills the process is a crash."""
    return {
        "package": package,
        "version": version_of(package),
        "rule": found.name,
        "kind": type(found.rule).__name__,
        "file": found.file,
        "verdict": CRASH,
        "cause": "the process died",
    }


def row(package: str, found: Found) -> dict[str, Any]:
    """The outcome for one rule."""
    start = time.process_time()
    point, origin = point_of(found)
    verdict, cause = judged(found, point) if point else (NOT_ASKED, "no inputs")
    seconds = round(time.process_time() - start, 1)
    return {**blank(package, found), "inputs": origin, "verdict": verdict, "cause": cause, "seconds": seconds}


def version_of(package: str) -> str:
    """The name and version of the distribution that an import comes from."""
    names = packages_distributions().get(package.split(".")[0], [package])
    return f"{names[0]} {version(names[0])}"


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of these files, the last one for each rule."""
    lines = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return list({(line["rule"], line["file"]): line for line in lines}.values())


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Rules found, asked, right and so on, of each package, as a Markdown table with its sums."""
    counts: dict[str, Counter] = {}
    for each in rows:
        counts.setdefault(each["version"], Counter())[each["verdict"]] += 1
    verdicts = sorted({v for each in counts.values() for v in each}, key=lambda v: (v != RIGHT, v != DECLARED, v))
    lines = [["package", "found", *verdicts], ["---"] * (len(verdicts) + 2)]
    for name, each in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        lines.append([name, str(each.total()), *(str(each[v]) for v in verdicts)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@app.command()
def ask(
    packages: Annotated[list[str] | None, typer.Argument(help="Packages to look in; else all installed ones.")] = None,
    out: Annotated[Path, typer.Option(help="JSON lines; rules that stand there already are not asked again.")] = Path(
        "in_the_wild.jsonl"
    ),
    only: Annotated[str, typer.Option(help="Rules whose names hold this alone, asked again.")] = "",
) -> None:
    """Checks every custom rule of these packages."""
    for package in packages or [name for name in CALLS if find_spec(name.split(".")[0])]:
        found, failed = find(package)
        print(*failed, sep="\n")
        known = {(each["rule"], each["file"]) for each in read([out])}
        for each in found:
            if only not in each.name or (not only and (each.name, each.file) in known):
                continue
            known.add((each.name, each.file))
            with out.open("a") as file:
                print(json.dumps(blank(package, each)), file=file, flush=True)
                said = row(package, each)
                print(json.dumps(said), file=file)
            print(f"{said['verdict']:12} {said['seconds']:5} s {said['rule']} {said['cause'][:160]}", flush=True)


@app.command()
def table(files: list[Path]) -> None:
    """Prints the table of the rows in these files, and every verdict that is not right."""
    rows = read(files)
    print(markdown(rows))
    for each in rows:
        if each["verdict"] not in (RIGHT, DECLARED):
            print(f"{each['verdict']}: {each['rule']} ({each['file']}): {each['cause']}")


if __name__ == "__main__":
    app()
