"""The parts of a page that depend on the notation.

The page's body is rendered once for each notation. `varying` marks what may differ; `merged` takes the marks out again,
numbers the places where the bodies do differ, and lists what each notation puts there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

OPEN, MIDDLE, CLOSE = "\x02", "\x01", "\x03"
SLOT = re.compile(f"{OPEN}([a-z]+){MIDDLE}(.*?){CLOSE}", re.DOTALL)


def varying(content: Markup | str, tag: str = "span") -> Markup:
    """A place whose content depends on the notation."""
    return Markup(OPEN + tag + MIDDLE + escape(content) + CLOSE)


def merged(bodies: Mapping[str, str], first: str) -> tuple[str, dict[str, Any]]:
    """The body of the first notation with its places numbered, and what the others put there.

    Raises `RuntimeError` where the bodies differ elsewhere: a template that does so is wrong.
    """
    skeletons = {SLOT.sub("", body) for body in bodies.values()}
    if len(skeletons) != 1:
        raise RuntimeError("the page differs between notations outside of the marked places")
    contents = {name: [found[1] for found in SLOT.findall(body)] for name, body in bodies.items()}
    differing = [i for i, each in enumerate(zip(*contents.values(), strict=True)) if len(set(each)) > 1]
    numbers = {i: n for n, i in enumerate(differing)}
    strings: dict[str, int] = {}
    variants = {
        name: [strings.setdefault(found[i], len(strings)) for i in differing] for name, found in contents.items()
    }
    count = iter(range(len(contents[first])))

    def put(found: re.Match[str]) -> str:
        tag, content = found.groups()
        number = numbers.get(next(count))
        return f"<{tag}{'' if number is None else f' data-s={number}'}>{content}</{tag}>"

    return SLOT.sub(put, bodies[first]), {"strings": list(strings), "of": variants}
