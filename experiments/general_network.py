"""L layers in general: do the matrix equations say the same as the sums over indices, and as autodiff?

    python -m experiments.general_network [KEY=VALUE …] [--out runs/general_network/page.html]

Networks drawn at random from experiments/general_network.toml: as many layers, of such widths and activations as the
draw says, cost ½‖a − y‖². The gradient of every weight by the matrix equations in NumPy, by the same equations as sums
over indices in plain loops, by jaxnet's backward pass, and by `jax.grad`; all in float64.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import typer
from pydantic import Field

from experiments.page import Formulas, Section, Settings, Table, Words, page, plot, settings_of, write_page
from experiments.typeset import Equal
from jaxnet.backprop import one_example
from jaxnet.combinators import serial
from jaxnet.explaining.expressions import (
    BigSum,
    Call,
    Derivative,
    Expression,
    Minus,
    Name,
    Product,
    Sum,
    Transposed,
)
from jaxnet.explaining.ulp import ulps
from jaxnet.layer import Layer
from jaxnet.layers import ACTIVATIONS, dense
from jaxnet.losses import quadratic
from jaxnet.readings import product

FILE = Path(__file__).with_suffix(".toml")
Span = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]


def equations() -> list[tuple[str | Equal, ...]]:
    """BP1 to BP4 as products of matrices, and as sums over indices."""
    C, slope = Name("C"), Name("g′")

    def of(base: str, layer: str = "l", index: str = "") -> Name:
        return Name(base, layer, index)

    def passed(z: Expression) -> Call:
        return Call(slope, z)

    above, below = "l+1", "l−1"
    y, y_j = Name("y"), Name("y", below="j")
    column = BigSum("j", Product((of("W", above, "ji"), of("δ", above, "j"))))
    return [
        ("matrices", "sums over indices"),
        (Equal(of("δ", "L"), Product((Sum((of("a", "L"), Minus(y))), passed(of("z", "L"))), "⊙")),
         Equal(of("δ", "L", "j"), Product((Sum((of("a", "L", "j"), Minus(y_j))), passed(of("z", "L", "j")))))),
        (Equal(of("δ"), Product((Product((Transposed(of("W", above)), of("δ", above))), passed(of("z"))), "⊙")),
         Equal(of("δ", "l", "i"), Product((column, passed(of("z", "l", "i"))), "·")), "the sum runs down a column"),
        (Equal(Derivative(of("W")), Product((of("δ"), Transposed(of("a", below))))),
         Equal(Derivative(of("W", "l", "ji"), C), Product((of("δ", "l", "j"), of("a", below, "i")))), "no sum"),
        (Equal(Derivative(of("b")), of("δ")), Equal(Derivative(of("b", "l", "j"), C), of("δ", "l", "j"))),
    ]  # fmt: skip


class Draws(Settings):
    """The networks that are drawn."""

    networks: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    layers: Span
    widths: Span
    activations: list[Literal["sigmoid", "tanh", "relu", "softplus", "silu", "gelu"]] = Field(min_length=1)


class Drawn(NamedTuple):
    """One network: widths, input first, and the activation of each layer; and how far three ways are from autodiff.

    In units of the last place of each array's largest entry, the largest over all gradients; `off` in absolute size.
    """

    widths: tuple[int, ...]
    activations: tuple[str, ...]
    parameters: int
    matrices: float
    sums: float
    by_hand: float
    off: float


def slopes(name: str, z: np.ndarray) -> np.ndarray:
    """g′(z) of an activation of the table."""
    return np.asarray(jax.jit(jax.vmap(jax.grad(lambda z: ACTIVATIONS[name].forward((), z)[0])))(jnp.asarray(z)))


def forward(weights: Sequence, names: Sequence[str], x: np.ndarray) -> tuple[list, list]:
    """All a, the input first, and all g′(z)."""
    a, g_primes = [x], []
    for (W, b), name in zip(weights, names, strict=True):
        z = W @ a[-1] + b
        a.append(np.asarray(ACTIVATIONS[name].forward((), jnp.asarray(z))[0]))
        g_primes.append(slopes(name, z))
    return a, g_primes


def by_matrices(weights: Sequence, a: Sequence, g_primes: Sequence, y: np.ndarray) -> list[np.ndarray]:
    """∇W and ∇b of each layer, first to last, by the matrix equations."""
    grads: list[np.ndarray] = []
    delta = (a[-1] - y) * g_primes[-1]
    for layer in reversed(range(len(weights))):
        grads = [np.outer(delta, a[layer]), delta, *grads]
        if layer:
            delta = (weights[layer][0].T @ delta) * g_primes[layer - 1]
    return grads


def by_sums(weights: Sequence, a: Sequence, g_primes: Sequence, y: np.ndarray) -> list[np.ndarray]:
    """The same, entry by entry."""
    grads: list[np.ndarray] = []
    delta = [(a[-1][j] - y[j]) * g_primes[-1][j] for j in range(len(y))]
    for layer in reversed(range(len(weights))):
        into = a[layer]
        grads = [np.array([[d * a_i for a_i in into] for d in delta]), np.array(delta), *grads]
        if layer:
            W = weights[layer][0]
            delta = [
                sum(W[j, i] * delta[j] for j in range(len(delta))) * g_primes[layer - 1][i] for i in range(len(into))
            ]
    return grads


def network(widths: Sequence[int], names: Sequence[str]) -> Layer:
    """The network in jaxnet."""
    return serial(
        *(each for width, name in zip(widths[1:], names, strict=True) for each in (dense(width), ACTIVATIONS[name]))
    )


def drawn(settings: Draws, number: int) -> Drawn:
    """One network and its gradients."""
    random = np.random.default_rng([settings.seed, number])
    depth = int(random.integers(settings.layers[0], settings.layers[1] + 1))
    widths = tuple(int(w) for w in random.integers(settings.widths[0], settings.widths[1] + 1, depth + 1))
    names = tuple(str(name) for name in random.choice(settings.activations, depth))
    weights = [(random.standard_normal((out, into)), random.standard_normal(out))
               for into, out in pairwise(widths)]  # fmt: skip
    x, y = random.standard_normal(widths[0]), random.standard_normal(widths[-1])
    net = network(widths, names)

    def cost(params):
        return one_example(net, quadratic, product)(params, jnp.asarray(x), jnp.asarray(y), jnp.ones(()), None)

    params = tuple(each for W, b in weights for each in ({"W": jnp.asarray(W), "b": jnp.asarray(b)}, ()))
    both = jax.jit(lambda params: (cost(params)[1], jax.grad(lambda p: cost(p)[0])(params)))
    hand, autodiff = (flat(grads) for grads in both(params))
    a, g_primes = forward(weights, names, x)
    ways = by_matrices(weights, a, g_primes, y), by_sums(weights, a, g_primes, y), hand
    largest = max(float(np.abs(g).max()) for g in autodiff)
    matrices, sums, by_hand = (
        max(ulps(g, right, largest) for g, right in zip(way, autodiff, strict=True)) for way in ways
    )
    off = max(float(np.abs(g - right).max()) for way in ways for g, right in zip(way, autodiff, strict=True))
    return Drawn(widths, names, sum(g.size for g in autodiff), matrices, sums, by_hand, off)


def flat(grads) -> list[np.ndarray]:
    """∇W and ∇b of each layer, first to last."""
    return [np.asarray(layer[name]) for layer in grads if layer for name in ("W", "b")]


def measure(overrides: Sequence[str] = ()) -> list[Drawn]:
    """All networks of experiments/general_network.toml."""
    settings = settings_of(Draws, FILE, overrides)
    with jax.enable_x64(True):
        return [drawn(settings, number) for number in range(settings.networks)]


# ------------------------------------------------------------------------------------------------- the page


def render(found: Sequence[Drawn], command: str) -> str:
    """The page."""
    worst = [max(getattr(each, way) for each in found) for way in ("matrices", "sums", "by_hand")]
    count = sum(each.parameters for each in found)
    rows = [
        ("-".join(map(str, each.widths)), " ".join(each.activations), f"{each.parameters}",
         *(f"{value:.1f}" for value in (each.matrices, each.sums, each.by_hand)), f"{each.off:.1e}")
        for each in found
    ]  # fmt: skip
    headings = ("widths", "activations", "gradients", "matrices, ulp", "sums, ulp", "jaxnet, ulp", "largest difference")

    def draw(axes, theme):
        xs = [each.parameters for each in found]
        for name, way, color in zip(
            ("matrices", "sums", "jaxnet"), ("matrices", "sums", "by_hand"), theme.colors(3), strict=True
        ):
            axes.plot(xs, [getattr(each, way) for each in found], "o", color=color, label=name, alpha=0.8)
        axes.set(xlabel="gradients of the network", ylabel="units of the last place", ylim=(0, None))
        axes.legend()

    return page(
        "L layers in general",
        "Do the matrix equations of backpropagation hold for any number of layers, widths and activations?",
        [f"In {len(found)} networks drawn at random, with {count:,} gradients, the matrix equations differ from "
         f"jax.grad by at most {worst[0]:.1f} units of the last place (float64), the sums over indices by "
         f"{worst[1]:.1f}, jaxnet's backward pass by {worst[2]:.1f}: that is rounding.",
         "Both columns below are one statement: a product of matrices is the sum over the index that they share."],
        [Section("The equations twice", [Formulas("For layers l = L … 1, a⁰ = x", equations())]),
         Section("Every network drawn", [
             plot("Distance to autodiff", "the largest over a network's gradients",
                  f"distance of three ways to autodiff for {len(found)} networks; numbers in the table", draw),
             Table("Networks drawn", headings, rows, labels=2),
             Words("A unit of the last place (ulp) is that of an array's largest entry: sums taken in another order "
                   "differ by some of them. A wrong subscript would differ by 10¹⁵."),
         ])],
        f"Made by {command}; float64.",
    )  # fmt: skip


def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="Changes to the TOML file.")
    ] = None,
    out: Path = Path("runs/general_network/page.html"),
) -> None:
    """Matrix equations against sums over indices and autodiff, for networks drawn at random."""
    changes = list(overrides or ())
    command = " ".join(["python -m experiments.general_network", *changes])
    write_page(out, render(measure(changes), command))


if __name__ == "__main__":
    typer.run(main)
