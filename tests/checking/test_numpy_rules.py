"""Layers in NumPy, as courses have them: pairs in either order, classes, their lines mended."""

import itertools
import re

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


class Stepping:
    """Columns; backward moves the parameters by the learning rate, and leaves no gradients."""

    def __init__(self, W, b):
        self.W, self.b = W, b

    def forward(self, x):
        self.x = x
        return np.dot(self.W, x) + self.b

    def backward(self, dout, learning_rate):
        dx = np.dot(self.W.T, dout)
        self.W -= learning_rate * np.dot(dout, self.x.T)
        self.b = self.b - learning_rate * dout.sum(1, keepdims=True)
        return dx


class Lazy:
    """Keeps its output and gradients as attributes, returns nothing, makes its parameters in the first forward pass."""

    def __init__(self, width):
        self.width, self.params, self.grads, self.seen = width, {}, {"W": 0.0, "b": 0.0}, []

    def forward(self, inputs, training):
        if not self.params:
            self.params = {"W": np.random.randn(inputs.shape[1], self.width), "b": np.zeros((1, self.width))}
        self.seen.append(inputs)
        self.output = inputs @ self.params["W"] + self.params["b"]

    def backward(self, dvalues):
        self.grads["W"] += self.seen[0].T @ dvalues
        self.grads["b"] += dvalues.sum(0, keepdims=True)
        self.dinputs = dvalues @ self.params["W"].T


class Dropout:
    def forward(self, x):
        self.mask = np.random.rand(*x.shape) < 0.7
        return x * self.mask

    def backward(self, dout):
        dout *= self.mask
        return dout


class Chain:
    """Layers one after the other."""

    def __init__(self, *layers):
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dout):
        for layer in reversed(self.layers):
            dout = layer.backward(dout)
        return dout


class SquaredError:
    def __init__(self, times=2.0):
        self.times = times

    def forward(self, y_pred, y_true):
        self.diff = y_pred - y_true
        return np.mean(self.diff**2)

    def backward(self):
        return self.times * self.diff / self.diff.size


class Absolute:
    """A loss for each example, and the gradient of their mean."""

    sign = 1

    def forward(self, y_pred, y_true):
        return np.abs(y_pred - y_true).mean(-1)

    def backward(self, y_pred, y_true):
        return self.sign * np.sign(y_pred - y_true) / y_pred.size


class Turned(Absolute):
    sign = -1


class Network:
    """Columns; the loss is not computed: its gradient is in backward, and the parameters are moved by it."""

    def __init__(self, n, h, m, lost=1.0):
        self.W1, self.b1 = rng.standard_normal((h, n)), np.zeros((h, 1))
        self.W2, self.b2 = rng.standard_normal((m, h)), np.zeros((m, 1))
        self.lost = lost

    def forward(self, X):
        self.A1 = np.tanh(self.W1 @ X + self.b1)
        Z = self.W2 @ self.A1 + self.b2
        return np.exp(Z) / np.exp(Z).sum(0)

    def backward(self, X, Y, A2, learning_rate=0.1):
        m = X.shape[1]
        dZ2 = A2 - Y
        dZ1 = self.W2.T @ dZ2 * (1 - self.lost * self.A1**2)
        for name, step in {"W2": dZ2 @ self.A1.T, "b2": dZ2.sum(1, keepdims=True),
                           "W1": dZ1 @ X.T, "b1": dZ1.sum(1, keepdims=True)}.items():  # fmt: skip
            setattr(self, name, getattr(self, name) - learning_rate * step / m)


class Scores:
    """A method gives the cost and the gradients of the parameters, by name."""

    def __init__(self, n, m):
        self.model = {"W1": rng.standard_normal((n, m)), "b1": np.zeros(m)}

    def loss(self, X, y):
        p = np.exp(X @ self.model["W1"] + self.model["b1"])
        p /= p.sum(1, keepdims=True)
        cost = -np.log(p[range(len(y)), y]).mean()
        p[range(len(y)), y] -= 1
        p /= len(y)
        return cost, {"W1": X.T @ p, "b1": p.sum(0)}


class Scale:
    """γ x, where γ is still 1: the gradient of x forgets it."""

    def __init__(self):
        self.gamma = np.ones(3)

    def forward(self, x):
        self.x = x
        return self.gamma * x

    def backward(self, dout):
        self.dgamma = (dout * self.x).sum(0)
        return dout


ONE_HOT = np.eye(3)[:, [0, 2, 1, 1, 0]]
AFFINE = Affine(rng.standard_normal((6, 3)), np.zeros(3))
CLASSES = {
    "steps": (lambda: Stepping(rng.standard_normal((3, 4)), np.zeros((3, 1))), ("float32[4,5]",), "x W b"),
    "lazy": (lambda: Lazy(4), ("float32[5,3]", True), "inputs params['W'] params['b']"),
    "dropout": (Dropout, ("float64[4,3]",), "x"),
    "chain": (lambda: Chain(AFFINE, Sigmoid(), Dropout()), ("float64[4,6]",), "x layers_0_W layers_0_b"),
    "loss": (SquaredError, ("float64[4,3], float64[4,3]",), "y_pred"),
    "losses": (Absolute, ("float64[4,3], float64[4,3]",), "y_pred"),
    "network": (lambda: Network(4, 5, 3), ("float64[4,5]", ONE_HOT), "W1 b1 W2 b2"),
    "method": (lambda: Scores(4, 3).loss, ("float64[5,4], int32[5]<3",), "model['W1'] model['b1']"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_as_people_write_them(name):
    make, args, leaves = CLASSES[name]
    report = check(make(), *args, **{**QUICK, "seeds": 2})
    assert report.ok, report
    found = [leaf.path.removeprefix("∂") for leaf in report.leaves if not leaf.forward]
    assert found == re.sub(r"\['(\w+)'\]", r"_\1", leaves).split()


@pytest.mark.parametrize(
    ("make", "args", "wrong", "said"),
    [
        (lambda: SquaredError(1.0), "float64[4,3], float64[4,3]", ["∂y_pred"], "0.5 times what it should be"),
        (Scale, "float64[4,3]", ["∂x"], "cosine"),
        (Turned, "float64[4,3], float64[4,3]", ["∂y_pred"], "wrong sign"),
        (lambda: Chain(Affine(np.eye(4), np.ones(4)), Averaged(np.eye(4), np.ones(4))), "float64[3,4]",
         ["∂layers_1_b"], "0.3333 times"),
        (lambda: Network(4, 5, 3, 0.5), ("float64[4,5]", ONE_HOT), ["∂W1", "∂b1"], "not known for ∂W1, ∂b1"),
    ],
)  # fmt: skip
def test_their_mistakes_are_found(make, args, wrong, said):
    report = check(make(), *(args if isinstance(args, tuple) else (args,)), **QUICK)
    assert [leaf.path for leaf in report.wrong] == wrong
    assert said in report.cause


class SelfTuning(Scale):
    """Moves γ by a rate of its own: its gradient is not seen."""

    def backward(self, dout):
        dx = self.gamma * dout
        self.gamma = self.gamma + 0.01 * (dout * self.x).sum(0)
        return dx


def test_a_parameter_without_a_gradient_is_told():
    report = check(SelfTuning(), "float64[4,3]", **QUICK)
    assert report.ok
    assert any("no gradient was found for gamma" in note for note in report.notes)


def test_what_an_object_cannot_be_asked_about_is_told():
    class Other:
        def forward(self, x):
            return x

        def backward(self, a, b, c, d):
            return a

    with pytest.raises(CannotCheckError, match=r"called with d_out, the inputs.*got backward\(a, b, c, d\)"):
        check(Other(), "float32[3]")


def step(x, h, c):
    return h + x * c, c * h, (x, h, c)


PAIRS = {
    "several outputs": ((step, lambda dn, dc, s: (dn * s[2], dn + dc * s[2], dn * s[0] + dc * s[1])), "float64[3]", 3),
    "labels": ((lambda x, W: (np.asarray(W)[np.asarray(x)], (x, np.shape(W))), lambda d, s: scattered(d, *s)),
               "int32[4]<5", "float64[5,3]"),
    "options": ((lambda x, o: (np.asarray(x) * o["p"], o), lambda d, o: np.asarray(d) * o["p"]),
                "float64[3], {p: 0.3, mode: 'train'}"),
    "of the output": ((lambda z: 1 / (1 + np.exp(-z)), lambda d, a: d * a * (1 - a)), "float64[4]"),
    "a derivative": ((np.tanh, lambda z: 1 - np.tanh(z) ** 2), "float64[4]"),
    "a derivative of the output": ((np.tanh, lambda a: 1 - np.power(a, 2)), "float64[4]"),
}  # fmt: skip


def scattered(d_out, x, shape):
    d = np.zeros(shape)
    np.add.at(d, x, d_out)
    return d


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_as_people_write_them(name):
    pair, *args = PAIRS[name]
    args = [args[0]] * args[1] if args[1:] == [3] else args
    assert check(pair, *args, **QUICK).ok


def test_a_function_gives_its_cost_and_gradients():
    def half(W, b, x, y):
        e = np.asarray(x @ W + b - y)
        return (e**2).sum() / 2, x.T @ e, e.sum(1 if len(e) < 5 else 0)

    args = "float64[3,2], float64[2], float64[{n},3], float64[{n},2]"
    assert check(half, args.format(n=5), **QUICK).ok
    assert [leaf.path for leaf in check(half, args.format(n=2), **QUICK).wrong] == ["∂b"]


def relu_in_place(x):
    out = np.array(x)
    out[out < 0] = 0
    return out


def test_at_a_kink_each_side_is_right_and_nothing_else():
    def right_with(at_zero):  # finite differences give the mean of the two sides
        pair = relu_in_place, lambda d, x: np.where(x > 0, d, np.where(x == 0, at_zero * d, 0))
        return check(pair, np.asarray([0.0, 0.0, 1.0, -1.0]), **QUICK).ok

    assert [right_with(0), right_with(1), right_with(3)] == [True, True, False]


def test_gradients_divided_by_the_examples_are_told():
    report = check((lambda A, W: (W @ A, (A, W)), lambda dZ, s: (s[1].T @ dZ, dZ @ s[0].T / s[0].shape[1])),
                   "float64[3,5], float64[4,3]", **QUICK)  # fmt: skip
    assert "divided by 5, unlike the others: ∂W" in str(report)
    wrong = check(Averaged(rng.standard_normal((6, 3)), np.ones(3)), "float64[4,6]", **QUICK)
    assert [leaf.path for leaf in wrong.wrong] == ["∂b"]
    assert "divided by 4" not in str(wrong)  # ∂W is not: no convention


@pytest.mark.parametrize(("times", "told"), [(1.0, True), (0.9, False)])
def test_a_gradient_with_respect_to_the_logits_is_told(times, told):
    report = check((lambda p, y: -(y * np.log(p)).sum(), lambda d, p, y: (times * p - y, None)),
                   "float64[4,3]>0<1, float64[4,3]>0<1", **QUICK)  # fmt: skip
    assert not report.ok
    assert any("with respect to the logits" in note for note in report.notes) is told


def test_an_expression_names_an_object(capsys):
    assert run([f"{__name__}:Lazy(4)"], inputs="float64[5,3], False", seeds=1) == 0
    assert run([f"{__name__}:Lazy(5, 6, 7)"], inputs="float64[5,3]") == 2
    assert "must be a name or a call, but it raises TypeError" in capsys.readouterr().err


def test_a_class_with_parameters_is_given_as_an_object():
    with pytest.raises(CannotCheckError, match="give an object of the class"):
        check(Affine, "float32[4,6]")


class Columns:
    """Layers of sigmoids for one column; the gradients are lists, of the biases and of the weights."""

    def __init__(self, sizes, lost=0.0):
        self.biases = [rng.standard_normal((n, 1)) for n in sizes[1:]]
        self.weights = [rng.standard_normal((n, m)) for m, n in itertools.pairwise(sizes)]
        self.lost = lost

    def feedforward(self, a):
        for b, w in zip(self.biases, self.weights, strict=True):
            a = 1 / (1 + np.exp(-(w @ a + b)))
        return a

    def backprop(self, x, y):
        values = [x]
        for b, w in zip(self.biases, self.weights, strict=True):
            values.append(1 / (1 + np.exp(-(w @ values[-1] + b))))
        delta, of_b, of_w = values[-1] - y, [], []
        for k in reversed(range(len(self.weights))):
            delta = delta * values[k + 1] * (1 - values[k + 1] + (self.lost if k == 0 else 0))
            of_b, of_w = [delta, *of_b], [delta @ values[k].T, *of_w]
            delta = self.weights[k].T @ delta
        return of_b, of_w

    def update_mini_batch(self, batch, eta):
        for x, y in batch:
            of_b, of_w = self.backprop(x, y)
            self.biases = [b - eta / len(batch) * d for b, d in zip(self.biases, of_b, strict=True)]
            self.weights = [w - eta / len(batch) * d for w, d in zip(self.weights, of_w, strict=True)]


class Fitted:
    """Keeps its examples; the step is added, since the error is turned, and its rate is in no attribute."""

    def __init__(self, x, y, lost=0.0):
        self.x, self.y, self.lost = x, y, lost
        self.first, self.second = rng.standard_normal((x.shape[1], 4)), rng.standard_normal((4, y.shape[1]))

    def feedforward(self):
        self.hidden = np.tanh(self.x @ self.first)
        self.out = self.hidden @ self.second
        return self.out

    def backprop(self):
        error = self.y - self.out
        back = error @ self.second.T * (1 - (1 - self.lost) * self.hidden**2)
        self.second += 0.03 * self.hidden.T @ error
        self.first += 0.03 * self.x.T @ back


BIASES = ["∂biases_0", "∂biases_1", "∂weights_0", "∂weights_1"]


@pytest.mark.parametrize("sizes", [[3, 4, 2], [3, 3, 3]])
@pytest.mark.parametrize("method", ["", "update_mini_batch"])
def test_gradients_in_lists_and_steps_of_a_batch(sizes, method):
    inputs = f"float64[{sizes[0]},1], float64[{sizes[-1]},1]"
    right, wrong = Columns(sizes), Columns(sizes, 0.5)
    report = check(getattr(right, method) if method else right, inputs, **QUICK)
    assert report.ok, report
    assert [leaf.path for leaf in report.leaves if not leaf.forward] == BIASES
    wrong = check(getattr(wrong, method) if method else wrong, inputs, **QUICK)
    assert [leaf.path for leaf in wrong.wrong] == ["∂biases_0", "∂weights_0"]


def test_a_class_that_keeps_its_examples():
    report = check(Fitted, "float64[5,3], float64[5,2]", **QUICK)
    assert report.ok, report
    assert "held against 0.03 · Σ ½(out − target)²" in report.notes[0]
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    assert [leaf.path for leaf in check(Fitted(x, y, 0.5), **QUICK).wrong] == ["∂first"]
