"""The pages of the experiments: one skeleton, self-contained, light and dark, for paper too.

A page is a question, its answer, and sections of paragraphs, tables, equations and plots; symbols are MathML.
Everything on it is given as text that the program made of the numbers it computed; nothing is fetched.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar, TypeVar

from jinja2 import Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from experiments.typeset import Equal, formula, typeset
from jaxnet.explaining.expressions import Expression
from jaxnet.explaining.mathml import Shapes
from jaxnet.training.atomic_write import write_whole
from jaxnet.training.config import ConfigError, error_message, read_toml
from jaxnet.training.options import Table as Settings
from jaxnet.training.overrides import apply
from jaxnet.training.plots import DARK, LIGHT, Theme, svg
from jaxnet.training.reports import data_uri

HERE = Path(__file__).parent
Kind = TypeVar("Kind", bound=Settings)


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "words"


@dataclass(frozen=True)
class Equations:
    """Lines in letters of one width, with a title."""

    title: str
    lines: Sequence[str]
    kind: ClassVar[str] = "equations"

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Formulas:
    """Equations below each other, each of a few parts that stand in columns: trees, or words. `title` as above.

    A part that is a pair is a tree and the shapes that stand below its factors.
    """

    title: str
    rows: Sequence[Sequence[str | Expression | Equal | tuple[Expression | Equal, Shapes]]]
    kind: ClassVar[str] = "formulas"


@dataclass(frozen=True)
class Table:
    """Rows under headings, of words, numbers and trees; the first `labels` columns are words, the others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Expression | Equal]]
    labels: int = 1
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Plot:
    """A plot in both themes, as data URIs. `alt`: the alternative text."""

    title: str
    words: str
    alt: str
    light: str
    dark: str
    kind: ClassVar[str] = "plot"


Block = Words | Equations | Formulas | Table | Plot


@dataclass(frozen=True)
class Section:
    """A heading and its content; plots that follow each other stand side by side where there is room."""

    heading: str
    blocks: Sequence[Block]

    def groups(self) -> list[list[Block]]:
        """The blocks, neighbouring plots together."""
        groups: list[list[Block]] = []
        for block in self.blocks:
            if block.kind == "plot" and groups and groups[-1][0].kind == "plot":
                groups[-1].append(block)
            else:
                groups.append([block])
        return groups


def plot(
    title: str, words: str, alt: str, draw: Callable[[Axes, Theme], None], size: tuple[float, float] = (4.8, 3.2)
) -> Plot:
    """A plot that `draw(axes, theme)` draws once for each theme."""
    pictures = []
    for theme in (LIGHT, DARK):
        figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
        axes = figure.add_subplot()
        axes.set_facecolor(theme.paper)
        axes.grid(True, color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        draw(axes, theme)
        axes.tick_params(which="both", colors=theme.quiet, labelsize=10)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(color=theme.quiet, fontsize=10)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.quiet)
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set(color=theme.ink, fontsize=9)
        pictures.append(data_uri(svg(figure)))
    return Plot(title, words, alt, *pictures)


def page(title: str, question: str, answer: Sequence[str], sections: Sequence[Section], made: str) -> str:
    """The page. `question`: asked in a sentence; `answer`: in paragraphs; `made`: the command and its sources."""
    environment = Environment(loader=FileSystemLoader(HERE / "templates"), autoescape=True, trim_blocks=True)
    environment.filters["typeset"] = part
    template = environment.get_template("page.html.j2")
    return template.render(
        title=title, question=question, answer=answer, sections=sections, made=made, light=LIGHT, dark=DARK
    )


def part(text: str | Expression | Equal | tuple[Expression | Equal, Shapes]) -> str:
    """A text or a tree as the page shows it."""
    return formula(*text) if isinstance(text, tuple) else typeset(text)


def write_page(path: Path, text: str) -> None:
    """Writes a page, whole or not at all, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode())
    print(path)


# ------------------------------------------------------------------------------------------------------ settings


def settings_of(kind: type[Kind], path: Path, overrides: Sequence[str] = ()) -> Kind:
    """An experiment's settings from its TOML file, changed by overrides `key=value`.

    Raises ConfigError, with the place, the requirement, and the value given.
    """
    try:
        return kind.model_validate(apply(read_toml(path), overrides))
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(error_message(each) for each in error.errors())) from None


# ------------------------------------------------------------------------------------------- read back, for tests


class _Tables(HTMLParser):
    """Collects the tables of a page by their captions."""

    def __init__(self):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.caption, self.inside, self.formula = "", "", False

    def handle_starttag(self, tag, attrs):
        if tag == "math":
            self.handle_data(dict(attrs)["alttext"] or "")
            self.formula = True
        if self.formula:
            return
        self.inside = tag
        if tag == "caption":
            self.caption = ""
        elif tag == "tr":
            self.tables.setdefault(self.caption, []).append([])
        elif tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, tag):
        if self.formula:
            self.formula = tag != "math"
            return
        self.inside = ""

    def handle_data(self, data):
        if self.formula:
            return
        if self.inside == "caption":
            self.caption += data
        elif self.inside in ("td", "th"):
            self.tables[self.caption][-1][-1] += data


def tables_in(text: str) -> dict[str, list[list[str]]]:
    """The tables of a page by title, as rows of text with the headings first."""
    parser = _Tables()
    parser.feed(text)
    return parser.tables


def equations_in(text: str) -> dict[str, list[str]]:
    """The preformatted equations of a page by title."""
    found = {}
    for piece in text.split('<pre tabindex="0" aria-label="')[1:]:
        title, _, rest = piece.partition('">')
        found[html.unescape(title)] = html.unescape(rest.partition("</pre>")[0]).split("\n")
    return found
