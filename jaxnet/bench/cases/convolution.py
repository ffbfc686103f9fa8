"""Convolution and pooling, forward then backward, and the step of a small network of them."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnet.backprop import value_and_grad
from jaxnet.bench.measure import TimedCase, Variant, compiled
from jaxnet.bench.peers import torch, torch_variants
from jaxnet.combinators import serial
from jaxnet.layers import conv2d, dense, flatten, max_pool, relu
from jaxnet.losses import softmax_cross_entropy
from jaxnet.readings import total

NUMBERS = ("NHWC", "OHWI", "NHWC")


def cases() -> Iterator[TimedCase]:
    """The layers' cases, each made when it is asked for."""
    yield pool_case()
    yield convolution_case()


def models() -> Iterator[TimedCase]:
    """The networks' cases."""
    yield network_case()


def both_ways(forward: Callable) -> Callable:
    """(arguments, d_outs) -> outputs and ∂/∂arguments, by `jax.vjp` of a function of the whole batch."""

    def run(*arguments):
        *inputs, d_outs = arguments
        outs, pullback = jax.vjp(forward, *inputs)
        return outs, *pullback(d_outs)

    return run


# ----------------------------------------------------------------------------------------------------------- pooling


def pooled(x: jax.Array) -> jax.Array:
    """The maximum of 2×2, as JAX has it: (batch, height, width, channels)."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def pooled_by_reshape(x: jax.Array) -> jax.Array:
    """The same over axes of its own."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))


def pooled_by_slices(x: jax.Array) -> jax.Array:
    """The same of four slices."""
    above, below = (jnp.maximum(x[:, i::2, 0::2], x[:, i::2, 1::2]) for i in (0, 1))
    return jnp.maximum(above, below)


def pool_case(sizes: tuple[int, int, int, int] = (64, 32, 32, 32)) -> TimedCase:
    """The maximum of 2×2 of `sizes`: batch, height, width, channels."""
    batch, height, width, channels = sizes
    keys = jax.random.split(jax.random.key(0))
    xs = jax.random.normal(keys[0], sizes)
    d_outs = jax.random.normal(keys[1], (batch, height // 2, width // 2, channels))
    layer = max_pool(2)

    def by_hand(xs, d_outs):
        def one(x, d_out):
            out, saved = layer.forward((), x)
            return out, layer.backward((), saved, d_out, total)[0]

        return jax.vmap(one)(xs, d_outs)

    module = torch()

    def theirs(x):
        return module.nn.functional.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)

    return TimedCase(
        f"max pool 2×2, batch {batch}, {height}×{width}, {channels} channels",
        compiled("hand", by_hand, xs, d_outs),
        (
            compiled("autodiff, naive", both_ways(pooled), xs, d_outs, time_aim=0.10, memory_aim=0.05),
            compiled("autodiff, axes of their own", both_ways(pooled_by_reshape), xs, d_outs, time_aim=1.05),
            compiled("autodiff, four slices", both_ways(pooled_by_slices), xs, d_outs, time_aim=1.05),
            *torch_variants(theirs, (xs,), d_outs, time_aim=1.05),
        ),
        rounds=21,
    )


# ------------------------------------------------------------------------------------------------------- convolution


def convolved(x: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
    """z of a batch, as many positions as places."""
    return lax.conv_general_dilated(x, W, (1, 1), "SAME", dimension_numbers=NUMBERS) + b.reshape(1, 1, 1, -1)


def convolved_in_their_order(x: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
    """The same with the kernel in the order that the compiler wants, (kernel, in, out)."""
    W = jnp.moveaxis(W, 0, -1)
    z = lax.conv_general_dilated(x, W, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return z + b.reshape(1, 1, 1, -1)


def shifts(x: jax.Array, W: jax.Array) -> list[jax.Array]:
    """The inputs of each tap of an odd kernel, over a batch."""
    _, rows, columns, _ = W.shape
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
    return [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]


def convolved_by_shifts(x: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product for each tap."""
    taps = jnp.moveaxis(W.reshape(len(W), -1, W.shape[-1]), 1, 0)
    products = [piece @ tap.T for piece, tap in zip(shifts(x, W), taps, strict=True)]
    return sum(products[1:], start=products[0]) + b.reshape(1, 1, 1, -1)


def convolved_by_patches(x: jax.Array, W: jax.Array, b: jax.Array) -> jax.Array:
    """One matrix product with the patches of the whole batch."""
    return jnp.concatenate(shifts(x, W), axis=-1) @ W.reshape(len(W), -1).T + b.reshape(1, 1, 1, -1)


def convolution_case(
    sizes: tuple[int, int, int, int] = (64, 32, 32, 32), channels: int = 32, kernel: int = 3
) -> TimedCase:
    """A convolution of `sizes`: batch, height, width, channels in; out, dx, dW and db."""
    layer = conv2d(channels, kernel, padding="SAME")
    keys = jax.random.split(jax.random.key(0), 3)
    xs, d_outs = jax.random.normal(keys[0], sizes), jax.random.normal(keys[1], (*sizes[:-1], channels))
    params = layer.init(keys[2], xs[0])
    arguments = (xs, params["W"], params["b"], d_outs)

    def by_hand(xs, W, b, d_outs):
        params = {"W": W, "b": b}

        def one(x, d_out):
            out, saved = layer.forward(params, x)
            dx, grads = layer.backward(params, saved, d_out, total)
            return out, dx, grads["W"], grads["b"]

        return jax.vmap(one, out_axes=(0, 0, None, None))(xs, d_outs)

    module = torch()

    def theirs(x, W, b):
        z = module.nn.functional.conv2d(x.permute(0, 3, 1, 2), W.permute(0, 3, 1, 2), b, padding=kernel // 2)
        return z.permute(0, 2, 3, 1)

    others = (
        ("autodiff, naive", convolved, {"time_aim": 0.65, "memory_aim": 0.25}),
        ("autodiff, kernel (3, 3, in, out)", convolved_in_their_order, {"time_aim": 1.05}),
        ("autodiff, a product for each tap", convolved_by_shifts, {}),
        ("autodiff, patches of the whole batch", convolved_by_patches, {}),
    )
    return TimedCase(
        f"convolution {kernel}×{kernel}, batch {sizes[0]}, {sizes[1]}×{sizes[2]}, {sizes[3]} to {channels} channels",
        compiled("hand", by_hand, *arguments),
        (
            *(compiled(name, both_ways(forward), *arguments, **aims) for name, forward, aims in others),
            *torch_variants(theirs, arguments[:-1], d_outs, time_aim=1.05),
        ),
        rounds=11,
        flops=3 * 2 * kernel**2 * channels * xs.size,
    )


# ----------------------------------------------------------------------------------------------------------- network


def network_case(batch: int = 128) -> TimedCase:
    """Nielsen's convolutions of 5×5, each pooled by 2, dense 100 and 10, on pictures of 28×28: cost and gradients."""
    net = serial(
        conv2d(20, 5), relu, max_pool(2), conv2d(40, 5), relu, max_pool(2), flatten(), dense(100), relu, dense(10)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(keys[0], (batch, 28, 28, 1))
    ys = jax.random.randint(keys[1], (batch,), 0, 10)
    params = jax.jit(net.init)(keys[2], xs[0])

    def by_autodiff(pool):
        def cost(params, xs, ys):
            first, second, third, last = (p for p in params if p)
            a = xs
            for layer in (first, second):
                z = lax.conv_general_dilated(a, layer["W"], (1, 1), "VALID", dimension_numbers=NUMBERS)
                a = pool(jax.nn.relu(z + layer["b"].reshape(1, 1, 1, -1)))
            a = jax.nn.relu(a.reshape(len(a), -1) @ third["W"].T + third["b"][None])
            logits = a @ last["W"].T + last["b"][None]
            return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.take_along_axis(logits, ys[:, None], axis=1)[:, 0])

        return jax.value_and_grad(cost)

    arguments = (params, xs, ys)
    return TimedCase(
        f"2 convolutions, 2 max pools, 2 dense layers, batch {batch}",
        compiled("hand", value_and_grad(net, softmax_cross_entropy), *arguments),
        (
            compiled("autodiff, naive", by_autodiff(pooled), *arguments, time_aim=0.50, memory_aim=0.30),
            compiled("autodiff, pooled over axes", by_autodiff(pooled_by_reshape), *arguments, time_aim=1.05),
            compiled("autodiff, pooled by slices", by_autodiff(pooled_by_slices), *arguments, time_aim=1.05),
            *torch_network(*arguments),
        ),
        rounds=11,
        # Forward, W and x, but for the x of the first.
        flops=2 * batch * (2 * 24**2 * 25 * 20 + 3 * (8**2 * 500 * 40 + 640 * 100 + 100 * 10)),
    )


def torch_network(params, xs: jax.Array, ys: jax.Array) -> tuple[Variant, ...]:
    """The same network's mean cost and gradients in torch."""
    module = torch()
    if module is None:
        return ()
    F = module.nn.functional
    x, y = module.tensor(np.asarray(xs)), module.tensor(np.asarray(ys)).long()

    def cost(*weights):
        a = x.permute(0, 3, 1, 2)
        for W, b in zip(weights[0:4:2], weights[1:4:2], strict=True):
            a = F.max_pool2d(F.relu(F.conv2d(a, W.permute(0, 3, 1, 2), b)), 2)
        a = a.permute(0, 2, 3, 1).reshape(len(x), -1)
        return F.cross_entropy(F.relu(a @ weights[4].T + weights[5]) @ weights[6].T + weights[7], y)

    def arrange(value, *grads):
        layers = iter(zip(grads[::2], grads[1::2], strict=True))
        return value, tuple(dict(zip("Wb", next(layers), strict=True)) if p else () for p in params)

    weights = [p[name] for p in params if p for name in "Wb"]
    return torch_variants(cost, weights, np.float32(1), arrange, time_aim=0.9)
