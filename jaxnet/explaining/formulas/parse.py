"""Formulas of one's own: `(a3-y) * s'(z3) @ W3`, read into a tree that knows where each part stands.

    formula = term (("+" | "-") term)*
    term    = signed (("*" | "@" | "/") signed)*     as in Python, * and @ bind alike, from the left
    signed  = "-" signed | factor ["**" signed]
    factor  = (number | shape | name | name "(" formula ("," formula)* ")" | "(" formula ")") ".T"*

Unicode is read as well: W³ᵀδ³ ⊙ σ′(z²) has an operator between all its factors but is otherwise the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from jaxnet.explaining.notation import ExplainError

LONGEST = 2000
DEEPEST = 60


class FormulaError(ExplainError):
    """A formula that cannot be read or computed: the message shows the place by a caret."""

    def __init__(self, text: str, at: int, why: str, until: int | None = None):
        marks = "^" * max(1, (until or at + 1) - at)
        super().__init__(f"{why}\n  {text}\n  {' ' * at}{marks}")
        self.why, self.at = why, at


@dataclass(frozen=True)
class Node:
    """A part of a formula, from `start` to `end` in its text.

    kind: "name", "number", "shape" (3×2, a matrix of which nothing else is known), "call", "binary", "minus",
    "transpose". text: the name, the function, the operator. numbers: of a number or a shape.
    """

    kind: Literal["name", "number", "shape", "call", "binary", "minus", "transpose"]
    text: str
    start: int
    end: int
    parts: tuple[Node, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Token:
    """A word of a formula."""

    kind: str
    text: str
    start: int
    end: int


WORDS = re.compile(
    r"(?P<blank>\s+)"
    r"|(?P<shape>\d+\s*[x×]\s*\d+(?![\w.]))"
    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|½)"
    r"|(?P<name>∂?[A-Za-zδσΔ∇∂][A-Za-z0-9_⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾]*(?:/∂[A-Za-z][A-Za-z0-9⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾]*)?['′]*)"
    r"|(?P<transpose>\.T\b|ᵀ|\^T\b|⊤)"
    r"|(?P<operator>\*\*|[-+*@/⊙∘·−×])"
    r"|(?P<bracket>[(),])"
)
SAME = {"⊙": "*", "∘": "*", "·": "@", "−": "-", "×": "*"}
DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", "⁽⁾")


def tokens(text: str) -> list[Token]:
    """The words of a formula.

    Raises `FormulaError` for a character that belongs to none.
    """
    found, at = [], 0
    while at < len(text):
        match = WORDS.match(text, at)
        if match is None:
            raise FormulaError(
                text, at, f"{text[at]!r} has no meaning in a formula: use names, numbers, + - * @ / .T ( )"
            )
        kind = str(match.lastgroup)
        if kind != "blank":
            found.append(Token(kind, match.group(), at, match.end()))
        at = match.end()
    return found


def plain_name(text: str) -> str:
    """A name as the network knows it: δ³ is delta3, ∇W³ dW3, ∂C/∂a² da2, σ′ s'."""
    text = text.translate(DIGITS).replace("′", "'")
    text = re.sub(r"^∂[CJ]/∂", "d", text)
    text = re.sub(r"^∇_?", "d", text)
    text = re.sub(r"^d?[δΔ](?=\d|$)", "delta", text)
    return re.sub(r"^σ|^sigma(?=$|'|_)", "s", text)


class Reader:
    """Reads the words of one formula from the left."""

    def __init__(self, text: str):
        self.text, self.words, self.at, self.depth = text, tokens(text), 0, 0

    def next(self) -> Token | None:
        """The word that comes."""
        return self.words[self.at] if self.at < len(self.words) else None

    def take(self, *texts: str) -> Token | None:
        """The word that comes if it is one of these operators or brackets."""
        word = self.next()
        if word is None or word.kind not in ("operator", "bracket") or SAME.get(word.text, word.text) not in texts:
            return None
        self.at += 1
        return word

    def fail(self, why: str) -> FormulaError:
        """What is wrong at the word that comes."""
        word = self.next()
        at, until = (len(self.text), None) if word is None else (word.start, word.end)
        return FormulaError(self.text, at, why, until)

    def sum(self) -> Node:
        """Terms."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fail(f"brackets may stand {DEEPEST} deep, no deeper")
        left = self.product()
        while (sign := self.take("+", "-")) is not None:
            left = binary(sign, left, self.product())
        self.depth -= 1
        return left

    def product(self) -> Node:
        """Factors."""
        left = self.signed()
        while (sign := self.take("*", "@", "/")) is not None:
            left = binary(sign, left, self.signed())
        return left

    def signed(self) -> Node:
        """A factor with its power and its signs."""
        signs = []
        while (sign := self.take("-", "+")) is not None:
            signs.append(sign)
        node = self.factor()
        if (power := self.take("**")) is not None:
            node = binary(power, node, self.signed())
        for sign in reversed(signs):
            if SAME.get(sign.text, sign.text) == "-":
                node = Node("minus", "-", sign.start, node.end, (node,))
        return node

    def factor(self) -> Node:
        """A name, a number, a call or brackets, transposed or not."""
        node = self.atom()
        while (word := self.next()) is not None and word.kind == "transpose":
            self.at += 1
            node = Node("transpose", ".T", node.start, word.end, (node,))
        following = self.next()
        if following is not None and (following.kind in ("name", "number", "shape") or following.text == "("):
            raise self.fail("between two factors stands @ (matrix product) or * (entry by entry), got none")
        return node

    def atom(self) -> Node:
        """What a factor is made of."""
        word = self.next()
        if word is None:
            raise self.fail("the formula ends where a factor should follow")
        if (opening := self.take("(")) is not None:
            inside = self.sum()
            closing = self.take(")")
            if closing is None:
                raise self.fail("a bracket is open: put ) here")
            return Node(inside.kind, inside.text, opening.start, closing.end, inside.parts, inside.numbers)
        if word.kind not in ("name", "number", "shape"):
            raise self.fail(f"{word.text!r} stands where a factor should: a name, a number or a bracket")
        self.at += 1
        if word.kind == "number":
            value = 0.5 if word.text == "½" else float(word.text)
            return Node("number", word.text, word.start, word.end, numbers=(value,))
        if word.kind == "shape":
            sizes = tuple(float(size) for size in re.split(r"\s*[x×]\s*", word.text))
            return Node("shape", word.text, word.start, word.end, numbers=sizes)
        name = plain_name(word.text)
        return self.call(word, name) if self.take("(") is not None else Node("name", name, word.start, word.end)

    def call(self, word: Token, name: str) -> Node:
        """A function with its arguments, whose bracket is open."""
        arguments = [self.sum()]
        while self.take(",") is not None:
            arguments.append(self.sum())
        closing = self.take(")")
        if closing is None:
            raise self.fail("a bracket is open: put ) here")
        return Node("call", name, word.start, closing.end, tuple(arguments))


def binary(sign: Token, left: Node, right: Node) -> Node:
    """Two parts with an operator between."""
    return Node("binary", SAME.get(sign.text, sign.text), left.start, right.end, (left, right))


def parse(text: str) -> Node:
    """The tree of a formula.

    Raises `FormulaError`, whose message points at the place.
    """
    if len(text) > LONGEST:
        raise ExplainError(f"a formula has at most {LONGEST} characters, got {len(text)}")
    if not text.strip():
        raise ExplainError('a formula is expected, such as "W3.T @ delta3 * s\'(z2)", got none')
    reader = Reader(text)
    node = reader.sum()
    if reader.next() is not None:
        raise reader.fail(f"{reader.words[reader.at].text!r} stands where the formula should end or an operator follow")
    return node
