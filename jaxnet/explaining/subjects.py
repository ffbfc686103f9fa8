"""Subjects of an explanation: a network, its loss, parameters and examples, from a name or an object."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import initialize
from jaxnet.checking import points
from jaxnet.checking.network_subjects import takes_batch
from jaxnet.checking.networks import is_network
from jaxnet.checking.subject import CannotCheckError
from jaxnet.checking.targets import Target, find, takes_nothing
from jaxnet.explaining.functions import FunctionSubject
from jaxnet.explaining.history import History
from jaxnet.explaining.losses import made_by
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.numpy_modules import METHODS, is_numpy_module, network_in_numpy, traceable
from jaxnet.explaining.page_pictures import InputKind
from jaxnet.explaining.records import couples, in_training
from jaxnet.explaining.torch_modules import is_torch_module, network_of
from jaxnet.layer import Layer, Loss, Tree, output
from jaxnet.layers import identity
from jaxnet.losses import quadratic
from jaxnet.program.evaluate import quickly

BATCH = 3  # examples of a layer that couples them


@dataclass(frozen=True, eq=False)
class ExplainedNetwork:
    """A network with its loss, parameters and examples. The first example is explained, or all as a batch.

    xs, ys: examples first; xs a tree of arrays where the network takes several. example: the index of the first in the
    data, None where they were made up. history: of a run. kind: of an input.
    """

    net: Layer
    loss: Loss
    params: Tree
    xs: Tree
    ys: np.ndarray
    source: str
    example: int | None = None
    seed: int | None = None
    precision: str = "float32"
    history: History | None = None
    notes: tuple[str, ...] = ()
    kind: InputKind = field(default_factory=InputKind)


def named(target: str, *, inputs: str | None = None, seed: int = 0) -> ExplainedNetwork | FunctionSubject:
    """A layer, loss or network that jaxnet ships, "package.module:object" or "file.py:object", at inputs by the seed.

    An object is a `Layer`, a PyTorch or NumPy module with `inputs` ("float32[6]"), or a function that gives
    (rule, inputs) as `jaxnet check` takes it. A layer by itself has the cost ½‖out − y‖² of a target drawn at random.
    Raises `ExplainError` for a name that is not found, or an object that cannot be explained.
    """
    try:
        first, *_ = find(target, inputs)
        if not first.args:
            raise ExplainError(f"{target} has no inputs to be explained at: name an object in it, and give --inputs")
        rule = first.rule() if isinstance(first.rule, type) and takes_nothing(first.rule) else first.rule
        if is_network(rule):
            return of_target(replace(first, rule=rule), seed=seed)
        args = points.draw(points.expand(first.args), seed)
        if is_torch_module(rule) or is_numpy_module(rule):
            net, params = network_of(rule) if is_torch_module(rule) else network_in_numpy(rule, np.size(args[0]))
            note = (
                f"x and y are drawn at random, seed {seed}; the parameters are the module's, the backward pass is "
                "jaxnet's: that of the module was not looked at"
            )
            return replace(of_target(replace(first, rule=net), seed=seed), params=params, notes=(note,))
        if callable(rule):
            return FunctionSubject(traceable(rule, args), args, target, seed)
        return of_target(first, seed=seed)
    except CannotCheckError as error:
        raise ExplainError(str(error)) from None


def of_target(target: Target, *, seed: int = 0) -> ExplainedNetwork:
    """A target of the checker as something to explain.

    Raises `ExplainError` for a rule that is no layer, loss or network.
    """
    if not is_network(target.rule):
        raise ExplainError(
            f"{target.name} must be a Layer, a Loss, a pair (network, loss), a function, or a PyTorch or NumPy module "
            f"that holds its weights and has a {METHODS[0]} or the like, got {type(target.rule).__name__}"
        )
    drawn = points.draw(points.expand(target.args), seed)
    if isinstance(target.rule, Loss):
        net, loss = identity, target.rule
        xs, ys = (np.asarray(each)[None] for each in drawn[-2:])
        if made_by(loss) == "softmax_cross_entropy" and ys.shape == xs.shape:  # one class, not a weight for each
            ys = np.eye(ys.shape[-1], dtype=ys.dtype)[ys.argmax(-1)]
    elif isinstance(target.rule, Layer):
        net, loss = target.rule, quadratic
        batched = takes_batch(net, points.expand(target.args))
        xs = drawn[-1] if batched else jax.tree.map(lambda t: jnp.asarray(t)[None], drawn[-1])
        ys = None
    else:
        net, loss = target.rule
        xs, ys = drawn[-2:]
    one = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape[1:], t.dtype), xs)
    params = quickly(lambda key: initialize(net, loss, key, one), (jax.random.key(seed),))
    notes = (f"x, y and the parameters are drawn at random, seed {seed}",)
    if ys is None and couples(net, params, one):
        net = in_training(net)
        one = jax.tree.map(lambda t: jax.ShapeDtypeStruct((BATCH, *t.shape), t.dtype), one)
        xs = jax.tree.map(lambda t: points.generator(seed, 2).standard_normal((1, *t.shape)).astype(t.dtype), one)
        notes = (*notes, f"a batch of {BATCH} examples in training, each a row of x; C is the mean over them")
    if ys is None:
        notes = (f"{notes[0]}; y is a target for what the layer gives, so that an error arrives at it", *notes[1:])
        ys = made_up(net, params, one, len(jax.tree.leaves(xs)[0]), seed)
    return ExplainedNetwork(
        net, loss, params, jax.tree.map(np.asarray, xs), np.asarray(ys), target.name, seed=seed, notes=notes
    )


def made_up(net: Layer, params: Tree, one: Tree, count: int, seed: int) -> np.ndarray:
    """`count` random targets in the shape of the output for `one` input."""
    out = output(net, params, one)
    if not hasattr(out, "shape") or not out.shape:
        raise ExplainError(f"a layer to be explained gives one array of at least one axis, got {out}")
    return points.generator(seed, 1).standard_normal((count, *out.shape)).astype(out.dtype)


def at(xs: Tree, example: int) -> Tree:
    """One example's input."""
    return jax.tree.map(lambda t: t[example], xs)


def out_of_range(example: int, count: int) -> str:
    """The message for an example out of range."""
    return f"--example must be from 0 to {count - 1:,}, of {count:,} examples, got {example:,}"
