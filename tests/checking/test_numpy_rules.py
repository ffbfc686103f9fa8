"""Layers in NumPy, as courses have them: pairs in either order, classes, their lines mended."""

import numpy as np
import pytest

from jaxnet.checking import CannotCheckError, check
from jaxnet.checking.command import run

QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False, "precise": False}
rng = np.random.default_rng(0)


def relu_forward(x):
    return np.maximum(x, 0), x


def relu_backward(dout, cache):
    return dout * (cache > 0)


def norm_forward(x, gamma, beta):
    s = np.sqrt(x.var(0) + 1e-5)
    xh = (x - x.mean(0)) / s
    return gamma * xh + beta, (xh, s, gamma)


def norm_backward(dout, cache):
    xh, s, gamma = cache
    d = dout * gamma
    return (d - d.mean(0)) / s, (dout * xh).sum(0), dout.sum(0)


@pytest.mark.parametrize("backward", [relu_backward, lambda cache, dout: dout * (cache > 0)])
def test_the_cotangent_stands_first_or_last(backward):
    assert check((relu_forward, backward), "float32[4,6]", **QUICK).ok


def test_a_wrong_mask_of_numpy_is_wrong():
    assert not check((relu_forward, lambda dout, cache: dout * (cache > 1)), "float32[4,6]", **QUICK).ok


def test_a_line_of_numpy_is_mended(capsys):
    here = f"{__name__}:norm_forward,norm_backward"
    assert run([here], inputs="float32[5,3], float32[3], float32[3]", seeds=1) == 1
    said = capsys.readouterr().out
    assert "- return (d - d.mean(0)) / s," in said
    assert "xh * (d * xh).mean(0, keepdims=True)" in said


class Affine:
    """x W + b, with the gradients of W and b kept."""

    def __init__(self, W, b):
        self.W, self.b, self.x = W, b, None

    def forward(self, x):
        self.x = x
        return np.dot(x, self.W) + self.b

    def backward(self, dout):
        self.dW, self.db = np.dot(self.x.T, dout), np.sum(dout, 0)
        return np.dot(dout, self.W.T)


class Averaged(Affine):
    def backward(self, dout):
        self.dW = np.dot(self.x.T, dout)
        self.db = np.mean(dout, 0)
        return np.dot(dout, self.W.T)


class Listed:
    """x W, with its gradient written into a list."""

    def __init__(self, W):
        self.params, self.grads = [W], [np.zeros_like(W)]

    def forward(self, x):
        self.x = x
        return np.dot(x, self.params[0])

    def backward(self, dout):
        self.grads[0][...] = np.dot(self.x.T, dout)
        return np.dot(dout, self.params[0])


class Sigmoid:
    def forward(self, x):
        self.out = 1 / (1 + np.exp(-x))
        return self.out

    def backward(self, dout):
        return dout * self.out * (1 - self.out)


def test_a_class_is_checked_with_its_parameters():
    W, b = rng.standard_normal((6, 3)), rng.standard_normal(3)
    report = check(Affine(W, b), "float32[4,6]", **QUICK)
    assert report.ok
    assert [leaf.path for leaf in report.leaves] == ["forward", "∂x", "∂W", "∂b"]
    assert check(Sigmoid, "float32[4,6]", **QUICK).ok
    wrong = check(Averaged(W, b), "float32[4,6]")
    assert [leaf.path for leaf in wrong.wrong] == ["∂b"]
    assert wrong.repair.patch == "- self.db = np.mean(dout, 0)\n+ self.db = np.sum(dout, 0)"
    listed = check(Listed(rng.standard_normal((3, 3))), "float32[4,3]", **QUICK)
    assert [leaf.path for leaf in listed.wrong] == ["∂x"]


def test_a_class_with_parameters_is_given_as_an_object():
    with pytest.raises(CannotCheckError, match="give an object of the class"):
        check(Affine, "float32[4,6]")
