"""The benchmarks of layers and models compare like with like: every variant of a case computes the same."""

from importlib import import_module
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from jaxnet.bench import cases, results
from jaxnet.bench.cases import convolution, gpt, recurrent
from jaxnet.bench.measure import Row, TimedCase, Variant, matrix_rate, measure
from jaxnet.bench.summary import summary

CASES = {
    "max_pool": lambda: convolution.pool_case((2, 4, 6, 3)),
    "convolution": lambda: convolution.convolution_case((2, 5, 4, 3), 4),
    "cnn": lambda: convolution.network_case(2),
    "lstm": lambda: recurrent.lstm_case((2, 3, 4)),
    "gru": lambda: recurrent.gru_case((2, 3, 4)),
    "layer_norm": lambda: recurrent.norm_case("layer_norm", (2, 3, 4)),
    "rms_norm": lambda: recurrent.norm_case("rms_norm", (2, 3, 4)),
}


@pytest.mark.peers  # with torch among the variants
@pytest.mark.parametrize("name", CASES)
def test_every_variant_of_a_case_computes_the_same(name):
    computes_the_same(CASES[name]())


def computes_the_same(case: TimedCase) -> None:
    ours = case.ours.run()
    assert len(case.others) >= (4 if find_spec("torch") else 2)  # torch, which the extra `peers` brings, adds two
    for other in case.others:
        if other.name == "torch.compile":  # the eager one's function, through a compiler that takes a minute
            continue
        theirs = other.run()
        assert jax.tree.structure(theirs) == jax.tree.structure(ours), other.name
        for mine, its in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(its, mine, rtol=1e-4, atol=1e-5, err_msg=other.name)


@pytest.mark.slow
def test_every_variant_of_a_gpts_step_computes_the_same():
    """Takes half a minute: python -m pytest -m slow tests/test_bench_layers.py."""
    computes_the_same(gpt.kept(gpt.Sizes(2, 5, 7, 8, 2, 2)))


def test_a_row_tells_memory_and_the_fraction_of_the_machines_rate():
    variant = Variant("ours", lambda: None, memory=3 * 2**20)
    [row] = measure(TimedCase("case", variant, (variant,), rounds=3, flops=1.0))
    assert row.memory == 3 * 2**20
    assert row.fraction == pytest.approx(1.0 / row.seconds / matrix_rate())
    assert row.cells()[-2] == "3 MiB"
    assert matrix_rate() > 1e8


def test_a_subject_is_measured_by_itself(monkeypatch, capsys):
    """The files of the others are not even read."""
    variant = Variant("ours", lambda: None)
    made = [TimedCase("its case", variant, (variant._replace(name="another"),), rounds=2)]
    monkeypatch.setattr(recurrent, "cases", lambda: iter(made))
    subjects = {"elsewhere": "no_such_file:cases", "recurrent": "recurrent:cases"}
    bench = results.Benchmark("layers", cases.rows_of(subjects), subjects)
    monkeypatch.setitem(results.BENCHMARKS, "layers", bench)
    results.run("layers", None, None, only="recurrent")
    said = capsys.readouterr()
    assert "its case" in said.out
    assert "measuring its case: 2 rounds of 2" in said.err


def test_a_summary_has_a_line_for_each_case():
    def row(case, against, ratio, seconds, **of):
        return Row(
            case, against, ratio, (ratio, ratio), of.pop("memory", None), of.pop("aim", None), None, 1.0, seconds, **of
        )

    rows = [
        row("norm", "autodiff, naive", 0.5, 2.0, memory=0.25, aim=0.6, fraction=0.4),
        row("norm", "autodiff, apart", 0.9, 1.1),
        row("norm", "torch, eager", 2.0, 0.5),
        row("half", "hand, float32", 0.8, 1.25, aim=0.7),
    ]
    assert summary(rows).splitlines()[2:] == [
        "| norm | 0.50 | 0.25 | 0.6 ✓ | 0.90 (apart) | 2.00 |  | 40% |",
        "| half | 0.80 of hand, float32 |  | 0.7 ✗ time |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [("layers", "layers has the subjects .*recurrent.*, got --only 'gtp'"), ("core", "core is measured whole")],
)
def test_a_subject_that_there_is_none_of_is_refused(name, says):
    with pytest.raises(results.BenchError, match=says):
        results.run(name, None, None, only="gtp")


@pytest.mark.parametrize("subjects", [cases.LAYERS, cases.MODELS], ids=["layers", "models"])
def test_every_subject_has_its_cases(subjects):
    for place in subjects.values():
        file, _, function = place.partition(":")
        assert callable(getattr(import_module(f"jaxnet.bench.cases.{file}"), function))
