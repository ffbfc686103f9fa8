"""How a network lies on a mesh of devices, by the names that each maker gives the axes of its parameters.

A mesh has up to four axes:

    pipeline   each device has a share of the layers of a `repeat` (`pipeline.py`)
    data       each device has a share of the batch
    fsdp       the same, and a share of each matrix and of its optimiser's state; a layer gathers W when it runs
    tensor     each device has a share of a layer's outputs, of its inputs, or of its heads

The compiler derives all else from how the parameters and the batch lie.

Sources: Shoeybi et al., Megatron-LM, 2019, §3 (tensor); Rajbhandari et al., ZeRO, 2020, §5 (fsdp).
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import field
from itertools import count
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnet.backprop import initialize
from jaxnet.factors import dataclass_tree
from jaxnet.layer import Layer, Loss, ShapeError, Tree, adapted, leaves, on_leaves
from jaxnet.lowering.sharding import Shares, shares
from jaxnet.registry import Made, did_you_mean

AXES = ("pipeline", "data", "fsdp", "tensor")  # devices along the last one lie next to each other
BATCH = ("data", "fsdp")

RULES: Mapping[str, str] = MappingProxyType({"heads": "tensor", "vocab": "tensor", "out": "tensor", "in": "tensor"})
"""Which names of a parameter's axes the mesh's axis `tensor` may cut. In each layer it cuts the longest one."""


@dataclass_tree
class Placed:
    """A parameter with the mesh's axis for each axis that its own layer gives it."""

    value: Any
    spec: tuple[str | None, ...] = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return self.value.shape


class Layout(NamedTuple):
    """A network on a mesh.

    - `net`: as before, but each layer gathers its parts over `fsdp` before it runs.
    - `params`: the `NamedSharding` of each parameter, in the structure of `initialize(net, loss, key, x)`.
    """

    net: Layer
    params: Tree


def make_mesh(sizes: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh of the axes `AXES`, each of the given size or 1, whose shardings the compiler derives."""
    shape = tuple(sizes.get(name, 1) for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def layout(
    net: Layer, loss: Loss | None, x: jax.ShapeDtypeStruct, mesh: Mesh, rules: Mapping[str, str] = RULES
) -> Layout:
    """How the parameters of a network for inputs like `x` lie on a mesh.

    `rules`: as `RULES`; a key `name` or `maker.name`, the value an axis of the mesh, or "" for whole.
    Raises `ShapeError` for an axis that the mesh does not divide, `ValueError` for a rule that names nothing.
    """
    check_rules(net, mesh, rules)
    cuts: dict[int, dict[str, tuple]] = {}
    numbers = count()

    def traced(layer: Layer) -> Layer:
        number = next(numbers)

        def init(key, x):
            params = layer.init(key, x)
            specs = layer_specs(layer, params, mesh, rules)
            cuts[number] = specs
            return jax.tree_util.tree_map_with_path(lambda path, p: Placed(p, specs[name_of(path)]), params)

        def forward(params, x, key=None, train=False):
            return layer.forward(jax.tree.map(lambda p: p.value, params, is_leaf=is_placed), x, key, train)

        return layer._replace(init=init, forward=forward)

    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key: initialize(on_leaves(traced, net), loss, key, x), key)

    def sharding(p: Any) -> NamedSharding:
        if not isinstance(p, Placed):  # of a loss
            return NamedSharding(mesh, PartitionSpec())
        layers: list[str | None] = [None] * (p.value.ndim - len(p.spec))  # of `repeat`
        if layers and (stages := mesh.shape.get("pipeline", 1)) > 1:
            if p.shape[0] % stages:
                fitting = ", ".join(map(str, divisors(p.shape[0])))
                raise ShapeError(
                    f"{p.shape[0]} layers of a repeat must be a multiple of the mesh's pipeline = {stages}: take "
                    f"pipeline from {fitting}"
                )
            layers[0] = "pipeline"
        return NamedSharding(mesh, PartitionSpec(*layers, *p.spec))

    shardings = jax.tree.map(sharding, params, is_leaf=is_placed)
    numbers = count()
    return Layout(on_leaves(lambda layer: gathering(layer, cuts[next(numbers)], mesh), net), shardings)


def is_placed(node: Any) -> bool:
    """Whether a node of a tree is a parameter with its place."""
    return isinstance(node, Placed)


def name_of(path: tuple) -> str:
    """A parameter's name in its layer, as `W`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def gathering(layer: Layer, specs: Mapping[str, tuple], mesh: Mesh) -> Layer:
    """The layer, which first gathers those of its parameters that `fsdp` cuts; a share of `tensor` stays."""
    if not any(specs.values()):
        return layer

    def whole(params: Tree) -> Tree:
        manual = jax.sharding.get_abstract_mesh()
        on = manual if manual.manual_axes else mesh

        def of(path, p):
            spec = specs.get(name_of(path))
            if spec is None:
                return p
            kept = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            return jax.lax.with_sharding_constraint(p, NamedSharding(on, kept))

        return jax.tree_util.tree_map_with_path(of, params)

    return adapted(layer, whole)


# ------------------------------------------------------------------------------------------------ one layer


def layer_specs(layer: Layer, params: Tree, mesh: Mesh, rules: Mapping[str, str]) -> dict[str, tuple]:
    """The mesh's axis, or None, for each axis of each parameter of a leaf layer, by the parameter's name."""
    made = with_axes(layer)
    shapes = {name_of(path): p.shape for path, p in jax.tree_util.tree_leaves_with_path(params)}
    own = {} if made is None else {name: text.split() for name, text in made.by.axes.items()}
    named = {name: own[name] for name in own if len(own[name]) == len(shapes.get(name, ()))}
    lengths: dict[str, list[int]] = {}
    for name, axes in named.items():
        for axis, length in zip(axes, shapes[name], strict=True):
            lengths.setdefault(axis, []).append(length)
    found: dict[str, list[str | None]] = {name: [None] * len(shape) for name, shape in shapes.items()}
    for on in dict.fromkeys(rules.values()):
        if mesh.shape.get(on, 1) == 1:
            continue
        allowed = [axis for axis in lengths if rule(made, axis, rules) == on]
        if not allowed:
            continue
        chosen = max(allowed, key=lambda axis: max(lengths[axis]))
        divides(layer, made, chosen, lengths[chosen], on, mesh)
        for name, axes in named.items():
            if chosen in axes and on not in found[name]:
                found[name][axes.index(chosen)] = on
    shards = mesh.shape.get("fsdp", 1)
    for name, shape in shapes.items():
        free = [i for i, n in enumerate(shape) if found[name][i] is None and n % shards == 0]
        if shards > 1 and len(shape) > 1 and free:  # vectors stay whole: a gather costs more than they do
            found[name][max(free, key=lambda i: shape[i])] = "fsdp"
    return {name: tuple(axes) for name, axes in found.items()}


def with_axes(layer: Layer) -> Made | None:
    """The maker of a layer that gives names to axes: its own, or the one that its own maker called."""
    made = layer.made
    while made is not None and not made.by.axes:
        made = made.form
    return made


def rule(made: Made | None, axis: str, rules: Mapping[str, str]) -> str:
    """The mesh's axis that may cut a parameter's axis; "" for none."""
    own = f"{made.by.title}.{axis}" if made else axis
    return rules.get(own, rules.get(axis, ""))


def divides(layer: Layer, made: Made | None, axis: str, lengths: list[int], on: str, mesh: Mesh) -> None:
    """Raises `ShapeError` where the mesh does not divide an axis, or the count that a layer's option gives of it."""
    options = made.options if made else {}
    counts = {name: n for name, n in options.items() if name.endswith(axis) and isinstance(n, int)}
    counts = counts or {axis: math.gcd(*lengths)}
    for name, n in counts.items():
        if n % mesh.shape[on]:
            more = -(-n // mesh.shape[on]) * mesh.shape[on]
            raise ShapeError(
                f"{layer!r}: {name} = {n} must be a multiple of the mesh's {on} = {mesh.shape[on]}: take {on} from "
                f"{', '.join(map(str, divisors(n)))}, or {name} = {more}, or leave it whole by [mesh.rules] "
                f'"{made.by.title if made else layer.name}.{axis}" = ""'
            )


def divisors(n: int) -> list[int]:
    """The numbers that divide n."""
    return [size for size in range(1, n + 1) if n % size == 0]


def check_rules(net: Layer, mesh: Mesh, rules: Mapping[str, str]) -> None:
    """Raises `ValueError` for a rule of a name that no layer has, or of an axis that is none of the mesh's."""
    known = set(RULES)
    for made in filter(None, map(with_axes, leaves(net))):
        names = {axis for text in made.by.axes.values() for axis in text.split()}
        known |= names | {f"{made.by.title}.{axis}" for axis in names}
    for name, on in rules.items():
        if name not in known:
            raise ValueError(f'rules: no layer has an axis "{name}": {did_you_mean(name, sorted(known))}')
        if on and on not in mesh.shape:
            raise ValueError(f'rules: {name} = "{on}" is no axis of the mesh: it has {", ".join(mesh.shape)}')


# ---------------------------------------------------------------------------------------------- batches and state


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The mesh's axes that share a batch."""
    return tuple(axis for axis in BATCH if axis in mesh.shape)


def batch_shares(mesh: Mesh) -> int:
    """Among how many devices a batch is shared."""
    return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def like_params(tree: Tree, params: Tree, shardings: Tree, mesh: Mesh) -> Tree:
    """Shardings of a tree that holds trees like the parameters: an optimiser's state.

    tree, params: shapes. A leaf whose path ends as a parameter's, and that has its shape, lies as that parameter.
    """
    own = {
        jax.tree_util.keystr(path): (p.shape, where)
        for (path, p), where in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def of(path, leaf):
        for start in range(len(path) + 1):
            shape, where = own.get(jax.tree_util.keystr(path[start:]), (None, None))
            if where is not None and shape == leaf.shape:
                return where
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, tree)


def forms_for(mesh: Mesh | None) -> AbstractContextManager[None]:
    """Inside, a program for the mesh is traced with kernels and loops over heads for each device's share."""
    if mesh is None or mesh.size == 1:
        return nullcontext()
    return shares(Shares(mesh, batch_axes(mesh), (("heads", "tensor"),)))


def stacked(sharding: NamedSharding) -> NamedSharding:
    """The sharding of several such arrays in one."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
