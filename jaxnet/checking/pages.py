"""Reports as one HTML page that needs nothing else: the tables, and heat maps of expected, got and difference."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from jaxnet.checking.compare import Leaf
from jaxnet.checking.report import Report
from jaxnet.checking.table import short, sized

MOST_PIXELS = 256  # a side of a heat map; larger arrays are shown by the largest entry of each tile

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bad: #b3261e; --good: #1b6e3a; --quiet: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7fd49b; --quiet: #a5a5a5; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 500; } tr { border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; } .WRONG { color: var(--bad); font-weight: 600; } .ok { color: var(--good); }
.quiet { color: var(--quiet); } dt { color: var(--quiet); } dd { margin: 0 0 .5rem 0; } code { font-size: .95em; }
.maps { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: .5rem 0 1.5rem; } figure { margin: 0; }
figure img { width: 16rem; height: auto; min-height: 1.2rem; max-height: 20rem; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { font-size: .85rem; color: var(--quiet); }
</style></head><body>
<h1>{{ title }}</h1>
{% for report in reports recursive %}
<section>
<h2>{{ report.name }}: backward <span class="{{ 'ok' if report.ok else 'WRONG' }}">{{ 'ok' if report.ok else 'WRONG' }}</span></h2>
<p class="quiet">{{ report.where }}, seed {{ report.seed }}; held against {{ report.reference }}</p>
{% if report.leaves %}<div class="scroll"><table>
<tr><th>leaf<th>verdict<th>error<th>allowed<th>cosine<th>worst<th>got<th>expected<th></tr>
{% for leaf in report.leaves %}<tr><td><code>{{ leaf.path }}</code><td class="{{ leaf.verdict }}">{{ leaf.verdict }}
<td>{{ sized(leaf.error) }}<td>{{ sized(leaf.allowed) }}<td>{{ '%.4f' | format(leaf.cosine) }}
<td>{{ leaf.index | list }}<td>{{ short(leaf.got) }}<td>{{ short(leaf.expected) }}<td>{{ leaf.pattern }} {{ leaf.dtype }}</tr>
{% endfor %}</table></div>{% endif %}
<dl>
{% if report.layer %}<dt>layer</dt><dd>{{ report.layer }}</dd>{% endif %}
{% if report.cause %}<dt>cause</dt><dd>{{ report.cause }}{% if report.best and report.best.where %}<br><code>{{ report.best.where }}</code>{% endif %}</dd>{% endif %}
{% if report.equation %}<dt>mended</dt><dd><code>{{ report.equation }}</code></dd>{% endif %}
{% for problem in report.problems %}<dt class="WRONG">problem</dt><dd>{{ problem }}</dd>{% endfor %}
{% for each in report.held if each.ok is false %}<dt class="WRONG">failed</dt><dd>{{ each.name }}: {{ each.words }}</dd>{% endfor %}
{% if report.held %}<dt>also held</dt><dd>{{ report.held | selectattr('ok') | map(attribute='name') | join(', ') }}</dd>{% endif %}
{% if report.blind is not none %}<dt>cannot tell</dt><dd>{{ report.blind | join('; ') or 'nothing' }}</dd>{% endif %}
{% for note in report.notes %}<dt>note</dt><dd>{{ note }}</dd>{% endfor %}
</dl>
{% for leaf in report.leaves if leaf.arrays is not none and (not leaf.ok or not leaf.forward) %}
<h3><code>{{ leaf.path }}</code> <span class="{{ leaf.verdict }}">{{ leaf.verdict }}</span></h3>
<div class="maps">{% for name, image, top in maps(leaf) %}
<figure><img src="{{ image }}" alt="{{ name }} of {{ leaf.path }}"><figcaption>{{ name }}, ±{{ sized(top) }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}
{{ loop(report.inside) }}
</section>
{% endfor %}
</body></html>
"""


def page(reports: Sequence[Report]) -> str:
    """A self-contained page of one or several reports."""
    from jinja2 import Environment

    wrong = sum(not report.ok for report in reports)
    title = (
        f"{len(reports)} backward passes, {wrong} wrong" if len(reports) != 1 else f"Backward pass of {reports[0].name}"
    )
    template = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE)
    return template.render(title=title, reports=reports, maps=heat_maps, sized=sized, short=short)


def heat_maps(leaf: Leaf) -> list[tuple[str, str, float]]:
    """Name, image and range of the maps of expected, got and difference; the first two share a range."""
    assert leaf.arrays is not None
    got, expected = (np.nan_to_num(np.real(array)) for array in leaf.arrays)
    top = max(float(np.abs(got).max(initial=0)), float(np.abs(expected).max(initial=0)))
    off = float(np.abs(got - expected).max(initial=0))
    return [
        ("expected", image(expected, top), top),
        ("got", image(got, top), top),
        ("difference", image(got - expected, off), off),
    ]


def as_matrix(array: np.ndarray) -> np.ndarray:
    """An array as a matrix of at most `MOST_PIXELS` a side: leading axes are stacked, tiles keep their largest entry."""
    matrix = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // MOST_PIXELS)
        if step > 1:
            pad = [(0, 0), (0, 0)]
            pad[axis] = (0, -matrix.shape[axis] % step)
            tiles = np.stack(
                np.split(np.pad(matrix, pad), range(step, matrix.shape[axis] + pad[axis][1], step), axis), axis
            )
            inner = axis + 1
            where = np.expand_dims(np.abs(tiles).argmax(inner), inner)
            matrix = np.take_along_axis(tiles, where, inner).squeeze(inner)
    return matrix


def image(array: np.ndarray, top: float) -> str:
    """A heat map as a PNG in a data URI: blue below zero, white at zero, red above."""
    from PIL import Image

    matrix = as_matrix(array) / (top or 1.0)
    low, high = np.clip(-matrix, 0, 1), np.clip(matrix, 0, 1)
    below, above = np.array([33, 102, 172]), np.array([178, 24, 43])
    colors = 255 - low[..., None] * (255 - below) - high[..., None] * (255 - above)
    buffer = io.BytesIO()
    Image.fromarray(colors.astype(np.uint8), "RGB").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
