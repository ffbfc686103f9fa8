"""A signal or a lost output: a checkpoint within five seconds, said, and the exit status that belongs to it."""

import errno
import io
import os
import signal
import sys
import threading
import time

import pytest

from jaxnet.training import loop, session
from jaxnet.training.config import dump_toml
from jaxnet.training.signals import StillRunningError, Stop, Stopped, stopping
from tests.runs import command, finished, metrics, small, summary


def training(folder):
    """A process that trains for long, once it has ended its first epoch."""
    config = small("train.epochs=100000", "train.steps_per_call=5")
    (folder / "long.toml").write_text(dump_toml(config))
    process = command("train", folder / "long.toml", "--run-dir", folder / "run")
    deadline = time.monotonic() + 90
    while not ((folder / "run" / "metrics.jsonl").exists() and metrics(folder / "run")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


def saved_step(run):
    """The step of the checkpoint of a run that was stopped."""
    step = max(int(path.name) for path in (run / "checkpoints").iterdir())
    found = summary(run)
    assert found["status"] == "interrupted"
    assert found["epochs"] == step // 11
    return step


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
    ],
)
def test_a_run_stops_in_order_and_goes_on_to_the_same_bits(tmp_path, number, status):
    process = training(tmp_path)
    process.send_signal(number)
    asked = time.monotonic()
    code, out, err = finished(process)
    assert time.monotonic() - asked < 5
    assert code == status
    assert "Traceback" not in err
    step = saved_step(tmp_path / "run")
    assert f"stopped; checkpoint of step {step:,} written; go on with: jaxnet resume {tmp_path / 'run'}" in out


def test_a_run_whose_reader_is_gone_saves_and_ends(tmp_path):
    process = training(tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=30)
    assert process.returncode == 141
    assert err == ""
    step = saved_step(tmp_path / "run")
    assert f"checkpoint of step {step:,} written" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 2), (errno.EIO, 2), (errno.EPIPE, 141)])
def test_an_output_that_fails_is_a_stop_with_a_checkpoint(tmp_path, monkeypatch, number, status):
    class Full(io.StringIO):
        def write(self, text):
            if "1/3" in text:
                raise OSError(number, os.strerror(number))
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(Stopped) as stopped:
        loop.train(small(), run_dir=tmp_path / "run")
    assert stopped.value.code == status
    assert saved_step(tmp_path / "run") == 11


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert stop.status is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def slow_calls(monkeypatch, seconds, number):
    """Each call takes so long, and after the second one has begun a signal comes."""
    usual, calls = session.Session.steps, []

    def steps(self, call, state, order):
        calls.append(call)
        if len(calls) == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
            self.patiently(lambda: time.sleep(seconds))
        return usual(self, call, state, order)

    monkeypatch.setattr(session.Session, "steps", steps)


def test_in_the_midst_of_an_epoch(monkeypatch, tmp_path):
    whole = loop.train(small("train.steps_per_call=4"), run_dir=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        slow_calls(patch, 0.6, signal.SIGTERM)
        with pytest.raises(Stopped) as stopped:
            loop.train(small("train.steps_per_call=4"), run_dir=tmp_path / "run", quiet=True)
    assert stopped.value.code == 143
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["8"]
    loop.resume(tmp_path / "run", quiet=True)
    assert summary(tmp_path / "run")["params_sha256"] == summary(whole)["params_sha256"]
    assert metrics(tmp_path / "run") == metrics(whole)


def test_a_call_that_does_not_end_is_left_behind(monkeypatch, tmp_path):
    """Its beginning is saved within five seconds, and the process ends while it still runs."""
    slow_calls(monkeypatch, 60, signal.SIGINT)
    codes = []

    def leave(code):
        codes.append(code)
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    began = time.monotonic()
    with pytest.raises(SystemExit):
        loop.train(small("train.steps_per_call=4"), run_dir=tmp_path / "run", quiet=True)
    assert codes == [130]
    assert time.monotonic() - began < 30
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert summary(tmp_path / "run")["status"] == "interrupted"


def test_before_the_first_step(monkeypatch, tmp_path, capsys):
    """A compilation that takes long is left behind; there is nothing to save yet, and the run begins anew."""

    def begin(self, given):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        self.patiently(lambda: time.sleep(30))

    def leave(code):
        raise SystemExit(code)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "begin", begin)
        patch.setattr(os, "_exit", leave)
        with pytest.raises(SystemExit) as stopped:
            loop.train(small(), run_dir=tmp_path / "run")
    assert stopped.value.code == 143
    assert "stopped before the first step; jaxnet resume" in capsys.readouterr().out
    loop.resume(tmp_path / "run", quiet=True)
    assert summary(tmp_path / "run")["status"] == "finished"


def test_a_second_ctrl_c_stops_at_once():
    stop = Stop()
    stop.ask(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stopping() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.status == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_gives_its_result_or_its_error(monkeypatch):
    stop = Stop()
    assert stop.patiently(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        stop.patiently(lambda: 1 // 0)
    stop.ask(signal.SIGTERM)
    monkeypatch.setattr(stop, "since", time.monotonic() - 100)
    with pytest.raises(StillRunningError):
        stop.patiently(lambda: time.sleep(1))


def test_outside_the_main_thread_nothing_is_heard():
    heard = []

    def work():
        with stopping() as stop:
            heard.append(stop.status)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert heard == [None]
