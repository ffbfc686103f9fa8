"""Functions of NumPy, PyTorch and plain Python as JAX functions: called with arrays in host memory, never traced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnet.checking.author import functions_of
from jaxnet.checking.subject import Tree, is_array

STEP = 1e-4  # of central differences in float64


def on_host(function: Callable, sample: tuple = ()) -> OnHost:
    """`function` as a JAX function that calls it, so it may be compiled and mapped, and has no derivative.

    Args:
        function: takes and gives trees of NumPy arrays; other leaves are passed on as they are.
        sample: arguments that it takes. It is called once for each shape, to learn the shapes of its results: with the
            sample where the shapes are the same, else with random numbers.

    >>> import numpy as np
    >>> jax.jit(on_host(np.cumsum))(jnp.asarray([1.0, 2.0, 4.0])).tolist()
    [1.0, 3.0, 7.0]
    """
    return OnHost(function, tuple(jax.tree.leaves(sample)))


@dataclass(frozen=True, eq=False)
class OnHost:
    """A function of NumPy: with arrays it runs at once, with traced values JAX calls it back."""

    function: Callable
    known: tuple

    def directly(self, *args: Tree) -> Tree:
        """The function of copies of NumPy arrays, since it may write to them; a scalar is a number."""
        host = jax.tree.map(lambda leaf: np.array(leaf)[()] if is_held(leaf) else leaf, args)
        with same_draws(), np.errstate(all="ignore"):
            return jax.tree.map(as_array, self.function(*host))

    def __call__(self, *args: Tree) -> Tree:
        """The function's results; where JAX traces, those of a callback."""
        leaves, treedef = jax.tree.flatten(args)
        if not any(isinstance(leaf, Tracer) for leaf in leaves):
            return self.directly(*args)
        places = [i for i, leaf in enumerate(leaves) if is_held(leaf)]

        def run(*values):
            full = list(leaves)
            for i, value in zip(places, values, strict=True):
                full[i] = value
            return self.directly(*jax.tree.unflatten(treedef, full))

        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype),
            run(*(like(leaves[i], self.known[i : i + 1]) for i in places)),
        )

        def typed(*values):  # with float64 on, NumPy may give that where float32 was traced
            return jax.tree.map(lambda out, shape: out.astype(shape.dtype), run(*values), shapes)

        return jax.pure_callback(typed, shapes, *(leaves[i] for i in places), vmap_method="sequential")


@contextmanager
def same_draws() -> Iterator[None]:
    """Inside, NumPy's own generator begins at one state, so that a mask is the same in every call."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def with_same_draws(function: Callable) -> Callable:
    """`function`, with NumPy's own generator at one state whenever it is called or traced."""

    @wraps(function)
    def call(*args):
        with same_draws():
            return function(*args)

    return call


def slope_along(function: Callable[[Sequence], Any], at: Sequence, directions: Sequence) -> float:
    """The slope of a number, `function(values)`, along directions: its central difference.

    >>> round(slope_along(lambda values: values[0] ** 2, [3.0], [1.0]), 6)
    6.0
    """
    up, down = (function([x + h * d for x, d in zip(at, directions, strict=True)]) for h in (STEP, -STEP))
    return float(up - down) / (2 * STEP)


def is_held(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers."""
    return isinstance(leaf, jax.Array | np.ndarray) and is_data(leaf)


class NumpyInJax(ModuleType):
    """`numpy`, with the functions of `jax.numpy` where it has them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(jnp, name, None) or getattr(np, name)


def in_jax(function: Callable, parts: tuple) -> Callable:
    """A function of NumPy as one that JAX traces: `numpy` is `jax.numpy` in the globals of all that `parts` call.

    >>> def root(x):
    ...     return np.sqrt(x)
    >>> float(jax.grad(in_jax(root, (root,)))(4.0))
    0.25
    """
    functions = functions_of(*parts)

    def call(*args):
        places = [(f.__globals__, name) for f in functions for name, value in f.__globals__.items() if value is np]
        for space, name in places:
            space[name] = NumpyInJax("numpy")
        try:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return function(*args)
        finally:
            for space, name in places:
                space[name] = np

    return call


def is_data(leaf: Any) -> bool:
    """Whether an array holds numbers: a float0 has none."""
    return leaf.dtype != jax.dtypes.float0


def as_array(value: Any) -> np.ndarray:
    """A result as an array in a dtype that JAX has."""
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"a function must give arrays and numbers, got {type(value).__name__}")
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def like(leaf: Any, sample: Sequence) -> np.ndarray:
    """Numbers of a leaf's shape and dtype: the sample's, or random ones, and zeros for integers and booleans."""
    if sample and is_array(sample[0]) and np.shape(sample[0]) == leaf.shape:
        return np.asarray(sample[0]).astype(leaf.dtype)
    drawn = np.random.default_rng(0).uniform(0.1, 0.9, leaf.shape)
    return (drawn if jnp.issubdtype(leaf.dtype, jnp.inexact) else np.zeros(leaf.shape)).astype(leaf.dtype)


def is_torch_function(rule: Any) -> bool:
    """Whether `rule` is a `torch.autograd.Function`; PyTorch is not imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(rule, type) and issubclass(rule, torch.autograd.Function)


def torch_gradients(function: Callable) -> tuple[Callable, Callable]:
    """(forward, run) of a PyTorch function of arrays: forward(*args) -> out, run(args, d_out) -> out, gradients."""
    torch: Any = sys.modules["torch"]

    def tensor(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray | np.generic) or not is_data(leaf):
            return leaf
        made = torch.tensor(leaf)
        return made.requires_grad_(made.is_floating_point() or made.is_complex())

    def host(tree: Tree) -> Tree:
        return jax.tree.map(lambda t: t.detach().resolve_conj().numpy() if isinstance(t, torch.Tensor) else t, tree)

    def forward(*args):
        return host(function(*jax.tree.map(tensor, args)))

    def run(args, d_out):
        given = jax.tree.map(tensor, args)
        out = function(*given)
        pairs = zip(jax.tree.leaves(out), jax.tree.leaves(d_out), strict=True)
        outs, cotangents = zip(*((o, torch.tensor(d)) for o, d in pairs if o.requires_grad), strict=True)
        leaves, treedef = jax.tree.flatten(given)
        moving = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        found = iter(torch.autograd.grad(outs, moving, cotangents, allow_unused=True))
        grads = [next(found) if any(leaf is each for each in moving) else None for leaf in leaves]
        return host(out), host(jax.tree.unflatten(treedef, grads))

    return forward, run


def torch_primal(function: Callable, sample: tuple) -> Callable:
    """A PyTorch function of arrays as a JAX function with PyTorch's own derivative."""
    forward, run = torch_gradients(function)
    primal = jax.custom_vjp(on_host(forward, sample))

    def backward(args, d_out):
        return on_host(lambda args, d_out: run(args, d_out)[1])(args, d_out)

    primal.defvjp(lambda *args: (primal(*args), args), backward)
    return primal
