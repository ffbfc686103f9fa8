"""Explaining: the backward pass of a network in symbols, shapes and numbers.

    observed = observe(net, loss, params, x, y)      # the numbers of one example
    derivation = derive(observed, notation("ng"))    # equations and answers in one notation

`model` holds the results: frozen dataclasses of arrays and equations, independent of any renderer. `expressions` holds
equations as trees, and their forms: text, formulas for `--try`, LaTeX and MathML. `numbers`
formats numbers for the terminal and for pages.

From the bottom up: expressions, model; notation, numbers, losses; observe; recording (program_operations where there is
no source), transcription, evaluation, source_lines, writing: the lines of any layer;
numbering, lines; why, layouts, answers, batches; derive; formulas, guided_walk, exercise, terminal, page.
"""

from jaxnet.explaining.derive import derive
from jaxnet.explaining.model import Derivation, to_dict
from jaxnet.explaining.notation import ExplainError, Notation, notation
from jaxnet.explaining.observe import Observed, observe

__all__ = ["Derivation", "ExplainError", "Notation", "Observed", "derive", "notation", "observe", "to_dict"]
