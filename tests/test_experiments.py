"""The experiments on people's questions: each in a tiny form, and its page holds the numbers that it computed."""

import re

import numpy as np
import pytest

from experiments import evaluation_order, general_network, readings, two_three_two, which_layout, why_transpose
from experiments.page import equations_in, tables_in
from jaxnet.training.config import ConfigError, load_config


def numbers(row, first):
    """The cells of a row from `first` on as numbers."""
    return [float(cell.replace(",", "").rstrip("°")) for cell in row[first:] if cell]


def self_contained(text):
    """Nothing is fetched: all that the page refers to lies in it."""
    return not re.search(r'(src|href|srcset)="(?!data:)', text) and "<script" not in text


@pytest.fixture(autouse=True)
def loose(strict_jax):
    """An experiment runs as its command does, without the tests' strictness."""
    import jax

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_two_three_two():
    results = two_three_two.measure()
    page = two_three_two.render(results, "a test")
    [headings, *rows] = tables_in(page)["Every gradient, four ways"]
    assert headings[2:] == ["by hand", "by paths", "jax.grad", "differences"]
    assert len(rows) == 17
    for row, entry in zip(rows, results.entries, strict=True):
        assert row[0] == entry.name
        np.testing.assert_allclose(numbers(row, 2), entry[2:], atol=6e-9)
        np.testing.assert_allclose(entry[3:], entry.by_hand, atol=1e-9)
    by_name = {entry.name: entry.by_hand for entry in results.entries}
    assert by_name["∂C/∂W³₁₁"] == pytest.approx(-0.0558, abs=5e-5)
    assert by_name["∂C/∂W²₃₂"] == pytest.approx(0.2721, abs=5e-5)
    assert any("Why W³ᵀ?" in line for line in equations_in(page)["As `jaxnet explain` prints it"])
    assert self_contained(page)


def test_which_layout():
    results = which_layout.measure(["widths=[8]", "repeats=3"])
    page = which_layout.render(results, "a test")
    tables = tables_in(page)
    delta2 = next(line.value for line in results.derivation.backward if line.key == "delta2")
    for row in tables["Both multiplied out"][1:]:
        np.testing.assert_allclose(numbers(row, 2), delta2, atol=1e-6)
    for product in results.products:
        np.testing.assert_allclose(product.row.T, product.column, rtol=1e-5, atol=1e-7)
    [_, *rows] = tables["Σₖ δₖ ∂zₖ/∂W against δ aᵀ"]
    assert [row[1] for row in rows] == [row[2] for row in rows]
    assert tables["The same product, written twice"][1][:3] == ["8 × 8", "64", "64"]
    assert self_contained(page)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([0.93, 1.1], "the transpose costs no time either: Wᵀδ took 0.93 to 1.10 times"),
        ([0.93, 14.03], "slower at some widths and faster at others"),
        ([1.1, 14.03], "costs time all the same, Wᵀδ took 1.10 to 14.03 times as long: XLA's product is slower"),
        ([0.2, 0.9], "XLA's product is faster"),
    ],
)
def test_the_words_about_time_are_those_of_the_numbers(ratios, said):
    assert said in which_layout.time_of(ratios)


def test_general_network():
    found = general_network.measure(["networks=3", "layers=[1,3]", "widths=[1,4]", 'activations=["tanh","relu"]'])
    page = general_network.render(found, "a test")
    [_, *rows] = tables_in(page)["Networks drawn"]
    for row, each in zip(rows, found, strict=True):
        assert row[0] == "-".join(map(str, each.widths))
        np.testing.assert_allclose(numbers(row, 3)[:3], [each.matrices, each.sums, each.by_hand], atol=0.06)
        assert max(each.matrices, each.sums, each.by_hand) < 64
    assert self_contained(page)


def test_general_network_sees_a_wrong_equation(monkeypatch):
    right = general_network.by_sums

    def untransposed(weights, a, g_primes, y):
        return right([(W.T if W.shape[0] == W.shape[1] else W, b) for W, b in weights], a, g_primes, y)

    monkeypatch.setattr(general_network, "by_sums", untransposed)
    [one] = general_network.measure(["networks=1", "layers=[2,2]", "widths=[3,3]", 'activations=["tanh"]'])
    assert one.sums > 1e9
    assert one.matrices < 64


def test_evaluation_order():
    results = evaluation_order.measure(["widths=[2,3]", "depths=[2,3]", "outputs=[1,2,4]", "inputs=2", "repeats=3"])
    page = evaluation_order.render(results, "a test")
    tables = tables_in(page)
    for title, chains in (
        ("∂C/∂x by width", results.by_width),
        ("∂C/∂x by depth", results.by_depth),
        ("∂out/∂x by outputs", results.by_outputs),
    ):
        for row, each in zip(tables[title][1:], chains, strict=True):
            got = numbers(row, 2)
            assert got[:2] == [each.from_loss, each.from_input]
            np.testing.assert_allclose(got[2:4], [each.loss_time, each.input_time], atol=0.06)
    assert "23,820" in page
    assert "243,040" in page
    one, two, four = results.by_outputs
    assert one.from_loss < one.from_input
    assert two.from_loss == two.from_input
    assert four.from_loss > four.from_input
    assert self_contained(page)


@pytest.mark.slow
def test_why_transpose(tmp_path, monkeypatch):
    monkeypatch.setattr(why_transpose, "ORTHOGONAL", ("inverse",))
    small = [
        "data=digits",
        "train.epochs=1",
        'model=[{dense=8},"tanh",{dense=8},"tanh",{dense=10}]',
        "monitor.angles=50",
    ]
    results = why_transpose.measure(small, tmp_path, None, ["transpose", "inverse", "random"])
    page = why_transpose.render(results, "a test")
    tables = tables_in(page)
    for title, runs in (("Every feedback path", results.runs), ("Orthogonal at first", results.orthogonal)):
        for row, run in zip(tables[title][1:], runs, strict=True):
            assert row[0] == run.path
            expected = [100 * run.accuracies[-1], run.update_angles[0][0], run.update_angles[-1][0],
                        run.feedback_angles[0][1], run.feedback_angles[-1][1]]  # fmt: skip
            np.testing.assert_allclose(numbers(row[:-1], 2), expected, atol=0.051)
    runs, orthogonal = ({run.path: run for run in group} for group in (results.runs, results.orthogonal))
    assert runs["transpose"].update_angles == [[0.0, 0.0, 0.0]] * 2
    assert runs["random"].update_angles[0][2] == 0  # the last layer's δ is the loss's own
    assert min(runs[path].update_angles[0][0] for path in ("inverse", "random")) > 10
    assert orthogonal["inverse"].update_angles[0][0] < 0.1
    assert orthogonal["inverse"].feedback_angles[0][1] < 0.1
    assert self_contained(page)


def test_readings(tmp_path):
    """Each setting is a config that holds; and a table of runs has their metrics."""
    for of in readings.TABLES.values():
        for overrides in of.get("settings", {"": of.get("overrides")}).values():
            load_config(readings.ROOT / of["config"], overrides)
    of = readings.TABLES["optimizers"] | {"settings": {"SOAP": readings.TABLES["optimizers"]["settings"]["SOAP"]}}
    small = ["data=digits", "train.epochs=2", 'model=[{dense=8},"tanh",{dense=10}]']
    heading, *rows = readings.table(of, small, tmp_path, None)
    assert heading == ["setting", "metric", "epoch 1", "epoch 2"]
    assert [row[:2] for row in rows] == [["SOAP", name] for name in of["metrics"]]
    assert float(rows[0][3]) < float(rows[0][2])
    assert readings.area(np.array([3.0, 1, 2, 0]), np.array([True, False, True, False])) == 1


def test_settings_are_held():
    with pytest.raises(ConfigError, match='unknown key "networsk": did you mean "networks"'):
        general_network.measure(["networsk=3"])
