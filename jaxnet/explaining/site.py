"""Where a layer stands: the symbols of what it takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from jaxnet.explaining.expressions import Expression, Name, Product
from jaxnet.explaining.notation import Notation, Number
from jaxnet.explaining.records import Record


@dataclass(frozen=True)
class Site:
    """A record with its symbols.

    takes: what it takes. gives: what it gives. error: ∂C/∂gives. back: the left side of what it sends back.
    """

    record: Record
    notation: Notation
    number: Number
    takes: tuple[Name, ...]
    gives: Name
    error: Expression
    back: tuple[Expression, ...]

    def name(self, base: str, key: str) -> Name:
        """A symbol of this layer."""
        return self.notation.name_of(base, self.number, key)

    def outer(self, error: Expression, a: Expression) -> Product:
        """δ aᵀ."""
        return self.notation.outer(error, a)


def words(path: tuple) -> list[str]:
    """The words of a parameter's path, without those that lead to state."""
    found = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    state = [i for i, entry in enumerate(path) if isinstance(entry, jax.tree_util.GetAttrKey)]
    return found[state[-1] + 1 if state else 0 :] or ["p"]


def parameter(path: tuple) -> str:
    """A parameter's name: the words of its path."""
    return "_".join(words(path))


def param_name(notation: Notation, path: tuple, number: Number) -> Name:
    """The symbol of a parameter: its own name, after the words of the path that leads to it."""
    *before, own = words(path)
    base = notation.param(own, number)
    return Name(base.base, base.above, " ".join(before), "_".join([base.key, *before])) if before else base
