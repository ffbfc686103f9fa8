"""Pairs of NumPy: what they save, how they are called, what they give back."""

import numpy as np
import pytest

from jaxnet.checking import check

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
