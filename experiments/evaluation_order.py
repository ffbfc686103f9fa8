"""Why backwards? What it costs to multiply the chain of Jacobians from the loss, and from the input.

    python -m experiments.evaluation_order [KEY=VALUE …] [--out runs/evaluation_order/page.html]

From experiments/evaluation_order.toml: multiplications counted and time measured of ∂C/∂x over widths and depths, and
of the whole Jacobian ∂out/∂x over its outputs, where the cheaper end changes sides.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import typer
from pydantic import Field

from experiments.page import Section, Settings, Table, Words, page, plot, settings_of, write_page
from experiments.which_layout import microseconds
from jaxnet.explaining.layouts import multiplications
from jaxnet.training.plots import log_axis

FILE = Path(__file__).with_suffix(".toml")
Counts = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


class Orders(Settings):
    """Which chains are multiplied."""

    widths: Counts
    depths: Counts
    outputs: Counts
    inputs: int = Field(ge=1)
    repeats: int = Field(default=30, ge=3)


class Chain(NamedTuple):
    """One chain: widths, input first; rows at the loss; multiplications and microseconds from either end."""

    widths: tuple[int, ...]
    rows: int
    from_loss: int
    from_input: int
    loss_time: float
    input_time: float


class Results(NamedTuple):
    """∂C/∂x over widths and over depths, and ∂out/∂x over outputs."""

    by_width: list[Chain]
    by_depth: list[Chain]
    by_outputs: list[Chain]


def counted(widths: Sequence[int], of_cost: bool) -> tuple[int, int]:
    """Multiplications from the loss, and from the input: of the row δᵀ times all W, or of all W alone."""
    if of_cost:
        order = multiplications(widths)
        return order.from_loss, order.from_input
    first, last = widths[0], widths[-1]
    from_loss = sum(last * a * b for a, b in pairwise(widths[:-1]))
    return from_loss, sum(first * a * b for a, b in pairwise(widths[1:]))


def chain(widths: Sequence[int], of_cost: bool, repeats: int) -> Chain:
    """One chain, counted and timed on random matrices: ∂C/∂x, which begins with a row δᵀ, or ∂out/∂x."""
    keys = jax.random.split(jax.random.key(0), len(widths))
    Ws = [jax.random.normal(key, (out, into)) / into**0.5
          for key, (into, out) in zip(keys[1:], pairwise(widths), strict=True)]  # fmt: skip
    if of_cost:
        Ws.append(jax.random.normal(keys[0], (1, widths[-1])))

    @jax.jit
    def from_loss(Ws):
        *rest, product = Ws
        for W in reversed(rest):
            product = product @ W
        return product

    @jax.jit
    def from_input(Ws):
        product, *rest = Ws
        for W in rest:
            product = W @ product
        return product

    functions: list[Callable] = [lambda: from_loss(Ws), lambda: from_input(Ws)]
    rows = 1 if of_cost else widths[-1]
    return Chain(tuple(widths), rows, *counted(widths, of_cost), *microseconds(functions, repeats))


def measure(overrides: Sequence[str] = ()) -> Results:
    """All chains of experiments/evaluation_order.toml."""
    settings = settings_of(Orders, FILE, overrides)
    depth, width = settings.depths[0], settings.widths[len(settings.widths) // 2]
    return Results(
        [chain([each] * (depth + 1), True, settings.repeats) for each in settings.widths],
        [chain([width] * (each + 1), True, settings.repeats) for each in settings.depths],
        [chain([settings.inputs, width, width, each], False, settings.repeats) for each in settings.outputs],
    )


# ------------------------------------------------------------------------------------------------- the page


def crossover(chains: Sequence[Chain], wins: Callable[[Chain], bool]) -> Chain | None:
    """The first chain from which on one end wins at all that follow."""
    for i, each in enumerate(chains):
        if all(wins(later) for later in chains[i:]):
            return each
    return None


def rows_of(chains: Sequence[Chain]) -> list[tuple[str, ...]]:
    """The table of some chains."""

    def name(widths: Sequence[int]) -> str:
        return "-".join(map(str, widths)) if len(widths) < 6 else f"{len(widths) - 1} layers of {widths[0]}"

    return [
        (name(each.widths), f"{each.rows}", f"{each.from_loss:,}", f"{each.from_input:,}",
         f"{each.loss_time:.1f}", f"{each.input_time:.1f}", f"{each.input_time / each.loss_time:.2f}")
        for each in chains
    ]  # fmt: skip


def curves(title: str, words: str, xlabel: str, xs: Sequence[int], chains: Sequence[Chain]):
    """Time from both ends over one size."""

    def draw(axes, theme):
        for name, times, color in (
            ("from the loss", [each.loss_time for each in chains], theme.few[0]),
            ("from the input", [each.input_time for each in chains], theme.few[1]),
        ):
            axes.loglog(xs, times, "o-", color=color, label=name)
        axes.set(xlabel=xlabel, ylabel="µs")
        axes.set_xticks(xs, [f"{x}" for x in xs])
        axes.minorticks_off()
        log_axis(axes)
        axes.legend()

    return plot(title, words, f"time from the loss and from the input over {xlabel}; numbers in the table", draw)


def render(results: Results, command: str) -> str:
    """The page."""
    headings = ("widths", "rows", "from the loss", "from the input", "loss, µs", "input, µs", "ratio of times")
    nielsen = multiplications((784, 30, 10))
    wide = crossover(results.by_width, lambda each: each.input_time > 2 * each.loss_time)
    turned = crossover(results.by_outputs, lambda each: each.from_input < each.from_loss)
    measured = crossover(results.by_outputs, lambda each: each.input_time < each.loss_time)
    last = results.by_width[-1]
    answer = [
        f"The cost is one number, so from the loss a row meets each matrix: {nielsen.from_loss:,} multiplications in "
        f"784-30-10, where matrix by matrix from the input takes {nielsen.from_input:,}.",
        f"At width {last.widths[0]} the input's end takes {last.input_time / last.loss_time:.1f} times as long. "
        + (f"From width {wide.widths[0]} on it takes more than twice as long; below, calls cost more than products."
           if wide else "On these widths calls cost more than products: it never takes twice as long."),
        (f"With {turned.widths[0]} inputs and more numbers out than in, forward is the cheaper end: by count from "
         f"{turned.rows} outputs on, " if turned else "Within these outputs the loss's end stays cheaper by count, ")
        + (f"by time from {measured.rows} on." if measured else "and by time it never turns."),
    ]  # fmt: skip
    return page(
        "Why backwards?",
        "The chain of Jacobians may be multiplied from either end: why from the loss?",
        answer,
        [Section("∂C/∂x over width and depth", [
            curves("By width", f"{len(results.by_width[0].widths) - 1} layers", "width",
                   [each.widths[0] for each in results.by_width], results.by_width),
            curves("By depth", f"layers of {results.by_depth[0].widths[0]}", "layers",
                   [len(each.widths) - 1 for each in results.by_depth], results.by_depth),
            Table("∂C/∂x by width", headings, rows_of(results.by_width)),
            Table("∂C/∂x by depth", headings, rows_of(results.by_depth)),
            Words("Multiplications as counted, ⊙ left out; times are the least of many runs, both orders in turns, "
                  "compiled by XLA for a CPU. From the loss each layer costs n², from the input n³."),
         ]),
         Section("∂out/∂x over outputs: where the cheaper end changes sides", [
             curves("By outputs", f"{results.by_outputs[0].widths[0]} inputs", "outputs",
                    [each.rows for each in results.by_outputs], results.by_outputs),
             Table("∂out/∂x by outputs", headings, rows_of(results.by_outputs)),
             Words("With m outputs m rows go back together, with n inputs n columns go forward: the ends cost the same "
                   "where m = n. A cost has m = 1; that is all that makes backwards right."),
         ])],
        f"Made by {command} on {jax.devices()[0].device_kind}.",
    )  # fmt: skip


def main(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Changes to the file.")] = None,
    out: Path = Path("runs/evaluation_order/page.html"),
) -> None:
    """The chain of Jacobians from either end: multiplications and time."""
    changes = list(overrides or ())
    command = " ".join(["python -m experiments.evaluation_order", *changes])
    write_page(out, render(measure(changes), command))


if __name__ == "__main__":
    typer.run(main)
