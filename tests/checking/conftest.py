"""What tests of the diagnosis share."""

import time

import pytest


@pytest.fixture
def own_time(monkeypatch):
    """The diagnosis reads a clock that stands still while other programs have the processor."""
    monkeypatch.setattr(time, "perf_counter", time.thread_time)
