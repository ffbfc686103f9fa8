"""kill -9 at any moment, then resume: the same bits as a run that was never cut off. For real, in processes."""

import hashlib
import json
import random
import shutil
import time
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tomli_w

from jaxnet.training import loop
from jaxnet.training.checkpoint import CheckpointError, CheckpointWriter, Progress
from jaxnet.training.config import dump_toml
from jaxnet.training.run_folder import Run, RunError
from tests import runs
from tests.runs import called, command, killed, metrics, small, summary

# Dropout, a schedule and accumulation have states of their own; a checkpoint after each of eight calls in an epoch.
LONG = small(
    "train.steps_per_call=4",
    "checkpoint.every_seconds=0.0",
    "train.epochs=6",
    "train.accumulate=3",
    model=[{"dense": 8}, "tanh", {"dropout": 0.1}, {"dense": 3}],
    monitor={"mean_delta": 5, "gradient_norms": True},
    train={
        "epochs": 1,
        "batch": 10,
        "optimizer": {
            "name": "adam",
            "learning_rate": {
                "schedule": "exponential_decay",
                **{"init_value": 0.01, "transition_steps": 10, "decay_rate": 0.9},
            },
        },
    },
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing cut off."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.toml").write_text(dump_toml(LONG))
    assert called("train", folder / "small.toml", "--run-dir", folder / "run").exit_code == 0
    return folder / "run"


def begin_or_go_on(folder, config):
    """The words of `train`, or of `resume` where there is something to resume."""
    return ("resume", folder) if (folder / "config.toml").exists() else ("train", config, "--run-dir", folder)


def cut_off(folder, config, kills, seed):
    """Runs to the end, killed so many times, each at a moment drawn after the folder has changed."""
    dice = random.Random(seed)
    while kills:
        process = command(*begin_or_go_on(folder, config))
        began, before = time.monotonic(), newest(folder)
        while process.poll() is None and newest(folder) == before and time.monotonic() - began < 60:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 1.0))
        if process.poll() is None:
            kills -= 1
        killed(process)
        if folder.exists() and (folder / "summary.json").exists():
            break
    assert called(*begin_or_go_on(folder, config)).exit_code == 0
    return kills


def newest(folder):
    """What changes in a folder as its run goes on."""
    lines = folder / "metrics.jsonl"
    return lines.stat().st_size if lines.exists() else -1, len(list(folder.glob("checkpoints/*")))


def same_bits(folder, whole):
    assert summary(folder)["params_sha256"] == summary(whole)["params_sha256"]
    assert metrics(folder) == metrics(whole)
    ours, theirs = ({k: v for k, v in summary(f).items() if not k.startswith("seconds")} for f in (folder, whole))
    assert ours == theirs


def test_killed_and_resumed_is_bit_for_bit_the_whole(whole, tmp_path):
    assert cut_off(tmp_path / "run", whole.parent / "small.toml", kills=2, seed=1) == 0, "it ended before it was killed"
    same_bits(tmp_path / "run", whole)
    assert "going on from step" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_many_times(whole, tmp_path, seed):
    cut_off(tmp_path / "run", whole.parent / "small.toml", kills=4, seed=100 + seed)
    same_bits(tmp_path / "run", whole)


@pytest.fixture
def half(whole, tmp_path):
    """A run cut off in its middle, made from the whole one: its newest checkpoints, no summary."""
    shutil.copytree(whole, tmp_path / "half")
    shutil.rmtree(sorted((tmp_path / "half" / "checkpoints").iterdir(), key=lambda p: int(p.name))[-1])
    (tmp_path / "half" / "summary.json").unlink()
    return tmp_path / "half"


def steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_lines_after_the_checkpoint_are_taken_back(half, whole):
    (half / "metrics.jsonl").write_text((half / "metrics.jsonl").read_text() + '{"epoch": 13}\n{"ep')
    loop.resume(half, quiet=True)
    same_bits(half, whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over(half, whole, damage, capsys):
    last, before = steps(half)[-1], steps(half)[-2]
    for path in (half / "checkpoints" / str(last) / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            content = bytearray(path.read_bytes())
            if damage == "cut":
                path.write_bytes(content[: len(content) // 2])
            elif damage == "flipped":
                content[len(content) // 2] ^= 1
                path.write_bytes(content)
            else:
                path.unlink()
    loop.resume(half)
    said = capsys.readouterr().out
    assert f"the checkpoint of step {last:,} in {half / 'checkpoints'} is damaged" in said
    assert f"going back to the one of step {before:,}" in said
    assert f"going on from step {before:,}" in said
    assert (half / "damaged" / str(last)).exists(), "nothing is thrown away"
    same_bits(half, whole)


def test_all_checkpoints_damaged(half):
    for step in steps(half):
        shutil.rmtree(half / "checkpoints" / str(step) / "state")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        loop.resume(half, quiet=True)
    assert len(list((half / "damaged").iterdir())) == 2


def test_killed_before_the_first_checkpoint(half, whole):
    shutil.rmtree(half / "checkpoints")
    loop.resume(half, quiet=True)
    same_bits(half, whole)


def test_a_finished_run_stays(whole, capsys, curves):
    before = (whole / "summary.json").read_bytes()
    loop.resume(whole)
    assert "nothing to do" in capsys.readouterr().out
    assert (whole / "curves.png").is_file()
    assert (whole / "summary.json").read_bytes() == before


def test_a_changed_config_is_refused(half):
    text = (half / "config.toml").read_text()
    (half / "config.toml").write_text(text.replace("epochs = 6", "epochs = 7"))
    before = metrics(half)
    with pytest.raises(RunError, match="has changed since the run began"):
        loop.resume(half, quiet=True)
    assert metrics(half) == before


def test_a_run_begun_before_jaxnet_got_a_key_goes_on(half, whole):
    """Its file lacks the key, and its hash is of the file: no key with a default may make it another run."""
    document, folder = tomllib.loads((half / "config.toml").read_text()), Run.open(half)
    del document["mesh"], document["train"]["head_chunks"]
    (half / "config.toml").write_text(tomli_w.dumps(document))
    began = folder.environment()
    older = hashlib.sha256(f"{json.dumps(document, sort_keys=True)} {began['data_sha256']}".encode()).hexdigest()
    began |= {"config_sha256": older, "extended_from": [began["config_sha256"]]}  # the checkpoints are of that
    (half / "environment.json").write_text(json.dumps(began))
    loop.resume(half, quiet=True)
    same_bits(half, whole)
    loop.resume(half, overrides=["train.epochs=7"], quiet=True)
    assert metrics(half)[-1]["epoch"] == 7


def test_changed_data_are_refused(half, monkeypatch):
    other = runs.blobs(spread=2.0)
    monkeypatch.setattr(runs, "blobs", lambda: other)
    with pytest.raises(RunError, match=r"the data of .* have changed"):
        loop.resume(half, quiet=True)


def test_a_changed_environment_is_refused(half, whole, tmp_path):
    finished_run = shutil.copytree(whole, tmp_path / "finished")
    for folder in (half, finished_run):
        environment = json.loads((folder / "environment.json").read_text()) | {"data_sha256": "0"}
        (folder / "environment.json").write_text(json.dumps(environment))
        with pytest.raises(RunError, match=r"or environment.json beside it, has changed since the run began"):
            loop.resume(folder, quiet=True)


def test_checkpoints_of_another_run_are_refused(half, tmp_path):
    other = loop.train(small(), run_dir=tmp_path / "other", quiet=True)
    shutil.rmtree(half / "checkpoints")
    shutil.copytree(other / "checkpoints", half / "checkpoints")
    shutil.copy(other / "checkpoints.json", half / "checkpoints.json")
    with pytest.raises(CheckpointError, match="is of another config"):
        loop.resume(half, quiet=True)
    assert steps(half) == steps(other), "they stay"


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: it has no config\.toml"):
        loop.resume(tmp_path, quiet=True)
    with pytest.raises(RunError, match="there is no such folder"):
        loop.resume(tmp_path / "nowhere", quiet=True)


def test_another_machine_is_said(half, capsys):
    environment = json.loads((half / "environment.json").read_text()) | {"threads": 999}
    (half / "environment.json").write_text(json.dumps(environment))
    loop.resume(half)
    assert "this run began elsewhere (threads 999 → " in capsys.readouterr().out


def test_a_checkpoint_keeps_every_kind_of_leaf(tmp_path):
    """Typed keys, bfloat16, whole numbers, empty states: what optimisers hold."""
    params = {"W": jnp.ones((3, 2)), "b": jnp.zeros(3, jnp.bfloat16)}
    state = {
        "optimizer": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        "key": jax.random.key(3),
        "none": (),
        "n": jnp.int32(7),
    }
    checkpoints = CheckpointWriter(tmp_path / "c", 2)
    for step in (1, 2, 3):
        checkpoints.save(step, state, Progress(1, 2, 3.5, ({"loss": 0.1},), "abc"))
        checkpoints.prune()
    assert checkpoints.steps() == [3, 2]
    found = checkpoints.resumable(jax.eval_shape(lambda: state), ["abc"])
    assert found is not None
    step, again, progress = found
    assert (step, progress) == (3, Progress(1, 2, 3.5, ({"loss": 0.1},), "abc"))
    assert jax.tree.structure(again) == jax.tree.structure(state)
    plain = [jax.random.key_data(t) if t.dtype == state["key"].dtype else t for t in jax.tree.leaves((again, state))]
    for ours, theirs in zip(plain[: len(plain) // 2], plain[len(plain) // 2 :], strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
        assert ours.dtype == theirs.dtype


def test_a_finished_run_is_trained_longer_to_the_bits_of_a_longer_run(tmp_path):
    whole = loop.train(small("train.epochs=5"), run_dir=tmp_path / "whole", quiet=True)
    run = loop.train(small("train.epochs=2"), run_dir=tmp_path / "run", quiet=True)
    loop.resume(run, overrides=["train.epochs=5"], quiet=True)
    assert summary(run)["params_sha256"] == summary(whole)["params_sha256"]
    assert metrics(run) == metrics(whole)
    assert Run.open(run).environment()["config_sha256"] == Run.open(whole).environment()["config_sha256"]
    loop.resume(run, quiet=True)
    assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("name", ["environment.json", "config.toml"])
def test_a_run_that_is_extended_is_whole_wherever_the_process_dies(tmp_path, monkeypatch, name):
    run = loop.train(small("train.epochs=1"), run_dir=tmp_path / "run", quiet=True)
    replace = Run.replace

    def dies(self, file, text):
        if file == name:
            raise KeyboardInterrupt
        replace(self, file, text)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            loop.resume(run, overrides=["train.epochs=3"], quiet=True)
    loop.resume(run, quiet=True)
    loop.resume(run, overrides=["train.epochs=3"], quiet=True)
    assert [line["epoch"] for line in metrics(run)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epochs=1", "train.epochs must be at least 2, the epochs that are done, got 1"),
        ("train.batch=5", "only train.epochs can be changed .*train a new run"),
        ("train.epochs=-1", "train.epochs: must be at least 0"),
    ],
)
def test_what_a_resumption_cannot_change(tmp_path, override, words):
    run = loop.train(small("train.epochs=2"), run_dir=tmp_path / "run", quiet=True)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=words):
        loop.resume(run, overrides=[override], quiet=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name in before} == before


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_metrics_of_a_finished_run_are_written_again(tmp_path, damage):
    run = loop.train(small("train.epochs=2"), run_dir=tmp_path / "run", quiet=True)
    before, path = metrics(run), run / "metrics.jsonl"
    if damage == "gone":
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(text[: len(text) // 2] if damage == "cut" else text.replace('"epoch": 1', '"epoch": 3'))
    loop.resume(run, quiet=True)
    assert metrics(run) == before
    assert Run.open(run).ended_well()
