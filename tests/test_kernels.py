"""Kernels for GPUs and TPUs, interpreted on a CPU, against the plain equations; and which arrays they take."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnet.backprop import mapped
from jaxnet.bench.launches import compiled_for
from jaxnet.devices.placement import forms_for, make_mesh
from jaxnet.devices.program_text import EXCHANGES, CompiledText
from jaxnet.layers.attention import attend, attend_backward
from jaxnet.layers.normalization import norm_backward, norm_forward
from jaxnet.lowering import compiling_for, form, op
from jaxnet.lowering.attention import Seen
from jaxnet.lowering.kernels import attention, gpu_normalization, tpu_normalization
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
each_platform = pytest.mark.parametrize("on", ["cuda", "tpu"])


@each_platform
@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, "float32") for case in CASES), *((case, "bfloat16") for case in IN_HALF)]
)
def test_attention(case, dtype, on):
    (q, k, v), seen = arrays_of(case, dtype)
    assert attention.fits(q, k, v, seen=seen, on=on)

    @jax.jit
    def kernels_and_plain(q, k, v, do):
        o, L = attend.plain(q, k, v, seen=seen)
        kernels = (
            attention.forward(q, k, v, seen=seen, on=on, interpret=True),
            attention.backward(q, k, v, o, L, do, seen=seen, on=on, interpret=True),
        )
        return kernels, ((o, L), attend_backward.plain(q, k, v, o, L, do, seen=seen))

    agree(*kernels_and_plain(q, k, v, normal((*q.shape[:2], v.shape[-1]), 4, dtype)), DTYPES[dtype])


@each_platform
def test_attention_of_a_batch(on):
    seen = Seen(causal=True)
    arrays = tuple(jnp.stack([t, 2 * t]) for t in heads(65, 65, 2, 1, 16, 16, dtype="float32"))

    def both(f, back, q, k, v, **options):
        o, L = f(q, k, v, seen=seen, **options)
        return o, L, back(q, k, v, o, L, o, seen=seen, **options)

    options = {"on": on, "interpret": True}
    found = jax.vmap(lambda *qkv: both(attention.forward, attention.backward, *qkv, **options))(*arrays)
    agree(found, jax.vmap(lambda *qkv: both(attend.plain, attend_backward.plain, *qkv))(*arrays), 5e-6)


@pytest.mark.parametrize(
    ("width", "dtype", "mask"), [(24, "float32", None), (16, "float64", None), (16, "float32", np.ones((4, 4), bool))]
)
def test_other_arrays_have_the_plain_equations(width, dtype, mask, x64):
    arrays = heads(4, 4, 2, 1, width, width, dtype=dtype)
    assert not any(attention.fits(*arrays, seen=Seen(False, mask), on=on) for on in ("cuda", "tpu"))


def test_a_core_of_a_tpu_holds_the_heads_of_a_program():
    def fits(time, kv, dtype):
        q, k = (jax.ShapeDtypeStruct((time, n, 64), dtype) for n in (8, kv))
        return attention.fits(q, k, k, seen=Seen(causal=True), on="tpu")

    assert fits(2048, 8, jnp.float32)
    assert fits(4096, 8, jnp.bfloat16)
    assert not fits(4096, 8, jnp.float32)
    assert not fits(2048, 2, jnp.float32)
    assert not fits(512, 8, jnp.float16)


def test_kernels_are_traced_only_where_they_can_run():
    arrays = heads(4, 4, 2, 1, 16, 16, dtype="float32")

    def traced():
        return str(jax.make_jaxpr(lambda *qkv: attend(*qkv, seen=Seen(causal=True)))(*arrays))

    assert "pallas_call" not in traced()
    with compiling_for("cuda"):
        assert "pallas_call" in traced()
    assert "pallas_call" not in traced()


@pytest.mark.parametrize(("on", "kv"), [("cuda", 4), ("tpu", 1)])
def test_on_a_mesh_each_device_has_its_examples_and_heads(on, kv):
    """Where the mesh does not divide the heads of keys, each device has all heads."""
    mesh, seen, examples = make_mesh({"data": 2, "fsdp": 2, "tensor": 2}), Seen(causal=True), 8
    arrays = tuple(jnp.stack([(1 + i / 8) * t for i in range(examples)]) for t in heads(5, 5, 4, kv, 16, 16, "float32"))
    own = [
        op(each.plain, cpu=form(partial(f, on=on, interpret=True), axes=each.forms[on].axes))
        for each, f in ((attend, attention.forward), (attend_backward, attention.backward))
    ]

    def both(forward, backward):
        def one(q, k, v):
            o, L = forward(q, k, v, seen=seen)
            return o, L, backward(q, k, v, o, L, o, seen=seen)

        return mapped(one, arrays)

    placed = jax.device_put(
        arrays, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor" if kv == 4 else None))
    )
    with forms_for(mesh):
        program = jax.jit(lambda *qkv: both(*own)(*qkv)).lower(*placed).compile()
    agree(program(*placed), both(attend.plain, attend_backward.plain)(*arrays), 5e-6)
    text = program.as_text()
    assert not any(f" {kind}" in text for kind in EXCHANGES)
    assert f"f32[2,5,{2 if kv == 4 else 4},16]" in text


NORMS = {  # positions, width, centred, with β
    "one row": ((), 6, True, True),
    "one entry": ((3,), 1, True, False),
    "a row more than a program": ((3, 11), 24, True, True),
    "several programs": ((67,), 130, False, False),
    "wide": ((5,), 5000, True, False),
    "wide, several programs": ((150,), 2048, True, True),
}


KERNELS = {
    "cuda": (gpu_normalization.forward, gpu_normalization.backward),
    "tpu": (
        partial(tpu_normalization.forward, plain=norm_forward.plain),
        partial(tpu_normalization.backward, plain=norm_backward.plain),
    ),
}


@each_platform
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", NORMS)
def test_norms(case, dtype, on):
    positions, width, centred, bias = NORMS[case]
    options = {"groups": None, "centred": centred}
    forward, backward = (partial(f, **options, interpret=True) for f in KERNELS[on])

    @jax.jit
    def kernels_and_plain(given, gamma, delta, x_hat, sigma):
        to_backward = gamma, delta, x_hat, sigma.astype(jnp.float32)
        return (
            (forward(*given, epsilon=1e-5), backward(*to_backward)),
            (norm_forward.plain(*given, **options, epsilon=1e-5), norm_backward.plain(*to_backward, **options)),
        )

    given = to_normalise(positions, width, bias, dtype), *normalised(positions, width, dtype)
    agree(*kernels_and_plain(*given), DTYPES[dtype])


@each_platform
def test_norms_of_a_batch(on):
    options = {"groups": None, "centred": True}
    forward, backward = (partial(f, **options, interpret=True) for f in KERNELS[on])
    gamma, delta, x_hat, sigma = normalised((3, 7), 6, "float32")
    found = jax.vmap(lambda *of: backward(gamma, *of))(delta, x_hat, sigma)
    expected = jax.vmap(lambda *of: norm_backward.plain(gamma, *of, **options))(delta, x_hat, sigma)
    agree(found, expected, 2e-6)
    out = jax.vmap(lambda x: forward(x, gamma, gamma, epsilon=1e-5))(delta)
    agree(out, jax.vmap(lambda x: norm_forward.plain(x, gamma, gamma, **options, epsilon=1e-5))(delta), 2e-6)


@pytest.mark.parametrize(
    ("positions", "width", "dtype", "groups", "on"),
    [
        (9, 6, "float32", None, {"cuda", "tpu"}),
        (2, 6, "float32", None, {"cuda"}),
        (9, 2049, "bfloat16", None, {"cuda"}),
        (9, 6, "float16", None, {"cuda"}),
        (2, 8193, "float32", None, set()),
        (9, 6, "float64", None, set()),
        (9, 6, "float32", 2, set()),
    ],
)
def test_which_norms_have_kernels(positions, width, dtype, groups, on, x64):
    arrays, options = to_normalise((positions,), width, True, dtype), {"groups": groups, "centred": True}
    rooms = {"cuda": gpu_normalization, "tpu": tpu_normalization}
    assert {name for name, room in rooms.items() if room.fits(*arrays, **options, epsilon=1e-5)} == on


BATCH, TIME, LONG, HEADS, WIDTH = 4, 512, 2048, 8, 64
SEEN = Seen(causal=True)


def batch_of(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((BATCH, *shape), dtype)


def compiled_arrays(name):
    """The arrays of an operation on a batch, its options, the axes of examples."""
    of_heads, width = (
        batch_of(LONG, HEADS, WIDTH, dtype=jnp.bfloat16),
        jax.ShapeDtypeStruct((HEADS * WIDTH,), "float32"),
    )
    row, norm = batch_of(TIME, HEADS * WIDTH), {"groups": None, "centred": True}
    return {
        "attend": (attend, (of_heads,) * 3, {"seen": SEEN}, 0),
        "attend_backward": (
            attend_backward,
            (of_heads, of_heads, of_heads, of_heads, batch_of(HEADS, LONG), of_heads),
            {"seen": SEEN},
            0,
        ),
        "norm_forward": (norm_forward, (row, width, width), norm | {"epsilon": 1e-5}, (0, None, None)),
        "norm_backward": (norm_backward, (width, row, row, batch_of(TIME, 1)), norm, (None, 0, 0, 0)),
    }[name]


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["attend", "attend_backward", "norm_forward", "norm_backward"])
def test_compiled_for_a_tpu_a_kernel_moves_less_than_the_plain_equation(name):
    pytest.importorskip("libtpu", reason="XLA's compiler for TPUs comes with the extra `tpu`")
    operation, arrays, options, axes = compiled_arrays(name)

    def compiled(f):
        found = compiled_for("tpu:v5e:2x2", jax.vmap(partial(f, **options), axes), *arrays)
        return found.as_text(), found.memory_analysis().peak_memory_in_bytes

    (text, peak), (plain, plain_peak) = compiled(operation), compiled(operation.plain)
    assert "tpu_custom_call" in text
    assert "tpu_custom_call" not in plain
    assert peak < 0.8 * plain_peak
    assert CompiledText.read(text).traffic() < 0.8 * CompiledText.read(plain).traffic()
