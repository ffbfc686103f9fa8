"""The cases of `jaxnet bench layers` and `jaxnet bench models`: a file for each subject, its cases made one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module

from jaxnet.bench.measure import Row, TimedCase, measure

LAYERS: Mapping[str, str] = {
    "convolution": "convolution:cases",
    "attention": "attention:cases",
    "recurrent": "recurrent:cases",
}
MODELS: Mapping[str, str] = {"cnn": "convolution:models", "gpt": "gpt:cases"}
"""The subjects of the two benchmarks, each with "file:function" that makes its cases."""


def cases(subjects: Mapping[str, str], only: str | None = None) -> Iterator[TimedCase]:
    """The cases of all subjects, or of one of them, each made when it is asked for."""
    for subject, place in subjects.items():
        if only in (None, subject):
            file, _, function = place.partition(":")
            yield from getattr(import_module(f"{__name__}.{file}"), function)()


def rows_of(subjects: Mapping[str, str]) -> Callable[[str | None], list[Row]]:
    """A function that measures all cases, or one subject's, and says on stderr which it has come to."""

    def rows(only: str | None = None) -> list[Row]:
        found = []
        for case in cases(subjects, only):
            print(f"measuring {case.name}: {case.rounds} rounds of {1 + len(case.others)}", file=sys.stderr, flush=True)
            found += measure(case)
        return found

    return rows
