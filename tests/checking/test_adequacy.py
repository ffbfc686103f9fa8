"""What a test point cannot show: mistakes that change no gradient there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.checking import adequacy as hiding
from jaxnet.checking.corpus import dense_layers, normalisation
from jaxnet.checking.differentiation import differentiated
from jaxnet.checking.subject import Subject, argument_names


def drawn(make, primal):
    args = make(1, 0, jnp.float32)
    cotangent = np.random.default_rng(7).standard_normal(jax.eval_shape(primal, *args).shape)
    return args, jnp.asarray(cotangent, jnp.float32)


def adequacy(primal, args, d_out):
    names = argument_names(primal, len(args))
    return hiding.adequacy(Subject("primal", args, differentiated(primal), primal, names=names), args, d_out)


def test_ones_and_zeros_hide_the_factor_and_the_cotangent():
    args = (jax.random.normal(jax.random.key(0), (4, 8)), jnp.ones(8), jnp.zeros(8))
    said = {b.mistake: b.remedy for b in adequacy(normalisation.layer_norm, args, jnp.ones((4, 8)))}
    assert any("the factor gamma" in m and "draw gamma" in r for m, r in said.items())
    assert "the cotangent is ignored: as if it were 1" in said
    assert any("ε" in m and "raise ε" in r for m, r in said.items())


def test_a_generic_point_hides_epsilon_alone():
    hidden = adequacy(normalisation.layer_norm, *drawn(normalisation.norm_args, normalisation.layer_norm))
    assert hidden
    assert all("raise ε" in b.remedy for b in hidden)


def test_one_example_and_the_unit_matrix_hide_sums_and_transposes():
    hidden = adequacy(dense_layers.dense, (jnp.eye(3), jnp.zeros(3), jnp.ones((1, 3))), jnp.ones((1, 3)))
    assert any("over axis 0 of a" in b.mistake and "more than 1" in b.remedy for b in hidden)
    assert any("W.T is transposed" in b.mistake for b in hidden)


def test_integer_only_primal_is_refused():
    with pytest.raises(ValueError, match="no floating-point input"):
        adequacy(lambda n: n + 1, (jnp.arange(3),), jnp.ones(3))
