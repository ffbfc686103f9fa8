"""Kernels for GPUs, interpreted on a CPU, against the plain equations; and which arrays they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnet.layers.attention import attend, attend_backward
from jaxnet.lowering import compiling_for
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.gpu import attention
from tests.test_forms import agree, heads, normal

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
