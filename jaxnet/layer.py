"""The contract of layers, losses and readings."""

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxnet import registry
from jaxnet.registry import Made

Tree = Any  # a pytree of arrays
EXAMPLES = "jaxnet examples"  # the name of the vmapped axis of a batch, for layers that couple its examples


class ShapeError(ValueError):
    """An input has a shape that a layer or a loss does not take.

    >>> try:
    ...     conv2d(4, 3).init(jax.random.key(0), jnp.ones(6))
    ... except ShapeError as error:
    ...     print(str(error).partition(":")[0])
    conv2d 4@3×3 takes an image (height, width, channels), got shape (6,)
    """


class LabelError(ValueError):
    """A class label is not from 0 to the number of classes − 1."""


class Layer(NamedTuple):
    """A differentiable map of ONE example, with its hand-written backward pass: three pure functions.

    - `init(key, x) -> params`: fresh parameters for inputs with the shape and dtype of `x` (an array or a
      `jax.ShapeDtypeStruct`); `()` where there are none.
    - `forward(params, x, key=None, train=False) -> out, saved`: the layer's value, and the values that backward needs.
      `key` is for randomness, `train` for the mode.
    - `backward(params, saved, d_out, read) -> dx, readings`: from d_out = ∂C/∂out (the shape of `out`) to
      dx = ∂C/∂x and the readings of `read`, with the structure of `params`.
    - `parts`: the layers inside, first to last.
    - `rebuild(*parts) -> Layer`: the same combination of other layers; None for a leaf.
    - `origin`: put there by `maker`; read `made`.

    Two layers are equal where the same maker made them of equal options.

    >>> relu
    relu
    >>> dense(30).made.options["units"]
    30
    >>> serial(dense(3), relu) == serial(dense(3), relu)
    True
    """

    name: str
    init: Callable[..., Tree]
    forward: Callable[..., tuple[Tree, Tree]]
    backward: Callable[..., tuple[Tree, Tree]]
    parts: tuple["Layer", ...] = ()
    rebuild: Callable[..., "Layer"] | None = None
    origin: Made | None = None

    @property
    def made(self) -> Made | None:
        """The maker and the options of it; None where there is no maker, or a function of it was replaced."""
        return registry.made_of(self)

    @property
    def maker(self) -> str:
        """The maker that the network is made by in the end, "serial" for an mlp; "" where there is none."""
        return self.made.root.maker if self.made is not None else ""

    __repr__, __hash__, __reduce__ = registry.shown, registry.hashed, registry.reduced
    __eq__, __ne__, __copy__, __deepcopy__ = registry.equal, registry.unequal, registry.itself, registry.itself

    def _repr_html_(self) -> str:
        """The table of its layers, in a notebook; `summary(net, x)` has their shapes and parameters too."""
        return Summary(tuple(SummaryRow(repr(part)) for part in (self.parts or (self,))))._repr_html_()


class SummaryRow(NamedTuple):
    """One layer of a network: its text, the shape of its output, the count of its parameters."""

    layer: str
    shape: tuple[int, ...] | None = None
    parameters: int | None = None


class Summary(NamedTuple):
    """The layers of a network with their shapes and parameters: text, and a table in a notebook."""

    rows: tuple[SummaryRow, ...]

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows, the heading first and the total last; the layers alone where no input is known."""
        if any(row.parameters is None for row in self.rows):
            return [("layer",), *((row.layer,) for row in self.rows)]
        total = sum(row.parameters or 0 for row in self.rows)
        rows = [(row.layer, str(row.shape), f"{row.parameters:,}") for row in self.rows]
        return [("layer", "output", "parameters"), *rows, ("total", "", f"{total:,}")]

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        heading, *rows = [[html.escape(cell) for cell in row] for row in self.cells()]
        head = "".join(f"<th>{cell}</th>" for cell in heading)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Loss(NamedTuple):
    """Where the forward pass turns into the backward pass.

    - `turn(params, x, y, weight, read) -> Σ weight · cost, dx, readings` of one example: x is the network's output,
      y its target, `weight` a number, or one for each term (token).
    - `terms(y, weight=None) -> Σ weight` over the terms of one example that count: 1/n is one number for the whole
      batch, n the sum of these. A number of all terms that depends on no value comes as `Static`.
    - `init(key, x) -> params` where the loss has parameters of its own; parameters of the whole are then the pair
      (the network's, the loss's). None for most.
    - `root(x, y, weight, u, transposed=False) -> S u`, or Sᵀ u: S Sᵀ is the Hessian of weight · cost in x, weights not
      negative, u of the shape of x. None where the loss gives none.
    - `origin`: as of a `Layer`.

    >>> cost, delta, _ = quadratic.turn((), jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0]), 1.0, total)
    >>> print(cost, delta)
    0.5 [1. 0.]
    """

    name: str
    turn: Callable[..., tuple[jax.Array, Tree, Tree]]
    terms: Callable[..., Any]
    init: Callable[..., Tree] | None = None
    root: Callable[..., Tree] | None = None
    origin: Made | None = None

    @property
    def made(self) -> Made | None:
        """The maker and the options of it; None where there is no maker, or a function of it was replaced."""
        return registry.made_of(self)

    __repr__, __hash__, __reduce__ = registry.shown, registry.hashed, registry.reduced
    __eq__, __ne__, __copy__, __deepcopy__ = registry.equal, registry.unequal, registry.itself, registry.itself


class Passing(NamedTuple):
    """All that meets at a layer when the error passes through it: d_out in the shape of its output, dx of its input."""

    params: Tree
    saved: Tree
    d_out: Tree
    dx: Tree
    factors: Tree  # ∂C/∂params, with the structure of params, not multiplied out
    state: Tree = None  # the layer's state after this step, as `split_state` gives it; None for most layers


class Reading(NamedTuple):
    """A function of each layer's passing error, such as its gradient.

    - `at(passing) -> anything`.
    - `out_axes`: 0 where the result is one for each example, None where it is one for all of them; a tuple of these
      for a pair of readings.
    - `additive`: the reading of a batch is the sum of the readings of its pieces, so a batch may run in chunks.
    - `coupled`: the reading has a meaning where a layer couples the examples of a batch (`batch_norm` in training):
      a gradient of the whole batch has, an example's own gradient has none.
    - `linear`: the reading has the structure of the parameters and is linear in each one's gradient: where an example's
      gradient is a sum (over the uses of a shared parameter, over pieces of a sequence), so is its reading.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> norm_of_delta = Reading(lambda passing: jnp.sum(passing.d_out**2), out_axes=0)
    >>> _, squares = per_example(net, softmax_cross_entropy, norm_of_delta)(params, xs, ys)
    >>> squares.shape
    (3,)
    """

    at: Callable[[Passing], Tree]
    out_axes: Any
    additive: bool = False
    coupled: bool = False
    linear: bool = False


def leaf(name: str, init: Callable, forward: Callable, backward: Callable, accepts: Callable | None = None) -> Layer:
    """A layer with nothing inside: its `backward(params, saved, d_out)` gives dx and factors, which are read here.

    `accepts(x, params)` raises `ShapeError` for an input that the layer does not take; params is None at `init`.
    """

    def checked_init(key, x):
        if accepts is not None:
            accepts(x, None)
        return init(key, x)

    def checked_forward(params, x, key=None, train=False):
        if accepts is not None:
            accepts(x, params)
        return forward(params, x, key, train)

    def read_backward(params, saved, d_out, read):
        dx, factors = backward(params, saved, d_out)
        return dx, read.at(Passing(params, saved, d_out, dx, factors))

    return Layer(name, checked_init, checked_forward, read_backward)


def fits_input(name: str, params: Any, key: str, shape: tuple[int, ...], x: Any) -> None:
    """Raises `ShapeError` unless a parameter has the shape that an input needs. Without parameters nothing is held."""
    if params is not None and params[key].shape != shape:
        raise ShapeError(
            f"{name} takes {key} of shape {shape} for an input of shape {x.shape}, got {params[key].shape}: "
            "initialise it for this input"
        )


def no_params(key, x) -> tuple[()]:
    """`init` of a layer without parameters."""
    return ()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Untrained:
    """Non-trainable state among the parameters: a pytree of arrays, such as a running mean for each channel."""

    value: Tree


def is_untrained(node) -> bool:
    """Whether a node of a tree of parameters is state; None stands where state was taken out."""
    return node is None or isinstance(node, Untrained)


def split_state(params: Tree) -> tuple[Tree, Tree]:
    """Parameters and state apart, both in the structure of `params`; an entry of the one is None in the other.

    The optimiser then takes the first alone; `with_state` puts them together.
    """

    def only(kept: bool) -> Tree:
        return jax.tree.map(lambda p: p if isinstance(p, Untrained) == kept else None, params, is_leaf=is_untrained)

    return only(False), only(True)


def with_state(params: Tree, state: Tree) -> Tree:
    """Parameters with their state in its place, as `forward` takes them."""
    if state is None:
        return params
    return jax.tree.map(lambda p, s: p if s is None else s, params, state, is_leaf=is_untrained)


def own_params(loss: Loss, params: Tree) -> tuple[Tree, Tree]:
    """The network's parameters and the loss's; () where the loss has none."""
    return (params, ()) if loss.init is None else params


def on_leaves(change: Callable[[Layer], Layer], net: Layer) -> Layer:
    """The same network with `change(leaf)` for each leaf layer."""
    if net.rebuild is None:
        return change(net)
    return net.rebuild(*(on_leaves(change, part) for part in net.parts))


def adapted(
    layer: Layer, params: Callable = lambda p: p, pack: Callable = lambda s: s, unpack: Callable = lambda s: s
) -> Layer:
    """A leaf layer that runs with `params(p)`, and whose saved values lie as `pack(saved)` until `unpack` gives them.

    A reading sees the parameters as they came.
    """

    def forward(p, x, key=None, train=False):
        out, saved = layer.forward(params(p), x, key, train)
        return out, pack(saved)

    def backward(p, saved, d_out, read):
        own, _ = split_state(p)
        seen = read._replace(at=lambda passing: read.at(passing._replace(params=own)))
        return layer.backward(params(p), unpack(saved), d_out, seen)

    return layer._replace(forward=forward, backward=backward)


def leaves(net: Layer) -> list[Layer]:
    """The leaf layers of a network, first to last; one inside `repeat` stands once."""
    if net.rebuild is None:
        return [net]
    return [each for part in net.parts for each in leaves(part)]


def output(net: Layer, params: Tree, x: Tree, train: bool = False) -> Tree:
    """Shape and dtype of the output for an input `x`; nothing is computed."""
    return jax.eval_shape(lambda p, x: net.forward(p, x, None, train)[0], params, x)


def summary(net: Layer, x: Tree) -> Summary:
    """The table of a network for an input of the shape and dtype of `x`, one example: layer, output, parameters.

    A network of several layers has a row for each. Nothing is computed but shapes.
    Raises `ShapeError` for an input that the network does not take.

    >>> import jax
    >>> from jaxnet import dense, serial, sigmoid
    >>> from jaxnet.layer import summary
    >>> print(summary(serial(dense(30), sigmoid, dense(10)), jax.ShapeDtypeStruct((784,), "float32")))
    layer      output  parameters
    dense(30)  (30,)   23,550
    sigmoid    (30,)   0
    dense(10)  (10,)   310
    total              23,860
    """
    params = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)), x)
    shapes: dict[int, Any] = {}

    def seen(number: int, part: Layer) -> Layer:
        def forward(params, x, key=None, train=False):
            out, saved = part.forward(params, x, key, train)
            shapes[number] = jax.tree.map(lambda t: t.shape, out)
            return out, saved

        return part._replace(forward=forward)

    several = len(net.parts) > 1 and net.rebuild is not None
    parts, of_parts = (net.parts, params) if several else ((net,), (params,))
    watched = [seen(number, part) for number, part in enumerate(parts)]
    output(net.rebuild(*watched) if several and net.rebuild else watched[0], params, x)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(p)) for p in of_parts]
    return Summary(
        tuple(SummaryRow(repr(p), shapes[i], count) for i, (p, count) in enumerate(zip(parts, counts, strict=True)))
    )


def split_key(key: jax.Array | None, times: int) -> Sequence:
    """A key for each of `times` parts; None for each where there is none."""
    return [None] * times if key is None else list(jax.random.split(key, times))


@contextmanager
def inside(where: str) -> Iterator[None]:
    """Says in a `ShapeError` from inside where in the network it arose."""
    try:
        yield
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Static:
    """A value in `saved` that is no array: a shape, a mode."""

    value: Any
