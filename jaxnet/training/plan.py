"""The memory and time of a training step on each device, by compiling it for devices that need not be here."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxnet.devices import scaling
from jaxnet.devices.chips import DeviceTarget, target
from jaxnet.devices.placement import batch_axes, batch_shares, forms_for, make_mesh
from jaxnet.devices.program_text import CompiledText
from jaxnet.layer import Tree, own_params
from jaxnet.lowering import compiling_for, plain_forms
from jaxnet.training import step
from jaxnet.training.atomic_write import write_whole
from jaxnet.training.build import parameter_names
from jaxnet.training.config import Config, ConfigError
from jaxnet.training.data import Dataset, load
from jaxnet.training.devices import mesh_sizes, precision
from jaxnet.training.flops import products
from jaxnet.training.low_precision import HALF
from jaxnet.training.session import recipe_of
from jaxnet.training.step import Recipe

WIRE = {"all-reduce": 2}  # a ring sends each byte out and back; other exchanges send it once
LARGEST = 5


class PlanError(ValueError):
    """A step that the devices' memory does not hold."""


class StepArray(NamedTuple):
    """An array of a step on one device: name, shape there, bytes."""

    name: str
    shape: str
    bytes: int


class StepPlan(NamedTuple):
    """A step on each device: bytes, operations and seconds. None where the program does not say."""

    devices: str
    parameters: int
    optimizer: int
    activations: int
    peak: int
    flops: float
    traffic: int | None
    launches: int | None
    exchanges: dict[str, tuple[int, int]] | None
    seconds: dict[str, float] | None
    largest: list[StepArray]

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        yield f"{self.devices}, each device, each step:"
        yield f"  parameters       {size(self.parameters)}"
        yield f"  optimiser state  {size(self.optimizer)}"
        yield f"  activations      {size(self.activations)} kept for backward, before the compiler's savings"
        yield f"  peak memory      {size(self.peak)} of {size(self.memory)}"
        yield f"  operations       {self.flops / 1e9:,.3g} GFLOP in products"
        if self.exchanges is None or self.seconds is None or self.traffic is None:
            yield "  the program has a loop whose number of steps is not known, so launches and time are not either"
            return
        yield f"  memory traffic   {size(self.traffic)}"
        yield f"  launches         {self.launches:,}"
        for kind, (count, moved) in self.exchanges.items():
            yield f"  {kind:<16} {count:,}, results of {size(moved)}"
        parts = ", ".join(f"{name} {1e3 * each:,.3g} ms" for name, each in self.seconds.items())
        yield f"  time             {1e3 * sum(self.seconds.values()):,.3g} ms, if nothing overlaps: {parts}"
        yield "  at the published peaks of the device; a real step reaches a half of them or less"

    @property
    def memory(self) -> float:
        """The memory of one device."""
        return target(self.devices).chip.memory


def run(
    config: Config,
    devices: str,
    data_dir: Path | None,
    program: Path | None,
    json_file: Path | None,
    scale: bool = False,
) -> None:
    """Prints the plan of a config, and writes the compiled text and the plan. scale: the plan on more devices too."""
    aim = target(devices)
    described = aim.devices()  # before the data: it may have to set how many CPU devices there are
    dataset = load(config.data, data_dir=data_dir)
    plan, compiled = planned(config, dataset, aim, described)
    if program is not None:
        write_whole(program, compiled.as_text().encode())
    if json_file is not None:
        write_whole(json_file, json.dumps(plan._asdict(), indent=2).encode())
    for line in plan.lines():
        print(line)
    if scale:
        of_products = plan.flops / aim.chip.flops[0 if config.precision not in HALF else 1]
        seconds = of_products if plan.seconds is None else sum(plan.seconds.values())
        rows = scaling.scaled(seconds, plan.parameters, aim.total, aim.chip, config.mesh.data)
        for line in scaling.lines(rows, aim.chip):
            print(line)
    fits(plan)


def fits(plan: StepPlan) -> None:
    """Raises PlanError for a plan that takes more than a device's memory."""
    if plan.peak > plan.memory:
        raise too_large(plan.devices, plan.memory, f"{size(plan.peak)}", plan.largest)


def planned(config: Config, dataset: Dataset, aim: DeviceTarget, devices: Any = None) -> tuple[StepPlan, Any]:
    """The plan of a config's step on devices, and the compiled `step.step_of_leaves`.

    Raises ConfigError where the config's mesh takes another number of devices, PlanError where the compiler finds too
    little memory; else as `recipe_of` and `DeviceTarget.devices`.
    """
    sizes = mesh_sizes(config)
    if math.prod(sizes.values()) != aim.total:
        asked = " · ".join(f"mesh.{axis} = {n}" for axis, n in sizes.items()) or "one device"
        raise ConfigError(f"{aim.text} has {aim.total} devices, the config asks for {asked}: set mesh.data={aim.total}")
    mesh = make_mesh(sizes, aim.devices() if devices is None else devices)
    with precision(config.precision):
        recipe = recipe_of(config, dataset, mesh)
        arguments = shapes_of_step(recipe)
        with plain_forms():
            flops = products(jax.make_jaxpr(step.training_step(recipe))(*arguments)) / aim.total
        largest = sorted(arrays(recipe, arguments), key=lambda each: -each.bytes)
        leaves = jax.tree.leaves(arguments[0])
        layout = [t.sharding for t in leaves]
        with compiling_for(aim.platform), forms_for(mesh), jax.set_mesh(mesh):  # Pallas asks it which TPU it is
            lowered = jax.jit(step.step_of_leaves(recipe), out_shardings=layout).lower(leaves, *arguments[1:])
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise too_large(aim.text, aim.chip.memory, "more", largest) from error
    text, held = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert held is not None
    peak = held.argument_size_in_bytes + held.output_size_in_bytes + held.temp_size_in_bytes - held.alias_size_in_bytes
    program = CompiledText.read(text)
    try:
        launches, traffic, exchanges = program.launches(), program.traffic(), program.exchanges()
    except ValueError:
        launches = traffic = exchanges = seconds = None
    else:
        wide = config.precision not in HALF
        seconds = {
            "products": flops / aim.chip.flops[0 if wide else 1],
            "memory": traffic / aim.chip.bandwidth,
            "launches": launches * aim.chip.launch,
            "exchanges": sum(WIRE.get(kind, 1) * moved for kind, (_, moved) in exchanges.items()) / aim.chip.link,
        }
    params, optimizer = (sum(map(local, jax.tree.leaves(t))) for t in (arguments[0].params, arguments[0].optimizer))
    activations = sum(each.bytes for each in largest if each.name.startswith("saved"))
    peak = max(peak, getattr(held, "peak_memory_in_bytes", 0))  # a TPU's program gives this alone
    of_step = (flops, traffic, launches, exchanges, seconds)
    return StepPlan(aim.text, params, optimizer, activations, peak, *of_step, largest[:LARGEST]), compiled


def shapes_of_step(recipe: Recipe) -> tuple:
    """The arguments of `step.training_step` as shapes that lie on the mesh."""
    assert recipe.mesh is not None
    whole = NamedSharding(recipe.mesh, PartitionSpec())
    by_example = NamedSharding(recipe.mesh, PartitionSpec(batch_axes(recipe.mesh)))

    def placed(t, sharding):
        return jax.ShapeDtypeStruct(t.shape, t.dtype, sharding=sharding)

    key = jax.eval_shape(lambda: step.key_data(0))
    state = jax.tree.map(placed, jax.eval_shape(step.begin(recipe), key), step.state_shardings(recipe))
    batch = [
        jax.ShapeDtypeStruct((recipe.batch, *t.shape), t.dtype, sharding=by_example)
        for t in (recipe.example, recipe.target)
    ]
    return state, *batch, placed(key, whole)


def arrays(recipe: Recipe, arguments: tuple) -> Iterator[StepArray]:
    """Parameters, optimiser state, and the saved values of one device's chunk of examples."""
    state = arguments[0]
    for kind, tree in (("parameter", state.params), ("optimiser", state.optimizer)):
        names = jax.tree.leaves(parameter_names(tree))
        for name, leaf in zip(names, jax.tree.leaves(tree), strict=True):
            yield StepArray(f"{kind} {name}", shown(leaf, leaf.sharding.shard_shape(leaf.shape)), local(leaf))
    assert recipe.mesh is not None
    each = max(1, recipe.batch // batch_shares(recipe.mesh) // recipe.chunks)
    x = jax.ShapeDtypeStruct((each, *recipe.example.shape), recipe.example.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole, _ = own_params(recipe.loss, state.whole)

    def kept(params: Tree, x: jax.Array, key: jax.Array) -> Tree:
        return jax.vmap(lambda x: recipe.net.forward(params, x, key, True)[1], axis_name="examples")(x)

    with plain_forms():
        saved = jax.eval_shape(kept, whole, x, key)
    for name, leaf in zip(jax.tree.leaves(parameter_names(saved)), jax.tree.leaves(saved), strict=True):
        yield StepArray(f"saved {name}", shown(leaf, leaf.shape), math.prod(leaf.shape) * leaf.dtype.itemsize)


def local(t: Any) -> int:
    """The bytes of an array's share on one device."""
    return math.prod(t.sharding.shard_shape(t.shape)) * np.dtype(t.dtype).itemsize


def shown(t: Any, shape: tuple[int, ...]) -> str:
    """Dtype and shape, as `float32[8, 3]`."""
    return f"{t.dtype}{[*shape]}"


def size(bytes: float) -> str:
    """Bytes with a unit."""
    power = min(3, int(math.log2(max(bytes, 1)) / 10))
    return f"{bytes / 2 ** (10 * power):,.4g} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def too_large(devices: str, memory: float, needed: str, largest: list[StepArray]) -> PlanError:
    """The error for a step that does not fit: the largest arrays, and how to make them smaller."""
    told = "; ".join(f"{each.name} {each.shape}, {size(each.bytes)}" for each in largest[:LARGEST])
    saved = sum(each.bytes for each in largest if each.name.startswith("saved"))
    mend = (
        "train.chunks = 2, train.head_chunks = 8, remat = true in the model, or a smaller batch on each device"
        if saved > sum(each.bytes for each in largest) / 2
        else "mesh.fsdp, which cuts parameters and the optimiser's state, or mesh.tensor"
    )
    return PlanError(
        f"the step must fit into {size(memory)} on each device of {devices}, and needs {needed}: take {mend}. "
        f"The largest arrays: {told}"
    )
