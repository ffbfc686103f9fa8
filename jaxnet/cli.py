"""The `jaxnet` command: each subcommand a few lines that call its room, imported when it is called."""

import errno
import io
import json
import os
import sys
import traceback
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from jaxnet import ascii_spelling

try:
    import typer
    from typer.core import TyperCommand, TyperGroup
except ModuleNotFoundError as error:
    print(f"the jaxnet command needs {error.name}: install jaxnet with its extra [experiments]", file=sys.stderr)
    raise SystemExit(2) from None  # 1 is for a wrong backward pass alone


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
            raise output_lost() if error.errno == errno.EPIPE else refused(told_by_the_system(error)) from None


def refused(message: str) -> typer.Exit:
    """Says on stderr why nothing was done; exit status 2."""
    print(f"jaxnet: {message}", file=sys.stderr)
    return typer.Exit(2)


def output_lost() -> typer.Exit:
    """The exit status of a program whose reader is gone, as the shell gives it: 128 + SIGPIPE."""
    return typer.Exit(141)


def told_by_the_system(error: OSError) -> str:
    """What the operating system did not do, and how to mend it."""
    what = f"{error.filename}: " if error.filename else ""
    mend = {
        errno.ENOSPC: ": make room, or write elsewhere with --runs-dir",
        errno.EACCES: ": choose a place where you may write, with --runs-dir or --run-dir",
        errno.EROFS: ": choose a place where you may write, with --runs-dir or --run-dir",
    }.get(error.errno or 0, "")
    return f"{what}{error.strerror or error}{mend}"


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML file, such as configs/digits.toml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes of the config: train.epochs=3 model.0.dense=50 data=mnist"),
]


def allow_code(allowed: bool) -> bool:
    """Lets a config name any module, if that is allowed."""
    if allowed:
        from jaxnet.training.data.own import ALLOWED

        ALLOWED.everything = True
    return allowed


AllowCode = Annotated[
    bool, typer.Option("--allow-code", callback=allow_code, help="Let the config run code of any installed module.")
]
DataDir = Annotated[
    Path | None, typer.Option(help="Folder of MNIST or the text. Default: $JAXNET_DATA, else a download.")
]


def join_others(text: str | None) -> str | None:
    """See `processes.join`."""
    if text is None:
        return None
    from jaxnet.devices.processes import join

    return join(text)


Join = Annotated[
    str | None,
    typer.Option(
        envvar="JAXNET_JOIN",
        metavar="HOST:PORT,I,N",
        callback=join_others,
        help="Be process I of N that train together; detect: ask Slurm, Kubernetes or the TPU pod.",
    ),
]


@app.callback()
def jaxnet() -> None:
    """Backpropagation that you can read, check, change and run."""


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Begin with the trained parameters of this run.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print", help="Print the config with all defaults, and stop.")
    ] = False,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of this run. Must be new or empty.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    data_dir: DataDir = None,
    join: Join = None,
    allow_code: AllowCode = False,
) -> None:
    """Train the network of a config."""
    from jaxnet.training.config import dump_toml, load_config

    changes = tuple(overrides or ())
    changes += () if start_from is None else (f"start_from={json.dumps(str(start_from), ensure_ascii=False)}",)
    loaded = load_config(config, changes)
    if print_config:
        print(dump_toml(loaded), end="")
        return
    from jaxnet.training import loop

    loop.train(loaded, run_dir=run_dir, runs_dir=runs_dir, data_dir=data_dir, overrides=changes)


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/digits-1a2b3c4d.")]


@app.command()
def resume(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="To train longer: train.epochs=60")
    ] = None,
    data_dir: DataDir = None,
    join: Join = None,
    allow_code: AllowCode = False,
) -> None:
    """Resume an interrupted run, or train a finished one longer."""
    from jaxnet.training import loop

    loop.resume(run, data_dir=data_dir, overrides=overrides or ())


Step = Annotated[int | None, typer.Option(metavar="N", help="Read the checkpoint of step N. Default: the newest.")]
Fallback = Annotated[bool, typer.Option("--fallback", help="If the newest checkpoint is damaged, read an older one.")]


Best = Annotated[bool, typer.Option("--best", help="Read the checkpoint of the best epoch (checkpoint.best).")]


def reading_of(step: int | None, fallback: bool, best: bool) -> Any:
    """Which checkpoint is read; it is named on stderr."""
    from jaxnet.training.trained_network import CheckpointChoice

    return CheckpointChoice(step, fallback, best, lambda line: print(f"jaxnet: {line}", file=sys.stderr))


@app.command("eval")
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None, typer.Option(help="Other data: a name, or a .npz or .csv file. Default: the run's data.")
    ] = None,
    data_dir: DataDir = None,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Print the loss of a run's network, its accuracy, and which classes it confuses."""
    from jaxnet.training import trained_network
    from jaxnet.training.run_listing import console

    found = trained_network.evaluate(run, data=data, data_dir=data_dir, reading=reading_of(step, fallback, best))
    print(*trained_network.lines(found), sep="\n")
    for table in trained_network.confusion_tables(found):
        console().print("", table, sep="\n")


@app.command()
def predict(
    run: RunFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Examples: a .npy, .npz or .csv file, or a picture.")],
    data_dir: DataDir = None,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Print the predictions of a run's network for your own examples."""
    from jaxnet.training import predict
    from jaxnet.training.run_listing import console

    prediction = predict.predict(run, file, data_dir=data_dir, reading=reading_of(step, fallback, best))
    print(*predict.lines(prediction), sep="\n")
    console().print(predict.prediction_table(prediction))


@app.command()
def influence(
    run: RunFolder,
    test: Annotated[int, typer.Option(help="Number of the test example, from 0.")] = 0,
    most: Annotated[int, typer.Option(help="Number of training examples of each kind.", min=1)] = 8,
    damping: Annotated[float, typer.Option(help="λ, added to the curvature.", min=0)] = 1e-3,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: the run's folder.")] = None,
    data_dir: DataDir = None,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Show which training examples a prediction rests on: a page."""
    from jaxnet.training import influence

    found = influence.of_run(
        run, test, most=most, damping=damping, data_dir=data_dir, reading=reading_of(step, fallback, best)
    )
    print(*found.lines(), influence.write(found, out or run), sep="\n")


@app.command()
def sample(
    run: RunFolder,
    prompt: Annotated[str, typer.Option(help="Text that the network continues.")] = "\n",
    length: Annotated[int, typer.Option(help="Number of characters.")] = 500,
    temperature: Annotated[
        float, typer.Option(help="Below 1 likely characters are drawn more often. 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the K likeliest characters only.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Generate text with a run's network, one character at a time."""
    from jaxnet.training import sample

    drawing = sample.TokenDraw(temperature, top_k, seed)
    drawn = sample.sample(run, prompt, length=length, drawing=drawing, reading=reading_of(step, fallback, best))
    first = next(drawn)  # what is refused is told before anything is shown
    for piece in chain((prompt, first), drawn):
        print(piece, end="", flush=True)
    print()


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: the run's folder; for several runs, report/.")
    ] = None,
) -> None:
    """Draw the curves of one or several runs: a picture and a page."""
    from jaxnet.training import reports

    print(*reports.report(runs, out), sep="\n")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds the runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None,
        typer.Option(help="List only runs with this: test_accuracy>0.9, train.batch=10, tag=good."),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by a result or a config key, largest last.")] = None,
) -> None:
    """List the runs in a folder: their results, and the config keys that differ."""
    from jaxnet.training.run_listing import show_runs

    show_runs(folder, where=where or (), sort=sort)


@app.command()
def note(
    run: RunFolder,
    text: Annotated[str | None, typer.Argument(help="A note to add.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag to add. Repeatable.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="A tag to take away. Repeatable.")] = None,
) -> None:
    """Add a note or tags to a run, and print all that it has."""
    from jaxnet.training.run_folder import Run

    noted = Run.open(run)
    if text or tag or untag:
        noted.note([text] if text else [], tag or (), untag or ())
    found = noted.notes()
    print(*found["notes"], f"tags: {' '.join(found['tags']) or 'none'}", sep="\n")


@app.command()
def delete(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs' folders.")],
    yes: Annotated[bool, typer.Option("--yes", help="Ask no question.")] = False,
) -> None:
    """Delete runs, with their checkpoints."""
    from jaxnet.training.run_folder import Run

    found = [Run.open(folder) for folder in dict.fromkeys(runs)]
    if not (yes or typer.confirm(f"Delete {', '.join(map(str, dict.fromkeys(runs)))}?")):
        raise refused("nothing was deleted")
    for run in found:
        run.delete()
        print(f"deleted {run.folder}")


@app.command()
def diff(one: RunFolder, other: RunFolder) -> None:
    """Show how two runs differ: config, versions, devices, data, results, first epoch that differs."""
    from jaxnet.training.run_listing import difference_lines, read_run

    print(*(difference_lines([read_run(one), read_run(other)]) or ["no difference"]), sep="\n")


@app.command()
def metrics(
    run: RunFolder,
    to: Annotated[str, typer.Option(help="csv prints them; tensorboard, wandb, mlflow write files.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="Folder for the files. Default: one named as the program.")] = None,
) -> None:
    """Print a run's metrics as CSV, a row for each epoch, or write them for another program."""
    from jaxnet.training.run_listing import read_run
    from jaxnet.training.trackers import export, metrics_csv

    record = read_run(run)
    if to == "csv":
        print(metrics_csv(record), end="")
    else:
        print(export(record, to, out))


@app.command()
def watch(run: RunFolder, port: Annotated[int, typer.Option(help="Port of the page; 0: any free one.")] = 0) -> None:
    """Show a run's curves in the browser while it trains, on this machine alone; Ctrl-C ends it."""
    from jaxnet.training.watching import address, server

    with server(run, port) as serving:
        print(f"{address(serving)} shows {run}; Ctrl-C ends it", flush=True)
        serving.serve_forever()


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A TOML file of a sweep, or a config.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to sweep over: train.batch=[10,32]")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, starting with the config's.")] = None,
    together: Annotated[
        bool | None,
        typer.Option("--together/--apart", help="Train all seeds of a setting in one vmapped program, or each alone."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes that share the runs.")] = 1,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="End at the first run that fails.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a sweep that was begun.")] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Write a picture to this file: importance of keys, parallel coordinates.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Train a config with several settings and seeds, and print mean and spread."""
    from jaxnet.training.sweep_file import read_sweep

    wanted = read_sweep(file, overrides or (), seeds=seeds, together=together)
    from jaxnet.training.run_listing import console
    from jaxnet.training.sweep import more_processes, run_sweep, sweep_table

    if jobs > 1 and wanted.search is not None:
        raise refused("--jobs must be 1 for a search by tpe, whose settings come one after another")
    same: list[Any] = ["sweep", file, *(overrides or ()), "--runs-dir", runs_dir]
    same += [] if data_dir is None else ["--data-dir", data_dir]
    same += [] if seeds is None else ["--seeds", seeds]
    same += [] if together is None else ["--together" if together else "--apart"]
    same += [*(["--allow-code"] if allow_code else []), *(["--fail-fast"] if fail_fast else [])]
    with more_processes([str(each) for each in same], jobs - 1) as wait:
        options = {"runs_dir": runs_dir, "data_dir": data_dir, "fail_fast": fail_fast, "resume": resume}
        outcomes = run_sweep(wanted, wait=wait, **options)
    console().print(sweep_table(outcomes))
    if figure is not None:
        from jaxnet.training.sweep_figure import write_figure

        print(write_figure(outcomes, figure, wanted.search.search.metric if wanted.search else None))


@app.command("find-rate")
def find_rate(
    config: ConfigFile,
    overrides: Overrides = None,
    low: Annotated[float, typer.Option(help="First learning rate.")] = 1e-5,
    high: Annotated[float, typer.Option(help="Last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Number of training steps.")] = 100,
    out: Annotated[Path, typer.Option(help="File for the curve, a PNG.")] = Path("learning_rates.png"),
    data_dir: DataDir = None,
) -> None:
    """Train some steps with a growing learning rate, and draw the cost over it."""
    from jaxnet.training.config import load_config
    from jaxnet.training.learning_rates import range_test, write_curve

    loaded = load_config(config, tuple(overrides or ()))
    found = range_test(loaded, low=low, high=high, steps=steps, data_dir=data_dir)
    print(*found.lines(), write_curve(found, out), sep="\n")


@app.command()
def layers(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Default: all.")] = None,
) -> None:
    """List layers, models, losses and feedback: options with defaults, equation, example inputs."""
    from jaxnet import registry

    try:
        print(*registry.listed(*(names or ())), sep="\n")
    except LookupError as error:
        raise refused(str(error)) from None


@app.command()
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="TARGET...", help="A layer, loss or model by name, a config, or package.module:object."),
    ] = None,
    inputs: Annotated[str | None, typer.Option(help='Shapes of the arguments: "float32[8,256], int32[8]<10".')] = None,
    reference: Annotated[
        str | None, typer.Option(help="package.module:function whose derivative is the right one.")
    ] = None,
    intended: Annotated[
        str | None, typer.Option(help="package.module:function of a backward pass that deviates on purpose.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the reports to this file; - prints them.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page with heat maps to this file.")] = None,
    fix: Annotated[
        Path | None, typer.Option(help="Write a mended copy of the source to this file, and check it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Check every layer, loss and model of jaxnet.")] = False,
    primitives: Annotated[bool, typer.Option("--primitives", help="Check JAX's own derivatives.")] = False,
    device: Annotated[
        bool, typer.Option("--device", help="Measure each layer's rounding error on this device.")
    ] = False,
    adequacy: Annotated[bool, typer.Option(help="List the mistakes that these inputs cannot reveal.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="First seed of the inputs and cotangents.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    tolerance: Annotated[
        float | None, typer.Option(help="Allowed relative error. Default: the measured rounding error.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="dtype in place of float32: bfloat16, float64.")] = None,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Check a backward pass entry by entry and name the mistake. Status 0: right, 1: wrong, 2: not checked."""
    from jaxnet.checking import command, device_noise
    from jaxnet.checking import primitives as of_jax

    if primitives:
        raise typer.Exit(of_jax.run(tuple(targets or ())))
    if device:
        raise typer.Exit(device_noise.run(targets or (), json_file))
    found: list[Any] = list(targets or ())
    if any(target.endswith(".toml") for target in found):
        from jaxnet.training.check_target import config_target

        of_config = {"inputs": inputs, "dtype": dtype, "data_dir": data_dir}
        found = [config_target(each, **of_config) if each.endswith(".toml") else each for each in found]
    options = {"adequacy": adequacy, "seed": seed, "seeds": seeds, "tolerance": tolerance, "dtype": dtype}
    files = {"json_file": json_file, "html_file": html_file, "fix": fix}
    raise typer.Exit(
        command.run(found, inputs=inputs, reference=reference, intended=intended, all=everything, **files, **options)
    )


class Explain(TyperCommand):
    """`--try` without a formula reads formulas one after the other, as `--try -` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        behind = [*args[1:], "--"]
        pairs = zip(args, behind, strict=True)
        given = [(each, "-") if each == "--try" and then.startswith("--") else (each,) for each, then in pairs]
        return super().parse_args(ctx, list(chain.from_iterable(given)))


@app.command(cls=Explain)
def explain(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A config, a run's folder, a layer or model by name, module:object or file.py:function.",
        ),
    ],
    overrides: Overrides = None,
    example: Annotated[int, typer.Option(help="Index of the training example, from 0.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Explain a batch of N examples.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the parameters. Default: the config's.")] = None,
    layer: Annotated[int | None, typer.Option(help="Number of the layer that the questions are about.")] = None,
    walk: Annotated[
        bool, typer.Option("--walk", help="Walk from one weight to the matrices of the backward pass.")
    ] = False,
    exercise: Annotated[
        bool, typer.Option("--exercise", help="Ask for the lines of the backward pass, and grade the answers.")
    ] = False,
    step: Annotated[bool, typer.Option("--step", help="Show the equations one by one.")] = False,
    questions: Annotated[bool, typer.Option("--questions", help="Answer common questions with these numbers.")] = False,
    more: Annotated[
        bool, typer.Option("--more", help="Show the whole chain of Jacobians, and ∂z/∂W as a tensor.")
    ] = False,
    shapes: Annotated[bool, typer.Option("--shapes", help="Show the equations and shapes, without numbers.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Show the equations in every notation, and as loops.")] = False,
    try_: Annotated[
        str | None,
        typer.Option(
            "--try", metavar="FORMULA", help='Check a formula: "W3.T @ delta3"; without one, ask for formulas.'
        ),
    ] = None,
    digits: Annotated[int, typer.Option(help="Number of decimals.")] = 4,
    notation: Annotated[str, typer.Option(help="nielsen, ng or cs229.")] = "nielsen",
    numbering: Annotated[int | None, typer.Option(help="Number of the input layer: 0 or 1.")] = None,
    weights: Annotated[str, typer.Option(help="Layout of W: out-in, or in-out with examples as rows.")] = "out-in",
    inputs: Annotated[str | None, typer.Option(help='Shapes of the inputs: "float32[6]".')] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file as JSON; - prints it.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page to this file.")] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print the equations as LaTeX.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the network, or with --walk its steps: .svg, .png, .pdf; .gif moves, a run too."),
    ] = None,
    sheet: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="N exercise sheets with answers: --html FILE, or --latex."),
    ] = None,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Show the backward pass of a network, or of any JAX function, in symbols, shapes and numbers."""
    from jaxnet.explaining import command
    from jaxnet.explaining.notation import notation as chosen
    from jaxnet.training.explain_target import subject_of

    symbols = chosen(notation, numbering, weights)
    found = subject_of(
        target, overrides or (), example=example, batch=batch, seed=seed, inputs=inputs, data_dir=data_dir
    )
    options = command.Options(
        symbols,
        digits=digits,
        layer=layer,
        step=step,
        walk=walk,
        exercise=exercise,
        questions=questions,
        more=more,
        shapes=shapes,
        table=table,
        batch=batch is not None,
        formula=try_,
        json_file=json_file,
        html_file=html_file,
        latex=latex,
        figure=figure,
        sheet=sheet,
    )
    command.run(found, options)


@app.command()
def bench(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="core, layers, models, quantities, growth, launches or checkers")
    ] = "core",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file as Markdown.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="SUBJECT", help="Run one subject of layers, models or launches only.")
    ] = None,
) -> None:
    """Measure the hand-written backward pass against autodiff's best variants and torch."""
    from jaxnet.bench.results import run

    run(name, json_file, markdown, only)


@app.command()
def pipeline(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="SCHEDULE...", help="gpipe, 1f1b, zb-h1, zb-h2. Default: all.")
    ] = None,
    stages: Annotated[int, typer.Option(help="Number of devices; each holds a part of the layers.")] = 4,
    microbatches: Annotated[int, typer.Option(help="Number of microbatches in a batch.")] = 8,
    times: Annotated[
        str, typer.Option(metavar="F,B,W[,T]", help="Times of forward, backward for δ, backward for weights, transfer.")
    ] = "1,1,1",
    figure: Annotated[Path | None, typer.Option(help="Write a picture to this file: .png, .svg or .pdf.")] = None,
) -> None:
    """Show the schedules of a pipeline: bubble, time, microbatches kept, and each stage's tasks."""
    from jaxnet.devices import schedules

    chosen = schedules.read_times(times)
    print(*schedules.lines(names or (), stages, microbatches, chosen), sep="\n")
    if figure is not None:
        from jaxnet.devices.schedule_pictures import draw

        draw(figure, names or tuple(schedules.SCHEDULES), stages, microbatches, chosen)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    devices: Annotated[str, typer.Option(help="cpu:8, cuda:h100:8, tpu:v5e:16x16; they need not be here.")] = "cpu:1",
    program: Annotated[Path | None, typer.Option(help="Write the compiled step's text to this file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file.")] = None,
    scale: Annotated[bool, typer.Option("--scale", help="Estimate the step on up to 4,096 devices.")] = False,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Compile a config's step for devices: memory, exchanges, operations, launches and time of each step."""
    from jaxnet.training.config import load_config
    from jaxnet.training.plan import run

    run(load_config(config, tuple(overrides or ())), devices, data_dir, program, json_file, scale)


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|CONFIG", help="A run's folder, or a config's TOML file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("network.jax"),
    platforms: Annotated[str, typer.Option(help="For which the file is: cpu, cuda, rocm, tpu.")] = "cpu,cuda,tpu",
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a run's network, or a config's training step, as one file that JAX runs without jaxnet."""
    from jaxnet.training.exporting import run

    run(source, out, platforms, overrides or (), data_dir)


@app.command(context_settings={"ignore_unknown_options": True})
def launch(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="train CONFIG …, or resume RUN …")],
    processes: Annotated[int, typer.Option(help="Number of processes.")] = 2,
    devices: Annotated[int | None, typer.Option(help="CPU devices of each process.")] = None,
) -> None:
    """Train in several processes on this machine; when one ends badly, all end."""
    from jaxnet.devices.launch import launch

    raise typer.Exit(launch(command, processes, devices))


@app.command()
def schema() -> None:
    """Print the JSON Schema of configs, for editors.

    `jaxnet schema > jaxnet.schema.json`, and `#:schema ./jaxnet.schema.json` as the first line of a config.
    """
    from jaxnet.training.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def main() -> None:
    """The entry point.

    Exit status: 0; 1 only where `check` finds a backward pass wrong; 2 for an error, of the input or of jaxnet itself;
    128 + n for signal n.
    """
    if sys.stdout is None or sys.stderr is None:  # what is opened next would take their place
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
        ended = output_lost() if error.errno == errno.EPIPE else refused(f"stdout: {told_by_the_system(error)}")
        status = ended.exit_code
    sys.exit(status)
