"""Each public function of the room has an example, and it runs."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet import quantities

MODULES = [f"jaxnet.quantities.{found.name}" for found in pkgutil.iter_modules(quantities.__path__)]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module):
    names = {"jax": jax, "jnp": jnp, "np": np} | {public: getattr(jaxnet, public) for public in jaxnet.__all__}
    found = doctest.DocTestFinder(exclude_empty=False).find(importlib.import_module(module))
    for example in found:
        example.globs = names | example.globs
        said: list[str] = []
        assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("module", ["curvature", "kronecker"])
def test_each_function_that_makes_another_has_an_example(module):
    room = importlib.import_module(f"jaxnet.quantities.{module}")
    makers = {
        name
        for name, value in inspect.getmembers(room, inspect.isfunction)
        if value.__module__ == room.__name__ and "Returns `(" in (value.__doc__ or "")
    }
    assert makers
    without = {name for name in makers if ">>>" not in inspect.getdoc(getattr(room, name))}
    assert without <= {"of_columns"}
