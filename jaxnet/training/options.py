"""Pydantic types for configs, made from the signatures of layers, losses, models and optimizers."""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import jax
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError
from typing_extensions import TypeAliasType

from jaxnet.layer import Layer
from jaxnet.layers import ACTIVATIONS, INITIALIZERS
from jaxnet.registry import Count, did_you_mean
from jaxnet.training.names import (
    FEEDBACK,
    LAYERS,
    LOSSES,
    MODELS,
    OPTIMIZERS,
    SCHEDULES,
    gives_options,
    is_own,
    parameters,
)

OWN = {"type": "string", "pattern": r"^[\w.]+:[\w.]+$", "description": "package.module:object, your own"}


def refuse(message: str) -> PydanticCustomError:
    """An error with our own message; pydantic adds the key."""
    return PydanticCustomError("config", "{message}", {"message": message})


class Table(BaseModel):
    """A table of a config: its keys and types are exact, and it never changes."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def keys_are_known(cls, value: Any) -> Any:
        """Checked first, so that a misspelt key is not reported as missing too."""
        if isinstance(value, dict):
            told = [
                f'unknown key "{k}": {did_you_mean(k, list(cls.model_fields))}' for k in value.keys() - cls.model_fields
            ]
            if told:
                raise refuse("; ".join(sorted(told)))
        return value


class OwnTable(BaseModel):
    """The table of your own object: its name, and its own options."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)
    name: str


def tag(name: str) -> Tag:
    """The tag of a union member. Brackets mark it, so that error messages can leave it out."""
    return Tag(f"<{name}>")


def is_tag(part: Any) -> bool:
    """Whether a part of an error's location is a tag."""
    return isinstance(part, str) and part.startswith("<")


def as_written(value: Any) -> Any:
    """Checked options as plain data, without those that were not given."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


class CheckedAs:
    """Marks a field to be checked as a type that is made at run time."""

    def __init__(self, kind: Any):
        self.kind = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.kind)


PLAIN = (AfterValidator(as_written), PlainSerializer(lambda value: value))


def by_type(kind: type, yes: str, no: str) -> Discriminator:
    """Chooses by the type of the value."""
    return Discriminator(lambda value: f"<{yes if isinstance(value, kind) else no}>")


# ------------------------------------------------------------------------------ options, read off a signature

Schedule = TypeAliasType("Schedule", "ScheduleTable")
LayerSpec = TypeAliasType("LayerSpec", "AnyLayer")

Block = Annotated[
    Annotated[LayerSpec, tag("one")] | Annotated[list[LayerSpec], Field(min_length=1), tag("many")],
    by_type(list, "many", "one"),
]
"""A layer, or a list of them in a row."""

Scheduled = Annotated[
    Annotated[float, tag("number")] | Annotated[Schedule, tag("schedule")], by_type(dict, "schedule", "number")
]
"""A number, or a schedule of it."""


def one_of(names: Iterable[str], what: str) -> Any:
    """The type of one of these names, with a did-you-mean."""
    known = list(names)

    def check(name: str) -> str:
        if name not in known:
            raise refuse(f'must be {what}, got "{name}": {did_you_mean(name, known)}')
        return name

    return Annotated[str, AfterValidator(check), WithJsonSchema({"enum": known})]


Init = Annotated[Any, CheckedAs(one_of(INITIALIZERS, "an initialiser"))]
Activation = one_of(ACTIVATIONS, "an activation")


AtLeastOne = Annotated[int, Field(ge=1)]


def type_of(parameter: Parameter) -> Any:
    """The type that an option has in a config; None for one that a file cannot give (a mask, a key)."""
    name = parameter.name
    if parameter.kind is Parameter.VAR_POSITIONAL:
        return Annotated[list[plain_type(parameter.annotation)], Field(min_length=1)]
    if name == "init":
        return Init
    if name in ("activation", "out"):
        return Activation
    if name == "path":
        return one_of(FEEDBACK, "a feedback path")
    if name == "widths":
        return Annotated[list[AtLeastOne], Field(min_length=1)]
    if name in ("dtype", "mu_dtype", "accumulator_dtype", "dtype_momentum"):
        return Literal["float32", "bfloat16", "float64"]
    return None if name == "key" or name.endswith("mask") else plain_type(parameter.annotation)


def plain_type(annotation: Any) -> Any:
    """An annotation in the types that a TOML file has; None where it has none."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Layer:
        return Block
    if annotation == Count:
        return AtLeastOne
    if annotation in (int, float, bool, str) or origin in (Annotated, Literal):
        return annotation
    if origin in (Union, types.UnionType):
        return plain_union(arguments)
    if origin is dict:  # TOML's keys are text
        return dict[Annotated[str, Field(pattern=r"^\d+$")] if arguments[0] is int else str, float]
    if is_function(annotation):  # the only functions that a file can give
        return Schedule
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return Annotated[list[plain_type(arguments[0])], Field(min_length=1)]
    return None


def is_function(annotation: Any) -> bool:
    """Whether an annotation is that of a function."""
    return get_origin(annotation) is Callable or getattr(get_origin(annotation), "__name__", "") == "Callable"


def plain_union(members: Sequence[Any]) -> Any:
    """A union in the types that a TOML file has. It has no null, so None falls away."""
    if jax.Array in members:  # optax's numbers
        return Scheduled if any(map(is_function, members)) else float
    kept = [each for each in (plain_type(member) for member in members if member is not type(None)) if each]
    return Union[tuple(kept)] if kept else None  # noqa: UP007 - of a list


def options(of: Any) -> dict[str, Any]:
    """The fields of a name's table: type and default of each option."""
    fields = {}
    for parameter in parameters(of).values():
        kind = type_of(parameter)
        if kind is not None:
            default = parameter.default if isinstance(parameter.default, int | float | str) else None
            fields[parameter.name] = (kind, ... if parameter.default is Parameter.empty else default)
    return fields


def required(of: Any) -> list[str]:
    """The options that must be given."""
    return [name for name, (_, default) in options(of).items() if default is ...]


class MadeTable(Table):
    """A table made at run time. It has no source, and pydantic would look for one in every loaded module."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def table_of(title: str, fields: dict[str, Any]) -> Any:
    """The type of a table with these fields."""
    make: Any = create_model  # its overloads do not know of fields in a dict
    return make(title, __base__=MadeTable, __doc__=None, **fields)


def shown(value: Any) -> str:
    """A value as it stands in a TOML file, shortened."""
    text = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    if text is None:
        text = f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ------------------------------------------------------------------------- a name, or a table with a name


def named(names: Mapping[str, Any], what: str, key: str = "name", own: bool = True) -> Any:
    """The type of a named value: a name, or a table with a name and the options of its signature."""
    tables = {
        name: table_of(f"{name} ({what})", {key: (Literal[name], ...), **options(of)}) for name, of in names.items()
    }
    bare = [name for name, of in names.items() if not required(of)]

    def name_is_known(value: Any) -> Any:
        table = isinstance(value, dict)
        name = value.get(key) if table else value
        if not isinstance(name, str) or not (table or bare or own):
            example = f'{{ {key} = "{next(iter(names))}", … }}'
            raise refuse(f"must be a name or a table with one, such as {example}, got {shown(value)}")
        if name not in names and not (own and is_own(name)):
            either = ' or "package.module:object"' if own else ""
            raise refuse(f'must be a known {what}{either}, got "{name}": {did_you_mean(name, list(names))}')
        if not table and name in names and name not in bare:
            needs = ", ".join(f"{option} = …" for option in required(names[name]))
            raise refuse(f'"{name}" needs options: write {{ {key} = "{name}", {needs} }}')
        return value

    def choice(value: Any) -> str:
        if isinstance(value, str):
            return "<text>"
        return f"<{value[key]}>" if value[key] in names else "<own>"

    texts = {"anyOf": [{"enum": bare}, *([OWN] if own else [])]}
    members = [Annotated[table, tag(name)] for name, table in tables.items()]
    members += [Annotated[str, WithJsonSchema(texts), tag("text")]] if bare or own else []
    members += [Annotated[OwnTable, tag("own")]] if own else []
    return Annotated[Union[tuple(members)], Discriminator(choice), *PLAIN, BeforeValidator(name_is_known)]  # noqa: UP007 - of a list


ScheduleTable = Annotated[Any, CheckedAs(named(SCHEDULES, "schedule", key="schedule", own=False))]
OptimizerSpec = Annotated[Any, CheckedAs(named(OPTIMIZERS, "optimizer"))]
LossSpec = Annotated[Any, CheckedAs(named(LOSSES, "loss"))]
FeedbackSpec = Annotated[Any, CheckedAs(named(FEEDBACK, "feedback", own=False))]
NamedModel = Annotated[Any, CheckedAs(named(MODELS, "model"))]


# --------------------------------------------------------------------------------------------------- layers


def layer_table(name: str, of: Any) -> Any:
    """`{ dense = 30 }` or `{ dense = { units = 30, … } }`."""
    fields = options(of)
    argument = next(iter(fields.values()))[0]
    table = table_of(f"{name} (options)", fields)
    value = Annotated[
        Annotated[argument, tag("argument")] | Annotated[table, tag("options")],
        Discriminator(lambda value: "<options>" if gives_options(of, value) else "<argument>"),
        *PLAIN,
    ]
    return table_of(f"{name} (layer)", {name: (value, ...)})


BARE_LAYERS = [name for name, of in LAYERS.items() if not required(of)]


def layer_is_known(value: Any) -> Any:
    """Refuses a value that names no layer."""
    keys = list(value) if isinstance(value, dict) else []
    if not isinstance(value, str) and not (isinstance(value, dict) and len(value) == 1):
        unknown = [key for key in keys if key not in LAYERS and not is_own(key)]
        close = [f'no layer "{key}": {did_you_mean(key, list(LAYERS))}' for key in unknown]
        came = f" with {', '.join(keys) or 'nothing in it'}" if isinstance(value, dict) else ""
        raise refuse("; ".join([f'must be one layer: "relu", or {{ dense = 30 }}, got {shown(value)}{came}', *close]))
    name = value if isinstance(value, str) else next(iter(value))
    if name not in LAYERS and not is_own(name):
        known = did_you_mean(name, list(LAYERS))
        raise refuse(f'must be a known layer or "package.module:object", got "{name}": {known}')
    if isinstance(value, str) and name in LAYERS and name not in BARE_LAYERS:
        raise refuse(f'"{name}" needs {", ".join(required(LAYERS[name]))}: write {{ {name} = … }}')
    if isinstance(value, dict) and name in LAYERS and not options(LAYERS[name]):
        raise refuse(f'"{name}" takes no options: write "{name}"')
    return value


def layer_choice(value: Any) -> str:
    """The tag of a layer's form, for the discriminated union."""
    if isinstance(value, str):
        return "<text>"
    return f"<{next(iter(value))}>" if next(iter(value)) in LAYERS else "<own>"


LAYER_NAMES = {"anyOf": [{"enum": BARE_LAYERS}, OWN]}
AnyLayer = Annotated[
    Union[
        Annotated[str, WithJsonSchema(LAYER_NAMES), tag("text")],
        Annotated[dict[str, Any], WithJsonSchema({"type": "object"}), tag("own")],
        *(Annotated[layer_table(name, of), tag(name)] for name, of in LAYERS.items() if options(of)),
    ],
    Discriminator(layer_choice),
    *PLAIN,
    BeforeValidator(layer_is_known),
]

ModelSpec = Annotated[
    Annotated[list[LayerSpec], Field(min_length=1), tag("layers")] | Annotated[NamedModel, tag("named")],
    by_type(list, "layers", "named"),
]
"""A list of layers, a model's name or table, or your own object."""

NamedData = Annotated[str, tag("text")] | Annotated[OwnTable, *PLAIN, tag("table")]
DataSpec = Annotated[Any, CheckedAs(Annotated[NamedData, by_type(dict, "table", "text")])]
"""A data set's name, file or object, or a table with that as its name; `data.load` knows the options."""
