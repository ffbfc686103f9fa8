"""Convolution and pooling against torch's: values and gradients, the same weights in both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import average_pool, conv1d, conv2d, max_pool
from jaxnet.layers import conv_transpose1d, conv_transpose2d
from tests.agreement import normal

torch = pytest.importorskip("torch", reason="torch comes with the extra `peers`")
pytestmark = pytest.mark.peers

torch.manual_seed(0)

# Ours, theirs, the shape of a batch. Their W is (out, in, *kernel), of a transposed convolution (in, out, *kernel).
CONVOLUTIONS = {
    "plain": (conv2d(3, 3), torch.nn.Conv2d(2, 3, 3), (2, 6, 5, 2)),
    "strided": (
        conv2d(4, (3, 2), stride=(2, 1), padding=((1, 1), (2, 2)), dilation=(1, 2)),
        torch.nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        (2, 7, 6, 2),
    ),
    "same": (conv2d(3, 5, padding="SAME"), torch.nn.Conv2d(2, 3, 5, padding="same"), (2, 6, 5, 2)),
    "groups": (
        conv2d(6, 3, groups=2, bias=False),
        torch.nn.Conv2d(4, 6, 3, groups=2, bias=False),
        (2, 5, 4, 4),
    ),
    "depthwise": (conv2d(4, 3, padding=1, groups=4), torch.nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 5, 4, 4)),
    "1d": (conv1d(3, 4, stride=2, padding=2), torch.nn.Conv1d(2, 3, 4, stride=2, padding=2), (2, 9, 2)),
    "transposed": (
        conv_transpose2d(3, (3, 4), stride=2, padding=1),
        torch.nn.ConvTranspose2d(2, 3, (3, 4), stride=2, padding=1),
        (2, 4, 3, 2),
    ),
    "transposed_groups": (
        conv_transpose2d(4, 3, stride=3, padding=((1, -1), (1, -1)), groups=2, dilation=2),
        torch.nn.ConvTranspose2d(6, 4, 3, stride=3, padding=1, output_padding=2, groups=2, dilation=2),
        (2, 3, 2, 6),
    ),
    "transposed_1d": (conv_transpose1d(3, 4, stride=2), torch.nn.ConvTranspose1d(2, 3, 4, stride=2), (2, 5, 2)),
}
POOLS = {
    "max": (max_pool(2), torch.nn.MaxPool2d(2), (2, 5, 4, 3)),
    "max_overlapping": (max_pool(3, stride=2, padding=1), torch.nn.MaxPool2d(3, 2, 1), (2, 6, 5, 3)),
    "max_1d": (max_pool(3, stride=1), torch.nn.MaxPool1d(3, 1), (2, 6, 3)),
    "average": (average_pool(2), torch.nn.AvgPool2d(2), (2, 5, 4, 3)),
    "average_padded": (
        average_pool(3, stride=2, padding=1),
        torch.nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        (2, 6, 5, 3),
    ),
    "global_average": (jaxnet.global_average_pool(), torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1),
                                                                         torch.nn.Flatten()), (2, 4, 5, 3)),
    "global_max": (jaxnet.global_max_pool(), torch.nn.Sequential(torch.nn.AdaptiveMaxPool2d(1),
                                                                 torch.nn.Flatten()), (2, 4, 5, 3)),
}  # fmt: skip


def channels_first(array):
    """An array of ours as a tensor of theirs."""
    return torch.from_numpy(np.moveaxis(np.array(array, np.float32), -1, 1).copy())


def channels_last(tensor):
    """A tensor of theirs in the order of our axes."""
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def kernel(weight, layer):
    """Their kernel, or its gradient, in the order of ours: (out, *kernel, in / groups)."""
    if not layer.transposed:
        return channels_last(weight)
    array = weight.detach().numpy()  # (in, out / groups, *kernel), group after group
    by_group = np.split(array, layer.groups)
    return np.concatenate([np.moveaxis(np.swapaxes(part, 0, 1), 1, -1) for part in by_group])


def close(got, expected):
    """Equal to float32's noise."""
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)


def ours_and_theirs(net, params, module, xs):
    """Output, gradients, dx of a batch by hand; theirs of the same cotangent: output, dx."""
    x = channels_first(xs).requires_grad_()
    out = module(x)
    d_outs = normal(9, channels_last(out).shape)
    out.backward(channels_first(d_outs))

    def one(x, d_out):
        out, pullback = jaxnet.vjp(net)(params, x)
        return out, *pullback(d_out)

    outs, grads, dxs = jax.jit(jax.vmap(one))(xs, d_outs)
    close(outs, channels_last(out))
    close(dxs, channels_last(x.grad))
    return jax.tree.map(lambda g: g.sum(0), grads)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_torchs(name):
    net, module, shape = CONVOLUTIONS[name]
    params = {"W": jnp.asarray(kernel(module.weight, module))}
    if module.bias is not None:
        params["b"] = jnp.asarray(module.bias.detach().numpy())
    grads = ours_and_theirs(net, params, module, normal(1, shape))
    close(grads["W"], kernel(module.weight.grad, module))
    if module.bias is not None:
        close(grads["b"], module.bias.grad.numpy())
    assert set(params) == set(net.init(jax.random.key(0), jnp.zeros(shape[1:])))


@pytest.mark.parametrize("name", POOLS)
def test_pooling_is_torchs(name):
    net, module, shape = POOLS[name]
    ours_and_theirs(net, (), module, normal(1, shape))
