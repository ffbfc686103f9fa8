"""Why is a backward pass wrong? The reference's own, mutated until one mistake gives what the rule gave."""

from jaxnet.checking.diagnose.diagnosis import diagnose
from jaxnet.checking.diagnose.problem import Diagnosis, Explanation, Problem

__all__ = ["Diagnosis", "Explanation", "Problem", "diagnose"]
