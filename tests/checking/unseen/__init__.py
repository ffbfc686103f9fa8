"""Further wrong rules, written after the operators of the diagnosis were frozen: the share of these that is named."""

from tests.checking.unseen import functions, later, structures
from tests.checking.unseen.entering import CASES

__all__ = ["CASES", "functions", "later", "structures"]
