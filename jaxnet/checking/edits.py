"""The grammar of edits: the expressions that may stand in the place of another, in the author's own names.

An expression is a template with atoms: its text and its value both come from the template. Its cost is its description
length: how many tokens of the source change.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.alignment import Aligned, Atom, MarkedPlace
from jaxnet.checking.author import read_in
from jaxnet.checking.primal import fingerprint, parsed

MISSING, OTHER, SIGN = 0, 1, 2
RANKS = {"sign": SIGN, "factor": MISSING, "term": MISSING}
FEW_NAMES, MOST_BORROWED = 16, 24
EXACT = 1e-6  # relative to the largest entry of each gradient
UNARY = ("{1}", "1 - {1}", "{1}**2", "1 - {1}**2", "{1} * (1 - {1})", "{1} > 0", "{1} < 0", "1 + {1}")
OF_LIBRARY = (*(f"%.{name}({{1}})" for name in ("sign", "sqrt", "exp", "log", "tanh", "cos", "sin", "abs")),
              "%.exp(-{1}**2 / 2) / %.sqrt(2 * %.pi)")  # fmt: skip
"""Functions of one array; `%` stands for the name of `jax.numpy`."""


# ------------------------------------------------------------------------------------------------------------ text


@lru_cache(maxsize=100_000)
def tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text, brackets and commas aside."""
    return tuple(re.findall(r"\w+(?:\.\w+)*(?=\()|\d+\.\d+|\w+|\*\*|[-+*/@<>=!:]+", text))


def distance(before: str, after: str) -> float:
    """How many tokens are put in, and half of those that are taken out."""
    a, b = tokens(before), tokens(after)
    same = sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    return len(b) - same + (len(a) - same) / 2


@lru_cache(maxsize=100_000)
def bracketed(text: str) -> str:
    """An expression as it stands inside another."""
    compound = ast.BinOp | ast.UnaryOp | ast.Compare | ast.BoolOp | ast.IfExp | ast.Lambda
    return f"({text})" if isinstance(ast.parse(text, mode="eval").body, compound) else text


@lru_cache(maxsize=10_000)
def tidy(text: str) -> str:
    """An expression without brackets that change nothing."""
    start = text.find("(")
    while start >= 0:
        depths = itertools.accumulate({"(": 1, ")": -1}.get(letter, 0) for letter in text[start:])
        end = start + next(k for k, depth in enumerate(depths) if not depth)
        bare = text[:start] + text[start + 1 : end] + text[end + 1 :]
        if not (start and (text[start - 1].isalnum() or text[start - 1] in "_)]")) and alike(bare, text):
            text = bare
            start -= 1
        start = text.find("(", start + 1)
    return text


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same expression."""
    try:
        return structure(one) == structure(other)
    except SyntaxError:
        return False


@lru_cache(maxsize=10_000)
def structure(text: str) -> str:
    """An expression's tree, as text."""
    return ast.dump(ast.parse(text, mode="eval"))


def transposed(text: str) -> str:
    """The text of a matrix transposed."""
    return text.removesuffix(".T") if text.endswith(".T") else f"{bracketed(text)}.T"


# ------------------------------------------------------------------------------------------------------ expressions


@dataclass(frozen=True, eq=False)
class Term:
    """An expression: a template of NumPy with `{0}` for the value at a place and `{1}`, `{2}` … for its atoms."""

    template: str
    atoms: tuple[Atom, ...] = ()

    def text(self, here: str) -> str:
        """The expression, where `here` is that of the place."""
        texts = (here, *(atom.text for atom in self.atoms))
        if self.template in ("{0}", "{1}"):
            return texts[-1]
        return self.template.format(*map(bracketed, texts)).replace(".T.T", "")

    def value(self, here: Any, *given: Any) -> Any:
        """The expression's value, of that at the place and those of the atoms."""
        return function_of(self.template)([here, *(u + 0.0 if np.asarray(u).dtype.kind == "b" else u for u in given)])


HERE = Term("{0}")


@lru_cache(maxsize=10_000)
def function_of(template: str) -> Callable[[list], Any]:
    """A template as a function of the list of its values."""
    return eval("lambda _: " + re.sub(r"\{(\d+)\}", r"_[\1]", template), {"jnp": np, "np": np})


def joined(template: str, *terms: Term) -> Term:
    """A template of expressions: `"{} * {}"` of two is their product."""
    parts = tuple((term.template, len(term.atoms)) for term in terms)
    return Term(joined_template(template, parts), tuple(atom for term in terms for atom in term.atoms))


@lru_cache(maxsize=100_000)
def joined_template(template: str, parts: tuple[tuple[str, int], ...]) -> str:
    """A template of templates, each with the number of its atoms."""
    start, texts = 1, []
    for inner, count in parts:
        names = (f"{{{k}}}" for k in range(start, start + count))
        texts.append(bracketed(inner.format("{0}", *names)))
        start += count
    return template.format(*texts)


class Draft(NamedTuple):
    """An expression for a place whose text is not written yet: most are tried by their value alone."""

    term: Term
    kind: str = "replaced"
    what: Term | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Edit:
    """An expression in the place of another: its cost, its text, the mistake, and the missing or right part.

    `kind`: "sign", "transposed", "factor", "term", "order", "shifted" or "replaced"; equal costs are ordered by `rank`.
    """

    cost: float
    text: str
    kind: str = "replaced"
    what: str = ""
    term: Term = HERE

    @property
    def rank(self) -> int:
        """A missing part comes before another value, and that before a wrong sign."""
        return RANKS.get(self.kind, OTHER)


class Scope:
    """The values that may be used at a place: the variables and the expressions before it, sizes and numbers."""

    def __init__(self, aligned: Aligned, place: MarkedPlace):
        self.aligned, self.place = aligned, place
        self.text = place.mark.text
        self.shape = tuple(place.operations[0].eqn.outvars[0].aval.shape)
        self.inside = aligned.dependents([each.outputs[0] for each in place.operations])
        globals_of = place.mark.source.modules
        libraries = (jnp, np) if aligned.subject.in_jax is not None else (jnp,)
        self.jnp = next((name for name in ("jnp", "np") if globals_of.get(name) in libraries), "")

    def visible(self, mark: Any) -> bool:
        """Whether an expression has its value before the place, in the same function or in one around it."""
        here = self.place.mark
        if mark.text == "_":
            return False
        if mark.source is not here.source or here.path[: len(mark.path)] != mark.path or mark.number == here.number:
            return False
        if here.defines:
            return mark.defines and mark.path == here.path and (mark.is_argument or mark.until <= here.until)
        start, end = here.source.span(here.node)
        first, last = mark.source.span(mark.node)
        inside = start <= first and last <= end
        if mark.defines and isinstance(mark.node, ast.stmt | ast.Lambda):
            return mark.is_argument or last <= start
        return last <= start or inside

    @cached_property
    def atoms(self) -> list[Atom]:
        """Arrays in scope, the variables first; of equal ones the one with the shortest text."""
        return self.of_kinds("fb")

    @cached_property
    def integers(self) -> list[Atom]:
        """Arrays of integers in scope."""
        return self.of_kinds("iu")

    def of_kinds(self, kinds: str) -> list[Atom]:
        """Arrays in scope of some kinds of numbers."""
        found: dict[tuple, Atom] = {}
        aligned = self.aligned
        every = sorted(
            (p for p in aligned.places.values() if self.visible(p.mark)),
            key=lambda p: (not (p.mark.text.isidentifier() and not p.path), len(p.mark.text + p.path)),
        )
        for place in every:
            numbers = [aligned.seen_at(place, operation) for operation in self.place.operations]
            if any(number is None for number in numbers):
                if not self.place.mark.defines or place.number in self.inside or aligned.graph.around[place.number]:
                    continue
                numbers = [place.number]
            value = np.asarray(aligned.values[0].get(numbers[0] or 0, 0.0))
            if value.dtype.kind not in kinds or not value.size:
                continue
            aval = place.operations[0].eqn.outvars[0].aval
            key = (aval.shape, value.shape, aligned.bits(numbers[0] or 0), numbers[0] in self.inside)
            found.setdefault(key, Atom(place.mark.text + place.path, tuple(aval.shape), place))
        for number, constant in aligned.seen.items():
            mark = aligned.marks[number]
            if np.ndim(constant) and self.visible(mark) and np.asarray(constant).dtype.kind in kinds:
                value = np.asarray(constant)
                found.setdefault(
                    (value.shape, value.tobytes()), Atom(mark.text, value.shape, None, (value,) * len(aligned.points))
                )
        return list(found.values())

    @cached_property
    def borrowed(self) -> list[Atom]:
        """The primal's values without a name at the place, written in the names that it has."""
        known = {atom.text for atom in self.atoms}
        by_value = {}
        for atom in self.atoms:
            if atom.place is not None and re.fullmatch(r"\w+(\[[^\]]+\])*", atom.text):
                values = [self.value(atom, point) for point in range(len(self.aligned.points))]
                by_value.setdefault(fingerprint(values), atom.text)
        found: dict[tuple, Atom] = {}
        for expression in self.aligned.primal.expressions:
            text = expression.text_in(by_value, self.aligned.primal.names)
            if text is not None and text not in known and len(tokens(text)) <= MOST_BORROWED:
                shape = tuple(np.shape(expression.values[0]))
                key = (shape, np.asarray(expression.values[0]).tobytes())
                if key not in found or len(text) < len(found[key].text):
                    found[key] = Atom(text, shape, None, tuple(expression.values))
        values = {np.asarray(self.value(atom, 0)).tobytes() for atom in self.atoms}
        return [atom for key, atom in found.items() if key[1] not in values]

    @cached_property
    def numbers(self) -> list[tuple[str, float]]:
        """Numbers that an edit may use: small ones, those in scope, sizes of arrays."""
        found: dict[float, str] = {2.0: "2", 3.0: "3", 0.5: "0.5"}
        for number, constant in self.aligned.seen.items():
            mark = self.aligned.marks[number]
            value = None if np.ndim(constant) else float(np.real(np.asarray(constant)))
            if value is not None and value not in (0.0, 1.0, -1.0) and np.isfinite(value) and self.visible(mark):
                found.setdefault(value, mark.text)
        for text, value in {**self.primal_constants, **self.aligned.primal.numbers}.items():
            found.setdefault(value, text)
        for text, atom, axis in self.sizes:
            if (n := atom.shape[axis]) > 1 and len(atom.shape) <= 3:
                found.setdefault(float(n), text)
                found.setdefault(float(n) ** 0.5, f"{text}**0.5")
        return [(text, value) for value, text in found.items()]

    @cached_property
    def primal_constants(self) -> dict[str, float]:
        """Numbers that the primal computes from names that are known here too, by their text."""
        known = {"len", *self.place.mark.source.modules, *(atom.text for atom in self.names)}
        return {
            text: value
            for text, value in self.aligned.primal.constants.items()
            if abs(value) not in (0.0, 1.0) and np.isfinite(value) and read_in(parsed(text)) <= known
        }

    @cached_property
    def sizes(self) -> list[tuple[str, Atom, int]]:
        """The axes of the variables, those first that the primal names, in its words."""
        found = []
        for atom in self.names:
            for axis in range(len(atom.shape)):
                usual = f"{atom.text}.shape[{axis}]" if axis else f"len({atom.text})"
                texts = (usual, f"{atom.text}.shape[{axis}]", f"{atom.text}.shape[{axis - len(atom.shape)}]")
                named = [text for text in texts if text in self.primal_constants]
                found.append((not named, (*named, usual)[0], atom, axis))
        return [each[1:] for each in sorted(found, key=lambda each: each[0])]

    @cached_property
    def names(self) -> list[Atom]:
        """The variables."""
        return [atom for atom in self.atoms if re.fullmatch(r"\w+(\[[^\]]+\])*", atom.text)][:FEW_NAMES]

    @cached_property
    def constants(self) -> list[Atom]:
        """The numbers, as atoms."""
        return [Atom(text, (), None, (value,) * len(self.aligned.points)) for text, value in self.numbers]

    def laid_out(self, term: Term, shape: tuple[int, ...]) -> Iterator[Term]:
        """How an array of a shape stands beside one of the place's: as it is, or with axes added behind."""
        if self.fits(shape):
            yield term
        more = len(self.shape) - len(shape)
        if 0 < more < len(self.shape) and self.shape[: len(shape)] == shape:
            index = "..., None" if more == 1 else ", ".join([":"] * len(shape) + ["None"] * more)
            if shape != self.shape[more:] or shape:
                yield joined(f"{{}}[{index}]", term)

    def fits(self, *shapes: tuple[int, ...]) -> bool:
        """Whether a product of arrays can stand beside the value."""
        try:
            return np.broadcast_shapes(*shapes, self.shape) == self.shape
        except ValueError:
            return False

    @cached_property
    def terms(self) -> list[Term]:
        """Arrays that can stand beside the place's value: atoms, and functions of them and of the value itself."""
        found = [Term("1"), *(Term(template.replace("{1}", "{0}")) for template in UNARY[1:])]
        for text in list(self.aligned.primal.numbers)[:4]:
            for atom in self.names:
                found += [joined(f"{text} * {{}}", laid) for laid in self.laid_out(Term("{1}", (atom,)), atom.shape)]
        for (one, other), sign in itertools.product(self.compared, ("==", "<", ">")):
            if isinstance(other, Atom):
                term, shape = Term(f"{{1}} {sign} {{2}}", (one, other)), np.broadcast_shapes(one.shape, other.shape)
            else:
                term, shape = Term(f"{{1}} {sign} {other}", (one,)), one.shape
            found += self.laid_out(term, shape)
        library = [template.replace("%", self.jnp) for template in OF_LIBRARY if self.jnp]
        for atom in [*self.atoms, *self.borrowed]:
            for template in (*UNARY, *(library if atom in self.names and atom.shape else ())):
                found += self.laid_out(Term(template, (atom,)), atom.shape)
        return found

    @cached_property
    def compared(self) -> list[tuple[Atom, Any]]:
        """Pairs that a mask may compare: a variable and a number of the primal, or an expression of equal values."""
        names = [atom for atom in self.names if atom.shape][:6]
        others = [atom for atom in [*self.names, *self.borrowed] if atom.shape or atom in self.borrowed][:12]
        pairs = [(one, other) for one in names for other in others if one is not other and fit(one.shape, other.shape)]
        return [*itertools.product(names, ("1", "(-1)", *list(self.aligned.primal.numbers)[:4])), *pairs]

    @cached_property
    def sums(self) -> list[Term]:
        """Means and sums over an axis of a variable or of a product of two, where they can stand beside the value."""
        found = []
        arrays = [atom for atom in self.atoms if atom.shape and len(tokens(atom.text)) <= 7][:FEW_NAMES]
        for atoms in [*((a,) for a in arrays), *itertools.combinations(arrays, 2)]:
            try:
                shape = np.broadcast_shapes(*(atom.shape for atom in atoms))
            except ValueError:
                continue
            array = Term("{1}" if len(atoms) == 1 else "{1} * {2}", atoms)
            for axis, kept in itertools.product(range(len(shape)), (True, False)):
                summed = (*shape[:axis], *((1,) if kept else ()), *shape[axis + 1 :])
                if not (len(shape) <= 4 and self.fits(summed)) or not (kept or len(summed) in (0, len(self.shape))):
                    continue
                at = axis if axis < len(shape) - 1 or len(shape) == 1 else -1
                rest = f"({at}{', keepdims=True' if kept else ''})"
                found += [joined(f"{{}}.{how}{rest}", array) for how in ("mean", "sum")]
        return found

    # ------------------------------------------------------------------------------------------------ single edits

    def edit(self, term: Term, kind: str = "replaced", what: Term | None = None, cost: float | None = None) -> Edit:
        """Puts an expression in the place of this one; `what`: the missing factor or term, or the right one."""
        text = term.text(self.text)
        said = text if what is None else what.text(self.text)
        return Edit(distance(self.text, text) if cost is None else cost, text, kind, said, term)

    def singles(self, most: float) -> list[Edit]:
        """Edits with at most one term that cost at most so much, the shortest first."""
        drafts = itertools.chain(self.apart, *map(self.drafts_of, self.terms))
        return self.written(draft for draft in drafts if draft.cost is None or draft.cost <= most)

    def written(self, drafts: Iterable[Draft]) -> list[Edit]:
        """Some expressions as edits, the shortest first."""
        return sorted((self.edit(*draft) for draft in drafts), key=lambda edit: (edit.cost, edit.rank))

    @cached_property
    def apart(self) -> list[Draft]:
        """Expressions of the value alone, of numbers, atoms, sums and square matrices."""
        return list(self._apart())

    def _apart(self) -> Iterator[Draft]:
        shape, nd = self.shape, len(self.shape)
        yield Draft(Term("-{0}"), "sign", cost=1)
        if nd >= 2 and shape[-1] == shape[-2]:
            yield Draft(Term("{0}.T" if nd == 2 else "{0}.swapaxes(-1, -2)"), "transposed", cost=1)
        for axis in range(nd):
            for how in ("mean", "sum"):
                kept = Term(f"{{0}}.{how}({axis}, keepdims=True)")
                yield Draft(joined("{} - {}", HERE, kept), "term", kept, cost=5)
            if shape[axis] > 1:
                yield Draft(Term(f"{{0}}[{', '.join([':'] * axis + ['::-1'])}]"), "order", cost=2)
                for by in (1, -1) if self.jnp else ():
                    yield Draft(Term(f"{self.jnp}.roll({{0}}, {by}, {axis})"), "order", cost=4)
                    yield Draft(self.shifted(axis, by), "shifted", cost=5)
        for atom in self.constants:
            number, cost = Term("{1}", (atom,)), 1 + len(tokens(atom.text))
            yield Draft(Term("{1} * {0}", (atom,)), "factor", number, cost)
            yield Draft(Term("{0} / {1}", (atom,)), "factor", joined("1 / {}", number), cost)
        for atom in [*self.atoms, *self.borrowed]:
            if atom.shape == shape:
                yield Draft(Term("{1}", (atom,)))
            if atom.shape == shape[::-1] and nd == 2:
                yield Draft(Term("{1}.T", (atom,)))
        yield from (Draft(term) for term in self.sums if len(term.atoms) == 1)
        for atom in self.names:
            n, m = atom.shape if len(atom.shape) == 2 and nd in (1, 2) else (0, -1)
            for side in (Term("{1}", (atom,)), Term("{1}.T", (atom,))) if n == m else ():
                if n == shape[0]:
                    yield Draft(joined("{} @ {}", side, HERE), "factor", side, cost=2)
                if n == shape[-1]:
                    yield Draft(joined("{} @ {}", HERE, side), "factor", side, cost=2)

    def drafts_of(self, term: Term) -> Iterator[Draft]:
        """An expression multiplied to the value, divided by, added, taken away, or in its place."""
        text = term.text(self.text)
        cost = 1 + len(tokens(text))
        yield Draft(joined("{} * {}", HERE, term), "factor", term, cost)
        if text == self.text:
            return
        yield Draft(joined("{} / {}", HERE, term), "factor", joined("1 / {}", term), cost)
        for sign in "+-":
            if f"{'-' if sign == '+' else '+'} {bracketed(text)}" not in self.text:  # else that part is left out
                yield Draft(joined(f"{{}} {sign} {{}}", HERE, term), "term", term, cost)
        if term.template != "{1}":  # an atom by itself has been there
            yield Draft(term)

    def shifted(self, axis: int, by: int) -> Term:
        """The entries one step further along an axis, or one back, and a zero at the end that is left."""
        widths = tuple(((1, 0) if by > 0 else (0, 1)) if k == axis else (0, 0) for k in range(len(self.shape)))
        index = ", ".join([":"] * axis + [":-1" if by > 0 else "1:"])
        return Term(f"{self.jnp}.pad({{0}}, {widths[0] if len(widths) == 1 else widths})[{index}]")

    # ----------------------------------------------------------------------------------------------------- values

    def value(self, atom: Atom, point: int) -> Any:
        """An atom's value at a point, as the place sees it the first time that it runs."""
        number = self.aligned.number(atom, self.place.operations[0])
        return atom.fixed[point] if number is None else self.aligned.values[point].get(number)

    def depends(self, atom: Atom) -> bool:
        """Whether an atom's value depends on the place."""
        return any(self.aligned.number(atom, each) in self.inside for each in self.place.operations)


def fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether an array of the second shape can stand beside one of the first."""
    try:
        return np.broadcast_shapes(one, other) == one
    except ValueError:
        return False
