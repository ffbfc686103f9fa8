"""`jaxnet check --device`: how exact each backward pass is on the device present, by dtype.

    noise = max |g − g₆₄| / max |g₆₄|        g: ∂C/∂x or a gradient; g₆₄: the plain equations in float64, on the CPU

Both take the same numbers, rounded to the dtype. So it shows where a device multiplies float32 in fewer bits, as TF32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import initialize, value_and_grad, vjp
from jaxnet.checking import points
from jaxnet.checking.network_subjects import takes_batch
from jaxnet.checking.subject import CannotCheckError
from jaxnet.checking.targets import Target, find, in_dtype, shipped
from jaxnet.layer import Layer, Loss
from jaxnet.lowering import plain_forms
from jaxnet.readings import total

DTYPES = ("float32", "bfloat16", "float16")
SEEDS = 3
ZERO = (
    1e-10  # of the largest gradient: one below is 0 but for rounding, as that of a bias of keys, and is held against it
)


class Noise(NamedTuple):
    """The largest noise of a backward pass in each dtype of `DTYPES`."""

    name: str
    noise: tuple[float, ...]


def is_measured(rule: Any) -> bool:
    """Whether a rule is a layer, a loss, or a network with its loss."""
    return isinstance(rule, Layer | Loss) or (isinstance(rule, tuple) and [*map(type, rule)] == [Layer, Loss])


def point(target: Target, dtype: str, seed: int) -> tuple[Callable, tuple]:
    """A backward pass, and arrays in a dtype that it takes."""
    rule, key = target.rule, jax.random.key(seed)
    template = points.expand(in_dtype(target.args, dtype))
    x, *target_values = points.draw(template, seed)
    if isinstance(rule, Layer):
        if takes_batch(rule, template):
            x = jax.tree.map(lambda t: t[0], x)
        params = in_params(jax.jit(rule.init)(key, x), dtype)
        out = jax.eval_shape(lambda params, x: rule.forward(params, x)[0], params, x)
        d_out = jax.tree.unflatten(jax.tree.structure(out), points.random_like(jax.tree.leaves(out), seed))
        return lambda params, x, d_out: vjp(rule)(params, x)[1](d_out), (params, x, d_out)
    if isinstance(rule, Loss):
        params = () if rule.init is None else in_params(rule.init(key, x), dtype)
        return lambda params, x, y: rule.turn(params, x, y, 1.0, total)[1:], (params, x, *target_values)
    net, loss = rule
    params = in_params(jax.jit(lambda key: initialize(net, loss, key, x[0]))(key), dtype)
    return lambda *arrays: value_and_grad(net, loss)(*arrays)[1], (params, x, *target_values)


def in_params(params: Any, dtype: str) -> Any:
    """Parameters in a dtype."""
    return jax.tree.map(lambda t: t.astype(dtype) if jnp.issubdtype(t.dtype, jnp.floating) else t, params)


def in_float64(backward: Callable, arrays: tuple) -> list[np.ndarray]:
    """The gradients of a backward pass, in float64."""
    found = jax.tree.leaves(jax.jit(backward)(*arrays))
    return [np.asarray(t, np.float64) for t in found if jnp.issubdtype(t.dtype, jnp.inexact)]


def noise_of(target: Target, dtype: str, seed: int) -> float:
    """The noise of a backward pass at one point, in one dtype."""
    backward, arrays = point(target, dtype, seed)
    on_device = in_float64(backward, arrays)
    host = jax.tree.map(np.asarray, arrays)
    with jax.enable_x64(True), plain_forms(), jax.default_device(jax.devices("cpu")[0]):
        exact = in_float64(backward, jax.tree.map(widened, host))
    sizes = [np.abs(t).max(initial=0.0) for t in exact]
    whole = max(sizes, default=0.0) or 1.0
    offs = (np.abs(a - b).max(initial=0.0) for a, b in zip(on_device, exact, strict=True))
    return max(
        (float(off / (n if n > ZERO * whole else whole)) for off, n in zip(offs, sizes, strict=True)), default=0.0
    )


def widened(t: np.ndarray) -> jax.Array:
    """Real numbers in float64, others as they are."""
    return jnp.asarray(t, jnp.float64) if jnp.issubdtype(t.dtype, jnp.floating) else jnp.asarray(t)


def measured(targets: Sequence[Target]) -> list[Noise]:
    """The noise of each backward pass, the largest of several points."""
    return [
        Noise(each.name, tuple(max(noise_of(each, dtype, seed) for seed in range(SEEDS)) for dtype in DTYPES))
        for each in targets
    ]


def holds(rows: Sequence[Noise]) -> dict[str, float]:
    """The tolerance that holds for all in each dtype: twice the largest noise, in one digit."""
    worst = {dtype: 2 * max(row.noise[i] for row in rows) for i, dtype in enumerate(DTYPES)}
    return {dtype: float(f"{each:.0e}") for dtype, each in worst.items()}


def run(names: Sequence[str] = (), json_file: Path | None = None) -> int:
    """Prints the table of the layers, losses and models named, or of all; gives the exit status.

    Raises `CannotCheckError` for a name that is none, or of something else.
    """
    targets = [each for name in names for each in find(name)] if names else shipped()
    for each in targets:
        if not is_measured(each.rule):
            raise CannotCheckError(
                f"the noise of a layer, a loss or a pair (network, loss) is measured, got {each.name}"
            )
    device, rows = jax.devices()[0], []
    print(f"{device.device_kind}: largest error of a backward pass, over its largest entry\n")
    print(f"{'backward pass':48}" + "".join(f"{dtype:>10}" for dtype in DTYPES))
    for each in targets:
        rows += (found := measured([each]))
        print(f"{each.name:48}" + "".join(f"{noise:>10.0e}" for noise in found[0].noise), flush=True)
    tolerances = holds(rows)
    print(f"{'tolerance that holds':48}" + "".join(f"{tolerances[dtype]:>10.0e}" for dtype in DTYPES))
    if json_file is not None:
        noise = {row.name: dict(zip(DTYPES, row.noise, strict=True)) for row in rows}
        made = {"device": device.device_kind, "noise": noise, "tolerance": tolerances}
        json_file.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
