"""pytest: the fixture `assert_backward`, with the seed and the number of seeds from the command line.

`--backprop-seed N` starts at another seed, `--backprop-seeds N` tries more of them.

It is asked for, by `pytest_plugins = ["jaxnet.checking.pytest_plugin"]` in the conftest.py beside pytest's
configuration, or by `pytest -p jaxnet.checking.pytest_plugin`. Were it an entry point, every run of pytest in the
environment would import JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("backprop", "checking backward passes")
    group.addoption("--backprop-seed", type=int, default=0, help="the first seed of inputs and cotangents")
    group.addoption("--backprop-seeds", type=int, default=3, help="how many seeds each check tries")


@pytest.fixture
def assert_backward(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`jaxnet.checking.assert_backward` at the seeds of the command line; a failure shows the report's table."""
    from jaxnet.checking import assert_backward as held

    seed, seeds = request.config.getoption("--backprop-seed"), request.config.getoption("--backprop-seeds")
    again = f'pytest "{request.node.nodeid}" --backprop-seed {seed}'

    def asserted(rule: Any, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return held(rule, *args, **{"seed": seed, "seeds": seeds, "again": again, **options})

    return asserted
