"""Networks for images: against `jax.vjp`, and what they refuse."""

import jax
import jax.numpy as jnp
import pytest

from jaxnet.models import cnn, lenet5, residual_cnn
from tests.agreement import assert_agree
from tests.implementations import by_autodiff as by_autodiff_of
from tests.implementations import read
from tests.problems import IMAGE_MODELS


@pytest.mark.parametrize("problem", IMAGE_MODELS, ids=lambda p: p.id)
def test_models_agree_with_autodiff(problem, x64):
    """As they are trained: what they are composed of is held against autodiff in all other ways."""
    both = jax.jit(lambda *inputs: (read(problem, *inputs), by_autodiff_of(problem, *inputs)))
    assert_agree(*both(*problem.inputs(jnp.float64)))


def test_models_refuse_what_they_cannot_be_made_of(unchecked):
    for make in (
        lambda: lenet5(pool="median"),
        lambda: cnn([], [4], 2),
        lambda: residual_cnn([], 1, 2),
        lambda: residual_cnn([4], 1, 2, norm="layer"),
        lambda: cnn([4], [], 2, activation="step"),
    ):
        with pytest.raises(
            ValueError, match=r"takes at least one|must be a whole number|by one of|an activation is one of"
        ):
            make()


def test_lenet5_has_as_many_parameters_as_published_less_the_weights_of_its_pooling():
    shapes = jax.eval_shape(lenet5().init, jax.random.key(0), jax.ShapeDtypeStruct((28, 28, 1), jnp.float32))
    assert sum(p.size for p in jax.tree.leaves(shapes)) == 61_706
