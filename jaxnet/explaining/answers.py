"""The questions that people ask about backpropagation, answered with the numbers of one dense layer.

They stand in `templates/answers.txt`: a key, the question, the answer. "key if rows" is for W as (in, out), "if
columns" for (out, in); "if below" where an activation is below the layer, "if first" where none is.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jaxnet.explaining.expressions import Transposed, written
from jaxnet.explaining.lines import Chain, diagonal_entries
from jaxnet.explaining.model import Answer, WhyTranspose
from jaxnet.explaining.notes import prime
from jaxnet.explaining.numbering import NumberedLayer
from jaxnet.explaining.numbers import one, shape, vector
from jaxnet.explaining.why import entry, weight


@cache
def sentences() -> list[list[str]]:
    """Key, question and answer of each."""
    text = (Path(__file__).parent / "templates" / "answers.txt").read_text(encoding="utf-8")
    return [block.split("\n") for block in text.strip().split("\n\n")]


def answers(chain: Chain, place: NumberedLayer, why: WhyTranspose) -> tuple[Answer, ...]:
    """The questions, each answered in a few lines."""
    below = chain.places[place.index - 1] if place.index else None
    below = below if below is not None and below.kind == "activation" else None
    case, found = {"", "rows" if chain.notation.rows else "columns", "first" if below is None else "below"}, []
    values = numbers(chain, place, why) | ({} if below is None else gate(chain, below))
    values["ones"] = f"({','.join('1' * values['n'])})ᵀ" if values["n"] <= 6 else "(1,…,1)ᵀ"
    for head, question, answer in sentences():
        key, _, when = head.partition(" if ")
        if when in case:
            found.append(Answer(key, question.format_map(values), answer.format_map(values)))
    return tuple(found)


def numbers(chain: Chain, place: NumberedLayer, why: WhyTranspose) -> dict[str, Any]:
    """The symbols and numbers of the layer in the sentences."""
    n, sent, paths, rows = chain.notation, why.sent_back, why.paths, chain.notation.rows
    W, delta, a, z = (written(each) for each in (why.W, why.delta, why.a, why.gives))
    WT, (out, into), unit = written(Transposed(why.W)), why.shape, why.nudge.unit + 1
    laid, W1 = why.shape[::-1] if rows else why.shape, why.rows.W[0]
    in_order, as_column = (f"{delta}{WT}", f"{W}{delta}ᵀ") if rows else (f"{delta}ᵀ{W}", f"{WT}{delta}")
    has = {"none": f"{W} is {shape(laid)}, so it has no inverse; its pseudo-inverse", "inverse": f"{W}⁻¹",
           "singular": f"{W} is singular, so it has no inverse; its pseudo-inverse"}  # fmt: skip
    return {
        "W": W, "WT": WT, "delta": delta, "a": a, "z": z, "aT": written(Transposed(why.a)), "C": n.cost.base,
        "back": written(n.sent_back(why.W, why.delta)), "back_value": vector(why.back), "out": out, "into": into,
        "outer": written(n.outer(why.delta, why.a)), "gradient": written(n.gradient(n.param("W", place.number))),
        "line": "column" if rows else "row", "across": "row" if rows else "column", "n": out, "step": sent.step,
        "a_unit": entry(a, unit), "d1": entry(delta, 1), "z1": entry(z, 1), "w_unit": weight(why, rows, 1, unit),
        "w_value": one(float(W1[unit - 1])), "row1": vector(W1, 4, 1), "d1_value": one(float(why.rows.delta[0])),
        "has": has[sent.inverse], "other": "inverse" if sent.inverse == "inverse" else "pseudo-inverse",
        "sent": vector(sent.value, 2), "angle": f"{sent.angle:.0f}", "lowers": one(sent.transpose_lowers),
        "other_lowers": one(sent.other_lowers), "turned": shape(laid[::-1]), "sizes": shape(laid), "rows": laid[0],
        "columns": laid[1], "square": "; a square W fits untransposed too" if out == into else "",
        "w_gradient": one(paths.weight_gradient), "total": one(paths.total), "products": out * into,
        "in_order": in_order, "as_column": as_column, "chance": " but by chance" if into == 1 else "",
        "reads": f"Here errors are rows, {in_order}" if rows else f"As a row the chain rule reads {in_order}",
        "close": " It comes close here: the rows of a wide W are nearly orthogonal and equally long."
                 * (sent.angle < 45),
    }  # fmt: skip


def gate(chain: Chain, below: NumberedLayer) -> dict[str, Any]:
    """Those of the activation below it."""
    return {
        "n": len(below.item.out), "taken": len(chain.places[max(0, below.index - 1)].item.x),
        "g_prime": written(prime(below.item.layer)), "gate_z": written(below.takes), "gate_a": written(below.gives),
        "slopes": diagonal_entries(below.item),
    }  # fmt: skip
