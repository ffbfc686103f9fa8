"""`jaxnet bench quantities`: readings of each example against the best that autodiff does for the same.

Autodiff has `vmap(grad)`, which forms every example's gradient; the same in chunks, which trades time for memory; and
for clipped sums two passes: norms, and the gradient of the weighted cost.
"""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp

from jaxnet import per_example, softmax_cross_entropy, squared_norm, value_and_grad
from jaxnet.bench.measure import Row, TimedCase, Variant, compiled, measure
from jaxnet.layer import Layer
from jaxnet.models import cnn, gpt, mlp
from jaxnet.quantities.curvature import ggn_diagonal
from jaxnet.quantities.gradient_statistics import gradient_moments, noise_scale
from jaxnet.quantities.kept_factors import kept, of_network, ranks
from jaxnet.quantities.kronecker import kronecker
from jaxnet.quantities.privacy import clipped_sum
from jaxnet.quantities.projection import projected_gradient, random_projections
from jaxnet.quantities.sinks import read

CLIP = 1.0
LOSS = softmax_cross_entropy


def rows() -> list[Row]:
    """All of `jaxnet bench quantities`, measured."""
    return [row for case in cases() for row in measure(case)]


def cases() -> Iterator[TimedCase]:
    """The cases, each made when it is asked for."""
    for of in (norms, norms_of_a_function, moments, noise):
        yield of()
    yield private("MLP 784-1024-1024-10, batch 256", *mlp_problem(), aim=1.15)
    yield private("CNN 16-32-64, batch 64", *cnn_problem(), aim=1.4, chunks=2)
    yield private("GPT of 2 blocks of 128, batch 16", *gpt_problem(), aim=1.4, chunks=2)
    yield projection()
    yield kronecker_factors()
    yield diagonal()


# ----------------------------------------------------------------------------------------------------------- problems


def problem(net: Layer, xs: jax.Array, classes: int, shape: tuple[int, ...]) -> tuple:
    """The network, its parameters, inputs and labels."""
    return (
        net,
        jax.jit(net.init)(jax.random.key(1), xs[0]),
        xs,
        jax.random.randint(jax.random.key(2), shape, 0, classes),
    )


def mlp_problem(sizes: tuple[int, ...] = (784, 1024, 1024, 10), batch: int = 256) -> tuple:
    """An MLP with relu."""
    first, *rest = sizes
    return problem(mlp(rest), jax.random.normal(jax.random.key(0), (batch, first)), sizes[-1], (batch,))


def cnn_problem(batch: int = 64) -> tuple:
    """Two convolutions and a hidden layer, on pictures of 28 × 28."""
    return problem(cnn([16, 32], [64], 10), jax.random.normal(jax.random.key(0), (batch, 28, 28, 1)), 10, (batch,))


def gpt_problem(batch: int = 16, time: int = 64, vocab: int = 96) -> tuple:
    """A small language model."""
    tokens = jax.random.randint(jax.random.key(0), (batch, time), 0, vocab)
    return problem(gpt(vocab, 128, 4, 2, time), tokens, vocab, (batch, time))


def cost_of(net: Layer) -> Callable:
    """The mean cost of one example, as autodiff takes it."""

    def cost(params, x, y):
        z, _ = net.forward(params, x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[..., None], axis=-1))

    return cost


# ------------------------------------------------------------------------------------------------- autodiff's variants


def squares(grads) -> jax.Array:
    """‖·‖² of one gradient."""
    return sum((jnp.sum(g**2) for g in jax.tree.leaves(grads)), start=jnp.zeros(()))


def in_chunks(one: Callable, size: int) -> Callable:
    """`one(params, x, y)` for each example, `size` of them at a time."""
    return lambda params, xs, ys: jax.lax.map(lambda xy: one(params, *xy), (xs, ys), batch_size=size)


def mapped(one: Callable) -> Callable:
    """`one(params, x, y)` for each example, all at a time."""
    return jax.vmap(one, (None, 0, 0))


def plain_gradient(name: str, made: tuple, **aims: float) -> Variant:
    """Our gradient of the mean, for comparison."""
    net, *arguments = made
    return compiled(name, value_and_grad(net, LOSS), *arguments, **aims)


# --------------------------------------------------------------------------------------------------------------- cases


def norms() -> TimedCase:
    """Each example's norm of each parameter's gradient."""
    made = net, *arguments = mlp_problem()
    one = jax.grad(cost_of(net))

    def norm(params, x, y):
        return jax.tree.map(lambda g: jnp.sum(g**2), one(params, x, y))

    return TimedCase(
        "norms, MLP 784-1024-1024-10, batch 256",
        compiled("hand", per_example(net, LOSS, squared_norm), *arguments),
        (
            plain_gradient("a plain gradient", made, time_aim=1.2),
            compiled("vmap(grad)", mapped(norm), *arguments, time_aim=1 / 30, memory_aim=1 / 100),
            compiled("vmap(grad), 16 at a time", in_chunks(norm, 16), *arguments),
        ),
        rounds=9,
    )


def norms_of_a_function() -> TimedCase:
    """The same of a model that is a JAX function."""
    made = _, params, xs, ys = mlp_problem()

    def cost(params, x, y):
        *hidden, last = (p for p in params if p)
        for layer in hidden:
            x = jax.nn.relu(layer["W"] @ x + layer["b"])
        return -jax.nn.log_softmax(last["W"] @ x + last["b"])[y]

    def norm(params, x, y):
        return jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(cost)(params, x, y))

    return TimedCase(
        "norms of a JAX function, the same MLP",
        compiled("sinks", read(cost, squared_norm), params, xs, ys),
        (
            plain_gradient("a plain gradient", made, time_aim=1.2),
            compiled("vmap(grad)", mapped(norm), params, xs, ys, time_aim=1 / 30, memory_aim=1 / 100),
        ),
        rounds=9,
    )


def moments() -> TimedCase:
    """Mean and variance of the examples' gradients."""
    made = net, *arguments = mlp_problem()
    one = mapped(jax.grad(cost_of(net)))

    def theirs(params, xs, ys):
        grads = one(params, xs, ys)
        return jax.tree.map(lambda g: (g.mean(0), g.var(0)), grads)

    return TimedCase(
        "mean and variance, MLP 784-1024-1024-10, batch 256",
        compiled("hand", gradient_moments(of_network(net, LOSS)), *arguments),
        (plain_gradient("a plain gradient", made), compiled("vmap(grad)", theirs, *arguments)),
        rounds=9,
    )


def noise() -> TimedCase:
    """The gradient and the noise scale together: the cost of `monitor.noise_scale` in a step."""
    made = net, *arguments = mlp_problem()

    def both(params, xs, ys):
        return noise_scale(of_network(net, LOSS))(params, xs, ys).whole, value_and_grad(net, LOSS)(params, xs, ys)

    return TimedCase(
        "gradient and noise scale, MLP 784-1024-1024-10, batch 256",
        compiled("hand", both, *arguments),
        (plain_gradient("a plain gradient", made, time_aim=1.05),),
        rounds=15,
    )


def private(name: str, net: Layer, params, xs, ys, aim: float, chunks: int = 1) -> TimedCase:
    """The sum of the clipped gradients, in chunks where one pass takes much memory."""
    own = clipped_sum(partial(per_example, net, LOSS), clip=CLIP, chunks=chunks)
    cost = cost_of(net)
    gradient = jax.grad(cost)

    def clipped(params, x, y):
        grads = gradient(params, x, y)
        share = jnp.minimum(1, CLIP / jnp.sqrt(squares(grads)))
        return jax.tree.map(lambda g: g * share, grads)

    def summed(params, xs, ys):
        return jax.tree.map(lambda g: g.sum(0), mapped(clipped)(params, xs, ys))

    def two_passes(params, xs, ys):
        square = in_chunks(lambda *of: squares(gradient(*of)), 16)(params, xs, ys)
        shares = jnp.minimum(1, CLIP / jnp.sqrt(square))
        return jax.grad(lambda params: jnp.sum(shares * mapped(cost)(params, xs, ys)))(params)

    return TimedCase(
        f"clipped sum, {name}",
        compiled("hand", own, params, xs, ys),
        (
            plain_gradient("a plain gradient", (net, params, xs, ys), time_aim=aim, memory_aim=1.2),
            compiled("vmap(grad)", summed, params, xs, ys),
            compiled("autodiff in two passes", two_passes, params, xs, ys),
        ),
        rounds=9,
    )


def projection(sizes: tuple[int, ...] = (2048, 2048, 2048, 10), rank: int = 16) -> TimedCase:
    """The gradient in a space of 16 dimensions for each matrix."""
    made = net, params, xs, ys = mlp_problem(sizes)
    backward = of_network(net, LOSS)
    axes = ranks(jax.eval_shape(backward(kept), params, xs, ys)[1])
    projections = random_projections(jax.random.key(3), params, axes, rank)
    return TimedCase(
        f"projected gradient, MLP {'-'.join(map(str, sizes))}, rank {rank}, batch 256",
        compiled("hand", projected_gradient(backward), params, projections, xs, ys),
        (plain_gradient("a plain gradient", made),),
        rounds=9,
    )


def kronecker_factors() -> TimedCase:
    """K-FAC's A and B for each layer, by one random column, and the gradient."""
    made = net, *arguments = mlp_problem()

    def both(params, xs, ys, key):
        return kronecker(net, LOSS)(params, xs, ys, key=key), value_and_grad(net, LOSS)(params, xs, ys)

    return TimedCase(
        "K-FAC's factors and gradient, MLP 784-1024-1024-10, batch 256",
        compiled("hand", both, *arguments, jax.random.key(3)),
        (plain_gradient("a plain gradient", made, time_aim=2.1),),
        rounds=9,
    )


def diagonal() -> TimedCase:
    """The GGN's diagonal by one random column."""
    made = net, *arguments = mlp_problem()

    def one_column(params, xs, ys, key):
        return ggn_diagonal(net, LOSS, samples=1)(params, xs, ys, key=key)

    return TimedCase(
        "GGN diagonal by one column, MLP 784-1024-1024-10, batch 256",
        compiled("hand", one_column, *arguments, jax.random.key(3)),
        (plain_gradient("a plain gradient", made, time_aim=2.5),),
        rounds=9,
    )
