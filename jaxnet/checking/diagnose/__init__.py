"""Why is a backward pass wrong? The reference's own, mutated by each small mistake, until one gives what the rule gave."""

from jaxnet.checking.diagnose.problem import Diagnosis, Explanation, Problem
from jaxnet.checking.diagnose.search import diagnose

__all__ = ["Diagnosis", "Explanation", "Problem", "diagnose"]
