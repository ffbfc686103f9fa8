"""A report as text."""

from __future__ import annotations

from jaxnet.checking.compare import Leaf
from jaxnet.checking.report import Report

MOST_ROWS = 40


def table(report: Report) -> str:
    """The report's table and what stands under it."""
    verdict = "ok" if report.ok else "WRONG"
    lines = [f"{report.name}: backward {verdict}".ljust(35) + f"{report.where}   seed {report.seed}"]
    if report.leaves:
        lines += rows(report.leaves)
    lines.append("")
    lines += [f"{'PROBLEM':8}{problem}" for problem in report.problems]
    if not report.ok:
        lines += cause(report)
    lines += about(report)
    for inner in report.inside:
        lines += ["", *("  " + line for line in (str(inner) if not inner.ok else summary(inner)).splitlines())]
    return "\n".join(lines).rstrip() + "\n"


def rows(leaves: tuple[Leaf, ...]) -> list[str]:
    """A line for each leaf; of many right ones a count."""
    shown = [leaf for leaf in leaves if not leaf.ok or leaf.verdict != "ok"]
    right = [leaf for leaf in leaves if leaf.verdict == "ok"]
    kept = {id(leaf) for leaf in [*shown[:MOST_ROWS], *right[: max(0, MOST_ROWS - len(shown))]]}
    width = max([10, *(len(leaf.path) for leaf in leaves if id(leaf) in kept)]) + 2
    lines = [f"  {'':{width}}{'error':9}{'allowed':9}{'cosine':8}{'worst':11}{'got':11}{'expected':11}".rstrip()]
    lines += [row(leaf, width) for leaf in leaves if id(leaf) in kept]
    if hidden := len(leaves) - len(kept):
        lines.append(f"  and {hidden} more leaves, {sum(not leaf.ok for leaf in leaves if id(leaf) not in kept)} wrong")
    return lines


def row(leaf: Leaf, width: int) -> str:
    """One leaf."""
    index = f"[{','.join(map(str, leaf.index))}]" if leaf.index else "[]"
    differs = leaf.verdict != "ok"
    cosine = f"{leaf.cosine:.3f}".replace("0.", ".", 1) if leaf.cosine < 0.9995 else "1"
    words = (
        leaf.verdict
        + (f"  {leaf.pattern}" if leaf.pattern else "")
        + (f"  at {leaf.dtype}" if leaf.dtype and differs else "")
    )
    values = f"{short(leaf.got):11}{short(leaf.expected):11}" if differs else f"{'':22}"
    sizes = f"{sized(leaf.error):9}{sized(leaf.allowed):9}{cosine:8}"
    return f"  {leaf.path:{width}}{sizes}{index if differs else '':11}{values}{words}"


def sized(value: float) -> str:
    """A size: 0, or with one digit after the point."""
    return "0" if value == 0 else f"{value:.0e}" if value < 1e-2 else f"{value:.1e}"


def short(value: complex) -> str:
    """A number in four digits."""
    if isinstance(value, complex) and value.imag:
        return f"{value:.3g}"
    return f"{value.real:.4g}"


def cause(report: Report) -> list[str]:
    """Layer, cause, the line it belongs to, evidence, the equation mended, the alternatives."""
    lines = []
    if report.layer:
        lines.append(f"{'layer':8}{report.layer}")
    best = report.best
    if best is None:
        if not report.problems and report.cause:
            lines.append(f"{'cause':8}{report.cause}")
        return lines
    lines.append(f"{'cause':8}{best.cause}" + ("" if best.exact else "   (consistent with: it is not the only one)"))
    if best.where:
        lines.append(f"{'':8}{best.where}")
    evidence = best.evidence or f"explains {', '.join(best.leaves)} to {best.residual:.0e}"
    lines.append(f"{'':8}{evidence}")
    if best.equation:
        lines.append(f"{'mended':8}{best.equation}")
    others = report.diagnosis.others
    fitted = "; ".join(other.cause for other in others[:3])
    lines.append(f"{'others':8}{fitted if others else f'none of {report.diagnosis.tried:,} mutants fits as well'}")
    return lines


def about(report: Report) -> list[str]:
    """What else was held, what this point cannot tell, and how to run it again."""
    lines = []
    if failed := [h for h in report.held if h.ok is False]:
        lines += [f"{'FAILED':8}{h.name}: {h.words}" for h in failed]
    if fine := [h for h in report.held if h.ok]:
        lines.append(f"{'also held':14}{', '.join(h.name + (f' ({h.words})' if h.words else '') for h in fine)}")
    lines += [f"{'not asked':14}{h.name}: {h.words}" for h in report.held if h.ok is None]
    if report.blind is not None:
        lines.append(
            f"{'cannot tell':14}{clipped(report.blind, 6) if report.blind else 'nothing: every mutant differs here'}"
        )
    if report.passed_over:
        lines.append(f"{'passed over':14}{', '.join(f'{path} ({why})' for path, why in report.passed_over.items())}")
    if report.reference != "autodiff of its primal":
        lines.append(f"{'reference':14}{report.reference}")
    lines += [f"{'note':14}{note}" for note in report.notes]
    if report.curve:
        lines.append(f"{'step, change':14}{', '.join(f'{h:.0e} {c:.0e}' for h, c in report.curve)}")
    if report.again:
        lines.append(f"{'again':14}{report.again}")
    return lines


def clipped(words: tuple[str, ...], most: int, length: int = 160) -> str:
    """The first few of several remarks, none of them long; how many more there are."""
    shown = [each if len(each) <= length else each[: length - 1] + "…" for each in words[:most]]
    more = [f"and {len(words) - most} more"] if len(words) > most else []
    return "; ".join([*shown, *more])


def summary(report: Report) -> str:
    """A right report in one line."""
    worst = max((leaf.error for leaf in report.leaves if not leaf.forward), default=0.0)
    allowed = max((leaf.allowed for leaf in report.leaves if not leaf.forward), default=0.0)
    warned = "".join(f"   {note}" for note in report.notes if note.startswith("WARNING"))
    return f"{report.name}: ok   {report.where}   error {sized(worst)}, allowed {sized(allowed)}{warned}"
