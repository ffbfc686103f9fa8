"""`jaxnet influence RUN --test I`: the training examples that a prediction of a run's network rests on, as a page."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from jaxnet.backprop import predict
from jaxnet.layer import Layer, Loss, Tree
from jaxnet.quantities.influence import influence, self_influence
from jaxnet.quantities.kronecker import ekfac, is_axes, kronecker
from jaxnet.training import devices
from jaxnet.training.data import Dataset
from jaxnet.training.plots import DARK, LIGHT
from jaxnet.training.run_folder import RunError, replace_file, writing
from jaxnet.training.trained_network import NEWEST, CheckpointChoice, restore

BATCH = 250  # examples whose influence is computed at a time


class Example(NamedTuple):
    """An example: its place in its split, its label, its influence, and its picture as a URI, if it is one."""

    place: int
    label: str
    influence: float
    picture: str


@dataclass(frozen=True)
class Influences:
    """The training examples that helped or harmed a prediction most, and the labels that others support least."""

    run: str
    split: str
    asked: Example
    answer: str
    helpful: list[Example]
    harmful: list[Example]
    suspects: list[Example]

    def lines(self) -> list[str]:
        """The examples by number, for the terminal."""
        said = [f"{self.split} example {self.asked.place}, {self.asked.label}: the network says {self.answer}"]
        for words, examples in (
            ("helped most by", self.helpful),
            ("hindered most by", self.harmful),
            ("least supported labels", self.suspects),
        ):
            told = "  ".join(f"{each.place} ({each.label}, {each.influence:+.3g})" for each in examples)
            said.append(f"{words}: {told}")
        return said


def of_run(
    folder: Path,
    place: int,
    *,
    most: int = 8,
    damping: float = 1e-3,
    data_dir: Path | None = None,
    reading: CheckpointChoice = NEWEST,
) -> Influences:
    """The influence of each training example of a run on the prediction for one example of its test set.

    Raises RunError for an unknown place, or a network or data without influences; else as `restore` does.
    """
    trained = restore(folder, data_dir=data_dir, reading=reading)
    session, dataset = trained.session, trained.session.dataset
    split = "test" if len(dataset.test.y) else "validation"
    asked = getattr(dataset, split)
    if not session.classified or dataset.train.y.ndim != 1:
        raise RunError(f"{folder}: influences are of examples with a class each, and {dataset.name} has none")
    if not 0 <= place < len(asked.y):
        raise RunError(f"{folder}: the {split} set has examples 0 to {len(asked.y) - 1}, got {place}")
    net, loss, params = session.recipe.net, session.recipe.loss, trained.params
    with devices.precision(trained.config.precision):
        xs, ys = session.arrays["train"]
        query = tuple(t[place : place + 1] for t in session.arrays[split])
        try:
            axes = curvature(net, loss, params, xs, ys)
            on_query = jax.jit(influence(net, loss, damping=damping))
            on_itself = jax.jit(self_influence(net, loss, damping=damping))
        except ValueError as error:
            raise RunError(f"{folder}: its network has no influences: {error}") from None
        found = in_batches(lambda x, y: on_query(params, axes, x, y, *query)[0], xs, ys)
        own = in_batches(lambda x, y: on_itself(params, axes, x, y), xs, ys)
        answer = int(jnp.argmax(predict(net)(params, query[0])[0]))

    def named(label: Any) -> str:
        return dataset.names[int(label)] if dataset.names else str(label)

    def examples(order: np.ndarray, values: np.ndarray) -> list[Example]:
        return [example(dataset, "train", int(i), named(dataset.train.y[i]), float(values[i])) for i in order[:most]]

    order = np.argsort(-found)
    return Influences(
        folder.name,
        split,
        example(dataset, split, place, named(asked.y[place]), 0.0),
        named(answer),
        examples(order, found),
        examples(order[::-1], found),
        examples(np.argsort(-own), own),
    )


def curvature(net: Layer, loss: Loss, params: Tree, xs: Any, ys: Any) -> Tree:
    """The `Axes` of each parameter by EKFAC over all examples, batch after batch, a random column for each."""
    factors, corrected = (jax.jit(of(net, loss)) for of in (kronecker, ekfac))

    def mean(of: Callable[..., Tree], *more: Tree) -> Tree:
        def share(at: int) -> Tree:
            x, y = xs[at : at + BATCH], ys[at : at + BATCH]
            found = of(params, x, y, *more, key=jax.random.key(at // BATCH))
            return jax.tree.map(lambda t: len(x) / len(xs) * t, found)

        return reduce(partial(jax.tree.map, jnp.add), map(share, range(0, len(xs), BATCH)))

    blocks = mean(factors)
    means = mean(corrected, blocks)
    basis = corrected(params, xs[:1], ys[:1], blocks, key=jax.random.key(0))
    return jax.tree.map(lambda a, mean: replace(a, lengths=mean.lengths), basis, means, is_leaf=is_axes)


def in_batches(of: Callable, xs: Any, ys: Any) -> np.ndarray:
    """`of(xs, ys)`, a number for each example, batch after batch."""
    starts = range(0, len(xs), BATCH)
    return np.concatenate([np.asarray(of(xs[at : at + BATCH], ys[at : at + BATCH])) for at in starts])


def example(dataset: Dataset, split: str, place: int, label: str, value: float) -> Example:
    """An example as it is shown."""
    pixels = dataset.as_picture(getattr(dataset, split).x[place])
    return Example(place, label, value, "" if pixels is None else picture(pixels))


def picture(pixels: np.ndarray) -> str:
    """A picture as the URI of a PNG, its darkest number black and its lightest white."""
    low, high = float(pixels.min()), float(pixels.max())
    grey = (255 * (pixels - low) / max(high - low, 1e-12)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def page(found: Influences) -> str:
    """A self-contained page, light and dark."""
    groups = [
        ("Most helpful", "Training examples without which the cost of this one would rise most.", found.helpful),
        ("Most harmful", "Training examples without which it would fall most.", found.harmful),
        (
            "Least supported labels",
            "Of the whole training set: the network holds these labels by their own examples alone. Wrong ones are "
            "among the first.",
            found.suspects,
        ),
    ]
    environment = Environment(loader=PackageLoader("jaxnet.training"), autoescape=True, trim_blocks=True)
    return environment.get_template("influence.html.j2").render(
        title=f"{found.run}: what the answer to {found.split} example {found.asked.place} rests on",
        about="Influence by ∇C_qᵀ (G + λ)⁻¹ ∇C_x, G the Gauss-Newton matrix by EKFAC.",
        asked=found.asked,
        answer=found.answer,
        split=found.split,
        groups=groups,
        light=LIGHT,
        dark=DARK,
    )


def write(found: Influences, out: Path) -> Path:
    """Writes the page into a folder."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return replace_file(out / f"influence-{found.asked.place}.html", page(found).encode())
