"""Kernel launches of a step on a GPU, by hand and by autodiff: counted in programs compiled for an H100 without one.

A launch takes 2 to 5 µs whatever it does, so a small step's time is its launches'. XLA compiles for a GPU that is only
described; that takes the extra `launches` (the CUDA plugin's wheels, no driver and no GPU).
"""

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxnet.bench import core
from jaxnet.bench.cases import attention, convolution, gpt, recurrent
from jaxnet.bench.measure import Case
from jaxnet.lowering import compiling_for

AIM = 1.1  # our launches over those of autodiff

H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""

INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
NO_KERNEL = frozenset(
    ["parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota", "broadcast"]
)  # the compiler makes none of them a launch of its own


def launches(program: str) -> int:
    """Kernel launches in optimised HLO text: a loop counts as often as it runs, of branches the one with most.

    Raises `ValueError` for a loop whose number of steps the text does not give.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if not line.startswith(" ") and (head := COMPUTATION.match(line)):
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("  "):
            lines.append(line)

    def called(line: str, how: str) -> str:
        return re.findall(rf"{how}=%?([\w.\-]+)", line)[0]

    @cache
    def count(name: str) -> int:
        total = 0
        for line in bodies[name]:
            if not (found := INSTRUCTION.match(line)) or (operation := found[1]) in NO_KERNEL:
                continue
            if operation == "while":
                steps = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                if steps is None:
                    raise ValueError("launches are counted in loops of a known number of steps, got a while without")
                total += int(steps[1]) * count(called(line, "body"))
            elif operation == "call":
                total += count(called(line, "to_apply"))
            elif operation == "conditional":
                branches = re.search(r"branch_computations=\{(.*?)\}", line)
                names = branches[1].replace("%", "").split(", ") if branches else []
                total += max(map(count, names), default=0)
            else:
                total += 1
        return total

    return count(entry)


@cache
def described_gpu() -> SingleDeviceSharding:
    """One H100 that is only described."""
    [gpu] = topologies.get_topology_desc("h100", "cuda", topology="1x1x1", target_config=H100).devices
    return SingleDeviceSharding(gpu)


def compiled_for_gpu(f: Callable, *args: Any) -> Any:
    """A JAX function compiled for the described GPU."""
    shapes = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=described_gpu()), args)
    with compiling_for("cuda"):
        return jax.jit(f).lower(*shapes).compile()


class Counted(NamedTuple):
    """A step's launches and temporary bytes: ours, and by autodiff."""

    case: str
    against: str
    ours: int
    theirs: int
    our_bytes: int
    their_bytes: int

    def headings(self) -> tuple[str, ...]:
        """What stands over the cells."""
        return "case", "against", "launches", "theirs", f"over theirs (aim ≤ {AIM})", "temporary", "theirs"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sizes = (f"{bytes / 2**20:.3g} MiB" for bytes in (self.our_bytes, self.their_bytes))
        return self.case, self.against, str(self.ours), str(self.theirs), f"{self.ours / self.theirs:.3f}", *sizes

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return self._asdict()


STEPS: dict[str, Callable[[], Case]] = {
    "mlp": core.mlp_step,
    "cnn": convolution.network_case,
    "attention": attention.attention_case,
    "gpt": gpt.kept,
    "lstm": recurrent.lstm_case,
}


def counted(case: Case) -> Iterator[Counted]:
    """A case against each of its variants by autodiff."""
    ours, *others = (
        (variant.name, compiled_for_gpu(variant.source[0], *variant.source[1]))
        for variant in (case.ours, *case.others)
        if variant.source is not None and variant.name.startswith(("hand", "autodiff"))
    )
    texts = {name: (launches(p.as_text()), p.memory_analysis().temp_size_in_bytes) for name, p in (ours, *others)}
    for name, _ in others:
        (n, memory), (their_n, their_memory) = texts[ours[0]], texts[name]
        yield Counted(case.name, name, n, their_n, memory, their_memory)


def rows(only: str | None = None) -> list[Counted]:
    """The launches of each step, or of one.

    Raises `ImportError` where the CUDA plugin is not installed, or was kept from loading.
    """
    if find_spec("jax_cuda12_plugin") is None:
        raise ImportError("launches are counted with the CUDA plugin: pip install 'jaxnet-backprop[launches]'")
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # it asks for a driver's libraries
    return [row for name, step in STEPS.items() if only in (None, name) for row in counted(step())]
