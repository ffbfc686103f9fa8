"""A step's kernels on a GPU, by hand and by autodiff: counted in programs compiled for an H100 without one.

A launch takes 2 to 5 µs whatever it does, so a small step's time is its launches'. XLA compiles for a GPU that is only
described; that takes the extra `launches` (the CUDA plugin's wheels, no driver and no GPU).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.bench import core
from jaxnet.bench.cases import attention, convolution, gpt, recurrent
from jaxnet.bench.measure import TimedCase, duration
from jaxnet.devices.chips import target
from jaxnet.devices.program_text import CompiledText
from jaxnet.lowering import compiling_for, plain_forms
from jaxnet.training.flops import products

GPU = "cuda:h100:1"


def compiled_for(devices: str, f: Callable, *args: Any) -> Any:
    """A JAX function compiled for the first of some devices, which are only described: "cuda:h100:1", "tpu:v5e:2x2"."""
    aim = target(devices)
    mesh = Mesh(aim.devices()[:1], ("all",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=whole), args)
    with compiling_for(aim.platform), jax.set_mesh(mesh):  # Pallas asks the mesh which TPU it is
        return jax.jit(f).lower(*shapes).compile()


class CompiledStep(NamedTuple):
    """A step's program: launches, temporary bytes, bytes moved, operations of its products, and seconds at the peaks.

    `seconds`: operations / peak + bytes / bandwidth + launches · 3 µs, as if nothing overlapped. The peak of a float32
    product is TF32's; the bytes are those of each kernel's operands and results, of which a cache saves some.
    """

    case: str
    program: str
    launches: int
    temporary: int
    moved: int
    flops: float
    seconds: float

    def headings(self) -> tuple[str, ...]:
        """The headings."""
        return "case", "program", "launches", "temporary", "moved", "products", "time at the peaks"

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sizes = (f"{bytes / 2**20:.3g} MiB" for bytes in (self.temporary, self.moved))
        operations = f"{self.flops / 1e9:.3g} GFLOP"
        return self.case, self.program, str(self.launches), *sizes, operations, duration(self.seconds)


STEPS: dict[str, Callable[[], TimedCase]] = {
    "mlp": core.mlp_step,
    "cnn": convolution.network_case,
    "attention": attention.attention_case,
    "gpt": gpt.kept,
    "lstm": recurrent.lstm_case,
}


def counted(case: TimedCase) -> Iterator[CompiledStep]:
    """Our program of a case, then each by autodiff."""
    chip = target(GPU).chip
    for variant in (case.ours, *case.others):
        if variant.source is None or not variant.name.startswith(("hand", "autodiff")):
            continue
        f, arguments = variant.source
        program = compiled_for(GPU, f, *arguments)
        text, temporary = CompiledText.read(program.as_text()), program.memory_analysis().temp_size_in_bytes
        launches, moved = text.launches(), text.traffic()
        with plain_forms():  # in a kernel they would not be seen
            flops = products(jax.make_jaxpr(f)(*arguments))
        seconds = flops / chip.flops[0] + moved / chip.bandwidth + launches * chip.launch
        yield CompiledStep(case.name, variant.name, launches, temporary, moved, flops, seconds)


def rows(only: str | None = None) -> list[CompiledStep]:
    """The programs of each step, or of one.

    Raises `TargetError` where the CUDA plugin is not installed, or was kept from loading.
    """
    target(GPU).devices()  # before JAX begins: it asks for a driver else
    return [row for name, step in STEPS.items() if only in (None, name) for row in counted(step())]
