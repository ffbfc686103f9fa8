"""Commands on runs: each a few lines that call its room, imported when it is called."""

import json
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from jaxnet.cli.app import (
    DEVICES,
    RUNS,
    AllowCode,
    Best,
    ConfigFile,
    DataDir,
    Fallback,
    Join,
    Overrides,
    RunFolder,
    Step,
    app,
    reading_of,
    refused,
)


@app.command(rich_help_panel=RUNS)
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    start_from: Annotated[
        Path | None, Option("--from", metavar="RUN", help="Begin with the trained parameters of this run.")
    ] = None,
    print_config: Annotated[bool, Option("--print", help="Print the config with all defaults, and stop.")] = False,
    run_dir: Annotated[Path | None, Option(help="Folder of this run. Must be new or empty.")] = None,
    runs_dir: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs"),
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


@app.command(rich_help_panel=RUNS)
def resume(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="To train longer: train.epochs=60")
    ] = None,
    data_dir: DataDir = None,
    join: Join = None,
    allow_code: AllowCode = False,
) -> None:
    """Resume an interrupted run, or train a finished one longer."""
    from jaxnet.training import loop

    loop.resume(run, data_dir=data_dir, overrides=overrides or ())


@app.command("eval", rich_help_panel=RUNS)
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None, Option(help="Other data: a name, or a .npz or .csv file. Default: the run's data.")
    ] = None,
    data_dir: DataDir = None,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Print loss, accuracy and confused classes of a run's network."""
    from jaxnet.training import trained_network
    from jaxnet.training.run_listing import console

    found = trained_network.evaluate(run, data=data, data_dir=data_dir, reading=reading_of(step, fallback, best))
    print(*trained_network.lines(found), sep="\n")
    for table in trained_network.confusion_tables(found):
        console().print("", table, sep="\n")


@app.command(rich_help_panel=RUNS)
def predict(
    run: RunFolder,
    file: Annotated[Path, Argument(metavar="FILE", help="Examples: a .npy, .npz or .csv file, or a picture.")],
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


@app.command(rich_help_panel=RUNS)
def influence(
    run: RunFolder,
    test: Annotated[int, Option(help="Number of the test example, from 0.")] = 0,
    most: Annotated[int, Option(help="Number of training examples of each kind.", min=1)] = 8,
    damping: Annotated[float, Option(help="λ, added to the curvature.", min=0)] = 1e-3,
    out: Annotated[Path | None, Option(help="Output folder. Default: the run's folder.")] = None,
    data_dir: DataDir = None,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Write a page of the training examples that helped or harmed a prediction most."""
    from jaxnet.training import influence

    found = influence.of_run(
        run, test, most=most, damping=damping, data_dir=data_dir, reading=reading_of(step, fallback, best)
    )
    print(*found.lines(), influence.write(found, out or run), sep="\n")


@app.command(rich_help_panel=RUNS)
def sample(
    run: RunFolder,
    prompt: Annotated[str, Option(help="Text that the network continues.")] = "\n",
    length: Annotated[int, Option(help="Number of characters.")] = 500,
    temperature: Annotated[
        float, Option(help="Below 1 likely characters are drawn more often. 0: always the likeliest.")
    ] = 0.8,
    top_k: Annotated[int | None, Option(help="Draw from the K likeliest characters only.")] = None,
    seed: Annotated[int, Option(help="Seed of the draws.")] = 0,
    step: Step = None,
    fallback: Fallback = False,
    allow_code: AllowCode = False,
    best: Best = False,
) -> None:
    """Generate text with a run's network, one character at a time."""
    from jaxnet.training import sample

    drawing = sample.TokenDraw(temperature, top_k, seed)
    drawn = sample.sample(run, prompt, length=length, drawing=drawing, reading=reading_of(step, fallback, best))
    first = next(drawn)  # a refusal comes before any text
    for piece in chain((prompt, first), drawn):
        print(piece, end="", flush=True)
    print()


@app.command(rich_help_panel=RUNS)
def report(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Runs, or folders of runs.")],
    out: Annotated[
        Path | None, Option(help="Output folder. Default: the run's folder; for several runs, report/.")
    ] = None,
) -> None:
    """Draw the curves of one or several runs: a picture and a page."""
    from jaxnet.training import reports

    print(*reports.report(runs, out), sep="\n")


@app.command(rich_help_panel=RUNS)
def runs(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder that holds the runs.")] = Path("runs"),
    where: Annotated[
        list[str] | None, Option(help="List only runs with this: test_accuracy>0.9, train.batch=10, tag=good.")
    ] = None,
    sort: Annotated[str | None, Option(help="Sort by a result or a config key, largest last.")] = None,
) -> None:
    """List the runs in a folder: their results, and the config keys that differ."""
    from jaxnet.training.run_listing import show_runs

    show_runs(folder, where=where or (), sort=sort)


@app.command(rich_help_panel=RUNS)
def note(
    run: RunFolder,
    text: Annotated[str | None, Argument(help="A note to add.")] = None,
    tag: Annotated[list[str] | None, Option(help="A tag to add. Repeatable.")] = None,
    untag: Annotated[list[str] | None, Option(help="A tag to take away. Repeatable.")] = None,
) -> None:
    """Add a note or tags to a run, and print all that it has."""
    from jaxnet.training.run_folder import Run

    noted = Run.open(run)
    if text or tag or untag:
        noted.note([text] if text else [], tag or (), untag or ())
    found = noted.notes()
    print(*found["notes"], f"tags: {' '.join(found['tags']) or 'none'}", sep="\n")


@app.command(rich_help_panel=RUNS)
def delete(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Runs' folders.")],
    yes: Annotated[bool, Option("--yes", help="Ask no question.")] = False,
) -> None:
    """Delete runs, with their checkpoints."""
    from jaxnet.training.run_folder import Run

    found = [Run.open(folder) for folder in dict.fromkeys(runs)]
    if not (yes or typer.confirm(f"Delete {', '.join(map(str, dict.fromkeys(runs)))}?")):
        raise refused("nothing was deleted")
    for run in found:
        run.delete()
        print(f"deleted {run.folder}")


@app.command(rich_help_panel=RUNS)
def diff(one: RunFolder, other: RunFolder) -> None:
    """Show how two runs differ: config, versions, devices, data, results."""
    from jaxnet.training.run_listing import difference_lines, read_run

    print(*(difference_lines([read_run(one), read_run(other)]) or ["no difference"]), sep="\n")


@app.command(rich_help_panel=RUNS)
def metrics(
    run: RunFolder,
    to: Annotated[str, Option(help="csv prints them; tensorboard, wandb, mlflow write files.")] = "csv",
    out: Annotated[Path | None, Option(help="Folder for the files. Default: one named as the program.")] = None,
) -> None:
    """Print a run's metrics as CSV, or write them for another program."""
    from jaxnet.training.run_listing import read_run
    from jaxnet.training.trackers import export, metrics_csv

    record = read_run(run)
    if to == "csv":
        print(metrics_csv(record), end="")
    else:
        print(export(record, to, out))


@app.command(rich_help_panel=RUNS)
def watch(run: RunFolder, port: Annotated[int, Option(help="Port of the page; 0: any free one.")] = 0) -> None:
    """Show a run's curves in the browser while it trains."""
    from jaxnet.training.watching import address, server

    with server(run, port) as serving:
        print(f"{address(serving)} shows {run}; Ctrl-C ends it", flush=True)
        serving.serve_forever()


@app.command(rich_help_panel=RUNS)
def sweep(
    file: Annotated[Path, Argument(metavar="FILE", help="A TOML file of a sweep, or a config.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Values to sweep over: train.batch=[10,32]")
    ] = None,
    seeds: Annotated[int | None, Option(min=1, help="Number of seeds, starting with the config's.")] = None,
    together: Annotated[
        bool | None,
        Option("--together/--apart", help="Train all seeds of a setting in one vmapped program, or each alone."),
    ] = None,
    jobs: Annotated[int, Option(min=1, help="Number of processes that share the runs.")] = 1,
    fail_fast: Annotated[bool, Option("--fail-fast", help="End at the first run that fails.")] = False,
    resume: Annotated[bool, Option("--resume", help="Only go on with a sweep that was begun.")] = False,
    figure: Annotated[
        Path | None, Option(help="Write a picture to this file: importance of keys, parallel coordinates.")
    ] = None,
    runs_dir: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs"),
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


@app.command("find-rate", rich_help_panel=RUNS)
def find_rate(
    config: ConfigFile,
    overrides: Overrides = None,
    low: Annotated[float, Option(help="First learning rate.")] = 1e-5,
    high: Annotated[float, Option(help="Last learning rate.")] = 10.0,
    steps: Annotated[int, Option(help="Number of training steps.")] = 100,
    out: Annotated[Path, Option(help="File for the curve, a PNG.")] = Path("learning_rates.png"),
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Train some steps with a growing learning rate, and draw the cost over it."""
    from jaxnet.training.config import load_config
    from jaxnet.training.learning_rates import range_test, write_curve

    loaded = load_config(config, tuple(overrides or ()))
    found = range_test(loaded, low=low, high=high, steps=steps, data_dir=data_dir)
    print(*found.lines(), write_curve(found, out), sep="\n")


@app.command(rich_help_panel=DEVICES)
def export(
    source: Annotated[Path, Argument(metavar="RUN|CONFIG", help="A run's folder, or a config's TOML file.")],
    overrides: Overrides = None,
    out: Annotated[Path, Option(help="The file to write.")] = Path("network.jax"),
    platforms: Annotated[str, Option(help="Platforms of the file: cpu, cuda, rocm, tpu.")] = "cpu,cuda,tpu",
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a network or a training step as one file that JAX runs without jaxnet."""
    from jaxnet.training.exporting import run

    run(source, out, platforms, overrides or (), data_dir)


@app.command(context_settings={"ignore_unknown_options": True}, rich_help_panel=DEVICES)
def launch(
    command: Annotated[list[str], Argument(metavar="COMMAND...", help="train CONFIG …, or resume RUN …")],
    processes: Annotated[int, Option(help="Number of processes.")] = 2,
    devices: Annotated[int | None, Option(help="CPU devices of each process.")] = None,
) -> None:
    """Train in several processes on this machine; when one ends badly, all end."""
    from jaxnet.devices.launch import launch

    raise typer.Exit(launch(command, processes, devices))
