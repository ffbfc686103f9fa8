"""From a case of the corpus to a diagnosis, and whether that names the cause."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.checking.corpus.case import gaussian
from jaxnet.checking.diagnose import Diagnosis, Problem


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


def problem(case, size, seed, dtype=jnp.float32):
    """The problem that a checker would hand on, and the leaves found wrong."""
    args, ct = drawn(case, size, seed, dtype)
    backward = backward_of(case)
    wrong = wrong_leaves(case, backward, args, ct)
    other = 1 if size == 0 else 0
    tolerance = 2e-6 if dtype == jnp.float32 else 1e-12

    def draw(seed):
        return drawn(case, size, seed, dtype)

    def redraw(seed):
        return drawn(case, other, seed, dtype)

    return Problem(case.primal, backward, args, ct, draw, redraw, wrong, tolerance), wrong


def named(case, diagnosis: Diagnosis) -> bool:
    """Whether the best explanation explains every wrong leaf and says each of the words."""
    best = diagnosis.best
    if best is None or set(best.leaves) != set(case.wrong_leaves):
        return False
    return case.named_by(f"{best.cause} {best.equation}")
