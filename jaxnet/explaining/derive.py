"""From a network at one example to its derivation: equations, questions, notations and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnet.combinators import per_position, remat, serial
from jaxnet.explaining.answers import answers
from jaxnet.explaining.batches import batches
from jaxnet.explaining.kinds import LINEAR, options_of, own_maker
from jaxnet.explaining.layouts import layouts, order, tensor
from jaxnet.explaining.lines import Chain, backward_lines, forward_lines
from jaxnet.explaining.losses import value_of
from jaxnet.explaining.model import Checked, Derivation, DrawnLayer, Header, Line
from jaxnet.explaining.notation import NIELSEN, ExplainError, Notation, loops, notation_rows
from jaxnet.explaining.numbering import NumberedLayer, number_layers
from jaxnet.explaining.numbers import shape
from jaxnet.explaining.observe import Observed, features, terms_of
from jaxnet.explaining.records import in_training
from jaxnet.explaining.why import why_transpose
from jaxnet.layer import Layer, leaves
from jaxnet.layers import identity
from jaxnet.layers.windows import by, for_each_axis
from jaxnet.losses import is_index


def derive(
    observed: Observed,
    notation: Notation = NIELSEN,
    *,
    layer: int | None = None,
    asked: int | None = None,
    batch: tuple[Any, Any] | None = None,
    examples: tuple[int, ...] = (),
    source: str = "",
    example: int | None = None,
    seed: int | None = None,
) -> Derivation:
    """The derivation of an example, in a notation; all numbers are those of the network and its loss.

    Args:
        observed: by `observe(net, loss, params, x, y)`. layer: the number, as written, of the one dense layer whose
            questions are answered first; by default the last whose weights are not too many.
        asked: of how many dense layers the questions are answered; by default of all.
        batch: (xs, ys), for the gradients of a batch. examples: their indices in the data.
        source, example, seed: where it came from, for the header.

    Raises `ExplainError` for a layer that is none, or is no dense one.
    """
    chain = chain_of(observed, notation)
    forward, backward = forward_lines(chain), backward_lines(chain)
    dense = questioned(chain, layer)
    about = dense[:asked]
    why = tuple(why_transpose(chain, place) for place in about)
    tensors = [tensor(chain, place) for place in about]
    return Derivation(
        header(chain, source, example, seed), forward, backward, drawn(chain), why,
        layouts=layouts(chain, about[0]) if about else (),
        tensors=tuple(each for each in tensors if each is not None),
        order=order(chain),
        answers=answers(chain, about[0], why[0]) if about else (),
        notations=notation_rows(dense[0].number, notation.weights) if dense else (),
        loops=loops(notation.weights) if dense else (),
        checked=checked(backward),
        batch=batches(observed, dense, *batch, examples) if batch is not None else (),
    )  # fmt: skip


def chain_of(observed: Observed, notation: Notation) -> Chain:
    """The layers with their symbols, from which all equations are made."""
    return Chain(observed, number_layers(observed, notation), notation)


LARGEST = 1 << 21  # weights of a layer, beyond which its pseudo-inverse takes longer than anybody waits


def questioned(chain: Chain, layer: int | None) -> tuple[NumberedLayer, ...]:
    """The dense layers to be asked about: that of a number first, else the last first.

    Of a layer that is no dense one nobody asks why Wᵀ: its steps are shown. Raises `ExplainError` where there is none.
    """
    dense = [place for place in reversed(chain.places) if place.kind == "dense"]
    named = [place for place in chain.places if chain.notation.number(place.number) == str(layer)]
    if layer is not None and not named:
        known = ", ".join(dict.fromkeys(chain.notation.number(place.number) for place in chain.places))
        raise ExplainError(f"a layer to be explained is one of {known}; there is no layer {layer}")
    first = [place for place in named if place.kind == "dense"]
    return (*first, *(place for place in dense if place not in first and place.item.params["W"].size <= LARGEST))


def header(chain: Chain, source: str, example: int | None, seed: int | None) -> Header:
    """The network, the example and the cost that are derived."""
    observed, notation = chain.observed, chain.notation
    out, y = observed.items[-1].out, observed.y
    target = int(y) if y.ndim == 0 and is_index(y) else None
    layers = any(place.item.layer is not identity for place in chain.places)  # else a loss by itself
    titled = title(chain.places) if layers else f"{observed.loss.name} of {shape(observed.x.shape)}"
    right = value_of(observed.loss, chain.places[-1].gives, notation.target, features(out), terms_of(observed))
    return Header(
        title=titled, source=source, loss=observed.loss.name, cost_left=notation.cost, cost_right=right,
        value=observed.cost, x=observed.x, y=observed.target, target=target, example=example,
        notation=notation.name, numbering=notation.described(), weights=notation.weights, dtype=str(out.dtype),
        seed=seed,
    )  # fmt: skip


def title(chain: tuple[NumberedLayer, ...]) -> str:
    """2 → 3 relu → 2 sigmoid; 28×28×1 —conv2d 5×5→ 28×28×6 tanh —average_pool 2→ 14×14×6 → 1176 → 10."""
    x = chain[0].item.x
    text = shape(x.shape) + (" tokens" if np.issubdtype(x.dtype, np.integer) else "")
    between = " "
    for place in chain:
        before, after = place.item.x.shape, place.item.out.shape
        word = label(place.item.layer)
        if place.kind == "dense" or word in ("flatten", "reshape"):
            text, between = f"{text} → {shape(after)}", " "
        elif before == after and place.kind != "dense":
            own = " " if place.kind in ("activation", "softmax") and between == " " else ", "
            text, between = f"{text}{own}{word}", ", "
        else:
            text, between = f"{text} —{word}→ {shape(after)}", " "
    return text


def label(layer: Layer) -> str:
    """A layer in a word or two; its shapes say the rest: conv2d 5×5, 4 blocks."""
    while layer.rebuild in (per_position, remat, in_training) or (layer.rebuild is serial and len(layer.parts) == 1):
        (layer,) = layer.parts
    made = own_maker(layer)
    if made == "repeat":
        block, times = layer.parts[0], options_of(layer)["times"]
        inside = [each for each in leaves(block) if each.maker != "dropout"]
        plain = len(inside) == 1 and block.rebuild in (None, serial, per_position)
        one = own_maker(inside[0]) if plain else ""
        many = f"{times} × {one}" if one else f"{times} blocks"
        return many if times > 1 else one or "a block"
    if made in LINEAR and made != "dense":
        kernel = for_each_axis("kernel", options_of(layer)["kernel"], 1 if "1d" in made else 2)
        return f"{made} {by(kernel)}"
    if layer.rebuild is serial:
        return ", ".join(label(part) for part in layer.parts)
    named = {"residual": "a residual block", "tied": "tied layers", "parallel": "parallel ways"}
    root = layer.maker
    return named.get(made, root if root in ("embedding", "dense", "reshape", "lstm", "gru", "rnn") else layer.name)


def drawn(chain: Chain) -> tuple[DrawnLayer, ...]:
    """The layers as they are drawn."""
    found = []
    for place in chain.places:
        item = place.item
        named: dict[str, Any] = dict(item.params) if isinstance(item.params, dict) else {}
        number = chain.notation.number(place.number)
        found.append(DrawnLayer(place.index, place.kind, item.layer.name, number, item.out.shape, item.out, item.d_out,
                           named, dict(item.grads) if named else {}))  # fmt: skip
    return tuple(found)


ALLOWED_ULP = 256.0  # sums of many terms in another order; a wrong equation is thousands away


def checked(lines: tuple[Line, ...]) -> Checked:
    """How far the lines are from autodiff's values."""
    by_key = {line.key: line.ulp for line in lines if line.ulp is not None}
    worst = max(by_key.values(), default=0.0)
    return Checked(worst, by_key, ALLOWED_ULP, worst <= ALLOWED_ULP)
