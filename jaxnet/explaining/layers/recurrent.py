"""Recurrences: one step's equations, and the error carried from each step to the one before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jaxnet.explaining.expressions import BigSum, Call, Expression, Listed, Minus, Name, Number, Product, Sum
from jaxnet.explaining.layers.simple import largest_first, sum_of
from jaxnet.explaining.layers.steps import Equations, Site, Step, at
from jaxnet.explaining.numbers import one

ONE = Number("1")


def sigmoid(v: Any, z: Any) -> Any:
    """σ(z)."""
    return 1 / (1 + v.np.exp(-z))


def times(*factors: Expression) -> Product:
    """Entry by entry."""
    return Product(factors, "⊙")


def slope(of: Expression) -> Sum:
    """1 − g², of g = tanh."""
    return Sum((ONE, Minus(times(of, of))))


def forward_in_time(v: Any, step: Callable[..., dict[str, Any]], begin: dict[str, Any],
                    reverse: bool, keys: tuple[str, ...]) -> dict[str, Any]:  # fmt: skip
    """A step run over the sequence: every quantity at every time.

    step: (what W, U and b are, x_t, the carry) -> quantities, those in `begin` carried on. With probes a scan.
    """
    length = len(v.x)
    if v.np is np:
        carry, rows = begin, [{}] * length
        for t in range(length)[::-1] if reverse else range(length):
            made = step(v, v.x[t], carry, dict.fromkeys(keys, 0.0))
            carry, rows[t] = {name: made[name] for name in begin}, made
        return {key: np.stack([row[key] for row in rows]) for key in keys}

    def one(carry, over):
        made = step(v, over["x"], carry, {key: over[key] for key in keys})
        return {name: made[name] for name in begin}, {key: made[key] for key in keys}

    return jax.lax.scan(one, begin, {"x": v.x} | {key: v.probes[key] for key in keys}, reverse=reverse)[1]


def before(values: Any, reverse: bool) -> np.ndarray:
    """Each time's value of the step before it: 0 at the first."""
    zero = np.zeros_like(values[:1])
    return np.concatenate([values[1:], zero]) if reverse else np.concatenate([zero, values[:-1]])


def later(reverse: bool, length: int) -> list[int]:
    """The times in the order in which the error passes."""
    return list(range(length)) if reverse else list(range(length))[::-1]


def of_one(terms: Any) -> str:
    """The gradient of one entry of U as the sum over time that it is."""
    return f"of U₁₁, the largest first: {sum_of(largest_first(terms))}"


class Cell:
    """What the three recurrences share: names, the products after the scan, and the steps around those of a cell."""

    def __init__(self, site: Site, gates: int):
        self.site, self.gates = site, gates
        self.units = site.record.params["U"].shape[1]
        self.time, self.into = site.record.x.shape
        self.reverse = bool(site.options["reverse"])
        self.early = "t+1" if self.reverse else "t−1"
        self.late = "t−1" if self.reverse else "t+1"
        self.x, self.h = at(site.takes[0], "t"), at(site.gives, "t")
        self.h_before = at(site.gives, self.early)
        self.W, self.U, self.b = site.param("W"), site.param("U"), site.param("b")
        self.dh = site.partial(site.name("h", "h", "t"))

    def named(self, base: str, key: str = "", below: str = "t") -> Name:
        """A quantity of one time step."""
        return self.site.name(base, key or base, below)

    def affine(self) -> Expression:
        """W x + U h + b."""
        return Sum((self.site.times(self.W, self.x), self.site.times(self.U, self.h_before), self.b))

    def z(self, v: Any, x: Any, h: Any) -> Any:
        """The same in numbers."""
        return v.W @ x + v.U @ h + v.b

    def step(self, key: str, left: Expression, right: Expression, run: Any, remark: str = "", gives: str = "") -> Step:
        """A quantity of every time step."""
        return Step(key, left, right, lambda v: v.joint(run)[key], gives, "", remark, probed=False)

    def back_step(self, key: str, left: Expression, right: Expression, run: Any, remark: str = "") -> Step:
        """An error of every time step."""
        return Step(key, left, right, lambda v: v.joint(run)[key], "", "", remark)

    def gradients(self, delta: Expression, at_state: Expression, of: str = "dz", of_state: str = "dz") -> list[Step]:
        """∇W = Σ δ xᵀ, ∇U = Σ δ h_beforeᵀ, ∇b = Σ δ, ∂C/∂x = Wᵀ δ."""
        site, rows = self.site, self.gates * self.units

        def hs(v):
            return before(v.h, self.reverse)

        count = f", {self.time} terms"
        return [
            Step("dW", site.grad("W"), BigSum("t", site.outer(delta, self.x)), lambda v: v.known[of].T @ v.x, "W",
                 site.outer_sizes(rows, self.into) + count),
            Step("dU", site.grad("U"), BigSum("t", site.outer(at_state, self.h_before)),
                 lambda v: v.known[of_state].T @ hs(v), "U", site.outer_sizes(rows, self.units) + count,
                 "one U at every step, so a sum over time",
                 notes=lambda v: [of_one(v.known[of_state][:, 0] * hs(v)[:, 0])]),
            Step("db", site.grad("b"), BigSum("t", delta), lambda v: v.known[of].sum(0), "b", f"{rows}{count}"),
            Step("dx", at(site.back[0], "t"), site.back_through(self.W, delta), lambda v: v.known[of] @ v.W, "dx",
                 site.matrix(rows, self.into, back=True) + f", {self.time} times"),
        ]  # fmt: skip

    def carried(self) -> Sum:
        """What reaches h_t: from above, and from the step after it."""
        delta = self.site.name("δ", "delta", self.late)
        return Sum((at(self.site.error, "t"), self.site.back_through(self.U, delta)))

    def carry_notes(self, v: Any) -> list[str]:
        """How far the error of the last step is seen back in time."""
        sizes = np.linalg.norm(v.dh, axis=1)
        order = later(self.reverse, self.time)
        said = ", ".join(one(float(sizes[t])) for t in (order[0], order[len(order) // 2], order[-1]))
        return [f"back in time its length is {said} at the last, the middle and the first step"]

    def zeros(self, v: Any, *names: str) -> dict[str, Any]:
        """The carry before the first step."""
        return {name: v.np.zeros(self.units) for name in names}

    def sizes(self) -> str:
        """The shapes of W x + b, which U h fits."""
        return f"{self.site.matrix(self.gates * self.units, self.into)}, {self.time} times"

    def deltas(self, key: str, parts: Mapping[str, Expression], run: Any) -> list[Step]:
        """δ of each gate. key: of what it is the derivative by."""
        found = []
        for n, (name, right) in enumerate(parts.items()):
            columns = slice(n * self.units, (n + 1) * self.units)
            left = self.site.name("δ", f"delta_{name}", f"t,{name}")
            made = self.back_step(f"d{key}" if n == 0 else f"d{key}_{name}", left, right, run)
            found.append(
                replace(made, of=lambda v: v.joint(run)[f"d{key}"], by=key,
                        shown=lambda value, columns=columns: value[:, columns])
            )  # fmt: skip
        return found


def rnn(site: Site) -> Equations:
    """h = g(W x + U h_before + b)."""
    c = Cell(site, 1)
    tanh = g_of(site) == "tanh"
    g = Name("tanh" if tanh else "relu", key="tanh" if tanh else "relu")
    z, delta = c.named("z"), site.name("δ", "delta", "t")

    def step(v, x, carry, probes):
        z = c.z(v, x, carry["h"]) + probes["z"]
        return {"z": z, "h": (v.np.tanh(z) if tanh else v.np.maximum(z, 0.0)) + probes["h"]}

    def run(v):
        return forward_in_time(v, step, c.zeros(v, "h"), c.reverse, ("z", "h"))

    def back(v):
        dh, dz = np.zeros((c.time, c.units)), np.zeros((c.time, c.units))
        sent = np.zeros(c.units)
        for t in later(c.reverse, c.time):
            dh[t] = v.d_out[t] + sent
            dz[t] = dh[t] * (1 - v.h[t] ** 2 if tanh else v.h[t] > 0)
            sent = dz[t] @ v.U
        return {"dh": dh, "dz": dz}

    forward = (
        sized(c.step("z", z, c.affine(), run), c.sizes()),
        c.step("h", c.h, Call(g, z), run, "h₀ = 0", "out"),
    )
    backward = (
        noted(c.back_step("dh", c.dh, c.carried(), back, "from above, and from the step after it"), c.carry_notes),
        c.back_step("dz", delta, times(c.dh, slope(c.h) if tanh else Call(Name("relu′"), z)), back),
        *c.gradients(delta, delta),
    )
    return Equations(forward, backward)


def g_of(site: Site) -> str:
    """The activation of a simple recurrence."""
    return site.options["cell"].step.args[0]


def sized(step: Step, sizes: str) -> Step:
    """A step with its sizes."""
    return replace(step, sizes=sizes)


def noted(step: Step, notes: Any) -> Step:
    """A step with notes."""
    return replace(step, notes=notes)


GATES = ("i", "f", "g", "o")


def lstm_numbers(c: Cell) -> tuple[Callable, Callable]:
    """The quantities of every step forward, and the errors back."""
    keys = ("z", *GATES, "c", "h")

    def step(v, x, carry, probes):
        z = c.z(v, x, carry["h"]) + probes["z"]
        made = {"z": z}
        for name, part in zip(GATES, v.np.split(z, 4), strict=True):
            made[name] = (v.np.tanh(part) if name == "g" else sigmoid(v, part)) + probes[name]
        made["c"] = made["f"] * carry["c"] + made["i"] * made["g"] + probes["c"]
        made["h"] = made["o"] * v.np.tanh(made["c"]) + probes["h"]
        return made

    def run(v):
        return forward_in_time(v, step, c.zeros(v, "h", "c"), c.reverse, keys)

    def back(v):
        found = {key: np.zeros((c.time, c.units)) for key in ("dh", "dc")} | {"dz": np.zeros((c.time, 4 * c.units))}
        sent, kept = np.zeros(c.units), np.zeros(c.units)
        c_before = before(v.c, c.reverse)
        for t in later(c.reverse, c.time):
            i, f, g, o, tanh_c = v.i[t], v.f[t], v.g[t], v.o[t], np.tanh(v.c[t])
            dh = found["dh"][t] = v.d_out[t] + sent
            dc = found["dc"][t] = kept + dh * o * (1 - tanh_c**2)
            found["dz"][t] = np.concatenate(
                [dc * g * i * (1 - i), dc * c_before[t] * f * (1 - f), dc * i * (1 - g**2), dh * tanh_c * o * (1 - o)]
            )
            sent, kept = found["dz"][t] @ v.U, dc * f
        return found

    return run, back


def lstm(site: Site) -> Equations:
    """c ← f ⊙ c + i ⊙ g, h ← o ⊙ tanh c."""
    c = Cell(site, 4)
    run, back = lstm_numbers(c)
    i, f, g, o, state = (c.named(base) for base in (*GATES, "c"))
    z, delta = c.named("z"), site.name("δ", "delta", "t")
    state_before, dc = site.name("c", "c", c.early), site.partial(state)
    tanh, sigma = Name("tanh", key="tanh"), Name("σ", key="sigmoid")
    tanh_c = Call(tanh, state)

    def of_gate(name):
        return Call(tanh if name == "g" else sigma, c.named("z", below=f"t,{name}"))

    def gate_slope(gate):
        return Product((gate, Sum((ONE, Minus(gate)))))

    forward = (
        sized(c.step("z", z, c.affine(), run, "gates i, f, g, o one after another"), c.sizes()),
        *(c.step(name, c.named(name), of_gate(name), run) for name in GATES),
        c.step("c", state, Sum((times(f, state_before), times(i, g))), run, "kept by f, filled by i"),
        c.step("h", c.h, times(o, tanh_c), run, "h₀ = c₀ = 0", "out"),
    )
    parts = {
        "i": times(dc, g, gate_slope(i)), "f": times(dc, state_before, gate_slope(f)), "g": times(dc, i, slope(g)),
        "o": times(c.dh, tanh_c, gate_slope(o)),
    }  # fmt: skip
    f_late = c.named("f", below=c.late)
    kept = times(site.partial(site.name("c", "c", c.late)), f_late)
    backward = (
        noted(c.back_step("dh", c.dh, c.carried(), back, "from above, and from the step after it"), c.carry_notes),
        c.back_step("dc", dc, Sum((kept, times(c.dh, o, slope(tanh_c)))), back,
                    "along c it passes by f alone: no W between"),
        *c.deltas("z", parts, back),
        *c.gradients(delta, delta),
    )  # fmt: skip
    return Equations(forward, backward)


def gru_numbers(c: Cell) -> tuple[Callable, Callable]:
    """The quantities of every step forward, and the errors back."""
    keys = ("p", "s", "u", "r", "z", "n", "h")

    def step(v, x, carry, probes):
        p, s = v.W @ x + v.b + probes["p"], v.U @ carry["h"] + probes["s"]
        (p_r, p_z, p_n), (s_r, s_z, s_n) = v.np.split(p, 3), v.np.split(s, 3)
        u = s_n + v.c + probes["u"]
        r, z = sigmoid(v, p_r + s_r) + probes["r"], sigmoid(v, p_z + s_z) + probes["z"]
        n = v.np.tanh(p_n + r * u) + probes["n"]
        h = (1 - z) * n + z * carry["h"] + probes["h"]
        return {"p": p, "s": s, "u": u, "r": r, "z": z, "n": n, "h": h}

    def run(v):
        return forward_in_time(v, step, c.zeros(v, "h"), c.reverse, keys)

    def back(v):
        wide = np.zeros((c.time, 3 * c.units))
        found = {"dh": np.zeros((c.time, c.units)), "dp": wide, "ds": wide.copy()}
        sent, kept = np.zeros(c.units), np.zeros(c.units)
        h_before = before(v.h, c.reverse)
        for t in later(c.reverse, c.time):
            r, z, n, u = v.r[t], v.z[t], v.n[t], v.u[t]
            dh = found["dh"][t] = v.d_out[t] + sent + kept
            d_n = dh * (1 - z) * (1 - n**2)
            d_z, d_r = dh * (h_before[t] - n) * z * (1 - z), d_n * u * r * (1 - r)
            found["dp"][t] = np.concatenate([d_r, d_z, d_n])
            found["ds"][t] = np.concatenate([d_r, d_z, d_n * r])
            sent, kept = found["ds"][t] @ v.U, dh * z
        return found

    return run, back


def gru(site: Site) -> Equations:
    """h ← (1 − z) ⊙ n + z ⊙ h, the reset gate outside of U."""
    c = Cell(site, 3)
    run, back = gru_numbers(c)
    r, gate, n, u = c.named("r"), c.named("z"), c.named("n"), c.named("u")
    delta, state_delta = site.name("δ", "delta", "t"), site.name("δᵁ", "deltaU", "t")
    shift, by_x, by_h = site.param("c"), c.named("p"), c.named("s")
    tanh, sigma = Name("tanh", key="tanh"), Name("σ", key="sigmoid")

    def gated(name):
        return Call(sigma, Sum((at(by_x, f"t,{name}"), at(by_h, f"t,{name}"))))

    d_n, d_z, d_r = (site.name("δ", f"delta_{name}", f"t,{name}") for name in ("n", "z", "r"))
    keep = Sum((ONE, Minus(gate)))
    forward = (
        sized(c.step("p", by_x, site.affine(c.W, c.x, c.b), run, "gates r, z, n one after another"), c.sizes()),
        c.step("s", by_h, site.times(c.U, c.h_before), run, "likewise"),
        c.step("u", u, Sum((at(by_h, "t,n"), shift)), run),
        c.step("r", r, gated("r"), run, "reset: how much of u counts"),
        c.step("z", gate, gated("z"), run, "how much of h stays"),
        c.step("n", n, Call(tanh, Sum((at(by_x, "t,n"), times(r, u)))), run),
        c.step("h", c.h, Sum((times(keep, n), times(gate, c.h_before))), run, "h₀ = 0", "out"),
    )
    late = site.name("δᵁ", "deltaU", c.late)
    kept = times(site.partial(site.name("h", "h", c.late)), c.named("z", below=c.late))
    carried = Sum((at(site.error, "t"), site.back_through(c.U, late), kept))
    parts = {
        "n": times(c.dh, keep, slope(n)),
        "z": times(c.dh, Sum((c.h_before, Minus(n))), Product((gate, keep))),
        "r": times(d_n, u, Product((r, Sum((ONE, Minus(r)))))),
    }  # fmt: skip
    order = {name: parts[name] for name in "rzn"}
    shift_step = Step("dc", site.grad("c"), BigSum("t", times(d_n, r)), lambda v: v.ds[:, 2 * c.units :].sum(0), "c",
                      f"{c.units}, {c.time} terms")  # fmt: skip
    backward = (
        noted(c.back_step("dh", c.dh, carried, back, "from above, by U, and by what of h stays"), c.carry_notes),
        *c.deltas("p", order, back)[::-1],
        c.back_step("ds", state_delta, Listed((d_r, d_z, times(d_n, r))), back, "at U h: r stands between"),
        *c.gradients(delta, state_delta, "dp", "ds")[:3],
        shift_step,
        *c.gradients(delta, state_delta, "dp", "ds")[3:],
    )
    return Equations(forward, backward)
