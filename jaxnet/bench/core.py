"""`jaxnet bench core`: the core against autodiff, and against NumPy.

Every case has the naive autodiff variant (the same forward pass under `jax.value_and_grad`) and others, written to be
faster; those that lost stay here with their numbers.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet import dense, quadratic, serial, sigmoid, softmax_cross_entropy, value_and_grad
from jaxnet.bench import numpy_nielsen
from jaxnet.bench.measure import Row, TimedCase, Variant, compiled, measure
from jaxnet.bench.startup import startup
from jaxnet.layer import Layer
from jaxnet.models import mlp, residual_mlp


def rows() -> list[Row]:
    """All of `jaxnet bench core`, measured."""
    return [row for case in cases() for row in measure(case)] + [startup()]


def cases(examples: int = 50_000) -> Iterator[TimedCase]:
    """The cases of `jaxnet bench core`, each made when it is asked for. `examples`: of Nielsen's epoch."""
    yield nielsen_epoch(examples)
    yield mlp_step()
    yield deep_step(128)
    yield deep_step(512)


def by_autodiff(forward: Callable, cost: Callable) -> Callable:
    """`jax.value_and_grad` of cost(forward(params, xs), ys) in params."""
    return jax.value_and_grad(lambda params, xs, ys: cost(forward(params, xs), ys))


def mapped(net: Layer) -> Callable:
    """The naive forward pass of a batch: vmap of the network."""
    return jax.vmap(lambda params, x: net.forward(params, x)[0], (None, 0))


def cross_entropy(logits: jax.Array, ys: jax.Array) -> jax.Array:
    """The mean of −ln softmax(z)_y, as one writes it for autodiff. logits: (batch, classes), ys: (batch,)."""
    picked = jnp.take_along_axis(logits, ys[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


# ---------------------------------------------------------------------------------------------- Nielsen's epoch


def nielsen_epoch(examples: int, batch: int = 10, learning_rate: float = 3.0) -> TimedCase:
    """One epoch of 784-30-10, batch 10: a whole epoch in one scan, against autodiff's in the same scan, and NumPy's."""
    net = serial(dense(30, init="nielsen"), sigmoid, dense(10, init="nielsen"), sigmoid)
    key = jax.random.key(0)
    xs = jax.random.uniform(key, (examples, 784))
    ys = jax.random.randint(key, (examples,), 0, 10)
    params = jax.jit(net.init)(key, xs[0])

    def epoch(gradient: Callable) -> Callable:
        def run(params, xs, ys):
            def step(params, xy):
                _, grads = gradient(params, *xy)
                return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads), None

            batches = (xs.reshape(-1, batch, 784), ys.reshape(-1, batch))
            return jax.lax.scan(step, params, batches)[0]

        return run

    def cost(outputs, ys):
        return jnp.sum((outputs - jax.nn.one_hot(ys, 10)) ** 2) / (2 * batch)

    def as_matrices(params, xs):
        (first, _, second, _) = params
        a = jax.nn.sigmoid(xs @ first["W"].T + first["b"][None])
        return jax.nn.sigmoid(a @ second["W"].T + second["b"][None])

    plain = [(np.array(p["W"]), np.array(p["b"])) for p in params if p]
    arrays = (plain, np.array(xs), np.eye(10, dtype=np.float32)[np.array(ys)], batch, learning_rate)
    return TimedCase(
        f"Nielsen 784-30-10, epoch of {examples:,}",
        compiled("hand", epoch(value_and_grad(net, quadratic)), params, xs, ys),
        (
            Variant("NumPy, by the book", lambda: numpy_nielsen.by_the_book(*arrays), time_aim=1 / 40),
            Variant("NumPy, one by one", lambda: numpy_nielsen.one_by_one(*arrays)),
            Variant("NumPy, batches", lambda: numpy_nielsen.batched(*arrays), time_aim=1 / 1.7),
            compiled("autodiff, naive", epoch(by_autodiff(mapped(net), cost)), params, xs, ys, time_aim=0.95),
            compiled("autodiff, a Wᵀ", epoch(by_autodiff(as_matrices, cost)), params, xs, ys),
        ),
        rounds=7,
    )


# ------------------------------------------------------------------------------------------------ steps of an MLP


def by_rows(layer: dict, a: jax.Array) -> jax.Array:
    """z = a Wᵀ + b of a batch of rows."""
    return a @ layer["W"].T + layer["b"][None]


def by_columns(layer: dict, a: jax.Array) -> jax.Array:
    """z = W a + b of a batch of columns."""
    return layer["W"] @ a + layer["b"][:, None]


def batch_of(examples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs (examples, 784) and labels."""
    key = jax.random.key(0)
    return jax.random.normal(key, (examples, 784)), jax.random.randint(key, (examples,), 0, 10)


def mlp_step(examples: int = 128) -> TimedCase:
    """784-1024-1024-10 with relu: bound by its matrix products, so parity is the aim."""
    net = mlp((1024, 1024, 10))
    xs, ys = batch_of(examples)
    params = jax.jit(net.init)(jax.random.key(1), xs[0])

    def with_(product: Callable) -> Callable:
        def forward(params, a):
            *hidden, last = (p for p in params if p)
            for layer in hidden:
                a = jax.nn.relu(product(layer, a))
            return product(last, a)

        return forward

    return TimedCase(
        f"MLP 784-1024-1024-10, batch {examples}",
        compiled("hand", value_and_grad(net, softmax_cross_entropy), params, xs, ys),
        against_autodiff(net, with_(by_rows), with_(by_columns), params, xs, ys, time_aim=1.03),
        rounds=41,
    )


def deep_step(examples: int, width: int = 512, depth: int = 24) -> TimedCase:
    """24 residual blocks of 512 in a scan."""
    net = residual_mlp(width, depth, 10)
    xs, ys = batch_of(examples)
    params = jax.jit(net.init)(jax.random.key(1), xs[0])

    def with_(product: Callable) -> Callable:
        def forward(params, a):
            first, _, blocks, last = params
            a = jax.nn.relu(product(first, a))
            a, _ = jax.lax.scan(lambda a, block: (a + jax.nn.relu(product(block[0], a)), None), a, blocks)
            return product(last, a)

        return forward

    return TimedCase(
        f"{depth} residual blocks of {width}, batch {examples}",
        compiled("hand", value_and_grad(net, softmax_cross_entropy), params, xs, ys),
        against_autodiff(net, with_(by_rows), with_(by_columns), params, xs, ys, time_aim=1.03, memory_aim=1.0),
    )


def against_autodiff(
    net: Layer, of_rows: Callable, of_columns: Callable, params, xs, ys, **aims: float
) -> tuple[Variant, ...]:
    """The same forward pass under autodiff, and as a batch of rows and of columns; the aims hold against each."""

    def cost_of_columns(logits, ys):
        return cross_entropy(logits.T, ys)

    def from_columns(params, xs):
        return of_columns(params, xs.T)

    return (
        compiled("autodiff, naive", by_autodiff(mapped(net), cross_entropy), params, xs, ys, **aims),
        compiled("autodiff, a Wᵀ", by_autodiff(of_rows, cross_entropy), params, xs, ys, **aims),
        compiled("autodiff, W a", by_autodiff(from_columns, cost_of_columns), params, xs, ys, **aims),
    )
