"""The feedback path of a network: its layers send the error back through another matrix than Wᵀ."""

import math
from collections.abc import Callable
from dataclasses import field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxnet import registry
from jaxnet.combinators import same_shape
from jaxnet.factors import dataclass_tree
from jaxnet.layer import (
    Layer,
    Passing,
    Reading,
    ShapeError,
    Static,
    Tree,
    Untrained,
    is_untrained,
    split_state,
)
from jaxnet.readings import Beside, bare, nothing
from jaxnet.registry import Made, maker, makers


class FeedbackPath(NamedTuple):
    """A feedback path. Called with a network, it gives the network with this path; its parameters stay the same.

    `matrix(W, B, scale)`: the matrix in W's place as the error passes; B is None where nothing is drawn, and `direct`
    has no matrix. `layers`: places among the layers with weights, from 0, first to last; None for all. A layer that has
    a feedback path of its own already keeps it, and is not counted. `learned`: how B changes, "gradient": by ∇_W C
    as W does; a function: B ← learned(W, B) in each step; None: not at all. `through`: δ passes the network as it is.
    """

    name: str
    matrix: Callable[[Any, Any, float], Any] | None
    draws: bool = False
    seed: int = 0
    scale: float = 1.0
    layers: tuple[int, ...] | None = None
    learned: Literal["gradient"] | Callable[[Any, Any], Any] | None = None
    through: bool = False
    watched: bool = False
    origin: Made | None = None

    made = property(registry.made_of)
    __repr__, __hash__, __reduce__ = registry.shown, registry.hashed, registry.reduced
    __eq__, __ne__, __copy__, __deepcopy__ = registry.equal, registry.unequal, registry.itself, registry.itself

    def __call__(self, net: Layer) -> Layer:
        """The network with this feedback path.

        Where it has none for a layer, the backward pass raises `ValueError` or `ShapeError` as soon as it is traced.
        """
        return feedback(net, self)

    def around(self, net: Layer) -> Layer:
        """The layer that `feedback` makes."""
        if self.through:
            return self.passed_by(net)

        def init(key, x):
            params = net.init(key, x)
            out, saved = jax.eval_shape(lambda p, x: net.forward(p, x, key, True), params, x)
            return self.beside(net, params, saved, out)

        def forward(params, x, key=None, train=False):
            return net.forward(bare(params), x, key, train)

        def backward(params, saved, d_out, read):
            both = params if self.learned else self.beside(net, params, saved, d_out)
            error = None if self.matrix else self.error(net, bare(params), saved, d_out)
            own = read._replace(at=lambda passing: read.at(passing._replace(params=bare(passing.params))))
            fed = each_own(lambda leaf: self.fed(leaf, error), net)
            return fed.backward(both, saved, d_out, read if self.learned else own)

        functions = (init, forward) if self.learned else (net.init, net.forward)
        return Layer(f"feedback {self.name}", *functions, backward, (net,), self)

    def passed_by(self, net: Layer) -> Layer:
        """The network whose dx is d_out."""

        def forward(params, x, key=None, train=False):
            out, saved = net.forward(params, x, key, train)
            same_shape(f"feedback {self.name}", x, out)
            return out, saved

        def backward(params, saved, d_out, read):
            passed = read._replace(at=lambda passing: read.at(passing._replace(dx=d_out)))
            return d_out, net.backward(params, saved, d_out, passed)[1]

        return Layer(f"feedback {self.name}", net.init, forward, backward, (net,), self)

    def fed(self, leaf: Layer, error: Any = None) -> Layer:
        """A leaf layer with this feedback path for each W with a B beside it. `error`: e of `direct`, a vector."""

        def forward(params, x, key=None, train=False):
            return leaf.forward(bare(params), x, key, train)

        def backward(params, saved, d_out, read):
            fed = beside_in(params)
            if not fed:
                return leaf.backward(params, saved, d_out, read)
            own = bare(params)
            if self.matrix is None:
                instead, [B] = own, [node.own for node in fed.values()]
                right, _ = leaf.backward(own, saved, d_out, nothing)
                dx = jnp.tensordot(B, error.astype(B.dtype), 1).astype(right.dtype)
                sent = Sent(dx, right)
            else:
                matrices = {k: self.matrix(node.p, unstated(node.own), self.scale) for k, node in fed.items()}
                instead = own | matrices
                dx, _ = leaf.backward(instead, saved, d_out, nothing)
                sent = Sent(flat(matrices), flat({name: own[name] for name in matrices}))

            def at(passing):
                passing = passing._replace(params=own, dx=dx, saved=sent if self.watched else passing.saved)
                return read.at(self.with_B(passing, params) if self.learned else passing)

            return dx, leaf.backward(instead, saved, d_out, read._replace(at=at))[1]

        return leaf._replace(forward=forward, backward=backward)

    def with_B(self, passing: Passing, params: Tree) -> Passing:
        """The same passing, with ∇_W as the gradient of each B, or with the B of the next step as state."""

        trained, _ = split_state(params)
        passing, learned = passing._replace(params=trained), self.learned
        if not callable(learned):
            both = {k: Beside(f, f) if isinstance(params[k], Beside) else f for k, f in passing.factors.items()}
            return passing._replace(factors=both)

        def after(node):
            return Beside(None, Untrained(learned(node.p, unstated(node.own)))) if isinstance(node, Beside) else None

        factors = {k: Beside(f, None) if isinstance(params[k], Beside) else f for k, f in passing.factors.items()}
        state = (passing.state or {}) | {k: after(node) for k, node in params.items() if not is_untrained(node)}
        return passing._replace(factors=factors, state=state)

    # ------------------------------------------------------------------------------------------ the matrices

    def beside(self, net: Layer, params: Tree, saved: Tree, d_out: Tree) -> Tree:
        """The network's parameters with B beside each W that this path is for (None where nothing is drawn).

        saved and d_out may be shapes. Raises `ValueError` for an unknown place, `ValueError` or `ShapeError` for a
        layer that this feedback path is not for.
        """
        places, structure = self.places(net, params, saved, d_out)
        weighted = [i for i, place in enumerate(places) if place.about and place.about.weights]
        numbers = range(len(weighted)) if self.layers is None else self.layers
        if not all(0 <= number < len(weighted) for number in numbers):
            raise ValueError(
                f"feedback {self.name}: layers must be places from 0 among the {len(weighted)} layers with weights, "
                f"got {list(numbers)}"
            )
        outputs = places[weighted[-1]].about.out if weighted else ()
        for number in numbers:
            place = places[weighted[number]]
            self.is_for(place.about)
            Bs = self.drawn(place, number, outputs)
            Bs = {name: Untrained(B) for name, B in Bs.items()} if callable(self.learned) else Bs
            places[weighted[number]] = replace(place, B=Bs)
        return jax.tree.map(_put_beside, jax.tree.unflatten(structure, places), params, is_leaf=_is_place)

    def places(self, net: Layer, params: Tree, saved: Tree, d_out: Tree) -> tuple[list["Place"], Any]:
        """The shapes at each leaf layer, first to last; and their structure."""
        asked = each_own(_asked, net)
        found = jax.eval_shape(lambda *of: asked.backward(*of, _places)[1], params, saved, d_out)
        return jax.tree.flatten(found, is_leaf=_is_place)

    def is_for(self, about: "About") -> None:
        """Raises `ValueError` for weights without a name, `ShapeError` for an inverse of a W that has none."""
        for name, shape in about.weights:
            if not name:
                raise ValueError(
                    f"feedback {self.name} takes layers whose weights have names, as in {{'W': …, 'b': …}}, got "
                    f"{about.name} with parameters without names: leave it out by layers = […]"
                )
            if self.name in ("inverse", "pinv") and len(shape) != 2:
                raise ShapeError(
                    f"feedback {self.name} takes a matrix {name}, got {about.name} with {name} of shape {shape}"
                )
            if self.name == "inverse" and shape[0] != shape[1]:
                raise ShapeError(
                    f"feedback inverse takes a square {name}, got {about.name} with {name} of shape {shape}, which has "
                    "no inverse: take pinv, or name the layers with square weights by layers = […]"
                )

    def drawn(self, place: "Place", number: int, outputs: tuple[int, ...]) -> dict[str, Any]:
        """B for each W of one layer, of a stack with its axis: entries N(0, scale²/n), n the numbers a unit takes in.

        So B sends an error back about as long as a W drawn by lecun_normal does. It is the same in every precision, and
        a constant of the compiled program. `direct` has one B for the layer; its n is the count of the layer's inputs.
        None where this feedback path draws nothing.
        """
        found: dict[str, Any] = {}
        for i, (name, inner) in enumerate(place.about.weights):
            W = place.Ws[name]
            shape, count = W.shape, math.prod(inner[1:])
            if self.matrix is None:
                shape, count = (*W.shape[: W.ndim - len(inner)], *place.about.x, *outputs), math.prod(place.about.x)
            if self.matrix is None and i:
                break
            found[name] = None
            if self.draws:
                with jax.ensure_compile_time_eval():
                    key = jax.random.fold_in(jax.random.key(self.seed), number)
                    key = jax.random.fold_in(key, i) if i else key
                    B = jax.random.normal(key, shape, jnp.float32) * (self.scale / math.sqrt(count))
                    found[name] = B.astype(W.dtype)
        return found

    def error(self, net: Layer, params: Tree, saved: Tree, d_out: Tree) -> Any:
        """e = δ of the last layer with weights, as backpropagation brings it there.

        Raises `ShapeError` where that is no vector.
        """
        asked = each_own(_asked, net)
        found = asked.backward(params, saved, d_out, Reading(_delta, out_axes=0))[1]
        errors = [node for node in jax.tree.leaves(found) if node is not None]
        if not errors or errors[-1].ndim != 1:
            came = f"δ of shape {errors[-1].shape} (a sequence, or a stack)" if errors else "none"
            raise ShapeError(
                f"feedback direct takes its error from the last layer with weights, whose δ must be a vector, got "
                f"{came}: end the network with a dense layer of its own"
            )
        return errors[-1]


@dataclass_tree
class Sent:
    """The feedback of a watched layer, and backpropagation's: B and W, or B e and Wᵀ δ."""

    instead: Any
    right: Any


class About(NamedTuple):
    """A leaf layer: its name, the shapes of its weights, of its input and of its output."""

    name: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    x: tuple[int, ...]
    out: tuple[int, ...]


@dataclass_tree
class Place:
    """A leaf layer's place in the tree of parameters. `about`: None where it has a feedback path of its own.

    Ws: its weights, arrays with the axes of the stacks around the layer. B: beside some of them.
    """

    about: Any = field(metadata={"static": True})
    Ws: Any = field(default_factory=dict)
    B: Any = field(default_factory=dict)


def each_own(change: Callable[[Layer], Layer], net: Layer) -> Layer:
    """The network with `change(leaf)` for each leaf layer that has no feedback path of its own."""
    if isinstance(net.rebuild, FeedbackPath):
        return net
    return change(net) if net.rebuild is None else net.rebuild(*(each_own(change, part) for part in net.parts))


def beside_in(params: Tree) -> dict[str, Beside]:
    """The weights of a leaf layer that have a B beside them."""
    return {k: v for k, v in params.items() if isinstance(v, Beside)} if isinstance(params, dict) else {}


def unstated(B: Any) -> Any:
    """B itself, where it is state."""
    return B.value if isinstance(B, Untrained) else B


def flat(matrices: dict[str, jax.Array]) -> jax.Array:
    """All entries of several matrices as one vector."""
    return jnp.concatenate([W.reshape(-1) for W in matrices.values()])


def weights_of(params: Tree) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The shapes of a leaf layer's weights: of the parameters with a capital letter, as in the equations."""
    if not isinstance(params, dict):
        return tuple(("", p.shape) for p in jax.tree.leaves(params))
    return tuple((k, params[k].shape) for k in sorted(params) if k[:1].isupper())


def _asked(leaf: Layer) -> Layer:
    """A leaf layer that hands over its `About` instead of its saved values."""

    def backward(params, saved, d_out, read):
        def at(passing):
            about = About(leaf.name, weights_of(params), passing.dx.shape, d_out.shape)
            return read.at(passing._replace(saved=Static(about)))

        return leaf.backward(params, saved, d_out, read._replace(at=at))

    return leaf._replace(backward=backward)


def _about(passing: Passing) -> About | None:
    found = passing.saved.value if isinstance(passing.saved, Static) else None
    return found if isinstance(found, About) else None


def _place(passing: Passing) -> Place:
    about = _about(passing)
    return Place(about, {k: jnp.zeros(shape, passing.d_out.dtype) for k, shape in (about.weights if about else ())})


def _delta(passing: Passing) -> Any:
    about = _about(passing)
    return passing.d_out if about and about.weights else None


def _is_place(node: Any) -> bool:
    return isinstance(node, Place)


def _put_beside(place: Place, params: Tree) -> Tree:
    if not place.B:
        return params
    return params | {name: Beside(params[name], B) for name, B in place.B.items() if name in params}


_places = Reading(_place, out_axes=0)


@maker(examples={'feedback(serial(dense(5), tanh, dense(3)), "random")': "float32[6]"})
def feedback(block: Layer, path: str | FeedbackPath, *, seed: int | None = None, scale: float | None = None) -> Layer:
    """A block whose error goes back by another path than Wᵀ; its parameters stay the same.

    `path`: a `FeedbackPath`, or its name. `seed`, `scale`: of a path given by name that draws or scales a matrix.
    Raises `ValueError` for another name, or an option that the path does not take.

    >>> feedback(dense(3), "random", seed=5)
    feedback(dense(3), random(seed=5))
    """
    given = {name: value for name, value in (("seed", seed), ("scale", scale)) if value is not None}
    if isinstance(path, str):
        paths = makers("feedback")
        if path not in paths:
            raise ValueError(f"a feedback path is one of {', '.join(paths)}, got {path!r}")
        unknown = [name for name in given if name not in paths[path].options]
        if unknown:
            raise ValueError(f'path = "{path}" takes no {" and no ".join(unknown)}: leave it out')
        return feedback(block, paths[path](given))
    if given:
        raise ValueError(f"{path!r} has its options already, got {', '.join(given)} beside it: leave them out")
    return path.around(block)


# ------------------------------------------------------------------------------------------------ looking at it


def feedback_paths_in(net: Layer) -> list[FeedbackPath]:
    """The feedback paths other than Wᵀ in a network, the outermost first."""
    own = [net.rebuild] if isinstance(net.rebuild, FeedbackPath) and net.rebuild.name != "transpose" else []
    return own + [path for part in net.parts for path in feedback_paths_in(part)]


def by_transpose(net: Layer) -> Layer:
    """The same network with Wᵀ for its feedback path throughout; its parameters are the same."""
    if isinstance(net.rebuild, FeedbackPath):
        return by_transpose(net.parts[0])
    return net if net.rebuild is None else net.rebuild(*map(by_transpose, net.parts))


def watched(net: Layer) -> Layer:
    """The same network; each layer with another feedback path hands readings a `Sent` as its saved value."""
    if isinstance(net.rebuild, FeedbackPath):
        return net.rebuild._replace(watched=True)(watched(net.parts[0]))
    return net if net.rebuild is None else net.rebuild(*map(watched, net.parts))
