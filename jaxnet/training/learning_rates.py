"""The learning-rate range test: the cost of each step while the learning rate grows.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2015, section 3.3.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from jaxnet.training import devices
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import load
from jaxnet.training.fine_tuning import trained_start
from jaxnet.training.plots import LIGHT, dress, png
from jaxnet.training.program_cache import keep_compiled
from jaxnet.training.run_folder import replace_file
from jaxnet.training.session import Session

SMOOTHING = 0.9
TOO_HIGH = 4.0  # the test ends where the smoothed cost is so many times the lowest


class RangeTest(NamedTuple):
    """Learning rates, the cost of the batch at each, and the costs smoothed; the last ones may be infinite."""

    rates: np.ndarray
    costs: np.ndarray
    smoothed: np.ndarray

    def steepest(self) -> float | None:
        """The rate with the fastest fall of the smoothed cost over the rate's logarithm; None where it never falls.

        Falls are taken over a tenth of the steps at a time: those of single steps are mostly noise of the batches.
        """
        lowest, span = int(np.argmin(self.smoothed)), max(1, len(self.rates) // 10)
        if lowest < span:
            return None
        falls = self.smoothed[: lowest + 1 - span] - self.smoothed[span : lowest + 1]
        return float(self.rates[int(np.argmax(falls)) + span // 2])

    def lines(self) -> list[str]:
        """The result as text."""
        steepest = self.steepest()
        if steepest is None:
            return [f"the cost does not fall between {self.rates[0]:.2g} and {self.rates[-1]:.2g}: give other bounds"]
        lowest = self.rates[int(np.argmin(self.smoothed))]
        return [f"the cost falls fastest at learning rate {steepest:.2g}, and is lowest at {lowest:.2g}"]


def range_test(
    config: Config, *, low: float = 1e-5, high: float = 10.0, steps: int = 100, data_dir: Path | None = None
) -> RangeTest:
    """Trains for some steps while the learning rate grows from low to high by a constant factor; keeps nothing.

    It ends sooner where the cost is no longer finite, or far above its lowest.
    Raises ConfigError for bounds out of order or an optimizer without a learning rate, and as `loop.train` does.
    """
    if not (0 < low < high and math.isfinite(high) and steps >= 2):
        raise ConfigError(f"low must be above 0 and below high, steps at least 2, got {low:g}, {high:g} and {steps}")
    optimizer = config.train.optimizer
    if not isinstance(optimizer, dict) or "learning_rate" not in optimizer:
        raise ConfigError("train.optimizer must have a learning_rate, which the test sets, got none")
    growth = {"init_value": low, "transition_steps": steps - 1, "decay_rate": high / low}
    rising = optimizer | {"learning_rate": {"schedule": "exponential_decay", **growth}}
    train = config.train.model_copy(update={"optimizer": rising, "steps_per_call": 1, "accumulate": 1})
    config = config.model_copy(update={"train": train})
    keep_compiled()
    with devices.precision(config.precision):
        session = Session(config, load(config.data, data_dir=data_dir))
        start = trained_start(session, data_dir)
        costs = costs_of(session, session.begin(None if start is None else start.given), steps)
    rates = low * (high / low) ** (np.arange(len(costs)) / (steps - 1))
    return RangeTest(rates, np.array(costs), np.array(smooth(costs)))


def costs_of(session: Session, state, steps: int) -> list[float]:
    """The mean cost of each step's batch, until it is not finite or far above its lowest."""
    costs: list[float] = []
    epoch = 0
    while True:
        order = session.order(epoch)
        for call in session.calls:
            state, good, _ = session.steps(call, session.fresh_sums(state), order)
            costs.append(float(session.rows(state.sums["loss"])[0]) / call.batch)
            if not good.all():
                costs[-1] = math.inf
            smoothed = smooth(costs)
            if len(costs) == steps or smoothed[-1] > TOO_HIGH * min(smoothed):
                return costs
        epoch += 1


def smooth(costs: Sequence[float]) -> list[float]:
    """The exponentially weighted mean of the costs up to each, its beginning weighted as the rest."""
    found, mean = [], 0.0
    for i, cost in enumerate(costs, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * cost
        found.append(mean / (1 - SMOOTHING**i))
    return found


def write_curve(test: RangeTest, path: Path) -> Path:
    """The curve as a PNG."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", facecolor=LIGHT.paper)
    axes = figure.add_subplot()
    finite = np.isfinite(test.costs)
    axes.plot(test.rates[finite], test.costs[finite], color=LIGHT.grid, linewidth=1.2)
    axes.plot(test.rates[finite], test.smoothed[finite], color=LIGHT.few[0], linewidth=1.8)
    if (steepest := test.steepest()) is not None:
        axes.axvline(steepest, color=LIGHT.few[1], linewidth=1.2, linestyle="--")
    dress(axes, LIGHT)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", color=LIGHT.quiet, fontsize=10)
    axes.set_title("cost of each step, smoothed; dashed: the steepest fall", loc="left", color=LIGHT.ink, fontsize=11)
    return replace_file(path, png(figure))
