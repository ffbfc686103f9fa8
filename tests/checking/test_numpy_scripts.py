"""Scripts, functions that share arrays by name, and autograd engines: right ones pass, a mistake is named."""

import pytest

from jaxnet.checking import check
from jaxnet.checking.targets import find
from jaxnet.explaining.notation import ExplainError
from jaxnet.explaining.subjects import named

QUICK = {"seeds": 1, "also": False, "shapes": False, "diagnose": False, "precise": False}

STEPS = """
import numpy as np
rng = np.random.default_rng(0)
X = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]])
y = np.array([[0, 1, 1, 0]]).T
first, second = rng.standard_normal((3, 4)), rng.standard_normal((4, 1))
for epoch in range(10**9):
    a = 1 / (1 + np.exp(-X @ first))
    p = 1 / (1 + np.exp(-a @ second))
    back = (y - p) * p * (1 - p)
    second_step, before = a.T @ back, second
    second = second + 0.003 * second_step
    first += 0.003 * X.T @ (back @ before.T * a * (1 - a))
"""
NAMED = """
import numpy as np
import a_plotter_that_is_not_there as plot
rng = np.random.default_rng(0)
x, y = rng.standard_normal((7, 6)), rng.standard_normal((7, 3))
W, V, lr = rng.standard_normal((6, 5)), rng.standard_normal((5, 3)), 1e-6
name = input("your name? ")
for t in range(3):
    z = x @ W
    h = np.maximum(z, 0)
    out = h @ V
    loss = ((out - y) ** 2).sum()
    print(loss)
    dout = 2 * (out - y)
    dV = h.T @ dout
    dh = dout @ V.T
    dz = dh.copy()
    dz[z < 0] = 0
    dW = x.T @ dz
    W -= lr * dW
    V -= lr * dV
"""
FUNCTIONS = """
import numpy as np

def forward(W, b, X):
    Z = W @ X + b
    A = np.exp(Z) / np.exp(Z).sum(0)
    return Z, A

def backward(A, X, Y):
    m = Y.size
    dZ = A - np.eye(3)[:, Y]
    dW = dZ @ X.T / m
    db = dZ.sum(1, keepdims=True) / m
    return dW, db

V, c = np.ones((3, 4)) * [[1.0], [0.5], [-1.0]], np.zeros((3, 1))

def loss(x, k):
    p = np.exp(V @ x + c)
    p = p / p.sum()
    dp = p - np.eye(3)[:, [int(k)]]
    dV = dp @ x.T
    dc = dp
    return -np.log(p[int(k), 0]), dV, dc, p

network = [[{"w": [0.5, -0.3, 0.1]}, {"w": [0.2, 0.4, -0.6]}]]

def outputs(network, row):
    for neuron in network[0]:
        neuron["out"] = sum(w * r for w, r in zip(neuron["w"], row)) + neuron["w"][-1]
    return [neuron["out"] for neuron in network[0]]

def errors(network, expected):
    for neuron, e in zip(network[0], expected):
        neuron["delta"] = neuron["out"] - e

def update(network, row, l_rate):
    for neuron in network[0]:
        for j in range(2):
            neuron["w"][j] -= l_rate * neuron["delta"] * row[j]
        neuron["w"][-1] -= l_rate * neuron["delta"]
"""
ENGINE = """
import math

class Number:
    def __init__(self, data, children=()):
        self.data, self.grad, self.children, self.back = data, 0.0, children, lambda: None

    def __add__(self, other):
        out = Number(self.data + other.data, (self, other))
        def back():
            self.grad += out.grad
            other.grad += out.grad
        out.back = back
        return out

    def __mul__(self, other):
        out = Number(self.data * other.data, (self, other))
        def back():
            self.grad += other.data * out.grad
            other.grad += self.data * out.grad
        out.back = back
        return out

    def tanh(self):
        t = math.tanh(self.data)
        out = Number(t, (self,))
        def back():
            self.grad += (1 - t * t) * out.grad
        out.back = back
        return out

    def backward(self):
        self.grad = 1.0
        self.back()

class Square:
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, d_out):
        (x,) = ctx.saved_tensors
        return 2 * x * d_out
"""


def reports(folder, text, change=("", ""), name="", inputs=None):
    """The reports on a file with a change, by name."""
    file = folder / f"script_{abs(hash(change))}.py"
    file.write_text(text.replace(*change) if change[0] else text)
    assert change[0] in text
    found = find(f"{file}:{name}" if name else str(file), inputs)
    return {each.name.replace(file.name, ""): check(each.rule, *each.args, **QUICK) for each in found}


def wrong(found):
    """The wrong leaves by the names of the reports."""
    return [(name, [leaf.path for leaf in report.wrong]) for name, report in found.items() if not report.ok]


def test_a_script_that_moves_its_arrays(tmp_path):
    report = reports(tmp_path, STEPS)[""]
    assert report.ok, report
    assert [leaf.path for leaf in report.leaves] == ["forward", "∂first", "∂second"]
    assert "steps along the gradients of 0.003 · Σ ½(p − y)²" in report.notes
    report = reports(tmp_path, STEPS, ("a * (1 - a)", "(1 - a)"))[""]
    assert [leaf.path for leaf in report.wrong] == ["∂first"]
    assert "the first wrong gradient is the step of first at" in report.notes[0]


def test_a_script_whose_gradients_are_named(tmp_path):
    report = reports(tmp_path, NAMED)[""]
    assert report.ok, report
    assert {leaf.path for leaf in report.leaves} == {"forward", "∂W", "∂V", "∂out", "∂h", "∂z"}
    report = reports(tmp_path, NAMED, ("dz[z < 0] = 0", "pass"))[""]
    assert {leaf.path for leaf in report.wrong} == {"∂W", "∂z"}
    assert report.notes[0].startswith("the first wrong gradient is dz at")
    assert report.notes[0].endswith(":17")


@pytest.mark.parametrize(
    ("text", "name", "inputs", "change", "leaves"),
    [
        (FUNCTIONS, "forward, backward", "float64[3,4], float64[3,1], float64[4,5], int32[5]<3",
         ("dZ.sum(1, keepdims=True) / m", "dZ.sum() / m"), []),
        (FUNCTIONS, "forward, backward", "float64[3,4], float64[3,1], float64[4,5], int32[5]<3",
         ("dZ @ X.T / m", "A @ X.T / m"), ["∂W"]),
        (FUNCTIONS, "loss", "float64[4,1], 2", ("dp @ x.T", "p @ x.T"), ["∂V"]),
        (FUNCTIONS, "outputs, errors, update", "float64[2], float64[2]",
         ("l_rate * neuron[\"delta\"] * row[j]", "l_rate * neuron[\"delta\"]"), ["∂network_0_0_w", "∂network_0_1_w"]),
        (ENGINE, "Square", "float64[3]", ("2 * x * d_out", "x * d_out"), ["∂x"]),
        (ENGINE, "Number", None, ("(1 - t * t)", "(1 - t)"), ["∂a"]),
        (ENGINE, "Number", None, ("self.grad += out.grad", "self.grad = out.grad"), ["∂a"]),
    ],
)  # fmt: skip
def test_each_kind_right_and_wrong(tmp_path, text, name, inputs, change, leaves):
    right = reports(tmp_path, text, name=name, inputs=inputs)
    assert not wrong(right), str(right)
    [(_, found)] = wrong(reports(tmp_path, text, change, name, inputs))
    assert found == leaves or (not leaves and found)


def test_a_script_is_not_explained(tmp_path):
    (tmp_path / "named.py").write_text(NAMED)
    with pytest.raises(ExplainError, match="name an object in it, and give --inputs"):
        named(str(tmp_path / "named.py"))
