"""Over a run: how δ, weights and accuracy moved, at the checkpoints that are kept and by the metrics of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxnet.backprop import trace
from jaxnet.explaining.notation import NIELSEN, Notation
from jaxnet.explaining.numbering import number_layers
from jaxnet.explaining.numbers import number, one
from jaxnet.explaining.observe import Item, Observed, chain
from jaxnet.layer import Tree, leaves

ROWS = 12  # of a table, beyond which rows are left out evenly
ACCURACIES = ("validation_accuracy", "test_accuracy", "train_accuracy")
LOSSES = ("validation_loss", "train_loss", "test_loss")


@dataclass(frozen=True, eq=False)
class Moment:
    """The parameters at one step of a run; step 0 is before the first."""

    step: int
    epoch: int
    params: Tree


@dataclass(frozen=True, eq=False)
class History:
    """The moments whose parameters are known, oldest first, and the metrics of every epoch."""

    moments: tuple[Moment, ...]
    metrics: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Movement:
    """One moment at one example: C, and of each dense layer ‖δ‖, ‖W‖ and how far W is from its first value."""

    step: int
    epoch: int
    cost: float
    layers: tuple[str, ...]
    deltas: tuple[float, ...]
    weights: tuple[float, ...]
    moved: tuple[float, ...]
    accuracy: float | None


def at_moments(observed: Observed, history: History) -> list[Observed]:
    """The example at each moment, by one compiled pass: what each layer gives and its δ; gradients are not kept."""
    run = jax.jit(trace(observed.net, observed.loss))
    found = []
    for moment in history.moments:
        traced = run(moment.params, observed.x, observed.y)
        net_params = moment.params if observed.loss.init is None else moment.params[0]
        steps = iter(traced.steps)
        items: list[Item] = []
        for before, (_, params) in zip(observed.items, chain(observed.net, net_params), strict=True):
            mine = [next(steps) for _ in leaves(before.layer)]
            items.append(
                replace(
                    before, params=jax.tree.map(np.asarray, params), out=np.asarray(mine[-1].out),
                    d_out=np.asarray(mine[-1].delta), dx=None, grads=(),
                )
            )  # fmt: skip
        found.append(replace(observed, params=moment.params, cost=float(traced.cost), items=tuple(items)))
    return found


def movements(observed: Sequence[Observed], history: History, notation: Notation = NIELSEN) -> tuple[Movement, ...]:
    """How the example's δ and the weights moved. observed: the same example at each moment."""
    found = []
    first: dict[int, np.ndarray] = {}
    for moment, seen in zip(history.moments, observed, strict=True):
        dense = [place for place in number_layers(seen, notation) if place.kind == "dense"]
        for place in dense:
            first.setdefault(place.index, place.item.params["W"])
        found.append(
            Movement(
                moment.step, moment.epoch, seen.cost, tuple(notation.number(place.number) for place in dense),
                tuple(float(np.linalg.norm(place.item.d_out)) for place in dense),
                tuple(float(np.linalg.norm(place.item.params["W"])) for place in dense),
                tuple(float(np.linalg.norm(place.item.params["W"] - first[place.index])) for place in dense),
                at_epoch(history.metrics, moment.epoch, ACCURACIES),
            )
        )  # fmt: skip
    return tuple(found)


def at_epoch(metrics: Sequence[dict[str, Any]], epoch: int, names: Sequence[str]) -> float | None:
    """The first of these metrics that an epoch has."""
    line = next((line for line in metrics if line.get("epoch") == epoch), {})
    return next((float(line[name]) for name in names if isinstance(line.get(name), int | float)), None)


def history_lines(moved: Sequence[Movement], history: History, digits: int) -> list[str]:
    """The table of the moments, and that of the epochs."""
    found: list[str] = []
    if moved:
        layers = moved[0].layers
        heads = ["step", "epoch", "C", *(f"‖δ{n}‖" for n in layers), *(f"‖W{n}‖" for n in layers),
                 *(f"W{n} moved" for n in layers), "accuracy"]  # fmt: skip
        rows = [
            [f"{each.step:,}", str(each.epoch), *(one(value, digits) for value in
             (each.cost, *each.deltas, *each.weights, *each.moved)), percent(each.accuracy)]
            for each in moved
        ]  # fmt: skip
        found += ["OVER THE RUN, at this example", *table(heads, rows)]
    epochs = [line for line in history.metrics if "epoch" in line]
    if epochs:
        found += ["EPOCHS", *epoch_table(epochs, digits)]
    return [*found, *history.notes]


def epoch_table(epochs: Sequence[dict[str, Any]], digits: int) -> list[str]:
    """Loss, accuracy and the norms of δ epoch by epoch, evenly thinned out."""
    loss = next((name for name in LOSSES if any(name in line for line in epochs)), None)
    accuracy = next((name for name in ACCURACIES if any(name in line for line in epochs)), None)
    width = max((len(line.get("delta_norms") or ()) for line in epochs), default=0)
    heads = ["epoch", *([loss.replace("_", " ")] if loss else []), *([accuracy.replace("_", " ")] if accuracy else []),
             *(f"mean ‖δ‖ {i + 1}" for i in range(width))]  # fmt: skip
    rows = []
    for line in thinned(epochs, ROWS):
        norms = list(line.get("delta_norms") or ())
        cells = [str(line["epoch"])]
        cells += [told(line.get(loss), digits)] if loss else []
        cells += [percent(line.get(accuracy))] if accuracy else []
        rows.append([*cells, *(told(norms[i] if i < len(norms) else None, digits) for i in range(width))])
    return table(heads, rows)


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` rows at even distances, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def told(value: Any, digits: int) -> str:
    """A number, or a dash."""
    return one(float(value), digits) if isinstance(value, int | float) else "—"


def percent(value: Any) -> str:
    """A share in percent, or a dash."""
    return f"{number(100 * float(value), 2)} %" if isinstance(value, int | float) else "—"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned to the right."""
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)
    ]
