"""Faults by the hundred: processes killed at drawn moments, every file of a run corrupted, configs mutated."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from jaxnet.layer import ShapeError
from jaxnet.training import loop
from jaxnet.training.build import build
from jaxnet.training.config import ConfigError, load_config, make_config
from jaxnet.training.data import DataError, load
from tests.runs import ROOT, called, command, finished, metrics, one_device, small, summary
from tests.test_resume import LONG, dump_toml, newest, same_bits

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------------------------ kills

KILLS = 200
SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}  # with exit statuses

# Forks a process for each command that it is sent, so that what is imported is imported once. JAX computes nothing
# before the fork. A command may be killed at the nth opening, renaming or deleting of a file in a folder.
FORKS = """
import json, os, pathlib, signal, sys
import orbax.checkpoint
import jaxnet.training.loop, jaxnet.training.reports
from jaxnet.cli import main
for line in sys.stdin:
    arguments, left, folder, out = json.loads(line)
    pid = os.fork()
    if pid == 0:
        def hook(event, given):
            global left
            if event == "open" or event.startswith(("os.", "shutil.")):
                left -= any(type(each) in (str, pathlib.PosixPath) and folder in str(each) for each in given)
                if left == 0:
                    left = -1  # the kill is an event too
                    os.kill(os.getpid(), signal.SIGKILL)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["jaxnet", *arguments]
        if left:
            sys.addaudithook(hook)
        main()
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_kills_at_any_moment(tmp_path):
    """A run is killed and resumed until it ends, to the same bits; then the next run begins."""
    config, said = tmp_path / "small.toml", tmp_path / "said"
    config.write_text(dump_toml(LONG))
    whole = loop_in_a_process(config, tmp_path / "whole")
    dice, kills, runs, ended = random.Random(7), 0, 0, Counter()
    with python(FORKS) as forks:
        while kills < KILLS:
            folder = tmp_path / f"run{runs}"
            while not ((folder / "summary.json").exists() and summary(folder)["status"] == "finished"):
                begun = (folder / "config.toml").exists()
                arguments = ["resume", str(folder)] if begun else ["train", str(config), "--run-dir", str(folder)]
                event = dice.randint(1, 160) if dice.random() < 0.5 else 0
                before = newest(folder)
                print(json.dumps([arguments, event, str(folder), str(said)]), file=forks.stdin, flush=True)
                pid, number = int(forks.stdout.readline()), signal.SIGKILL
                if not event:
                    number, patient = dice.choice(list(SIGNALS)), time.monotonic() + 60
                    while newest(folder) == before and time.monotonic() < patient:
                        time.sleep(0.01)
                    time.sleep(dice.uniform(0, 2))
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                status, err = int(forks.stdout.readline()), said.read_text("utf-8")
                assert status in (0, SIGNALS[number]), err
                assert "Traceback" not in err
                kills += status != 0
                ended["file event" if event and status else number.name if status else "ended"] += 1
            same_bits(folder, whole)
            runs += 1
            print(f"{kills} kills of {runs} runs: {dict(ended)}", flush=True)


def python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | one_device(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def loop_in_a_process(config, folder):
    status, _, err = finished(command("train", config, "--run-dir", folder))
    assert status == 0, err
    return folder


# ------------------------------------------------------------------------------------------ corruptions


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"\x01"


CORRUPTIONS = {
    "flipped": flipped,
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\x00{",
    "random": lambda content: random.Random(len(content)).randbytes(max(1, len(content))),
    "gone": None,
}


def test_corruptions(tmp_path):
    """A run with any file corrupted gives its own figures or an error; `resume` mends it or says why it cannot."""
    whole = loop.train(small("checkpoint.every_seconds=0.0"), run_dir=tmp_path / "whole", quiet=True)
    newest = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [path for path in whole.iterdir() if path.is_file()] + [
        path for path in newest.rglob("*") if path.is_file()
    ]
    files = sorted(path.relative_to(whole) for path in files)
    right, outcomes = figures(called("eval", whole)), Counter()
    folder = tmp_path / "whole-corrupted"
    for file in files:
        for name, change in CORRUPTIONS.items():
            shutil.copytree(whole, folder)
            if change is None:
                (folder / file).unlink()
            else:
                (folder / file).write_bytes(change((folder / file).read_bytes()))
            where = f"{file} {name}"
            before = contents(folder)
            read = called("eval", folder)
            assert contents(folder) == before, where
            assert read.exit_code == 2 or figures(read) == right, where
            if len(file.parts) == 1:
                called("runs", folder)
                called("report", folder, "--out", tmp_path / "report")
            mended = called("resume", folder)
            assert mended.exit_code in (0, 2), where
            if mended.exit_code == 0:
                again = called("eval", folder)
                assert figures(again) == right, f"{where}: {again.output}"
                assert summary(folder)["params_sha256"] == summary(whole)["params_sha256"], where
                assert metrics(folder) == metrics(whole), where
            outcomes[f"eval {read.exit_code}, resume {mended.exit_code}"] += 1
            print(f"{where}: eval {read.exit_code}, resume {mended.exit_code}", flush=True)
            shutil.rmtree(folder)
    print(f"{sum(outcomes.values())} corruptions: {dict(outcomes)}")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def figures(result) -> list[str]:
    """An evaluation's lines."""
    return [line for line in result.output.splitlines() if line.startswith(("validation", "test"))]


# ---------------------------------------------------------------------------------------- mutated configs

MUTATIONS = 2000
ODD: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 2**31, 2**63 - 1, -(2**63), 10**30, 0.0, -0.0, 1e-300, 1e300, float("nan"), float("inf")),
    *(
        "",
        "relu",
        "dense",
        "digits",
        "sgd",
        "os:path",
        "jaxnet:dense",
        "no.such:thing",
        "δ",
        "\x00",
        "a" * 3000,
        "${x}",
    ),
    *(True, False, [], [[]], [1], {}, {"name": "sgd"}, {"dense": 3}, {"repeat": {"times": 3, "block": "relu"}}, [{}]),
]


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every place in plain data: its container and its key."""
    own = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    return [(node, key) for key, _ in own] + [place for _, value in own for place in places(value)]


def mutate(document: dict[str, Any], donor: dict[str, Any], dice: random.Random) -> None:
    """Changes one place: another value, a value of another place or config, a new key, a key or value taken out."""
    node, key = dice.choice(places(document))
    kind = dice.randrange(12)
    if kind >= 6:
        node[key] = like(node[key], donor, dice)
    elif kind == 0:
        node[key] = copy.deepcopy(dice.choice(ODD))
    elif kind == 1:
        there, at = dice.choice(places(donor))
        node[key] = copy.deepcopy(there[at])
    elif kind == 2:
        del node[key]
    elif kind == 3 and isinstance(node, dict):
        there, at = dice.choice(places(donor))
        node[str(at)] = copy.deepcopy(there[at])
    elif kind == 4 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = dice.choice([-node[key], 0, node[key] * 10**9, node[key] + 0.5, str(node[key]), [node[key]]])
    elif isinstance(node, list):
        node.insert(dice.randrange(len(node) + 1), copy.deepcopy(dice.choice(node)))
    else:
        node[f"{key}{dice.choice(['s', '_', '.', ' '])}"] = node.pop(key)


def like(value: Any, donor: dict[str, Any], dice: random.Random) -> Any:
    """Another value of the same type: of a list another order, one part fewer, or one twice."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return dice.choice([value + 1, value * 2, value // 2, value - 1, value * 1000])
    if isinstance(value, list) and value:
        return dice.choice(
            [value[::-1], value[1:], value[:-1], [*value, dice.choice(value)], dice.sample(value, len(value))]
        )
    same = [there[at] for there, at in places(donor) if type(there[at]) is type(value)]
    return copy.deepcopy(dice.choice(same)) if same else value


def mutated_text(text: str, dice: random.Random) -> bytes:
    """A text with a few bytes changed, taken out, or doubled."""
    content = bytearray(text.encode())
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(content))
        kind = dice.randrange(4)
        if kind == 0:
            content[at] = dice.randrange(256)
        elif kind == 1:
            del content[at : at + dice.randint(1, 20)]
        elif kind == 2:
            content[at:at] = content[at : at + dice.randint(1, 20)]
        else:
            content[at] ^= 1 << dice.randrange(8)
    return bytes(content)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_configs(tmp_path, monkeypatch, seed):
    """A mutated config is built on its data, or refused in words; it crashes nothing and takes no minute."""
    monkeypatch.setenv("JAXNET_DATA", str(tmp_path))
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "configs").glob("*.toml"))]
    documents = [tomllib.loads(text) | {"data": "digits"} for text in texts] + [tomllib.loads(dump_toml(LONG))]
    dice, outcomes, slowest = random.Random(seed), Counter(), 0.0
    signal.signal(signal.SIGALRM, too_slow)
    for i in range(MUTATIONS // 8):
        document, path = copy.deepcopy(dice.choice(documents)), tmp_path / "mutated.toml"
        if i % 3 == 0:
            path.write_bytes(mutated_text(tomli_w.dumps(document), dice))
        else:
            for _ in range(dice.choice([1, 1, 1, 2, 3])):
                mutate(document, dice.choice(documents), dice)
        began = time.monotonic()
        signal.alarm(60)
        try:
            config = load_config(path) if i % 3 == 0 else make_config(document)
            data = config.data
            known = data if isinstance(data, str) else data.get("name")
            if known in ("digits", "modular_addition") or ":" in str(known):
                build(config, load(data, data_dir=tmp_path))
            outcomes["built"] += 1
        except (ConfigError, ShapeError, DataError) as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            signal.alarm(0)
            written = path.read_text("utf-8", "replace") if i % 3 == 0 else json.dumps(document, default=str)
            raise AssertionError(f"mutation {i} of seed {seed}: {written}") from error
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - began)
    print(f"{sum(outcomes.values())} mutated configs: {dict(outcomes)}, the slowest {slowest:.1f} s")


def too_slow(*_):
    raise TimeoutError("a mutated config took more than a minute")
