"""The symbols of a layer's values: those of its input, output and parameters, and of the variables of its source."""

from __future__ import annotations

import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.notation import GREEK
from jaxnet.explaining.recording import OWN, Array, RecordedOperation, Recording, alike
from jaxnet.explaining.records import Site, param_name, parameter


class LineSymbols:
    """The symbols of a recording's values at a site.

    symbols: by the number of a value. fixed: those that are the same at every position. tables: the parameters whose
    rows are taken, or added one by one. error: the number of ∂C/∂out.
    """

    def __init__(self, site: Site, recording: Recording):
        self.site, self.recording = site, recording
        self.fixed: set[ex.Expression] = set()
        self.tables: set[str] = set()
        self.error = -1
        self.symbols: dict[int, ex.Expression] = {}
        self.differentiated: set[ex.Name] = set()
        self.given()
        self.names = {recording.names[ref]: each for ref, each in self.symbols.items()
                      if ref in recording.names and isinstance(each, ex.Name)}  # fmt: skip
        self.named()

    def given(self) -> None:
        """Symbols of the layer's input, output and parameters."""
        site, recording = self.site, self.recording
        taken = {each for ref in recording.operations for each in recording.operands(ref)}
        self.symbols[recording.out] = site.gives
        if recording.dx >= 0:
            self.symbols[recording.dx] = site.back[0]
        by_rows = {recording.root(each.ref) for made in recording.operations.values() if made.name in ("getitem", "add")
                   for each in made.args[: 1 if made.name == "getitem" else 2] if isinstance(each, Array)}  # fmt: skip
        for ref, (kind, path) in recording.given.items():
            if kind == "param" and ref not in taken:
                continue
            if kind == "param":
                symbol = param_name(site.notation, path, site.number)
                self.fixed.add(symbol)
                if ref in by_rows:
                    self.tables.add(parameter(path))
                laid = self.turned(parameter(path), recording.values[ref])
                self.symbols[ref] = ex.Transposed(symbol) if laid else symbol
            else:
                self.symbols[ref] = site.takes[0] if kind == "x" else site.error
                self.error = ref

    def named(self) -> None:
        """Symbols of the values that the author named; none where the name then goes to a value made of it."""
        recording = self.recording
        params = {parameter(path) for kind, path in recording.given.values() if kind == "param"}
        for ref, made in recording.operations.items():
            name = recording.names.get(ref, "")
            if not made.forward and name.removeprefix("d").removeprefix("_") in params:
                continue  # a gradient: it has a line of its own
            root = recording.root(ref)
            if not name or root in self.symbols or root in recording.moved or self.rewritten(made):
                continue
            slope = None if made.forward or name.startswith("delta") else self.slope(ref, name)
            self.symbols[ref] = symbol = slope or self.symbol(name, made.forward)
            if recording.stacked.get(ref, 0) < self.site.record.positions:  # statistics of a batch
                self.fixed.add(symbol)
            if isinstance(symbol, ex.Name) and ref in recording.slopes:
                self.differentiated.add(symbol)

    def slope(self, ref: int, name: str) -> ex.Expression | None:
        """∂C/∂ of the forward value by which a backward value is the derivative, if it is one."""
        recording, found = self.recording, []
        for of, slope in recording.slopes.items():
            symbol = self.symbols.get(recording.root(of))
            value = recording.values.get(ref)
            if isinstance(symbol, ex.Name) and value is not None and value.size == slope.size:
                other = recording.others[ref].reshape(slope.shape)
                if alike(value.reshape(slope.shape), slope) and alike(other, recording.other_slopes[of]):
                    found.append((name.removeprefix("d_").removeprefix("d") == self.recording.names.get(of), symbol))
        return self.site.notation.partial(max(found, key=lambda each: each[0])[1]) if found else None

    def rewritten(self, operation: RecordedOperation) -> bool:
        """Whether the name says nothing of this value: the author gives it to another value that is made of this one,
        or it is a helper's, which is called several times."""
        recording, ref = self.recording, operation.ref
        name, deep = recording.names[ref], recording.depths[ref] > OWN
        if deep and name in NOTHING:
            return True
        out = recording.names.get(recording.out) or self.site.gives.base
        for other, made in recording.operations.items():
            if other == ref or made.forward != operation.forward or other not in recording.names | {recording.out: ""}:
                continue
            if deep and other not in recording.same and recording.lines.get(other) == recording.lines[ref]:
                return True
            if name == (out if other == recording.out else recording.names[other]) and ref in recording.made_of(other):
                return True
        return False

    def symbol(self, name: str, forward: bool) -> ex.Expression:
        """The symbol of a variable: dW is ∇W, d_g and dg are ∂C/∂g of a g of the forward pass."""
        notation = self.site.notation
        if not forward:
            for start in ("d_", "d", "delta_"):
                of = self.names.get(name.removeprefix(start)) if name.startswith(start) else None
                if of is not None and of not in self.differentiated and (start != "delta_" or notation.name == "ng"):
                    made = notation.partial(of)
                    return notation.partial(self.site.name(*self.spelled(name.removeprefix(start)))) if made in (
                        self.site.error, *self.symbols.values()) else made  # fmt: skip
        made = self.site.name(*self.spelled(name))
        while made in self.symbols.values() or made in self.fixed:  # another value of the same name
            made = ex.Name(f"{made.base}′", made.above, made.below, f"{made.key}_")
        if forward:
            self.names[name] = made
        return made

    def spelled(self, name: str) -> tuple[str, str]:
        """A variable's symbol, x̂ of x_hat, and its key."""
        base, *rest = name.strip("_").split("_")
        letter = LETTERS.get(base, base)
        if rest and rest[0] in MARKS:
            letter, rest = letter + MARKS[rest[0]], rest[1:]
        return "_".join([letter, *rest]), name

    def turned(self, name: str, value: np.ndarray) -> bool:
        """Whether a parameter or its gradient is shown as (in, out); a table's rows stay rows."""
        return self.site.notation.rows and value.ndim == 2 and name not in self.tables


NOTHING = {"out", "result"}
"""Names that say nothing of a value inside a helper."""

MARKS = {"hat": "\u0302", "prime": "′", "bar": "\u0304", "tilde": "\u0303"}
LETTERS = GREEK | {
    "mu": "μ", "sigma": "σ", "lambda": "λ", "theta": "θ", "rho": "ρ", "tau": "τ", "phi": "φ", "omega": "ω", "eta": "η",
}  # fmt: skip
"""Greek letters and marks by the words of variables."""
