"""The training step: backward pass by hand, optimiser, and many steps as one scan over data that stay on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnet.backprop import backpropagate, initialize, per_example
from jaxnet.devices.pipeline import pipeline
from jaxnet.devices.placement import batch_axes, batch_shares, like_params
from jaxnet.heads import fused_head
from jaxnet.layer import Layer, Loss, Tree, own_params, split_state, with_state
from jaxnet.quantities.gradient_statistics import is_cheap, noise_and_signal, squares_of
from jaxnet.quantities.kronecker import kronecker
from jaxnet.quantities.privacy import capacity, clipped_sum, poisson_sample, with_noise
from jaxnet.readings import in_order, new_state, pair, total
from jaxnet.training import monitors
from jaxnet.training.build import parameter_names
from jaxnet.training.flops import products
from jaxnet.training.low_precision import LossScale, divided, scaled
from jaxnet.training.text_windows import examples_at

STEP_SECONDS = 5e-5
FLOPS_PER_SECOND = 5e10
SAMPLED = 3  # tells the draw of a step's examples from its other random numbers
POWERS = {"grads": 1, "squares": 2, "norms": 2, "kept": 0}  # of δ in each reading
EMPTY: Mapping[str, jax.Array] = MappingProxyType({})


class State(NamedTuple):
    """The training state: parameters, optimiser state, number of steps, sums over the epoch so far.

    kept: the non-trainable state of layers (`split_state`); None where there is none. scale: of the loss; None where
    it is not scaled.
    """

    params: Tree
    optimizer: Tree
    step: jax.Array
    sums: dict[str, jax.Array]
    kept: Tree = None
    scale: LossScale | None = None

    @property
    def whole(self) -> Tree:
        """Parameters and non-trainable state together, as a network in evaluation mode takes them."""
        return with_state(self.params, self.kept)


class Arrays(NamedTuple):
    """The examples of one split on the device."""

    x: jax.Array
    y: jax.Array


@dataclass(frozen=True)
class Private:
    """Differentially private gradients: the noise over the clipping norm, that norm, and how it is taken.

    examples: the size of the training set; each is in a step's batch with probability batch / examples.
    """

    noise_multiplier: float
    clip_norm: float
    per_layer: bool
    examples: int

    def rate(self, batch: int) -> float:
        """The probability of an example to be in a batch of this expected size."""
        return min(1.0, batch / self.examples)


@dataclass(frozen=True, eq=False)
class Recipe:
    """The parts of a training step.

    example, target: shape and dtype of one x and one y. chunks: pieces of a whole `batch`, run one after
    another; head_chunks: of each sequence, for the last layer and the loss.
    curvature: whether the optimizer takes the Kronecker-factored curvature of each batch.
    mesh: the devices that share the work; None for one device. shardings: how each parameter lies on them; None where
    all lie whole on every device. microbatches, schedule: of a pipeline over the mesh's axis of that name.
    private: how gradients are made private; None where they are plain. loss_scale: the first one, of dynamic loss
    scaling, which doubles after loss_scale_steps good steps; None for none.
    """

    net: Layer
    loss: Loss
    optimizer: optax.GradientTransformation
    example: jax.ShapeDtypeStruct
    target: jax.ShapeDtypeStruct
    batch: int
    chunks: int = 1
    head_chunks: int = 1
    delta_norms: bool = False
    gradient_norms: bool = False
    update_ratios: bool = False
    curvature: bool = False
    noise_scale: bool = False
    private: Private | None = None
    mesh: Mesh | None = None
    shardings: Tree = None
    microbatches: int = 1
    schedule: str = "zb-h1"
    loss_scale: float | None = None
    loss_scale_steps: int = 2000

    @cached_property
    def shapes(self) -> tuple[Tree, Tree]:
        """Shapes and dtypes of the parameters and of the non-trainable state, traced once."""
        return jax.eval_shape(lambda key: fresh(self, key), jax.eval_shape(lambda: jax.random.key(0)))

    @cached_property
    def sums(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the epoch's sums, traced once: a whole backward pass."""
        batch = [jax.ShapeDtypeStruct((self.chunks, *t.shape), t.dtype) for t in (self.example, self.target)]
        seen = jax.eval_shape(lambda *of: measured(self)(*of, jax.random.key(0))[1], *self.shapes, *batch)
        if self.update_ratios:
            seen |= {"update_ratios": jax.eval_shape(ratios(self), self.shapes[0], self.shapes[0])}
        return seen

    @cached_property
    def layer_ranks(self) -> monitors.Ranks:
        """See `monitors.ranks`."""
        return monitors.ranks(self.net, self.loss, with_state(*self.shapes), self.example, self.target)


# ---------------------------------------------------------------------------------------------- keys


def key_data(seed: int) -> Any:
    """The seed as the two words of a JAX key: plain numbers that can be stacked, sharded and exported."""
    return jax.random.key_data(jax.random.key(seed))


def init_key(seed: jax.Array) -> jax.Array:
    """The key of the first parameters."""
    return jax.random.fold_in(jax.random.wrap_key_data(seed), 0)


def step_key(seed: jax.Array, step: jax.Array) -> jax.Array:
    """The key of the dropout masks of one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.wrap_key_data(seed), 1), step)


# ---------------------------------------------------------------------------------------------- steps


def fresh(recipe: Recipe, key: jax.Array, given: Mapping[str, jax.Array] = EMPTY) -> tuple[Tree, Tree]:
    """Parameters and non-trainable state; None where there is none.

    given: values by the dotted place of a parameter, in place of the initial ones.
    """
    whole = initialize(recipe.net, recipe.loss, key, recipe.example)
    whole = jax.tree.map(lambda name, initial: given.get(name, initial), parameter_names(whole), whole)
    params, kept = split_state(whole)
    return params, kept if jax.tree.leaves(kept) else None


def begin(recipe: Recipe) -> Callable[..., State]:
    """(seed, given) -> the state before the first step; given: as `fresh` takes it."""

    def of(seed, given=EMPTY):
        params, kept = fresh(recipe, init_key(seed), given)
        scale = None if recipe.loss_scale is None else LossScale.begin(recipe.loss_scale)
        sums = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), recipe.sums)
        optimizer = recipe.optimizer.init(params)
        return strong(State(params, optimizer, jnp.zeros((), jnp.int32), sums, kept, scale))

    return of


def strong(tree: Tree) -> Tree:
    """The tree without weak types. An update would make them strong, and a scan's state must keep its type."""
    return jax.tree.map(lambda t: jax.lax.convert_element_type(t, t.dtype) if hasattr(t, "dtype") else t, tree)


def measured(recipe: Recipe) -> Callable:
    """(params, kept, xs, ys, key) -> gradients of a batch's mean cost, terms of the epoch's sums, new state.

    All of it from one backward pass.
    """
    if recipe.private is not None:
        return private_gradients(recipe, recipe.private)
    net, loss = recipe.net, recipe.loss
    if recipe.head_chunks > 1:
        net, loss = fused_head(net, loss, chunks=recipe.head_chunks)
    keeps = recipe.shapes[1] is not None
    readings = {"grads": total}
    if recipe.delta_norms:
        readings["squares"] = monitors.sum_of_squares
    if recipe.noise_scale:
        readings["norms"] = squares_of(is_cheap)
    if keeps:
        readings["kept"] = new_state
    read_all = pair(*readings.values())
    backward = backpropagate(net, loss, read_all, chunks=recipe.chunks)
    staged, whole = in_stages(recipe, net, loss)
    layers = recipe.layer_ranks if recipe.gradient_norms else []

    def of(params, kept, xs, ys, key, counts=None, scale=None):
        n = len(xs)
        if staged is not None and n % whole == 0:
            value, grads = staged(params, xs, ys, key=key, train=True)
            return grads, {"loss": value * n}, None
        own = backward if scale is None else backpropagate(net, scaled(loss, scale), read_all, chunks=recipe.chunks)
        value, found = own(params, xs, ys, state=kept, key=key, train=True)
        read = dict(zip(readings, found, strict=True))
        if scale is not None:
            read = {name: divided(t, scale ** POWERS[name]) for name, t in read.items()}
        sums = {"loss": value * n}
        if recipe.delta_norms:  # 1/n stands on every δ, and each example's own is asked for
            sums["delta_norms"] = in_order(recipe.net, read["squares"]) * n**2
        if recipe.gradient_norms:
            sums["gradient_norms"] = in_order(recipe.net, monitors.by_layer(layers, read["grads"]))
        if recipe.noise_scale:
            parts = noise_and_signal(read["grads"], read["norms"], n)
            both = jnp.stack([jnp.stack(jax.tree.leaves(part)).sum() for part in parts])
            sums["noise_scale"] = both if n > 1 else jnp.zeros_like(both)  # one example has nothing to differ from
        return read["grads"], sums, read.get("kept")

    return of


def private_gradients(recipe: Recipe, private: Private) -> Callable:
    """As `measured`, with the gradients clipped for each example, and noise; counts: 1 for each that is there."""
    own = partial(per_example, recipe.net, recipe.loss)
    clipped = clipped_sum(own, clip=private.clip_norm, per_layer=private.per_layer, chunks=recipe.chunks)

    def of(params, kept, xs, ys, key, counts=None, scale=None):
        noise, dropout = jax.random.split(key)
        counts = jnp.ones(len(xs)) if counts is None else counts
        cost, sums = clipped(params, xs, ys, counts=counts, key=dropout, train=True)
        options = {"noise_multiplier": private.noise_multiplier, "clip": private.clip_norm}
        grads = with_noise(sums, noise, expected=recipe.batch, **options)
        mean = cost / jnp.maximum(counts.sum(), 1).astype(cost.dtype)
        return grads, {"loss": mean * recipe.batch}, None

    return of


def drawn(recipe: Recipe, places: jax.Array, seed: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The places of a step's examples, and None.

    With private gradients the examples are drawn for this step alone; the second result is 1 for those that count.
    """
    if recipe.private is None:
        return places, None
    rate, examples = recipe.private.rate(recipe.batch), recipe.private.examples
    key = jax.random.fold_in(step_key(seed, step), SAMPLED)
    return poisson_sample(key, examples, rate, capacity(examples, rate, recipe.chunks))


def in_stages(recipe: Recipe, net: Layer, loss: Loss) -> tuple[Callable | None, int]:
    """The gradients of a batch by a pipeline, and the divisor of the batch size; None if the mesh has no pipeline."""
    mesh = recipe.mesh
    if mesh is None or mesh.shape.get("pipeline", 1) == 1:
        return None, 1
    options = {"microbatches": recipe.microbatches, "schedule_name": recipe.schedule}
    staged = pipeline(net, loss, mesh, axis="pipeline", data=batch_axes(mesh), **options)
    return staged, recipe.microbatches * batch_shares(mesh)


def ratios(recipe: Recipe) -> Callable[[Tree, Tree], jax.Array]:
    """(updates, params) -> ‖update‖ / ‖parameters‖ by layer; 0 where the parameters are 0."""
    layers = recipe.layer_ranks

    def of(updates, params):
        up, down = (in_order(recipe.net, monitors.by_layer(layers, t)) for t in (updates, params))
        return jnp.where(down > 0, up / jnp.where(down > 0, down, 1), 0.0)

    return of


def training_step(recipe: Recipe) -> Callable[..., State]:
    """(state, xs, ys, seed, counts=None) -> the state after one step on one batch; counts as `drawn` gives them."""
    gradients = measured(recipe)
    ratio = ratios(recipe) if recipe.update_ratios else None
    blocks = kronecker(recipe.net, recipe.loss) if recipe.curvature else None

    def step(state, xs, ys, seed, counts=None):
        key = step_key(seed, state.step)
        scale = state.scale
        grads, sums, kept = gradients(state.params, state.kept, xs, ys, key, counts, scale and scale.value)
        if recipe.shardings is not None:
            grads = jax.lax.with_sharding_constraint(grads, split_state(recipe.shardings)[0])
        extra = {} if blocks is None else {"curvature": partial(blocks, state.params, xs, ys, key=key, train=True)}
        updates, optimizer = recipe.optimizer.update(grads, state.optimizer, state.params, **extra)
        if ratio is not None:
            sums |= {"update_ratios": ratio(updates, state.params)}
        params = optax.apply_updates(state.params, updates)
        if scale is not None:
            finite = jnp.stack([jnp.isfinite(t).all() for t in jax.tree.leaves(grads)]).all()
            skipped = ~finite & (scale.value > 1)  # at 1 the scale is not the cause: the run has diverged
            now, before = (params, optimizer, kept), (state.params, state.optimizer, state.kept)
            params, optimizer, kept = jax.tree.map(partial(jnp.where, skipped), before, now)
            none = {name: jnp.where(skipped, 0, t) for name, t in sums.items() if name != "loss"}
            sums, scale = sums | none, scale.after(finite, recipe.loss_scale_steps)
        sums = jax.tree.map(jnp.add, state.sums, sums)
        return strong(State(params, optimizer, state.step + 1, sums, kept, scale))

    return step


def step_of_leaves(recipe: Recipe) -> Callable[..., list[jax.Array]]:
    """(leaves of the state, xs, ys, seed) -> the leaves of the state after one step, for programs without jaxnet."""
    structure = jax.tree.structure(jax.eval_shape(begin(recipe), jax.eval_shape(lambda: key_data(0))))
    one = training_step(recipe)

    def step(leaves, xs, ys, seed):
        return jax.tree.leaves(one(jax.tree.unflatten(structure, leaves), xs, ys, seed))

    return step


def many_steps(recipe: Recipe, count: int, batch: int) -> Callable[..., tuple[State, jax.Array]]:
    """(state, train, order, start, seed) -> the state after `count` steps in one scan, and whether it is sound.

    batch: the size of each step's batch. train: the whole training set, Arrays or Windows. order: the places of
    the examples in the epoch's order; the steps take those from `start` on, one batch after another.
    """
    chunks = recipe.chunks if recipe.private is not None else pieces(batch, recipe)
    own = recipe if chunks == recipe.chunks else replace(recipe, chunks=chunks)
    step = training_step(own)
    shard = sharded(recipe.mesh, batch)

    def run(state, train, order, start, seed):
        mine = jax.lax.dynamic_slice_in_dim(order, start, count * batch).reshape(count, batch)

        def one(state, at):
            places, counts = drawn(recipe, at, seed, state.step)
            xs, ys = examples_at(train, places)
            return step(state, shard(xs), shard(ys), seed, counts), None

        state, _ = jax.lax.scan(one, state, mine)
        return state, sound(state)

    return run


def sound(state: State) -> jax.Array:
    """Whether all losses, gradients and parameters of the epoch so far are finite.

    A NaN or infinity stays in the parameters, the sums or the optimiser's state. The last may hold infinities of its
    own, so it is checked for NaN alone.
    """
    held = [jnp.isfinite(t).all() for t in jax.tree.leaves((state.params, state.sums, state.kept))]
    passing = jax.tree.leaves(state.optimizer)
    held += [~jnp.isnan(t).any() for t in passing if jnp.issubdtype(t.dtype, jnp.inexact)]
    return jnp.stack(held).all()


def pieces(batch: int, recipe: Recipe) -> int:
    """Number of equal pieces of a batch or a remainder, none larger than those of a whole batch."""
    most = max(1, recipe.batch // recipe.chunks)
    return next(count for count in range(1, batch + 1) if batch % count == 0 and batch // count <= most)


def sharded(mesh: Mesh | None, batch: int) -> Callable[[jax.Array], jax.Array]:
    """Shards a batch over the mesh; a remainder that cannot be divided stays whole on every device."""
    if mesh is None or batch % batch_shares(mesh):
        return lambda t: t
    return lambda t: jax.lax.with_sharding_constraint(t, NamedSharding(mesh, PartitionSpec(batch_axes(mesh))))


def batch_sharding(mesh: Mesh | None, batch: int) -> NamedSharding | None:
    """How the batches of a call, (steps, batch, …), lie on the mesh: as `sharded` puts each."""
    if mesh is None:
        return None
    axes = None if batch % batch_shares(mesh) else batch_axes(mesh)
    return NamedSharding(mesh, PartitionSpec(None, axes))


def state_shardings(recipe: Recipe) -> State:
    """The shardings of the state."""
    assert recipe.mesh is not None
    shapes = jax.eval_shape(begin(recipe), jax.eval_shape(lambda: key_data(0)))
    whole = NamedSharding(recipe.mesh, PartitionSpec())
    everywhere = jax.tree.map(lambda _: whole, shapes)
    if recipe.shardings is None:
        return everywhere
    params, kept = split_state(recipe.shardings)
    optimizer = like_params(shapes.optimizer, shapes.params, params, recipe.mesh)
    return everywhere._replace(params=params, optimizer=optimizer, kept=None if shapes.kept is None else kept)


# ------------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True)
class StepCall:
    """One compiled call: `count` steps on batches of `batch`, from place `start` of the epoch's order."""

    start: int
    count: int
    batch: int


def epoch_calls(examples: int, batch: int, most: int) -> list[StepCall]:
    """An epoch as calls of at most `most` steps; a last, partial batch is a smaller call of its own."""
    steps, rest = divmod(examples, batch)
    most = even(steps, most)
    starts = range(0, steps, most) if steps else ()
    calls = [StepCall(at * batch, min(most, steps - at), batch) for at in starts]
    return calls + ([StepCall(steps * batch, 1, rest)] if rest else [])


def even(steps: int, most: int) -> int:
    """The largest call size above half the maximum that divides the steps, if any: it is compiled once."""
    most = min(most, steps)
    return next((size for size in range(most, most // 2, -1) if steps % size == 0), most)


def steps_per_call(recipe: Recipe) -> int:
    """Number of steps that take about a second on a small machine, estimated from shapes alone.

    A clock would give other calls after a resumption, and so other bits.
    """
    params = with_state(*recipe.shapes)
    net_params, _ = own_params(recipe.loss, params)
    forward = products(jax.make_jaxpr(lambda p, x: recipe.net.forward(p, x)[0])(net_params, recipe.example))
    return max(1, int(1 / (STEP_SECONDS + 3 * forward * recipe.batch / FLOPS_PER_SECOND)))
