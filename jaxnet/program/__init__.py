"""Programs as data: any JAX function as operations with source lines, run anew with changes or in float64."""

from jaxnet.program.calls import UnknownPrimitiveError, has_custom, inner_programs, opened
from jaxnet.program.custom_rules import (
    CannotOpenError,
    RuleUse,
    draws_numbers,
    float_dtypes,
    rules_inside,
    without_rules,
)
from jaxnet.program.evaluate import Evaluation, with_longer_loops
from jaxnet.program.graph import Graph, Operation, graph_of
from jaxnet.program.not_finite import first_not_finite
from jaxnet.program.numpy_evaluation import in_numpy
from jaxnet.program.positions import Position
from jaxnet.program.tape import Tape, record, replay
from jaxnet.program.widening import widened_program

__all__ = [
    "CannotOpenError",
    "Evaluation",
    "Graph",
    "Operation",
    "Position",
    "RuleUse",
    "Tape",
    "UnknownPrimitiveError",
    "draws_numbers",
    "first_not_finite",
    "float_dtypes",
    "graph_of",
    "has_custom",
    "in_numpy",
    "inner_programs",
    "opened",
    "record",
    "replay",
    "rules_inside",
    "widened_program",
    "with_longer_loops",
    "without_rules",
]
