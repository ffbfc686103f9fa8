"""Commands on layers, networks and configs: each a few lines that call its room, imported when it is called."""

import json
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from jaxnet.cli.app import DEVICES, READ, RUNS, AllowCode, ConfigFile, DataDir, Overrides, app, refused


@app.command(rich_help_panel=READ)
def layers(names: Annotated[list[str] | None, Argument(metavar="NAME", help="Default: all.")] = None) -> None:
    """List layers, models, losses and feedback paths, with options and equations."""
    from jaxnet.cli.layer_listing import listed

    try:
        print(*listed(*(names or ())), sep="\n")
    except LookupError as error:
        raise refused(str(error)) from None


@app.command(rich_help_panel=READ)
def check(
    targets: Annotated[
        list[str] | None,
        Argument(
            metavar="TARGET...",
            help="A layer, loss or model by name, a config, file.py:object, package.module:object, or a pair: "
            "file.py:forward,backward.",
        ),
    ] = None,
    inputs: Annotated[str | None, Option(help='Shapes of the arguments: "float32[8,256], int32[8]<10".')] = None,
    reference: Annotated[str | None, Option(help="package.module:function whose derivative is the right one.")] = None,
    intended: Annotated[
        str | None, Option(help="package.module:function of a backward pass that deviates on purpose.")
    ] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write the reports to this file; - prints them.")] = None,
    html_file: Annotated[Path | None, Option("--html", help="Write a page with heat maps to this file.")] = None,
    fix: Annotated[Path | None, Option(help="Write a mended copy of the source to this file, and check it.")] = None,
    everything: Annotated[bool, Option("--all", help="Check every layer, loss and model of jaxnet.")] = False,
    primitives: Annotated[bool, Option("--primitives", help="Check JAX's own derivatives.")] = False,
    device: Annotated[bool, Option("--device", help="Measure the rounding error on this device.")] = False,
    adequacy: Annotated[bool, Option(help="List the mistakes that these inputs cannot reveal.")] = False,
    seed: Annotated[int, Option(min=0, help="First seed of the inputs and cotangents.")] = 0,
    seeds: Annotated[int, Option(min=1, help="Number of seeds.")] = 3,
    tolerance: Annotated[
        float | None, Option(help="Allowed relative error. Default: the measured rounding error.")
    ] = None,
    dtype: Annotated[str | None, Option(help="dtype in place of float32: bfloat16, float64.")] = None,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Check a backward pass entry by entry and name the mistake.

    Exit status 0: right, 1: wrong, 2: not checked.
    """
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


class Exercise(Explain):
    """`jaxnet exercise` is `jaxnet explain --exercise`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["--exercise", *args])


@app.command(
    "exercise",
    cls=Exercise,
    help="Ask about a network's backward pass, and grade the answers.",
    rich_help_panel=READ,
)
@app.command(cls=Explain, rich_help_panel=READ)
def explain(
    ctx: typer.Context,
    target: Annotated[
        str,
        Argument(
            metavar="TARGET",
            help="A config, a run's folder, a layer or model by name, module:object or file.py:function.",
        ),
    ],
    overrides: Overrides = None,
    example: Annotated[int, Option(help="Index of the training example, from 0.")] = 0,
    batch: Annotated[int | None, Option(help="Explain a batch of N examples.")] = None,
    seed: Annotated[int | None, Option(min=0, help="Seed of the parameters. Default: the config's.")] = None,
    layer: Annotated[int | None, Option(help="Number of the layer that the questions are about.")] = None,
    walk: Annotated[bool, Option("--walk", help="Walk from one weight to the matrices of the backward pass.")] = False,
    exercise: Annotated[
        bool, Option("--exercise", help="Ask for signs, shapes, numbers and lines, and grade the answers.")
    ] = False,
    step: Annotated[bool, Option("--step", help="Show the equations one by one.")] = False,
    questions: Annotated[bool, Option("--questions", help="Answer common questions with these numbers.")] = False,
    more: Annotated[bool, Option("--more", help="Show the whole chain of Jacobians, and ∂z/∂W as a tensor.")] = False,
    shapes: Annotated[bool, Option("--shapes", help="Show the equations and shapes, without numbers.")] = False,
    table: Annotated[bool, Option("--table", help="Show the equations in every notation, and as loops.")] = False,
    try_: Annotated[
        str | None,
        Option("--try", metavar="FORMULA", help='Check a formula: "W3.T @ delta3"; without one, ask for formulas.'),
    ] = None,
    digits: Annotated[int, Option(help="Number of decimals.")] = 4,
    notation: Annotated[str, Option(help="nielsen, ng or cs229.")] = "nielsen",
    numbering: Annotated[int | None, Option(help="Number of the input layer: 0 or 1.")] = None,
    weights: Annotated[str, Option(help="Layout of W: out-in, or in-out with examples as rows.")] = "out-in",
    inputs: Annotated[str | None, Option(help='Shapes of the inputs: "float32[6]".')] = None,
    json_file: Annotated[
        Path | None, Option("--json", help="Write everything to this file as JSON; - prints it.")
    ] = None,
    html_file: Annotated[Path | None, Option("--html", help="Write a page to this file.")] = None,
    latex: Annotated[bool, Option("--latex", help="Print the equations as LaTeX.")] = False,
    figure: Annotated[
        Path | None, Option(help="Draw the network, or with --walk its steps: .svg, .png, .pdf; .gif moves, a run too.")
    ] = None,
    sheet: Annotated[
        int | None, Option(metavar="N", min=1, help="N exercise sheets with answers: --html FILE, or --latex.")
    ] = None,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Show a backward pass in symbols, shapes and numbers: of a network or a JAX function."""
    from jaxnet.explaining import command
    from jaxnet.explaining.notation import notation as chosen
    from jaxnet.training.explain_target import subject_of

    symbols = chosen(notation, numbering, weights)
    found = subject_of(
        target, overrides or (), example=example, batch=batch, seed=seed, inputs=inputs, data_dir=data_dir
    )
    given = {each.name: ctx.params[each.name] for each in fields(command.Options) if each.name in ctx.params}
    command.run(found, command.Options(**given | {"notation": symbols, "batch": batch is not None, "formula": try_}))


@app.command(rich_help_panel=DEVICES)
def bench(
    name: Annotated[
        str, Argument(metavar="NAME", help="core, layers, models, quantities, growth, devices or checkers")
    ] = "core",
    json_file: Annotated[Path | None, Option("--json", help="Write the rows to this file.")] = None,
    markdown: Annotated[Path | None, Option(help="Write the tables to this file as Markdown.")] = None,
    only: Annotated[
        str | None, Option(metavar="SUBJECT", help="Run one subject of layers, models or devices only.")
    ] = None,
) -> None:
    """Measure the hand-written backward pass against autodiff's best variants and torch."""
    from jaxnet.bench.results import run

    run(name, json_file, markdown, only)


@app.command(rich_help_panel=DEVICES)
def pipeline(
    names: Annotated[
        list[str] | None, Argument(metavar="SCHEDULE...", help="gpipe, 1f1b, zb-h1, zb-h2. Default: all.")
    ] = None,
    stages: Annotated[int, Option(help="Number of devices; each holds a part of the layers.")] = 4,
    microbatches: Annotated[int, Option(help="Number of microbatches in a batch.")] = 8,
    times: Annotated[
        str, Option(metavar="F,B,W[,T]", help="Times of forward, backward for δ, backward for weights, transfer.")
    ] = "1,1,1",
    figure: Annotated[Path | None, Option(help="Write a picture to this file: .png, .svg or .pdf.")] = None,
) -> None:
    """Show the schedules of a pipeline: bubble, time and tasks of each stage."""
    from jaxnet.devices import schedules

    chosen = schedules.read_times(times)
    print(*schedules.lines(names or (), stages, microbatches, chosen), sep="\n")
    if figure is not None:
        from jaxnet.devices.schedule_pictures import draw

        draw(figure, names or tuple(schedules.SCHEDULES), stages, microbatches, chosen)


@app.command(rich_help_panel=DEVICES)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    devices: Annotated[str, Option(help="cpu:8, cuda:h100:8, tpu:v5e:16x16; they need not be here.")] = "cpu:1",
    program: Annotated[Path | None, Option(help="Write the compiled step's text to this file.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write the plan to this file.")] = None,
    scale: Annotated[bool, Option("--scale", help="Estimate the step on up to 4,096 devices.")] = False,
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Compile a config's step for devices, and print its memory, operations and time."""
    from jaxnet.training.config import load_config
    from jaxnet.training.plan import run

    run(load_config(config, tuple(overrides or ())), devices, data_dir, program, json_file, scale)


@app.command(rich_help_panel=DEVICES)
def compile(
    config: ConfigFile,
    overrides: Overrides = None,
    target: Annotated[str, Option(help="cpu:8, cuda:h100:8, tpu:v5e:16x16; they need not be here.")] = "cpu:1",
    out: Annotated[Path, Option(help="The file to write.")] = Path("step.bin"),
    data_dir: DataDir = None,
    allow_code: AllowCode = False,
) -> None:
    """Compile a config's step for devices, and write it as a file that runs there."""
    from jaxnet.training.compiling import run
    from jaxnet.training.config import load_config

    run(load_config(config, tuple(overrides or ())), target, out, data_dir)


@app.command(rich_help_panel=RUNS)
def schema() -> None:
    """Print the JSON Schema of configs, for editors.

    `jaxnet schema > jaxnet.schema.json`, and `#:schema ./jaxnet.schema.json` as the first line of a config.
    """
    from jaxnet.training.config import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
