"""All the small mistakes that need nothing but the operation itself, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterator

from jaxnet.checking.diagnose.convolutions import convolutions
from jaxnet.checking.diagnose.factors import factors, ranges
from jaxnet.checking.diagnose.places import masks, overwritten, places, steps
from jaxnet.checking.diagnose.products import products, sums
from jaxnet.checking.diagnose.scene import Mutant, Scene
from jaxnet.checking.diagnose.terms import held, of_steps, terms


def structural(scene: Scene) -> Iterator[Mutant]:
    """Terms, factors, sums, masks, orders: what needs nothing but the operation itself."""
    for table in (
        held,
        terms,
        products,
        convolutions,
        sums,
        masks,
        places,
        overwritten,
        steps,
        of_steps,
        factors,
        ranges,
    ):
        yield from table(scene)
