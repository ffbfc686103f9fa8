"""Explaining: the backward pass of one's own network, in symbols, shapes and numbers."""

from jaxnet.explaining.derive import derive
from jaxnet.explaining.model import Derivation, to_dict
from jaxnet.explaining.notation import ExplainError, Notation, notation
from jaxnet.explaining.observe import Observed, observe

__all__ = ["Derivation", "ExplainError", "Notation", "Observed", "derive", "notation", "observe", "to_dict"]
