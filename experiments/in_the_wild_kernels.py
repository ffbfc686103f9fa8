"""Where rules of kernels are checked: Pallas in interpret mode, recurrences, and kernels of several devices."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas
from jax.sharding import AxisType, PartitionSpec

from experiments.in_the_wild_others import part
from experiments.in_the_wild_points import Point, between, normal, plain_attention

EJ, RWKV = "ejkernel.kernels", "rwkv_ops"
NO_REPEAT = "it calls `pltpu.repeat`, that this jax no longer has"
TRACED_SIZE = "its copies have a traced size, that interpret mode does not take"
CUDA, TPU = "needs CUDA", "needs a TPU"
DEVICES = "needs several TPUs: remote copies"
QUANTISED = "its weights are packed integers: no autodiff to hold it against"


@contextmanager
def interpreted() -> Iterator[None]:
    """Pallas kernels run in interpret mode meanwhile."""
    compiled = pallas.pallas_call
    pallas.pallas_call = lambda *args, **options: compiled(*args, **{**options, "interpret": True})
    try:
        yield
    finally:
        pallas.pallas_call = compiled


# ------------------------------------------------------------------------------------------------------- recurrences


def plain_recurrence(place: str, names: str, *args: Any) -> tuple[jax.Array, jax.Array]:
    """rwkv-ops' own recurrence without kernels, for a kernel's arguments: heads stand before time there."""
    *arrays, chunk = args
    given = {
        name: array if name in ("mask", "initial_state") else jnp.swapaxes(array, 1, 2)
        for name, array in zip(names.split(), arrays, strict=True)
    }
    if "tau" in given:  # without a mask it withholds the last state
        given.setdefault("mask", jnp.ones((2, 2)))
    out, state = part(place)(**given, output_final_state=True, chunk_size=chunk)
    return jnp.swapaxes(out, 1, 2), state


INPUTS: dict[str, Callable[[int], jax.Array]] = {
    "g": lambda k: -between(0.1, 0.9, 2, 2, 8, seed=k),
    "beta": lambda k: between(0.1, 0.9, 2, 2, 8, seed=k),
    "w": lambda k: between(-2, 0.5, 2, 2, 8, 4, seed=k),
    "tau": lambda k: between(0.5, 2, 2, 2, 2, seed=k),
    "initial_state": lambda k: 0.5 * normal(2, 2, 4, 4, seed=k),
    "a": lambda k: 0.3 * normal(2, 2, 8, 4, seed=k),
    "b": lambda k: 0.3 * normal(2, 2, 8, 4, seed=k),
}  # of two examples, two heads, eight steps in two chunks


def recurrence(folder: str, rule: str, plain: Callable, names: str, mask: Any = None) -> dict[str, Point]:
    """A recurrent kernel of rwkv-ops; the mask of its chunks or steps is held."""
    place = f"{RWKV}.{folder}.jax_pallas_kernel"

    def args():
        drawn = enumerate(name for name in names.split() if name != "mask")
        return tuple(INPUTS.get(name, lambda k: normal(2, 2, 8, 4, seed=k))(k) for k, name in drawn)

    def masked(call, *arrays):
        given = iter(arrays)
        return call(*(mask if name == "mask" else next(given) for name in names.split()), 4)

    kernel = partial(masked, lambda *args: part(f"{place}:{rule}")(*args))
    point = Point(args, through=kernel, reference=partial(masked, plain), note="interpret mode")
    return {f"{place}.{rule}": point}


def native(folder: str, function: str, names: str) -> tuple[Callable, str]:
    """rwkv-ops' own recurrence, and the names of its arguments."""
    return partial(plain_recurrence, f"{RWKV}.{folder}.native_keras_op:{function}", names), names


def saturated(r, w, k, v, a, b, tau, *more):
    """RWKV-7: h ← h diag(exp(−exp(w_t))) + h a_t b_tᵀ + v_t k_tᵀ;  o_t = h r_t;  after each chunk h ← τ tanh(h/τ)."""
    *mask, h, chunk = more
    outs = []
    for t in range(r.shape[2]):
        ha = jnp.einsum("bhij,bhj->bhi", h, a[:, :, t])
        h = h * jnp.exp(-jnp.exp(w[:, :, t, None])) + ha[..., None] * b[:, :, t, None]
        h = h + v[:, :, t, :, None] * k[:, :, t, None]
        outs.append(jnp.einsum("bhij,bhj->bhi", h, r[:, :, t]))
        if (t + 1) % chunk == 0:
            c = t // chunk
            flat = tau[:, :, c, None, None]
            kept = mask[0][:, c, None, None, None] if mask else 1
            h = kept * flat * jnp.tanh(h / flat) + (1 - kept) * h
    return jnp.stack(outs, 2), h


BY_CHUNK = np.array([[1.0, 0], [0, 1]], np.float32)
BY_STEP = np.array([[1, 1, 1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1, 1, 0]], np.float32)
RECURRENCES = {
    **recurrence("delta_net_recurrent", "_delta_net_recurrent_train",
                 *native("delta_net_recurrent", "delta_net_recurrent", "q k v beta initial_state")),
    **recurrence("delta_net_recurrent_sane", "_delta_net_recurrent_sane_train_no_mask",
                 *native("delta_net_recurrent_sane", "delta_net_recurrent_sane", "q k v beta tau initial_state")),
    **recurrence("delta_net_recurrent_sane", "_delta_net_recurrent_sane_train",
                 *native("delta_net_recurrent_sane", "delta_net_recurrent_sane", "q k v beta tau mask initial_state"),
                 BY_CHUNK),
    **recurrence("gdn_recurrent", "_gdn_recurrent_train",
                 *native("gdn_recurrent", "gated_delta_net_recurrent", "q k v g beta initial_state")),
    **recurrence("gdn_recurrent_sane", "_gdn_recurrent_sane_train_no_mask",
                 *native("gdn_recurrent_sane", "gated_delta_net_recurrent_sane", "q k v g beta tau initial_state")),
    **recurrence("gdn_recurrent_sane", "_gdn_recurrent_sane_train",
                 *native("gdn_recurrent_sane", "gated_delta_net_recurrent_sane",
                         "q k v g beta tau mask initial_state"), BY_CHUNK),
    **recurrence("rwkv7_kernel", "rwkv7_kernel_pallas",
                 *native("rwkv7_kernel", "generalized_delta_rule", "r w k v a b initial_state")),
    **recurrence("rwkv7_kernel", "rwkv7_kernel_with_mask_pallas",
                 *native("rwkv7_kernel", "generalized_delta_rule", "r w k v a b initial_state mask"), BY_STEP),
    **recurrence("rwkv7_sane_kernel", "rwkv7_sane_kernel_pallas", saturated, "r w k v a b tau initial_state"),
    **recurrence("rwkv7_sane_kernel", "rwkv7_sane_kernel_with_mask_pallas", saturated,
                 "r w k v a b tau mask initial_state", BY_CHUNK),
}  # fmt: skip


def gated_delta_rule(q, k, v, beta, decay, state):
    """h ← exp(g_t) h;  h ← h + k_t βₜ (v_t − hᵀ k_t)ᵀ;  o_t = hᵀ q_t / √d, for q and k of length 1."""
    q, k = (x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    outs = []
    for t in range(q.shape[2]):
        state = state * jnp.exp(decay[:, :, t, None, None])
        error = (v[:, :, t] - jnp.einsum("bhk,bhkv->bhv", k[:, :, t], state)) * beta[:, :, t, None]
        state = state + k[:, :, t, :, None] * error[:, :, None]
        outs.append(jnp.einsum("bhk,bhkv->bhv", q[:, :, t], state) / q.shape[-1] ** 0.5)
    return jnp.stack(outs, 2), state


def steps(time: int) -> tuple[jax.Array, ...]:
    """Arguments of the gated delta rule: one example, two heads."""
    qkv = (normal(1, 2, time, 4, seed=k) for k in range(3))
    return (*qkv, between(0.1, 0.9, 1, 2, time), -between(0.1, 0.9, 1, 2, time, seed=1), normal(1, 2, 4, 4, seed=3))


def chunked(q, k, v, beta, decay, state):
    """ejkernel's, four steps at a time."""
    rule = part(f"{EJ}._pallas.tpu.gated_delta_rule._pallas_impl_fwd:_chunk_gdr_fwd_pallas_chunk")
    return rule(q, k, v, beta, decay, 4, state, True)


def single(*args):
    """ejkernel's, one step."""
    return part(f"{EJ}._pallas.tpu.gated_delta_rule._pallas_impl_fwd:_single_step_gdr_fwd")(*args, True)


# --------------------------------------------------------------------------------------------------- several devices


def sharded(place: str, specs: str, out: str, *more: Any) -> Callable:
    """A rule on two devices; "r" is split by rows, "c" by columns, "." whole."""
    spec = {"r": PartitionSpec("d"), "c": PartitionSpec(None, "d"), ".": PartitionSpec()}

    def call(*arrays):
        mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))

        def each(*own):
            return part(place)(*own, *more)

        return jax.shard_map(each, mesh=mesh, in_specs=tuple(map(spec.get, specs)), out_specs=spec[out])(*arrays)

    return call


LABELS = [0, 3, 7, 1, 2, 5]
WEIGHTS = [0.5, 1.2, 0.7, 1.0, 0.3, 0.9]


def cross_entropy(logits: jax.Array) -> jax.Array:
    """−w log softmax(z)_y of each row."""
    rows = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.array(LABELS)[:, None], 1)[:, 0]
    return -rows * jnp.array(WEIGHTS, logits.dtype)


def soft_labels() -> jax.Array:
    """Rows of probabilities."""
    return jax.nn.softmax(normal(6, 8, seed=2))


def held_second(rule: Callable, second: Callable, *more: Any) -> Callable:
    """A loss of logits, and of a second argument that its rule holds constant."""
    return lambda logits: rule(logits, second(), *more)


def by_labels(logits: jax.Array) -> jax.Array:
    """ejkernel's cross-entropy of labels, its columns on two devices."""
    place = f"{EJ}._xla.fused_cross_entropy._xla_impl_fwd:_fused_ce_core_tp"
    return sharded(place, "c..", ".", -100, "d")(logits, jnp.array(LABELS), jnp.array(WEIGHTS, jnp.float32))


def divergence(student: jax.Array) -> jax.Array:
    """w Σ p (log p − log q) of each row."""
    p, q = jax.nn.log_softmax(normal(6, 8, seed=3)), jax.nn.log_softmax(student)
    return (jnp.exp(p) * (p - q)).sum(-1) * jnp.array(WEIGHTS, student.dtype)


def divergence_on_two(student: jax.Array) -> jax.Array:
    """ejkernel's, its columns on two devices."""
    place = f"{EJ}._xla.fused_kl_divergence._xla_impl_fwd:_fused_kl_core_tp"
    return sharded(place, "cc.", ".", "d")(student, normal(6, 8, seed=3), jnp.array(WEIGHTS, jnp.float32))


def some_logits() -> tuple[jax.Array]:
    """Logits of six rows and eight classes."""
    return (normal(6, 8),)


TWO = "on two devices; labels, teacher and weights are held constant"
COLLECTIVES = {
    f"{EJ}._xla.fused_cross_entropy._xla_impl_fwd._fused_ce_core_tp": Point(
        some_logits, through=by_labels, reference=cross_entropy, note=TWO
    ),
    f"{EJ}._xla.fused_cross_entropy._xla_impl_fwd._fused_soft_ce_core_tp": Point(
        some_logits, note=TWO, reference=lambda z: -(soft_labels() * jax.nn.log_softmax(z)).sum(-1),
        through=held_second(sharded(f"{EJ}._xla.fused_cross_entropy._xla_impl_fwd:_fused_soft_ce_core_tp", "cc", ".",
                                    "d"), soft_labels),
    ),
    f"{EJ}._xla.fused_kl_divergence._xla_impl_fwd._fused_kl_core_tp": Point(
        some_logits, through=divergence_on_two, reference=divergence, note=TWO
    ),
    f"{EJ}._xla.all_gather_matmul._xla_impl_fwd._all_gather_matmul_core": Point(
        lambda: (normal(6, 4), normal(4, 8, seed=1)), reference=jnp.matmul, note="on two devices",
        through=sharded(f"{EJ}._xla.all_gather_matmul._xla_impl_fwd:_all_gather_matmul_core", "rc", "c", "d", False,
                        None),
    ),
    f"{EJ}._xla.reduce_scatter_matmul._xla_impl_fwd._reduce_scatter_matmul_core": Point(
        lambda: (normal(6, 4), normal(8, 4, seed=1)), reference=lambda x, y: x @ y.T, note="on two devices",
        through=sharded(f"{EJ}._xla.reduce_scatter_matmul._xla_impl_fwd:_reduce_scatter_matmul_core", "cc", "r", "d",
                        None),
    ),
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------- attention


def heads(*lead: int) -> tuple[jax.Array, ...]:
    """Queries, keys and values of 128 steps and 128 features, the least that TPU kernels take."""
    return tuple(0.3 * normal(*lead, 128, 128, seed=k) for k in range(3))


def flash(q, k, v):
    """jax's TPU kernel: causal, a scale other than 1."""
    return part("jax.experimental.pallas.ops.tpu.flash_attention:flash_attention")(q, k, v, causal=True, sm_scale=0.4)


def splash(q, k, v):
    """jax's other TPU kernel."""
    kernel, masks = (part(f"jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_{name}")
                     for name in ("kernel", "mask"))  # fmt: skip
    mask = masks.MultiHeadMask([masks.CausalMask((128, 128))])
    return kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, interpret=True)(q, k, v)


def tokamax_splash(q, k, v):
    """tokamax' TPU kernel."""
    kernel, masks = (part(f"tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_{name}")
                     for name in ("kernel", "mask"))  # fmt: skip
    return kernel.make_splash_mha(masks.CausalMask((128, 128)), q_seq_shards=1)(q, k, v)


TPU_OPS = "jax.experimental.pallas.ops.tpu"
ATTENTION = {
    f"{TPU_OPS}.flash_attention._flash_attention": Point(
        lambda: heads(1, 1), through=flash, reference=jax.vmap(jax.vmap(partial(plain_attention, scale=0.4))),
        note="interpret mode",
    ),
    f"{TPU_OPS}.splash_attention.splash_attention_kernel._splash_attention_custom": Point(
        lambda: heads(1), through=splash, reference=jax.vmap(plain_attention), note="interpret mode"
    ),
    "tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel._splash_attention_custom": Point(
        lambda: heads(1), through=tokamax_splash, reference=jax.vmap(plain_attention), note="interpret mode"
    ),
}  # fmt: skip

TPU_KERNELS = f"{EJ}._pallas.tpu"
POINTS: dict[str, Point] = {
    **RECURRENCES, **COLLECTIVES, **ATTENTION,
    f"{TPU_KERNELS}.gated_delta_rule._pallas_impl_fwd._chunk_gdr_fwd_pallas_chunk": Point(
        lambda: steps(8), through=chunked, reference=gated_delta_rule, note="interpret mode"
    ),
    f"{TPU_KERNELS}.gated_delta_rule._interface._single_step_gdr_fwd": Point(
        lambda: steps(1), through=single, reference=gated_delta_rule, note="interpret mode"
    ),
    **{f"{TPU_KERNELS}.{name}": Point(None, note=why) for names, why in (
        (("flash_attention._interface._flash_attention", "blocksparse_attention._kernel._splash_attention_custom",
          "flash_mla._interface.flash_mla_impl", "deepseek_attn._interface.deepseek_attn_pallas_impl"), NO_REPEAT),
        (("fused_cross_entropy._pallas_impl_fwd._fused_ce_loss_pallas",
          "fused_cross_entropy._pallas_impl_fwd._fused_ce_loss_pallas_tp",
          "fused_kl_divergence._pallas_impl_fwd._fused_kl_core_pallas",
          "fused_kl_divergence._pallas_impl_fwd._fused_kl_core_pallas_tp"), TRACED_SIZE),
        (("grouped_matmulv2._interface._back_grouped_matmul", "grouped_matmulv3._interface._grouped_matmulv3_core"),
         TPU),
        (("all_gather_matmul._interface._all_gather_matmul_core", "ring_attention._pallas_impl_bwd."
          "_ring_attention_custom", "reduce_scatter_matmul._interface._reduce_scatter_matmul_core"), DEVICES),
        (("quantized_matmul._interface._operate",), QUANTISED),
    ) for name in names},
    **{f"{EJ}._cuda.{name}": Point(None, note=CUDA) for name in (
        "blocksparse_attention._interface._blocksparse_attention_bhtd", "flash_attention._interface"
        ".flash_attention_call", "quantized_matmul._interface._operate")},
}  # fmt: skip
