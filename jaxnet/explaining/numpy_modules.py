"""NumPy modules as networks of jaxnet, with their own weights, where each of their layers is known by its values.

A layer is known by its numbers at random inputs, whatever its name: an activation, or W x + b of the arrays that it
holds. A module is a list of layers, or an object that holds them, or one that holds its W and b itself.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.combinators import serial
from jaxnet.explaining.notation import ExplainError
from jaxnet.layer import Layer, Loss, Tree
from jaxnet.layers import identity
from jaxnet.layers.activations import ACTIVATIONS, softmax
from jaxnet.layers.dense import dense

KNOWN: dict[str, Layer] = {"identity": identity, **ACTIVATIONS, "softmax": softmax}
METHODS = ("forward", "__call__", "predict", "feedforward")
DRAWS = 8
Part = tuple[Layer, Tree]


def is_numpy_module(thing: Any) -> bool:
    """Whether an object is a list of layers, or one with a forward pass that holds arrays or layers."""
    if isinstance(thing, Layer | Loss | types.FunctionType) or hasattr(thing, "__wrapped__"):
        return False
    if isinstance(thing, list | tuple):
        return bool(thing) and all(map(runs, thing))
    return runs(thing) and bool(arrays_of(thing) or layers_of(thing))


def runs(thing: Any) -> bool:
    """Whether something that is no class has a forward pass."""
    known = isinstance(thing, type | Layer | Loss | np.ndarray | jax.Array)
    return not known and any(callable(getattr(thing, name, None)) for name in METHODS)


def held(thing: Any) -> dict[str, Any]:
    """The members of an object by name, the entries of its dictionaries and lists of arrays too."""
    own = dict(getattr(thing, "__dict__", {}))
    for name, value in list(own.items()):
        if isinstance(value, dict):
            own |= {str(key): each for key, each in value.items()}
        elif isinstance(value, list | tuple) and value and all(isinstance(each, np.ndarray) for each in value):
            own |= {f"{name}{i}": each for i, each in enumerate(value)}
    return own


def arrays_of(thing: Any) -> dict[str, np.ndarray]:
    """The arrays of floats that an object holds, without those named after another: dW, grad_W, W_velocity."""
    found = {name: of for name, of in held(thing).items() if isinstance(of, np.ndarray) and of.dtype.kind == "f"}
    after = {name for name in found for of in found if (name != of and name.endswith(of)) or name.startswith(f"{of}_")}
    return {name: of for name, of in found.items() if name not in after}


def layers_of(thing: Any) -> list[Any]:
    """The layers of a module in their order: a list that it is or holds, or else its attributes."""
    values = [thing] if isinstance(thing, list | tuple) else list(held(thing).values())
    listed = [each for each in values if isinstance(each, list | tuple) and each and all(map(runs, each))]
    bare = [each for each in values if runs(each) and not isinstance(each, types.FunctionType)]
    return list(listed[0]) if listed else bare


def called(thing: Any) -> str:
    """A layer's name: that of its function or class."""
    return getattr(thing, "__name__", type(thing).__name__)


def given_by(thing: Any, xs: np.ndarray) -> np.ndarray:
    """The output of a forward pass for each vector; where it takes no vector, for a column, or a row."""
    forward: Callable = next(found for name in METHODS if callable(found := getattr(thing, name, None)))
    failed: Exception | None = None
    for shape in ((-1,), (-1, 1), (1, -1)):
        try:
            outs = [np.asarray(forward(x.reshape(shape)), np.float64) for x in xs]
        except (ValueError, TypeError, IndexError) as error:
            failed = failed or error
            continue
        if all(out.size == max(out.shape, default=0) for out in outs):  # a column and a row added make a matrix
            return np.stack([out.reshape(-1) for out in outs])
    said = failed or "it gives no vector"
    raise ExplainError(f"{called(thing)} does not run at {xs.shape[1]} numbers: {said}: give other --inputs")


def network_in_numpy(module: Any, width: int) -> tuple[Layer, Tree]:
    """The layers of a module in series, and its weights, at inputs of so many numbers.

    Raises `ExplainError` that names the layers that are not known, or says that the forward pass is not all of them.
    """
    xs = first = 3 * np.random.default_rng(0).standard_normal((DRAWS, width))
    layers, own, parts, unknown = layers_of(module), arrays_of(module), [], []
    for layer in layers:
        arrays, outs = arrays_of(layer), given_by(layer, xs)  # in this order: a forward pass may keep its values
        found = parts_of(arrays, xs, outs)
        unknown += [called(layer)] if found is None else []
        parts, xs = [*parts, *(found or ())], outs
    whole = xs if isinstance(module, list | tuple) else given_by(module, first)
    if not layers:
        found = parts_of(own, first, whole)
        parts, unknown = found or [], [] if found else [called(module)]
    if unknown:
        raise ExplainError(
            f"a NumPy module is explained if each of its layers is W x + b, {' or '.join(KNOWN)}, got "
            f"{', '.join(dict.fromkeys(unknown))}, which gives something else: write it as a function of arrays"
        )
    if not same(applied(parts, first), whole):
        raise ExplainError(
            f"a NumPy module is explained if it runs its layers one after the other, got {called(module)}, whose own "
            "forward pass gives something else: write it as a function of arrays"
        )
    return serial(*(layer for layer, _ in parts)), tuple(params for _, params in parts)


def parts_of(arrays: dict[str, np.ndarray], xs: np.ndarray, outs: np.ndarray) -> list[Part] | None:
    """The layers that give the same numbers: W x + b of each matrix among arrays, each with an activation.

    All activations but the last are the same. b is an array whose name begins so, or one of a single axis.
    """
    vectors = [each.reshape(-1) for name, each in arrays.items() if each.ndim == 1 or name.lower().startswith("b")]
    matrices = [each for name, each in arrays.items() if each.ndim == 2 and not name.lower().startswith("b")]
    biased = len(vectors) == len(matrices)
    for laid in itertools.product(*((W, W.T) for W in matrices)):
        widths = [xs.shape[1], *(len(W) for W in laid)]
        if [W.shape[1] for W in laid] != widths[:-1] or (biased and [len(b) for b in vectors] != widths[1:]):
            continue
        given = [{"W": W, "b": b} for W, b in zip(laid, vectors, strict=True)] if biased else [{"W": W} for W in laid]
        for hidden, last in itertools.product(KNOWN, repeat=2) if len(laid) > 1 else zip(KNOWN, KNOWN, strict=True):
            parts: list[Part] = [] if laid else [(KNOWN[last], ())]
            for i, params in enumerate(given, 1):
                name = last if i == len(given) else hidden
                wide = {key: each.astype(np.float32) for key, each in params.items()}
                parts.append((dense(len(wide["W"]), bias=biased), wide))
                parts += [(KNOWN[name], ())] if name != "identity" else []
            if same(applied(parts, xs), outs):
                return parts
    return None


def applied(parts: Sequence[Part], xs: np.ndarray) -> np.ndarray:
    """The output of layers in series for each vector."""
    values = jnp.asarray(xs, jnp.float32)
    for layer, params in parts:
        arrays = jax.tree.map(jnp.asarray, params)
        values = jax.vmap(lambda p, x, layer=layer: layer.forward(p, x)[0], (None, 0))(arrays, values)
    return np.asarray(values)


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    """Whether numbers are the same but for float32's rounding."""
    return got.shape == expected.shape and bool(np.allclose(got, expected, rtol=1e-4, atol=1e-5))


# ------------------------------------------------------------------------------------------------------ functions


def traceable(function: Callable, args: tuple) -> Callable:
    """A function as it is, or with JAX's NumPy in place of NumPy where that cannot take traced arrays."""
    try:
        jax.eval_shape(function, *args)
    except (TypeError, ValueError) as error:  # whoever explains it says why it cannot be run
        of_jax = any(isinstance(each, jax.errors.JAXTypeError) for each in (error, error.__cause__))
        if of_jax and isinstance(function, types.FunctionType):
            return with_jax_numpy(function)
    return function


def with_jax_numpy(function: types.FunctionType) -> types.FunctionType:
    """The same function, and those beside it that it calls, with `jax.numpy` in the place of `numpy`."""
    names: dict[str, Any] = {}

    def changed(value: Any) -> Any:
        if value is np:
            return jnp
        if isinstance(value, types.FunctionType) and value.__globals__ is function.__globals__:
            made = types.FunctionType(value.__code__, names, value.__name__, value.__defaults__, value.__closure__)
            made.__kwdefaults__ = value.__kwdefaults__
            return made
        of_numpy = isinstance(value, np.ufunc) or getattr(value, "__module__", "") == "numpy"
        return getattr(jnp, getattr(value, "__name__", ""), value) if of_numpy else value

    names |= {name: changed(value) for name, value in function.__globals__.items()}
    return changed(function)
