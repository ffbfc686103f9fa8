"""Combinators: networks of layers. Each passes `read` down, and knows no reading.

Parameters of a combination of several layers are the tuple of theirs; of one layer, that layer's own.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet.factors import FactorSum, is_factor
from jaxnet.layer import (
    Layer,
    Passing,
    Reading,
    ShapeError,
    Static,
    Tree,
    Untrained,
    inside,
    is_untrained,
    output,
    split_key,
    split_state,
)
from jaxnet.lowering.depth import over_layers
from jaxnet.readings import in_each, over_positions, whole
from jaxnet.registry import Count, maker


def numbered(layers: Sequence[Layer], i: int):
    """Where a `ShapeError` in the i-th of these layers arose."""
    return inside(f"layer {i + 1} of {len(layers)}")


@maker(examples={"serial(dense(5), sigmoid, dense(3))": "float32[6]"})
def serial(*layers: Layer) -> Layer:
    """One layer after the other; backward in reverse. Parameters: the tuple of the layers'.

    >>> net, x = serial(dense(5), sigmoid, dense(3)), jnp.ones(6)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((3,), (6,), ({'W': (5, 6), 'b': (5,)}, (), {'W': (3, 5), 'b': (3,)}))
    """

    def init(key, x):
        params = []
        for i, (layer, layer_key) in enumerate(zip(layers, split_key(key, len(layers)), strict=True)):
            with numbered(layers, i):
                params.append(layer.init(layer_key, x))
                x = output(layer, params[-1], x)
        return tuple(params)

    def forward(params, x, key=None, train=False):
        return forward_through(layers, params, x, split_key(key, len(layers)), train)

    def backward(params, saved, d_out, read):
        return backward_through(layers, params, saved, d_out, read)

    return Layer("serial", init, forward, backward, layers, serial)


def forward_through(layers: Sequence[Layer], params: Sequence[Tree], x: Tree, keys: Sequence, train: bool):
    """One layer after the other, each with its own key: out, and the tuple of saved values."""
    saved = []
    for i, (layer, p, key) in enumerate(zip(layers, params, keys, strict=True)):
        with numbered(layers, i):
            x, s = layer.forward(p, x, key, train)
        saved.append(s)
    return x, tuple(saved)


def backward_through(
    layers: Sequence[Layer], params: Sequence[Tree], saved: Sequence[Tree], d_out: Tree, read: Reading
):
    """Back through them, the last first: dx, and the tuple of readings."""
    readings = []
    for layer, p, s in reversed([*zip(layers, params, saved, strict=True)]):
        d_out, reading = layer.backward(p, s, d_out, read)
        readings.append(reading)
    return d_out, tuple(reversed(readings))


@maker(examples={"residual(serial(dense(6), tanh))": "float32[6]"})
def residual(block: Layer) -> Layer:
    """out = x + f(x), so dx = d_out + f's dx. Parameters: f's.

    Raises `ShapeError` where f changes the shape.

    >>> net, x = residual(dense(4)), jnp.ones(4)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4,), (4,), {'W': (4, 4), 'b': (4,)})
    """

    def init(key, x):
        params = block.init(key, x)
        same_shape("residual", x, output(block, params, x))
        return params

    def forward(params, x, key=None, train=False):
        out, saved = block.forward(params, x, key, train)
        same_shape("residual", x, out)
        return x + out, saved

    def backward(params, saved, d_out, read):  # out = x + f(x)
        dx, reading = block.backward(params, saved, d_out, read)
        return d_out + dx, reading

    return Layer("residual", init, forward, backward, (block,), residual)


def same_shape(name: str, x, out) -> None:
    """Raises `ShapeError` where a layer that must keep the shape does not."""
    if x.shape != out.shape:
        raise ShapeError(
            f"{name} takes a layer that gives back the shape it takes, got {x.shape} in and {out.shape} out: "
            f"end the layer with one of {x.shape[-1] if x.shape else 1} units, or join two ways by parallel(…)"
        )


@maker(
    examples={
        "parallel(dense(6), tanh)": "float32[6]",
        'parallel(serial(dense(6), tanh), dense(6), join="product")': "float32[6]",
        'parallel(tanh, dense(2), join="concatenate")': "float32[6]",
    },
)
def parallel(*branches: Layer, join: Literal["sum", "product", "concatenate"] = "sum") -> Layer:
    """The same input through several layers, their outputs summed, multiplied, or concatenated along the last axis.

    Backward: each gets d_out, or d_out ⊙ the others' outputs, or its piece of d_out; dx is the sum of theirs.
    Parameters: the tuple of the layers'.
    Raises `ShapeError` where the outputs cannot be joined, `ValueError` for another `join` or no layers.

    >>> net, x = parallel(dense(2), dense(3), join="concatenate"), jnp.ones(6)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5,), (6,), ({'W': (2, 6), 'b': (2,)}, {'W': (3, 6), 'b': (3,)}))
    """
    if not branches:
        raise ValueError("parallel takes at least one layer, got none")
    if join not in ("sum", "product", "concatenate"):
        raise ValueError(f'parallel joins by "sum", "product" or "concatenate", got {join!r}')

    def init(key, x):
        params = []
        for i, (layer, layer_key) in enumerate(zip(branches, split_key(key, len(branches)), strict=True)):
            with numbered(branches, i):
                params.append(layer.init(layer_key, x))
        joinable(join, [output(layer, p, x) for layer, p in zip(branches, params, strict=True)])
        return tuple(params)

    def forward(params, x, key=None, train=False):
        outs, saved = [], []
        for i, (layer, p, k) in enumerate(zip(branches, params, split_key(key, len(branches)), strict=True)):
            with numbered(branches, i):
                out, s = layer.forward(p, x, k, train)
            outs.append(out)
            saved.append(s)
        joinable(join, outs)
        if join == "concatenate":
            return jnp.concatenate(outs, axis=-1), (tuple(saved), Static(tuple(out.shape[-1] for out in outs)))
        out = sum(outs[1:], start=outs[0]) if join == "sum" else math.prod(outs[1:], start=outs[0])
        return out, (tuple(saved), tuple(outs) if join == "product" else ())

    def pieces(d_out, kept):
        if join == "sum":
            return [d_out] * len(branches)
        if join == "product":  # out = Π outᵢ: ∂out/∂outᵢ is the product of the others
            return [math.prod(kept[:i] + kept[i + 1 :], start=d_out) for i in range(len(branches))]
        ends = [sum(kept.value[: i + 1]) for i in range(len(branches) - 1)]
        return jnp.split(d_out, ends, axis=-1)

    def backward(params, saved, d_out, read):
        saved, kept = saved
        dxs, readings = [], []
        for layer, p, s, d in zip(branches, params, saved, pieces(d_out, kept), strict=True):
            dx, reading = layer.backward(p, s, d, read)
            dxs.append(dx)
            readings.append(reading)
        return sum(dxs[1:], start=dxs[0]), tuple(readings)

    return Layer(f"parallel ({join})", init, forward, backward, branches, lambda *parts: parallel(*parts, join=join))


def joinable(join: str, outs: Sequence) -> None:
    """Raises `ShapeError` for outputs of branches that cannot be joined."""
    shapes = [out.shape[:-1] if join == "concatenate" else out.shape for out in outs]
    if len(set(shapes)) > 1:
        which = "shapes that differ in the last axis only" if join == "concatenate" else "the same shape"
        raise ShapeError(f"parallel ({join}) takes layers that give {which}, got {[out.shape for out in outs]}")


@maker(examples={"per_position(serial(dense(4), relu))": "float32[5,6]"})
def per_position(block: Layer) -> Layer:
    """A layer that takes one position, at every position of a sequence (the first axis). Parameters: the layer's.

    Each position gets a key of its own. Factors are summed over the positions before they are read.
    Raises `ShapeError` for an input without positions.

    >>> net, x = per_position(dense(4)), jnp.ones((5, 6))
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((5, 4), (5, 6), {'W': (4, 6), 'b': (4,)})
    """

    def accepts(xs):
        if xs.ndim < 1:
            raise ShapeError(f"per_position takes a sequence, (positions, …), got shape {xs.shape}")

    def init(key, xs):
        accepts(xs)
        params = block.init(key, jax.eval_shape(lambda xs: xs[0], xs))
        if any(isinstance(node, Untrained) for node in jax.tree.leaves(params, is_leaf=is_untrained)):
            raise ShapeError(
                f"per_position takes layers without state, got {block.name}: give the sequence to it whole, since its "
                "statistics are taken over all positions"
            )
        return params

    def forward(params, xs, key=None, train=False):
        accepts(xs)
        keys = None if key is None else jax.random.split(key, len(xs))
        return jax.vmap(lambda x, k: block.forward(params, x, k, train))(xs, keys)

    def backward(params, saved, d_outs, read):
        def at_one(s, d):
            return block.backward(params, s, d, over_positions(read))

        return jax.vmap(at_one, out_axes=(0, None))(saved, d_outs)

    return Layer("per position", init, forward, backward, (block,), per_position)


@maker(examples={"repeat(residual(serial(dense(6), tanh)), 3)": "float32[6]"})
def repeat(block: Layer, times: Count) -> Layer:
    """The same layer `times` times, each with parameters of its own, as one scan: compile time does not grow.

    Parameters: the layer's, each with a leading axis of `times`. Readings are taken inside the scan, so gradients are
    contracted there and no factors are kept.
    Raises `ShapeError` where the layer changes the shape, `ValueError` for less than one time.

    >>> net, x = repeat(dense(4), 3), jnp.ones(4)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4,), (4,), {'W': (3, 4, 4), 'b': (3, 4)})
    """

    def init(key, x):
        same_shape(f"repeat {times}", x, output(block, jax.eval_shape(block.init, key, x), x))
        return jax.vmap(lambda key: block.init(key, x))(jax.random.split(key, times))

    def forward(params, x, key=None, train=False):
        keys = None if key is None else jax.random.split(key, times)
        return over_layers(x, (params, keys), layer=lambda x, pk: block.forward(pk[0], x, pk[1], train), times=times)

    def backward(params, saved, d_out, read):
        return over_layers(
            d_out, (params, saved), layer=lambda d, ps: block.backward(*ps, d, read), times=times, reverse=True
        )

    return Layer(f"repeat {times}", init, forward, backward, (block,), lambda part: repeat(part, times))


@maker(examples={"remat(serial(dense(6), tanh))": "float32[6]"})
def remat(block: Layer) -> Layer:
    """A layer that saves only its input and is run forward again in backward: less memory for more time.

    Parameters: the layer's. On a CPU it pays inside `repeat` alone: elsewhere the compiler keeps the values.
    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.

    >>> net, x = remat(serial(dense(4), tanh)), jnp.ones(6)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4,), (6,), ({'W': (4, 6), 'b': (4,)}, ()))
    """

    def forward(params, x, key=None, train=False):
        return block.forward(params, x, key, train)[0], (x, key, Static(train))

    def backward(params, saved, d_out, read):
        x, key, train = saved
        # The barrier keeps the compiler from finding that it has seen this forward pass before.
        x, d_out = jax.lax.optimization_barrier((x, d_out))
        _, saved = block.forward(params, x, key, train.value)
        return block.backward(params, saved, d_out, read)

    return Layer(f"remat {block.name}", block.init, forward, backward, (block,), remat)


@maker(examples={"tied(dense(6), tanh, dense(6), where=(0, 2))": "float32[6]"})
def tied(*layers: Layer, share: str = "W", where: Sequence[int]) -> Layer:
    """`serial`; the layers at `where` share one parameter: its gradient is the sum of its uses.

    `share`: the name of the parameter, for layers whose parameters are a dict, inside `per_position` too. `where`:
    indices into `layers`, at least two. Parameters: as `serial`'s; the shared one stands in the first of those layers
    and is left out in the others.
    Raises `ValueError` for fewer than two uses or a layer without that parameter, `ShapeError` where shapes differ.

    >>> net, x = tied(dense(4), tanh, dense(4), where=(0, 2)), jnp.ones(4)
    >>> params = net.init(jax.random.key(0), x)
    >>> out, back = vjp(net)(params, x)
    >>> grads, dx = back(jnp.ones_like(out))
    >>> out.shape, dx.shape, jax.tree.map(jnp.shape, grads)
    ((4,), (4,), ({'W': (4, 4), 'b': (4,)}, (), {'b': (4,)}))
    """
    if len(set(where)) < 2 or not all(0 <= i < len(layers) for i in where):
        raise ValueError(f"tied takes at least two different indices of its {len(layers)} layers, got {where}")
    shared = Shared.of(share, where)
    chain = serial(*layers)

    def init(key, x):
        params = chain.init(key, x)
        for i in where:
            if not isinstance(params[i], dict) or share not in params[i]:
                raise ValueError(f"tied takes layers with a parameter {share!r}; layer {i} ({layers[i].name}) has none")
            if params[i][share].shape != params[shared.owner][share].shape:
                shapes = [params[j][share].shape for j in where]
                raise ShapeError(f"tied layers need {share} of one shape, got {shapes}")
        return shared.given_back(params)

    def forward(params, x, key=None, train=False):
        return chain.forward(shared.borrowed(params), x, key, train)

    def backward(params, saved, d_out, read):
        readings: list = [None] * len(layers)
        passings: dict[int, Passing] = {}
        full = shared.borrowed(params)
        for i in reversed(range(len(layers))):
            if i in where and not read.linear:  # read once all uses are known
                d_out, passings[i] = layers[i].backward(full[i], saved[i], d_out, whole)
            else:
                d_out, readings[i] = layers[i].backward(full[i], saved[i], d_out, read)
        if read.linear:  # read where the error passes, so that no use is kept until all are known
            return d_out, shared.added_up(readings)
        of_each = (passings[i].factors[share] for i in where)
        uses = jax.tree.map(lambda *uses: FactorSum(uses), *of_each, is_leaf=is_factor)
        for i, passing in passings.items():
            factors = passing.factors | {share: uses} if i == shared.owner else shared.without(passing.factors)
            own, _ = split_state(params[i])
            state = shared.without(passing.state) if passing.state and i != shared.owner else passing.state
            readings[i] = read.at(passing._replace(params=own, factors=factors, state=state))
        return d_out, tuple(readings)

    def rebuild(*parts: Layer) -> Layer:
        return tied(*parts, share=share, where=where)

    return Layer("tied", init, forward, backward, layers, rebuild)


class Shared(NamedTuple):
    """A parameter that several layers of `tied` use: it stands in the `owner`, and the `borrowers` have none.

    Each function takes a sequence with an entry for each layer: parameters, or readings of them.
    """

    name: str
    owner: int
    borrowers: tuple[int, ...]

    @staticmethod
    def of(name: str, where: Sequence[int]) -> "Shared":
        """The parameter of that name, shared by the layers at `where`."""
        owner, *borrowers = sorted(set(where))
        return Shared(name, owner, tuple(borrowers))

    def without(self, p: dict) -> dict:
        """A layer's parameters without the shared one."""
        return {name: value for name, value in p.items() if name != self.name}

    def borrowed(self, params: Sequence[Tree]) -> tuple:
        """As `serial` takes them: the shared parameter in each layer that uses it."""
        own = {self.name: params[self.owner][self.name]}
        return tuple(p | own if i in self.borrowers else p for i, p in enumerate(params))

    def given_back(self, params: Sequence[Tree]) -> tuple:
        """As `tied` keeps them: the shared parameter in its owner alone."""
        return tuple(self.without(p) if i in self.borrowers else p for i, p in enumerate(params))

    def added_up(self, readings: Sequence[Tree]) -> tuple:
        """The readings of each use of the shared parameter, added up in its owner."""
        found, name = list(readings), self.name
        for i in self.borrowers:
            found[self.owner] = in_each(
                lambda own, other: own | {name: jax.tree.map(jnp.add, own[name], other[name])},
                found[self.owner],
                found[i],
            )
            found[i] = in_each(self.without, found[i])
        return tuple(found)
