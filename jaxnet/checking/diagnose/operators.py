"""Tables of small mistakes, one at a time, in the order in which people make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxnet.checking.diagnose import numeric
from jaxnet.checking.diagnose.program import Op, Site
from jaxnet.checking.diagnose.source import Line
from jaxnet.checking.diagnose.scene import MERGES, Mutant, Scene, on_operand, on_output, replaced, shifted, square, swapped


def scaled(j: int, c: float) -> Callable:
    """A change: operand j times c."""
    return on_operand(j, lambda op, x, look: x * np.asarray(c, x.dtype))


def structural(scene: Scene) -> Iterator[Mutant]:
    """Terms, factors, sums, masks, orders: what needs nothing but the operation itself."""
    for table in (held, terms, products, sums, masks, places, steps, factors, ranges):
        yield from table(scene)


def terms(scene: Scene) -> Iterator[Mutant]:
    """Each term of each sum, each branch, each carry, with a factor to be fitted: missing, twice, the wrong sign, averaged."""
    tape = scene.tape
    for site, op in scene.linear():
        if op.name in MERGES or op.name in ("carry", "select_and_scatter_add"):
            for j, i in enumerate(op.inputs):
                if tape.linear[i] and not (op.name == "select_and_scatter_add" and j):
                    yield Mutant((site, "term", j), {site: scaled(j, 0.0)}, 1.0, _say_term(op, j), site, "scale",
                                 lambda c, site=site, j=j: {site: scaled(j, c)})  # fmt: skip
        if op.name in ("dot_general", "reduce_sum", "reduce_keep", "mul", "stack") and len(tape.uses.get(op.outputs[0], ())) != 1:
            graded = lambda c, site=site: {site: on_output(lambda op, x, look: x * np.asarray(c, x.dtype))}  # noqa: E731
            yield Mutant((site, "all"), graded(0.0), 1.3, _say_out(op), site, "scale", graded)


def held(scene: Scene) -> Iterator[Mutant]:
    """Each variable of the user's held constant: no error enters the line that makes it."""
    tape = scene.tape
    lines: dict[Line, list[tuple[Site, Op]]] = {}
    for site, op in scene.linear():
        if op.line.assigns:
            lines.setdefault(op.line, []).append((site, op))
    for line, ops in lines.items():
        inside = {n for _, op in ops for n in op.outputs}
        changes: dict[Site, Any] = {}
        leaving = None
        for site, op in ops:
            entering = tuple(j for j, i in enumerate(op.inputs) if tape.linear[i] and i not in inside and _line(tape, i) != line)
            # the sum in which a line's share meets that of others is not the line's own
            if entering and op.name not in MERGES:
                changes[site] = _without(entering)
            if entering and op.name in MERGES:
                own = [i for i in op.inputs if _line(tape, i) == line]
                leaving = max([*own, *([leaving] if leaving is not None else [])], key=lambda i: np.size(tape.values[i]), default=None)
        if changes:
            yield Mutant((line.number, "held"), changes, 0.95, _say_held(line, leaving), min(changes))


def _line(tape, number: int):
    return tape.ops[tape.maker[number]].line if number in tape.maker else None


def _without(entering: tuple[int, ...]):
    return lambda op, ins, look: op.run([np.zeros_like(x) if j in entering else x for j, x in enumerate(ins)])


def _say_held(line, leaving: int | None):
    def say(namer, c):
        term = f"{namer.expr(leaving)} is missing" if leaving is not None else f"what passes through {line.assigns} is missing"
        return f"{term}: as if {line.assigns} were stop_gradient({line.assigns})", f"... + {namer.expr(leaving, 8)}" if leaving is not None else ""

    return say


def _say_term(op: Op, j: int):
    def say(namer, c):
        term = namer.expr(op.inputs[j])
        sign = "-" if op.name == "sub" and j == 1 else ""
        if op.name == "carry":
            which = f"what one step hands on to the step before it ({term})"
            return factor_words(which, c), ""
        leaves = [path for path, n in namer.tape.leaves.items() if n in op.outputs]
        lost = f" in ∂{namer.leaf(leaves[0])}: one of its uses is lost (overwritten or skipped)" if leaves and c == 0 else ""
        return factor_words(f"{sign}{term}", c) + lost, namer.operation(op, op.inputs, 8)[0]

    return say


def _say_out(op: Op):
    def say(namer, c):
        term = namer.operation(op, op.inputs, 6)[0]
        return factor_words(term, c), term

    return say


def factor_words(term: str, c: float) -> str:
    """What a term's factor c means."""
    if c == 0:
        return f"{term} is missing"
    if c == -1:
        return f"{term} has the wrong sign"
    if c == 2:
        return f"{term} counts twice"
    return f"{term} is {c:.4g} times what it should be"


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
                yield _operand(site, op, j, "transposed", lambda x: swapped(x), "{0} transposed, or not transposed where it should be,", 1.1)
                if not moving:
                    yield _operand(site, op, j, "inverse", np.linalg.inv, "the inverse of {0} in the place of its transpose", 1.6)
                    yield _operand(site, op, j, "inverse.T", lambda x: swapped(np.linalg.inv(x)), "the inverse of {0} in the place of its transpose", 1.61)
            if not moving:
                yield _operand(site, op, j, "sign", np.sign, "sign({0}) in the place of {0}: sign feedback", 1.6)
                yield _operand(site, op, j, "sign mean", lambda x: np.sign(x) * np.mean(np.abs(x)), "sign({0})·mean|{0}| in the place of {0}: sign feedback", 1.7)
                yield _operand(site, op, j, "abs", np.abs, "|{0}| in the place of {0}", 1.8)
                if np.ndim(value) >= 2:
                    yield _operand(site, op, j, "normed", lambda x: x / np.linalg.norm(x), "{0} divided by its norm in the place of {0}", 1.9)
            for axis in range(np.ndim(value)):
                if value.shape[axis] > 1 and (moving or np.ndim(value) > 1):
                    yield _operand(site, op, j, f"flip{axis}", lambda x, a=axis: np.flip(x, a), f"{{0}} flipped along axis {axis}", 1.8)
        if op.name == "dot_general":
            yield from _contractions(scene, site, op)
            if square(scene.tape.values[op.outputs[0]]):
                yield Mutant((site, "out.T"), {site: on_output(lambda op, x, look: swapped(x))}, 1.1, _say(op, "the product {1} comes out transposed"), site)
        if sides is not None and op.name == "conv_general_dilated":
            yield from _convolution(site, op, sides)


def _operand(site: Site, op: Op, j: int, kind: str, function: Callable[[Any], Any], words: str, cost: float) -> Mutant:
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        name = namer.expr(op.inputs[j], 4).removesuffix(".T")
        return words.format(name if name.isidentifier() else f"[{name}]") + f" in {right}", right

    return Mutant((site, kind, j), {site: on_operand(j, lambda op, x, look: function(x))}, cost, say, site)


def _say(op: Op, words: str):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 6)[0]
        return words.format(*(namer.expr(i, 5) for i in op.inputs[:1]), right), right

    return say


def _contractions(scene: Scene, site: Site, op: Op) -> Iterator[Mutant]:
    (left, _), _ = op.params["dimension_numbers"]
    for nth, axis in enumerate(left):
        size = np.shape(scene.tape.values[op.inputs[0]])[axis]
        if size == 1:
            continue
        for index, word in ((0, "first"), (-1, "last")):

            def change(op, ins, look, nth=nth, index=index):
                (left, right), _ = op.params["dimension_numbers"]
                a = np.take(ins[0], [index], left[nth])
                b = np.take(ins[1], [index], right[nth])
                return op.run([a, b])

            yield Mutant((site, word, nth), {site: change}, 1.4, _say(op, f"only the {word} of the {size} terms (axis {axis}) is summed in {{1}}, the others are missing"), site)


def _convolution(site: Site, op: Op, sides: tuple[int, int]) -> Iterator[Mutant]:
    """Kernels flipped, channels exchanged, strides not dilated; each at its place in the numbers of the convolution."""
    moving, fixed = sides
    numbers = op.params["dimension_numbers"]
    specs = (numbers.lhs_spec, numbers.rhs_spec)
    for j, word in ((fixed, "{0}"), (moving, "the error")):
        space = specs[j][2:]
        yield _operand(site, op, j, f"flip space{j}", lambda x, s=space: np.flip(x, s), f"{word} spatially flipped (kernel not flipped, or flipped twice)", 1.2)
        a, b = specs[j][:2]
        yield _operand(site, op, j, f"channels{j}", lambda x, a=a, b=b: np.swapaxes(x, a, b), f"the channels of {word} exchanged", 1.5)
        if len(space) == 2:
            yield _operand(site, op, j, f"space.T{j}", lambda x, s=space: np.swapaxes(x, *s), f"{word} with rows and columns exchanged", 1.5)
        for axis in space:
            for by in (1, -1):
                yield _operand(site, op, j, f"shift{j}{axis}{by}", lambda x, a=axis, b=by: shifted(x, a, b, circular=False), f"{word} shifted by one pixel along axis {axis}", 1.7)
    if any(d > 1 for key in ("lhs_dilation", "rhs_dilation") for d in op.params[key]):

        def undilated(op, ins, look):
            import jax

            params = dict(op.eqn.params)
            extra = [(n - 1) * (d - 1) for n, d in zip((ins[0].shape[a] for a in numbers.lhs_spec[2:]), params["lhs_dilation"], strict=True)]
            params["padding"] = tuple((lo, hi + e) for (lo, hi), e in zip(params["padding"], extra, strict=True))
            params["lhs_dilation"] = (1,) * len(extra)
            out = op.eqn.primitive.bind(*(jax.numpy.asarray(v) for v in ins), **params)
            return [np.asarray(out)]

        yield Mutant((site, "undilated"), {site: undilated}, 1.3, _say(op, "the stride is not dilated: no zeros between the errors in {1}"), site)


def sums(scene: Scene) -> Iterator[Mutant]:
    """Sums over another axis, of one term only, or not taken at all; cumulative sums the other way round."""
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name in ("cumsum", "cumprod", "cummax", "cumlogsumexp"):
            change = replaced(lambda op, ins, look: np.flip(op.run([np.flip(ins[0], op.params["axis"])])[0], op.params["axis"]))
            yield Mutant((site, "reverse"), {site: change}, 1.2, _say(op, "{1} runs in the wrong direction"), site)
        if op.name not in ("reduce_sum", "reduce_keep"):
            continue
        axes, shape = op.params["axes"], np.shape(scene.tape.values[op.inputs[0]])
        if op.name == "reduce_keep":
            yield Mutant((site, "unsummed"), {site: replaced(lambda op, ins, look: ins[0])}, 1.3, _say(op, "{1} is not summed: the sum over the row is missing, each entry only meets its own term {0} (diagonal only)"), site)
        for index, word in ((0, "first"), (-1, "last")):
            for nth, axis in enumerate(axes):
                if shape[axis] > 1:

                    def change(op, ins, look, nth=nth, index=index):
                        return op.run([np.take(ins[0], [index], op.params["axes"][nth])])

                    yield Mutant((site, word, nth), {site: change}, 1.4, _say(op, f"{{1}} has only the {word} of its {shape[axis]} terms (axis {axis}), the others are missing"), site)
        for other in _other_axes(axes, len(shape)):
            keep = op.name == "reduce_keep"
            if keep or [n for a, n in enumerate(shape) if a not in other] == [n for a, n in enumerate(shape) if a not in axes]:
                change = replaced(lambda op, ins, look, o=other, k=keep: np.sum(ins[0], o, keepdims=k))
                yield Mutant((site, "axes", other), {site: change}, 1.5, _say(op, f"{{1}} is summed over axis {_axes(other)} and not {_axes(axes)}: the wrong axis"), site)


def _other_axes(axes, ndim: int) -> list[tuple[int, ...]]:
    if len(axes) == 1:
        return [(a,) for a in range(ndim) if a not in axes] + ([tuple(range(ndim))] if ndim > 1 else [])
    rest = tuple(a for a in range(ndim) if a not in axes)
    return [(a,) for a in axes] + ([rest] if rest else [])


def _axes(axes) -> str:
    return ", ".join(str(a) for a in axes)


def masks(scene: Scene) -> Iterator[Mutant]:
    """Masks and cut-offs dropped, inverted, or taken from the cotangent; scatters that overwrite."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        if op.name == "select_n" and len(op.inputs) == 3 and tape.values[op.inputs[0]].dtype == np.bool_:
            for take, word in ((1, "false"), (2, "true")):
                if tape.depends[op.inputs[take]]:
                    change = replaced(lambda op, ins, look, t=take: ins[t])
                    yield Mutant((site, "branch", take), {site: change}, 1.2, _say_mask(op, f"the mask {{0}} is not applied (dropped), as if it were {word} everywhere"), site)
            yield Mutant((site, "inverted"), {site: replaced(lambda op, ins, look: op.run([~ins[0], *ins[1:]])[0])}, 1.3, _say_mask(op, "the mask {0} is inverted"), site)
            for j in (1, 2):
                if tape.linear[op.inputs[j]]:
                    change = replaced(lambda op, ins, look, j=j: op.run([(ins[j] > 0) if j == 2 else (ins[j] <= 0), *ins[1:]])[0])
                    yield Mutant((site, "by cotangent", j), {site: change}, 1.3, _say_mask(op, "the mask is taken from the sign of the cotangent (gated by d_out > 0), not from {0}"), site)
        if op.name in ("gt", "ge", "lt", "le"):
            yield Mutant((site, "not"), {site: on_output(lambda op, x, look: ~x)}, 1.5, _say_mask_value(op, "the comparison {0} is the wrong way round"), site)
        if op.name in ("max", "min") and not tape.linear[op.outputs[0]]:
            for j in (0, 1):
                if tape.depends[op.inputs[j]]:
                    yield Mutant((site, "uncut", j), {site: replaced(lambda op, ins, look, j=j: ins[j])}, 1.4, _say(op, "the cut-off {1} is dropped"), site)
        if op.name == "scatter-add" and tape.linear[op.inputs[-1]]:
            yield Mutant((site, "set"), {site: _overwriting}, 1.1, _say_mask_value(op, "repeated indices overwrite each other: .set where .add is meant, only the last one of each counts"), site)
        if op.name == "select_and_scatter_add":
            yield Mutant((site, "ties"), {site: _to_all_ties}, 1.1, _say_mask_value(op, "every tied maximum of a window gets the error, and not one of them"), site)


def _say_mask(op: Op, words: str):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        return words.format(namer.expr(op.inputs[0], 4)) + f" in {right}", right

    return say


def _say_mask_value(op: Op, words: str):
    return lambda namer, c: (words.format(namer.operation(op, op.inputs, 4)[0]), namer.operation(op, op.inputs, 4)[0])


def _overwriting(op, ins, look):
    """The scatter run once for each update in turn would be slow: what was added is divided out by a scatter of indices."""
    import jax
    from jax import lax

    numbers, mode = op.params["dimension_numbers"], op.params["mode"]
    out = lax.scatter(*(jax.numpy.asarray(v) for v in ins), numbers, mode=mode)
    return [np.asarray(out)]


def _to_all_ties(op, ins, look):
    """g at every entry equal to its window's maximum."""
    source, operand = ins
    window, strides, padding = (op.params[k] for k in ("window_dimensions", "window_strides", "padding"))
    low = -np.inf if op.params["select_prim"].name == "ge" else np.inf
    padded = np.pad(operand, padding, constant_values=low)
    out = np.zeros_like(padded)
    best = np.maximum if low < 0 else np.minimum
    peaks = np.full(source.shape, low, operand.dtype)
    places = [
        tuple(slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, source.shape, strides, strict=True))
        for offset in np.ndindex(*window)
    ]
    for place in places:
        peaks = best(peaks, padded[place])
    for place in places:
        out[place] += source * (padded[place] == peaks)
    inner = tuple(slice(lo, lo + n) for (lo, _), n in zip(padding, operand.shape, strict=True))
    return [out[inner]]


def places(scene: Scene) -> Iterator[Mutant]:
    """Transposes and flips forgotten, slices and pads shifted by one."""
    tape = scene.tape
    for site, op in [*scene.linear(), *scene.residual()]:
        value = tape.values[op.outputs[0]]
        if not numeric.is_float(value):
            continue
        if op.name in ("transpose", "rev") and np.shape(value) == np.shape(tape.values[op.inputs[0]]):
            what = "transpose" if op.name == "transpose" else "kernel is not flipped: flip"
            yield Mutant((site, "undone"), {site: replaced(lambda op, ins, look: ins[0])}, 1.1, _say(op, f"the {what} is left out: {{0}} stands where {{1}} should"), site)
        if op.name in ("slice", "dynamic_slice", "pad", "concatenate", "gather", "dynamic_update_slice", "stack", "scatter-add", "reduce_window_sum"):
            for axis in range(np.ndim(value)):
                if value.shape[axis] < 2:
                    continue
                for by in (1, -1):
                    change = on_output(lambda op, x, look, a=axis, b=by: shifted(x, a, b, circular=False))
                    yield Mutant((site, "shift", axis, by), {site: change}, 1.7, _say(op, f"{{1}} is shifted by one ({by:+d}) along axis {axis}"), site)
                yield Mutant((site, "flip", axis), {site: on_output(lambda op, x, look, a=axis: np.flip(x, a))}, 1.8, _say(op, f"{{1}} is flipped along axis {axis}"), site)
        if op.name == "concatenate" and len({np.shape(tape.values[i]) for i in op.inputs}) == 1:
            for a in range(len(op.inputs) - 1):
                for b in range(a + 1, len(op.inputs)):
                    yield Mutant((site, "exchanged", a, b), {site: _exchanged(a, b)}, 1.5, _say(op, f"parts {a} and {b} of {{1}} are exchanged"), site)
        if op.name == "reshape" and tape.linear[op.inputs[0]] and np.ndim(value) > 1:
            yield Mutant((site, "order"), {site: replaced(lambda op, ins, look: np.reshape(ins[0], np.shape(look.tape.values[op.outputs[0]]), order="F"))}, 1.8, _say(op, "the entries of {1} are laid out in another order"), site)


def _exchanged(a: int, b: int):
    def change(op, ins, look):
        ins = list(ins)
        ins[a], ins[b] = ins[b], ins[a]
        return op.run(ins)

    return change


def steps(scene: Scene) -> Iterator[Mutant]:
    """A scan that reads another step's value: the one before, the one after, the one from the other end."""
    tape = scene.tape
    for site, op in scene.sites:
        if op.name != "step" or not numeric.is_float(tape.values[op.inputs[0]]):
            continue

        def at(which):
            def change(op, ins, look):
                t = which(op.frame[-1], op.params["length"])
                return [ins[0][t] if 0 <= t < op.params["length"] else np.zeros_like(ins[0][0])]

            return change

        def say(words, op=op):
            def of(namer, c):
                source = namer.expr(op.inputs[0], 4)
                made = tape.ops[tape.maker[op.inputs[0]]] if op.inputs[0] in tape.maker else None
                if made is not None and made.name == "stack":
                    source = namer.expr(made.inputs[0], 4)
                return words.format(source), ""

            return of

        yield Mutant((site, "before"), {site: at(lambda t, n: t - 1)}, 1.4, say("the {0} of the step before is used in the place of this step's"), site)
        yield Mutant((site, "after"), {site: at(lambda t, n: t + 1)}, 1.4, say("the {0} of the next step is used in the place of this step's"), site)
        yield Mutant((site, "first"), {site: at(lambda t, n: 0)}, 1.5, say("the {0} of the first step is used at every step"), site)
        yield Mutant((site, "last"), {site: at(lambda t, n: n - 1)}, 1.5, say("the {0} of the last step is used at every step"), site)
        yield Mutant((site, "reversed"), {site: at(lambda t, n: n - 1 - t)}, 1.4, say("{0} is read in the reverse order of the steps"), site)


_FACTORS: tuple[tuple[str, Callable[[Any, Any], Any], str, float], ...] = (
    ("dropped", lambda u, d: u, "the factor {0} is missing", 1.1),
    ("inverted", lambda u, d: u / d, "divided by {0} where it should be multiplied", 1.4),
    ("squared", lambda u, d: u * d * d, "the factor {0} is applied twice", 1.3),
    ("complement", lambda u, d: u * (1 - d), "the factor 1 - {0} in the place of {0}", 1.4),
    ("plus one", lambda u, d: u * (1 + d), "the factor 1 + {0} in the place of {0}", 1.5),
    ("minus one", lambda u, d: u * (d - 1), "the factor {0} - 1 in the place of {0}", 1.5),
    ("root", lambda u, d: u * np.sqrt(d), "the square root of the factor {0} in its place", 1.6),
    ("positive", lambda u, d: u * (d > 0), "only the sign ({0} > 0) of the factor {0}", 1.6),
    ("sign", lambda u, d: u * np.sign(d), "only the sign of the factor {0}", 1.65),
    ("absolute", lambda u, d: u * np.abs(d), "the factor |{0}| in the place of {0}", 1.7),
    ("conjugate", lambda u, d: u * np.conj(d), "the factor conj({0}) in the place of {0}: conjugation", 1.2),
    ("mean", lambda u, d: u * np.mean(d), "the mean of the factor {0} in its place", 1.8),
    ("alone", lambda u, d: np.broadcast_to(d, np.broadcast_shapes(np.shape(u), np.shape(d))), "the factor {0} stands alone: the error that it multiplies is missing (cotangent ignored)", 1.5),
    ("sigmoid half", lambda u, d: u * d * (1 - d), "the factor {0}(1 - {0}) in the place of {0}", 1.7),
    ("own square", lambda u, d: u * (1 - d * d), "the factor 1 - {0}² in the place of {0}", 1.7),
    ("cotangent's sign", lambda u, d: u * (u > 0), "gated by the sign of the cotangent (d_out > 0) in the place of the factor {0}", 1.5),
)  # fmt: skip


def factors(scene: Scene) -> Iterator[Mutant]:
    """Each factor that the error meets: dropped, inverted, squared, its complement, its sign."""
    tape = scene.tape
    for site, op in scene.linear():
        sides = scene.split(op)
        if sides is None or op.name not in ("mul", "div"):
            continue
        moving, fixed = sides
        if op.name == "div" and moving == 1:
            continue
        u = tape.values[op.inputs[moving]]
        for axis in range(np.ndim(u)):
            if np.shape(u)[axis] > 1:
                change = on_operand(moving, lambda op, x, look, a=axis: x - np.mean(x, a, keepdims=True))
                yield Mutant((site, "centred", axis), {site: change}, 1.6, _say_centred(op, moving, axis), site)
        constant = not tape.depends[op.inputs[fixed]]
        for kind, function, words, cost in _FACTORS:
            if kind == "conjugate" and not np.iscomplexobj(tape.values[op.inputs[fixed]]):
                continue
            if constant and kind not in ("dropped", "inverted", "squared", "root", "complement"):
                continue

            def change(op, ins, look, f=function, m=moving, d=fixed):
                return f(ins[m], ins[d] if op.name == "mul" else 1 / ins[d])

            def say(namer, c, op=op, words=words, fixed=fixed):
                factor = namer.expr(op.inputs[fixed], 5)
                factor = factor if op.name == "mul" else f"1/({factor})"
                right = namer.operation(op, op.inputs, 6)[0]
                return words.format(factor) + f" in {right}", right

            yield Mutant((site, "factor", kind), {site: replaced(change)}, cost, say, site)


def _say_centred(op: Op, j: int, axis: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 6)[0]
        error = namer.expr(op.inputs[j], 5)
        return f"the mean of {error} over axis {axis} is subtracted from it in {right}: a mean term too many", right

    return say


_RESIDUAL: tuple[tuple[str, Callable[[Any], Any], str, float], ...] = (
    ("one", lambda x: np.ones_like(x), "1 stands in the place of {0}", 1.8),
    ("zero", lambda x: np.zeros_like(x), "{0} is missing (0 in its place)", 1.7),
    ("negated", lambda x: -x, "{0} has the wrong sign", 1.6),
    ("square", lambda x: x * x, "{0} is squared", 1.8),
    ("root", lambda x: np.sqrt(x), "the square root of {0} in its place", 1.8),
    ("inverse", lambda x: 1 / x, "1/({0}) in its place", 1.8),
    ("complement", lambda x: 1 - x, "1 - {0} in its place", 1.8),
    ("half", lambda x: x / 2, "{0} is halved", 1.9),
    ("double", lambda x: x * 2, "{0} is doubled", 1.9),
)  # fmt: skip


def ranges(scene: Scene) -> Iterator[Mutant]:
    """What the error is multiplied with, computed otherwise: an operand left out, a result inverted, squared, halved."""
    tape = scene.tape
    for site, op in scene.residual():
        value = tape.values[op.outputs[0]]
        if not numeric.is_float(value) or op.name in ("step", "stack", "expand", "reshape", "broadcast_in_dim", "copy"):
            continue
        if len(op.inputs) <= 2 and op.name in ("add", "sub", "mul", "div", "integer_pow", "square", "sqrt", "rsqrt", "tanh", "logistic",
                                               "exp", "log", "erf", "pow", "max", "min", "sin", "cos", "log1p", "abs", "neg", "erfc"):  # fmt: skip
            for j, i in enumerate(op.inputs):
                if tape.depends[i] and numeric.is_float(tape.values[i]):
                    yield Mutant((site, "only", j), {site: replaced(lambda op, ins, look, j=j: ins[j])}, 1.5, _say_only(op, j), site)
        divisor = tape.values[op.inputs[1]] if op.name == "div" else 0.0
        if np.ndim(divisor) == 0 and divisor > 1 and divisor == int(divisor) and not tape.depends[op.inputs[1]]:
            for off, n in ((-1, "n − 1"), (1, "n + 1")):
                change = on_operand(1, lambda op, x, look, o=off: x + np.asarray(o, x.dtype))
                yield Mutant((site, "count", off), {site: change}, 1.4, _say_value(op, f"the mean {{0}} is taken over {n} = {int(divisor) + off} where the forward pass has n = {int(divisor)} (variance over {n})"), site)
        for kind, function, words, cost in _RESIDUAL:
            yield Mutant((site, kind), {site: on_output(lambda op, x, look, f=function: f(x))}, cost, _say_value(op, words), site)


def _say_only(op: Op, j: int):
    def say(namer, c):
        right = namer.operation(op, op.inputs, 5)[0]
        other = [namer.expr(i, 4) for k, i in enumerate(op.inputs) if k != j]
        lost = f"{other[0]} is left out" if other else f"{op.name} is left out"
        return f"{lost}: {namer.expr(op.inputs[j], 5)} stands where {right} should", right

    return say


def _say_value(op: Op, words: str):
    def say(namer, c):
        name = namer.names.get(op.outputs[0])
        right = namer.operation(op, op.inputs, 5)[0]
        return words.format(name or right), f"{name} = {right}" if name else right

    return say
