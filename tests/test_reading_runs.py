"""Commands that read a run write nothing, never use an older checkpoint in silence, and tell damage from failure."""

import errno
import json
import os
import shutil
import subprocess
import threading

import pytest

from jaxnet.training import checkpoint, loop, reports
from jaxnet.training.checkpoint import CheckpointError, DamagedError
from jaxnet.training.explain_target import run_subject
from jaxnet.training.run_folder import RunError
from jaxnet.training.run_listing import find_runs
from jaxnet.training.trained_network import CheckpointChoice, evaluate, restore
from tests.runs import called, metrics, small, summary


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    config = small("checkpoint.every_seconds=0.0", "train.epochs=4")
    return loop.train(config, run_dir=tmp_path_factory.mktemp("original") / "run", quiet=True)


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def steps(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def contents(folder):
    """Every file with its bytes and time, and every folder with its time."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


def flip(run, step, name="manifest.ocdbt"):
    """Changes one bit of a checkpoint."""
    path = run / "checkpoints" / str(step) / "state" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_reading_writes_nothing(run):
    (run / "checkpoints" / "99.orbax-checkpoint-tmp").mkdir()  # as while training writes one
    before = contents(run)
    evaluate(run)
    run_subject(run)
    find_runs(run)
    assert contents(run) == before


def test_reading_a_damaged_run_writes_nothing(run):
    flip(run, steps(run)[-1])
    before = contents(run)
    with pytest.raises(CheckpointError, match="is damaged"):
        evaluate(run)
    evaluate(run, reading=CheckpointChoice(fallback=True))
    assert contents(run) == before


def test_a_damaged_checkpoint_without_an_older_one_is_told_so(run):
    first, *others = steps(run)
    for step in others:
        shutil.rmtree(run / "checkpoints" / str(step))
    flip(run, first)
    with pytest.raises(CheckpointError, match="there is no older one: put a good copy back, or jaxnet resume"):
        evaluate(run)


def test_reading_while_it_trains(tmp_path):
    """Every checkpoint is short-lived; reading them over and over disturbs neither side."""
    config = small("checkpoint.every_seconds=0.0", "train.epochs=10", "train.steps_per_call=4", "checkpoint.keep=1")
    failed = []

    def trains():
        try:
            loop.train(config, run_dir=tmp_path / "run", quiet=True)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=trains)
    thread.start()
    read = []
    while thread.is_alive():
        if (tmp_path / "run" / "checkpoints.json").exists():
            read.append(restore(tmp_path / "run").step)
    thread.join()
    assert not failed
    assert len(set(read)) > 1, "it was read while it trained"
    assert read == sorted(read)


def test_an_older_checkpoint_is_asked_for(run, capfd):
    before, last = steps(run)[-2:]
    flip(run, last)
    found = called("eval", run)
    assert (found.exit_code, found.stdout) == (2, "")
    assert f"the checkpoint of step {last}" in found.stderr
    assert "--fallback" in found.stderr
    found = called("eval", run, "--fallback")
    assert found.exit_code == 0
    assert "accuracy" in found.stdout
    assert f"checkpoint of step {before}, epoch {before // 11} of 4" in found.stderr
    found = called("eval", run, "--step", before)
    assert found.exit_code == 0
    assert f"checkpoint of step {before}, epoch" in found.stderr
    with pytest.raises(RunError, match=f"has no checkpoint of step 7: there are {last}, {before}, "):
        restore(run, reading=CheckpointChoice(step=7))


def test_a_finished_run_whose_last_checkpoint_is_gone(run):
    before, last = steps(run)[-2:]
    shutil.rmtree(run / "checkpoints" / str(last))
    with pytest.raises(CheckpointError, match=f"its last checkpoint, of step {last}, is missing"):
        evaluate(run)
    assert restore(run, reading=CheckpointChoice(fallback=True)).step == before


@pytest.mark.parametrize("damage", ["flipped", "one gone", "all gone"])
def test_resume_mends_the_end_of_a_finished_run(run, original, damage):
    if damage == "flipped":
        flip(run, steps(run)[-1])
    elif damage == "one gone":
        shutil.rmtree(run / "checkpoints" / str(steps(run)[-1]))
    else:
        shutil.rmtree(run / "checkpoints")
    loop.resume(run, quiet=True)
    assert summary(run)["params_sha256"] == summary(original)["params_sha256"]
    assert metrics(run) == metrics(original)
    assert evaluate(run) == evaluate(original)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), PermissionError(errno.EACCES, "Permission denied")]
)
def test_a_file_that_cannot_be_read_is_no_damage(run, monkeypatch, error):
    (run / "summary.json").unlink()

    def fails(folder):
        raise error

    before = contents(run / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "files_sha256", fails)
        for command_ in (evaluate, lambda folder: loop.resume(folder, quiet=True)):
            with pytest.raises(CheckpointError, match=f"cannot read .*{error.strerror}") as caught:
                command_(run)
            assert not isinstance(caught.value, DamagedError)
    assert contents(run / "checkpoints") == before
    assert not (run / "damaged").exists()


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), ValueError("odd")])
def test_a_failure_of_orbax_is_no_damage(run, monkeypatch, error):
    (run / "summary.json").unlink()

    before = steps(run)

    def fails(folder, arrays):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "restored_state", fails)
        with pytest.raises(CheckpointError, match="Nothing was moved"):
            loop.resume(run, quiet=True)
    assert steps(run) == before
    assert not (run / "damaged").exists()


def test_no_listing_costs_a_checkpoint(run):
    """Whatever checkpoints.json says, the hashes inside the checkpoint decide."""
    listing = run / "checkpoints.json"
    whole, last = json.loads(listing.read_text()), steps(run)[-1]
    wrong = {step: dict.fromkeys(files, "0" * 64) for step, files in whole.items()}
    odd = [b"", b"\xff\xfe", b"[]", b"7", b'{"44": 3}', b"[" * 100_000, json.dumps(wrong).encode(), b'{"44": {"a": 1}}']
    for content in odd:
        listing.write_bytes(content)
        assert restore(run).step == last, content[:20]
    listing.unlink()
    assert restore(run).step == last
    flip(run, last, name=next((run / "checkpoints" / str(last) / "state" / "d").iterdir()).relative_to(
        run / "checkpoints" / str(last) / "state"))  # fmt: skip
    with pytest.raises(CheckpointError):
        restore(run)


def test_a_progress_that_was_changed_is_damage(run):
    path = run / "checkpoints" / str(steps(run)[-1]) / "progress" / "metadata"
    about = json.loads(path.read_text())
    about["epoch"] = 1
    path.write_text(json.dumps(about))
    (run / "checkpoints.json").unlink()
    with pytest.raises(DamagedError):
        restore(run)


def test_changed_config_and_data_are_refused(run):
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('"tanh"', '"relu"'))
    with pytest.raises(RunError, match="has changed since the run began"):
        evaluate(run)
    (run / "config.toml").write_text(text)
    environment = json.loads((run / "environment.json").read_text()) | {"data_sha256": "0"}
    (run / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(RunError, match=r"the data of .* have changed"):
        evaluate(run)


NAMES = ["[2024] runs", "üñ ~*?\n'\"$(x)", os.fsdecode(b"not-\xff-utf8")]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_any_folder(tmp_path, name, capsys):
    place = tmp_path / name
    place.mkdir()
    config = small("checkpoint.every_seconds=0.0", "train.epochs=2")
    run = loop.train(config, run_dir=place / "run")
    assert evaluate(run)["test_accuracy"] == summary(run)["test_accuracy"]
    before, last = steps(run)[-2:]
    shutil.rmtree(run / "checkpoints" / str(last))
    loop.resume(run)
    assert f"going on from step {before}" in (run / "log.txt").read_text(errors="surrogateescape")
    assert not (run / "damaged").exists()
    reports.report([run])


def test_lines_to_type_are_quoted(tmp_path, capsys):
    run = loop.train(small("train.epochs=1"), run_dir=tmp_path / "a b's")
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    shell = f"jaxnet() {{ printf '%s\\n' \"$2\"; }}; {line.removeprefix('next: ').partition('   ')[0]}"
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert said == f"{run}\n"
