"""The leaves of a composed layer at one example: input, output, and the error on both sides.

`residual`, `parallel`, `per_position`, `repeat`, `remat`, `tied` and `serial` are walked as they compute. Where ways
meet there is a record of its own (a sum, a product, a row of both); of `repeat` the last block is opened, and those
before it are one record.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.combinators import over_positions, per_position, remat, residual, serial
from jaxnet.explaining.expressions import Expression, Name, Product
from jaxnet.explaining.kinds import INDICES, options_of
from jaxnet.explaining.notation import Notation, Number
from jaxnet.explaining.observe import Item
from jaxnet.layer import EXAMPLES, Layer, Tree
from jaxnet.program.evaluate import quickly
from jaxnet.readings import product


def in_training(layer: Layer) -> Layer:
    """A layer in training over a whole batch, the first axis of x. It gives the sum of the examples' gradients."""

    def init(key, xs):
        return layer.init(key, jax.eval_shape(lambda xs: xs[0], xs))

    def forward(params, xs, key=None, train=False):
        return jax.vmap(lambda x: layer.forward(params, x, None, True), axis_name=EXAMPLES)(xs)

    def backward(params, saved, d_outs, read):
        def at_one(saved, d_out):
            return layer.backward(params, saved, d_out, over_positions(read))

        return jax.vmap(at_one, out_axes=(0, None), axis_name=EXAMPLES)(saved, d_outs)

    return Layer(layer.name, init, forward, backward, (layer,), in_training)


def couples(layer: Layer, params: Tree, x: Any) -> bool:
    """Whether a layer takes statistics over a batch in training: one example alone it refuses."""

    def runs(layer: Layer, x: Any) -> bool:
        try:
            jax.eval_shape(lambda p, x: layer.forward(p, x, None, True), params, x)
        except ValueError:
            return False
        return True

    return not runs(layer, x) and runs(
        in_training(layer), jax.tree.map(lambda t: jax.ShapeDtypeStruct((2, *t.shape), t.dtype), x)
    )


BLOCK = -1  # the number of a composed layer's own input; records count from 0


@dataclass(frozen=True, eq=False)
class Record:
    """One leaf, or one place where ways meet, at one example.

    kind: "leaf", "sum", "product", "concatenate", "blocks" (those of a `repeat` before its last). takes: the records
    whose values it takes, `BLOCK` for the layer's own input. xs: these values. dxs: the errors there, by its own
    backward. reference: autodiff's ∂C/∂params and ∂C/∂x. positions: how many first axes are positions that the layer
    is applied at one by one. path: where its parameters stand in those of the whole. blocks: of "blocks" their number,
    and what comes out of each, and the errors there.
    single: whether it takes and gives one array. training: whether the first of the positions are the examples of a
    batch in training.
    """

    kind: str
    layer: Layer
    takes: tuple[int, ...]
    params: Tree
    xs: tuple[Any, ...]
    out: Any
    d_out: Any = None
    dxs: tuple[Any, ...] = ()
    grads: Tree = ()
    reference: tuple[Any, Any] = ((), None)
    positions: int = 0
    training: bool = False
    within: str = ""
    blocks: tuple[Any, ...] = ()
    single: bool = True

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that the layer was made with."""
        return options_of(self.layer)

    @property
    def x(self) -> Any:
        """The input, where that is one array."""
        return self.xs[0]

    def index(self, axes: int) -> str:
        """The index of so many positions: i of the examples of a batch, else t, p, q."""
        return "i" if self.training and axes == 1 else INDICES.get(axes, "")

    @property
    def word(self) -> str:
        """The maker of the layer, conv2d; of other records their kind."""
        return self.layer.maker if self.kind == "leaf" else self.kind


@dataclass
class Walk:
    """A forward pass through a composed layer that remembers how to come back.

    A way through gives the value, the record that gives it, and a function from ∂C/∂out to ∂C/∂x.
    """

    records: list[Record] = field(default_factory=list)
    training: bool = False

    def through(self, layer: Layer, params: Tree, x: Any, token: int, positions: int, within: str = "") -> Any:
        """The way through a layer."""
        made_by, options, at = layer.maker, options_of(layer), (x, token, positions, within)
        if layer.rebuild is None:
            return self.leaf(layer, params, *at)
        if layer.rebuild is serial:
            return self.one_after_the_other(layer.parts, params, *at)
        if layer.rebuild is in_training:
            self.training = True
        if layer.rebuild in (per_position, in_training):
            return self.through(layer.parts[0], params, x, token, positions + 1, within)
        if layer.rebuild is remat:
            return self.through(layer.parts[0], params, *at)
        if layer.rebuild is residual:
            way = self.through(layer.parts[0], params, *at)
            return self.joined(layer, "sum", [(x, token, lambda d: d), way], within)
        if made_by in ("parallel", "bidirectional"):
            ways = [self.through(part, p, *at) for part, p in zip(layer.parts, params, strict=True)]
            return self.joined(layer, options.get("join", "concatenate"), ways, within)
        if made_by == "repeat":
            return self.repeated(layer, options["times"], params, *at)
        if made_by == "tied":
            share, owner = options["share"], min(options["where"])
            borrowed = tuple(
                p | {share: params[owner][share]} if i in options["where"] else p for i, p in enumerate(params)
            )
            return self.one_after_the_other(layer.parts, borrowed, *at)
        raise LookupError("a combination that is not known here")

    def put(self, record: Record) -> int:
        """The number of a new record."""
        self.records.append(record)
        return len(self.records) - 1

    def returned(self, n: int, **found: Any) -> None:
        """Puts the errors that came back into a record."""
        self.records[n] = replace(self.records[n], **found)

    def leaf(self, bare: Layer, params, x, token, positions, within):
        layer = bare
        for i in range(positions):
            layer = in_training(layer) if self.training and i == positions - 1 else per_position(layer)
        out, saved = layer.forward(params, x)
        mine = self.put(Record("leaf", bare, (token,), params, (x,), out, positions=positions, training=self.training,
                               within=within))  # fmt: skip

        def back(d_out):
            dx, grads = layer.backward(params, saved, d_out, product)
            exact = jnp.issubdtype(x.dtype, jnp.inexact)
            by = (params, x) if exact else (params,)
            expected = jax.vjp(lambda p, x=x: layer.forward(p, x)[0], *by)[1](d_out)
            self.returned(mine, d_out=d_out, dxs=(dx if exact else None,), grads=grads,
                          reference=expected if exact else (*expected, None))  # fmt: skip
            return dx

        return out, mine, back

    def one_after_the_other(self, layers, params, x, token, positions, within):
        backs = []
        for layer, p in zip(layers, params, strict=True):
            x, token, back = self.through(layer, p, x, token, positions, within)
            backs.append(back)
        return x, token, lambda d_out: functools.reduce(lambda d, back: back(d), reversed(backs), d_out)

    def joined(self, layer, join, ways, within):
        """The record where ways meet: the join's own derivative sends the error back along each."""
        outs, tokens, backs = zip(*ways, strict=True)
        out, pieces = jax.vjp(JOINS[join], *outs)
        mine = self.put(Record(join, layer, tokens, (), outs, out, within=within))

        def back(d):
            dxs = pieces(d)
            self.returned(mine, d_out=d, dxs=dxs)
            found = [one(piece) for one, piece in reversed([*zip(backs, dxs, strict=True)])]
            return functools.reduce(jnp.add, found)

        return out, mine, back

    def repeated(self, layer, times, params, x, token, positions, within):
        block = layer.parts[0]
        for _ in range(positions):
            block = per_position(block)
        last = jax.tree.map(lambda t: t[-1], params)
        if times == 1:
            return self.through(layer.parts[0], last, x, token, positions, within)
        before = jax.tree.map(lambda t: t[:-1], params)
        given, outs = jax.lax.scan(lambda x, p: (block.forward(p, x)[0],) * 2, x, before)
        taken = jnp.concatenate([x[None], outs[:-1]])
        first = self.put(Record("blocks", layer, (token,), (), (x,), given, within=within))
        out, token, back_last = self.through(layer.parts[0], last, given, first, positions, f"block {times} of {times}")

        def one_back(d, at):
            p, x = at
            return block.backward(p, block.forward(p, x)[1], d, product)[0], d

        def back(d):
            d = back_last(d)
            dx, errors = jax.lax.scan(one_back, d, (before, taken), reverse=True)
            self.returned(first, d_out=d, dxs=(dx,), blocks=(outs, errors))
            return dx

        return out, token, back


JOINS = {
    "sum": lambda *ways: functools.reduce(jnp.add, ways),
    "product": lambda *ways: functools.reduce(jnp.multiply, ways),
    "concatenate": lambda *ways: jnp.concatenate(ways, -1),
}
ARRAYS: dict[str, Any] = {"params": (), "xs": (), "out": None, "d_out": None, "dxs": (), "grads": (),
                          "reference": ((), None), "blocks": ()}  # fmt: skip


@functools.lru_cache(maxsize=64)
def opened(item: Item) -> tuple[Record, ...]:
    """The records of a composed layer, first to last; a leaf, or a layer that cannot be opened, is one record."""
    layer = item.layer
    expected = (item.reference[2], item.reference[1])
    alone = Record(
        "leaf", layer, (BLOCK,), item.params, (item.x,), item.out, item.d_out, (item.dx,), item.grads, expected,
        single=item.single,
    )  # fmt: skip
    if layer.rebuild is None:
        return (alone,)
    made: list[Record] = []

    def walk(params, x, d_out):
        walked = Walk()
        _, _, back = walked.through(layer, params, x, BLOCK, 0)
        back(d_out)
        made[:] = [replace(each, **ARRAYS) for each in walked.records]
        return [{name: getattr(each, name) for name in ARRAYS} for each in walked.records]

    try:
        arrays = quickly(walk, (item.params, item.x, item.d_out))
    except LookupError:
        return (alone,)
    return tuple(replace(each, **jax.tree.map(np.asarray, values)) for each, values in zip(made, arrays, strict=True))


@dataclass(frozen=True)
class Site:
    """A record with its symbols.

    takes, gives: its input and output. error: ∂C/∂gives. back: the left side of the error that it sends back.
    """

    record: Record
    notation: Notation
    number: Number
    takes: tuple[Name, ...]
    gives: Name
    error: Expression
    back: tuple[Expression, ...]

    def name(self, base: str, key: str) -> Name:
        """A symbol of this layer."""
        return self.notation.name_of(base, self.number, key)

    def outer(self, error: Expression, a: Expression) -> Product:
        """δ aᵀ."""
        return self.notation.outer(error, a)


def words(path: tuple) -> list[str]:
    """The words of a parameter's path, without those that lead to state."""
    found = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    state = [i for i, entry in enumerate(path) if isinstance(entry, jax.tree_util.GetAttrKey)]
    return found[state[-1] + 1 if state else 0 :] or ["p"]


def parameter(path: tuple) -> str:
    """A parameter's name: the words of its path."""
    return "_".join(words(path))


def param_name(notation: Notation, path: tuple, number: Number) -> Name:
    """The symbol of a parameter: its own name, after the words of the path that leads to it."""
    *before, own = words(path)
    base = notation.param(own, number)
    return Name(base.base, base.above, " ".join(before), "_".join([base.key, *before])) if before else base
