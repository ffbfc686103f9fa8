"""A case of the corpus at a point, and the gradients that are wrong there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import gaussian


def drawn(case, size, seed, dtype=jnp.float32):
    """Arguments of this size and a random cotangent for what the primal gives."""
    args = case.make_args(size, seed, dtype)
    out = jax.eval_shape(case.primal, *args)
    leaves, tree = jax.tree.flatten(out)
    rng = np.random.default_rng(seed + 9000)
    cts = [gaussian(rng, s.shape, s.dtype) for s in leaves]
    return args, jax.tree.unflatten(tree, cts)


def backward_of(case):
    """The wrong rule as a function of arguments and cotangent."""
    forward, backward = case.wrong_rule
    return jax.jit(lambda args, ct: backward(forward(*args)[1], ct))


def wrong_leaves(case, backward, args, ct):
    """The leaves in which the rule and autodiff differ."""
    inexact = [k for k, a in enumerate(args) if jnp.issubdtype(jax.tree.leaves(a)[0].dtype, jnp.inexact)]

    def moving(*some):
        full = list(args)
        for k, a in zip(inexact, some, strict=True):
            full[k] = a
        return case.primal(*full)

    autodiff = jax.jit(lambda some, ct: jax.vjp(moving, *some)[1](ct))
    right = dict(zip(inexact, autodiff([args[k] for k in inexact], ct), strict=True))
    got = backward(args, ct)
    found = []
    for k, tree in right.items():
        for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(tree)[0], jax.tree.leaves(got[k]), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            if not np.max(np.abs(a - b)) <= 1e-4 * max(float(np.max(np.abs(a))), 1e-30):
                found.append(f"[{k}]{jax.tree_util.keystr(path)}")
    return tuple(found)
