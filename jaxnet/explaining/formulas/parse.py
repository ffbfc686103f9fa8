"""A formula of one's own as a tree: `(a3-y) * s'(z3) @ W3`, and W³ᵀδ³ ⊙ σ′(z²), W3^T delta3, np.dot(a, b).

The tables are the grammar. The page's script gets them as `grammar` and reads by the same steps. A tree is of Python's
own nodes, and each node knows where it stands in the formula.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from keyword import kwlist
from typing import Any

from jaxnet.explaining.notation import ExplainError

LONGEST = 2000
DEEPEST = 60
SLOPE = "_prime"  # relu′ as a name

WORDS = (
    r"(?P<blank>\s+|\\(?!odot|circ|cdot|times)(?=[A-Za-z]))"
    r"|(?P<shape>\d+\s*[x×]\s*\d+(?![\w.]))"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|½)"
    r"|(?P<transpose>\.(?:m?T\b|t\b(?:\(\))?|transpose\(\))|ᵀ|⊤|\^\{?(?:T\b|\\?top\b)\}?)"
    r"|(?P<inverse>⁻¹|\^\{?[-−]1\}?)"
    r"|(?P<numbered>[A-Za-zδΔ]+(?:\[\d+\]|\^\{?(?:\d+|\[\d+\]|\(\d+\))\}?))"
    r"|(?P<attribute>\.[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<name>(?:[∂d][CJL]/[∂d])?[A-Za-zδσΔ∇](?:[A-Za-z_δ]*[⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾]+|[A-Za-z0-9_δ]*))"
    r"|(?P<prime>['′]+)"
    r"|(?P<square>[²³])"
    r"|(?P<operator>\*\*|\^|\.\*|[<>]=?|[-+*@/⊙∘·−×=]|\\(?:odot|circ|cdot|times)\b)"
    r"|(?P<open>[(\[])|(?P<close>[)\]])|(?P<sign>[,:])"
)
NAMES = (
    ("^[∂d][CJL]/[∂d]|^∇_?|^grad_", "d"), ("^d?[δΔ](?=\\d|$)", "delta"), ("^σ$|^sigma$", "s"),
)  # fmt: skip
"""Beginnings of a name, and how the network writes them: ∇W3 is dW3."""
CALLED = "[A-Za-z_]{2,}|(int|float)\\d+|[sg]\\d*"
"""A name that a bracket calls; behind any other, W3 (a + b), it is a factor."""
CALLS = {"dot": "·", "matmul": "·", "multiply": "*", "add": "+", "subtract": "-", "divide": "/", "power": "**"}
"""Functions of two arguments that are operators: np.dot(a, b) is a @ b, so that a misfit is one of a product."""
LIBRARIES = ("np", "jnp", "numpy", "torch")
"""Names before a function that are left out."""
READ_AS = {"⊙": "*", "∘": "*", ".*": "*", "−": "-", "×": "*", "½": "0.5", "²": "2", "³": "3", "^": "**",
           "\\odot": "*", "\\circ": "*", "\\times": "*", "\\cdot": "·"}  # fmt: skip
DIGITS = {**{sign: str(i) for i, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, **dict.fromkeys("⁽⁾^[]{}()", "")}

SIDE_BY_SIDE, UNARY, DIVISOR, POWER = 4, 4, 5, 6
BINDS = {"<": 1, ">": 1, "<=": 1, ">=": 1, "+": 2, "-": 2, "*": 3, "@": 3, "·": 3, "/": 3, "**": POWER}
"""How tightly an operator binds. 1/m a b is (1/m) a b: a divisor ends before the factor beside it."""
MESSAGES = {
    "meaning": "{} has no meaning in a formula: use names, numbers, functions, + - * @ / .T ( )",
    "factor": "{} stands where a factor should: a name, a number or a bracket",
    "end": "{} stands where the formula should end or an operator follow",
    "ends": "the formula ends where a factor should follow",
    "open": "a bracket is open: put {} here",
    "deep": f"brackets may stand {DEEPEST} deep, no deeper",
    "target": "before = stands the name of the formula's value",
    "long": f"a formula has at most {LONGEST} characters, got {{}}",
    "nothing": 'a formula is expected, such as "W3.T @ delta3 * s\'(z2)", got none',
}


KEYWORDS = [word for word in kwlist if word not in ("None", "True", "False")]


def grammar() -> dict[str, Any]:
    """The tables as the page's script takes them."""
    return {
        "words": WORDS.replace("(?P<", "(?<"), "spelled": NAMES, "called": f"^(?:{CALLED})$", "libraries": LIBRARIES,
        "calls": CALLS, "readAs": READ_AS, "digits": DIGITS, "binds": BINDS, "messages": MESSAGES, "slope": SLOPE,
        "longest": LONGEST, "deepest": DEEPEST, "keywords": KEYWORDS, "sideBySide": SIDE_BY_SIDE, "unary": UNARY,
        "divisor": DIVISOR, "power": POWER,
    }  # fmt: skip


class SideBySide(ast.MatMult):
    """The product of factors side by side, and ·: of matrices, or of a number and a matrix."""


OPERATORS = {"*": ast.Mult, "/": ast.Div, "+": ast.Add, "-": ast.Sub, "**": ast.Pow, "@": ast.MatMult, "·": SideBySide,
             ">": ast.Gt, "<": ast.Lt, ">=": ast.GtE, "<=": ast.LtE}  # fmt: skip


class FormulaError(ExplainError):
    """A formula that cannot be read or computed: the message shows the place by a caret."""

    def __init__(self, text: str, at: int, why: str, until: int | None = None):
        marks = "^" * max(1, (until or at + 1) - at)
        super().__init__(f"{why}\n  {text}\n  {' ' * at}{marks}")


@dataclass(frozen=True)
class Formula:
    """A formula's text, its tree, and the name before "=", or nothing."""

    text: str
    tree: ast.expr
    target: str = ""

    def span(self, node: ast.expr) -> tuple[int, int]:
        """Where a part begins and ends."""
        return node.col_offset, node.end_col_offset or 0

    def source(self, node: ast.expr) -> str:
        """The text of a part."""
        start, end = self.span(node)
        return self.text[start:end]

    def error(self, node: ast.expr, why: str) -> FormulaError:
        """The error for a part."""
        start, end = self.span(node)
        return FormulaError(self.text, start, why, end)


@dataclass(frozen=True)
class Word:
    """A word of a formula: its kind in `WORDS`, its text, and where it stands."""

    kind: str
    text: str
    start: int
    end: int


def plain_name(text: str) -> str:
    """The network's own name: δ³ is delta3, ∇W³ dW3, ∂C/∂a² and dC/da2 da2, W[2] W2, σ s."""
    text = text.translate(str.maketrans(DIGITS))
    for pattern, name in NAMES:
        text = re.sub(pattern, name, text)
    return text


class FormulaReader:
    """Reads words from left to right: a factor, then operators as long as they bind tightly enough."""

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0
        self.words = list(self.split())

    def split(self) -> Iterator[Word]:
        """The words of the text, without blanks."""
        at = 0
        while at < len(self.text):
            match = re.compile(WORDS).match(self.text, at)
            if match is None or match.group() in KEYWORDS:
                end = at + 1 if match is None else match.end()
                said = f"'{self.text[at]}'" if match is None else match.group()
                raise FormulaError(self.text, at, MESSAGES["meaning"].format(said), end)
            if match.lastgroup != "blank":
                yield Word(str(match.lastgroup), READ_AS.get(match.group(), match.group()), at, match.end())
            at = match.end()

    def formula(self) -> Formula:
        """The whole formula."""
        target = ""
        if [each.kind for each in self.words[:1]] in (["name"], ["numbered"]) and self.ahead("=", 1):
            target, self.at = plain_name(self.words[0].text), 2
        tree = self.expression(0)
        if self.at < len(self.words):
            raise self.stopped("target" if self.ahead("=") else "end")
        return Formula(self.text, tree, target)

    def word(self, ahead: int = 0) -> Word | None:
        """The next word, or one further on."""
        return self.words[self.at + ahead] if self.at + ahead < len(self.words) else None

    def ahead(self, text: str, ahead: int = 0) -> bool:
        """Whether a word comes next."""
        word = self.word(ahead)
        return word is not None and word.text == text

    def took(self, text: str) -> bool:
        """Whether a word comes next, which is then read."""
        found = self.ahead(text)
        self.at += found
        return found

    def stopped(self, message: str) -> FormulaError:
        """The error at the next word."""
        word = self.word()
        if word is None:
            return FormulaError(self.text, len(self.text), MESSAGES["ends"])
        return FormulaError(self.text, word.start, MESSAGES[message].format(f"'{word.text}'"), word.end)

    def node(self, node: Any, start: int) -> Any:
        """A node that begins at a place and ends at the word read last."""
        node.lineno = node.end_lineno = 1
        node.col_offset, node.end_col_offset = start, self.words[self.at - 1].end
        return node

    def expression(self, least: int) -> ast.expr:
        """A factor, and all that operators join to it that bind at least so tightly."""
        word = self.word()
        if word is None:
            raise self.stopped("ends")
        start = word.start
        if word.text in ("-", "+"):
            self.at += 1
            of = self.expression(max(least, UNARY))
            left = self.node(ast.UnaryOp(ast.USub() if word.text == "-" else ast.UAdd(), of), start)
        else:
            left = self.factor()
        while (word := self.word()) is not None:
            beside = word.kind in ("number", "shape", "name", "numbered", "open")
            binds = SIDE_BY_SIDE if beside else BINDS.get(word.text, -1)
            if binds < least:
                break
            self.at += not beside
            sign = OPERATORS["·" if beside else word.text]
            right = self.expression(DIVISOR if word.text == "/" else POWER if word.text == "**" else binds + 1)
            joined = ast.Compare(left, [sign()], [right]) if binds == 1 else ast.BinOp(left, sign(), right)
            left = self.node(joined, start)
        return left

    def factor(self) -> ast.expr:
        """A name, a number or a bracket, and all that stands right behind it: transposes, calls, parts."""
        word = self.words[self.at]
        constants = {"None": None, "True": True, "False": False}
        match word.kind:
            case "shape":
                sizes: list[ast.expr] = [ast.Constant(int(size)) for size in re.split("[x×]", word.text)]
                found: ast.expr = ast.Call(ast.Name("Shape"), sizes, [])
            case "number":
                found = ast.Constant(int(word.text) if word.text.isdigit() else float(word.text))
            case "name" | "numbered":
                known = word.text in constants
                found = ast.Constant(constants[word.text]) if known else ast.Name(plain_name(word.text))
            case "open":
                found = self.bracket(word.text)
            case _:
                raise self.stopped("factor")
        self.at += 1
        of = found if hasattr(found, "lineno") else self.node(found, word.start)
        while (made := self.behind(of)) is not None:
            self.at += 1
            of = self.node(made, word.start)
        return of

    def behind(self, of: ast.expr) -> ast.expr | None:
        """A factor with the word right behind it; None where another factor or an operator stands there."""
        word = self.word()
        if word is None:
            return None
        name = called(of)
        if word.kind == "prime" and name and self.ahead("(", 1):
            slope = name + SLOPE * len(word.text)
            return ast.Attribute(of.value, slope) if isinstance(of, ast.Attribute) else ast.Name(slope)
        if word.kind in ("prime", "transpose"):
            return ast.Attribute(of, "T")
        if word.kind == "square":
            return ast.BinOp(of, ast.Pow(), ast.Constant(int(word.text)))
        if word.kind == "attribute":
            return ast.Attribute(of, word.text[1:])
        if word.kind == "inverse":
            return ast.Call(ast.Name("inv"), [of], [])
        if word.text == "(" and name:
            return self.call(of, name)
        if word.text == "[":
            inside = "".join(each.text for each in self.words[self.at :]).partition("]")[0]
            return ast.Subscript(of, ast.Tuple(self.parts("]")[0])) if ":" in inside or "None" in inside else None
        return None

    def call(self, of: ast.expr, name: str) -> ast.expr:
        """A call of a function by its name, of a method with its array first; np.dot(a, b) as its operator."""
        parts, _ = self.parts(")")
        given = [each for each in parts if not isinstance(each, ast.keyword)]
        root = of
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(of, ast.Attribute) and not (isinstance(root, ast.Name) and root.id in LIBRARIES):
            given = [of.value, *given]
        if name in CALLS and len(given) == 2:
            return ast.BinOp(given[0], OPERATORS[CALLS[name]](), given[1])
        if name == "transpose" and len(given) == 1:
            return ast.Attribute(given[0], "T")
        return ast.Call(ast.Name(name), given, [each for each in parts if isinstance(each, ast.keyword)])

    def bracket(self, opened: str) -> ast.expr:
        """The content of a bracket: a list, a row of values, or one expression."""
        parts, comma = self.parts(")" if opened == "(" else "]")
        if opened == "[":
            return ast.List(parts)
        return parts[0] if len(parts) == 1 and not comma else ast.Tuple(parts)

    def parts(self, close: str) -> tuple[list[Any], bool]:
        """The parts of a bracket up to its end, and whether a comma stands among them."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.stopped("deep")
        self.at += 1
        found: list[Any] = []
        comma = False
        while not self.ahead(close):
            if found and not comma:
                raise self.unclosed(close)
            found.append(self.part(close))
            comma = self.took(",")
        self.depth -= 1
        return found, comma or len(found) > 1

    def unclosed(self, close: str) -> FormulaError:
        """The error where a bracket should end."""
        if self.word() is None:
            return FormulaError(self.text, len(self.text), MESSAGES["open"].format(close))
        return self.stopped("end")

    def part(self, close: str) -> Any:
        """One part of a bracket: an expression, axis=0, or rows and columns, 1:3."""
        word = self.word()
        if close == ")" and word is not None and word.kind == "name" and self.ahead("=", 1):
            self.at += 2
            return ast.keyword(word.text, self.expression(0))
        ends: list[ast.expr | None] = [None]
        while not (self.ahead(",") or self.ahead(close)):
            if close == "]" and self.took(":"):
                ends.append(None)
            elif ends[-1] is None:
                ends[-1] = self.expression(0)
            else:
                break
        if ends == [None]:
            raise self.stopped("factor")
        return ends[0] if len(ends) == 1 else ast.Slice(*ends)


def called(of: ast.expr) -> str:
    """The name of a function or method that a bracket right behind calls; "" where a bracket is another factor."""
    match of:
        case ast.Name(name) if re.fullmatch(CALLED, name) or name.endswith(SLOPE):
            return name
        case ast.Attribute(_, name) if name != "T":
            return name
    return ""


def parse(text: str) -> Formula:
    """The tree of a formula.

    Raises `FormulaError`, whose message points at the place.
    """
    if len(text) > LONGEST:
        raise ExplainError(MESSAGES["long"].format(len(text)))
    if not text.strip():
        raise ExplainError(MESSAGES["nothing"])
    return FormulaReader(text).formula()
