"""The mistakes of a run's network: the classes that it confuses, and its most wrong examples."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from jaxnet.readings import total
from jaxnet.training import accuracy, devices
from jaxnet.training.data import Dataset
from jaxnet.training.plots import Panel, Theme
from jaxnet.training.session import recalls
from jaxnet.training.trained_network import restore

SPLITS = ("test", "validation", "train")
MOST_CLASSES = 20
MOST_EXAMPLES = 18


class Mistakes(NamedTuple):
    """Confusion of a split, (class, answer), names of the classes, and the worst examples, the highest cost first.

    worst: of each its number in the split, class, answer and cost. pictures: of each its x, where x is a picture.
    """

    split: str
    names: list[str]
    confusion: np.ndarray
    worst: list[tuple[int, int, int, float]]
    pictures: list[np.ndarray] | None

    def panels(self) -> list[Panel]:
        """The mistakes as panels of a report."""
        title, draw = f"{self.split}: class and answer", self.draw_pictures if self.pictures else self.list_examples
        found = [Panel("confusion", title, "how many of each class got each answer", self.draw_matrix, False)]
        if len(self.names) <= MOST_CLASSES:
            title = f"{self.split}: accuracy by class, %"
            found.append(Panel("recalls", title, "share of right answers", self.draw_recalls, False))
        if self.worst:
            words = "class as answer: the wrong answers of highest cost"
            found.append(Panel("worst", f"{self.split}: most wrong", words, draw, False))
        return found

    def draw_matrix(self, axes: Axes, records: object, theme: Theme) -> None:
        """Draws the confusion matrix; its numbers where there are few."""
        count, light = len(self.names), theme.paper == "#ffffff"
        wrong = self.confusion * (1 - np.eye(count))
        axes.imshow(wrong, cmap="Oranges" if light else "copper", aspect="auto")
        if count <= MOST_CLASSES:
            for i, j in np.argwhere(self.confusion):
                strong = wrong[i, j] > 0.5 * wrong.max()
                color = theme.quiet if i == j else theme.paper if strong == light else theme.ink
                axes.text(j, i, f"{self.confusion[i, j]}", fontsize=7, color=color, ha="center", va="center")
            axes.set_xticks(range(count), self.names, rotation=90 if max(map(len, self.names)) > 2 else 0)
            axes.set_yticks(range(count), self.names)
        axes.set_xlabel("answer", color=theme.quiet)
        axes.set_ylabel("class", color=theme.quiet)

    def draw_recalls(self, axes: Axes, records: object, theme: Theme) -> None:
        """Draws the share of right answers of each class as bars."""
        shares = 100 * np.nan_to_num(recalls(self.confusion))
        axes.barh(range(len(shares)), shares, color=theme.few[0])
        axes.set_yticks(range(len(shares)), self.names)
        axes.invert_yaxis()
        axes.set_xlim(max(0.0, min(shares) - 5), 100)

    def draw_pictures(self, axes: Axes, records: object, theme: Theme) -> None:
        """Draws the worst pictures, each with its class and its answer."""
        columns = 6
        rows = -(-len(self.worst) // columns)
        axes.set_axis_off()
        low, high = min(map(np.min, self.pictures or [])), max(map(np.max, self.pictures or []))
        for i, ((_, label, answer, _), picture) in enumerate(zip(self.worst, self.pictures or [], strict=True)):
            row, column = divmod(i, columns)
            inside = axes.inset_axes((column / columns, 1 - (row + 0.82) / rows, 0.9 / columns, 0.78 / rows))
            inside.imshow((picture - low) / max(high - low, 1e-12), cmap="gray", vmin=0, vmax=1)
            inside.set_axis_off()
            inside.set_title(f"{self.names[label]} as {self.names[answer]}", fontsize=8, color=theme.ink, pad=2)

    def list_examples(self, axes: Axes, records: object, theme: Theme) -> None:
        """Writes the numbers of the worst examples, each with its class and its answer."""
        axes.set_axis_off()
        for i, (number, label, answer, cost) in enumerate(self.worst):
            text = f"example {number}: {self.names[label]} as {self.names[answer]}, cost {cost:.3g}"
            axes.text(0, 1 - (i + 0.5) / MOST_EXAMPLES, text, fontsize=8, color=theme.ink, va="center")


def mistakes(folder: Path) -> Mistakes | None:
    """The mistakes of a run's network on its test set, or on another split where it has none; writes nothing.

    None where an example has no class of its own. Raises as `trained_network.restore` does.
    """
    trained = restore(folder)
    session, dataset = trained.session, trained.session.dataset
    split = next(name for name in SPLITS if name in session.arrays)
    labels = getattr(dataset, split).y
    if not session.classified or labels.ndim != 1:
        return None
    net, loss = session.recipe.net, session.recipe.loss

    def of(xy):
        out, _ = net.forward(trained.params, xy[0])
        return loss.turn((), out, xy[1], 1.0, total)[0], jnp.argmax(out)

    with devices.precision(trained.config.precision):
        at_once = accuracy.at_once(session.recipe)
        run = jax.jit(lambda arrays: jax.lax.map(of, tuple(arrays), batch_size=at_once))
        costs, answers = map(np.asarray, run(session.arrays[split]))
    count = max(dataset.classes or 0, int(answers.max()) + 1)
    names = [*(dataset.names or ()), *map(str, range(len(dataset.names or ()), count))]
    counted = labels != dataset.ignore if dataset.ignore is not None else np.ones(len(labels), bool)
    confusion = np.zeros((count, count), int)
    np.add.at(confusion, (labels[counted], answers[counted]), 1)
    order = np.argsort(-np.where((answers != labels) & counted, costs, -np.inf), kind="stable")
    wrong = order[: min(MOST_EXAMPLES, int(((answers != labels) & counted).sum()))]
    worst = [(int(i), int(labels[i]), int(answers[i]), float(costs[i])) for i in wrong]
    return Mistakes(split, names, confusion, worst, pictures(dataset, getattr(dataset, split).x[wrong]))


def pictures(dataset: Dataset, x: np.ndarray) -> list[np.ndarray] | None:
    """Examples as pictures, (height, width) or (height, width, 3); None where they are none."""
    found = [picture for each in x if (picture := dataset.as_picture(each)) is not None]
    return [each[..., 0] if each.shape[-1] == 1 else each for each in found] or None
