"""Kernels for GPUs, interpreted on a CPU, against the plain equations; and which arrays they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.layers.attention import attend, attend_backward
from jaxnet.layers.normalization import norm_backward, norm_forward
from jaxnet.lowering import compiling_for
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.gpu import attention, normalization
from tests.test_forms import agree, heads, normal, normalised, to_normalise

CASES = {  # queries, keys, heads, heads of keys, widths of keys and values, causal
    "one query": (1, 1, 1, 1, 16, 16, True),
    "one less than two blocks": (127, 127, 1, 1, 16, 32, True),
    "two blocks": (128, 128, 1, 1, 32, 16, True),
    "one more, in groups": (129, 129, 4, 2, 16, 16, True),
    "every key": (70, 129, 2, 1, 16, 16, False),
    "few queries of many keys": (3, 65, 2, 2, 16, 16, False),
}
DTYPES = {"float32": 2e-6, "bfloat16": 2e-2}


def arrays_of(case: str, dtype: str):
    queries, keys, n, kv, d, e, causal = CASES[case]
    return heads(queries, keys, n, kv, d, e, dtype), Seen(causal)


IN_HALF = ["one query", "one more, in groups"]


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), *((case, "bfloat16") for case in IN_HALF)]
)
def test_attention(case, dtype):
    (q, k, v), seen = arrays_of(case, dtype)
    assert attention.fits(q, k, v, seen=seen)
    o, L = attend.plain(q, k, v, seen=seen)
    agree(attention.forward(q, k, v, seen=seen, interpret=True), (o, L), DTYPES[dtype])
    do = normal(o.shape, 4, dtype)
    found = attention.backward(q, k, v, o, L, do, seen=seen, interpret=True)
    agree(found, attend_backward.plain(q, k, v, o, L, do, seen=seen), DTYPES[dtype])


def test_attention_of_a_batch():
    seen = Seen(causal=True)
    arrays = tuple(jnp.stack([t, 2 * t]) for t in heads(65, 65, 2, 1, 16, 16, dtype="float32"))

    def both(f, back, q, k, v, **options):
        o, L = f(q, k, v, seen=seen, **options)
        return o, L, back(q, k, v, o, L, o, seen=seen, **options)

    found = jax.vmap(lambda *qkv: both(attention.forward, attention.backward, *qkv, interpret=True))(*arrays)
    agree(found, jax.vmap(lambda *qkv: both(attend.plain, attend_backward.plain, *qkv))(*arrays), 5e-6)


@pytest.mark.parametrize(
    ("width", "dtype", "mask"), [(24, "float32", None), (16, "float64", None), (16, "float32", np.ones((4, 4), bool))]
)
def test_other_arrays_have_the_plain_equations(width, dtype, mask, x64):
    arrays = heads(4, 4, 2, 1, width, width, dtype=dtype)
    assert not attention.fits(*arrays, seen=Seen(False, mask))


def test_kernels_are_traced_only_where_they_can_run():
    arrays = heads(4, 4, 2, 1, 16, 16, dtype="float32")

    def traced():
        return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, seen=Seen(causal=True)))(*arrays))

    assert "pallas_call" not in traced()
    with compiling_for("cuda"):
        assert "pallas_call" in traced()
    assert "pallas_call" not in traced()


NORMS = {  # positions, width, centred, with β
    "one row": ((), 6, True, True),
    "one entry": ((3,), 1, True, False),
    "a row more than a program": ((3, 11), 24, True, True),
    "several programs": ((67,), 130, False, False),
    "wide": ((5,), 5000, True, False),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NORMS)
def test_norms(case, dtype):
    positions, width, centred, bias = NORMS[case]
    given, options = to_normalise(positions, width, bias, dtype), {"groups": None, "centred": centred}
    assert normalization.fits(*given, **options, epsilon=1e-5)
    expected = norm_forward.plain(*given, **options, epsilon=1e-5)
    agree(normalization.forward(*given, **options, epsilon=1e-5, interpret=True), expected, DTYPES[dtype])
    gamma, delta, x_hat, sigma = normalised(positions, width, dtype)
    given = gamma, delta, x_hat, sigma.astype(jnp.float32)
    assert normalization.fits(*given, **options)
    found = normalization.backward(*given, **options, interpret=True)
    agree(found, norm_backward.plain(*given, **options), DTYPES[dtype])


def test_norms_of_a_batch():
    options = {"groups": None, "centred": True}
    gamma, delta, x_hat, sigma = normalised((3, 7), 6, "float32")
    found = jax.vmap(lambda *of: normalization.backward(gamma, *of, **options, interpret=True))(delta, x_hat, sigma)
    expected = jax.vmap(lambda *of: norm_backward.plain(gamma, *of, **options))(delta, x_hat, sigma)
    agree(found, expected, 2e-6)
    out = jax.vmap(lambda x: normalization.forward(x, gamma, gamma, **options, epsilon=1e-5, interpret=True))(delta)
    agree(out, jax.vmap(lambda x: norm_forward.plain(x, gamma, gamma, **options, epsilon=1e-5))(delta), 2e-6)


@pytest.mark.parametrize(
    ("width", "dtype", "groups"), [(8193, "float32", None), (6, "float64", None), (6, "float32", 2)]
)
def test_other_norms_have_the_plain_equations(width, dtype, groups, x64):
    arrays = to_normalise((2,), width, True, dtype)
    assert not normalization.fits(*arrays, groups=groups, centred=True, epsilon=1e-5)
