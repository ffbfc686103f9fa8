"""Reports of one run, or of several laid over each other: a picture of the curves, and a self-contained page."""

import base64
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from jinja2 import Environment, PackageLoader

from jaxnet.layer import ShapeError
from jaxnet.training.checkpoint import CheckpointError
from jaxnet.training.config import ConfigError
from jaxnet.training.data import DataError
from jaxnet.training.mistakes import mistakes
from jaxnet.training.plots import DARK, LIGHT, Panel, overview, panel_svg, panels_of, png
from jaxnet.training.run_folder import CURVES, Run, RunError, replace_file, writing
from jaxnet.training.run_listing import (
    RunRecord,
    differing,
    epochs_done,
    find_runs,
    formatted,
    heading,
    read_run,
    results,
    short_names,
)

PAGE = "report.html"


def write_curves(folder: Path) -> Path | None:
    """curves.png of one run into its folder; None where it has no epoch yet."""
    record = read_run(folder)
    if not record.metrics:
        return None
    return replace_file(folder / CURVES, png(overview([record], [record.name], about([record]))))


def report(places: Sequence[Path], out: Path | None = None, say: Callable[[str], None] = print) -> list[Path]:
    """Writes report.html and curves.png of some runs; gives both files. The page of one run has its mistakes.

    places: runs, or folders with runs in them. out: the folder to write to; if none is given the run's own, or
    `report` for several. say: called for each run that is left out. Raises RunError where no run is left.
    """
    records = gathered(places, say)
    if out is None:
        out = records[0].folder if len(records) == 1 else Path("report")
    names = short_names(records)
    title = about(records)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    return [
        replace_file(out / PAGE, page(records, names, mistake_panels(records, say)).encode()),
        replace_file(out / CURVES, png(overview(records, names, title))),
    ]


def mistake_panels(records: Sequence[RunRecord], say: Callable[[str], None]) -> list[Panel]:
    """The mistakes of one run's network. say: called with the reason if the network cannot be evaluated."""
    if len(records) > 1:
        return []
    try:
        found = mistakes(records[0].folder)
    except (RunError, CheckpointError, ConfigError, DataError, ShapeError) as error:
        say(f"left out: the examples that the network gets wrong: {error}")
        return []
    return [] if found is None else found.panels()


def gathered(places: Sequence[Path], say: Callable[[str], None]) -> list[RunRecord]:
    """The runs in some places, each once. Damaged runs and runs without an epoch are left out; say: called for each."""
    found: dict[Path, RunRecord] = {}
    left_out: list[str] = []
    for place in places:
        records, damaged = find_runs(place)
        if not records and not damaged:
            Run.open(place)  # says why it is none
        left_out += damaged
        for record in records:
            if record.metrics:
                found[record.folder.resolve()] = record
            else:
                left_out.append(f"{record.folder} has no epoch yet, so there is nothing to draw")
    if not found:
        raise RunError("; ".join(left_out))
    for line in left_out:
        say(f"left out: {line}")
    return list(found.values())


# ---------------------------------------------------------------------------------------------- words


def about(records: Sequence[RunRecord]) -> str:
    """The runs in a line: one with its results, several by their number."""
    if len(records) > 1:
        return f"{len(records)} runs"
    [record] = records
    figures = [phrase(name, record.result(name)) for name in results(records)]
    ended = "" if record.status == "finished" else f", {epochs_done(record)} epochs"
    return f"{record.name}{ended}\n{', '.join(figures)}"


def phrase(name: str, value: float | None) -> str:
    """A result in running text: `best test 95.56 %`."""
    words = name.removesuffix("_accuracy").replace("_", " ")
    return f"{words} {formatted(name, value)}" + (" %" if name.endswith("accuracy") else "")


def surroundings(record: RunRecord) -> str:
    """Device, versions and revision of a run, its tags and its notes."""
    environment = record.environment
    versions = environment.get("versions", {})
    parts = [
        f"{environment.get('devices', 1)} × {environment['device']}" if "device" in environment else "",
        *(f"{name} {versions[name]}" for name in ("jaxnet", "jax", "python") if name in versions),
        f"revision {environment['git_revision'][:12]}" if environment.get("git_revision") else "",
        f"parameters {record.summary['params_sha256'][:12]}" if record.summary.get("params_sha256") else "",
    ]
    return ", ".join(filter(None, parts)) + "".join(f"; {note}" for note in (*record.tags, *record.notes))


def alt(panel: Panel, records: Sequence[RunRecord]) -> str:
    """The alternative text of a panel."""
    if not panel.epochs:
        return f"{panel.title}; {panel.words}"
    epochs = max(record.epochs() for record in records)
    whose = "one run" if len(records) == 1 else f"{len(records)} runs"
    return f"{panel.title} by epoch, {whose}, {epochs} epochs; the results are in the table below"


# ----------------------------------------------------------------------------------------------- page


def page(records: Sequence[RunRecord], names: Sequence[str], more: Sequence[Panel] = ()) -> str:
    """A self-contained page, light and dark. names: the runs' in the legend. more: panels after the curves."""
    keys, figures = differing(records), results(records)
    colors = zip(LIGHT.colors(len(records)), DARK.colors(len(records)), strict=True)
    runs = [
        {
            "label": names[i],
            "name": record.name,
            "light": light,
            "dark": dark,
            "settings": [values[i] for values in keys.values()],
            "numbers": [epochs_done(record), *(formatted(name, record.result(name)) for name in (*figures, "seconds"))],
            "surroundings": surroundings(record),
            "config": tomli_w.dumps(record.config),
        }
        for i, (record, (light, dark)) in enumerate(zip(records, colors, strict=True))
    ]
    panels = [*panels_of(records), *more]
    first, *lines = about(records).split("\n")
    environment = Environment(loader=PackageLoader("jaxnet.training"), autoescape=True, trim_blocks=True)
    return environment.get_template(f"{PAGE}.j2").render(
        title=first,
        lines=lines,
        light=LIGHT,
        dark=DARK,
        runs=runs,
        keys=list(keys),
        least="32rem" if len(panels) in (1, 2, 4) else "27rem",
        headings=["epochs", *map(heading, figures), "seconds"],
        panels=drawn(panels, records),
    )


def drawn(panels: Iterable[Panel], records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The panels as the page takes them, in both themes."""
    return [
        {
            "title": panel.title,
            "words": panel.words,
            "alt": alt(panel, records),
            "light": data_uri(panel_svg(panel, records, LIGHT)),
            "dark": data_uri(panel_svg(panel, records, DARK)),
        }
        for panel in panels
    ]


def data_uri(svg: str) -> str:
    """An SVG inside the page."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
