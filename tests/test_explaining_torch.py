"""PyTorch modules explained: their own weights, PyTorch's own gradients; layers that are not known are named."""

import numpy as np
import pytest

from jaxnet.explaining import ExplainError, derive, observe
from jaxnet.explaining.subjects import at, named

torch = pytest.importorskip("torch", reason="needs the extra `peers`: pip install -e '.[peers]'")
pytestmark = pytest.mark.peers

SOURCE = """
from torch import nn

middle = nn.Sequential(nn.ReLU(), nn.Linear(3, 3, bias=False))
known = nn.Sequential(nn.Linear(2, 3), middle, nn.GELU(), nn.Linear(3, 2))
unknown = nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Dropout())


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) * 2


own = Own()
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "modules.py"
    path.write_text(SOURCE)
    return path


def test_a_module_has_the_gradients_of_torch(file):
    subject = named(f"{file}:known", inputs="float32[2]")
    x, y = at(subject.xs, 0), subject.ys[0]
    derivation = derive(observe(subject.net, subject.loss, subject.params, x, y))
    assert derivation.checked.ok
    weights = [torch.tensor(each[key], requires_grad=True) for each in subject.params if each for key in each]
    w1, b1, w2, w3, b3 = weights
    out = torch.nn.functional.gelu(w2 @ torch.relu(w1 @ torch.tensor(x) + b1))
    (0.5 * ((w3 @ out + b3 - torch.tensor(y)) ** 2).sum()).backward()
    found = [line.value for line in derivation.backward if line.kind == "dW"]
    for value, weight in zip(found, (w3, w2, w1), strict=True):
        np.testing.assert_allclose(value, weight.grad, rtol=1e-4, atol=1e-6)
    assert "the parameters are the module's" in subject.notes[0]


def test_layers_that_are_not_known_are_named(file):
    with pytest.raises(ExplainError, match="got layers that are not known: PReLU, Dropout: write these"):
        named(f"{file}:unknown", inputs="float32[2]")
    with pytest.raises(ExplainError, match="got a module with a forward of its own: Own: write"):
        named(f"{file}:own", inputs="float32[2]")
