"""Pairs of NumPy: what they save, how they are called, what they give back."""

import re

import numpy as np
import pytest

from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.points import draw, expand

QUICK = {"seeds": 1, "also": False, "shapes": False, "precise": False}
QUICKEST = {**QUICK, "diagnose": False}


def softplus(x):
    return np.log1p(np.exp(x)), x


def softplus_back(dout, x):
    return dout / (1 + np.exp(-x))


def squash(x):
    out = x / np.sqrt(1 + x * x)
    return out, out


def squash_back(dout, out):
    return dout * (1 - out * out) ** 1.5


def squash_wrong(dout, out):
    return dout * (1 + out * out) ** 1.5


def squash_without(dout, out):
    return (1 - out * out) ** 1.5


@pytest.mark.parametrize("pair", [(softplus, softplus_back), (squash, squash_back)])
@pytest.mark.parametrize("inputs", ["float32[4,3]", "float32[3]", "float64[4,3]"])
def test_the_saved_value_may_be_one_array(pair, inputs):
    report = check(pair, inputs, **QUICKEST)
    assert report.ok, report
    assert [leaf.path for leaf in report.leaves] == ["forward", "∂x"]


@pytest.mark.parametrize("backward", [squash_wrong, squash_without])
def test_a_mistake_beside_one_saved_array_is_named(backward):
    report = check((squash, backward), "float32[4,3]", **QUICK)
    assert not report.ok
    assert report.exact
    assert report.line.startswith("test_pairs.py:")


def project(x, w):
    return x @ w, (x, w)


def project_back(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout


def project_exchanged(dout, cache):
    return project_back(dout, cache)[::-1]


def project_alone(dout, cache):
    return dout @ cache[1].T


def project_summed(dout, cache):
    x, w = cache
    return dout @ w.T, x.T @ dout.sum(axis=-1, keepdims=True)


def test_a_gradient_of_another_shape_is_told_by_its_shape():
    report = check((project, project_summed), "float32[4,3], float32[3,2]", **QUICKEST)
    assert report.cause == "the gradient of w has shape (3, 1); it must have w's, (3, 2): sum or reshape it"
    row = next(line for line in str(report).splitlines() if "∂w" in line)
    assert row.split() == ["∂w", "WRONG", "its", "shape", "is", "(3,", "1)"]
    assert "nan" not in report.to_html()


def test_a_missing_gradient_and_exchanged_ones_are_told():
    missing = check((project, project_alone), "float32[4,3], float32[3,2]", **QUICK)
    assert missing.cause.startswith("no gradient for w")
    assert re.search(r"∂w +WRONG  no gradient", str(missing))
    exchanged = check((project, project_exchanged), "float32[4,3], float32[3,2]", **QUICKEST)
    assert exchanged.cause == "the gradients of x, w are exchanged: return them in the order of the arguments"


class Shift:
    """x + b, whose b gets a sum over the wrong axis."""

    def __init__(self, width):
        self.b = np.zeros(width)

    def forward(self, x):
        return x + self.b

    def backward(self, dout):
        self.db = dout.sum(axis=-1)
        return dout


@pytest.mark.parametrize("rows", [5, 3])
def test_a_sum_over_the_wrong_axis_is_mended(rows):
    report = check(Shift(3), f"float32[{rows},3]", **QUICK)
    assert report.exact
    assert report.line.startswith("test_pairs.py:")
    if rows != 3:
        assert report.cause == "axis=-1 stands in the place of axis=-2"


def two_layers(x, start, W, V, target):
    h = np.tanh(start + x @ W)
    out = h @ V
    error = out - target
    dV = h.T @ error
    dh = (error @ V.T) * (1 - h * h)
    return 0.5 * np.sum(error**2), x.T @ dh, dV


def two_layers_named(x, start, W, V, target):
    cost, dW, dV = two_layers(x, start, W, V, target)
    return cost, dV, dW


def two_layers_wrong(x, start, W, V, target):
    cost, dW, dV = two_layers(x, start, W, V, target)
    return cost, dW, 2 * dV


SHAPES = "float64[4,3], float64[4,5], float64[3,5], float64[5,2], float64[4,2]"


@pytest.mark.parametrize("cost", [two_layers, two_layers_named])
def test_gradients_of_a_cost_are_for_the_arguments_that_they_are_called_after(cost):
    report = check(cost, SHAPES, **QUICKEST)
    assert report.ok, report
    assert [leaf.path for leaf in report.leaves] == ["forward", "∂W", "∂V"]
    assert report.passed_over["start"] == "no gradient is given for it"


def test_the_wrong_one_of_them_is_named():
    report = check(two_layers_wrong, SHAPES, **QUICKEST)
    assert [leaf.path for leaf in report.wrong] == ["∂V"]


def surprise(p):
    return -np.log(p), p


def surprise_back(dout, p):
    return -dout / p


def test_outside_its_domain_a_rule_is_not_judged():
    with pytest.raises(
        CannotCheckError, match=r"must be finite, but a NaN arises in `log` at .*test_pairs.py:\d+: give"
    ):
        check((surprise, surprise_back), "float32[4,3]", **QUICKEST)
    with pytest.raises(CannotCheckError, match="a NaN or an infinity stands in the inputs"):
        check((surprise, surprise_back), np.array([0.5, np.nan]), **QUICKEST)
    assert check((surprise, surprise_back), "float32[4,3]>0", **QUICKEST).ok
    assert not check((surprise, lambda dout, p: dout / p), "float32[4,3] probabilities", **QUICKEST).ok


def test_rows_are_drawn_as_probabilities_or_one_hot():
    p, hot = draw(expand(["float32[5,4] probabilities, float32[5,4]  one-hot"]), 0)
    assert np.all(np.asarray(p) > 0)
    np.testing.assert_allclose(np.asarray(p).sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(hot), [[0, 0, 0, 1]] * 5)


def halve(x, options):
    size = options["size"]
    out = np.zeros((x.shape[0], x.shape[1] // size))  # float64 whatever x is
    for j in range(out.shape[1]):
        out[:, j] = x[:, j * size : (j + 1) * size].max(axis=1)
    return out, (x, options)


def halve_back(dout, cache):
    x, options = cache
    size, dx = options["size"], np.zeros_like(x)
    for j in range(dout.shape[1]):
        part = x[:, j * size : (j + 1) * size]
        dx[:, j * size : (j + 1) * size] += (part == part.max(axis=1, keepdims=True)) * dout[:, j : j + 1]
    return dx


def test_a_pool_that_makes_its_own_arrays_is_right_at_ties_too():
    report = check((halve, halve_back), "float32[3,4], {size: 2}", seeds=1, diagnose=False)
    assert report.ok, report
    assert any("inputs with ties" in note for note in report.notes)
    assert [leaf.verdict for leaf in report.leaves] == ["ok", "kink"]


def test_a_pair_that_does_not_run_is_told_once_with_its_line():
    def failing(x):
        raise RuntimeError("not written yet")

    with pytest.raises(CannotCheckError, match="failing raises RuntimeError: not written yet") as told:
        check((failing, squash_back), "float32[3]", **QUICKEST)
    assert str(told.value).count("not written yet") == 1
    assert "test_pairs.py:" in str(told.value)

    def backward(dout, saved):
        raise RuntimeError("not written yet")

    with pytest.raises(CannotCheckError, match=r"test_pairs\.py:\d+\)") as told:
        check((squash, backward), "float32[3]", **QUICKEST)
    assert str(told.value).count("not written yet") == 1


def test_float_is_float32_and_an_input_has_entries():
    [x, n] = draw(expand(["float[3], int[2]<4"]), 0)
    assert (str(x.dtype), str(n.dtype)) == ("float32", "int32")
    with pytest.raises(CannotCheckError, match="must have entries"):
        expand(["float32[0,3]"])


def test_a_kink_is_explained():
    report = check((np.abs, lambda x: np.where(x < 0, -1.0, 1.0)), np.array([0.0, 1.0, -2.0]), **QUICKEST)
    assert [leaf.verdict for leaf in report.leaves] == ["ok", "kink"]
    assert "the function has two slopes" in "".join(report.notes)


def entropy(x, y):
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    rows = np.arange(len(x))
    dx = p.copy()
    dx[rows, y] -= 1
    return -np.mean(np.log(p[rows, y])), dx


def test_a_forgotten_mean_is_told():
    report = check(entropy, "float64[5,3], int32[5]<3", **QUICKEST)
    assert "5 times too large: ∂x. An axis of the inputs has 5 entries: 1/5 may be forgotten" in report.notes


@pytest.mark.parametrize(("factor", "words"), [(1.014, "not known"), (3.0, "∂x is 3 times what it should be")])
def test_one_number_is_a_multiple_of_another_only_where_it_is_a_whole_one(factor, words):
    report = check((np.exp, lambda x: factor * np.exp(x)), np.array([0.5]), **QUICKEST)
    assert report.cause.startswith(words)


def damped(x, options):
    scale = np.ones_like(x) / options["keep"]
    return x * scale, (scale,)


def damped_back(dout, cache):
    (scale,) = cache
    return dout * (scale > 0)


def test_a_patch_holds_for_another_rate_too():
    report = check((damped, damped_back), "float32[4,3], {keep: 0.5}", **QUICK)
    assert report.repair is not None
    assert "scale" in report.repair.patch.splitlines()[1].replace("(scale > 0)", "")
    assert not any("2" in patch or "0.5" in patch for patch in (report.repair.patch, *report.repair.equal))


def test_slow_differences_are_taken_at_fewer_seeds(monkeypatch):
    monkeypatch.setattr("jaxnet.checking.agreement.DIFFERENCES_SECONDS", 0.0)
    report = check((halve, halve_back), "float32[3,4], {size: 2}", **{**QUICKEST, "seeds": 3})
    assert report.ok
    assert "no time for more than 1 of 3 seeds: give `reference=`" in report.notes
