"""The quantities that formulas name: a network's values at the example, and at random draws.

At a draw x, y and the parameters are random, and all else is computed from the text of the derivation's own equations.
Capital letters are a batch: X, Y, Z2, A2, dZ2, dA2, an example in each column, or in each row where vectors are rows.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnet.explaining.derive import Derivation
from jaxnet.explaining.expressions import formula
from jaxnet.explaining.formulas.formula_values import NEAR, Misfit, Symbols, evaluate
from jaxnet.explaining.formulas.parse import FormulaError, parse
from jaxnet.explaining.lines import Chain, loss_slope

DRAWS = 3  # beside the example that is shown
CANDIDATES = 64  # from which they are chosen: none where a whole layer is off
MOST_ENTRIES = 1 << 21  # of parameters over all candidates
EXAMPLES = 4  # of a batch, where none is given

Values = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Quantity:
    """Something that a formula can be: its key, its symbol, its value at every draw, and the rule that gives it."""

    key: str
    symbol: str
    value: np.ndarray
    backward: bool = False
    said: str = ""


def laid(values: Any, rows: bool) -> np.ndarray:
    """A vector as a column n×1 or a row 1×n; more axes than two as one long vector."""
    values = np.asarray(values, np.float64)
    if values.ndim in (0, 2):
        return values
    flat = values.reshape(-1)
    return flat[None, :] if rows else flat[:, None]


def at_the_example(chain: Chain, derivation: Derivation) -> tuple[Values, Symbols]:
    """The inputs and parameters at the example, and all quantities, under the names that the lines have."""
    rows, header, last = chain.notation.rows, derivation.header, chain.places[-1]
    leaves = {"x": laid(header.x, rows), "y": laid(header.y, rows)}
    activations = {}
    for place in chain.places:
        if place.kind == "activation" and place.takes.key:
            activations[place.takes.key] = place.item.layer
        for name, value in place.item.params.items() if isinstance(place.item.params, dict) else ():
            if isinstance(value, np.ndarray):
                turned = value.T if place.kind == "dense" and name == "W" and rows else value
                leaves[f"{name}{chain.notation.number(place.number)}"] = laid(turned, rows)
    shown = {key: value[None] for key, value in leaves.items()}
    shown |= {line.key: laid(line.value, rows)[None] for line in (*derivation.forward, *derivation.backward)}
    shown.setdefault(f"d{last.gives.key}", laid(last.item.d_out, rows)[None])
    shown["C"] = np.asarray([header.value])
    return leaves, Symbols(shown, activations, rows, other_names(chain, shown))


def scope_of(chain: Chain, derivation: Derivation, batch: tuple[Any, Any] | None = None) -> Symbols:
    """x, y, C, every z, a, δ, parameter and gradient, at the example and at draws. batch: (xs, ys)."""
    rows = chain.notation.rows
    leaves, bare = at_the_example(chain, derivation)
    equations = equations_of(chain, derivation)
    drawn = None if equations is None else at_draws(leaves, bare, equations)
    if drawn is None or equations is None:
        return bare
    examples = None if batch is None else [
        (laid(x, rows), laid(dataclasses.replace(chain.observed, y=np.asarray(y)).target, rows))
        for x, y in zip(*batch, strict=True)
    ]  # fmt: skip
    of_batch = batched(leaves, dataclasses.replace(bare, values=drawn), equations, examples)
    names = frozenset(name for name in of_batch if " " not in name)
    drawn_at_random = f"the batch is this example and {EXAMPLES - 1} drawn at random; --batch N takes the data's"
    return dataclasses.replace(bare, values={**drawn, **of_batch}, batch=names,
                               examples="" if examples else drawn_at_random)  # fmt: skip


def other_names(chain: Chain, values: Values) -> dict[str, str]:
    """Other names of the same quantities: dz2 for delta2, a1 for x, W for the last dense layer's."""
    first, last = chain.notation.first, chain.places[-1].gives.key
    found = {f"a{first}": "x", f"A{first}": "X", f"da{first}": "dx", f"dA{first}": "dX", "J": "C", "L": "C",
             **dict.fromkeys(("yhat", "y_hat", "output"), last)}  # fmt: skip
    for key in values:
        if key.startswith("delta"):
            found["dz" + key.removeprefix("delta")] = key
        if key.startswith(("W", "dW")):
            found[key.replace("W", "Theta")] = key
    dense = [chain.notation.number(place.number) for place in chain.places if place.kind == "dense"]
    for number in dense[-1:]:
        found |= {name: f"{name}{number}" for name in ("W", "b", "z", "delta", "dW", "db", "Z", "dZ")}
        found["dz"] = f"delta{number}"
    return found


def equations_of(chain: Chain, derivation: Derivation) -> list[tuple[str, str]] | None:
    """The keys and formulas of all lines in order, of the cost and its slope by the output; None where a line has none.

    The cost and its slope are left out where the loss has no formula.
    """
    try:
        found = {line.key: formula(line.right) for line in (*derivation.forward, *derivation.backward)}
    except ValueError:
        return None
    slope = f"d{chain.places[-1].gives.key}"
    for key, right in (("C", derivation.header.cost_right), (slope, loss_slope(chain))):
        with suppress(ValueError):
            text = formula(right)
            if text != key:
                found.setdefault(key, text)
    return list(found.items())


def computed(leaves: Values, bare: Symbols, equations: list[tuple[str, str]]) -> Values | None:
    """All quantities at other inputs and parameters, by the equations; None where a line has no value."""
    values = dict(leaves)
    for key, text in equations:
        try:
            values[key] = evaluate(parse(text), Symbols(values, bare.activations, bare.rows))
        except (FormulaError, Misfit):
            if key != "C":
                return None
    return values


def random(leaves: Values, count: int, draw: np.random.Generator) -> Values:
    """Random draws of the inputs and parameters. y is positive and sums to 1: a target for any loss."""
    found = {key: draw.standard_normal((count, *value.shape)) for key, value in leaves.items()}
    raised = np.exp(found["y"])
    total = raised.sum(tuple(range(1, raised.ndim)), keepdims=True) if raised[0].size > 1 else raised + 1
    return found | {"y": raised / total}


def at_draws(leaves: Values, bare: Symbols, equations: list[tuple[str, str]]) -> Values | None:
    """The example, then draws with nonzero errors. None if the equations do not give the example's values.

    Units are on in some and off in others where that can be.
    """
    entries = sum(value.size for value in leaves.values())
    count = max(DRAWS, min(CANDIDATES, MOST_ENTRIES // entries))
    drawn = random(leaves, count, np.random.default_rng(0))
    both = {key: np.concatenate([value[None], drawn[key]]) for key, value in leaves.items()}
    values = computed(both, bare, equations)
    if values is None or not all(near(values[key][:1], bare.values[key]) for key in values):
        return None
    errors = [values[key] for key, _ in equations if key.startswith("d") and values[key].ndim == 3]
    mixed = np.sum([np.count_nonzero(np.ptp(error.reshape(len(error), -1), 1)[:, None], 1) for error in errors], 0)
    full = np.sum([(error != 0).reshape(len(error), -1).any(1) for error in errors], 0)
    best = np.argsort(-(full * 1000 + mixed)[1:], kind="stable")[:DRAWS] + 1
    kept = np.concatenate([[0], best])
    found = {key: value[kept] for key, value in values.items()}
    for key, value in bare.values.items():
        if key not in found:  # a value without an equation is known at the example alone
            found[key] = np.full((len(kept), *value.shape[1:]), np.nan)
        found[key] = np.concatenate([value, found[key][1:].reshape(-1, *value.shape[1:])])
    return found


def batched(
    leaves: Values,
    scope: Symbols,
    equations: list[tuple[str, str]],
    examples: list[tuple[np.ndarray, np.ndarray]] | None,
) -> Values:
    """The quantities of a batch at each draw, and as "mean dW2" the gradients of its mean cost."""
    m, draw = (len(examples) if examples else EXAMPLES), np.random.default_rng(1)
    inputs = {key: leaves[key] for key in ("x", "y")}
    own = {key: np.repeat(scope.values[key], m, 0) for key in leaves}
    own |= random(inputs, scope.draws * m, draw)
    for name, given in zip(inputs, zip(*(examples or [(leaves["x"], leaves["y"])]), strict=True), strict=True):
        own[name] = np.concatenate([np.stack(given), own[name][len(given) :]])
    values = computed(own, scope, equations) or {}
    found: Values = {"m": np.full(scope.draws, float(m))}
    for key, value in values.items():
        each = value.reshape(scope.draws, m, *value.shape[1:])
        if key.startswith(("dW", "db", "C")) or (key in leaves and key not in inputs):
            found[f"mean {key}"] = each.mean(1)
        elif value.ndim == 3 and 1 in value.shape[1:]:
            flat = each.reshape(scope.draws, m, -1)
            found[capital(key)] = flat if scope.rows else flat.swapaxes(1, 2)
    return found


def capital(key: str) -> str:
    """The name of a quantity in a batch: Z2 of z2, dZ2 of delta2, dA2 of da2."""
    key = key.replace("delta", "dz")
    return f"d{key[1:].capitalize()}" if key[0] == "d" else key.capitalize()


def near(value: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two values are one at every draw but for float32's rounding."""
    if value.shape != expected.shape and not (value[0].size == expected[0].size == 1):
        return False
    expected = expected.reshape(value.shape)
    axes = tuple(range(1, value.ndim))
    scale = np.maximum(np.abs(expected).max(axes, keepdims=True, initial=0) if axes else np.abs(expected), 1e-30)
    return bool(np.all(np.isnan(expected) | (np.abs(value - expected) <= NEAR * scale)))
