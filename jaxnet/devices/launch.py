"""`jaxnet launch`: several processes of one command on this machine; when one ends badly, all end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

GRACE = 10  # seconds between SIGTERM and SIGKILL
JOIN = "JAXNET_JOIN"


class LaunchError(ValueError):
    """A number of processes that cannot be started."""


def free_port() -> int:
    """A port that no process listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(command: Sequence[str], processes: int, devices: int | None = None) -> int:
    """Runs `jaxnet COMMAND` in so many processes that join each other; gives the exit status.

    devices: CPU devices of each process; None for those that JAX finds. The first process has the terminal. SIGINT and
    SIGTERM go to all; a second one kills them.
    Raises LaunchError for less than one process or a command that does not train.
    """
    if processes < 1:
        raise LaunchError(f"--processes must be at least 1, got {processes}")
    if not command or command[0] not in ("train", "resume"):
        raise LaunchError(f"launch runs train or resume, got {' '.join(command) or 'nothing'}")
    port, running = free_port(), []
    for i in range(processes):
        environment = os.environ | {JOIN: f"127.0.0.1:{port},{i},{processes}"}
        if devices is not None:
            flags = environment.get("XLA_FLAGS", "")
            environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        out = None if i == 0 else subprocess.DEVNULL
        running.append(subprocess.Popen([sys.executable, "-m", "jaxnet", *command], env=environment, stdout=out))

    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        send(running, number if len(asked) == 1 else signal.SIGKILL)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return watched(running)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def send(running: Sequence[subprocess.Popen], number: int) -> None:
    """Sends a signal to the processes that still run."""
    for process in running:
        if process.poll() is None:
            process.send_signal(number)


def watched(running: Sequence[subprocess.Popen]) -> int:
    """The exit status when all have ended: 0, or that of the first that failed, after which the others are ended."""
    while None in (statuses := [process.poll() for process in running]):
        failed = next((i for i, status in enumerate(statuses) if status), None)
        if failed is None:
            time.sleep(0.1)
            continue
        status = statuses[failed] or 0
        how = f"signal {-status}" if status < 0 else f"status {status}"
        others = [process for process in running if process.poll() is None]
        # A stop that was asked for reaches all: the others end by themselves.
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in others) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left := [i for i, process in enumerate(running) if process.poll() is None]:
            told = ", ".join(map(str, left))
            print(f"jaxnet: process {failed} ended with {how}, so {told} cannot go on: ended too", file=sys.stderr)
            send(running, signal.SIGKILL)
            for process in running:
                process.wait()
        return status if status > 0 else 128 - status
    return next((status if status > 0 else 128 - status for status in statuses if status), 0)
