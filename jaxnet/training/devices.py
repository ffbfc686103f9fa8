"""Devices and precision: whatever JAX sees is used; no code here names a kind of device."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnet.devices import processes
from jaxnet.devices.placement import AXES, make_mesh
from jaxnet.layer import Tree
from jaxnet.training.config import Config, ConfigError

IMPORTED = time.monotonic()


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Float64 on inside, where a config asks for it."""
    with jax.enable_x64(name == "float64"):
        yield


def mesh_sizes(config: Config) -> dict[str, int]:
    """The size of each axis of the mesh, without those of one device."""
    return {axis: size for axis in AXES if (size := getattr(config.mesh, axis)) > 1}


def mesh_of(config: Config) -> Mesh | None:
    """The mesh that a config asks for, of the devices that JAX sees; None for one device."""
    sizes = mesh_sizes(config)
    wanted, devices = math.prod(sizes.values()), jax.devices()
    if processes.several() and wanted != len(devices):
        raise ConfigError(
            f"{jax.process_count()} processes have {len(devices)} devices together, and [mesh] must take all of them, "
            f"got {wanted}: set mesh.data={len(devices)}"
        )
    if not sizes:
        return None
    if wanted > len(devices):
        asked = " · ".join(f"mesh.{axis} = {size}" for axis, size in sizes.items())
        raise ConfigError(
            f"{asked}: takes at most as many devices as there are, {len(devices)} ({devices[0].platform}), got {wanted}"
            f": for CPU devices set XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    return make_mesh(sizes, devices[:wanted])


def placed(tree: Tree, mesh: Mesh | None, shardings: Tree = None) -> Tree:
    """The arrays on the device; on a mesh, as the shardings say, or whole on every device."""
    if mesh is None:
        return jax.device_put(tree)
    return processes.on_devices(tree, shardings or NamedSharding(mesh, PartitionSpec()))


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
