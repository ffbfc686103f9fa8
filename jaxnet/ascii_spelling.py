"""ASCII spellings of mathematical characters, for output whose encoding lacks them: δ is delta, Wᵀ is W^T, ∂ is d."""

import codecs
import unicodedata
from itertools import groupby
from typing import TextIO

SPELLINGS = {
    "∂": "d",
    "−": "-",
    "–": "-",
    "—": "-",
    "‖": "||",
    "│": "|",
    "⊙": "*",
    "×": "x",
    "⊗": "(x)",
    "≈": "~",
    "·": "*",
    "∘": " o ",
    "Σ": "sum",
    "∑": "sum",
    "∇": "grad ",
    "√": "sqrt",
    "′": "'",
    "→": "->",
    "↦": "->",
    "←": "<-",
    "↓": "v",
    "⟨": "<",
    "⟩": ">",
    "›": ">",
    "±": "+-",
    "°": " deg",
    "§": "section ",
    "∞": "inf",
    "≥": ">=",
    "≤": "<=",
    "≠": "!=",
    "∝": " ~ ",
    "½": "1/2",
    "¼": "1/4",
    "✓": "ok",
    "✗": "x",
    "⊤": "T",
    "μ": "mu",
    "\u00b5": "u",
    "⁻": "-",
    "₋": "-",
    "\u0302": "^",
}
NAME = "jaxnet.ascii"


def spelled(character: str) -> str:
    """One character in ASCII, without the mark of a superscript or subscript.

    >>> [spelled(each) for each in "δΔ∂²ĝé漢"]
    ['delta', 'Delta', 'd', '2', 'g', 'e', '?']
    """
    if character in SPELLINGS:
        return SPELLINGS[character]
    script, _, name = unicodedata.name(character, "").partition(" LETTER ")
    if script in ("GREEK SMALL", "GREEK CAPITAL") and name.isalpha():
        name = "lambda" if name == "LAMDA" else name.lower()
        return name.title() if script == "GREEK CAPITAL" else name
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def mark(character: str) -> str:
    """`^` for a superscript, `_` for a subscript, else nothing."""
    kind = unicodedata.decomposition(character).partition(" ")[0]
    name = unicodedata.name(character, "")
    return "^" if kind == "<super>" else "_" if kind == "<sub>" or "SUBSCRIPT" in name else ""


def in_ascii(text: str) -> str:
    """A text in ASCII.

    >>> in_ascii("δˡ = (Wᵀ δ) ⊙ σ′(z)"), in_ascii("Σᵢ xᵢ⁽²⁾")
    ("delta^l = (W^T delta) * sigma'(z)", 'sum_i x_i^(2)')
    """
    pieces = []
    for kind, run in groupby(text, mark):
        pieces.append(kind + "".join(each if each.isascii() else spelled(each) for each in run))
    return "".join(pieces)


def replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """The codec error handler: characters of undecoded bytes, as in some file names, are written as these bytes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    first = error.object[error.start]
    if "\udc80" <= first <= "\udcff":
        return bytes([ord(first) - 0xDC00]), error.start + 1
    stops = (i for i in range(error.start, error.end) if "\ud800" <= error.object[i] <= "\udfff")
    end = next(stops, error.end)
    return (in_ascii(error.object[error.start : end]) or "?"), max(end, error.start + 1)


def writable(text: str, stream: TextIO) -> str:
    """A text as the stream can write it."""
    if stream.errors == NAME:
        return text
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, NAME).decode(encoding, "ignore")


codecs.register_error(NAME, replace)
