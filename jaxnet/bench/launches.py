"""Kernel launches of a step on a GPU, by hand and by autodiff: counted in programs compiled for an H100 without one.

A launch takes 2 to 5 µs whatever it does, so a small step's time is its launches'. XLA compiles for a GPU that is only
described; that takes the extra `launches` (the CUDA plugin's wheels, no driver and no GPU).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.bench import core
from jaxnet.bench.cases import attention, convolution, gpt, recurrent
from jaxnet.bench.measure import TimedCase
from jaxnet.devices.chips import target
from jaxnet.devices.program_text import CompiledText
from jaxnet.lowering import compiling_for

GPU = "cuda:h100:1"
AIM = 1.1  # our launches over those of autodiff


def compiled_for(devices: str, f: Callable, *args: Any) -> Any:
    """A JAX function compiled for the first of some devices, which are only described: "cuda:h100:1", "tpu:v5e:2x2"."""
    aim = target(devices)
    mesh = Mesh(aim.devices()[:1], ("all",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=whole), args)
    with compiling_for(aim.platform), jax.set_mesh(mesh):  # Pallas asks the mesh which TPU it is
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
        """The headings."""
        return "case", "against", "launches", "theirs", f"over theirs (aim ≤ {AIM})", "temporary", "theirs"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sizes = (f"{bytes / 2**20:.3g} MiB" for bytes in (self.our_bytes, self.their_bytes))
        return self.case, self.against, str(self.ours), str(self.theirs), f"{self.ours / self.theirs:.3f}", *sizes


STEPS: dict[str, Callable[[], TimedCase]] = {
    "mlp": core.mlp_step,
    "cnn": convolution.network_case,
    "attention": attention.attention_case,
    "gpt": gpt.kept,
    "lstm": recurrent.lstm_case,
}


def counted(case: TimedCase) -> Iterator[Counted]:
    """A case against each of its variants by autodiff."""
    ours, *others = (
        (variant.name, compiled_for(GPU, variant.source[0], *variant.source[1]))
        for variant in (case.ours, *case.others)
        if variant.source is not None and variant.name.startswith(("hand", "autodiff"))
    )
    texts = {
        name: (CompiledText.read(p.as_text()).launches(), p.memory_analysis().temp_size_in_bytes)
        for name, p in (ours, *others)
    }
    for name, _ in others:
        (n, memory), (their_n, their_memory) = texts[ours[0]], texts[name]
        yield Counted(case.name, name, n, their_n, memory, their_memory)


def rows(only: str | None = None) -> list[Counted]:
    """The launches of each step, or of one.

    Raises `TargetError` where the CUDA plugin is not installed, or was kept from loading.
    """
    target(GPU).devices()  # before JAX begins: it asks for a driver else
    return [row for name, step in STEPS.items() if only in (None, name) for row in counted(step())]
