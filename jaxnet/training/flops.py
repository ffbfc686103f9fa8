"""How many operations a program's products take, counted from shapes alone."""

import math
from collections.abc import Iterable

from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxnet.program import inner_programs


def products(program: ClosedJaxpr) -> float:
    """Multiplications and additions of its matrix products and convolutions, but for those that no result needs.

    A scan counts as often as it runs, and of branches the largest. A loop with a condition counts once: its number of
    turns is not known.
    """
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))  # as XLA leaves out ∂C/∂x of the first layer
    return sum(map(of_equation, needed.eqns), 0.0)


def of_equation(eqn) -> float:
    """The same of one equation, with the programs inside it."""
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * size(eqn.outvars[0].aval.shape) * size(eqn.invars[0].aval.shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * size(eqn.outvars[0].aval.shape) * size(kernel) / channels
    inside = map(products, inner_programs(eqn))
    if name == "cond":  # one of its branches runs
        return max(inside)
    turns = eqn.params["length"] if name == "scan" else 1
    return turns * sum(inside, 0.0)


def size(shape: Iterable[int]) -> int:
    """How many entries there are."""
    return math.prod(shape)
