"""What agreement of two implementations means: one tree, one dtype, one shape, numbers as close as noise allows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

FLOAT64_NOISE = 1e-12  # of the largest entry of the whole tree


def wide(tree):
    """Every leaf as a NumPy array of float64."""
    return [np.asarray(jnp.asarray(leaf, jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, np.float64)
            for leaf in jax.tree.leaves(tree)]  # fmt: skip


def largest(tree) -> float:
    """The largest magnitude in a tree; 1 where it is empty or all zero."""
    return max((float(np.max(np.abs(leaf), initial=0)) for leaf in wide(tree)), default=0.0) or 1.0


def distance(actual, expected) -> float:
    """The largest difference between two trees of the same structure and shapes, over the largest entry expected."""
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_equal_shapes(actual, expected)
    pairs = zip(wide(actual), wide(expected), strict=True)
    differences = [float(np.max(np.abs(one - other), initial=0)) for one, other in pairs]
    assert not np.isnan(differences).any(), "a NaN among the numbers"
    return max(differences, default=0.0) / largest(expected)


def assert_agree(actual, expected, tolerance: float = FLOAT64_NOISE) -> None:
    """Structure, shapes, dtypes, and numbers within `tolerance` of the largest entry of the tree."""
    actual, expected = (jax.tree.map(jnp.asarray, tree) for tree in (actual, expected))
    chex.assert_trees_all_equal_structs(actual, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    assert distance(actual, expected) <= tolerance


def assert_as_exact(ours, theirs, exact, dtype, ulps: float = 4.0) -> None:
    """`ours` is as near to `exact` (float64) as `theirs` in the same dtype: twice its error, or a few ulps."""
    chex.assert_trees_all_equal_structs(ours, theirs)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, theirs)
    allowed = max(2 * distance(theirs, exact), ulps * float(jnp.finfo(dtype).eps))
    assert distance(ours, exact) <= allowed


def on_device(host, dtype) -> jax.Array:
    """Numbers as an array of JAX's, converted by NumPy: `jnp.asarray` and `astype` compile a program for each shape."""
    return jax.device_put(np.asarray(host).astype(dtype))


def normal(seed: int, shape, scale: float = 1.0) -> jax.Array:
    """Normal numbers in float32, which every wider dtype holds exactly; drawn by NumPy, which compiles nothing."""
    return on_device(scale * np.random.default_rng(seed).standard_normal(shape), np.float32)


def uniform(seed: int, shape, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Uniform numbers in float32."""
    return on_device(np.random.default_rng(seed).uniform(low, high, shape), np.float32)


def integers(seed: int, shape, below: int) -> jax.Array:
    """Whole numbers from 0 to below − 1."""
    return on_device(np.random.default_rng(seed).integers(0, below, shape), np.int32)


def random_like(seed: int, tree, scale: float = 0.5):
    """Normal numbers with the structure and shapes of a tree, in its dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    drawn = [on_device(normal(100 * seed + i, leaf.shape, scale), leaf.dtype) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def cast(tree, dtype):
    """The floating leaves of a tree in another dtype."""
    return jax.tree.map(lambda t: on_device(t, dtype) if jnp.issubdtype(t.dtype, jnp.floating) else t, tree)
