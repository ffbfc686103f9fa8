"""Recurrences and norms: forward, then backward from an error that is given, of a batch of sequences."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from jaxnet.bench.measure import TimedCase, Variant, compiled
from jaxnet.bench.peers import torch, torch_variants
from jaxnet.layer import Layer
from jaxnet.layers import gru, layer_norm, lstm, rms_norm
from jaxnet.readings import total


def cases() -> Iterator[TimedCase]:
    """The cases, each made when it is asked for."""
    yield lstm_case()
    yield gru_case()
    yield norm_case("layer_norm")
    yield norm_case("rms_norm")


def by_hand(net: Layer) -> Callable:
    """(params, xs, d_outs) -> outputs, dx, gradients summed over the batch, by the layer's backward pass."""

    def one(params, x, d_out):
        out, saved = net.forward(params, x)
        dx, grads = net.backward(params, saved, d_out, total)
        return out, dx, grads

    return jax.vmap(one, (None, 0, 0), (0, 0, None))


def by_autodiff(forward: Callable) -> Callable:
    """The same by `jax.vjp` of forward(params, xs) of a batch."""

    def run(params, xs, d_outs):
        outs, pullback = jax.vjp(forward, params, xs)
        grads, dxs = pullback(d_outs)
        return outs, dxs, grads

    return run


def given(net: Layer, shape: tuple[int, int, int]) -> tuple:
    """Parameters, a batch (batch, time, in), and an error for each output."""
    xs = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(net.init)(jax.random.key(1), xs[0])
    out = jax.eval_shape(jax.vmap(lambda p, x: net.forward(p, x)[0], (None, 0)), params, xs)
    return params, xs, jax.random.normal(jax.random.key(2), out.shape)


# ---------------------------------------------------------------------------------------------------- recurrences


def lstm_gates(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h and c after the step, from the four gates' z along the last axis."""
    z_i, z_f, z_g, z_o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(z_f) * c + jax.nn.sigmoid(z_i) * jnp.tanh(z_g)
    return jax.nn.sigmoid(z_o) * jnp.tanh(c), c


def lstm_naive(params: dict, xs: jax.Array) -> jax.Array:
    """As the equations are, for one sequence, and vmap."""

    def one(xs):
        def step(state, x):
            h, c = lstm_gates(params["W"] @ x + params["U"] @ state[0] + params["b"], state[1])
            return (h, c), h

        zeros = jnp.zeros(params["U"].shape[1])
        return jax.lax.scan(step, (zeros, zeros), xs)[1]

    return jax.vmap(one)(xs)


def lstm_of_batch(params: dict, xs: jax.Array, before: bool) -> jax.Array:
    """A batch as rows, time first. `before`: W x of all steps is one product before the scan, else W and U are one."""
    zeros = jnp.zeros((len(xs), params["U"].shape[1]))
    b = params["b"][None]
    joined = jnp.concatenate([params["W"], params["U"]], axis=1)

    def step(state, x):
        h, c = state
        z = x + h @ params["U"].T if before else jnp.concatenate([x, h], axis=1) @ joined.T + b
        h, c = lstm_gates(z, c)
        return (h, c), h

    along = xs.swapaxes(0, 1)
    along = along @ params["W"].T + b[None] if before else along
    return jax.lax.scan(step, (zeros, zeros), along)[1].swapaxes(0, 1)


def recurrent_case(name: str, net: Layer, gates: int, others: Callable, peer: Callable, sizes) -> TimedCase:
    """A recurrence of as many units as inputs. `others(params, xs, d_outs)`: the variants beside torch's."""
    batch, time, width = sizes
    params, xs, d_outs = arguments = given(net, sizes)
    return TimedCase(
        f"{name} {width}, batch {batch}, T {time}",
        compiled("hand", by_hand(net), *arguments),
        (*others(*arguments), *peer(params, xs, d_outs)),
        flops=3 * 2 * batch * time * gates * width * 2 * width,
    )


def lstm_case(sizes: tuple[int, int, int] = (32, 128, 256)) -> TimedCase:
    """An LSTM of `sizes`: batch, time, inputs and units."""

    def others(*arguments) -> tuple[Variant, ...]:
        def rows(before):
            return by_autodiff(lambda params, xs: lstm_of_batch(params, xs, before))

        return (
            compiled("autodiff, naive", by_autodiff(lstm_naive), *arguments, time_aim=0.75, memory_aim=0.75),
            compiled("autodiff, [W U] at once", rows(False), *arguments, time_aim=1.05),
            compiled("autodiff, W x before", rows(True), *arguments, time_aim=1.05),
        )

    def peer(params, xs, d_outs):
        weights = (params["W"], params["U"], params["b"], jnp.zeros_like(params["b"]))
        return torch_recurrence("LSTM", weights, xs, d_outs, lambda W, U, b, b_U: {"U": U, "W": W, "b": b})

    return recurrent_case("LSTM", lstm(sizes[2]), 4, others, peer, sizes)


def gru_naive(params: dict, xs: jax.Array, before: bool = False) -> jax.Array:
    """As the equations are, for one sequence, and vmap. `before`: W x + b of all steps is one product."""
    units = params["U"].shape[1]

    def one(xs):
        def step(h, x):
            x = x if before else params["W"] @ x + params["b"]
            (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(x, 3), jnp.split(params["U"] @ h, 3)
            r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
            h = (1 - z) * jnp.tanh(x_n + r * (h_n + params["c"])) + z * h
            return h, h

        along = xs @ params["W"].T + params["b"][None] if before else xs
        return jax.lax.scan(step, jnp.zeros(units), along)[1]

    return jax.vmap(one)(xs)


def gru_case(sizes: tuple[int, int, int] = (32, 128, 256)) -> TimedCase:
    """A GRU of `sizes`: batch, time, inputs and units."""
    units = sizes[2]

    def others(*arguments) -> tuple[Variant, ...]:
        def before(params, xs):
            return gru_naive(params, xs, before=True)

        return (
            compiled("autodiff, naive", by_autodiff(gru_naive), *arguments, time_aim=1.05),
            compiled("autodiff, W x before", by_autodiff(before), *arguments, time_aim=1.05),
        )

    def peer(params, xs, d_outs):
        b_U = jnp.zeros(3 * units).at[2 * units :].set(params["c"])

        def arrange(W, U, b, b_U):
            return {"U": U, "W": W, "b": b, "c": b_U[2 * units :]}

        return torch_recurrence("GRU", (params["W"], params["U"], params["b"], b_U), xs, d_outs, arrange)

    return recurrent_case("GRU", gru(units), 3, others, peer, sizes)


def torch_recurrence(kind: str, weights: tuple, xs, d_outs, arrange: Callable) -> tuple[Variant, ...]:
    """torch's layer of that name, with these weights for W, U and the two b."""
    module = torch()
    if module is None:
        return ()
    layer = getattr(module.nn, kind)(xs.shape[2], d_outs.shape[2], batch_first=True)
    names = [name for name, _ in layer.named_parameters()]

    def forward(x, *weights):
        return module.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))[0]

    return torch_variants(
        forward, (xs, *weights), d_outs, lambda out, dx, *grads: (out, dx, arrange(*grads)), time_aim=1.0
    )


# ---------------------------------------------------------------------------------------------------------- norms


def norm_of(params: dict, xs: jax.Array, centred: bool) -> jax.Array:
    """A norm of vectors along the last axis, as one writes it for autodiff."""
    gamma = params["gamma"].reshape(1, 1, -1)
    if not centred:
        return xs / jnp.sqrt(jnp.mean(xs**2, -1, keepdims=True) + 1e-6) * gamma
    centre, variance = xs.mean(-1, keepdims=True), xs.var(-1, keepdims=True)
    return (xs - centre) / jnp.sqrt(variance + 1e-5) * gamma + params["beta"].reshape(1, 1, -1)


def norm_by_rsqrt(params: dict, xs: jax.Array, centred: bool) -> jax.Array:
    """The same with one root, and x − μ written once."""
    xs = xs - xs.mean(-1, keepdims=True) if centred else xs
    out = xs * jax.lax.rsqrt(jnp.mean(xs**2, -1, keepdims=True) + (1e-5 if centred else 1e-6))
    out = out * params["gamma"].reshape(1, 1, -1)
    return out + params["beta"].reshape(1, 1, -1) if centred else out


def by_autodiff_apart(forward: Callable) -> Callable:
    """Autodiff with a barrier between forward and backward: nothing is computed twice for both."""

    def run(params, xs, d_outs):
        outs, pullback = jax.vjp(forward, params, xs)
        outs, d_outs, pullback = jax.lax.optimization_barrier((outs, d_outs, pullback))
        grads, dxs = pullback(d_outs)
        return outs, dxs, grads

    return run


def norm_case(name: str, sizes: tuple[int, int, int] = (8, 512, 768)) -> TimedCase:
    """Layer norm or RMS norm at every position; `sizes`: batch, time, width."""
    centred, module = name == "layer_norm", torch()
    net = layer_norm() if centred else rms_norm()
    params, xs, d_outs = arguments = given(net, sizes)
    aims = {"time_aim": 0.6, "memory_aim": 0.75} if centred else {"time_aim": 1.05, "memory_aim": 1.05}

    def forward(params, xs):
        return norm_of(params, xs, centred)

    def rsqrt(params, xs):
        return norm_by_rsqrt(params, xs, centred)

    def in_torch(x, gamma, *beta):
        functional = module.nn.functional
        if centred:
            return functional.layer_norm(x, x.shape[-1:], gamma, *beta, eps=1e-5)
        return functional.rms_norm(x, x.shape[-1:], gamma, eps=1e-6)

    def arrange(out, dx, gamma, *beta):
        return out, dx, {"beta": beta[0], "gamma": gamma} if centred else {"gamma": gamma}

    weights = [params["gamma"], *([params["beta"]] if centred else [])]
    return TimedCase(
        f"{'LayerNorm' if centred else 'RMSNorm'} {sizes[2]}, batch {sizes[0]}, T {sizes[1]}",
        compiled("hand", by_hand(net), *arguments),
        (
            compiled("autodiff, naive", by_autodiff(forward), *arguments, **aims),
            compiled("autodiff, rsqrt", by_autodiff(rsqrt), *arguments),
            compiled("autodiff, rsqrt, apart", by_autodiff_apart(rsqrt), *arguments),
            *torch_variants(in_torch, (xs, *weights), d_outs, arrange),
        ),
        rounds=25,
    )
