"""Several processes as one program: joining, agreeing on numbers, and arrays that lie on the devices of all.

Every process runs the same program. Of data on disk each reads the examples of its own devices; other data it has
whole. Process 0 writes the run's folder; the others only read it.
"""

import re
import socket
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxnet.layer import Tree

TIMEOUT = 60  # seconds to wait for the others at the beginning
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as ended
DETECT = "detect"


class ProcessError(ValueError):
    """Processes that cannot be joined."""


def join(text: str | None) -> str | None:
    """Joins the other processes: `HOST:PORT,PROCESS,PROCESSES`, or `detect` on a cluster that JAX knows.

    JAX detects Slurm, Open MPI, Kubernetes and TPU pods. None: this process is alone.
    Raises ProcessError for another text, and where the first process does not answer in time.
    """
    if text is None or jax.distributed.is_initialized():
        return text
    parts = re.fullmatch(r"([^,\s]+:\d+),(\d+),([1-9]\d*)", text)
    if parts is None and text != DETECT:
        raise ProcessError(
            f'processes join by HOST:PORT,PROCESS,PROCESSES, as 10.0.0.1:1234,0,2, or by detect, got "{text}"'
        )
    named: dict[str, Any] = {}
    if parts is not None:
        address, process, count = parts[1], int(parts[2]), int(parts[3])
        if process >= count:
            raise ProcessError(f"of {count} processes the last one is {count - 1}, got {process}")
        if process == 0:
            print(f"waiting at {address} for {count - 1} more processes, at most {TIMEOUT} s", file=sys.stderr)
        elif not answers(address):
            raise ProcessError(
                f"the first process must answer at {address} within {TIMEOUT} s, got no answer: start it, or mend the "
                "address"
            )
        named = {"coordinator_address": address, "process_id": process, "num_processes": count}
    named |= {"initialization_timeout": TIMEOUT, "heartbeat_timeout_seconds": HEARTBEAT}
    try:
        jax.distributed.initialize(**named)
    except (RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ProcessError(f"the processes of --join {text} must meet within {TIMEOUT} s: {first}") from error
    return text


def answers(address: str) -> bool:
    """Whether a process answers at an address in time. JAX's own client would end this process where none does."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return True
    return False


def writes() -> bool:
    """Whether this process writes: the first one does."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes."""
    return jax.process_count() > 1


def of_first(number: int) -> int:
    """A number of the first process, in every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if several() else number


def largest(number: int) -> int:
    """The largest of the processes' numbers, in every process."""
    return int(np.max(multihost_utils.process_allgather(np.int32(number)))) if several() else number


def on_host(leaf: Any) -> np.ndarray:
    """A whole array, in every process."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def on_devices(tree: Tree, shardings: Any) -> Tree:
    """Whole arrays that every process has, on the devices of all. shardings: one, or a tree of them."""
    if not several():
        return jax.device_put(tree, shardings)

    def of(leaf, sharding):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: jnp.asarray(array[part]))

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: of(leaf, shardings), tree)
    return jax.tree.map(of, tree, shardings)


def own_columns(shape: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> np.ndarray:
    """The columns of an array, (rows, columns), that lie on this process's devices."""
    columns = np.arange(shape[1])
    if sharding is None:
        return columns
    parts = [columns[index[1]] for index in sharding.addressable_devices_indices_map(shape).values() if index]
    return np.unique(np.concatenate(parts))


def from_columns(own: np.ndarray, shape: tuple[int, ...], sharding: jax.sharding.Sharding | None) -> jax.Array:
    """The array (rows, columns, …) on the devices of all, of which every process has its `own_columns`.

    shape: (rows, columns). sharding: of these two axes; None for one device.
    """
    if sharding is None:
        return jax.device_put(own)
    columns = own_columns(shape, sharding)

    def part(index):
        return own[:, np.searchsorted(columns, np.arange(shape[1])[index[1]])]

    return jax.make_array_from_callback((*shape, *own.shape[2:]), sharding, part)
