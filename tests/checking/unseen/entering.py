"""How such a rule is entered, and the inputs of most."""

from __future__ import annotations

from jaxnet.checking.corpus.case import Case, normal, saving_arguments

CASES: list[Case] = []


def named_first(cases):
    """The decorator that enters a wrong backward pass of a primal into `cases`, under a name."""

    def wrong(name, primal, args, words, leaves):
        def enter(backward):
            said = (words,) if isinstance(words, str) else tuple(words)
            cases.append(Case(name, primal, saving_arguments(primal, backward), args, said, leaves))
            return backward

        return enter

    return wrong


wrong = named_first(CASES)


def wrong_slope(name, primal, slope, words):
    """Enter a wrong derivative of an elementwise function."""
    wrong(name, primal, one, words, ("[0]",))(lambda args, g: (g * slope(args[0]).astype(g.dtype),))


SIZES = ((6, 4), (9, 5), (16, 12))
one = normal(lambda n, d: (n, d), sizes=SIZES)
two = normal(lambda n, d: (n, d), lambda n, d: (n, d), sizes=SIZES)
vectors = normal(lambda n, d: (d,), lambda n, d: (d, d), lambda n, d: (d,), sizes=SIZES)
both = ("[0]", "[1]")
