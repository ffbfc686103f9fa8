"""Overrides on the command line: `train.epochs=3`, `model.0.dense=50`, in the notation of TOML.

Functions raise ConfigError for text that cannot be read, or a key that does not exist.
"""

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnet.training.names import LAYERS


class ConfigError(ValueError):
    """A config cannot be run. The message has the requirement, the value given, and the repair."""


class MissingKeyError(ConfigError):
    """A key that plain data do not have."""


# the errors of tomllib and json: RecursionError where tables are too deep, ValueError for the rest
UNREADABLE = (ValueError, RecursionError)

# keys whose value may be a name alone; setting an option makes it a table
NAMES = {("data",), ("loss",), ("model",), ("train", "optimizer")}


MOST_LEVELS = 100  # of lists and tables inside each other


def not_too_deep(data: Any, where: str) -> Any:
    """The data; refused if nested so deeply that Python cannot walk them."""
    level, levels = [data], 0
    while level:
        inside = [each for node in level for each in (node.values() if isinstance(node, dict) else node)]
        level, levels = [each for each in inside if isinstance(each, dict | list)], levels + 1
        if levels > MOST_LEVELS:
            raise ConfigError(f"{where}: lists and tables must be nested at most {MOST_LEVELS} deep: take some apart")
    return data


def shortened(text: str) -> str:
    """A long text cut for a message."""
    return text if len(text) <= 200 else f"{text[:197]}..."


# up to the first = that stands in no quoted part of the key
KEY_AND_VALUE = re.compile(r"""((?:"(?:\\.|[^"\\])*"|'[^']*'|[^"'=])*)=(.*)""", re.DOTALL)


def parse(override: str) -> tuple[tuple[str, ...], Any]:
    """The path and the value of `key=value`; the value is a TOML value, or text where it cannot be one."""
    parts = KEY_AND_VALUE.fullmatch(override)
    if parts is None:
        raise ConfigError(f'an override must be key=value, such as train.epochs=3, got "{override}"')
    return parse_key(parts[1].strip(), override), parse_value(parts[2].strip(), override)


def parse_key(key: str, override: str) -> tuple[str, ...]:
    """The parts of a dotted key, which may be quoted as in TOML."""
    try:
        node: Any = tomllib.loads(f"{key} = 0")
    except UNREADABLE:
        node = 0
    path = []
    while isinstance(node, dict) and len(node) == 1:
        [(part, node)] = node.items()
        path.append(part)
    if node != 0 or not path:
        raise ConfigError(f'a key must be dotted, such as train.epochs, got "{override}"')
    return tuple(path)


def parse_value(text: str, override: str) -> Any:
    """A TOML value, else text. Text that begins like a list, a table or a quoted string must be TOML."""
    try:
        document = tomllib.loads(f"value = {text}")
    except UNREADABLE as error:
        if text.startswith(("[", "{", '"', "'")):
            raise ConfigError(f"the value of an override must be TOML, got {shortened(override)}: {error}") from None
        return text
    if len(document) > 1:
        raise ConfigError(f"an override must set one value, got {override!r}")
    return document["value"]


def apply(document: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A config's plain data with the overrides in it, the last one last."""
    changed = copy.deepcopy(dict(document))
    for override in overrides:
        path, value = parse(override)
        node: Any = changed
        for depth, part in enumerate(path[:-1]):
            where = path[: depth + 1]
            slot = index(node, part, override)
            node[slot] = opened(node.get(slot, {}) if isinstance(node, dict) else node[slot], where, override)
            node = node[slot]
        node[index(node, path[-1], override)] = value
    return not_too_deep(changed, shortened(" ".join(overrides)))


def value_at(document: Any, key: str, where: str) -> Any:
    """The value of a dotted key in plain data."""
    node = document
    for part in parse_key(key, where):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise MissingKeyError(f'"{where}" must name a key that this config sets: there is no {part}')
    return node


def index(node: Any, part: str, override: str) -> Any:
    """The key of a table, or the position in a list."""
    if isinstance(node, dict):
        return part
    if not part.isdecimal() or int(part) >= len(node):
        raise ConfigError(f'{override}: a list of {len(node)} has positions 0 to {len(node) - 1}, got "{part}"')
    return int(part)


def opened(node: Any, where: tuple[str, ...], override: str) -> Any:
    """The value at a key, as a table or list that can be entered."""
    if isinstance(node, dict | list):
        return node
    if where in NAMES and isinstance(node, str):
        return {"name": node}
    layer = LAYERS.get(where[-1])
    if where[0] == "model" and layer is not None and layer.options:
        return {next(iter(layer.options)): node}
    raise ConfigError(f"{override}: {'.'.join(where)} is {node!r} and has nothing inside: set {'.'.join(where)} itself")


# ---------------------------------------------------------------------------------------------- links

LINK = re.compile(r"\$\{([^{}]*)\}")


def linked(document: Mapping[str, Any]) -> dict[str, Any]:
    """A config's plain data with the value of another key in the place of each `"${train.batch}"`.

    Inside other text a number or a text is put in: `"batch-${train.batch}"`. Environment variables are not read.
    """

    def value(node: Any, trail: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return {key: value(each, trail) for key, each in node.items()}
        if isinstance(node, list):
            return [value(each, trail) for each in node]
        if not isinstance(node, str) or "${" not in node:
            return node
        whole = LINK.fullmatch(node)
        return follow(whole[1], trail) if whole else LINK.sub(lambda link: inner(follow(link[1], trail), node), node)

    def follow(key: str, trail: tuple[str, ...]) -> Any:
        if key in trail:
            raise ConfigError(f"the links {' → '.join((*trail, key))} lead back to themselves: write the value once")
        return value(value_at(document, key, f"${{{key}}}"), (*trail, key))

    def inner(found: Any, text: str) -> str:
        if isinstance(found, dict | list):
            raise ConfigError(f'"{text}" has a table or a list inside of text: let the link stand alone')
        return str(found)

    return value(dict(document), ())
