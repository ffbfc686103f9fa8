"""The frame of the `jaxnet` command: its options, its errors, its exit status."""

import errno
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from jaxnet import ascii_spelling


class Commands(TyperGroup):
    """Turns the errors that bad input or a lost output causes into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # older typer makes it 1
            raise typer.Exit(130) from None
        except typer.Abort:
            raise refused("nothing was done: the question was not answered") from None
        except ValueError as error:
            if type(error).__module__.partition(".")[0] != "jaxnet":
                raise
            raise refused(str(error)) from None
        except OSError as error:
            raise output_lost() if error.errno == errno.EPIPE else refused(system_message(error)) from None


def refused(message: str) -> typer.Exit:
    """Says on stderr why nothing was done; exit status 2."""
    print(f"jaxnet: {message}", file=sys.stderr)
    return typer.Exit(2)


def output_lost() -> typer.Exit:
    """The exit status after the reader of the output has gone, as the shell's: 128 + SIGPIPE."""
    return typer.Exit(141)


def system_message(error: OSError) -> str:
    """The failure of the operating system, and how to mend it."""
    what = f"{error.filename}: " if error.filename else ""
    mend = {
        errno.ENOSPC: ": make room, or write elsewhere with --runs-dir",
        errno.EACCES: ": choose a place where you may write, with --runs-dir or --run-dir",
        errno.EROFS: ": choose a place where you may write, with --runs-dir or --run-dir",
    }.get(error.errno or 0, "")
    return f"{what}{error.strerror or error}{mend}"


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def jaxnet() -> None:
    """Backpropagation that you can read, check, change and run."""


READ, DEVICES, RUNS = "Read and check", "Devices and speed", "Train, and look at runs"  # the parts of the help

# ------------------------------------------------------------------------------- arguments of several commands


def allow_code(allowed: bool) -> bool:
    """Lets a config name any module, if that is allowed."""
    if allowed:
        from jaxnet.training.data.own import ALLOWED

        ALLOWED.everything = True
    return allowed


def join_others(text: str | None) -> str | None:
    """See `processes.join`."""
    if text is None:
        return None
    from jaxnet.devices.processes import join

    return join(text)


ConfigFile = Annotated[Path, Argument(metavar="CONFIG", help="A TOML file, such as configs/digits.toml.")]
Overrides = Annotated[
    list[str] | None,
    Argument(metavar="KEY=VALUE", help="Changes of the config: train.epochs=3 model.0.dense=50 data=mnist"),
]
RunFolder = Annotated[Path, Argument(metavar="RUN", help="A run's folder, such as runs/digits-1a2b3c4d.")]
AllowCode = Annotated[
    bool, Option("--allow-code", callback=allow_code, help="Let the config run code of any installed module.")
]
DataDir = Annotated[Path | None, Option(help="Folder of MNIST or the text. Default: $JAXNET_DATA, else a download.")]
Join = Annotated[
    str | None,
    Option(
        envvar="JAXNET_JOIN",
        metavar="HOST:PORT,I,N",
        callback=join_others,
        help="Be process I of N that train together; detect: ask Slurm, Kubernetes or the TPU pod.",
    ),
]
Step = Annotated[int | None, Option(metavar="N", help="Read the checkpoint of step N. Default: the newest.")]
Fallback = Annotated[bool, Option("--fallback", help="If the newest checkpoint is damaged, read an older one.")]
Best = Annotated[bool, Option("--best", help="Read the checkpoint of the best epoch (checkpoint.best).")]


def reading_of(step: int | None, fallback: bool, best: bool) -> Any:
    """Which checkpoint is read; it is named on stderr."""
    from jaxnet.training.trained_network import CheckpointChoice

    return CheckpointChoice(step, fallback, best, lambda line: print(f"jaxnet: {line}", file=sys.stderr))


# ------------------------------------------------------------------------------------------- the entry point


def main() -> None:
    """The entry point.

    Exit status: 0; 1 only where `check` finds a backward pass wrong; 2 for an error, of the input or of jaxnet itself;
    128 + n for signal n.
    """
    if sys.stdout is None or sys.stderr is None:  # the next open file would take their place
        if sys.stderr is not None:
            print("jaxnet: stdout must be open: redirect it to a file, or to /dev/null", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ascii_spelling.NAME)
    try:
        app(prog_name="jaxnet")
        status = 0
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        status = 130
    except Exception:  # a mistake of our own: shown whole, with the exit status of an error
        traceback.print_exc()
        print(
            "jaxnet: the error above is a mistake of jaxnet itself, not of its input: please report it", file=sys.stderr
        )
        status = 2
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more as it ends
        ended = output_lost() if error.errno == errno.EPIPE else refused(f"stdout: {system_message(error)}")
        status = ended.exit_code
    sys.exit(status)
