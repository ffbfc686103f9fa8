"""The benchmark compares like with like: every variant of a case computes the same."""

import json

import jax
import numpy as np
import pytest

from jaxnet.bench import core, growth
from jaxnet.bench.cases.gpt import Sizes
from jaxnet.bench.measure import Row, TimedCase, Variant, by_plain_equations, compiled, measure
from jaxnet.bench.results import BenchError, markdown, run, write_json
from jaxnet.bench.startup import CONFIG, first_step
from jaxnet.layers.dense import times

CASES = {
    "nielsen": lambda: core.nielsen_epoch(200),
    "mlp": lambda: core.mlp_step(8),
    "deep": lambda: core.deep_step(8, width=16, depth=3),
}


def numbers(result) -> list[np.ndarray]:
    """The arrays of a result, columns as vectors."""
    return [np.squeeze(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(result)]


@pytest.mark.parametrize("name", CASES)
def test_every_variant_of_a_case_computes_the_same(name):
    case = CASES[name]()
    ours = numbers(case.ours.run())
    assert len(ours) >= 4
    for other in case.others:
        for mine, theirs in zip(ours, numbers(other.run()), strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=2e-3, atol=2e-4, err_msg=other.name)


def test_our_program_is_measured_without_its_forms_where_it_has_some():
    W = jax.numpy.ones((64, 32), jax.numpy.bfloat16)
    [plain] = by_plain_equations(compiled("hand", times, W, jax.numpy.ones((8, 32))))
    assert plain.name == "hand, plain equations"
    assert by_plain_equations(compiled("hand", lambda W: W + 1, W)) == []


def sleeper(name: str, sizes: list[int], **aims) -> Variant:
    """A variant that says when it ran."""
    return Variant(name, lambda: sizes.append(len(sizes)), memory=100, **aims)


def test_a_round_runs_each_variant_once_after_a_first_run_that_does_not_count():
    ran: list[int] = []
    case = TimedCase("case", sleeper("ours", ran), (sleeper("a", ran), sleeper("b", ran)), rounds=4)
    rows = measure(case)
    assert len(ran) == 3 * (4 + 1)
    assert [row.against for row in rows] == ["a", "b"]
    assert all(row.quartiles[0] <= row.time_ratio <= row.quartiles[1] and row.memory_ratio == 1 for row in rows)


@pytest.mark.parametrize(
    ("quartiles", "memory", "verdict"),
    [((0.8, 1.0), 1.0, "met"), ((0.91, 1.0), 1.0, "missed: time"), ((0.95, 1.0), 1.2, "missed: time, memory")],
)
def test_an_aim_is_met_within_the_runs_own_noise(quartiles, memory, verdict):
    row = Row("case", "other", 0.95, quartiles, memory, 0.9, 1.0, 1.0, 1.0)
    assert row.verdict() == verdict


def test_rows_are_written_with_machine_aim_and_verdict(tmp_path):
    row = Row("case", "other", 0.5, (0.4, 0.6), None, 0.9, None, 0.1, 0.2)
    write_json(tmp_path / "rows.json", [row])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["rows"][0] | {"case": "case", "time_ratio": 0.5, "verdict": "met"} == content["rows"][0]
    assert content["machine"]["cores"] >= 1
    assert "| case | other | 0.500 | 0.400–0.600 |" in markdown([row])


def test_start_up_is_told_by_a_run_of_its_own(tmp_path):
    config = tmp_path / "startup.toml"
    config.write_text(CONFIG)
    assert 0 < first_step(config, tmp_path / "run") < 120
    assert list((tmp_path / "cache").iterdir())


def test_growth_is_told_by_the_operations():
    tiny = Sizes(batch=4, time=8, vocab=8, width=8, heads=2, depth=1)
    by_time, by_depth = growth.grown(tiny, "time", (8, 16)), growth.grown(tiny, "depth", (1, 2))
    assert [row.size for row in by_time + by_depth] == [8, 16, 1, 2]
    assert all(row.seconds > 0 and row.compile_seconds > 0 for row in by_time + by_depth)
    (weights, pairs), (same_weights, more_pairs) = (row.flops for row in by_time)
    assert weights == same_weights  # as many tokens
    assert more_pairs / pairs == 17 / 9
    assert by_depth[1].flops[1] == 2 * by_depth[0].flops[1]


def test_growth_over_the_fit():
    flops = [(1e9, 1e8), (2e9, 4e8), (4e9, 1e8), (1e9, 8e8)]
    series = [growth.Grown("time", i, 3e-9 * a + 7e-9 * b, 1.0, (a, b)) for i, (a, b) in enumerate(flops)]
    assert [row.over_fit for row in growth.fitted(series)] == pytest.approx([1.0] * 4)
    twice = [*series[:3], series[3]._replace(seconds=2 * series[3].seconds)]
    assert growth.fitted(twice)[3].over_fit > 1.1
    assert series[0].cells() == ("length of the sequences", "0", "3.70 s", "1.1 GF", "1.000", "1.00 s")


def test_a_benchmark_that_there_is_none_of_is_refused():
    with pytest.raises(BenchError, match="one of core"):
        run("cores", None, None)


def test_a_peer_that_fails_is_left_out_with_its_reason(capsys):
    def broken():
        raise RuntimeError("no compiler\nfurther lines")

    case = TimedCase(
        "sum", Variant("hand", lambda: None), (Variant("other", lambda: None), Variant("peer", broken)), rounds=2
    )
    assert [row.against for row in measure(case)] == ["other"]
    assert capsys.readouterr().err == "peer is left out, since it failed: no compiler\n"
