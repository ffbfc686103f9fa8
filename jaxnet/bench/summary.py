"""The rows of a benchmark, one line for each case: against naive autodiff, the best autodiff, and torch."""

from collections.abc import Iterable, Sequence

from jaxnet.bench.measure import Row

HEADINGS = (
    "case", "against naive autodiff", "its memory", "aim", "against the best autodiff", "torch", "torch.compile",
    "of the rate",
)  # fmt: skip


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table with a line for each case, its ratios in the order of the headings."""
    cases = dict.fromkeys(row.case for row in rows)
    lines = [line([row for row in rows if row.case == case]) for case in cases]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEADINGS, ("---",) * len(HEADINGS), *lines))


def line(rows: Sequence[Row]) -> tuple[str, ...]:
    """The cells of one case, against naive autodiff; where there is none, against its first row."""
    named = {row.against: row for row in rows}
    naive = named.get("autodiff, naive", rows[0])
    best = fastest(row for row in rows if row.against.startswith("autodiff"))
    return (
        naive.case,
        f"{naive.time_ratio:.2f}" + ("" if naive.against == "autodiff, naive" else f" of {naive.against}"),
        "" if naive.memory_ratio is None else f"{naive.memory_ratio:.2f}",
        aim(naive),
        "" if best is None else f"{best.time_ratio:.2f}" + variant(best),
        *(f"{named[peer].time_ratio:.2f}" if peer in named else "" for peer in ("torch, eager", "torch.compile")),
        "" if naive.fraction is None else f"{naive.fraction:.0%}",
    )


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row that took the least time itself."""
    return min(rows, key=lambda row: row.seconds_against, default=None)


def variant(row: Row) -> str:
    """Which autodiff it is, in brackets, where it is not the naive one."""
    name = row.against.removeprefix("autodiff, ")
    return "" if name == "naive" else f" ({name})"


def aim(row: Row) -> str:
    """The aims in time and memory, and whether they were met."""
    aims = ", ".join(f"{aim:.3g}" for aim in (row.time_aim, row.memory_aim) if aim is not None)
    missed = row.verdict().removeprefix("missed: ")
    return aims if not aims else f"{aims} ✓" if missed == "met" else f"{aims} ✗ {missed}"
