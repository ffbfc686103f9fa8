"""A tried formula as text: shapes under each factor, the first misfit marked, the verdict and the repair."""

from __future__ import annotations

from jaxnet.explaining.arrays import array_lines
from jaxnet.explaining.formulas.judge import Trial
from jaxnet.explaining.numbers import shape


def trial_lines(trial: Trial, digits: int, width: int) -> list[str]:
    """The formula with all that is known of it."""
    found = [f"  {trial.formula}", *(f"  {line}" for line in labels(trial))]
    if trial.fault is not None:
        at, until = trial.fault.start, trial.fault.end
        found.append(f"  {' ' * at}{'~' * (until - at)}")
        sides = f"{shape(trial.fault.left)} {trial.fault.operator} {shape(trial.fault.right)}"
        found.append(f"first misfit: {sides} does not fit: {trial.fault.why}")
    else:
        found += list(trial.words)
    if trial.value is not None:
        found += [
            f"  {line}"
            for line in array_lines(trial.value.reshape(-1) if 1 in trial.value.shape else trial.value, digits, width)
        ]
    if trial.repair is not None:
        found.append(f"repair: {trial.repair.formula} = {trial.repair.symbol}")
        found += [f"  {change}" for change in trial.repair.changes]
    elif trial.verdict == "misfit":
        found.append("no order, transposition or ⊙ of these factors gives one of the network's quantities")
    return found


def labels(trial: Trial) -> list[str]:
    """The shape of each operand under its middle, on as many lines as they need."""
    rows: list[str] = []
    for operand in sorted(trial.operands, key=lambda each: each.start):
        text = shape(operand.shape) if operand.shape else "number"
        start = max(0, (operand.start + operand.end - len(text)) // 2)
        for i, row in enumerate(rows):
            if len(row) + (1 if row else 0) <= start:
                rows[i] = row.ljust(start) + text
                break
        else:
            rows.append(" " * start + text)
    return rows
