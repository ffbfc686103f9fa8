"""The files in `templates/`: Jinja's, and those that go into a page as they are."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup


def text(name: str) -> Markup:
    """A file as it is."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


@cache
def template(name: str) -> Any:
    """A template, compiled once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("jaxnet.explaining"), autoescape=lambda name: ".html." in (name or ""), trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined,
    ).get_template(name)  # fmt: skip
