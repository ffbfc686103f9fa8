"""Exported and compiled files: they run without jaxnet and give the original's outputs, else they are refused."""

import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export
from jax.experimental.serialize_executable import deserialize_and_load

from jaxnet.training import compiling, devices, loop, step
from jaxnet.training.data import load
from jaxnet.training.exporting import ExportError, export_run, export_step, run, written
from jaxnet.training.session import Session
from jaxnet.training.trained_network import restore
from tests.runs import small

READS = """
import sys, jax, numpy as np
from jax import export
call = export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
np.save(sys.argv[3], call(np.load(sys.argv[2])))
assert not [name for name in sys.modules if name.startswith("jaxnet")]
"""


def test_a_run_is_a_file_that_jax_runs_alone(tmp_path):
    folder = loop.train(small(), run_dir=tmp_path / "run", quiet=True)
    file = tmp_path / "network.jax"
    assert "its outputs differ by" in export_run(folder, file, ["cpu", "cuda", "tpu"])
    trained = restore(folder)
    xs = np.asarray(trained.session.arrays["test"].x[:5])  # another number of examples than it was tried with
    np.save(tmp_path / "x.npy", xs)
    subprocess.run([sys.executable, "-c", READS, file, tmp_path / "x.npy", tmp_path / "y.npy"], check=True, cwd="/")
    expected = jax.vmap(lambda x: trained.session.recipe.net.forward(trained.params, x)[0])(xs)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-5, atol=1e-6)


def test_a_step_is_a_file_that_trains(tmp_path):
    config = small(train={"epochs": 1, "batch": 10, "optimizer": {"name": "adam", "learning_rate": 0.1}})
    file = tmp_path / "step.jax"
    export_step(config, file, ["cpu"])
    call = export.deserialize(bytearray(file.read_bytes())).call
    with devices.precision("float32"):
        session = Session(config, load(config.data))
        state = session.begin()
        xs, ys = (t[:10] for t in session.arrays["train"])
        leaves = call(jax.tree.leaves(state), xs, ys, session.key)
        expected = jax.jit(step.training_step(session.recipe))(state, xs, ys, session.key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), leaves, jax.tree.leaves(expected))


def test_a_compiled_step_is_a_file_that_trains(tmp_path, capsys):
    config, file = small("mesh.data=2", "train.epochs=1"), tmp_path / "step.bin"
    compiling.run(config, "cpu:2", file, None)
    told = capsys.readouterr().out
    assert "peak memory" in told
    assert "read back and run" in told
    loaded = deserialize_and_load(*pickle.loads(file.read_bytes()), execution_devices=jax.devices()[:2])
    with devices.precision("float32"):
        session = Session(config, load(config.data))
        xs, ys = (t[:10] for t in session.arrays["train"])
        given = jax.tree.leaves(session.begin()), np.asarray(xs), np.asarray(ys), session.key
        found = loaded(*jax.device_put(given, loaded.input_shardings[0]))
        expected = jax.jit(step.step_of_leaves(session.recipe))(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


def test_a_compiled_step_that_gives_other_outputs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxnet.training.compiling.difference", lambda *of: 0.25)
    with pytest.raises(compiling.CompileError, match=r"must give the step.s own outputs, got a difference of 0\.25"):
        compiling.run(small(), "cpu:1", tmp_path / "step.bin", None)


def test_a_file_that_gives_other_outputs_is_refused(tmp_path, monkeypatch):
    x, file = np.ones(3, np.float32), tmp_path / "f.jax"
    other = export.export(jax.jit(lambda x: 1.25 * x), platforms=["cpu"])(x).serialize()
    monkeypatch.setattr("jaxnet.training.exporting.write_whole", lambda path, content: path.write_bytes(other))
    with pytest.raises(ExportError, match=r"must give the original.s outputs within 1e-05, got 0\.25"):
        written(file, lambda x: x, (x,), (x,), ["cpu"], "float32")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("gpu", ()), 'one of cpu, cuda, rocm, tpu, got "gpu"'), (("cpu", ("seed=3",)), "exported as it was trained")],
)
def test_bad_input_is_refused(tmp_path, arguments, told):
    folder = loop.train(small("train.epochs=0"), run_dir=tmp_path / "run", quiet=True)
    platforms, overrides = arguments
    with pytest.raises(ExportError, match=told):
        run(folder, tmp_path / "out.jax", platforms, overrides, None)


def test_without_flatbuffers_the_repair_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("jaxnet.training.exporting.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install flatbuffers"):
        written(tmp_path / "f.jax", abs, (1.0,), (1.0,), ["cpu"], "float32")
