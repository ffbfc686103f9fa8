"""Devices and precision: whatever JAX sees is used; no code here names a kind of device."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.layer import Tree
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import cache_folder

IMPORTED = time.monotonic()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Float64 on inside, where a config asks for it."""
    with jax.enable_x64(name == "float64"):
        yield


def keep_compiled() -> None:
    """Compiled programs are kept between runs, in the user's cache folder or where JAX is told to."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def data_mesh(config: Config) -> Mesh | None:
    """The mesh over which each batch is sharded; None for one device.

    Raises ConfigError where there are fewer devices.
    """
    wanted = config.mesh.data
    if wanted == 1:
        return None
    devices = jax.devices()
    if wanted > len(devices):
        raise ConfigError(
            f"mesh.data: takes at most as many devices as there are, {len(devices)} ({devices[0].platform}), "
            f"got {wanted}: for CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    return jax.make_mesh((wanted,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:wanted])


def placed(tree: Tree, mesh: Mesh | None) -> Tree:
    """The arrays on the device, or whole on every device of a mesh."""
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, PartitionSpec()))


def threads() -> int:
    """How many CPU threads this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds_of_process() -> float:
    """How long this process has been running; since this module was imported where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.monotonic() - IMPORTED


def described(mesh: Mesh | None) -> dict[str, Any]:
    """The devices in use: platform, kind, count, and CPU threads."""
    device = jax.devices()[0]
    count = 1 if mesh is None else mesh.size
    return {"platform": device.platform, "device": device.device_kind, "devices": count, "threads": threads()}
