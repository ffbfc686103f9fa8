"""NumPy modules and functions explained: their own weights, gradients by finite differences, unknown layers named."""

import numpy as np
import pytest

from jaxnet.explaining import ExplainError, derive, observe
from jaxnet.explaining.expressions import written
from jaxnet.explaining.functions import derivation_of_function
from jaxnet.explaining.notation import notation
from jaxnet.explaining.subjects import at, named

SOURCE = '''
import numpy as np
from numpy import maximum

rng = np.random.default_rng(1)


class Dense:
    """Rows: W is (in, out)."""

    def __init__(self, n_in, n_out):
        self.W, self.b = rng.standard_normal((n_in, n_out)), rng.standard_normal(n_out)
        self.dW = np.zeros_like(self.W)

    def forward(self, x):
        self.x = x
        return x @ self.W + self.b


class ReLU:
    def forward(self, z):
        self.mask = z > 0
        return z * self.mask


class Wave:
    def forward(self, z):
        return np.sin(z)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


class Model:
    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer.forward(x) if hasattr(layer, "forward") else layer(x)
        return x


class Shifted(Model):
    def forward(self, x):
        return super().forward(x) + 1


class Own:
    """Columns, W is (out, in), all weights in a dictionary."""

    def __init__(self):
        self.params = {"W1": rng.standard_normal((4, 3)), "b1": np.zeros((4, 1)), "W2": rng.standard_normal((2, 4)),
                       "b2": rng.standard_normal((2, 1))}

    def forward(self, x):
        p = self.params
        self.a1 = np.tanh(p["W1"] @ x + p["b1"])
        return 1 / (1 + np.exp(-(p["W2"] @ self.a1 + p["b2"])))


class Listed:
    """Columns, the weights in one list and the biases in another, as in Nielsen's book."""

    def __init__(self, sizes):
        self.biases = [rng.standard_normal((y, 1)) for y in sizes[1:]]
        self.weights = [rng.standard_normal((y, x)) for x, y in zip(sizes, sizes[1:])]

    def feedforward(self, a):
        for b, w in zip(self.biases, self.weights):
            a = 1 / (1 + np.exp(-(np.dot(w, a) + b)))
        return a


nielsen = Listed([3, 4, 2])
model = Model(Dense(3, 4), ReLU(), Dense(4, 2), softmax)
listed = [Dense(3, 4), np.tanh, Dense(4, 2)]
wave = Model(Dense(3, 4), Wave(), Dense(4, 2))
shifted = Shifted(Dense(3, 4), ReLU(), Dense(4, 2))
own = Own()


def relu(z):
    return maximum(z, 0)


def loss(W1, b1, W2, x, y):
    z = W1 @ x + b1
    a = relu(z)
    out = W2 @ a
    return 0.5 * np.sum((out - y) ** 2)


def in_place(x):
    out = np.zeros(3)
    out[0] = x[0]
    return out.sum()
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("numpy") / "course.py"
    path.write_text(SOURCE)
    return path


def module_of(file, name):
    space = {}
    exec(compile(SOURCE, str(file), "exec"), space)
    return space[name]


NETWORKS = {
    "model": "serial(dense(4), relu, dense(2), softmax)",
    "listed": "serial(dense(4), tanh, dense(2))",
    "own": "serial(dense(4), tanh, dense(2), sigmoid)",
    "nielsen": "serial(dense(4), sigmoid, dense(2), sigmoid)",
    "Own": "serial(dense(4), tanh, dense(2), sigmoid)",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_known_by_what_they_give(file, name):
    subject = named(f"{file}:{name}", inputs="float32[3]")
    assert repr(subject.net) == NETWORKS[name]
    assert "the parameters are the module's" in subject.notes[0]


def test_a_module_has_the_gradients_of_finite_differences(file):
    subject = named(f"{file}:own", inputs="float32[3]")
    x, y = at(subject.xs, 0), subject.ys[0]
    derivation = derive(observe(subject.net, subject.loss, subject.params, x, y))
    assert derivation.checked.ok
    module = module_of(file, "own")
    lines = {line.key: line.value for line in derivation.backward}

    def cost():
        return 0.5 * np.sum((module.forward(np.asarray(x, np.float64)[:, None]).reshape(-1) - y) ** 2)

    for name, key in {"W1": "dW2", "b1": "db2", "W2": "dW3", "b2": "db3"}.items():
        of, found = module.params[name], np.zeros_like(module.params[name])
        for i in np.ndindex(of.shape):
            before, costs = of[i], []
            for by in (1e-5, -1e-5):
                of[i] = before + by
                costs.append(cost())
            of[i], found[i] = before, (costs[0] - costs[1]) / 2e-5
        np.testing.assert_allclose(lines[key].reshape(found.shape), found, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wave", "got Wave, which gives something else: write it as a function of arrays"),
        ("shifted", "runs its layers one after the other, got Shifted, whose own forward pass gives something else"),
    ],
)
def test_what_is_not_known_is_named(file, name, said):
    with pytest.raises(ExplainError, match=said):
        named(f"{file}:{name}", inputs="float32[3]")


def test_a_width_that_does_not_fit(file):
    with pytest.raises(ExplainError, match=r"Dense does not run at 5 numbers: .*give other --inputs"):
        named(f"{file}:model", inputs="float32[5]")


def test_a_function_of_numpy_has_its_own_lines(file):
    subject = named(f"{file}:loss", inputs="float32[4,3], float32[4], float32[2,4], float32[3], float32[2]")
    derivation = derivation_of_function(subject, notation())
    assert derivation.checked.ok
    assert {"z = W₁x + b₁", "a = relu(z)", "∂C/∂z = ∂C/∂a ⊙ relu′(z)", "∂C/∂W₁ = ∂C/∂z xᵀ"} <= {
        f"{written(each.left)} = {written(each.right)}" for each in (*derivation.forward, *derivation.backward)
    }
    W1, b1, W2, x, y = (np.asarray(each, np.float64) for each in subject.args)
    z = W1 @ x + b1
    expected = np.outer((W2.T @ (W2 @ np.maximum(z, 0) - y)) * (z > 0), x)
    [line] = [each for each in derivation.backward if each.key == "dW1"]
    np.testing.assert_allclose(line.value, expected, rtol=1e-4, atol=1e-6)


def test_a_function_that_writes_into_its_arrays_is_refused(file):
    with pytest.raises(ExplainError, match="cannot be run at these inputs: JAX arrays are immutable"):
        derivation_of_function(named(f"{file}:in_place", inputs="float32[3]"), notation())
