"""The grammar of edits: what may stand in the place of an expression, in the author's own names.

An edit's cost is its description length: how many tokens of the source change. Terms are the values in scope and
simple functions of them. Where the gradients are linear in a value, products of terms are compared all at once.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.alignment import Aligned, Atom, Effect, MarkedPlace, fingerprint

MISSING, OTHER, SIGN = 0, 1, 2
FEW_NAMES, MOST_TERMS, MOST_BORROWED = 16, 400, 24
EXACT = 1e-6  # relative to the largest entry of each gradient


# ------------------------------------------------------------------------------------------------------------ text


@lru_cache(maxsize=100_000)
def tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text, brackets and commas aside."""
    return tuple(re.findall(r"\w+(?:\.\w+)*(?=\()|\w+|\*\*|[-+*/@<>=!:]+", text))


def distance(before: str, after: str) -> int:
    """How many tokens are taken out and put in."""
    a, b = tokens(before), tokens(after)
    same = sum(block.size for block in difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    return len(a) + len(b) - 2 * same


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
        return ast.dump(ast.parse(one, mode="eval")) == ast.dump(ast.parse(other, mode="eval"))
    except SyntaxError:
        return False


# ----------------------------------------------------------------------------------------------------------- terms


@dataclass(frozen=True)
class EditTerm:
    """An expression of a place's value and of atoms: `function(value there, *values of the atoms)`."""

    text: str
    atoms: tuple[Atom, ...]
    function: Callable[..., Any]

    @property
    def cost(self) -> int:
        """The number of its tokens."""
        return len(tokens(self.text))


@dataclass(frozen=True)
class Edit:
    """An expression in the place of another: `function(value there, *values of the atoms)`.

    `kind` says what was wrong, `what` what is missing or belongs there.
    """

    cost: int
    rank: int
    text: str
    atoms: tuple[Atom, ...]
    function: Callable[..., Any]
    kind: str = "replaced"
    what: str = ""


def unary(jnp_name: str) -> list[tuple[str, Callable]]:
    """The functions of one array: template, function."""
    found: list[tuple[str, Callable]] = [
        ("{u}", lambda u: u),
        ("(1 - {u})", lambda u: 1.0 - u),
        ("{u}**2", lambda u: u**2),
        ("(1 - {u}**2)", lambda u: 1.0 - u**2),
        ("{u} * (1 - {u})", lambda u: u * (1.0 - u)),
        ("({u} > 0)", lambda u: 1.0 * (u > 0)),
        ("({u} < 0)", lambda u: 1.0 * (u < 0)),
        ("(1 + {u})", lambda u: 1.0 + u),
    ]
    if jnp_name:
        found += [
            (f"{jnp_name}.{name}({{u}})", function)
            for name, function in {
                "sign": np.sign, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "tanh": np.tanh, "cos": np.cos,
                "sin": np.sin, "abs": np.abs,
            }.items()
        ]  # fmt: skip
        found.append((f"{jnp_name}.exp(-{{u}}**2 / 2) / {jnp_name}.sqrt(2 * {jnp_name}.pi)",
                      lambda u: np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)))  # fmt: skip
    return found


class Scope:
    """What may be used at a place: the variables and the expressions before it, sizes and numbers."""

    def __init__(self, aligned: Aligned, place: MarkedPlace):
        self.aligned, self.place = aligned, place
        self.text = place.mark.text
        self.shape = tuple(place.operations[0].eqn.outvars[0].aval.shape)
        self.inside = set(aligned.dependents([each.outputs[0] for each in place.operations]))
        globals_of = place.mark.source.modules
        self.jnp = next((name for name in ("jnp", "np") if globals_of.get(name) is jnp), "")

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
                if (
                    not self.place.mark.defines
                    or place.number in self.inside
                    or aligned.bodies[place.operations[0].number]
                ):
                    continue
                numbers = [place.number]
            value = np.asarray(aligned.values[0].get(numbers[0] or 0, 0.0))
            if value.dtype.kind not in kinds or not value.size:
                continue
            aval = place.operations[0].eqn.outvars[0].aval
            key = (aval.shape, value.shape, value.tobytes(), numbers[0] in self.inside)
            found.setdefault(key, Atom(place.mark.text + place.path, tuple(aval.shape), place))
        for number, constant in aligned.constants.items():
            mark = aligned.marks[number]
            if np.ndim(constant) and self.visible(mark) and np.asarray(constant).dtype.kind in kinds:
                value = np.asarray(constant)
                found.setdefault(
                    (value.shape, value.tobytes()), Atom(mark.text, value.shape, None, (value,) * len(aligned.points))
                )
        return list(found.values())

    @cached_property
    def borrowed(self) -> list[Atom]:
        """What the primal computes and the place has no name for, in the names that the place has."""
        known = {atom.text for atom in self.atoms}
        by_value = {}
        for atom in self.atoms:
            if atom.place is not None and re.fullmatch(r"\w+(\[[^\]]+\])*", atom.text):
                values = [self.value(atom, point) for point in range(len(self.aligned.points))]
                by_value.setdefault(fingerprint(values), atom.text)
        found: dict[tuple, Atom] = {}
        for expression in self.aligned.primal:
            text = expression.text_in(by_value, self.aligned.primal_names)
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
        for number, constant in self.aligned.constants.items():
            mark = self.aligned.marks[number]
            value = None if np.ndim(constant) else float(np.real(np.asarray(constant)))
            if value is not None and value not in (0.0, 1.0, -1.0) and np.isfinite(value) and self.visible(mark):
                found.setdefault(value, mark.text)
        for text, value in self.aligned.primal_numbers.items():
            found.setdefault(value, text)
        for atom in self.names:
            for axis, n in enumerate(atom.shape):
                if n > 1 and len(atom.shape) <= 3:
                    text = f"len({atom.text})" if axis == 0 else f"{atom.text}.shape[{axis}]"
                    found.setdefault(float(n), text)
                    found.setdefault(float(n) ** 0.5, f"{text}**0.5")
        return [(text, value) for value, text in found.items()]

    @cached_property
    def names(self) -> list[Atom]:
        """The variables."""
        return [atom for atom in self.atoms if re.fullmatch(r"\w+(\[[^\]]+\])*", atom.text)][:FEW_NAMES]

    def laid_out(self, text: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Callable]]:
        """How an array of a shape stands beside one of the place's: as it is, or with axes added behind."""
        try:
            if np.broadcast_shapes(shape, self.shape) == self.shape:
                yield text, lambda u: u
        except ValueError:
            pass
        more = len(self.shape) - len(shape)
        if 0 < more < len(self.shape) and self.shape[: len(shape)] == shape:
            index = "..., None" if more == 1 else ", ".join([":"] * len(shape) + ["None"] * more)
            if shape != self.shape[more:] or shape:
                yield f"{text}[{index}]", lambda u: u.reshape(u.shape + (1,) * more)

    @cached_property
    def terms(self) -> list[EditTerm]:
        """Arrays that can stand beside the place's value: atoms, and functions of them and of the value itself."""
        found = []
        for template, function in unary("")[1:]:
            text = template.format(u=bracketed(self.text))
            found.append(EditTerm(text, (), lambda v, f=function: f(v)))
        for text, number in list(self.aligned.primal_numbers.items())[:4]:
            for atom in self.names:
                for laid, layout in self.laid_out(bracketed(atom.text), atom.shape):
                    found.append(EditTerm(f"{text} * {laid}", (atom,), lambda v, u, c=number, g=layout: c * g(u)))
        for (one, other), sign in itertools.product(self.compared, ("==", "<", ">")):
            compare = {"==": np.equal, "<": np.less, ">": np.greater}[sign]
            text = f"({bracketed(one.text)} {sign} {bracketed(other.text) if isinstance(other, Atom) else other[0]})"
            shape = np.broadcast_shapes(one.shape, other.shape if isinstance(other, Atom) else ())
            for laid, layout in self.laid_out(text, shape):
                if isinstance(other, Atom):
                    found.append(EditTerm(laid, (one, other), lambda v, u, w, f=compare, g=layout: g(1.0 * f(u, w))))
                else:
                    found.append(EditTerm(laid, (one,), lambda v, u, c=other[1], f=compare, g=layout: g(1.0 * f(u, c))))
        for atom in [*self.atoms, *self.borrowed]:
            functions = unary(self.jnp) if atom in self.names and atom.shape else unary("")
            for template, function in functions:
                text = atom.text if template == "{u}" else template.format(u=bracketed(atom.text))
                for laid, layout in self.laid_out(bracketed(text), atom.shape):
                    found.append(
                        EditTerm(text if laid == bracketed(text) else laid, (atom,),
                             lambda v, u, f=function, g=layout: g(f(np.asarray(u, float))))
                    )  # fmt: skip
        return found

    @cached_property
    def compared(self) -> list[tuple[Atom, Any]]:
        """Pairs that a mask may compare: a variable with a number of the primal, or with what has its values."""
        names = [atom for atom in self.names if atom.shape][:6]
        values = [("1", 1.0), ("-1", -1.0), *list(self.aligned.primal_numbers.items())[:4]]
        others = [atom for atom in [*self.names, *self.borrowed] if atom.shape or atom in self.borrowed][:12]
        pairs = [(one, other) for one in names for other in others if one is not other and fit(one.shape, other.shape)]
        return [*itertools.product(names, values), *pairs]

    @cached_property
    def sums(self) -> list[EditTerm]:
        """Means and sums over an axis of a variable or of a product of two, where they can stand beside the value."""
        found = []
        nd = len(self.shape)
        arrays = [atom for atom in self.atoms if atom.shape and len(tokens(atom.text)) <= 7][:FEW_NAMES]
        for one, other in [*((a, None) for a in arrays), *itertools.combinations(arrays, 2)]:
            try:
                shape = one.shape if other is None else np.broadcast_shapes(one.shape, other.shape)
            except ValueError:
                continue
            text = one.text if other is None else f"{bracketed(one.text)} * {bracketed(other.text)}"
            atoms = (one,) if other is None else (one, other)
            for axis, kept in itertools.product(range(len(shape)), (True, False)):
                summed = (*shape[:axis], *((1,) if kept else ()), *shape[axis + 1 :])
                if not (len(shape) <= 4 and self.joined(summed)) or (not kept and len(summed) not in (0, nd)):
                    continue
                at = axis if axis < len(shape) - 1 or len(shape) == 1 else -1
                for how in ("mean", "sum"):
                    found.append(
                        EditTerm(
                            f"{bracketed(text)}.{how}({at}{', keepdims=True' if kept else ''})",
                            atoms,
                            lambda v, a, b=1.0, how=how, axis=axis, kept=kept: getattr(a * b, how)(axis, keepdims=kept),
                        )
                    )
        return found

    def joined(self, *shapes: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of a product, where it can stand beside the value."""
        try:
            joined = np.broadcast_shapes(*shapes)
            return joined if np.broadcast_shapes(joined, self.shape) == self.shape else None
        except ValueError:
            return None

    # ------------------------------------------------------------------------------------------------ single edits

    def singles(self) -> Iterator[Edit]:
        """Edits with at most one term, the shortest first."""
        return iter(sorted(self._singles(), key=lambda edit: (edit.cost, edit.rank)))

    def _singles(self) -> Iterator[Edit]:
        v, shape, nd = bracketed(self.text), self.shape, len(self.shape)
        yield Edit(1, SIGN, f"-{v}", (), lambda v: -v, "sign")
        if nd >= 2 and shape[-1] == shape[-2]:
            yield Edit(1, OTHER, f"{v}.T" if nd == 2 else f"{v}.swapaxes(-1, -2)", (), lambda v: np.swapaxes(v, -1, -2),
                       "transposed")  # fmt: skip
        for axis in range(nd):
            for how in ("mean", "sum"):
                kept = f"{v}.{how}({axis}, keepdims=True)"
                yield Edit(5, OTHER, f"{v} - {kept}", (),
                           lambda v, how=how, axis=axis: v - getattr(v, how)(axis, keepdims=True),
                           "term", kept)  # fmt: skip
            if shape[axis] > 1:
                index = ", ".join([":"] * axis + ["::-1"])
                yield Edit(2, OTHER, f"{v}[{index}]", (), lambda v, axis=axis: np.flip(v, axis), "order")
                if self.jnp:
                    for by in (1, -1):
                        yield Edit(4, OTHER, f"{self.jnp}.roll({self.text}, {by}, {axis})", (),
                                   lambda v, by=by, axis=axis: np.roll(v, by, axis), "order")  # fmt: skip
        for text, number in self.numbers:
            cost = 1 + len(tokens(text))
            yield Edit(cost, MISSING, f"{text} * {v}", (), lambda v, c=number: c * v, "factor", text)
            yield Edit(
                cost, MISSING, f"{v} / {bracketed(text)}", (), lambda v, c=number: v / c, "factor", f"1 / {text}"
            )
        for atom in self.atoms:
            cost = distance(self.text, atom.text)
            if atom.shape == shape:
                yield Edit(cost, OTHER, atom.text, (atom,), lambda v, u: u, "replaced", atom.text)
            if atom.shape == shape[::-1] and nd == 2:
                text = transposed(atom.text)
                yield Edit(distance(self.text, text), OTHER, text, (atom,), lambda v, u: u.T, "replaced", text)
        for term in self.terms:
            cost, t = 1 + term.cost, bracketed(term.text)
            yield Edit(
                cost,
                MISSING,
                f"{v} * {t}",
                term.atoms,
                lambda v, *u, f=term.function: v * f(v, *u),
                "factor",
                term.text,
            )
            if term.text == self.text:
                continue
            yield Edit(cost, MISSING, f"{v} / {t}", term.atoms, lambda v, *u, f=term.function: v / f(v, *u), "factor",
                       f"1 / {t}")  # fmt: skip
            for sign, c in (("+", 1.0), ("-", -1.0)):
                if f"{'-+'[c < 0]} {t}" not in self.text:  # else that part is left out instead
                    yield Edit(cost, MISSING, f"{v} {sign} {t}", term.atoms,
                               lambda v, *u, f=term.function, c=c: v + c * f(v, *u), "term", term.text)  # fmt: skip
            if term.cost > 1 and self.text != term.text:
                yield Edit(distance(self.text, term.text), OTHER, term.text, term.atoms, term.function,
                           "replaced", term.text)  # fmt: skip
        for term in self.sums:
            if len(term.atoms) == 1:
                yield Edit(distance(self.text, term.text), OTHER, term.text, term.atoms, term.function,
                           "replaced", term.text)  # fmt: skip
        for atom in self.names:
            if len(atom.shape) == 2 and nd in (1, 2):
                yield from self.beside(atom, v)

    def beside(self, atom: Atom, v: str) -> Iterator[Edit]:
        """A matrix on the left or on the right."""
        for text, transposed in ((atom.text, False), (f"{atom.text}.T", True)):
            rows, columns = atom.shape[::-1] if transposed else atom.shape

            def matrix(u, transposed=transposed):
                return u.T if transposed else u

            if rows == columns == self.shape[0]:
                yield Edit(2, MISSING, f"{text} @ {v}", (atom,), lambda v, u, m=matrix: m(u) @ v, "factor", text)
            if rows == columns == self.shape[-1]:
                yield Edit(2, MISSING, f"{v} @ {text}", (atom,), lambda v, u, m=matrix: v @ m(u), "factor", text)

    # --------------------------------------------------------------------------------------- many edits at once

    def exact(self, effect: Effect, A: np.ndarray, b: np.ndarray, late: Callable[[], bool]) -> Iterator[Edit]:
        """The edits that make the outputs right, those with two terms included, until it is late."""
        used = [*self.atoms, *self.borrowed]
        usable = [atom for atom in used if not self.depends(atom)]
        index = {id(atom): k for k, atom in enumerate(usable)}
        calls = effect.calls(usable)
        size = max(float(np.linalg.norm(b)), 1.0)

        def vector(function: Callable, atoms: Sequence[Atom]) -> np.ndarray | None:
            parts = []
            for v, *others in calls:
                try:
                    part = np.asarray(function(v, *(others[index[id(atom)]] for atom in atoms)), float)
                    parts.append(np.broadcast_to(part, v.shape).ravel())
                except (ValueError, TypeError, np.linalg.LinAlgError):
                    return None
            return np.concatenate(parts)

        v = np.concatenate([call[0].ravel() for call in calls])
        Av = A @ v

        def fits(images: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return np.flatnonzero(np.max(np.abs(images - wanted[:, None]), 0, initial=0.0) <= EXACT * size)

        for edit in self.singles():
            if all(id(atom) in index for atom in edit.atoms):
                got = vector(edit.function, edit.atoms)
                if got is None or not np.any(got):  # what is zero by chance mends many things
                    continue
                if np.max(np.abs(A @ (got - v) - b), initial=0.0) <= EXACT * size:
                    yield edit
        terms, rows = [], []
        for term in [*self.terms, *self.sums][:MOST_TERMS]:
            if all(id(atom) in index for atom in term.atoms):
                got = vector(term.function, term.atoms)
                if got is not None and np.any(got) and np.all(np.isfinite(got)):
                    terms.append(term)
                    rows.append(got)
        yield from self.products(terms, np.array(rows).reshape(len(rows), v.size), A, b, Av, fits, late)
        yield from self.matrices(usable, vector, A, b, Av, size)

    def value(self, atom: Atom, point: int) -> Any:
        """An atom's value at a point, as the place sees it the first time that it runs."""
        number = self.aligned.number(atom, self.place.operations[0])
        return atom.fixed[point] if number is None else self.aligned.values[point].get(number)

    def depends(self, atom: Atom) -> bool:
        """Whether an atom's value depends on the place."""
        return any(self.aligned.number(atom, each) in self.inside for each in self.place.operations)

    def products(self, terms: list[EditTerm], rows: np.ndarray, A, b, Av, fits, late) -> Iterator[Edit]:
        """v ± t u, v ± t / u, t u, t / u, t ± u for two terms; v or a part of it with two terms more."""
        images = A @ rows.T  # of each term alone
        short = [k for k, term in enumerate(terms) if term.cost <= 9]
        every = [(image, term.text, (term,), "") for image, term in zip(images.T, terms, strict=True)]
        for i in short:
            if late():
                return
            t = bracketed(terms[i].text)
            for op, product in (("*", rows[i] * rows), ("/", rows[i] / np.where(rows == 0, np.nan, rows))):
                image = A @ np.nan_to_num(product, nan=1e300, posinf=1e300, neginf=-1e300).T
                chosen = [j for j in range(len(terms)) if op == "/" or j >= i or j not in short]
                texts = {j: f"{t} {op} {bracketed(terms[j].text)}" for j in chosen}
                if op == "*":
                    every += [(image[:, j], texts[j], (terms[i], terms[j]), op) for j in chosen]
                for template, wanted, kind in (
                    ("{v} + {p}", b, "term"), ("{v} - {p}", -b, "term"), ("{p}", b + Av, "replaced"),
                    ("-{p}", -b - Av, "replaced"),
                ):  # fmt: skip
                    for j in fits(image, wanted):
                        if j in texts:
                            yield self.pair(template, texts[j], kind, terms[i], terms[j], op)
            for op, image in (("+", images[:, [i]] + images), ("-", images[:, [i]] - images)):
                for j in fits(image, b + Av):
                    yield self.pair("{p}", f"{t} {op} {bracketed(terms[j].text)}", "replaced", terms[i], terms[j], op)
        bases = [(b, self.text, ())]
        bases += [(b + Av - image, text, some) for image, text, some, op in every[: len(terms)] if text in self.text]
        for wanted, text, some in bases[:12]:
            yield from self.two_more(every, wanted, text, some)

    def two_more(self, every: list, wanted: np.ndarray, base: str, some: tuple[EditTerm, ...]) -> Iterator[Edit]:
        """A base with two products added or taken away, found by a random projection of what each does."""
        if not every or not wanted.size:
            return
        w = np.random.default_rng(0).standard_normal(wanted.size)
        images = np.stack([image for image, *_ in every])
        size = float(np.max(np.abs(wanted), initial=0.0)) + 1e-12
        usable = np.flatnonzero(np.all(np.abs(images) < 1e6 * size, 1) & (np.max(np.abs(images), 1) > 1e-9 * size))
        signed = np.concatenate([images[usable], -images[usable]])
        at = signed @ w
        order = np.argsort(at)
        ordered, target = at[order], float(wanted @ w)
        tolerance = 1e-9 * (np.abs(w) @ np.abs(wanted) + abs(target))
        low, high = (np.searchsorted(ordered, target - at + d) for d in (-tolerance, tolerance))
        count, best = 0, []
        for i in np.flatnonzero(high > low):
            for k in order[low[i] : high[i]]:
                if k > i and np.max(np.abs(signed[i] + signed[k] - wanted)) <= EXACT * size:
                    one, other = every[usable[i % len(usable)]], every[usable[k % len(usable)]]
                    signs = (1 if i < len(usable) else -1, 1 if k < len(usable) else -1)
                    best.append((len(one[1]) + len(other[1]), count, one, other, signs))
                    count += 1
        for _, _, one, other, signs in sorted(best, key=lambda each: each[:2])[:6]:
            yield self.sum_of(base, some, [(one, signs[0]), (other, signs[1])])

    def sum_of(self, base: str, some: tuple[EditTerm, ...], parts: list) -> Edit:
        """The edit of a base with signed products added."""
        text, functions, atoms = (
            bracketed(base) if base == self.text else base,
            [],
            [*(a for t in some for a in t.atoms)],
        )
        first = len(atoms)
        for (_, words, terms, _), sign in parts:
            text += f" {'+' if sign > 0 else '-'} {words if len(terms) > 1 else bracketed(words)}"
            start = len(atoms)
            spans = []
            for term in terms:
                spans.append((term, start, start + len(term.atoms)))
                start += len(term.atoms)
                atoms += term.atoms
            functions.append((sign, spans))

        def function(v, *u):
            total = some[0].function(v, *u[:first]) if some else v
            for sign, spans in functions:
                product = sign
                for term, i, j in spans:
                    product = product * term.function(v, *u[i:j])
                total = total + product
            return total

        missing = " and ".join(words for (_, words, _, _), _ in parts)
        return Edit(distance(self.text, text), MISSING if base == self.text else OTHER, text, tuple(atoms), function,
                    "term" if base == self.text else "replaced", missing if base == self.text else text)  # fmt: skip

    def pair(self, template: str, product: str, kind: str, one: EditTerm, other: EditTerm, op: str) -> Edit:
        """An edit with two terms."""
        text = template.format(v=bracketed(self.text), p=product if template != "-{p}" else f"({product})")
        n = len(one.atoms)
        join = {"*": np.multiply, "/": np.divide, "+": np.add, "-": np.subtract}[op]
        sign = -1 if "-" in template else 1

        def function(v, *u):
            p = join(one.function(v, *u[:n]), other.function(v, *u[n:]))
            return v + sign * p if template.startswith("{v}") else sign * p

        return Edit(distance(self.text, text), MISSING if kind == "term" else OTHER, text, (*one.atoms, *other.atoms),
                    function, kind, product)  # fmt: skip

    def matrices(self, usable: list[Atom], vector: Callable, A, b, Av, size: float) -> Iterator[Edit]:
        """Products of two matrices, and outer products of two vectors, alone or added."""
        small = [atom for atom in usable if 1 <= len(atom.shape) <= 2 and len(tokens(atom.text)) <= 7]
        for one, other in itertools.product(small, small):
            for x, y in itertools.product(sides(one), sides(other)):
                text, function, shape = multiplied(x, y)
                if shape == self.shape and not (x[1] and len(one.shape) == 1) and not (y[1] and len(other.shape) == 1):
                    yield from self.added(text, function, (one, other), vector, A, b, Av, size)
            if len(one.shape) == len(other.shape) == 1 and (*one.shape, *other.shape) == self.shape and self.jnp:
                text = f"{self.jnp}.outer({one.text}, {other.text})"
                yield from self.added(text, np.outer, (one, other), vector, A, b, Av, size)

    def added(self, text, function, atoms, vector, A, b, Av, size) -> Iterator[Edit]:
        """A matrix in the place of the value, added to it or taken from it."""
        got = vector(lambda v, *u: function(*u), atoms)
        if got is None:
            return
        image, v = A @ got, bracketed(self.text)
        for new, wanted, kind, f in (
            (text, b + Av, "replaced", lambda v, p: p),
            (f"{v} + {text}", b, "term", lambda v, p: v + p),
            (f"{v} - {text}", -b, "term", lambda v, p: v - p),
        ):
            if np.max(np.abs(image - wanted), initial=0.0) <= EXACT * size:
                yield Edit(distance(self.text, new), MISSING if kind == "term" else OTHER, new, atoms,
                           lambda v, *u, f=f: f(v, function(*u)), kind, text)  # fmt: skip


def sides(atom: Atom) -> list[tuple[str, bool, tuple[int, ...]]]:
    """A matrix as it is and transposed: text, whether it is transposed, shape."""
    found = [(bracketed(atom.text), False, atom.shape)]
    return [*found, (transposed(atom.text), True, atom.shape[::-1])] if len(atom.shape) == 2 else found


def transposed(text: str) -> str:
    """The text of a matrix transposed."""
    return text.removesuffix(".T") if text.endswith(".T") else f"{bracketed(text)}.T"


def multiplied(x: tuple, y: tuple) -> tuple[str, Callable, tuple[int, ...] | None]:
    """x @ y: text, function, shape; None where the shapes don't fit."""
    (a, ta, sa), (c, tc, sc) = x, y

    def function(u, w):
        return (u.T if ta else u) @ (w.T if tc else w)

    if sa[-1] != sc[0]:
        return "", function, None
    return f"{a} @ {c}", function, (*sa[:-1], *sc[1:])


def fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether an array of the second shape can stand beside one of the first."""
    try:
        return np.broadcast_shapes(one, other) == one
    except ValueError:
        return False


# -------------------------------------------------------------------------------------------------- edits of the text


def changes(node: ast.expr, text: str) -> Iterator[str]:
    """Changes of one expression that its value does not show: of a number, an option, an argument, a function."""
    match node:
        case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
            for other in dict.fromkeys((value + 1, value - 1, -value, 2 * value, value / 2)):
                yield repr(other)
            if isinstance(value, int):
                yield from ("2", "None") if value not in (2,) else ("None",)
        case ast.Constant(bool() as value):
            yield repr(not value)
        case ast.IfExp(_, body, orelse):
            yield ast.unparse(body)
            yield ast.unparse(orelse)
        case ast.Attribute(value, attribute):
            renamed = {"T": "", "set": ".add", "mean": ".sum", "sum": ".mean", "inv": "", "max": ".min", "min": ".max",
                       "add": ".set", "sin": ".cos", "cos": ".sin", "floor": ".ceil"}  # fmt: skip
            if renamed.get(attribute):
                yield ast.unparse(value) + renamed[attribute]
        case ast.Call(function, arguments, keywords):
            yield from (ast.unparse(each) for each in arguments if not isinstance(each, ast.Starred))
            for i, j in itertools.combinations(range(len(arguments)), 2):
                swapped = [*arguments]
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield ast.unparse(ast.Call(function, swapped, keywords))
            for dropped in keywords:
                yield ast.unparse(ast.Call(function, arguments, [k for k in keywords if k is not dropped]))
            for dropped in arguments[1:]:
                yield ast.unparse(ast.Call(function, [a for a in arguments if a is not dropped], keywords))
        case ast.Compare(left, [operator], [right]):
            for other in {ast.Gt: ">= <", ast.GtE: "> <=", ast.Lt: "<= >", ast.LtE: "< >="}.get(
                type(operator), ""
            ).split():
                yield f"{ast.unparse(left)} {other} {ast.unparse(right)}"
        case ast.Tuple(parts) | ast.List(parts) if 1 < len(parts) <= 6:
            for i, j in itertools.combinations(range(len(parts)), 2):
                swapped = [*parts]
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield ast.unparse(type(node)(swapped, ast.Load()))
        case ast.BinOp(left, operator, right):
            other = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*"}.get(type(operator))
            if other:
                yield f"{bracketed(ast.unparse(left))} {other} {bracketed(ast.unparse(right))}"
