"""Loss and accuracy of a network over a split, in evaluation mode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnet.backprop import predict
from jaxnet.layer import Static, Tree, own_params
from jaxnet.readings import total
from jaxnet.training.step import Arrays, Recipe, sharded


def at_once(recipe: Recipe) -> int:
    """Number of examples evaluated at a time: 1,000; for sequences of tokens, as many as make 16,384 tokens."""
    x = recipe.example
    return min(1000, max(1, 16_384 // max(1, x.size))) if jnp.issubdtype(x.dtype, jnp.integer) else 1000


def evaluation(
    recipe: Recipe,
    classified: bool,
    chunk: int | None = None,
    ignore: int | None = None,
    confusion: bool = False,
) -> Callable[[Tree, Arrays], dict[str, jax.Array]]:
    """(params, split) -> mean loss over a split, and how many answers are right of how many, where targets are classes.

    In evaluation mode, `chunk` examples at a time, by default `at_once`. An answer is the largest output. Labels
    `ignore` do not count. confusion: also (class, answer), how often each class got each answer.
    """
    net, loss, chunk = recipe.net, recipe.loss, chunk or at_once(recipe)
    forward = predict(net)

    def one(loss_params, out, y):
        cost, _, _ = loss.turn(loss_params, out, y, 1.0, total)
        terms = loss.terms(y)
        sums = {"loss": cost, "terms": jnp.asarray(terms.value if isinstance(terms, Static) else terms, cost.dtype)}
        if classified:
            right = jnp.argmax(out, axis=-1).astype(y.dtype) == y
            counts = jnp.ones_like(right) if ignore is None else y != ignore
            sums |= {"right": jnp.sum(right & counts).astype(jnp.int32), "answers": jnp.sum(counts).astype(jnp.int32)}
        return sums

    def over(params, xs, ys):
        net_params, loss_params = own_params(loss, params)
        outs = forward(net_params, xs)
        sums = jax.vmap(one, (None, 0, 0))(loss_params, outs, ys)
        sums = jax.tree.map(lambda t: t.sum(dtype=t.dtype), sums)
        if classified and confusion:
            counts = 1 if ignore is None else (ys != ignore).astype(jnp.int32)
            empty = jnp.zeros((outs.shape[-1],) * 2, jnp.int32)
            sums["confusion"] = empty.at[ys, jnp.argmax(outs, axis=-1)].add(counts)
        return sums

    def of(params, split):
        n = len(split.y)
        whole, rest = divmod(n, chunk)
        shard = sharded(recipe.mesh, chunk)

        def at(i):
            return over(params, *(shard(jax.lax.dynamic_slice_in_dim(t, i * chunk, chunk)) for t in split))

        pieces = [over(params, *(t[whole * chunk :] for t in split))] if rest else []
        if whole:
            sums = jax.lax.map(at, jnp.arange(whole))
            pieces.append(jax.tree.map(lambda t: t.sum(axis=0, dtype=t.dtype), sums))
        sums = jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), *pieces)
        found = {"loss": sums["loss"] / sums["terms"]}
        if classified:
            found |= {name: sums[name] for name in ("right", "answers", "confusion") if name in sums}
        return found

    return of
