"""The benchmark of checkers: who catches what, who raises alarms, and who names leaf and cause."""

import json

import jax.numpy as jnp
import pytest

from jaxnet.bench import checkers, results
from jaxnet.bench.checkers import CheckerRow, rows
from jaxnet.checking.corpus import CASES, RIGHT, Right

SIGN, ONE_PER_CENT = CASES[14], CASES[22]
DENSE = RIGHT[0]


def scored(checker, **options):
    defaults = {"dtypes": ["float32"], "sizes": ["small"], "cases": [SIGN, ONE_PER_CENT], "right": [DENSE]}
    (row,) = rows([checker], **(defaults | options))
    return row


def test_jaxnet_catches_places_and_names():
    row = scored("jaxnet check")
    assert (row.mistakes, row.correct) == (2, 1)
    assert row.missed == row.alarms == row.misplaced == row.unnamed == row.failed == ()
    assert row.cells()[:7] == ("jaxnet check", "float32", "small", "2/2", "0/1", "2/2", "2/2")


def test_check_grads_catches_a_sign_and_names_nothing():
    row = scored("jax check_grads", cases=[SIGN], sizes=["large"])  # at one small point it is missed by chance
    assert row.missed == row.alarms == row.failed == ()
    assert row.misplaced == row.unnamed == (SIGN.name,)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:Input #0 requires gradient")  # gradcheck's own word on float32
def test_gradcheck_catches_a_sign_and_names_its_place():
    pytest.importorskip("torch", reason="torch comes with the extra `peers`")
    row = scored("torch gradcheck", cases=[SIGN], dtypes=["float64"])
    assert row.missed == row.alarms == row.misplaced == row.failed == ()
    assert row.unnamed == (SIGN.name,)


def test_an_alarm_at_right_code_and_a_miss_are_told(monkeypatch):
    monkeypatch.setitem(checkers.CHECKERS, "jaxnet check", lambda rule, args: checkers.Verdict(rule is not DENSE.rule))
    row = scored("jaxnet check")
    assert row.missed == (SIGN.name, ONE_PER_CENT.name)
    assert row.alarms == ("dense",)


def test_a_checker_that_cannot_run_has_caught_nothing():
    def broken(*args):
        raise TypeError("no such thing")

    right = Right("broken", broken, lambda size, seed, dtype: (jnp.ones(2, dtype),))
    row = scored("jax check_grads", cases=[], right=[right])
    assert row.alarms == ()
    assert row.failed == ("right: broken: TypeError: no such thing",)


def test_a_checker_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setitem(checkers.NEEDS, "torch gradcheck", "surely_not_installed")
    assert "surely_not_installed not installed" in scored("torch gradcheck").cells()


@pytest.mark.parametrize("each", RIGHT, ids=lambda each: each.name)
def test_right_rules_have_as_many_sizes_as_there_are(each):
    shapes = [
        [leaf.shape for leaf in checkers.jax.tree.leaves(each.make_args(size, 0, jnp.float32))] for size in (0, 2)
    ]
    assert shapes[0] != shapes[1]


def test_rows_are_printed_and_written(monkeypatch, tmp_path, capsys):
    row = CheckerRow("a checker", "float32", "small", 4, 3, missed=("one",), alarms=("two",), seconds=0.1)
    monkeypatch.setitem(results.BENCHMARKS, "checkers", results.Benchmark("checkers", lambda: [row]))
    results.run("checkers", tmp_path / "rows.json", tmp_path / "rows.md")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["missed"] == ["one"]
    assert "| a checker | float32 | small | 3/4 | 1/3 |" in (tmp_path / "rows.md").read_text()
    assert "a checker" in capsys.readouterr().out
