"""All gradients of the 2-3-2 network, entry by entry.

    python -m experiments.two_three_two [KEY=VALUE …] [--example I] [--out runs/two_three_two/page.html]

configs/two_three_two.toml: relu hidden, sigmoid output, ½‖a − y‖², pinned weights. Each entry of each ∇W and ∇b is
computed four ways: by the hand-written backward pass, by adding up the paths through the network one by one, by
`jax.grad`, and by a quotient of differences; every line is derived as `jaxnet explain` derives it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer

from experiments.page import Equations, Formulas, Section, Table, Words, page, write_page
from experiments.typeset import Equal
from jaxnet.backprop import one_example
from jaxnet.explaining import Derivation, derive, notation, observe
from jaxnet.explaining.model import Line
from jaxnet.explaining.numbers import array_lines, lowered_index
from jaxnet.explaining.terminal import overview, shapes
from jaxnet.readings import product
from jaxnet.training.explain_target import config_subject

CONFIG = Path(__file__).parent.parent / "configs" / "two_three_two.toml"
STEP = 1e-5


class Entry(NamedTuple):
    """∂C/∂(one number): its name, its equation with numbers, and its value four ways."""

    name: str
    equation: str
    by_hand: float
    by_paths: float
    by_autodiff: float
    by_differences: float


class Results(NamedTuple):
    """The derivation, and every entry."""

    derivation: Derivation
    entries: list[Entry]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def cost(params: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """C of the 2-3-2 network, by NumPy. params: W², b², W³, b³."""
    W2, b2, W3, b3 = params
    a3 = sigmoid(W3 @ np.maximum(W2 @ x + b2, 0) + b3)
    return float(((a3 - y) ** 2).sum() / 2)


def paths(params: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """∂C/∂ of W², b², W³, b³: for each number the sum over its paths to C of the products of slopes, by plain loops."""
    W2, b2, W3, b3 = params
    z2 = W2 @ x + b2
    a2 = np.maximum(z2, 0)
    a3 = sigmoid(W3 @ a2 + b3)
    grads = [np.zeros_like(p) for p in params]
    for k in range(len(a3)):
        at_output = (a3[k] - y[k]) * a3[k] * (1 - a3[k])
        grads[3][k] += at_output
        for j in range(len(a2)):
            grads[2][k, j] += at_output * a2[j]
            at_hidden = at_output * W3[k, j] * (z2[j] > 0)
            grads[1][j] += at_hidden
            for i in range(len(x)):
                grads[0][j, i] += at_hidden * x[i]
    return grads


def differences(of: Callable, params: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Central differences of a function of several arrays, number by number."""
    grads = []
    for n, p in enumerate(params):
        grad = np.zeros_like(p)
        for at in np.ndindex(p.shape):
            moved = [[q.copy() for q in params] for _ in range(2)]
            moved[0][n][at] += STEP
            moved[1][n][at] -= STEP
            grad[at] = (of(moved[0]) - of(moved[1])) / (2 * STEP)
        grads.append(grad)
    return grads


def measure(overrides: Sequence[str] = (), example: int = 0) -> Results:
    """All entries at one training example, in float64."""
    subject = config_subject(CONFIG, overrides, example=example)
    observed = observe(subject.net, subject.loss, subject.params, subject.xs[0], subject.ys[0])
    derivation = derive(observed, notation("nielsen"), source=CONFIG.name, example=example)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p, np.float64)), subject.params)
        x, y = (jnp.asarray(np.asarray(t, np.float64)) for t in (derivation.header.x, derivation.header.y))

        def value(params):
            return one_example(subject.net, subject.loss, product)(params, x, y, jnp.ones(()), None)

        by_hand = flat(jax.jit(value)(params)[1])
        by_autodiff = flat(jax.jit(jax.grad(lambda params: value(params)[0]))(params))
    arrays, x, y = flat(params), np.asarray(x), np.asarray(y)
    by_differences = differences(lambda moved: cost(moved, x, y), arrays)
    columns = (by_hand, paths(arrays, x, y), by_autodiff, by_differences)
    return Results(derivation, list(entries(derivation, columns)))


def flat(params) -> list[np.ndarray]:
    """W², b², W³, b³."""
    return [np.asarray(layer[name]) for layer in params if layer for name in ("W", "b")]


def entries(derivation: Derivation, columns: Sequence[Sequence[np.ndarray]]) -> Iterator[Entry]:
    """Every number with its equation: δ of its layer times the weight's input."""
    values = {line.key: line.value for line in (*derivation.forward, *derivation.backward)}
    inputs = {"2": ("x", derivation.header.x), "3": ("a²", values["a2"])}
    for n, key in enumerate(("W2", "b2", "W3", "b3")):
        letter, number = key
        delta, (name, a) = values[f"delta{number}"], inputs[number]
        raised = {"2": "²", "3": "³"}[number]
        for at in np.ndindex(columns[0][n].shape):
            j, *rest = (k + 1 for k in at)
            equation = f"δ{raised}{lowered_index(j)}"
            numbers = f"{delta[at[0]]:.4f}"
            if rest:
                equation += f" {name}{lowered_index(*rest)}"
                numbers += f" × {a[at[1]]:.4f}"
            yield Entry(
                f"∂C/∂{letter}{raised}{lowered_index(*(k + 1 for k in at))}",
                f"{equation} = {numbers}",
                *(float(column[n][at]) for column in columns),
            )


# ------------------------------------------------------------------------------------------------- the page


def render(results: Results, command: str) -> str:
    """The page."""
    derivation, found = results.derivation, results.entries
    far = max(max(abs(e.by_hand - e.by_paths), abs(e.by_hand - e.by_autodiff)) for e in found)
    off = max(abs(e.by_hand - e.by_differences) for e in found)
    rows = [
        (e.name, e.equation, *(f"{v + 0.0:.8f}" for v in (e.by_hand, e.by_paths, e.by_autodiff, e.by_differences)))
        for e in found
    ]
    headings = ("entry", "equation", "by hand", "by paths", "jax.grad", "differences")
    zeros = [e.name for e in found if e.by_hand == 0]
    answer = [
        f"C = {derivation.header.value:.4f}. All {len(found)} gradients agree: the hand-written backward pass, the sum "
        f"over paths and jax.grad {f'to {far:.1e}' if far else 'to the last bit'}, and quotients of differences to "
        f"{off:.1e}.",
        f"A unit whose relu is off passes nothing back: {', '.join(zeros)} are 0." if zeros else "Every unit is on.",
    ]
    sections = [
        Section("The derivation", [
            Formulas("Forward", [equation_of(line) for line in derivation.forward]),
            Formulas("Backward", [equation_of(line) for line in derivation.backward]),
            Equations("As `jaxnet explain` prints it", overview(derivation).splitlines()),
        ]),
        Section("Entry by entry", [
            Table("Every gradient, four ways", headings, rows, labels=2),
            Words("By hand: δ times what the weight was multiplied by. By paths: for each number the product of the "
                  "slopes along each path to C, all paths added up. A weight of the second layer has one path, one of "
                  "the first has two, one for each output; W³ᵀδ³ is that sum, for all units at once."),
        ]),
        Section("What people ask of it", [
            block for each in derivation.answers for block in (Words(f"{each.question} {each.answer}"),)
        ]),
    ]  # fmt: skip
    return page(
        "2-3-2, entry by entry",
        "Two inputs, three relu units, two sigmoid outputs, half the squared error: what is each gradient?",
        answer,
        sections,
        f"Made by {command} from {derivation.header.source}, training example {derivation.header.example}; float64.",
    )


def equation_of(line: Line) -> tuple[Equal, str, str]:
    """A line's equation, its shapes, and its value."""
    return Equal(line.left, line.right), shapes(line), array_lines(line.value, 4, 200)[0]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Changes to the config.")] = None,
    example: int = 0,
    out: Path = Path("runs/two_three_two/page.html"),
) -> None:
    """All gradients of the 2-3-2 network, each four ways."""
    changes = list(overrides or ())
    command = " ".join(["python -m experiments.two_three_two", *changes])
    write_page(out, render(measure(changes, example), command))


if __name__ == "__main__":
    typer.run(main)
