"""A run that begins with another's parameters: partial loading, frozen layers, a new head."""

import shutil

import jax
import numpy as np
import pytest

from jaxnet.training import loop
from jaxnet.training.build import parameter_names
from jaxnet.training.checkpoint import plain
from jaxnet.training.config import ConfigError
from jaxnet.training.run_folder import RunError
from jaxnet.training.trained_network import restore
from tests.runs import called, metrics, small, summary

NORMED = [{"dense": 8}, "batch_norm", "tanh", {"dense": 3}]
NEW_HEAD = [*NORMED[:3], {"dense": 6}]  # six classes have room for three


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return loop.train(small(model=NORMED), run_dir=tmp_path_factory.mktemp("source") / "run", quiet=True)


def values(folder):
    """A run's trained parameters, and what its layers keep, by name."""
    params = plain(restore(folder).params)
    return dict(zip(jax.tree.leaves(parameter_names(params)), jax.tree.leaves(params), strict=True))


def test_a_run_begins_where_another_ended(source, tmp_path):
    run = loop.train(
        small("train.epochs=0", f"start_from={source}", model=NORMED), run_dir=tmp_path / "run", quiet=True
    )
    assert summary(run)["params_sha256"] == summary(source)["params_sha256"]


def test_a_new_head_on_frozen_layers(source, tmp_path, capsys):
    config = small(
        f"start_from={source}", 'train.freeze=[0, "1.gamma"]', "train.optimizer={name='adam',learning_rate=0.1}"
    )
    config = config.model_copy(update={"model": small(model=NEW_HEAD).model})
    run = loop.train(config, run_dir=tmp_path / "run")
    assert "of step 33" not in (said := capsys.readouterr().out)
    assert f"parameters of {source}, step 33; initialised anew: 3.W (6, 8), 3.b (6,)" in said
    before, after = values(source), values(run)
    for name in ("0.W", "0.b", "1.gamma"):
        np.testing.assert_array_equal(after[name], before[name])
    for name in ("1.beta", "3.W", "3.b"):
        assert name == "3.W" or name == "3.b" or np.any(after[name] != before[name]), name
    assert after["3.W"].shape == (6, 8)


def test_seeds_together_begin_with_the_same(source, tmp_path):
    config = small("train.epochs=0", f"start_from={source}", model=NEW_HEAD)
    one, other = loop.train_together(config, [0, 1], runs_dir=tmp_path, quiet=True)
    same = {name for name, value in values(one).items() if np.array_equal(value, values(other)[name])}
    assert same == set(values(one)) - {"3.W"}


def test_killed_before_its_first_checkpoint_it_begins_there_again(source, tmp_path):
    config = small("train.epochs=1", f"start_from={source}", model=NORMED)
    whole = loop.train(config, run_dir=tmp_path / "whole", quiet=True)
    cut = shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints")
    (cut / "summary.json").unlink()
    loop.resume(cut, quiet=True)
    assert summary(cut)["params_sha256"] == summary(whole)["params_sha256"]
    assert metrics(cut) == metrics(whole)


def test_a_source_that_has_changed_is_not_begun_with_again(source, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    run = loop.train(small("train.epochs=1", f"start_from={other}", model=NORMED), run_dir=tmp_path / "run", quiet=True)
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    loop.resume(other, overrides=["train.epochs=4"], quiet=True)
    with pytest.raises(RunError, match=r"from which .* starts, has changed: train a new run"):
        loop.resume(run, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["start_from=SOURCE", "model=[{dense=9},{dense=3}]"], r"no parameter of .* has the name and shape"),
        (["start_from=nowhere"], "nowhere is not a run: there is no such folder"),
        (["train.freeze=[7]"], 'train.freeze: there is no parameter in "7"'),
        (["train.freeze=[0, 2]"], "must leave a parameter to train"),
    ],
)
def test_what_does_not_fit_is_told(source, tmp_path, overrides, words):
    overrides = [each.replace("SOURCE", str(source)) for each in overrides]
    with pytest.raises((ConfigError, RunError), match=words):
        loop.train(small(*overrides), run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_command(source, tmp_path):
    found = called("train", source / "config.toml", "--from", source, "--runs-dir", tmp_path)
    assert found.exit_code == 0, found.stderr
    assert f"begins with 8 parameters of {source}, step 33" in found.stdout
