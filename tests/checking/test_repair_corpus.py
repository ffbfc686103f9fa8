"""Mistakes of the corpus and of rules written later are wrong where they say, and are mended in their own source."""

import ast
from pathlib import Path

import pytest

from jaxnet.bench.checkers import ruled
from jaxnet.checking import corpus
from jaxnet.checking.corpus import CASES
from jaxnet.checking.repair import repair
from jaxnet.checking.rules import subject_of
from tests.checking import unseen
from tests.checking.helpers import backward_of, drawn, wrong_leaves

QUICK = (1, 6, 7, 8, 13, 15, 24, 42, 48, 113)
"""Numbers of mistakes whose repair takes less than a second; the others are for the slow run."""
MENDED, MENDED_UNSEEN, MENDED_LATER = 0.75, 0.75, 0.6
"""The share of the corpus, of the first forty unseen rules and of the sixteen later ones that is mended."""


def mended(case):
    """The repair of a case: found at one size, proved at another."""
    args, d_out = drawn(case, 0, 0)
    assert wrong_leaves(case, backward_of(case), args, d_out) == case.wrong_leaves
    subject = subject_of(ruled(case), args)
    found = repair(
        subject, (args, d_out), lambda seed: drawn(case, 0, seed), lambda seed: drawn(case, 1, seed), seconds=10
    )
    if found is None or not found.patch:
        return None
    assert found.patch.splitlines()[-1].startswith("+ ")
    return found


@pytest.mark.parametrize("case", [case for case in CASES if int(case.name.split()[0]) in QUICK], ids=lambda c: c.name)
def test_the_source_is_mended(case):
    found = mended(case)
    assert found is not None
    assert found.cause


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "share"), [(CASES, MENDED), (unseen.CASES, MENDED_UNSEEN), (unseen.later.CASES, MENDED_LATER)]
)
def test_share_mended(cases, share):
    lost = [case.name for case in cases if mended(case) is None]
    assert 1 - len(lost) / len(cases) >= share, lost


def test_the_corpus_is_whole():
    assert [int(case.name.split()[0]) for case in CASES] == list(range(1, 117))
    assert len(unseen.CASES) == 40
    assert len(unseen.later.CASES) == 16


@pytest.mark.parametrize("path", sorted(Path(corpus.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_functions_say_what_they_are(path):
    functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    known = {f"{name}_back" for name in functions}  # the backward pass of a function above: its name says it
    assert not [name for name, function in functions.items() if name not in known and not ast.get_docstring(function)]
