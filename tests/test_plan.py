"""Plans: what a step takes on devices, from its compiled program, and how a step that does not fit is refused."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxnet.devices import scaling
from jaxnet.devices.chips import CHIPS, Chip, DeviceTarget, TargetError, target
from jaxnet.training.config import ConfigError
from jaxnet.training.data import load
from jaxnet.training.plan import PlanError, planned, run
from tests.runs import small


def plan_of(*overrides, devices="cpu:1", **document):
    config = small(*overrides, **document)
    return planned(config, load(config.data), target(devices))


def test_a_plan_counts_what_a_step_takes():
    batch, sizes = 16, [(8, 5), (3, 8)]
    optimizer = {"name": "adam", "learning_rate": 0.1}
    plan, program = plan_of(train={"epochs": 1, "batch": batch, "optimizer": optimizer})
    numbers = sum(out * inputs + out for out, inputs in sizes)
    assert plan.parameters == 4 * numbers
    assert plan.optimizer == 2 * 4 * numbers + 4  # two moments and a count
    assert plan.activations == 4 * batch * (5 + 8 + 8)  # what a, tanh and b save
    [first, second] = [o * i for o, i in sizes]
    assert plan.flops == pytest.approx(2 * batch * (2 * first + 3 * second))  # forward, dW, and dx of the second
    assert plan.exchanges == {}
    assert plan.peak >= plan.parameters + plan.optimizer
    assert "ENTRY" in program.as_text()


def test_a_plan_on_a_mesh_is_of_each_device():
    overrides = ["train.batch=16", "mesh.fsdp=8", 'model=[{dense = 8}, "tanh", {dense = 8}]']
    one, _ = plan_of(overrides[0], overrides[2])
    plan, _ = plan_of(*overrides, devices="cpu:8")
    biases = 2 * 8
    assert plan.parameters == (one.parameters - 4 * biases) / 8 + 4 * biases
    assert plan.flops == pytest.approx(one.flops / 8)
    assert plan.exchanges["all-gather"][0] >= 2
    assert next(iter(plan.lines())) == "cpu:8, each device, each step:"


def test_a_step_that_does_not_fit_is_refused_with_its_largest_arrays(monkeypatch):
    aim = target("cpu:1")
    tiny = aim._replace(chip=aim.chip._replace(memory=1000.0))
    monkeypatch.setattr("jaxnet.training.plan.target", lambda text: tiny)
    with pytest.raises(PlanError, match=r"must fit into 1,000 bytes .* The largest arrays: saved .*float32\[10, 8\]"):
        run(small(), "cpu:1", None, None, None)


def test_the_text_and_the_plan_are_written(tmp_path, capsys):
    run(small(), "cpu:1", None, tmp_path / "step.hlo", tmp_path / "plan.json")
    assert "ENTRY" in (tmp_path / "step.hlo").read_text()
    assert json.loads((tmp_path / "plan.json").read_text())["devices"] == "cpu:1"
    assert "peak memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu", "devices are written cpu:8"),
        ("cpu:0", "devices are written"),
        ("cuda:h10:8", 'names no cuda device known here: did you mean "h100"'),
        ("tpu:16x16", "names no tpu device"),
    ],
)
def test_a_text_that_names_no_devices_is_refused(text, told):
    with pytest.raises(TargetError, match=told):
        target(text)


def test_more_cpus_than_there_are_are_refused():
    with pytest.raises(TargetError, match="device_count=100"):
        target("cpu:100").devices()


def test_a_mesh_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"cpu:8 has 8 devices, the config asks for one device: set mesh.data=8"):
        plan_of(devices="cpu:8")


@pytest.mark.parametrize("plugin", [("cuda:h100:8", "jax_cuda12_plugin", "launches"), ("tpu:v5e:2x2", "libtpu", "tpu")])
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, plugin):
    text, module, extra = plugin
    monkeypatch.setattr("jaxnet.devices.chips.find_spec", lambda name: None)
    with pytest.raises(TargetError, match=rf"needs {module}: pip install 'jaxnet-backprop\[{extra}\]'"):
        target(text).devices()


GPT = """
data = {{ name = "{text}", window = 64, limit = 64 }}
loss = "softmax_cross_entropy"
model = {{ name = "gpt2", width = 64, heads = 2, depth = 2, positions = 64, vocab = 64 }}
train = {{ epochs = 1, batch = 8, optimizer = {{ name = "adamw", learning_rate = 1e-3 }} }}
mesh = {{ data = 4, tensor = 2 }}
"""


@pytest.mark.parametrize(
    ("devices", "module"),
    [
        pytest.param("cuda:h100:8", "jax_cuda12_plugin", marks=pytest.mark.launches),
        pytest.param("tpu:v5e:2x4", "libtpu", marks=pytest.mark.tpu),
    ],
)
def test_compiled_for_several_devices_each_runs_the_kernels_on_its_share(devices, module, tmp_path):
    pytest.importorskip(module, reason="XLA's compilers come with the extras `launches` and `tpu`")
    config, text, program = (tmp_path / name for name in ("gpt.toml", "letters.txt", "step.hlo"))
    text.write_text("".join(chr(48 + i * i % 64) for i in range(4000)))
    config.write_text(GPT.format(text=text))
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-m", "jaxnet", "plan", config, "--devices", devices, "--program", program]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    kernels = [line for line in program.read_text().splitlines() if "custom-call(" in line and "pallas_call" in line]
    attention = [line for line in kernels if "attention" in line]
    assert len(attention) >= 3
    heads = "[2,64,1,32]" if module != "libtpu" else "[2,1,128,32]"  # of 8 examples and 2 heads
    assert all(heads in line for line in attention)
    assert len([line for line in kernels if "norm" in line]) >= 2


def test_every_chip_has_its_numbers():
    for chip in CHIPS.values():
        assert np.all(np.array([chip.memory, chip.bandwidth, chip.link, *chip.flops]) > 1e9)
    assert isinstance(target("tpu:v5e:4x4"), DeviceTarget)
    assert target("tpu:v5e:4x4").total == 16
    assert jax.device_count() == 8


def test_weak_scaling_on_paper():
    """Rings by hand: 8 in a domain of 8 at 4 B/s, then domains at 2 B/s."""
    chip = Chip("made up", 1e9, 1.0, (1.0, 1.0), 4.0, 0.0, 8, 2.0)
    rows = {row.devices: row for row in scaling.scaled(3.0, 8.0, 1, chip)}
    assert list(rows) == [2**i for i in range(13)]
    assert rows[1].exchange == 0
    assert rows[1].efficiency == (1, 1)
    assert rows[8].exchange == 2 * 8 * 7 / 8 / 4
    assert rows[16].exchange == rows[8].exchange + 2 * 1 * 1 / 2 / 2
    assert rows[8].efficiency == (3 / 6.5, 3 / 4.5)  # 2 of the 3 seconds hide as many of the 3.5
    assert scaling.scaled(3.0, 8.0, 8, chip)[1].exchange == 2 * 8 / 2 / 2
    assert scaling.scaled(3.0, 8.0, 8, chip, replicas=4)[1].exchange == 2 * 8 / 4 / 2 / 2


def test_the_plan_prints_more_devices(capsys):
    run(small(), "cpu:1", None, None, None, scale=True)
    assert "4,096" in capsys.readouterr().out
