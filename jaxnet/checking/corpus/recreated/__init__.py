"""Mistakes of public reports, recreated in our own words: right backward passes, and one change of a line for each.

No part of the checker was tuned to these.
"""

from jaxnet.checking.corpus.recreated import layers, losses, matrices
from jaxnet.checking.corpus.recreated.entering import RULES

CASES = RULES.cases(
    (rule, f"{rule}: {mistake}", *row)
    for subject in (losses, layers, matrices)
    for rule, mistake, *row in subject.MISTAKES
)
RIGHT = [rule.right() for rule in RULES.values()]

__all__ = ["CASES", "RIGHT", "RULES"]
