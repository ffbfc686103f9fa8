"""Are other people's hand-written derivatives right?

    python -m experiments.in_the_wild [NAME …] [--packages NAME,NAME] [--markdown FILE]

Finds every `jax.custom_vjp` and `jax.custom_jvp` in the installed packages, classes included, and runs `check` over
them: at the inputs of `in_the_wild_points`, `in_the_wild_peers` and `in_the_wild_others`, or at the first guessed ones
that the rule and its derivative take. Prints rule, file, verdict and cause; the others are listed as not asked.
"""

import contextlib
import importlib
import inspect
import io
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import typer
from rich.console import Console
from rich.table import Table

from experiments import in_the_wild_others as others
from experiments import in_the_wild_peers as peers
from experiments.in_the_wild_points import POINTS as OF_JAX
from experiments.in_the_wild_points import Point, between
from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.differentiation import mode_of

PACKAGES = (
    "jax", "optax", "chex", "equinox", "flax", "diffrax", "lineax", "optimistix", "brax", "distrax", "e3nn_jax",
    "exojax", "haiku", "interpax", "jax_finufft", "jax_md", "jaxopt", "jaxpole", "keras", "kfac_jax", "mujoco.mjx",
    "netket", "numpyro", "ott", "quadax", "qwix", "rlax", "s2fft", "tensorflow_probability.substrates.jax", "tinygp",
    "tokamax",
)  # fmt: skip
SECONDS = 40
"""That one rule may take."""
USES: dict[str, Point] = peers.USES | others.USES
POINTS: dict[str, Point] = OF_JAX | peers.POINTS | others.POINTS | USES
HEADINGS = ("rule", "kind", "file", "verdict", "cause")


class Found(NamedTuple):
    """A custom rule: the name under which it is reached, the object, and file:line of its function."""

    name: str
    rule: Any
    file: str


class Row(NamedTuple):
    """The outcome for one rule."""

    name: str
    kind: str
    file: str
    verdict: str
    cause: str


# ---------------------------------------------------------------------------------------------------------- to find


def imported(packages: Iterable[str]) -> tuple[list[str], list[str]]:
    """Imports all that is in these packages but their tests; the names, and those that do not import, with why."""
    failed = []
    for package in packages:
        try:
            path = getattr(importlib.import_module(package), "__path__", ()) if find_spec(package) else ()
        except (Exception, SystemExit) as error:
            failed.append(f"{package} does not import: {type(error).__name__}: {error}".splitlines()[0])
            continue
        for module in pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None):
            if "test" in module.name or ".mlir" in module.name or module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
            except (Exception, SystemExit) as error:
                failed.append(f"{module.name} does not import: {type(error).__name__}: {error}".splitlines()[0])
    # Folders without an `__init__` are not walked into; other modules import theirs.
    return [name for name in sorted(sys.modules) if any(f"{name}.".startswith(f"{each}.") for each in packages)], failed


def custom_rule(thing: Any) -> Any:
    """The custom rule that a public object is or wraps; None for other objects."""
    for _ in range(6):
        if isinstance(thing, jax.custom_jvp | jax.custom_vjp):
            return thing
        try:
            thing = inspect.getattr_static(thing, "__wrapped__", None)
        except Exception:  # somebody else's rule may raise anything
            return None
        if thing is None:
            return None
    return None


def find(packages: Sequence[str] = PACKAGES) -> tuple[list[Found], list[str]]:
    """Every custom rule of the packages, under its shortest public name, and the modules that failed to import."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        names, failed = imported(packages)
    jax.config.update("jax_enable_x64", False)  # some packages switch it on
    known: dict[int, tuple[Any, list[str]]] = {}
    for module in names:
        for attribute, value in attributes(sys.modules[module]):
            if (rule := custom_rule(value)) is not None:
                known.setdefault(id(rule), (rule, []))[1].append(f"{module}.{attribute}")
    found = [
        Found(min(all_names, key=lambda n: ("._" in n, len(n), n)), rule, place(rule))
        for rule, all_names in known.values()
    ]
    found += [
        Found(name, point.through, name.split(".")[0]) for name, point in USES.items() if find_spec(name.split(".")[0])
    ]
    own = {package.split(".")[0] for package in packages}
    found = [each for each in found if each.file.split("/")[0] in own]
    return sorted(found, key=lambda each: each.name), failed


def attributes(module: Any) -> list[tuple[str, Any]]:
    """The objects of a module and of its own classes."""
    held = list(vars(module).items())
    for name, value in list(held):
        if inspect.isclass(value) and value.__module__ == module.__name__:
            held += [(f"{name}.{inner}", getattr(each, "__func__", each)) for inner, each in vars(value).items()]
    return held


def place(rule: Any) -> str:
    """file:line of a rule's function, from its package on."""
    function = inspect.unwrap(rule.__wrapped__)
    code = getattr(function, "__code__", None)
    if code is not None and "fun" in code.co_freevars:  # `jax.custom_gradient` wraps it once more
        function = inspect.unwrap(inspect.getclosurevars(function).nonlocals["fun"])
        code = getattr(function, "__code__", code)
    if code is None:
        return ""
    return f"{code.co_filename.rpartition('site-packages/')[2]}:{code.co_firstlineno}"


# --------------------------------------------------------------------------------------------------------- to check


def spectrum(k: int) -> jax.Array:
    """A positive definite matrix."""
    A = between(-1, 1, 4, 4, seed=k)
    return A @ A.T + jnp.eye(4)


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
    function = rule.__wrapped__
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    names = list(parameters(closure.get("fun", function)))
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
    """Raises `TimeoutError` after so many seconds of work."""

    def stop(*_):
        raise TimeoutError(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def judged(found: Found, point: Point) -> tuple[str, str]:
    """Verdict and cause of a rule at its point."""
    if point.args is None:
        return "not asked", point.note
    rule = point.through or found.rule
    try:
        with limited(SECONDS):
            report = check(
                rule,
                *point.args(),
                reference=point.reference,
                intended=point.intended,
                tolerance=point.tolerance,
                precise=point.tolerance is None,
                inside=point.through is None,
                seeds=2,
                budget=3.0,
                name=found.name,
            )
    except CannotCheckError as error:
        return "could not be checked", str(error).splitlines()[0]
    except TimeoutError as error:
        return "no answer", str(error)
    except Exception as error:  # the check itself failed: that is a fault of ours, and is told as one
        return "CRASH", f"{type(error).__name__}: {error}".splitlines()[0]
    if not report.ok:
        wrong = ", ".join(leaf.path for leaf in report.wrong)
        return report.verdict, f"{wrong}: {report.cause}" if wrong else report.cause
    remarks = [f"{leaf.path} {leaf.verdict}" for leaf in report.leaves if leaf.verdict != "ok"]
    return "as declared" if point.intended else "right", "; ".join([*remarks, *filter(None, [point.note])])


def rows(found: Iterable[Found], points: dict[str, Point] = POINTS) -> list[Row]:
    """One row for each rule, in order: those that were checked, then the others."""
    checked, others = [], []
    for each in found:
        custom = custom_rule(each.rule) is not None
        kind = type(each.rule).__name__ if custom else "made as it runs"
        point = points.get(each.name) or (guessed(each.rule) if custom else None)
        if point is None:
            others.append(Row(each.name, kind, each.file, "not asked", "no inputs"))
        else:
            row = Row(each.name, kind, each.file, *judged(each, point))
            print(f"{row.verdict:10} {row.name} {row.cause}", file=sys.stderr, flush=True)
            (checked if point.args else others).append(row)
    return checked + others


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Rules to check; else all.")] = None,
    packages: Annotated[str, typer.Option(help="Packages to look in.")] = ",".join(PACKAGES),
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table there.")] = None,
) -> None:
    """Check every custom rule in the installed packages."""
    found, failed = find(tuple(packages.split(",")))
    if names and (unknown := set(names) - {each.name for each in found}):
        raise SystemExit(f"there is no rule {', '.join(sorted(unknown))}; without a name all are listed")
    chosen = rows([each for each in found if not names or each.name in names])
    shown = Table(*HEADINGS)
    for row in chosen:
        shown.add_row(*row)
    Console().print(shown)
    for line in failed:
        print(line)
    if markdown_file:
        markdown_file.write_text(markdown(chosen) + "\n")


if __name__ == "__main__":
    typer.run(main)
