"""Makers: functions that make layers, losses, models and feedback, each known by name with an example input.

`Layer.made` holds the name of a layer's maker and its options. `@maker` puts them there, and enters the maker
here. Configs, `check --all`, the tests, `jaxnet layers` and `explain` read this registry; there is no other list.
"""

import ast
import difflib
import functools
import importlib
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from numbers import Integral
from types import MappingProxyType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args

import jax
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")

Count = Annotated[int, "at least 1"]
"""The annotation of an option that counts something; `maker` holds it to that."""

Kind = Literal["layer", "model", "loss", "feedback"]
KINDS: Mapping[str, Kind] = MappingProxyType({"Layer": "layer", "Loss": "loss", "FeedbackPath": "feedback"})
"""The kind of a maker by the name of the type that it returns. A model says so itself."""

ENTRY_POINTS = "jaxnet.makers"
"""The group of entry points by which an installed package makes its makers known."""


@dataclass(frozen=True, eq=False)
class Maker:
    """One entry of the registry.

    - `name`: the function's name; `module:name` for one outside of jaxnet.
    - `kind`: layer, model, loss or feedback.
    - `make`: the function, or the thing itself for a row of a table (`sigmoid`), which has no options.
    - `examples`: calls of it, as text, each with the inputs at which it is checked.
    - `axes`: for each parameter the names of its axes, `{"W": "out in"}`.
    - `configs`: whether a config may name it.
    - `module`: where it is defined.
    """

    name: str
    kind: Kind
    make: Any
    examples: Mapping[str, tuple[str, ...]]
    axes: Mapping[str, str]
    configs: bool
    module: str

    @property
    def title(self) -> str:
        """The name as Python code writes it."""
        return self.name.rpartition(":")[2].rpartition(".")[2]

    @property
    def call(self) -> str:
        """The call with every option and its default, as `dense(units, *, bias=True)`."""
        if not self.options:
            return self.title
        shown, keywords = [], False
        for name, option in self.options.items():
            if option.kind is option.KEYWORD_ONLY and not keywords:
                shown, keywords = [*shown, "*"], True
            if option.kind is option.VAR_POSITIONAL:
                name, keywords = f"*{name}", True
            shown.append(name if option.default is option.empty else f"{name}={text(option.default)}")
        return f"{self.title}({', '.join(shown)})"

    @functools.cached_property
    def doc(self) -> str:
        """The docstring; for a row the text under the line that defines it."""
        if inspect.isfunction(self.make):
            return inspect.getdoc(self.make) or ""
        tree = ast.parse(inspect.getsource(sys.modules[self.module]))
        for line, after in itertools.pairwise(tree.body):
            names = [
                node.id for node in ast.walk(line) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            ]
            if self.title in names and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
        return ""

    @property
    def about(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @functools.cached_property
    def options(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the function, their annotations evaluated where that is possible."""
        if not inspect.isfunction(self.make):
            return MappingProxyType({})
        try:
            signature = inspect.signature(self.make, eval_str=True)
        except NameError:  # an annotation that only a type checker imports
            signature = inspect.signature(self.make)
        return signature.parameters

    def arguments(self, options: Mapping[str, Any]) -> tuple[list, dict[str, Any]]:
        """Options by name as the function takes them; those of `*layers` stand under the key `layers`."""
        args, rest = [], dict(options)
        for name, option in self.options.items():
            if option.kind is option.VAR_POSITIONAL:
                before = list(self.options)[: list(self.options).index(name)]
                args = [*(rest.pop(each) for each in before if each in rest), *rest.pop(name, ())]
        return args, rest

    def __call__(self, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """The maker called with options by name."""
        args, rest = self.arguments(options)
        return self.make(*args, **rest) if inspect.isfunction(self.make) else self.make

    def __reduce__(self):
        return found, (self.kind, self.name)


_makers: dict[tuple[Kind, str], Maker] = {}


@dataclass(frozen=True, eq=False)
class Made:
    """The origin of a layer, a loss or a feedback path: the maker and its options, defaults included.

    Two are equal where maker and options are: arrays by their bytes, functions by identity. `form`: the origin of the
    object that the maker's body returned, where another maker made it: `serial` of a model, `reshape` of `flatten`.
    """

    by: Maker
    options: Mapping[str, Any]
    given: tuple = field(default=(), repr=False)  # the functions that the maker gave: another one, and it is changed
    form: "Made | None" = None

    @property
    def maker(self) -> str:
        """The name of the maker."""
        return self.by.name

    @property
    def root(self) -> "Made":
        """The innermost form: `serial` of an mlp."""
        return self if self.form is None else self.form.root

    @functools.cached_property
    def key(self) -> tuple:
        """The maker and its options, in a form that can be compared."""
        return self.by, comparable(self.options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def own_options(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        options = self.by.options.items()
        return {name: self.options[name] for name, option in options if not self.is_default(option)}

    def is_default(self, option: inspect.Parameter) -> bool:
        """Whether an option has its default."""
        return comparable(self.options[option.name]) == comparable(option.default)

    def __repr__(self) -> str:
        """The call, without the options that have their default."""
        if not inspect.isfunction(self.by.make):
            return self.by.title
        shown = []
        for name, value in self.own_options().items():
            option = self.by.options[name]
            if option.kind is option.VAR_POSITIONAL:
                shown += map(text, value)
            else:
                by_place = option.default is option.empty and option.kind is option.POSITIONAL_OR_KEYWORD
                shown.append(text(value) if by_place else f"{name}={text(value)}")
        return f"{self.by.title}({', '.join(shown)})"


def text(value: Any) -> str:
    """An option as `repr` shows it: functions by name, arrays by shape."""
    if inspect.isfunction(value):
        return value.__name__
    if isinstance(value, tuple) and not hasattr(value, "made"):
        return f"[{', '.join(map(text, value))}]"
    return f"{value.dtype}{[*value.shape]}" if isinstance(value, np.ndarray | jax.Array) else repr(value)


def comparable(value: Any) -> Any:
    """An option in a form that can be compared and hashed."""
    if hasattr(value, "made"):
        return value
    if isinstance(value, Mapping):
        return tuple((name, comparable(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(comparable, value))
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    return value


def frozen(value: Any) -> Any:
    """An option that cannot change any more: lists become tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value


# ---------------------------------------------------------------------------------------------------- decorating


def maker(
    function: Callable[P, T] | None = None,
    /,
    *,
    examples: Mapping[str, str | tuple[str, ...]] = MappingProxyType({}),
    axes: Mapping[str, str] = MappingProxyType({}),
    kind: Kind | None = None,
    configs: bool = True,
) -> Any:
    """Enters a function into the registry. The layers that it returns carry its name and options as `made`.

    The function's return annotation is `Layer`, `Loss` or `FeedbackPath`. `examples`: calls as text, each with the
    inputs at which it is checked: `{"dense(4)": "float32[6]"}`; they are evaluated late, in the function's module,
    where every maker is known by name. `axes`: names of the axes of each parameter. `kind`: "model" for a whole
    network. `configs`: whether a config may name it. Outside of jaxnet the maker's name is `module:name`; to define it
    again replaces it. Raises `TypeError` for another return annotation.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        returns = inspect.get_annotations(function).get("return")
        kind_of = kind or KINDS.get(getattr(returns, "__name__", str(returns)))
        if kind_of is None:
            raise TypeError(
                f"@maker takes a function that is annotated to return {', '.join(KINDS)}, "
                f"got {function.__qualname__} -> {returns}: write -> Layer"
            )

        @functools.wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
                check_option(entry, name, value)
            result: Any = function(*args, **kwargs)
            if result.made is not None and result.made.by is entry:  # it called itself, with options in another form
                return result
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return stamped(result, entry, {name: frozen(value) for name, value in bound.arguments.items()})

        signature = inspect.signature(function)
        entry = entered(function.__module__, function.__qualname__, kind_of, made, examples, axes, configs)
        return made

    return decorate if function is None else decorate(function)


def check_option(entry: Maker, name: str, value: Any) -> None:
    """Raises `TypeError` where an option must be a layer and is none, `ValueError` for a count below 1."""
    option = entry.options[name]
    allowed = [each for each in (option.annotation, *get_args(option.annotation)) if isinstance(each, type)]
    kinds = [each for each in allowed if hasattr(each, "made")]
    counts = Count in (option.annotation, *get_args(option.annotation)) and value is not None
    if counts and (isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1):
        raise ValueError(f"{entry.title}: {name} must be a whole number of at least 1, got {value!r}")
    if not kinds:
        return
    several: Any = value if option.kind is option.VAR_POSITIONAL else [value]
    for each in several:
        if isinstance(each, tuple(allowed)) or (each is None and type(None) in allowed):
            continue
        made = maker_of(each)
        what = " or ".join(kind.__name__ for kind in kinds)
        if made is not None:
            mend = f"the function {made.title}: call it, {made.call}"
        elif isinstance(each, list | tuple):
            mend = f"a {type(each).__name__}: give its layers one by one, {entry.title}(*layers)"
        else:
            mend = f"{each!r}, a {type(each).__name__}"
        raise TypeError(f"{entry.title}: {name} must be a {what}, got {mend}")


def row(thing: T, module: str, *inputs: str) -> T:
    """Enters a layer or a loss without options by its name, and the inputs at which it is checked.

    `module`: where the name can be imported from.
    """
    bare: Any = thing
    kind = KINDS[type(bare).__name__]
    entry = entered(module, bare.name, kind, None, {bare.name: inputs}, {}, True)
    made = stamped(bare, entry, {})
    object.__setattr__(entry, "make", made)
    return made


def entered(module: str, name: str, kind: Kind, make: Any, examples, axes, configs) -> Maker:
    """A new entry, in the place of one of the same name."""
    name = name if module.split(".")[0] == "jaxnet" else f"{module}:{name}"
    examples = {call: (inputs,) if isinstance(inputs, str) else tuple(inputs) for call, inputs in examples.items()}
    examples, axes = MappingProxyType(examples), MappingProxyType(dict(axes))
    entry = _makers[kind, name] = Maker(name, kind, make, examples, axes, configs, module)
    return entry


def stamped(thing: Any, entry: Maker, options: Mapping[str, Any]) -> Any:
    """The same with its maker and options."""
    return thing._replace(origin=Made(entry, MappingProxyType(dict(options)), thing[1:-1], thing.made))


# ------------------------------------------------------------------------- shared by layers, losses and feedback paths


def made_of(self: Any) -> Made | None:
    """The maker and the options; None where there is no maker, or a function of it was replaced."""
    origin = self.origin
    if origin is None or any(own is not given for own, given in zip(self[1:-1], origin.given, strict=True)):
        return None
    return origin


def shown(self: Any) -> str:
    """The call that makes it, or its name."""
    made = made_of(self)
    changed = made is None and self.origin is not None
    return repr(made) if made is not None else f"<{self.name}{', changed' if changed else ''}>"


def equal(self: Any, other: object) -> bool:
    """Whether both were made by the same maker of equal options, or are the same object."""
    if self is other or type(self) is not type(other):
        return self is other
    made = made_of(self)
    return made is not None and made == made_of(other)


def unequal(self: Any, other: object) -> bool:
    """The opposite of `equal`; a tuple's own would compare the entries."""
    return not equal(self, other)


def hashed(self: Any) -> int:
    """The hash that goes with `equal`."""
    made = made_of(self)
    return id(self) if made is None else hash(made)


def itself(self: T, memo: Any = None) -> T:
    """A copy: itself, since it never changes."""
    return self


def reduced(self: Any) -> tuple:
    """For pickle: the maker's name and the options.

    Raises `TypeError` where there is no maker, or it cannot be imported.
    """
    made = made_of(self)
    if made is None:
        raise TypeError(
            f"pickle takes a {type(self).__name__.lower()} made by a maker (a function under @maker), got {self!r}: "
            "make it by one, and give the replaced function as an option"
        )
    if "<locals>" in made.maker:
        raise TypeError(f"pickle takes makers that can be imported, got {made.maker}: define it at the top of a module")
    return remade, (made.by.kind, made.maker, made.own_options())


def remade(kind: Kind, name: str, options: Mapping[str, Any]) -> Any:
    """The object that pickle reads back."""
    return found(kind, name)(options)


# ------------------------------------------------------------------------------------------------------- looking up


@functools.cache
def load_entry_points() -> None:
    """Imports the makers of installed packages, and enters each by the name of its entry point too."""
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
        entry = next((each for each in _makers.values() if each.name == point.value), None)
        if entry is None:
            warnings.warn(f"the entry point {point.name} = {point.value} names no function under @maker", stacklevel=2)
        elif (entry.kind, point.name) in _makers:
            warnings.warn(
                f"a {entry.kind} {point.name} is known already: the one of {point.value} is known by that name alone",
                stacklevel=2,
            )
        else:
            _makers[entry.kind, point.name] = entry


def makers(*kinds: Kind) -> dict[str, Maker]:
    """The makers of these kinds that have a name of their own: jaxnet's and installed packages', by name."""
    load_entry_points()
    return {name: entry for (kind, name), entry in _makers.items() if kind in kinds and ":" not in name}


def found(kind: Kind, name: str) -> Maker:
    """The maker of a name; the module of `module:name` is imported.

    Raises `LookupError` where there is none.
    """
    module, colon, _ = name.partition(":")
    if colon:
        importlib.import_module(module)
    load_entry_points()
    if (kind, name) not in _makers:
        raise LookupError(f"there is no {kind} {name!r}: a maker is a function under @maker at the top of its module")
    return _makers[kind, name]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean "mnist"?`, or all names where none is close."""
    lowered = {k.lower(): k for k in known}
    begun = str(name).lower()
    close = difflib.get_close_matches(begun, lowered, n=1, cutoff=0.65) or [
        k for k in lowered if begun and k.startswith(begun)
    ]
    return f'did you mean "{lowered[close[0]]}"?' if close else f"choose from {', '.join(lowered.values())}"


def maker_of(function: Any) -> Maker | None:
    """The entry of a function under `@maker`; None for any other object."""
    return next((entry for entry in _makers.values() if entry.make is function), None)


def example(entry: Maker, call: str) -> Any:
    """One of a maker's examples, made: the text of the call evaluated in the maker's module, where all are known."""
    scope = {name: each.make for name, each in makers("layer", "model", "loss").items()}
    own = inspect.unwrap(entry.make).__globals__ if inspect.isfunction(entry.make) else {}
    return eval(call, {**scope, **own})
