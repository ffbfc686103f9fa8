"""Kronecker-factored curvature: the block of G for each W as A ⊗ B, from the two sides of its factor δ aᵀ.

    A = mean of a aᵀ over examples and positions       (in, in)
    B = Σ of s sᵀ over examples, positions and columns (out, out)     s: the backward pass of S u in the place of δ
    KFLR: every column; KFAC: random ones               G ≈ A ⊗ B: exact of one example, and where all layers are linear
    KFRA: B = Ḡ at the layer's output                   Ḡ at its input: the mean of Jᵀ Ḡ J; Wᵀ Ḡ W, Ḡ ⊙ mean of g′ g′ᵀ
    EKFAC: A and B give the axes, the second moment along them the lengths

Of a bias, B alone is its block (exact); of anything else (scales of a norm, rows of an embedding) the diagonal stands.

Sources: Martens and Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015; Grosse and
Martens, A Kronecker-factored approximate Fisher matrix for convolution layers, 2016; Botev, Ritter and Barber,
Practical Gauss-Newton Optimisation for Deep Learning, 2017; George et al., Fast Approximate Natural Gradient Descent in
a Kronecker-factored Eigenbasis, 2018.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxnet.backprop import keys_for, mean_weights, size
from jaxnet.factors import Factor, Outer, Plain, dataclass_tree, is_factor
from jaxnet.layer import Layer, Loss, Reading, Tree, adapted, on_leaves, output, with_state
from jaxnet.layers.conv import Patches
from jaxnet.quantities.curvature import over_columns, root_of
from jaxnet.quantities.parameter_uses import Rearranged, Stacked
from jaxnet.readings import Beside, bare, each, nothing, sum_over_examples, total_of


@dataclass_tree
class Block:
    """The curvature of one parameter. As a matrix (out, in): A ⊗ B; a vector: B; else None and the diagonal."""

    A: Any = None  # (in, in)
    B: Any = None  # (out, out)
    diagonal: Any = None  # the shape of the parameter


def as_outer(factor: Factor) -> Outer | None:
    """A factor as δ aᵀ, of a bias with a = 1; None where it is not of this form."""
    if isinstance(factor, Patches) and factor.groups == 1:
        return factor.outer()
    if isinstance(factor, Plain) and factor.delta.ndim - factor.sums == 1:
        return Outer(factor.multiply(), jnp.ones(1, factor.delta.dtype))
    return factor if isinstance(factor, Outer) else None


def _stacked(factor: Factor) -> Factor:
    """A factor of another library's model in the order in which its product was taken: a stack of δ aᵀ."""
    if isinstance(factor, Rearranged):
        return _stacked(factor.factor)
    return replace(factor, factor=_stacked(factor.factor)) if isinstance(factor, Stacked) else factor


def _gram(factor: Factor, side: str) -> Factor | None:
    """The factor of Σ δ δᵀ or Σ a aᵀ, in a stack of each layer; None where there are no two sides."""
    if isinstance(factor, Stacked):
        inner = _gram(factor.factor, side)
        return None if not isinstance(inner, Outer | Stacked) else replace(factor, factor=inner)
    outer = as_outer(factor)
    return None if outer is None else Outer(getattr(outer, side), getattr(outer, side), outer.sums)


def _block(factor, p):
    whole = _stacked(factor)
    delta, a = (_gram(whole, side) for side in ("delta", "a"))
    if delta is None or a is None:
        return Block(diagonal=total_of(factor.squared(), p))
    summed = sum_over_examples(None)
    B = summed(delta)
    if isinstance(factor, Plain):
        return Block(B=B)
    A, rows = summed(a), jax.tree.leaves(a)[0].shape
    return Block(A * (math.prod(A.shape[:-1]) / math.prod(rows)), B)


blocks = Reading(each(_block), out_axes=None, additive=True)
"""For each parameter Σ a aᵀ / positions and Σ δ δᵀ over the examples: of δ itself those of the empirical Fisher matrix.

Of another library's model (`sinks.read`) A is of the inputs and B of the outputs, whatever the layout of its matrix.
"""


def is_block(node: Any) -> bool:
    """Whether a node of a tree is a `Block`."""
    return isinstance(node, Block)


def kronecker(net: Layer, loss: Loss, *, samples: int | None = 1) -> Callable:
    """A and B for each parameter, as a tree of `Block`s: by `samples` random columns (KFAC), None for all (KFLR).

    Returns `(params, xs, ys, *, key=None, state=None, train=False, weights=None) -> blocks`.
    Raises `ValueError` for a loss without a root, and for samples without a key.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> found = kronecker(net, softmax_cross_entropy)(params, xs, ys, key=jax.random.key(1))
    >>> found["W"].A.shape, found["W"].B.shape, found["b"].B.shape
    ((4, 4), (2, 2), (2, 2))
    """
    columns = over_columns(net, loss, blocks, samples)

    def batch(params, xs, ys, *, key=None, state=None, train=False, weights=None):
        found = columns(params, xs, ys, key=key, state=state, train=train, weights=weights)
        # A does not depend on the column: the sum over all of them counted it so often.
        out = output(net, with_state(params, state), jax.tree.map(lambda t: t[0], xs), train)
        times = size(xs) * (out.size if samples is None else 1)
        return jax.tree.map(
            lambda t: t if t.A is None else Block(t.A / times, t.B, t.diagonal), found, is_leaf=is_block
        )

    return batch


# ------------------------------------------------------------------------------------------------------------ averages


def kfra(net: Layer, loss: Loss) -> Callable:
    """A and B for each parameter by one averaged matrix from layer to layer: no columns, and nothing random.

    Takes chains (`serial`) in which each layer with parameters is linear in them, dense or a convolution. An activation
    of n units needs n² numbers for each example. Returns `(params, xs, ys, *, key=None, train=False) -> blocks`.
    Raises `ValueError` for other networks, and for a loss without a root.
    Source: Botev, Ritter and Barber, 2017; of convolutions as in `kronecker`, Σ over the positions.

    >>> net, xs, ys = serial(dense(5), tanh, dense(2)), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> found = kfra(net, softmax_cross_entropy)(params, xs, ys)
    >>> found[0]["W"].A.shape, found[0]["W"].B.shape
    ((4, 4), (5, 5))
    """
    root = root_of(loss)

    def batch(params, xs, ys, *, key=None, train=False):
        outs, saved = jax.vmap(lambda x, key: net.forward(params, x, key, train))(xs, keys_for(key, xs))
        shape = outs.shape[1:]
        units = jnp.eye(math.prod(shape), dtype=outs.dtype).reshape(-1, *shape)

        def hessian(out, y, weight):  # S Sᵀ
            return jax.vmap(lambda u: root(out, y, weight, root(out, y, weight, u, True)))(units)

        G = jax.vmap(hessian)(outs, ys, mean_weights(loss, ys)).sum(0)
        return _averaged(net, params, saved, G, size(xs))[1]

    return batch


def _averaged(net: Layer, params: Tree, saved: Tree, G: jax.Array, examples: int) -> tuple[jax.Array, Tree]:
    """From Ḡ at the output, (n, *out), to Ḡ at the input and the blocks; `saved` of each example."""
    if net.rebuild is None:
        return _averaged_leaf(net, params, saved, G, examples)
    if net.maker != "serial":
        raise ValueError(f"kfra takes a chain of layers, got {net.name} in it: take kronecker, which takes any network")
    found = []
    for layer, p, s in reversed([*zip(net.parts, params, saved, strict=True)]):
        G, blocks = _averaged(layer, p, s, G, examples)
        found.append(blocks)
    return G, tuple(reversed(found))


def _averaged_leaf(layer: Layer, params: Tree, saved: Tree, G: jax.Array, examples: int) -> tuple[jax.Array, Tree]:
    """Of one layer: the mean of Jᵀ Ḡ J over the examples, and A and B of each parameter."""

    def at_example(saved):
        def J_T(d_outs):
            return jax.vmap(lambda d_out: layer.backward(params, saved, d_out, nothing)[0])(d_outs)

        GJ = J_T(G).reshape(len(G), -1)
        JGJ = J_T(GJ.T.reshape(-1, *G.shape[1:]))
        return jax.lax.pmean(JGJ, "examples"), layer.backward(params, saved, G[0], linear_blocks(layer))[1]

    def of_mean(block):
        C = len(block.B)
        by_position = G.reshape(len(G) // C, C, -1, C)
        if block.A is None:
            return Block(B=jnp.einsum("pcqd->cd", by_position))
        return Block(block.A / examples, jnp.einsum("pcpd->cd", by_position))

    through = jax.vmap(at_example, out_axes=None, axis_name="examples", axis_size=examples)
    G_in, sums = through(saved)
    return G_in, jax.tree.map(of_mean, sums, is_leaf=is_block)


def linear_blocks(layer: Layer) -> Reading:
    """`blocks` of a layer whose error at the output is each parameter's δ; other layers are refused."""

    def at(passing):
        found = blocks.at(passing)
        linear = all(f.delta is passing.d_out for f in jax.tree.leaves(passing.factors, is_leaf=is_factor))
        if not linear or any(block.B is None for block in jax.tree.leaves(found, is_leaf=is_block)):
            raise ValueError(
                f"kfra takes layers that are linear in their parameters (dense, convolutions), got {layer.name}: take "
                "kronecker, which takes any network"
            )
        return found

    return Reading(at, out_axes=None)


# ------------------------------------------------------------------------------------------------ axes and lengths


def between(left: jax.Array, g: jax.Array, right: jax.Array | None) -> jax.Array:
    """left g right, g as the matrix (out, in); leading axes are stacks of layers, and right is None for a vector g."""
    rows = jnp.matmul(left, g.reshape(*left.shape[:-1], -1))
    return (rows if right is None else jnp.matmul(rows, right)).reshape(g.shape)


@dataclass_tree
class Axes:
    """The curvature of one parameter in a basis of its own: W′ = Bᵀ W A, and along each entry of W′ its length."""

    A: Any  # (in, in), orthogonal; None where the parameter's own axes stand
    B: Any  # (out, out)
    lengths: Any  # of W′, in the shape of the parameter

    def turned(self, g: jax.Array, back: bool = False) -> jax.Array:
        """g in this basis, or back from it."""
        if self.B is None:
            return g
        if back:
            return between(self.B, g, None if self.A is None else self.A.mT)
        return between(self.B.mT, g, self.A)

    def solved(self, g: jax.Array, damping) -> jax.Array:
        """(G + damping)⁻¹ g."""
        return self.turned(self.turned(g) / (self.lengths + damping), back=True)


def is_axes(node: Any) -> bool:
    """Whether a node of a tree is an `Axes`."""
    return isinstance(node, Axes)


def axes(blocks: Tree, params: Tree) -> Tree:
    """The eigenvectors of A and B for each parameter, and a_i b_j as the lengths: of A ⊗ B as it stands."""

    def of(block, p):
        if block.B is None:
            return Axes(None, None, block.diagonal)
        b, B = jnp.linalg.eigh(block.B)
        if block.A is None:
            return Axes(None, B, b.reshape(p.shape))
        a, A = jnp.linalg.eigh(block.A)
        lengths = jnp.maximum(b, 0)[..., :, None] * jnp.maximum(a, 0)[..., None, :]
        return Axes(A, B, lengths.reshape(p.shape))

    return jax.tree.map(of, blocks, params, is_leaf=is_block)


def solve(axes: Tree, grads: Tree, damping: float | jax.Array) -> Tree:
    """(G + damping)⁻¹ grads, block by block.

    >>> blocks = {"b": Block(B=jnp.diag(jnp.array([1.0, 3.0])))}
    >>> g = {"b": jnp.array([4.0, 4.0])}
    >>> print(solve(axes(blocks, g), g, 1.0)["b"])
    [2. 1.]
    """
    return jax.tree.map(lambda a, g: a.solved(g, damping), axes, grads, is_leaf=is_axes)


def with_beside(net: Layer) -> Layer:
    """The network for a tree of `Beside`s in the place of its parameters; a reading meets them as they are."""

    return on_leaves(lambda layer: adapted(layer, bare), net)


def _turned(factor, beside):
    """(Bᵀ δ (Aᵀ a)ᵀ)², the second moment along the axes."""
    own, outer = beside.own, as_outer(factor)
    if own.B is None or outer is None:
        return sum_over_examples(None)(factor.squared())
    if own.A is None:
        return sum_over_examples(None)(Plain(jnp.square(outer.delta @ own.B)))
    turned = Outer(outer.delta @ own.B, outer.a @ own.A, outer.sums)
    return sum_over_examples(None)(turned.squared()).reshape(beside.p.shape)


along_axes = Reading(each(_turned), out_axes=None, additive=True)
"""Σ (∂C/∂W′)² over the examples, W′ = Bᵀ W A: for parameters with their `Axes` beside them."""


def ekfac(net: Layer, loss: Loss, *, samples: int | None = 1) -> Callable:
    """The eigenvalue-corrected `Axes` of each parameter: the axes of A ⊗ B, the lengths the second moment along them.

    Returns `(params, xs, ys, blocks=None, *, key=None, state=None, train=False, weights=None) -> axes`; `blocks`: those
    of `kronecker`, of other data, made of this batch where there are none.
    Raises `ValueError` for a loss without a root, and for samples without a key. Source: George et al., 2018.

    >>> net, xs, ys = dense(2), jnp.ones((3, 4)), jnp.array([0, 1, 1])
    >>> params = net.init(jax.random.key(0), xs[0])
    >>> found = ekfac(net, softmax_cross_entropy, samples=None)(params, xs, ys)
    >>> found["W"].lengths.shape
    (2, 4)
    """
    factors = kronecker(net, loss, samples=samples)
    squares = over_columns(with_beside(net), loss, along_axes, samples)

    def batch(params, xs, ys, blocks=None, **given):
        basis = axes(factors(params, xs, ys, **given) if blocks is None else blocks, params)
        both = jax.tree.map(Beside, params, basis)
        lengths = squares(both, xs, ys, **given)
        return jax.tree.map(lambda a, t: Axes(a.A, a.B, t), basis, lengths, is_leaf=is_axes)

    return batch
