"""A parameter's gradient, kept as the factors that it is the product of, until somebody reads it.

∇_W C of a dense layer is δ aᵀ: two vectors that say all that a matrix would. A factor sums over its first `sums` axes
(positions of a sequence, time steps, examples). It is bilinear: scaling its leaves by c scales the gradient by c²,
so factors never leave the library; users get arrays.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from jaxnet.lowering import form, op, products
from jaxnet.lowering.products import accumulated, product

Cls = TypeVar("Cls", bound=type)


@dataclass_transform(frozen_default=True)
def dataclass_tree(cls: Cls) -> Cls:
    """A frozen dataclass that is a pytree."""
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


class Factor(abc.ABC):
    """∂C/∂p of one parameter p, not multiplied out."""

    @abc.abstractmethod
    def multiply(self, out_sharding=None) -> jax.Array:
        """∂C/∂p with the shape of p. `out_sharding` is p's, on a mesh with explicit axes."""

    @abc.abstractmethod
    def summed_once_more(self) -> Factor:
        """The sum over a new leading axis of the factor's leaves."""

    def weighted(self, c: jax.Array) -> jax.Array:
        """Σ_x c_x ∂C_x/∂p, where the leaves have the examples as leading axis: each δ times its c."""
        delta = self.delta  # pyright: ignore
        scaled = delta * c.reshape(-1, *[1] * (delta.ndim - 1))
        return replace(self, delta=scaled.astype(delta.dtype)).summed_once_more().multiply()  # pyright: ignore

    def condensed(self) -> Factor:
        """The same gradient in fewer numbers: multiplied out where that is no larger than the factors."""
        return self

    def projected(self, P: jax.Array) -> Factor:
        """The factor of PᵀG, P: (out, rank) on the first axis of the gradient G."""
        return Plain(jnp.tensordot(P, self.multiply(), (0, 0)))

    def squared(self) -> Factor:
        """The factor of (∂C/∂p)², entry by entry."""
        return Plain(jnp.square(self.multiply()))

    def squared_norm(self) -> jax.Array:
        """‖∂C/∂p‖²."""
        return self.gram(self)

    def gram(self, other: Factor) -> jax.Array:
        """The inner product ⟨∂C/∂p, ∂C′/∂p⟩ with another factor of the same parameter."""
        return jnp.vdot(self.multiply(), other.multiply())


def sum_of_outer_plain(delta, a, *, out_sharding) -> jax.Array:
    """Σₜ δₜ aₜᵀ = δᵀ a, of a row for each t."""
    return product(delta.T, a, out_sharding)


def inner_products_plain(a, b) -> jax.Array:
    """aₛ·bₜ for each s and t: a bᵀ, of a row for each."""
    return product(a, b.T)


sum_of_outer = op(
    sum_of_outer_plain,
    cpu=form(products.sum_of_outer, when=lambda delta, a, out_sharding: products.can_be_laid_out(delta), manual=True),
)
inner_products = op(
    inner_products_plain, cpu=form(products.inner_products, when=lambda a, b: products.can_be_laid_out(b), manual=True)
)


@dataclass_tree
class Outer(Factor):
    """∇_W C = Σ δ aᵀ over the first `sums` axes."""

    delta: Any  # (…, out)
    a: Any  # (…, in)
    sums: int = field(default=0, metadata={"static": True})

    def rows(self):
        """δ and a as matrices, one row for each term of the sum, in the dtype that a was saved in."""
        delta = self.delta.astype(self.a.dtype)
        return delta.reshape(-1, delta.shape[-1]), self.a.reshape(-1, self.a.shape[-1])

    def multiply(self, out_sharding=None):
        # Two dimensions first: a contraction over several axes at once copies its operands on a CPU.
        return sum_of_outer(*self.rows(), out_sharding=out_sharding)

    def summed_once_more(self):
        return replace(self, sums=self.sums + 1)

    def condensed(self):
        outs, ins = self.delta.shape[-1], self.a.shape[-1]
        return Plain(self.multiply()) if outs * ins <= self.delta.size + self.a.size else self

    def projected(self, P):
        return replace(self, delta=self.delta @ P.astype(self.delta.dtype))

    def squared(self):
        # (δ aᵀ)² = δ² (a²)ᵀ, of one term.
        return super().squared() if self.sums else Outer(jnp.square(self.delta), jnp.square(self.a))

    def gram(self, other):
        delta, a = self.rows()
        (terms, outs), ins = delta.shape, a.shape[-1]
        # Σₛₜ (δₛ·δ′ₜ)(aₛ·a′ₜ), where that is less work than multiplying out.
        if not isinstance(other, Outer) or terms * (outs + ins) >= outs * ins:
            return super().gram(other)
        other_delta, other_a = other.rows()
        return jnp.sum(inner_products(delta, other_delta) * inner_products(a, other_a))


@dataclass_tree
class Plain(Factor):
    """∇_b C = Σ δ over the first `sums` axes."""

    delta: Any
    sums: int = field(default=0, metadata={"static": True})

    def multiply(self, out_sharding=None):
        return self.delta.sum(tuple(range(self.sums)), dtype=accumulated(self.delta.dtype))

    def weighted(self, c):
        if self.delta.ndim == 2:  # of a bias: c δ is at hand, for W takes it
            return super().weighted(c)
        # A product: on a CPU a loop that multiplies and adds whole matrices takes eight times as long.
        each = jax.vmap(lambda one: one.multiply())(self)
        return jnp.tensordot(c.astype(each.dtype), each, 1)

    def summed_once_more(self):
        return replace(self, sums=self.sums + 1)


@dataclass_tree
class FactorSum(Factor):
    """The gradient of a parameter with several uses: the sum over the uses."""

    uses: tuple[Factor, ...]

    def multiply(self, out_sharding=None):
        first, *others = (use.multiply(out_sharding) for use in self.uses)
        return sum(others, start=first)

    def summed_once_more(self):
        return FactorSum(tuple(use.summed_once_more() for use in self.uses))

    def weighted(self, c):
        return sum((use.weighted(c) for use in self.uses), start=jnp.zeros(()))

    def condensed(self):
        uses = tuple(use.condensed() for use in self.uses)
        return Plain(self.multiply()) if all(isinstance(use, Plain) for use in uses) else FactorSum(uses)

    def projected(self, P):
        return FactorSum(tuple(use.projected(P) for use in self.uses))

    def gram(self, other):
        # ‖f + g‖² = ‖f‖² + 2⟨f, g⟩ + ‖g‖²: the norms of the uses alone would miss the cross terms.
        others = other.uses if isinstance(other, FactorSum) else (other,)
        return sum((use.gram(another) for use in self.uses for another in others), start=jnp.zeros(()))


def is_factor(node) -> bool:
    """Whether a node of a tree is a factor: `is_leaf` for trees of them."""
    return isinstance(node, Factor)
