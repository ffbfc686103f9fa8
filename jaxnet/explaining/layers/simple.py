"""Layers of one equation each way: dense at every position, activations, shapes, and where ways meet."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnet.explaining.expressions import BigSum, Call, Expression, Listed, Minus, Name, Product, Sum, Words
from jaxnet.explaining.layers.steps import Equations, Site, Step, at, summed_to
from jaxnet.explaining.numbers import one, shape


def dense(site: Site) -> Equations:
    """z = W a + b of a vector, or of each position of a sequence: there a weight has one path for each of them."""
    params, positions = site.record.params, site.record.positions
    out, into = params["W"].shape
    count = int(np.prod(site.record.x.shape[:-1]))
    times = f", {count} times" if positions else ""
    over = "tsr"[:positions]
    W, b = site.param("W"), site.param("b") if "b" in params else None
    a, z, error, sent = at(site.takes[0], over), at(site.gives, over), at(site.error, over), at(site.back[0], over)
    terms = f", {count} terms" if positions else ""

    def by_rows(v):
        z = v.x @ v.W.T
        return z + v.b.reshape((1,) * positions + (-1,)) if b is not None else z

    def outer(v):
        return v.d_out.reshape(-1, out).T @ v.x.reshape(-1, into)

    backward = [Step("dW", site.grad("W"), summed(over, site.outer(error, a)), outer, "W",
                     site.outer_sizes(out, into) + terms, notes=lambda v: paths_of_weight(site, v))]  # fmt: skip
    if b is not None:
        bias = summed(over, error)
        backward.append(Step("db", site.grad("b"), bias, lambda v: summed_to(v.d_out, positions), "b", f"{out}{terms}"))
    backward.append(
        Step("dx", sent, site.back_through(W, error), lambda v: v.d_out @ v.W, "dx",
             site.matrix(out, into, back=True) + times)
    )  # fmt: skip
    forward = Step("out", z, site.affine(W, a, b), by_rows, "out", site.matrix(out, into) + times)
    return Equations((forward,), tuple(backward))


def paths_of_weight(site: Site, v: Any) -> list[str]:
    """Why ∇W has a sum here."""
    if not site.record.positions:
        return []
    j, i = np.unravel_index(np.abs(v.dW).argmax(), v.dW.shape)
    terms = v.d_out.reshape(-1, v.d_out.shape[-1])[:, j] * v.x.reshape(-1, v.x.shape[-1])[:, i]
    return [many_paths(terms)]


def sum_of(terms: Any, digits: int = 4) -> str:
    """.12 + .03 − .01 + … = .25."""
    terms = np.asarray(terms, np.float64).reshape(-1)
    texts = [one(float(each), digits) for each in terms[: len(terms) if len(terms) <= 4 else 3]]
    texts += ["…"] if len(terms) > 4 else []
    return f"{' + '.join(texts)} = {one(float(terms.sum()), digits)}".replace("+ −", "− ")


def many_paths(terms: Any) -> str:
    """The gradient of a weight that serves many positions."""
    said = "a weight serves all {} positions, one path by each; of the one with the largest gradient, the largest first"
    return f"{said.format(len(np.asarray(terms)))}: {sum_of(largest_first(terms))}"


def largest_first(terms: Any) -> np.ndarray:
    """Terms by their size."""
    terms = np.asarray(terms, np.float64).reshape(-1)
    return terms[np.argsort(-np.abs(terms), kind="stable")]


def summed(over: str, of: Expression) -> Expression:
    """Σ over the positions, where there are any."""
    return BigSum(",".join(over), of) if over else of


def activation(site: Site) -> Equations:
    """a = g(z), entry by entry."""
    g, g_prime = site.options.get("g"), site.options.get("g_prime")
    name = site.record.layer.name.replace(" ", "_")
    symbol = Name("σ" if name == "sigmoid" else name, key=name)
    z = site.takes[0]
    size = shape(site.record.x.shape)
    if g is None or g_prime is None:
        forward = Step("out", site.gives, z, lambda v: v.x * 1.0, "out", size)
        return Equations((forward,), (Step("dx", site.back[0], site.error, lambda v: v.d_out, "dx", size),))
    forward = Step("out", site.gives, Call(symbol, z), lambda v: g(jnp.asarray(v.x)), "out", size, off_of(site))
    right = Product((site.error, Call(Name(f"{symbol.base}′", key=f"{name}'"), z)), "⊙")

    def back(v):
        z = jnp.asarray(v.x)
        return v.d_out * np.asarray(g_prime(z, g(z)), np.float64)

    return Equations((forward,), (Step("dx", site.back[0], right, back, "dx", size),))


def off_of(site: Site) -> str:
    """How many entries of a relu are off, so that no error passes."""
    out = np.asarray(site.record.out)
    off = int((out == 0).sum())
    return f"{off:,} of {out.size:,} are off" if off and site.record.layer.name == "relu" else ""


def softmax(site: Site) -> Equations:
    """p = softmax(z) over the last axis, with its whole Jacobian."""
    over = "t" if site.record.x.ndim > 1 else ""
    p, z, error = at(site.gives, over), at(site.takes[0], over), at(site.error, over)

    def of(v):
        e = v.np.exp(v.x - v.x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    inner = Sum((error, Minus(Words("⟨p, ∂C/∂p⟩"))))
    size = shape(site.record.x.shape)
    back = Step(
        "dx", at(site.back[0], over), Product((p, inner), "⊙"),
        lambda v: v.out * (v.d_out - (v.out * v.d_out).sum(-1, keepdims=True)), "dx", size,
        remark="p: what it gave; every p depends on every z of its row",
    )  # fmt: skip
    return Equations((Step("out", p, Call(Name("softmax"), z), of, "out", size),), (back,))


def reshaped(site: Site) -> Equations:
    """The same numbers in another shape."""
    before, after = site.record.x.shape, site.record.out.shape
    sizes = f"{shape(before)} → {shape(after)}", f"{shape(after)} → {shape(before)}"
    word = Name(site.record.word)
    forward = Step("out", site.gives, Call(word, site.takes[0]), lambda v: v.x.reshape(after), "out", sizes[0])
    back = Call(Name("reshape"), site.error)
    return Equations((forward,), (Step("dx", site.back[0], back, lambda v: v.d_out.reshape(before), "dx", sizes[1]),))


def dropout(site: Site) -> Equations:
    """In evaluation what comes goes."""
    size = shape(site.record.x.shape)
    forward = Step("out", site.gives, site.takes[0], lambda v: v.x * 1.0, "out", size,
                   "evaluation: nothing is dropped; while training x ⊙ m/(1−p), m 0 or 1")  # fmt: skip
    return Equations((forward,), (Step("dx", site.back[0], site.error, lambda v: v.d_out, "dx", size),))


# -------------------------------------------------------------------------------------------- where ways meet


def met(site: Site) -> Equations:
    """Ways that meet: their sum, their product entry by entry, or one after the other along the last axis."""
    record, ways = site.record, site.takes
    size, kind = shape(record.out.shape), record.kind
    joined: dict[str, Expression] = {
        "sum": Sum(ways), "product": Product(ways, "⊙"), "concatenate": Listed(ways),
    }  # fmt: skip

    def of(v):
        values = [v.known[f"x{i}"] for i in range(len(ways))]
        if kind == "concatenate":
            return v.np.concatenate(values, -1)
        value = values[0]
        for other in values[1:]:
            value = value + other if kind == "sum" else value * other
        return value

    steps = [one_way(site, i) for i in range(len(ways)) if not passes(site, i)]
    return Equations((Step("out", site.gives, joined[kind], of, "out", size),), tuple(steps))


def passes(site: Site, i: int) -> bool:
    """Whether the error at the i-th way is that of the sum, and so has no line: where it is added to others."""
    return site.back[i] == site.error


def one_way(site: Site, i: int) -> Step:
    """The error at one of the ways that meet."""
    record, error = site.record, site.error
    widths = [each.shape[-1] for each in record.xs]
    first = sum(widths[:i])
    size = shape(record.xs[i].shape)

    def of(v):
        if record.kind == "sum":
            return v.d_out
        if record.kind == "concatenate":
            return v.d_out[..., first : first + widths[i]]
        value = v.d_out
        for j in range(len(widths)):
            value = value if j == i else value * v.known[f"x{j}"]
        return value

    if record.kind == "sum":
        right, said = error, "a sum passes the error on to each of its terms"
    elif record.kind == "product":
        right = Product((error, *(way for j, way in enumerate(site.takes) if j != i)), "⊙")
        said = "a product: what the others gave is its slope"
    else:
        right, said = Call(Name("piece"), error), f"entries {first + 1} to {first + widths[i]}"
    return Step(f"dx{i}", site.back[i], right, of, f"dx{i}", size, said)
