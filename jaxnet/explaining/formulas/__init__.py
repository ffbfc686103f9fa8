"""Formulas of one's own, tried on a network: `jaxnet explain --try`."""

from jaxnet.explaining.formulas.judge import Trial, Tried, trial_lines, tried_on, try_formula
from jaxnet.explaining.formulas.parse import FormulaError

__all__ = ["FormulaError", "Trial", "Tried", "trial_lines", "tried_on", "try_formula"]
