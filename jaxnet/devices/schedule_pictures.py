"""Pictures of a pipeline's schedules: time to the right, a row for each stage."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxnet.devices.schedules import EQUAL, SCHEDULES, ScheduleError, Task, Times, schedule

COLORS = {"F": "#6cb6ff", "B": "#ff9e64", "W": "#7ee2a8"}
MEANINGS = {"F": "forward", "B": "backward: δ", "W": "backward: weights"}
NUMBERED = 24  # so many microbatches still have room for their numbers


def draw(path: Path, names: Sequence[str], stages: int, microbatches: int, times: Times = EQUAL) -> None:
    """Write the schedules of these names below each other, in one scale of time, as a picture (.png, .svg or .pdf).

    Raises `ScheduleError` for another ending of the file's name.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ScheduleError(f"a picture's name ends in .png, .svg or .pdf, got {str(path)!r}")
    played = {name: schedule(name, stages, microbatches).played(times) for name in names}
    longest = max(timeline.duration for timeline in played.values())
    figure = Figure(figsize=(11.0, 0.7 + len(names) * (0.55 + 0.28 * stages)), layout="constrained")
    axes = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
    for ax, (name, timeline) in zip(axes, played.items(), strict=True):
        for stage, (starts, order) in enumerate(
            zip(timeline.starts, schedule(name, stages, microbatches).orders, strict=True)
        ):
            for start, (task, i) in zip(starts, order, strict=True):
                for letter in task.name:
                    length = times.of(Task[letter])
                    ax.broken_barh([(start, length)], (stage - 0.45, 0.9), facecolor=COLORS[letter], edgecolor="white")
                    if microbatches <= NUMBERED:
                        middle = start + length / 2
                        ax.text(middle, stage, str(i), ha="center", va="center", fontsize=7, color="#1c1c1c")
                    start += length
        published = SCHEDULES[name].published_bubble(stages, microbatches, times)
        ax.set_title(
            f"{name}: bubble {timeline.bubble:.3f} (published {published:.3f}), {max(timeline.kept)} microbatches kept",
            loc="left",
            fontsize=10,
        )
        ax.set(xlim=(0, longest), ylim=(stages - 0.5, -0.5), yticks=range(stages), ylabel="stage")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("time")
    figure.legend(
        [Patch(color=color) for color in COLORS.values()], MEANINGS.values(), loc="outside lower center", ncols=3
    )
    figure.savefig(path, dpi=150)
