"""Matrix products, convolutions and sums: transposed, inverted, over other axes, of one term only."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxnet.checking.diagnose.scene import (
    Mutant,
    Scene,
    on_output,
    operand,
    replaced,
    says,
    shifted,
    square,
    swapped,
)
from jaxnet.checking.diagnose.tape import Op, Site


def products(scene: Scene) -> Iterator[Mutant]:
    """Matrix products: operands transposed, inverted, by their sign; the result transposed; one index only."""
    for site, op in scene.linear():
        if op.name not in ("dot_general", "conv_general_dilated"):
            continue
        sides = scene.split(op)
        for j in range(2) if op.name == "dot_general" else ():
            value = scene.tape.values[op.inputs[j]]
            moving = scene.tape.linear[op.inputs[j]]
            if square(value):
                yield operand(
                    site,
                    op,
                    j,
                    "transposed",
                    lambda x: swapped(x),
                    "{0} transposed, or not transposed where it should be,",
                    1.1,
                )
                if not moving:
                    yield operand(
                        site, op, j, "inverse", np.linalg.inv, "the inverse of {0} in the place of its transpose", 1.6
                    )
                    yield operand(
                        site,
                        op,
                        j,
                        "inverse.T",
                        lambda x: swapped(np.linalg.inv(x)),
                        "the inverse of {0} in the place of its transpose",
                        1.61,
                    )
            if not moving:
                yield operand(site, op, j, "sign", np.sign, "sign({0}) in the place of {0}: sign feedback", 1.6)
                yield operand(
                    site,
                    op,
                    j,
                    "sign mean",
                    lambda x: np.sign(x) * np.mean(np.abs(x)),
                    "sign({0})·mean|{0}| in the place of {0}: sign feedback",
                    1.7,
                )
                yield operand(site, op, j, "abs", np.abs, "|{0}| in the place of {0}", 1.8)
                if np.ndim(value) >= 2:
                    yield operand(
                        site,
                        op,
                        j,
                        "normed",
                        lambda x: x / np.linalg.norm(x),
                        "{0} divided by its norm in the place of {0}",
                        1.9,
                    )
            for axis in range(np.ndim(value)):
                if value.shape[axis] > 1 and (moving or np.ndim(value) > 1):
                    yield operand(
                        site,
                        op,
                        j,
                        f"flip{axis}",
                        lambda x, a=axis: np.flip(x, a),
                        f"{{0}} flipped along axis {axis}",
                        1.8,
                    )
        if op.name == "dot_general":
            yield from _contractions(scene, site, op)
            if square(scene.tape.values[op.outputs[0]]):
                yield Mutant(
                    (site, "out.T"),
                    {site: on_output(lambda op, x, look: swapped(x))},
                    1.1,
                    says(op, "the product {1} comes out transposed"),
                    site,
                )
        if sides is not None and op.name == "conv_general_dilated":
            yield from _convolution(site, op, sides)


def _contractions(scene: Scene, site: Site, op: Op) -> Iterator[Mutant]:
    (left, _), _ = op.params["dimension_numbers"]
    for nth, axis in enumerate(left):
        size = np.shape(scene.tape.values[op.inputs[0]])[axis]
        if size == 1:
            continue
        for index, word in ((0, "first"), (-1, "last")):

            def one(op, ins, look, nth=nth, index=index):
                (left, right), _ = op.params["dimension_numbers"]
                a = np.take(ins[0], [index], left[nth])
                b = np.take(ins[1], [index], right[nth])
                return op.run([a, b])

            yield Mutant(
                (site, word, nth),
                {site: one},
                1.4,
                says(
                    op, f"only the {word} of the {size} terms (axis {axis}) is summed in {{1}}, the others are missing"
                ),
                site,
            )


def _convolution(site: Site, op: Op, sides: tuple[int, int]) -> Iterator[Mutant]:
    """Kernels flipped, channels exchanged, strides not dilated; each at its place in the numbers of the convolution."""
    moving, fixed = sides
    numbers = op.params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec)
    for j, word in ((fixed, "{0}"), (moving, "the error")):
        space = specs[j][2:]
        yield operand(
            site,
            op,
            j,
            f"flip space{j}",
            lambda x, s=space: np.flip(x, s),
            f"{word} spatially flipped (kernel not flipped, or flipped twice)",
            1.2,
        )
        a, b = specs[j][:2]
        yield operand(
            site,
            op,
            j,
            f"channels{j}",
            lambda x, a=a, b=b: np.swapaxes(x, a, b),
            f"the channels of {word} exchanged",
            1.5,
        )
        if len(space) == 2:
            yield operand(
                site,
                op,
                j,
                f"space.T{j}",
                lambda x, s=space: np.swapaxes(x, *s),
                f"{word} with rows and columns exchanged",
                1.5,
            )
        for axis in space:
            for by in (1, -1):
                yield operand(
                    site,
                    op,
                    j,
                    f"shift{j}{axis}{by}",
                    lambda x, a=axis, b=by: shifted(x, a, b, circular=False),
                    f"{word} shifted by one pixel along axis {axis}",
                    1.7,
                )
    if any(d > 1 for key in ("lhs_dilation", "rhs_dilation") for d in op.params[key]):

        def undilated(op, ins, look):

            params = dict(op.eqn.params)
            extra = [
                (n - 1) * (d - 1)
                for n, d in zip((ins[0].shape[a] for a in numbers.lhs_spec[2:]), params["lhs_dilation"], strict=True)
            ]
            params["padding"] = tuple((lo, hi + e) for (lo, hi), e in zip(params["padding"], extra, strict=True))
            params["lhs_dilation"] = (1,) * len(extra)
            out = op.eqn.primitive.bind(*(jnp.asarray(v) for v in ins), **params)
            return [np.asarray(out)]

        yield Mutant(
            (site, "undilated"),
            {site: undilated},
            1.3,
            says(op, "the stride is not dilated: no zeros between the errors in {1}"),
            site,
        )


def sums(scene: Scene) -> Iterator[Mutant]:
    """Sums over another axis, of one term only, or not taken at all; cumulative sums the other way round."""
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name in ("cumsum", "cumprod", "cummax", "cumlogsumexp"):
            change = replaced(
                lambda op, ins, look: np.flip(op.run([np.flip(ins[0], op.params["axis"])])[0], op.params["axis"])
            )
            yield Mutant((site, "reverse"), {site: change}, 1.2, says(op, "{1} runs in the wrong direction"), site)
        if op.name not in ("reduce_sum", "reduce_keep"):
            continue
        axes, shape = op.params["axes"], np.shape(scene.tape.values[op.inputs[0]])
        if op.name == "reduce_keep":
            yield Mutant(
                (site, "unsummed"),
                {site: replaced(lambda op, ins, look: ins[0])},
                1.3,
                says(
                    op,
                    "{1} is not summed: the sum over the row is missing, each entry only meets its own term {0}"
                    " (diagonal only)",
                ),
                site,
            )
        for index, word in ((0, "first"), (-1, "last")):
            for nth, axis in enumerate(axes):
                if shape[axis] > 1:

                    def one(op, ins, look, nth=nth, index=index):
                        return op.run([np.take(ins[0], [index], op.params["axes"][nth])])

                    yield Mutant(
                        (site, word, nth),
                        {site: one},
                        1.4,
                        says(
                            op,
                            f"{{1}} has only the {word} of its {shape[axis]} terms (axis {axis}), the others are"
                            " missing",
                        ),
                        site,
                    )
        for other in _other_axes(axes, len(shape)):
            keep = op.name == "reduce_keep"
            if keep or [n for a, n in enumerate(shape) if a not in other] == [
                n for a, n in enumerate(shape) if a not in axes
            ]:
                change = replaced(lambda op, ins, look, o=other, k=keep: np.sum(ins[0], o, keepdims=k))
                yield Mutant(
                    (site, "axes", other),
                    {site: change},
                    1.5,
                    says(op, f"{{1}} is summed over axis {_axes(other)} and not {_axes(axes)}: the wrong axis"),
                    site,
                )


def _other_axes(axes, ndim: int) -> list[tuple[int, ...]]:
    if len(axes) == 1:
        return [(a,) for a in range(ndim) if a not in axes] + ([tuple(range(ndim))] if ndim > 1 else [])
    rest = tuple(a for a in range(ndim) if a not in axes)
    return [(a,) for a in axes] + ([rest] if rest else [])


def _axes(axes) -> str:
    return ", ".join(str(a) for a in axes)
