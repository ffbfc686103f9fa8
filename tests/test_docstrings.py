"""Every public name has a docstring, and the example in it runs."""

import ast
import doctest
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnet
from jaxnet.registry import makers
from tests.test_source import BY_HAND, PACKAGE


@cache
def documented() -> dict[str, str]:
    """Each name defined in the core with its docstring: of an instance, the string under its assignment."""
    found = {}
    for path in [*BY_HAND, *PACKAGE.glob("feedback/*.py")]:
        body = ast.parse(path.read_text()).body
        for node, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.setdefault(node.name, ast.get_docstring(node) or "")
            elif isinstance(node, ast.Assign):
                text = (
                    below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
                )
                for target in node.targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(name, ast.Name):
                            found.setdefault(name.id, text)
    return found


@pytest.mark.parametrize("name", jaxnet.__all__)
def test_public_names_have_docstrings(name):
    text = documented()[name]
    first = text.strip().splitlines()[0] if text.strip() else ""
    assert len(first) > 10, f"{name} has no docstring"
    assert len(first) <= 120
    assert text.partition(">>>")[0].strip()[-1] in ".:)`", f"the docstring of {name} ends within a sentence"


MAKERS = makers("layer", "model", "loss", "feedback")
MODULE_OF = {name: entry.module for name, entry in MAKERS.items() if entry.configs or entry.examples}
MODULE_OF |= dict.fromkeys(jaxnet.__all__, "jaxnet")


@pytest.mark.parametrize("name", sorted(MODULE_OF))
def test_the_example_of_each_public_name_and_maker_runs(name):
    names = {"jax": jax, "jnp": jnp, "np": np} | {public: getattr(jaxnet, public) for public in jaxnet.__all__}
    names |= vars(sys.modules[MODULE_OF[name]])
    example = doctest.DocTestParser().get_doctest(documented()[name], names, name, None, None)
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    assert doctest.DocTestRunner().run(example, out=said.append).failed == 0, "".join(said)


SHAPES = ("shape", "axis", "axes", "vector", "scalar", "length", "width", "entry", "features", "example", "batch", "(…",
          "number", "Parameters:", "‖", "δ", "Σ")  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(jaxnet.__all__) - {"ShapeError", "pair"}))
def test_docstrings_say_what_arrays_are_meant(name):
    text = documented()[name]
    assert any(word in text for word in SHAPES), f"the docstring of {name} speaks of no shape: {text!r}"


def test_all_is_sorted_and_complete():
    assert jaxnet.__all__ == sorted(jaxnet.__all__)
    imported = {name.asname or name.name for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
                if isinstance(node, ast.ImportFrom) for name in node.names}  # fmt: skip
    assert imported == set(jaxnet.__all__)
