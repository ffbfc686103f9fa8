"""The range test of learning rates."""

import math

import numpy as np
import pytest

from jaxnet.training import loop
from jaxnet.training.config import ConfigError
from jaxnet.training.learning_rates import RangeTest, range_test, smooth
from tests.runs import ROOT, called, metrics, small


@pytest.fixture(scope="module")
def found():
    return range_test(small(), low=1e-4, high=1e4, steps=60)


def test_the_rates_grow_evenly_and_the_first_cost_is_the_untrained_one(found):
    steps = np.diff(np.log(found.rates))
    np.testing.assert_allclose(steps, math.log(1e8) / 59, rtol=1e-9)
    again = range_test(small(), low=1e-3, high=1e4, steps=60)
    assert again.costs[0] == found.costs[0], "no update has been made yet"
    assert again.costs[1] != found.costs[1]


def test_it_ends_where_the_cost_explodes(found):
    assert len(found.rates) < 60
    assert found.smoothed[-1] > 4 * found.smoothed.min()


def test_the_steepest_fall_trains_better_than_the_ends(found, tmp_path):
    def last_loss(rate):
        config = small(f"train.optimizer.learning_rate={float(rate)!r}")
        return metrics(loop.train(config, run_dir=tmp_path / f"{rate:.1e}", quiet=True))[-1]["train_loss"]

    steepest = found.steepest()
    assert last_loss(steepest) < min(last_loss(found.rates[0]), last_loss(1e3))


def test_steepest():
    rates = np.geomspace(1e-3, 1e3, 7)
    costs = np.array([3.0, 2.9, 2.0, 1.9, 1.8, 5.0, math.inf])
    assert RangeTest(rates, costs, costs).steepest() == pytest.approx(1e-2)
    assert RangeTest(rates, costs, costs).lines() == [
        "the cost falls fastest at learning rate 0.01, and is lowest at 10"
    ]
    rising = RangeTest(rates, costs[::-1], np.arange(7.0))
    assert rising.steepest() is None
    assert "the cost does not fall between 0.001 and 1e+03" in rising.lines()[0]


def test_smoothing_begins_as_it_goes_on():
    np.testing.assert_allclose(smooth([2.0] * 5), 2.0)
    np.testing.assert_allclose(smooth([1.0, 2.0]), [1.0, (0.09 * 1 + 0.1 * 2) / 0.19])


@pytest.mark.parametrize(
    ("overrides", "bounds", "words"),
    [
        ([], {"low": 1.0, "high": 0.5}, "low must be above 0 and below high"),
        ([], {"steps": 1}, "steps at least 2"),
        (['train.optimizer="tests.runs:optimizer"'], {}, "must have a learning_rate"),
    ],
)
def test_what_cannot_be_tested(overrides, bounds, words):
    with pytest.raises(ConfigError, match=words):
        range_test(small(*overrides), **bounds)


def test_the_command(tmp_path):
    out = tmp_path / "curve.png"
    found = called("find-rate", ROOT / "configs/two_three_two.toml", "--steps", "30", "--out", out)
    assert found.exit_code == 0, found.stderr
    assert "the cost falls fastest at learning rate" in found.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
