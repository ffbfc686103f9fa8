"""How such a rule is entered, and the inputs of most."""

from __future__ import annotations

from jaxnet.checking.corpus.case import Case, entering, normal

CASES: list[Case] = []


def named_first(cases):
    """`entering` into `cases`, the name first."""
    enter = entering(cases)
    return lambda name, primal, args, words, leaves: enter(primal, args, words, leaves, name)


wrong = named_first(CASES)


def wrong_slope(name, primal, slope, words):
    """Enter a wrong derivative of an elementwise function."""
    wrong(name, primal, one, words, ("[0]",))(lambda args, g: (g * slope(args[0]).astype(g.dtype),))


SIZES = ((6, 4), (9, 5), (16, 12))
one = normal(lambda n, d: (n, d), sizes=SIZES)
two = normal(lambda n, d: (n, d), lambda n, d: (n, d), sizes=SIZES)
vectors = normal(lambda n, d: (d,), lambda n, d: (d, d), lambda n, d: (d,), sizes=SIZES)
both = ("[0]", "[1]")
