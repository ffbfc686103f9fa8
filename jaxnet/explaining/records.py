"""The leaves of a composed layer at one example: what each takes and gives, and the error on both sides.

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

from jaxnet.combinators import per_position, remat, residual, serial
from jaxnet.explaining.coupled import in_training
from jaxnet.explaining.kinds import INDICES, maker_of, options_of
from jaxnet.explaining.observe import Item
from jaxnet.layer import Layer, Tree
from jaxnet.program.evaluate import quickly
from jaxnet.readings import product

BLOCK = -1  # the number of what a composed layer takes itself; records count from 0
UNKNOWN = "a combination that is not known here"


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
        """What the layer was made with."""
        return options_of(self.layer)

    @property
    def x(self) -> Any:
        """What it takes, where that is one array."""
        return self.xs[0]

    def index(self, axes: int) -> str:
        """The index of so many positions: i of the examples of a batch, else t, p, q."""
        return "i" if self.training and axes == 1 else INDICES.get(axes, "")

    @property
    def word(self) -> str:
        """The maker of the layer, conv2d; of other records their kind."""
        return maker_of(self.layer) if self.kind == "leaf" else self.kind


@dataclass
class Walk:
    """A forward pass through a composed layer that remembers how to come back."""

    records: list[Record] = field(default_factory=list)
    training: bool = False

    def through(self, layer: Layer, params: Tree, x: Any, token: int, positions: int, within: str = "") -> Any:
        """What a layer gives, the record that gives it, and its way back: from ∂C/∂out to ∂C/∂x."""
        if layer.rebuild is None:
            return self.leaf(layer, params, x, token, positions, within)
        if layer.rebuild is serial:
            return self.one_after_the_other(layer.parts, params, x, token, positions, within)
        if layer.rebuild is residual:
            return self.residual(layer, params, x, token, positions, within)
        if layer.rebuild is in_training:
            self.training = True
        if layer.rebuild in (per_position, in_training):
            return self.through(layer.parts[0], params, x, token, positions + 1, within)
        if layer.rebuild is remat:
            return self.through(layer.parts[0], params, x, token, positions, within)
        made_by, options = maker_of(layer), options_of(layer)
        if made_by == "bidirectional":
            return self.parallel(layer, "concatenate", params, x, token, positions, within)
        if made_by == "parallel":
            return self.parallel(layer, options["join"], params, x, token, positions, within)
        if made_by == "repeat":
            return self.repeated(layer, options["times"], params, x, token, positions, within)
        if made_by == "tied":
            share, owner = options["share"], min(options["where"])
            borrowed = tuple(
                p | {share: params[owner][share]} if i in options["where"] else p for i, p in enumerate(params)
            )
            return self.one_after_the_other(layer.parts, borrowed, x, token, positions, within)
        raise LookupError(UNKNOWN)

    def put(self, record: Record) -> int:
        """The number of a new record."""
        self.records.append(record)
        return len(self.records) - 1

    def leaf(self, layer: Layer, params, x, token: int, positions: int, within: str):
        bare = layer
        for i in range(positions):
            layer = in_training(layer) if self.training and i == positions - 1 else per_position(layer)
        out, saved = layer.forward(params, x)
        mine = self.put(Record("leaf", bare, (token,), params, (x,), out, positions=positions, training=self.training,
                               within=within))  # fmt: skip

        def back(d_out):
            dx, grads = layer.backward(params, saved, d_out, product)
            exact = jnp.issubdtype(x.dtype, jnp.inexact)
            if exact:
                expected = jax.vjp(lambda p, x: layer.forward(p, x)[0], params, x)[1](d_out)
            else:
                expected = (*jax.vjp(lambda p: layer.forward(p, x)[0], params)[1](d_out), None)
            here = self.records[mine]
            self.records[mine] = replace(
                here, d_out=d_out, dxs=(dx if exact else None,), grads=grads, reference=expected
            )
            return dx

        return out, mine, back

    def one_after_the_other(self, layers, params, x, token, positions, within):
        backs = []
        for layer, p in zip(layers, params, strict=True):
            x, token, back = self.through(layer, p, x, token, positions, within)
            backs.append(back)

        def back(d_out):
            for each in reversed(backs):
                d_out = each(d_out)
            return d_out

        return x, token, back

    def joined(self, layer, join, ways, within):
        """The record where ways meet: the join's own derivative says what goes back along each of them."""
        outs, tokens, backs = zip(*ways, strict=True)
        out, pieces = jax.vjp(JOINS[join], *outs)
        mine = self.put(Record(join, layer, tokens, (), outs, out, within=within))

        def back(d):
            dxs = pieces(d)
            self.records[mine] = replace(self.records[mine], d_out=d, dxs=dxs)
            found = [one(piece) for one, piece in reversed([*zip(backs, dxs, strict=True)])]
            return functools.reduce(jnp.add, found)

        return out, mine, back

    def parallel(self, layer, join, params, x, token, positions, within):
        parts = zip(layer.parts, params, strict=True)
        return self.joined(
            layer, join, [self.through(part, p, x, token, positions, within) for part, p in parts], within
        )

    def residual(self, layer, params, x, token, positions, within):
        way = self.through(layer.parts[0], params, x, token, positions, within)
        return self.joined(layer, "sum", [(x, token, lambda d: d), way], within)

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
            here = self.records[first]
            self.records[first] = replace(here, d_out=d, dxs=(dx,), blocks=(outs, errors))
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
    """The records of a composed layer, first to last; the one of itself of a leaf, or of what cannot be opened."""
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
