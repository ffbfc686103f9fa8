"""A config's data, network and compiled programs on the devices: for one seed, or for several, vmapped."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxnet.devices import processes
from jaxnet.devices.placement import RULES, batch_shares, check_rules, forms_for, layout, stacked
from jaxnet.layer import Layer, Loss, Tree, with_state
from jaxnet.quantities.privacy import epsilon
from jaxnet.training import accuracy, monitors, step
from jaxnet.training.angles import angles
from jaxnet.training.build import build, make, takes_blocks
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import Dataset, Split
from jaxnet.training.data.dataset import Text
from jaxnet.training.data.on_disk import ReadAhead
from jaxnet.training.devices import mesh_of, placed
from jaxnet.training.low_precision import in_precision, saving
from jaxnet.training.step import Arrays, Private, Recipe, State, StepCall
from jaxnet.training.text_windows import Batches, Windows, shifted

SHUFFLED = 2  # tells the stream of orders from others with the same seed


class Session:
    """The arrays and compiled programs of a run. Make and use one inside `devices.precision`.

    seeds: None for the config's own seed; else a state has a leading axis of seeds throughout.
    patiently: makes the long calls, compilations and computations, so that a signal may be heard meanwhile.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        seeds: Sequence[int] | None = None,
        patiently: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ):
        self.config, self.dataset, self.patiently = config, dataset, patiently
        self.together = seeds is not None
        self.seeds = [config.seed] if seeds is None else list(seeds)
        self.mesh = mesh_of(config)
        self.recipe = recipe_of(config, dataset, self.mesh)
        self.classified = counts_right(dataset, self.recipe.loss)
        self.layout = None if self.mesh is None else step.state_shardings(self.recipe)
        if self.layout is not None and self.together:
            self.layout = jax.tree.map(stacked, self.layout)
        usual = max(1, step.steps_per_call(self.recipe) // len(self.seeds))  # seeds share the time of one
        self.calls = step.epoch_calls(self.examples, config.train.batch, config.train.steps_per_call or usual)
        self.steps_per_epoch = sum(call.count for call in self.calls)
        keys = np.stack([np.asarray(step.key_data(seed)) for seed in self.seeds])
        self.key = placed(keys if self.together else keys[0], self.mesh)
        if dataset.on_disk and (self.together or config.monitor.train_accuracy):
            raise ConfigError(
                "data on disk are trained on by one seed at a time, without monitor.train_accuracy: take these out"
            )
        looked_at = max(1, config.monitor.mean_delta, config.monitor.angles, config.monitor.dead_units or 0)
        some = Split(*(t[:looked_at] for t in dataset.train)) if dataset.on_disk else dataset.train
        splits = dataset.splits | {"train": some}
        self.arrays = {name: self.on_device(split) for name, split in splits.items() if len(split.y)}
        self.training = self.arrays["train"] if dataset.text is None or dataset.on_disk else self.windows(dataset.text)
        self.programs: dict[Any, Callable] = {}

    # ------------------------------------------------------------------------------------------ data

    @property
    def examples(self) -> int:
        """The size of the training set."""
        return len(self.dataset.train.y)

    def on_device(self, split: Split) -> Arrays:
        """A split, whole on every device."""
        return Arrays(*(placed(self.config.typed(array), self.mesh) for array in split))

    def windows(self, text: Text) -> Windows:
        """The text to train on, whole on every device."""
        return Windows(placed(text.tokens, self.mesh), self.dataset.train.x.shape[1])

    def read(self, places: np.ndarray) -> Split:
        """Examples of data on disk, at places of any shape."""
        (x, y), text = self.dataset.train, self.dataset.text
        if text is None:
            return Split(x[places], y[places])
        windows = text.tokens[places[..., None] + np.arange(x.shape[1] + 1)]
        return Split(windows[..., :-1], windows[..., 1:])

    def given(self, call: StepCall, order: jax.Array | ReadAhead) -> tuple[Tree, jax.Array, np.int32]:
        """Training examples, their order, and the place in it where a call begins; of data on disk the call's own."""
        if not isinstance(order, ReadAhead):
            return self.training, order, np.int32(call.start)
        places = np.arange(call.count * call.batch, dtype=np.int32)
        shape, sharding = (call.count, call.batch), step.batch_sharding(self.mesh, call.batch)
        own = (processes.from_columns(self.config.typed(t), shape, sharding) for t in order.of(call))
        return Batches(*own), placed(places, self.mesh), np.int32(0)

    def places_read(self, call: StepCall, order: np.ndarray) -> np.ndarray:
        """The places of the examples that this process reads for a call: (steps, its share of each batch)."""
        places = order[call.start : call.start + call.count * call.batch].reshape(call.count, call.batch)
        return places[:, processes.own_columns(places.shape, step.batch_sharding(self.mesh, call.batch))]

    def order(self, epoch: int) -> jax.Array | ReadAhead:
        """The places of the examples in their order in an epoch, from the seed and the epoch alone; one for each seed.

        Of a text that is shuffled, the windows of an epoch begin elsewhere than those of another.
        """
        text = self.dataset.text

        def of(seed):
            length = 1 if text is None else self.dataset.train.x.shape[1]
            if not self.config.train.shuffle:
                return np.arange(self.examples, dtype=np.int32) * np.int32(length)
            # RandomState's stream is frozen, a Generator's may change with NumPy's version.
            words = np.random.SeedSequence([seed, epoch, SHUFFLED]).generate_state(8)
            random = np.random.RandomState(words)
            order = random.permutation(self.examples).astype(np.int32)
            return order if text is None else shifted(order, random, len(text.tokens), length)

        orders = np.stack([of(seed) for seed in self.seeds])
        if self.dataset.on_disk:
            read = [self.places_read(call, orders[0]) for call in self.calls]
            return ReadAhead(self.read, orders[0], read, self.calls)
        return placed(orders if self.together else orders[0], self.mesh)

    # -------------------------------------------------------------------------------------- programs

    def over_seeds(self, function: Callable, in_axes: tuple) -> Callable:
        """The function, or its vmap over the seeds."""
        return jax.vmap(function, in_axes=in_axes) if self.together else function

    def program(self, name: Any, function: Callable, *arguments: Tree, out: Tree = None) -> Callable:
        """The function compiled for arguments of these shapes, once for each name.

        out: how the results lie on the mesh; by default whole on every device.
        """
        if name not in self.programs:
            options = {} if self.mesh is None else {"out_shardings": self.key.sharding if out is None else out}
            with forms_for(self.mesh):
                lowered = jax.jit(function, **options).lower(*arguments)
            self.programs[name] = self.patiently(lowered.compile)
        return self.programs[name]

    def begin(self, given: Mapping[str, np.ndarray] | None = None) -> State:
        """The state before the first step. given: parameters by their dotted places, in place of the initial ones."""
        start = self.over_seeds(step.begin(self.recipe), (0, None))
        arguments = self.key, placed(dict(given or {}), self.mesh)
        return self.program("begin", start, *arguments, out=self.layout)(*arguments)

    def params(self) -> Tree:
        """Shapes and dtypes of one seed's parameters and non-trainable state."""
        return with_state(*self.recipe.shapes)

    def measures(self) -> list[str]:
        """The losses and accuracies that each epoch's metrics have."""
        counted = [name for name in self.arrays if name != "train" or self.config.monitor.train_accuracy]
        losses = [f"{name}_loss" for name in self.arrays]
        return losses + [f"{name}_accuracy" for name in counted if self.classified]

    def shapes(self) -> State:
        """Shapes and dtypes of one seed's state."""
        return jax.eval_shape(step.begin(self.recipe), jax.eval_shape(lambda: step.key_data(0)))

    def steps(self, call: StepCall, state: State, order: jax.Array | ReadAhead) -> tuple[State, np.ndarray, float]:
        """Makes a call: the next state, for each seed whether it is sound, and the seconds without compilation."""
        arguments = (state, *self.given(call, order), self.key)
        function = self.over_seeds(step.many_steps(self.recipe, call.count, call.batch), (0, None, 0, None, 0))
        out = None if self.layout is None else (self.layout, self.key.sharding)
        program = self.program((call.count, call.batch), function, *arguments, out=out)
        began = time.perf_counter()
        state, good = self.patiently(lambda: jax.block_until_ready(program(*arguments)))
        return state, self.rows(good), time.perf_counter() - began

    def fresh_sums(self, state: State) -> State:
        """The state with the epoch's sums at zero."""
        return state._replace(sums=jax.tree.map(jnp.zeros_like, state.sums))

    def watch(self, params: Tree) -> dict[str, np.ndarray]:
        """The measurements after an epoch, for each seed: loss and accuracy of each split, norms of the mean δ."""
        monitor = self.config.monitor
        splits = {name: split for name, split in self.arrays.items() if name != "train" or monitor.train_accuracy}
        confusion = bool(monitor.class_accuracy)
        evaluate = accuracy.evaluation(self.recipe, self.classified, ignore=self.dataset.ignore, confusion=confusion)
        beside = self.beside()

        def of(params, splits, some):
            found = {
                f"{name}_{measure}": value
                for name, split in splits.items()
                for measure, value in evaluate(params, split).items()
            }
            for name, measure in beside.items():
                found |= measure(params, *some[name])
            return found

        some = {name: tuple(t[: getattr(monitor, name)] for t in self.arrays["train"]) for name in beside}
        arguments = (params, splits, some)
        program = self.program("watch", self.over_seeds(of, (0, None, None)), *arguments)
        found = self.patiently(lambda: jax.block_until_ready(program(*arguments)))
        rows = {name: self.rows(value) for name, value in found.items()}
        for name in splits if self.classified else ():  # in Python's numbers: 0.9542 and not 0.9541999697685242
            rows[f"{name}_accuracy"] = rows.pop(f"{name}_right") / rows.pop(f"{name}_answers")
            if confusion:
                by_class = recalls(rows[f"{name}_confusion"])
                rows[f"{name}_class_accuracy"] = by_class
                rows[f"{name}_balanced_accuracy"] = np.nanmean(by_class, axis=-1)
        if monitor.train_accuracy:  # train_loss is the mean over the epoch as it was seen
            rows["train_loss_after"] = rows.pop("train_loss")
        return rows

    def beside(self) -> dict[str, Callable]:
        """The measurements over the first training examples, by the option of `[monitor]` that counts these."""
        monitor, recipe = self.config.monitor, self.recipe
        found: dict[str, Callable] = {}
        if monitor.mean_delta:
            norms = monitors.mean_delta_norms(recipe.net, recipe.loss)
            found["mean_delta"] = lambda *of: {"mean_delta_norms": norms(*of)}
        if monitor.dead_units:
            shares = monitors.dead_units(recipe.net, recipe.loss)
            found["dead_units"] = lambda *of: {"dead_units": shares(*of)}
        if monitor.angles:
            found["angles"] = angles(recipe.net, recipe.loss, recipe.layer_ranks)
        return found

    def rows(self, array: jax.Array) -> np.ndarray:
        """One row for each seed."""
        return np.asarray(array) if self.together else np.asarray(array)[None]

    def one(self, state: Tree, seed: int) -> Tree:
        """The state of the seed at this place."""
        return jax.tree.map(lambda t: t[seed], state) if self.together else state

    def restored(self, states: list[Tree]) -> State:
        """States of the seeds, on the devices."""
        together = jax.tree.map(lambda *t: jnp.stack(t), *states) if self.together else states[0]
        return placed(together, self.mesh, self.layout)

    # ------------------------------------------------------------------------------------------ words

    def averages(self, state: State, count: int, steps: int) -> dict[str, np.ndarray]:
        """The epoch's means over `count` examples in `steps` steps, for each seed."""
        sums = {name: self.rows(value) for name, value in state.sums.items()}
        found = {"train_loss": sums.pop("loss") / count}
        if "delta_norms" in sums:
            found["delta_norms"] = np.sqrt(sums.pop("delta_norms") / count)
        if "noise_scale" in sums:
            noise, signal = np.moveaxis(sums.pop("noise_scale"), -1, 0)
            found["noise_scale"] = np.divide(noise, signal, out=np.full(noise.shape, np.inf), where=signal > 0)
        if (private := self.config.privacy) is not None and self.recipe.private is not None:
            rate = self.recipe.private.rate(self.recipe.batch)
            spent = epsilon(
                noise_multiplier=private.noise_multiplier,
                rate=rate,
                steps=int(self.rows(state.step)[0]),
                delta=private.delta,
            )
            found["epsilon"] = np.full(len(self.seeds), spent)
        if state.scale is not None:
            found["loss_scale"] = self.rows(state.scale.value)
        return found | {name: value / steps for name, value in sums.items()}

    def title(self) -> str:
        """Data, model, parameters, device, precision and seed, in one line."""
        device = jax.devices()[0]
        count = 1 if self.mesh is None else self.mesh.size
        params = sum(t.size for t in jax.tree.leaves(self.recipe.shapes[0]))
        seeds = ", ".join(map(str, self.seeds))
        return " | ".join(
            (
                self.dataset.summary(),
                words(self.recipe.net),
                f"{params:,} parameters",
                f"{count} × {device.device_kind}" if count > 1 else device.device_kind,
                self.config.precision,
                f"seed{'s' if self.together else ''} {seeds}",
            )
        )


def recipe_of(config: Config, dataset: Dataset, mesh: Mesh | None) -> Recipe:
    """The parts of the training step of a config on a mesh."""
    net, loss, optimizer, example = build(config, dataset)
    if config.precision == "float16" and takes_blocks(config):
        raise ConfigError("precision: float16 scales the loss, and kfac's curvature is not scaled: take bfloat16")
    shardings = None
    if mesh is not None and mesh.size > batch_shares(mesh) // mesh.shape["fsdp"]:
        make("mesh.rules", check_rules, net=net, mesh=mesh, rules=config.mesh.rules)
        net, shardings = layout(net, loss, example, mesh, {**RULES, **config.mesh.rules})
    return Recipe(
        saving(in_precision(net, config.precision), config.saved),
        loss,
        optimizer,
        example,
        jax.eval_shape(lambda y: y[0], config.typed(dataset.train.y[:1])),
        batch=config.train.batch,
        chunks=config.train.chunks,
        head_chunks=config.train.head_chunks,
        delta_norms=config.monitor.delta_norms,
        gradient_norms=config.monitor.gradient_norms,
        update_ratios=config.monitor.update_ratios,
        curvature=takes_blocks(config),
        noise_scale=config.monitor.noise_scale,
        private=private_of(config, dataset),
        mesh=mesh,
        shardings=shardings,
        microbatches=config.mesh.microbatches,
        schedule=config.mesh.schedule,
        loss_scale=config.train.loss_scale if config.precision == "float16" else None,
        loss_scale_steps=config.train.loss_scale_steps,
    )


def private_of(config: Config, dataset: Dataset) -> Private | None:
    """The part of `[privacy]` that the step needs.

    Raises ConfigError for a text: its windows overlap from epoch to epoch, so no example is fixed. For data on disk:
    their examples are read in an order. For an optimizer that reads more than the private gradient.
    """
    if config.privacy is None:
        return None
    if dataset.text is not None:
        raise ConfigError("privacy: the examples must be fixed, and the windows of a text are not: give it as arrays")
    if dataset.on_disk:
        raise ConfigError("privacy: each step draws from all examples, so they must fit into memory: take fewer")
    if takes_blocks(config):
        raise ConfigError("privacy: the curvature of a batch goes around the noise: take another train.optimizer")
    own = config.privacy
    return Private(own.noise_multiplier, own.clip_norm, own.per_layer, len(dataset.train.y))


def counts_right(dataset: Dataset, loss: Loss) -> bool:
    """Whether right answers are counted: targets are classes, and the largest output is the answer.

    A text is measured by its loss, in nats a character.
    """
    whole = dataset.classes is not None and np.issubdtype(dataset.train.y.dtype, np.integer)
    return whole and dataset.text is None and loss.init is None


def recalls(confusion: np.ndarray) -> np.ndarray:
    """Each class's share of right answers, (…, classes), of how often each got each; NaN without an example."""
    of_class = confusion.sum(axis=-1)
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.divide(right, of_class, out=np.full(right.shape, np.nan), where=of_class > 0)


def words(net: Layer) -> str:
    """A network in words, its layers first to last."""
    if net.rebuild is None:
        return net.name
    inside = ", ".join(words(part) for part in net.parts)
    return inside if net.maker == "serial" else f"{net.name} ({inside})"
