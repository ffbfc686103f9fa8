"""The targets of `jaxnet check TARGET`: something that jaxnet ships, or anybody's object with its inputs."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxnet.checking.differentiation import raised
from jaxnet.checking.numpy_functions import is_engine, operators
from jaxnet.checking.numpy_layers import has_passes
from jaxnet.checking.points import parts_of
from jaxnet.checking.scripts import FileRun, rule_of_script
from jaxnet.checking.subject import CannotCheckError
from jaxnet.layer import Layer
from jaxnet.losses import Loss
from jaxnet.registry import Maker, example, maker_of, makers

LEFT_OUT = "__left_out__"  # in a module: the statements of its file that did not run


@dataclass(frozen=True)
class Target:
    """A rule with its arguments; `typed` is its name on the command line, where that is another one."""

    name: str
    rule: Any
    args: tuple
    options: dict[str, Any] = field(default_factory=dict)
    typed: str = ""
    left_out: tuple[str, ...] = ()  # the statements of its file that did not run


def find(target: str, inputs: str | None = None, dtype: str | None = None) -> list[Target]:
    """Finds the rules of a target: a name of jaxnet's own, "package.module:object", or "file.py:object".

    An object is an expression in its module: a name, `Dense(3, 4)`, the pair `affine_forward, affine_backward`. It
    needs `inputs` ("float32[8,256], float32[256]"), or is a function without arguments that returns (rule, args), or a
    maker with examples of its own. Raises `CannotCheckError` with the names that there are.
    """
    if ":" not in target:
        return shipped_by_name(target, inputs, dtype)
    module = load(target.partition(":")[0])
    left_out = tuple(getattr(module, LEFT_OUT, ()))
    return [replace(each, left_out=left_out) for each in of_object(target, module, inputs, dtype)]


def in_dtype(args: tuple, dtype: str | None) -> tuple:
    """Shape strings with another float dtype."""
    return tuple(arg.replace("float32", dtype) if dtype and isinstance(arg, str) else arg for arg in args)


def examples_of(entry: Maker, typed: str) -> list[Target]:
    """A maker's examples, each a target."""
    return [
        Target(call if len(inputs) == 1 else f"{call} at {each}", example(entry, call), (each,), typed=typed)
        for call, inputs in entry.examples.items()
        for each in inputs
    ]


def at_inputs(found: list[Target], inputs: str | None, dtype: str | None) -> list[Target]:
    """The targets in another dtype; with `inputs` the first one alone, there."""
    if inputs is not None:
        found = [replace(found[0], args=(inputs,))]
    return [replace(each, args=in_dtype(each.args, dtype)) for each in found]


def shipped(*names: str) -> list[Target]:
    """The examples of every layer, combinator, model and loss, or of those with these names, each as a target."""
    entries = makers("layer", "model", "loss").items()
    return [each for name, entry in entries if not names or name in names for each in examples_of(entry, name)]


def shipped_by_name(name: str, inputs: str | None, dtype: str | None) -> list[Target]:
    """Everything that jaxnet ships under a name: all uses of it where there are several."""
    found = shipped(name)
    if not found:
        if name.endswith(".py"):
            return [Target(Path(name).name, script_in(name), (), typed=name)]
        near = difflib.get_close_matches(name, makers("layer", "model", "loss"), 3, 0.5)
        meant = f"Did you mean {', '.join(near)}?" if near else "`jaxnet layers` lists them all."
        raise CannotCheckError(f"no layer, loss or model {name!r}. {meant} Or name module:object")
    return at_inputs(found, inputs, dtype)


def script_in(name: str) -> Any:
    """The gradients that a file computes by itself; else those of the one object with both passes that it makes."""
    if not Path(name).is_file():
        raise CannotCheckError(f"there is no file {name}")
    try:
        return rule_of_script(Path(name))
    except CannotCheckError as error:
        own = {
            key: each for key, each in vars(load(name)).items() if getattr(each, "__module__", "") == Path(name).stem
        }
        objects = [each for each in own.values() if has_passes(each) and not isinstance(each, type)]
        if len(objects) == 1:
            return objects[0]
        found = [key for key, each in own.items() if has_passes(each) or is_engine(each)]
        found += [key for key in own if re.search("back|grad|loss|prime|deriv", key.lower()) and key not in found]
        raise CannotCheckError(f"{error}{''.join(f', {name}:{key}' for key in found[:8])}") from None


def of_object(target: str, module: Any, inputs: str | None, dtype: str | None) -> list[Target]:
    """The object of a module or a file, with its inputs; a maker with its examples."""
    place, _, path = target.partition(":")
    thing: Any = evaluated(path, module, place)
    entry = maker_of(thing)
    if entry is not None and entry.examples:
        return at_inputs(examples_of(entry, target), inputs, dtype)
    if is_engine(thing):
        given = inputs or ", ".join(["float64[]>0.3<1.5"] * 2)
        return [
            Target(name, pair, tuple(in_dtype(tuple(parts_of(given)), dtype)[:count]), typed=target)
            for name, pair, count in operators(thing)
        ]
    if inputs is not None:
        makes = inspect.isfunction(thing) and not inspect.signature(thing).parameters
        rule = thing() if makes else thing
        path = path.partition(",")[0] if isinstance(rule, tuple) else path
        return [Target(path, rule, in_dtype((inputs,), dtype), typed=target)]
    if has_passes(thing) and not isinstance(thing, type):
        return [Target(path, thing, (), typed=target)]
    if not takes_nothing(thing):
        named = f" {', '.join(inspect.signature(thing).parameters)}" if inspect.isfunction(thing) else ""
        raise CannotCheckError(
            f'{path} takes arguments{named}: give the shape of each, --inputs "float32[8,256], float32[256]", or name '
            "a function without arguments that returns it and its arguments"
        )
    made = thing()
    if isinstance(made, Layer | Loss):
        raise CannotCheckError(f'{path}() is a {type(made).__name__}: give its inputs, --inputs "float32[6]"')
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise CannotCheckError(f"{path}() must return (rule, args) or (rule, args, options), got {type(made).__name__}")
    rule, args, *options = made
    args = args if isinstance(args, tuple) else (args,)
    return [Target(path, rule, in_dtype(args, dtype), options[0] if options else {}, typed=target)]


def evaluated(path: str, module: Any, place: str) -> Any:
    """An expression's value in a module: a name, `Dense(3, 4)`, a pair `relu, relu_backward`."""
    try:
        return eval(path, vars(module))
    except (NameError, AttributeError) as error:
        within = error.obj if isinstance(error, AttributeError) else module
        near = difflib.get_close_matches(error.name or "", [n for n in dir(within) if not n.startswith("__")], 3, 0.5)
        said = f": did you mean {', '.join(near)}?" if near else ""
        said += "".join(f"\n  left out: {each}" for each in getattr(module, LEFT_OUT, ()))
        raise CannotCheckError(f"{place} has no {error.name!r}{said}") from error
    except Exception as error:  # the user's constructor may raise anything
        raise CannotCheckError(f"{path} in {place} must be a name or a call, but it raises {raised(error)}") from error


def takes_nothing(thing: Any) -> bool:
    """Whether something can be called without arguments."""
    if not callable(thing) or isinstance(thing, tuple):
        return False
    try:
        inspect.signature(thing).bind()
    except (TypeError, ValueError):
        return False
    return True


def load(place: str) -> Any:
    """A module by its name, or by its file."""
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise CannotCheckError(f"there is no file {place}")
        if (folder := str(file.parent.resolve())) not in sys.path:
            sys.path.insert(0, folder)  # as Python does: it may import the files beside it
        module = ModuleType(file.stem)
        module.__file__ = str(file)
        sys.modules.setdefault(file.stem, module)
        script = FileRun(file, vars(module))
        try:
            script.all()
        except SyntaxError as error:
            raise CannotCheckError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error
        vars(module)[LEFT_OUT] = script.left_out
        return module
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(place)
    except Exception as error:
        mend = f": install {error.name}" if isinstance(error, ModuleNotFoundError) else ""
        raise CannotCheckError(f"{place} cannot be imported: {type(error).__name__}: {error}{mend}") from error
