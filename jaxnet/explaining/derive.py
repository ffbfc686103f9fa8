"""From a network at one example to its derivation: equations, questions, notations and checks."""

from __future__ import annotations

from typing import Any

from jaxnet.explaining.lines import Chain, backward_lines, forward_lines
from jaxnet.explaining.losses import value_of
from jaxnet.explaining.model import Checked, Derivation, Header, Layer, Line
from jaxnet.explaining.notation import Notation
from jaxnet.explaining.observe import Observed, as_class, units
from jaxnet.explaining.places import Place, places


def derive(
    observed: Observed,
    notation: Notation = Notation(),
    *,
    source: str = "",
    example: int | None = None,
    seed: int | None = None,
) -> Derivation:
    """The derivation of what was observed, in a notation; all numbers are those of the network and its loss.

    Args:
        observed: by `observe(net, loss, params, x, y)`. source, example, seed: where it came from, for the header.

    Raises `ExplainError` for what cannot be explained.
    """
    chain = Chain(observed, places(observed, notation), notation)
    forward, backward = forward_lines(chain), backward_lines(chain)
    return Derivation(
        header=header(chain, source, example, seed),
        forward=forward,
        backward=backward,
        layers=drawn(chain),
        why=(),
        layouts=None,
        order=None,
        notations=(),
        loops=(),
        checked=checked(backward),
    )


def header(chain: Chain, source: str, example: int | None, seed: int | None) -> Header:
    """What the derivation is of."""
    observed, notation = chain.observed, chain.notation
    out = observed.items[-1].out
    right = value_of(observed.loss.name, chain.places[-1].gives, notation.target, out.shape[-1] if out.ndim else 1)
    return Header(
        title=title(chain.places),
        source=source,
        loss=observed.loss.name,
        cost_left=notation.cost,
        cost_right=right,
        value=observed.cost,
        x=observed.x,
        y=observed.target,
        target=as_class(observed.y),
        example=example,
        notation=notation.name,
        numbering=notation.described(),
        weights=notation.weights,
        dtype=str(out.dtype),
        seed=seed,
    )


def title(chain: tuple[Place, ...]) -> str:
    """2 → 3 relu → 2 sigmoid."""
    words = [units(chain[0].item.x.shape)]
    for place in chain:
        name = place.item.layer.name
        if place.kind == "dense":
            words += ["→", units(place.item.out.shape)]
        elif place.kind in ("activation", "softmax"):
            words.append(name)
        else:
            words += ["→", name, units(place.item.out.shape)]
    return " ".join(words)


def drawn(chain: Chain) -> tuple[Layer, ...]:
    """The layers as they are drawn."""
    found = []
    for place in chain.places:
        item = place.item
        named: dict[str, Any] = dict(item.params) if isinstance(item.params, dict) else {}
        found.append(
            Layer(
                item=place.index,
                kind=place.kind,
                name=item.layer.name,
                number=chain.notation.number(place.number),
                shape=item.out.shape,
                out=item.out,
                delta=item.d_out,
                params=named,
                grads=dict(item.grads) if named else {},
            )
        )
    return tuple(found)


ALLOWED_ULP = 4.0


def checked(lines: tuple[Line, ...]) -> Checked:
    """How far the lines are from autodiff's values."""
    by_key = {line.key: line.ulp for line in lines if line.ulp is not None}
    worst = max(by_key.values(), default=0.0)
    return Checked(worst, by_key, ALLOWED_ULP, worst <= ALLOWED_ULP)
