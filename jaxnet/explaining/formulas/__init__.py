"""Formulas of one's own, tried on a network: `jaxnet explain --try`, and the page's box."""

from jaxnet.explaining.formulas.formula_values import tables
from jaxnet.explaining.formulas.judge import Trial, Tried, named_on_page, trial_lines, tried_on, try_formula
from jaxnet.explaining.formulas.parse import FormulaError

__all__ = ["FormulaError", "Trial", "Tried", "named_on_page", "tables", "trial_lines", "tried_on", "try_formula"]
