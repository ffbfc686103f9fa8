"""Explaining: the backward pass of one's own network, in symbols, shapes and numbers.

    observed = observe(net, loss, params, x, y)      # all numbers of one example, once
    derivation = derive(observed, notation("ng"))    # symbols and questions about them, cheap, once for each notation

What a derivation holds is in `model`: frozen dataclasses of NumPy arrays and equations, which know of no renderer.
Equations are the trees of `expressions`; `written` makes unicode text of one, `formula` what `--try` reads, and a page
makes MathML by one more function of that form. Numbers are text by `numbers`, in the terminal and on pages alike.

From the bottom up: expressions, model → notation, numbers, losses → observe (forward and backward, layer by layer, with
autodiff's values beside) → sources, places (which layer gets which symbol) → layers (the steps of every kind beside the
dense ones) → lines (each equation with its factors and value) → why, layouts, answers, tables, batches (what people
ask) → derive → the renderers.
"""

from jaxnet.explaining.derive import derive
from jaxnet.explaining.model import Derivation, to_dict
from jaxnet.explaining.notation import ExplainError, Notation, notation
from jaxnet.explaining.observe import Observed, observe

__all__ = ["Derivation", "ExplainError", "Notation", "Observed", "derive", "notation", "observe", "to_dict"]
