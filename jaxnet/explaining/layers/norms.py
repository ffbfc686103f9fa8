"""Normalisation: x̂ = (x − μ)/σ over groups of entries, and why the error loses two of its parts on the way back."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxnet.explaining.expressions import BigSum, Call, Expression, Fraction, Minus, Name, Number, Product, Sum, raised
from jaxnet.explaining.layers.steps import Equations, Site, Step, at, summed_to
from jaxnet.explaining.numbers import one, shape

MEAN, VAR, ROOT = Name("mean"), Name("var"), Name("√")


def power(epsilon: float) -> Number:
    """10⁻⁵; another number as it is."""
    exponent = round(np.log10(epsilon)) if epsilon > 0 else 0
    if epsilon > 0 and np.isclose(epsilon, 10.0**exponent):
        return Number(f"10{raised(str(exponent))}")
    return Number(f"{epsilon:g}")


def mean(of: Expression) -> Call:
    """mean(…)."""
    return Call(MEAN, of)


def layer_norm(site: Site) -> Equations:
    """Over the last axis, at each position by itself."""
    return norm(site, lambda x: x, -1)


def rms_norm(site: Site) -> Equations:
    """The same with nothing taken off: σ² is the mean square."""
    return norm(site, lambda x: x, -1, centred=False)


def group_norm(site: Site) -> Equations:
    """Over all positions and the channels of a group together."""
    groups = int(site.record.layer.name.split(" ")[1])
    channels = site.record.x.shape[-1]
    each = "each channel by itself" if groups == channels else (
        f"{groups} group{'s' if groups > 1 else ''} of {channels // groups} channels"
    )  # fmt: skip
    said = f"{each}, over all places"
    return norm(site, lambda x: x.reshape(-1, groups, channels // groups), (0, 2), said=said)


def norm(site: Site, grouped: Any, axes: Any, centred: bool = True, said: str = "") -> Equations:
    """μ and σ of each group, x̂, and γ ⊙ x̂ + β."""
    record, epsilon = site.record, site.options["epsilon"]
    x, bias, width = record.x, "beta" in record.params, record.x.shape[-1]
    over = "t" if x.ndim > 1 and axes == -1 else ""
    rest = x.ndim - 1
    size = shape(x.shape)
    a, out, error, sent = (at(each, over) for each in (site.takes[0], site.gives, site.error, site.back[0]))
    mu, sigma, x_hat = (site.name(*names, over) for names in (("μ", "mu"), ("σ", "sigma"), ("x̂", "xhat")))
    gamma, beta = site.param("gamma"), site.param("beta") if bias else None
    d_hat = site.name("ĝ", "ghat", over)
    less = Sum((a, Minus(mu))) if centred else a

    def along(p):
        return p.reshape((1,) * rest + p.shape)

    def spread(v, x, mu, sigma):
        return ((grouped(x) - mu) / sigma).reshape(x.shape)

    def sigma_of(v):
        x = grouped(v.x) - (v.mu if centred else 0.0)
        return v.np.sqrt((x * x).mean(axes, keepdims=True) + epsilon)

    def out_of(v):
        made = along(v.gamma) * v.xhat
        return made + along(v.beta) if bias else made

    def back(v):
        g, h = grouped(v.dxhat), grouped(v.xhat)
        through = g - h * (g * h).mean(axes, keepdims=True)
        return ((through - g.mean(axes, keepdims=True) if centred else through) / v.sigma).reshape(x.shape)

    square = Call(VAR, a) if centred else mean(Product((a, a), "⊙"))
    forward = [
        *([Step("mu", mu, mean(a), lambda v: grouped(v.x).mean(axes, keepdims=True), shown=flat,
                remark=said)] if centred else []),
        Step("sigma", sigma, Call(ROOT, Sum((square, power(epsilon)))), sigma_of, shown=flat,
             remark="" if centred else said),
        Step("xhat", x_hat, Fraction(less, sigma), lambda v: spread(v, v.x, v.mu if centred else 0.0, v.sigma),
             sizes=size),
        Step("out", out, Sum((Product((gamma, x_hat), "⊙"), *([beta] if beta else []))), out_of, "out", size),
    ]  # fmt: skip
    lost = [d_hat, *([Minus(mean(d_hat))] if centred else []),
            Minus(Product((x_hat, mean(Product((d_hat, x_hat), "⊙"))), "⊙"))]  # fmt: skip
    terms = int(np.prod(x.shape[:-1]))
    backward = [
        *gradients(site, x_hat, error, rest, width, terms),
        Step("dxhat", d_hat, Product((gamma, error), "⊙"), lambda v: along(v.gamma) * v.d_out, sizes=size,
             remark="ĝ: ∂C/∂x̂"),
        Step("dx", sent, Fraction(Sum(tuple(lost)), sigma), back, "dx", size,
             notes=lambda v: projection(v, grouped, axes, centred)),
    ]  # fmt: skip
    return Equations(tuple(forward), tuple(backward))


def gradients(site: Site, x_hat: Expression, error: Expression, rest: int, width: int, terms: int) -> list[Step]:
    """∇γ and ∇β, summed over the positions that share them."""
    index = "t" if rest else ""
    error, x_hat = at(error, index), at(x_hat, index)

    def summed(of: Expression) -> Expression:
        return BigSum(index, of) if rest else of

    size = f"{width}{f', {terms} terms' if rest else ''}"
    found = [Step("dgamma", site.grad("gamma"), summed(Product((error, x_hat), "⊙")),
                  lambda v: summed_to(v.d_out * v.xhat, rest), "gamma", size)]  # fmt: skip
    if "beta" in site.record.params:
        found.append(Step("dbeta", site.grad("beta"), summed(error), lambda v: summed_to(v.d_out, rest), "beta", size))
    return found


def flat(value: np.ndarray) -> np.ndarray:
    """Statistics as a vector."""
    return np.asarray(value).reshape(-1)


def projection(v: Any, grouped: Any, axes: Any, centred: bool) -> list[str]:
    """What is taken off, at the first group, and that nothing of it is left."""
    g, h, dx = (np.moveaxis(grouped(each), axes, range(-len(axes), 0)) if isinstance(axes, tuple) else grouped(each)
                for each in (v.dxhat, v.xhat, v.dx))  # fmt: skip
    count = np.prod(g.shape[-len(axes) :]) if isinstance(axes, tuple) else g.shape[-1]
    g, h, dx = (each.reshape(-1, int(count))[0] for each in (g, h, dx))
    mean, along = one(float(g.mean())), one(float((g * h).mean()))
    if not centred:
        return [f"stretching all x changes no x̂, so ĝ's part along x̂, {along} x̂, is taken off: "
                f"⟨dx, x̂⟩ = {tiny(float(dx @ h))}"]  # fmt: skip
    return [f"shifting or stretching all x changes no x̂, so ĝ's mean {mean} and its part along x̂, {along} x̂, are "
            f"taken off: ⟨dx, 1⟩ = {tiny(float(dx.sum()))}, ⟨dx, x̂⟩ = {tiny(float(dx @ h))}"]  # fmt: skip


def tiny(value: float) -> str:
    """0 but for ε and rounding: as a power of ten."""
    return "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-").replace("-", "−")


def batch_norm(site: Site) -> Equations:
    """In evaluation μ and σ² are the population's, numbers like any others."""
    record, epsilon = site.record, site.options["epsilon"]
    x, rest, width = record.x, record.x.ndim - 1, record.x.shape[-1]
    size = shape(x.shape)
    index = "t" if rest else ""
    a, out, error, sent = (at(each, index) for each in (site.takes[0], site.gives, site.error, site.back[0]))
    sigma, x_hat = site.name("σ", "sigma"), site.name("x̂", "xhat", index)
    mu, gamma, beta = site.name("μ", "mu"), site.param("gamma"), site.param("beta")
    d_hat = site.partial(x_hat)

    def along(p):
        return p.reshape((1,) * rest + p.shape)

    variance = Name("σ²", mu.above, key=f"v{mu.key}")
    forward = (
        Step("sigma", sigma, Call(ROOT, Sum((variance, power(epsilon)))),
             lambda v: v.np.sqrt(v.variance + epsilon),
             remark="evaluation: μ and σ² of the population, numbers like any others"),
        Step("xhat", x_hat, Fraction(Sum((a, Minus(mu))), sigma), lambda v: (v.x - along(v.mean)) / along(v.sigma),
             sizes=size),
        Step("out", out, Sum((Product((gamma, x_hat), "⊙"), beta)),
             lambda v: along(v.gamma) * v.xhat + along(v.beta), "out", size),
    )  # fmt: skip
    backward = (
        *gradients(site, x_hat, error, rest, width, int(np.prod(x.shape[:-1]))),
        Step("dxhat", d_hat, Product((gamma, error), "⊙"), lambda v: along(v.gamma) * v.d_out, sizes=size),
        Step("dx", sent, Fraction(d_hat, sigma), lambda v: v.dxhat / along(v.sigma), "dx", size,
             "while training μ and σ are the batch's own: then the error loses its mean and its part along x̂"),
    )  # fmt: skip
    return Equations(forward, backward)
