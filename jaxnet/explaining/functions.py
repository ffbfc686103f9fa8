"""Any JAX function of one number explained: its own lines forward, and the chain rule back through each of them.

The lines come from the function's source, or from its program where there is none. Each is written out, evaluated from
its text and held against `jax.grad`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.chain_rule import ONE, Backwards
from jaxnet.explaining.derive import checked
from jaxnet.explaining.evaluation import REDUCED
from jaxnet.explaining.expressions import Call, Expression, Name, written
from jaxnet.explaining.model import Derivation, Header, Line
from jaxnet.explaining.notation import ExplainError, Notation
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.recording import Recording
from jaxnet.explaining.records import BLOCK, Record, Site
from jaxnet.explaining.source_lines import LineWriter, recorded
from jaxnet.explaining.transcription import at
from jaxnet.layer import Layer, Passing

Lines = tuple[Line, ...]


@dataclass(frozen=True, eq=False)
class FunctionSubject:
    """A function of arrays that gives one number, and its arguments."""

    function: Callable
    args: tuple
    source: str
    seed: int


def derivation_of_function(subject: FunctionSubject, notation: Notation) -> Derivation:
    """The function's lines forward, and the derivative of its value by each of their values and each argument.

    Raises `ExplainError` for a function that does not give one number.
    """
    names, given = named_leaves(subject)
    leaves, structure = jax.tree.flatten(subject.args)

    def whole(params):
        return subject.function(
            *structure.unflatten([params.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)])
        )

    try:
        out = jax.eval_shape(whole, given)
    except jax.errors.ConcretizationTypeError:
        raise ExplainError(
            f"{subject.source} must not branch on a value or make it a Python number: write jnp.where or jax.lax.cond"
        ) from None
    except (TypeError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise ExplainError(f"{subject.source} cannot be run at these inputs: {said}: give others to --inputs") from None
    if not hasattr(out, "shape") or out.shape or not jnp.issubdtype(out.dtype, jnp.inexact):
        gives = jax.tree.map(lambda each: f"{each.dtype}{list(each.shape)}", out)
        raise ExplainError(
            f"a function to be explained gives one number, {subject.source} gives {gives}: explain its sum or its loss"
        )

    def forward(params, x, key=None, train=False):
        return whole(params), None

    def backward(params, saved, d_out, read):
        return None, read.at(Passing(params, saved, d_out, None, ()))

    layer = Layer(subject.source, lambda key, x: given, forward, backward)
    value, d_out = jax.jit(whole)(given), np.ones((), out.dtype)
    record = Record("leaf", layer, (BLOCK,), given, (np.zeros(1, out.dtype),), np.asarray(value), d_out, (None,))
    recording = recorded(record, by_steps=True)
    if recording is None:
        raise ExplainError(f"{subject.source} cannot be recorded: its lines failed when they were run in float64")
    given = {name: given[name] for name in names}
    floats = {name: leaf for name, leaf in given.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    with jax.enable_x64(True):
        wide = {name: jnp.asarray(leaf, jnp.float64) for name, leaf in floats.items()}
        exact = jax.device_get(jax.jit(jax.grad(lambda some: whole(given | some)))(wide))
    site = Site(record, notation, None, (Name("x"),), notation.cost, ONE, (ONE,))
    writer = LineWriter(site, recording)
    writer.fixed.clear()  # any argument may have the examples in front
    writer.as_written = True
    last_steps = name_last_steps(recording, writer.symbols, writer.chosen.symbol)
    forward_lines = tuple(line_of(each, subject.source) for each in writer.lines() if each.forward)
    backward_lines = tuple(Backwards(writer, exact, subject.source, last_steps).lines())
    forward_lines, backward_lines = with_index_explained(forward_lines, backward_lines, set(writer.stepped))
    header = Header(
        f"{subject.source}({', '.join(f'{name}: {shape(np.shape(leaf))}' for name, leaf in given.items())})",
        subject.source, "", notation.cost, Call(Name(subject.function.__name__), Name("…")), float(value),
        np.zeros(0), np.zeros(0), None, None, notation.name, "", notation.weights, str(out.dtype), subject.seed,
    )  # fmt: skip
    fixed = [name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, int | float)]
    note = f"{', '.join(fixed)}: fixed by --inputs, so without ∂C; float32[] draws a number that has one"
    return Derivation(header, forward_lines, backward_lines, (), (), (), (), None, (), (), (), checked(backward_lines),
                      notes=(note,) if fixed else ())  # fmt: skip


def named_leaves(subject: FunctionSubject) -> tuple[list[str], dict[str, Any]]:
    """A name of each array among the arguments, its own key where no other has it; and the arrays by name."""
    words = inspect.signature(subject.function).parameters
    paths = [(word, *path) for word, arg in zip(words, subject.args, strict=False)
             for path, _ in jax.tree_util.tree_leaves_with_path(arg)]  # fmt: skip
    short = [str(getattr(path[-1], "key", getattr(path[-1], "idx", path[-1]))) for path in paths]
    full = [
        path[0] + "".join(f"_{getattr(each, 'key', getattr(each, 'idx', ''))}" for each in path[1:]) for path in paths
    ]
    names = [full[i] if short.count(each) > 1 or each.isdigit() else each for i, each in enumerate(short)]
    leaves = jax.tree.leaves(subject.args)
    return names, {name: np.asarray(leaf) for name, leaf in zip(names, leaves, strict=True)}


def line_of(each: Any, of: str) -> Line:
    """A line read off the source as a line of the derivation."""
    return Line(each.key, "step", 0, "", each.left, each.right, (), each.value.shape, each.value, sizes=each.sizes,
                of=of, remarks=(each.shown,) if each.shown else ())  # fmt: skip


def with_index_explained(forward: Lines, backward: Lines, stepped: set[Expression]) -> tuple[Lines, Lines]:
    """Both passes, with a remark where an index first stands: it counts rows, or steps."""
    lines = [*forward, *backward]
    for i, line in enumerate(lines):
        names = [each for side in (line.left, line.right) for each in side.every()
                 if isinstance(each, Name) and each.below.endswith("t") and each.base not in REDUCED]  # fmt: skip
        if names:
            whole = replace(names[0], below=names[0].below.removesuffix("t").removesuffix(","))
            said = f"{written(names[0])} is row t of {written(whole)}, as a column"
            said = f"{written(names[0])} is {written(whole)} at step t" if whole in stepped else said
            lines[i] = replace(line, remarks=(*line.remarks, said))
            break
    return tuple(lines[: len(forward)]), tuple(lines[len(forward) :])


def name_last_steps(recording: Recording, symbols: dict[int, Expression], name: Callable) -> dict[int, int]:
    """Gives the last value that a scan carries its symbol, h₄; the number of the steps' value by its own.

    name: the symbol of a variable, for steps that no line names.
    """
    steps = [ref for ref in recording.operations if recording.stacked.get(ref) == 1 and recording.root(ref) == ref]
    found = {}
    for last, (word, *_) in recording.outside.items():
        for ref in sorted(steps, key=lambda ref: ref not in symbols):
            pairs = [(values[ref][-1], values[last]) for values in (recording.values, recording.others)]
            if last not in found and all(np.array_equal(one, other) for one, other in pairs):
                symbols[ref] = symbols[ref] if ref in symbols else name(word, True)
                found[last], symbols[last] = ref, at(symbols[ref], str(len(recording.values[ref])))
    return found
