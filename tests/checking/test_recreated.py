"""The mistakes recreated from public reports: each changes the gradients it says, and the checker catches it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.bench.checkers import ruled
from jaxnet.checking import check
from jaxnet.checking.corpus import recreated
from jaxnet.checking.corpus.case import gaussian


@pytest.fixture(autouse=True)
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_sixty():
    assert len(recreated.CASES) >= 60
    assert len({case.name for case in recreated.CASES}) == len(recreated.CASES)


@pytest.mark.parametrize("name", recreated.RULES)
def test_each_mistake_spoils_the_leaves_that_it_names(name):
    rule = recreated.RULES[name]
    args = rule.make_args(0, 1, jnp.float32)
    g = gaussian(np.random.default_rng(5), jax.eval_shape(rule.primal, *args).shape, jnp.float32)
    want = rule.backward(args, g)
    for case in (case for case in recreated.CASES if case.name.startswith(f"{name}: ")):
        got = case.wrong_rule[1](args, g)
        wrong = [
            f"[{k}]"
            for k, (a, b) in enumerate(zip(got, want, strict=True))
            if np.asarray(b).dtype != jax.dtypes.float0
            and not (np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-4, 1e-5))
        ]
        assert tuple(wrong) == case.wrong_leaves, case.name


QUICK = ("rms_norm: attorch 17", "attention: ffpa", "grouped_scores: levanter", "soft_minimum: ott", "documented")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if case.name.startswith(QUICK) else pytest.mark.slow)
        for case in recreated.CASES
    ],
)
def test_it_is_caught(case):
    report = check(ruled(case), *case.make_args(0, 0, jnp.float32), diagnose=False, shapes=False, also=False)
    assert not report.ok


@pytest.mark.slow
@pytest.mark.parametrize("each", recreated.RIGHT, ids=lambda each: each.name)
def test_its_right_twin_passes(each):
    assert check(each.rule, *each.make_args(0, 0, jnp.float32), diagnose=False).ok
