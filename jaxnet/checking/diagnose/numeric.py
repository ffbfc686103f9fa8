"""The primitives of a backward program in numpy: no compilation, so that a thousand mutants take a second.

What is not in the table (gather, scatter, convolutions, windows, sorts, random bits) is bound as jax binds it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

Table = dict[str, Callable[..., Any]]


def _dot_general(lhs, rhs, *, dimension_numbers, **_):
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    if not lhs_batch:
        return np.tensordot(lhs, rhs, axes=(tuple(lhs_contract), tuple(rhs_contract)))
    letters = iter(string.ascii_letters)
    left = [""] * lhs.ndim
    right = [""] * rhs.ndim
    for i, j in [*zip(lhs_batch, rhs_batch, strict=True), *zip(lhs_contract, rhs_contract, strict=True)]:
        left[i] = right[j] = next(letters)
    left = [c or next(letters) for c in left]
    right = [c or next(letters) for c in right]
    batch = [left[i] for i in lhs_batch]
    out = batch + [c for i, c in enumerate(left) if i not in lhs_batch and i not in lhs_contract]
    out += [c for j, c in enumerate(right) if j not in rhs_batch and j not in rhs_contract]
    return np.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", lhs, rhs, optimize=True)


def _broadcast_in_dim(x, *_, shape, broadcast_dimensions, **__):
    expanded = [1] * len(shape)
    for size, axis in zip(np.shape(x), broadcast_dimensions, strict=True):
        expanded[axis] = size
    return np.broadcast_to(np.reshape(x, expanded), shape)


def _reshape(x, *, new_sizes, dimensions=None, **_):
    return np.reshape(x if dimensions is None else np.transpose(x, dimensions), new_sizes)


def _select_n(which, *cases):
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases)


def _integer_pow(x, *, y):
    return x**y if y >= 0 else 1 / x ** (-y)


def _dynamic_slice(x, *starts, slice_sizes, **_):
    starts = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, slice_sizes, strict=True)]
    return x[tuple(slice(s, s + k) for s, k in zip(starts, slice_sizes, strict=True))]


def _dynamic_update_slice(x, update, *starts, **_):
    starts = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, update.shape, strict=True)]
    out = np.array(x)
    out[tuple(slice(s, s + k) for s, k in zip(starts, update.shape, strict=True))] = update
    return out


def _slice(x, *, start_indices, limit_indices, strides, **_):
    strides = strides or (1,) * x.ndim
    return x[tuple(slice(a, b, c) for a, b, c in zip(start_indices, limit_indices, strides, strict=True))]


def _cumulate(ufunc):
    def run(x, *, axis, reverse):
        if reverse:
            return np.flip(ufunc.accumulate(np.flip(x, axis), axis), axis)
        return ufunc.accumulate(x, axis)

    return run


def _pad(x, value, *, padding_config):
    shape = [
        max(0, low + high + n + max(n - 1, 0) * inner)
        for (low, high, inner), n in zip(padding_config, x.shape, strict=True)
    ]
    out = np.full(shape, value, x.dtype)
    into, source = [], []
    for (low, _, inner), n, size in zip(padding_config, x.shape, shape, strict=True):
        places = low + np.arange(n) * (inner + 1)
        kept = (places >= 0) & (places < size)
        into.append(places[kept])
        source.append(np.nonzero(kept)[0])
    out[np.ix_(*into)] = x[np.ix_(*source)]
    return out


def _reduce(function):
    return lambda x, *, axes, **_: function(x, axis=tuple(axes))


def _split(x, *, sizes, axis):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _logistic(x, **_):
    return scipy.special.expit(x)


def _same(x, *_, **__):
    return x


def _plain(ufunc):
    return lambda *xs, **_: ufunc(*xs)


TABLE: Table = {
    **{
        name: _plain(ufunc)
        for name, ufunc in {
            "neg": np.negative, "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "exp": np.exp,
            "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt, "cbrt": np.cbrt,
            "square": np.square, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
            "is_finite": np.isfinite, "not": np.logical_not, "real": np.real, "imag": np.imag, "conj": np.conj,
            "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
            "erf": scipy.special.erf, "erfc": scipy.special.erfc, "lgamma": scipy.special.gammaln,
            "digamma": scipy.special.digamma, "add": np.add, "add_any": np.add, "sub": np.subtract,
            "mul": np.multiply, "max": np.maximum, "min": np.minimum, "pow": np.power, "atan2": np.arctan2,
            "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
            "ge": np.greater_equal,
        }.items()
    },
    "div": np.divide,
    "rsqrt": lambda x, **_: 1 / np.sqrt(x),
    "logistic": _logistic,
    "integer_pow": _integer_pow,
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": lambda x, *, permutation: np.transpose(x, permutation),
    "squeeze": lambda x, *, dimensions: np.squeeze(x, tuple(dimensions)),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, tuple(dimensions)),
    "rev": lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "select_n": _select_n,
    "convert_element_type": lambda x, *, new_dtype, **_: np.asarray(x).astype(new_dtype),
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_prod": _reduce(np.prod),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
    "argmax": lambda x, *, axes, index_dtype: np.argmax(x, axes[0]).astype(index_dtype),
    "argmin": lambda x, *, axes, index_dtype: np.argmin(x, axes[0]).astype(index_dtype),
    "cumsum": _cumulate(np.add),
    "cumprod": _cumulate(np.multiply),
    "cummax": _cumulate(np.maximum),
    "cummin": _cumulate(np.minimum),
    "stop_gradient": _same,
    "copy": _same,
    "copy_p": _same,
    "optimization_barrier": lambda *xs: list(xs),
    "complex": lambda re, im: re + 1j * im,
}  # fmt: skip

_FLOAT_ONLY = {"div", "pow", "not", "lgamma", "abs", "integer_pow"}


def is_float(x: Any) -> bool:
    """Whether x is an array of real or complex floating-point numbers."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def as_numpy(x: Any) -> Any:
    """x as a numpy array where numpy can hold it; PRNG keys stay what they are."""
    dtype = getattr(x, "dtype", None)
    return x if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended) else np.asarray(x)


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The equation evaluated by jax itself."""
    out = eqn.primitive.bind(*(jnp.asarray(v) for v in values), **eqn.primitive.get_bind_params(eqn.params))
    return [as_numpy(v) for v in (out if eqn.primitive.multiple_results else [out])]


def evaluator(eqn: Any) -> Callable[[Sequence[Any]], list[Any]]:
    """What evaluates this equation: numpy where the table has it, else jax."""
    name, params = eqn.primitive.name, eqn.params
    function = TABLE.get(name)
    floats = all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.invars if hasattr(v.aval, "dtype"))
    if name == "not" and eqn.invars[0].aval.dtype == np.bool_:
        floats = True
    if function is None or (name in _FLOAT_ONLY and not floats):
        return lambda values: bind(eqn, values)
    if name in ("reduce_sum", "cumsum") and not floats:
        dtype = eqn.outvars[0].aval.dtype
        return lambda values: [function(*values, **params).astype(dtype)]
    if name in ("and", "or", "xor"):
        return lambda values: bind(eqn, values)
    if eqn.primitive.multiple_results:
        return lambda values: list(function(*values, **params))
    return lambda values: [function(*values, **params)]
