"""Which layout: row (numerator) or column (denominator)? Why transpose AND reverse?

    python -m experiments.which_layout [KEY=VALUE …] [--out runs/which_layout/page.html]

From experiments/which_layout.toml: the chain of Jacobians of a small network in both layouts, multiplied out; ∂z/∂W as
the tensor that it is, and how it collapses to δ aᵀ; and that δᵀW and Wᵀδ cost the same, counted and timed.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import numpy as np
import typer
from pydantic import Field

from experiments.page import Formulas, Section, Settings, Table, Words, page, settings_of, write_page
from jaxnet.explaining import Derivation, derive, notation, observe
from jaxnet.explaining.expressions import Derivative, Expression, Minus, Name, Sum, Transposed, written
from jaxnet.explaining.expressions import Product as Chain
from jaxnet.explaining.model import Jacobian, Layouts
from jaxnet.explaining.numbers import shape, vector
from jaxnet.training.explain_target import config_subject

FILE = Path(__file__).with_suffix(".toml")


class Layout(Settings):
    """The options of the experiment."""

    config: str
    example: int = Field(default=0, ge=0)
    widths: list[int] = Field(min_length=1)
    repeats: int = Field(default=200, ge=3)


class Product(NamedTuple):
    """One derivative in both layouts: its name, and both products multiplied out."""

    of: str
    row: np.ndarray
    column: np.ndarray


class Timing(NamedTuple):
    """δᵀW and Wᵀδ of an (n, n) layer: multiplications, and microseconds of each."""

    width: int
    multiplications: int
    row: float
    column: float


class Results(NamedTuple):
    """Products, tensors and timings."""

    derivation: Derivation
    products: list[Product]
    timings: list[Timing]


# ------------------------------------------------------------------------------------------- multiplied out


def values_of(derivation: Derivation) -> dict[str, np.ndarray]:
    """Each quantity's value by its key."""
    found = {line.key: line.value for line in (*derivation.forward, *derivation.backward)}
    found |= {f"W{layer.number}": layer.params["W"] for layer in derivation.layers if "W" in layer.params}
    return found | {"x": derivation.header.x, "y": derivation.header.y}


def evaluated(expression: Expression, values: dict[str, np.ndarray]) -> np.ndarray:
    """A name, a sum of names, or the transpose of one, as a matrix; vectors are columns."""
    match expression:
        case Name():
            value = values[expression.key or expression.base]
            return value[:, None] if value.ndim == 1 else value
        case Transposed():
            return evaluated(expression.of, values).T
        case Minus():
            return -evaluated(expression.of, values)
        case Sum():
            return np.sum([evaluated(term, values) for term in expression.terms], axis=0)
    raise ValueError(f"{written(expression)} is no factor of a chain of Jacobians")


def matrix(jacobian: Jacobian, values: dict[str, np.ndarray]) -> np.ndarray:
    """A Jacobian as a matrix of its shape."""
    if jacobian.diagonal is not None:
        return np.diag(jacobian.diagonal)
    found = evaluated(jacobian.expression, values)
    assert found.shape == jacobian.shape, f"{written(jacobian.expression)}: {found.shape}, not {jacobian.shape}"
    return found


def multiplied(factors: Sequence[Jacobian], values: dict[str, np.ndarray]) -> np.ndarray:
    """The product of a chain of Jacobians, in the order in which it is written."""
    return np.linalg.multi_dot([matrix(each, values) for each in factors])


def both(layouts: Layouts, values: dict[str, np.ndarray]) -> Product:
    """A derivative in both layouts."""
    row, column = (multiplied(factors, values) for factors in (layouts.row, layouts.column))
    return Product(written(layouts.of), row, column)


# --------------------------------------------------------------------------------------------------- timed


def microseconds(functions: Sequence[Callable], repeats: int) -> list[float]:
    """The least time of each function, taken in turns so that all see the same machine."""
    for function in functions:
        jax.block_until_ready(function())
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(function())
            taken.append(time.perf_counter() - begun)
    return [1e6 * min(taken) for taken in times]


def timed(width: int, repeats: int) -> Timing:
    """δᵀW and Wᵀδ of one layer."""
    W, delta = jax.random.normal(jax.random.key(0), (width, width)), jax.random.normal(jax.random.key(1), (width,))
    row, column = jax.jit(lambda W, delta: delta @ W), jax.jit(lambda W, delta: W.T @ delta)
    return Timing(width, width * width, *microseconds([lambda: row(W, delta), lambda: column(W, delta)], repeats))


def measure(overrides: Sequence[str] = ()) -> Results:
    """The options in experiments/which_layout.toml."""
    settings = settings_of(Layout, FILE, overrides)
    subject = config_subject(FILE.parent.parent / settings.config, (), example=settings.example)
    observed = observe(subject.net, subject.loss, subject.params, subject.xs[0], subject.ys[0])
    derivation = derive(observed, notation("nielsen"), source=settings.config, example=settings.example)
    values = values_of(derivation)
    return Results(
        derivation,
        [both(layouts, values) for layouts in derivation.layouts],
        [timed(width, settings.repeats) for width in settings.widths],
    )


# ------------------------------------------------------------------------------------------------- the page


def render(results: Results, command: str) -> str:
    """The page."""
    derivation = results.derivation
    worst = max(float(np.abs(each.row.T - each.column).max()) for each in results.products)
    ratios = [each.column / each.row for each in results.timings]
    answer = [
        f"Either: they hold the same numbers, here {f'to {worst:.0e}' if worst else 'to the last bit'}. Row layout "
        "writes the chain rule in the order of the chain, δᵀ W; column layout is its transpose, and (AB)ᵀ = BᵀAᵀ turns "
        "every factor and reverses their order in one act.",
        f"So the transposes are a convention: δᵀW and Wᵀδ take the same multiplications. {time_of(ratios)} What costs "
        "is "
        "the order in which a chain is multiplied.",
    ]
    return page(
        "Which layout?",
        "Is the gradient a row or a column, and where do the transposes come from?",
        answer,
        [Section("The same chain in both layouts", chains(results)),
         Section("∂z/∂W is a tensor", tensors(derivation)),
         Section("What a transpose costs", costs(results))],
        f"Made by {command} from {derivation.header.source}, training example {derivation.header.example}.",
    )  # fmt: skip


ALIKE = 1.25  # times as long, within which two timings are called the same


def time_of(ratios: Sequence[float]) -> str:
    """The measured time of the transpose. ratios: Wᵀδ's time to δᵀW's, by width."""
    low, high = min(ratios), max(ratios)
    measured = f"Wᵀδ took {low:.2f} to {high:.2f} times as long"
    if low >= 1 / ALIKE and high <= ALIKE:
        return f"Here the transpose costs no time either: {measured}."
    slower = "slower" if low > 1 else "faster" if high < 1 else "slower at some widths and faster at others"
    return (
        f"Here the written order costs time all the same, {measured}: XLA's product is {slower} along the other axis."
    )


def chains(results: Results) -> list:
    """Both layouts of each derivative, and their products."""
    blocks: list = [
        Formulas(
            f"{each.of}, {'from the cost itself' if i else 'from the δ of the layer above'}",
            [chain_of("row", layouts.row, layouts.row_shape), chain_of("column", layouts.column, layouts.column_shape)],
        )
        for i, (each, layouts) in enumerate(zip(results.products, results.derivation.layouts, strict=True))
    ]
    rows = [
        (each.of, f"{name} {shape(value.shape)}", *(f"{v + 0.0:.6f}" for v in value.ravel()))
        for each in results.products
        for name, value in (("row", each.row), ("column", each.column))
    ]
    width = max(len(row) for row in rows) - 2
    headings = ("derivative", "layout", *(f"entry {i + 1}" for i in range(width)))
    blocks.append(Table("Both multiplied out", headings, [(*row, *[""] * (width + 2 - len(row))) for row in rows], 2))
    blocks.append(
        Words("The Jacobian of an activation is diagonal, since aᵢ hangs on zᵢ alone: multiplying by it is ⊙ with its "
              "diagonal, in either layout. It is no column: shapes of a column would fit, as a sum over units that "
              "nobody asked for.")
    )  # fmt: skip
    return blocks


def chain_of(name: str, factors: Sequence[Jacobian], result: tuple[int, ...]) -> tuple:
    """A product of Jacobians with their shapes below them, and the shape of the result."""
    product = Chain(tuple(each.expression for each in factors), "·")
    return name, (product, {each.expression: shape(each.shape) for each in factors}), f"→ {shape(result)}"


def tensors(derivation: Derivation) -> list:
    """∂z/∂W, slice by slice, and its collapse."""
    if not derivation.tensors:
        return [Words("The layers are too wide to print ∂z/∂W, with its (out, out, in) entries.")]
    tensor = derivation.tensors[0]
    out, _, into = tensor.value.shape
    lines = []
    for k in range(out):
        slices = [vector(row) for row in tensor.value[k]]
        of = Derivative(Name("W", tensor.layer), Name("z", tensor.layer, str(k + 1)))
        lines.append((of, "= " + " │ ".join(slices)))
    collapsed = [" ".join(f"{v + 0.0:.6f}" for v in row) for row in tensor.collapsed]
    outer = np.outer(tensor.delta, tensor.a)
    rows = [(f"row {i + 1}", text, " ".join(f"{v + 0.0:.6f}" for v in outer[i])) for i, text in enumerate(collapsed)]
    return [
        Formulas(f"∂z/∂W of layer {tensor.layer}, {shape(tensor.value.shape)}: row by row of each slice", lines),
        Table("Σₖ δₖ ∂zₖ/∂W against δ aᵀ", ("of W", "tensor contracted with δ", "δ aᵀ"), rows),
        Words(f"Of its {out * out * into} entries {out * into} are a's; the rest are 0, since a weight enters one z "
              "alone. Contracted with δ over the first axis each row i is left with δᵢ aᵀ: so no sum, and no tensor, "
              "is ever computed."),
    ]  # fmt: skip


def costs(results: Results) -> list:
    """δᵀW beside Wᵀδ."""
    rows = [
        (
            f"{t.width} × {t.width}",
            f"{t.multiplications:,}",
            f"{t.multiplications:,}",
            f"{t.row:.1f}",
            f"{t.column:.1f}",
        )
        for t in results.timings
    ]
    headings = ("W", "δᵀW, products", "Wᵀδ, products", "δᵀW, µs", "Wᵀδ, µs")
    words = "Each entry of W is used once in either. The least of many runs, both in turns; compiled by XLA for a CPU."
    return [Table("The same product, written twice", headings, rows), Words(words)]


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Changes to the TOML file.")
    ] = None,
    out: Path = Path("runs/which_layout/page.html"),
) -> None:
    """Row and column layout side by side."""
    changes = list(overrides or ())
    command = " ".join(["python -m experiments.which_layout", *changes])
    write_page(out, render(measure(changes), command))


if __name__ == "__main__":
    typer.run(main)
