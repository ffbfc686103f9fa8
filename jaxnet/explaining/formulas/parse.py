"""A formula of one's own as a Python expression: `(a3-y) * s'(z3) @ W3`, and W³ᵀδ³ ⊙ σ′(z²), W3^T delta3, np.dot(a, b).

The words of the formula are rewritten as Python, Python's own parser makes the tree, and each part of the tree knows
where it stands in the formula.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from keyword import iskeyword

from jaxnet.explaining.notation import ExplainError

LONGEST = 2000
DEEPEST = 60
SLOPE = "_prime"  # relu′ in Python

WORDS = re.compile(
    r"(?P<blank>\s+)"
    r"|(?P<shape>\d+\s*[x×]\s*\d+(?![\w.]))"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|½)"
    r"|(?P<transpose>\.T\b|ᵀ|\^\{?T\}?|⊤)"
    r"|(?P<numbered>[A-Za-zδΔ]+\^?\[\d+\])"
    r"|(?P<attribute>\.[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<name>(?:[∂d][CJL]/[∂d])?[A-Za-zδσΔ∇](?:[A-Za-z_δ]*[⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾]+|[A-Za-z0-9_δ]*))"
    r"|(?P<prime>['′]+)"
    r"|(?P<square>[²³])"
    r"|(?P<operator>\*\*|\.\*|[<>]=?|[-+*@/⊙∘·−×=])"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<sign>[,:])"
)
NO_MEANING = "has no meaning in a formula: use names, numbers, functions, + - * @ / .T ( )"
PYTHON = {"⊙": "*", "∘": "*", ".*": "*", "·": "@", "−": "-", "×": "*", "½": "0.5", "²": "**2", "³": "**3"}
DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", "⁽⁾^[]")


class FormulaError(ExplainError):
    """A formula that cannot be read or computed: the message shows the place by a caret."""

    def __init__(self, text: str, at: int, why: str, until: int | None = None):
        marks = "^" * max(1, (until or at + 1) - at)
        super().__init__(f"{why}\n  {text}\n  {' ' * at}{marks}")


@dataclass(frozen=True)
class Formula:
    """A formula's text, its tree, and for each column of the Python text the place in the formula.

    target: the name before "=", or nothing.
    """

    text: str
    tree: ast.expr
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    target: str = ""

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Where a part begins and ends."""
        return self.starts[node.col_offset], self.ends[(node.end_col_offset or 0) - 1]

    def source(self, node: ast.expr) -> str:
        """The text of a part."""
        start, end = self.span(node)
        return self.text[start:end]

    def error(self, node: ast.expr, why: str) -> FormulaError:
        """The error for a part."""
        start, end = self.span(node)
        return FormulaError(self.text, start, why, end)


def plain_name(text: str) -> str:
    """The network's own name: δ³ is delta3, ∇W³ dW3, ∂C/∂a² and dC/da2 da2, W[2] W2, σ s."""
    text = text.translate(DIGITS)
    text = re.sub(r"^[∂d][CJL]/[∂d]|^∇_?|^grad_", "d", text)
    text = re.sub(r"^d?[δΔ](?=\d|$)", "delta", text)
    return re.sub(r"^σ$|^sigma$", "s", text)


class Rewriting:
    """The Python text under construction. Each piece knows its place in the formula."""

    def __init__(self, text: str):
        self.text, self.pieces = text, list[tuple[str, int, int]]()
        self.depths: list[list[int | None]] = [[None, None]]  # at each bracket: where a factor begins, a product begins
        self.brackets: list[str] = []
        self.factor_ends = False  # whether a factor may end here
        self.target = ""

    def put(self, python: str, start: int, end: int) -> None:
        self.pieces.append((python, start, end))

    def begin_factor(self, start: int) -> None:
        """A factor begins; right behind another one it is multiplied, and both are one product in brackets.

        1/m a b is (1/m) a b.
        """
        depth = self.depths[-1]
        if self.factor_ends:
            divided = depth[0] and self.pieces[depth[0] - 1][0] == " / "
            if depth[1] is None and not divided:
                depth[1] = depth[0] or 0
                at = self.pieces[depth[1]][1]
                self.pieces.insert(depth[1], ("(", at, at + 1))
            self.put(" @ ", start, start)
        else:
            depth[0] = len(self.pieces)

    def end_product(self) -> None:
        """An operator or a bracket ends the factors side by side."""
        if self.depths[-1][1] is not None:
            last = self.pieces[-1][2]
            self.put(")", last - 1, last)
        self.depths[-1] = [None, None]

    def word(self, kind: str, text: str, start: int, end: int, behind: str) -> None:
        """Rewrites one word. behind: the text that follows."""
        inside = self.brackets[-1] if self.brackets else ""
        if kind in ("number", "shape", "name", "numbered") or (text in ("(", "[") and not self.calls(text, behind)):
            self.begin_factor(start)
        elif not self.factor_ends and (
            kind in ("transpose", "attribute", "prime", "square") or (kind == "operator" and text not in "+-−")
            or (kind == "close" and self.pieces[-1:] and self.pieces[-1][0].strip() not in ("(", "[", ",", ":"))
        ):  # fmt: skip
            raise FormulaError(
                self.text, start, f"{text!r} stands where a factor should: a name, a number or a bracket", end
            )
        self.factor_ends = kind not in ("operator", "open", "sign")
        match kind:
            case "shape":
                self.put(f"Shape({','.join(re.split('[x×]', text))})".replace(" ", ""), start, end)
            case "name" | "numbered":
                self.put(plain_name(text), start, end)
            case "prime":  # of a function its derivative, else a transpose
                self.put(SLOPE * len(text) if behind.lstrip().startswith("(") else ".T", start, end)
            case "transpose":
                self.put(".T", start, end)
            case "open":
                self.put(text, start, end)
                self.brackets.append(text)
                self.depths.append([None, None])
                if len(self.brackets) > DEEPEST:
                    raise FormulaError(self.text, start, f"brackets may stand {DEEPEST} deep, no deeper")
            case "close":
                if {")": "(", "]": "["}[text] != inside:
                    why = f"{text!r} stands where the formula should end or an operator follow"
                    raise FormulaError(self.text, start, why)
                self.end_product()
                self.brackets.pop()
                self.depths.pop()
                self.put(text, start, end)
            case "operator" if text == "=" and inside != "(":
                names = [piece for piece, *_ in self.pieces if piece.strip()]
                if inside or self.target or len(names) != 1:
                    raise FormulaError(self.text, start, "before = stands the name of what the formula gives")
                self.target, self.pieces = names[0], []
                self.depths = [[None, None]]
            case "operator" | "sign":
                if text != "**":
                    self.end_product()
                self.put(f" {PYTHON.get(text, text)} " if text != ":" else text, start, end)
            case _:
                self.put(PYTHON.get(text, text), start, end)

    def calls(self, text: str, behind: str) -> bool:
        """Whether a bracket belongs to the name, the method or the derivative before it."""
        if not self.factor_ends or not self.pieces:
            return False
        last = self.pieces[-1][0]
        if text == "[":
            return ":" in behind.split("]")[0] or "None" in behind.split("]")[0]
        return last.endswith(SLOPE) or bool(
            re.fullmatch(r"\.(?!T$)[a-z_][a-z_0-9]*|[A-Za-z_]{2,}|(int|float)\d+|[sg]", last)
        )


def parse(text: str) -> Formula:
    """The tree of a formula.

    Raises `FormulaError`, whose message points at the place.
    """
    if len(text) > LONGEST:
        raise ExplainError(f"a formula has at most {LONGEST} characters, got {len(text)}")
    if not text.strip():
        raise ExplainError('a formula is expected, such as "W3.T @ delta3 * s\'(z2)", got none')
    made, at = Rewriting(text), 0
    while at < len(text):
        match = WORDS.match(text, at)
        if match is None:
            raise FormulaError(text, at, f"{text[at]!r} {NO_MEANING}")
        if iskeyword(match.group()) and match.group() not in ("None", "True", "False"):
            raise FormulaError(text, at, f"{match.group()} {NO_MEANING}", match.end())
        if match.lastgroup != "blank":
            made.word(str(match.lastgroup), match.group(), at, match.end(), text[match.end() :])
        at = match.end()
    if not made.factor_ends:
        raise FormulaError(text, len(text), "the formula ends where a factor should follow")
    if made.brackets:
        raise FormulaError(text, len(text), f"a bracket is open: put {')' if made.brackets[-1] == '(' else ']'} here")
    made.end_product()
    python = "".join(piece for piece, *_ in made.pieces)
    indent = len(python) - len(python.lstrip())
    starts = tuple(start for piece, start, _ in made.pieces for _ in piece)[indent:]
    ends = tuple(end for piece, _, end in made.pieces for _ in piece)[indent:]
    try:
        tree = ast.parse(python.strip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError, ValueError) as error:
        at = starts[min(max((getattr(error, "offset", None) or 1) - 1, 0), len(starts) - 1)]
        raise FormulaError(text, at, "the formula cannot be read here: two factors need an operator between") from None
    return Formula(text, tree, starts, ends, made.target)
