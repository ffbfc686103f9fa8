"""TensorBoard's event files beside the metrics."""

from pathlib import Path
from typing import Any


class Events:
    """Writes each epoch's metrics as events; those from `purge_step` on that an earlier start wrote are void."""

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, line: dict[str, Any]) -> None:
        """One line of metrics."""
        for name, value in line.items():
            if name in ("step", "epoch"):
                continue
            for i, number in enumerate(value if isinstance(value, list) else [value]):
                label = f"{name}/{i + 1}" if isinstance(value, list) else name
                self.writer.add_scalar(label, number, line["step"])
        self.writer.flush()
