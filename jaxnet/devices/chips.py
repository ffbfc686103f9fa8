"""Devices that a program is compiled for, whether they are here or not: `cpu:8`, `cuda:h100:8`, `tpu:v5e:16x16`.

XLA's compilers for GPUs and TPUs need no device, only its description. They come with the extras `launches` (CUDA's
plugin) and `tpu` (libtpu).
"""

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxnet.registry import did_you_mean

GPU = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{title}"
"""


class TargetError(ValueError):
    """Unknown devices, or devices without an installed compiler."""


class Chip(NamedTuple):
    """One device as its maker publishes it.

    - `memory`: bytes. `bandwidth`: bytes a second to its memory. `link`: bytes a second to other devices, one way.
    - `flops`: multiplications and additions a second, with operands in float32 and in bfloat16.
    - `launch`: seconds that a kernel costs beside its work.
    - `domain`: how many devices `link` joins. `network`: bytes a second of one device to others beyond; 0 for none.
    """

    title: str
    memory: float
    bandwidth: float
    flops: tuple[float, float]
    link: float
    launch: float = 0.0
    domain: int = 1
    network: float = 0.0


CHIPS = MappingProxyType(
    {
        # A float32 product runs in TF32 on these GPUs, and as one bfloat16 pass on a TPU: JAX's default precision.
        ("cuda", "h100"): Chip("NVIDIA H100 80GB HBM3", 84_978e6, 3.352e12, (4.95e14, 9.89e14), 4.5e11, 3e-6, 8, 5e10),
        ("cuda", "h200"): Chip("NVIDIA H200", 150_755e6, 4.8e12, (4.95e14, 9.89e14), 4.5e11, 3e-6, 8, 5e10),
        ("tpu", "v4"): Chip("TPU v4", 32 * 2**30, 1.228e12, (2.75e14, 2.75e14), 3e11, domain=4096),
        ("tpu", "v5e"): Chip("TPU v5e", 16 * 2**30, 8.19e11, (1.97e14, 1.97e14), 2e11, 0.0, 256, 3.1e9),
        ("tpu", "v5p"): Chip("TPU v5p", 95 * 2**30, 2.765e12, (4.59e14, 4.59e14), 6e11, domain=8960),
        ("tpu", "v6e"): Chip("TPU v6e", 32 * 2**30, 1.64e12, (9.18e14, 9.18e14), 4.48e11, 0.0, 256, 1.25e10),
    }
)


class DeviceTarget(NamedTuple):
    """Devices of one kind: `chip`, and how many along each axis of their network."""

    text: str
    platform: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many devices there are."""
        return math.prod(self.shape)

    def devices(self) -> Sequence[Any]:
        """The devices, described or here.

        Raises `TargetError` where the compiler for them is not installed.
        """
        if self.platform == "cpu":
            return cpus(self.total)
        plugin = {"cuda": "jax_cuda12_plugin", "tpu": "libtpu"}[self.platform]
        extra = {"cuda": "launches", "tpu": "tpu"}[self.platform]
        if find_spec(plugin) is None:
            raise TargetError(f"{self.text} needs {plugin}: pip install 'jaxnet-backprop[{extra}]'")
        if self.platform == "tpu":
            # Without these libtpu looks for the machine's own TPU.
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
            os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
            os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
            name = f"{self.text.split(':')[1]}:{'x'.join(map(str, self.shape))}"
            alone = {"chips_per_host_bounds": (1, 1, 1)} if self.total == 1 else {}  # else there are 4 in each host
            return described(self.text, platform="tpu", topology_name=name, **alone)
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it asks for a driver's libraries
        config = GPU.format(bandwidth=self.chip.bandwidth, memory=self.chip.memory, title=self.chip.title)
        options = {"topology": f"1x1x{self.total}", "target_config": config}
        return described(self.text, platform="cuda", topology_name="gpus", **options)


def described(text: str, **options: Any) -> Sequence[Any]:
    """Devices of a description.

    Raises `TargetError` where XLA does not take it.
    """
    try:
        return topologies.get_topology_desc(**options).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:  # by plugin: of XLA, of its options, of none
        first = str(error).strip().splitlines()[0]
        raise TargetError(
            f"{text} cannot be compiled for: {first}. Unset JAX_PLATFORMS, and see that no other process compiles"
        ) from None


def cpus(count: int) -> Sequence[Any]:
    """So many CPU devices: made where JAX has not begun, else those that there are.

    Raises `TargetError` where there are fewer.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # JAX has begun already
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise TargetError(
            f"cpu:{count} takes {count} CPU devices, got {len(devices)}: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def target(text: str) -> DeviceTarget:
    """The devices of a text: `cpu:8`, `cuda:h100:8`, `tpu:v5e:16x16`.

    Raises `TargetError` for a text that names none.

    >>> target("tpu:v5e:16x16").total
    256
    """
    platform, *rest = text.split(":")
    sizes = rest[-1] if rest else ""
    if platform not in ("cpu", "cuda", "tpu") or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise TargetError(f'devices are written cpu:8, cuda:h100:8 or tpu:v5e:16x16, got "{text}"')
    shape = tuple(map(int, sizes.split("x")))
    if platform == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        # One core with AVX-512, measured: products of 155 GFLOP/s, copies of 11 GB/s.
        return DeviceTarget(text, platform, Chip("CPU", memory / shape[0], 1.1e10, (1.5e11, 3e11), 1e10), shape)
    known = {name: chip for (of, name), chip in CHIPS.items() if of == platform}
    if len(rest) != 2 or rest[0] not in known:
        kind = rest[0] if len(rest) == 2 else ""
        raise TargetError(f'"{text}" names no {platform} device known here: {did_you_mean(kind, known)}')
    return DeviceTarget(text, platform, known[rest[0]], shape)
