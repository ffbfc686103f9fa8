"""`jaxnet check --device`: how exact each layer's backward pass is on the device present, by dtype.

    noise = max |g − g₆₄| / max |g₆₄|        g: ∂C/∂x or a gradient; g₆₄: the plain equations in float64, on the CPU

Both take the same numbers, rounded to the dtype. So it shows where a device multiplies float32 in fewer bits, as TF32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnet.backprop import vjp
from jaxnet.checking import points
from jaxnet.checking.network_subjects import takes_batch
from jaxnet.checking.subject import CannotCheckError
from jaxnet.checking.targets import Target, find, in_dtype, shipped
from jaxnet.layer import Layer
from jaxnet.lowering import plain_forms

DTYPES = ("float32", "bfloat16", "float16")
SEEDS = 3


class LayerNoise(NamedTuple):
    """The largest noise of a layer's backward pass in each dtype of `DTYPES`."""

    name: str
    noise: tuple[float, ...]


def backward_pass(net: Layer, params: Any, x: Any, d_out: Any) -> list[np.ndarray]:
    """The gradients and ∂C/∂x, in float64."""
    found = jax.jit(lambda params, x, d_out: vjp(net)(params, x)[1](d_out))(params, x, d_out)
    return [np.asarray(t, np.float64) for t in jax.tree.leaves(found) if jnp.issubdtype(t.dtype, jnp.inexact)]


def noise_of(target: Target, dtype: str, seed: int) -> float:
    """The noise of a layer's backward pass at one point, in one dtype."""
    net: Layer = target.rule
    template = points.expand(in_dtype(target.args, dtype))
    [x] = points.draw(template, seed)
    if takes_batch(net, template):
        x = jax.tree.map(lambda t: t[0], x)
    example = jax.tree.map(lambda t: jax.ShapeDtypeStruct(t.shape, t.dtype), x)
    params = jax.jit(lambda key: net.init(key, example))(jax.random.key(seed))
    out = jax.eval_shape(lambda params, x: net.forward(params, x)[0], params, x)
    d_out = jax.tree.unflatten(jax.tree.structure(out), points.random_like(jax.tree.leaves(out), seed))
    on_device = backward_pass(net, params, x, d_out)
    host = jax.tree.map(np.asarray, (params, x, d_out))
    with jax.enable_x64(True), plain_forms(), jax.default_device(jax.devices("cpu")[0]):
        exact = backward_pass(net, *jax.tree.map(widened, host))
    parts = ((np.abs(a - b).max(), np.abs(b).max()) for a, b in zip(on_device, exact, strict=True) if b.size)
    return max((float(off / size) if size else float(off) for off, size in parts), default=0.0)


def widened(t: np.ndarray) -> jax.Array:
    """Real numbers in float64, others as they are."""
    return jnp.asarray(t, jnp.float64) if jnp.issubdtype(t.dtype, jnp.floating) else jnp.asarray(t)


def measured(targets: Sequence[Target]) -> list[LayerNoise]:
    """The noise of each layer, the largest of several points."""
    return [
        LayerNoise(each.name, tuple(max(noise_of(each, dtype, seed) for seed in range(SEEDS)) for dtype in DTYPES))
        for each in targets
        if isinstance(each.rule, Layer)
    ]


def holds(rows: Sequence[LayerNoise]) -> dict[str, float]:
    """The tolerance that holds for all layers in each dtype: twice the largest noise, in one digit."""
    worst = {dtype: 2 * max(row.noise[i] for row in rows) for i, dtype in enumerate(DTYPES)}
    return {dtype: float(f"{each:.0e}") for dtype, each in worst.items()}


def run(names: Sequence[str] = (), json_file: Path | None = None) -> int:
    """Prints the table of the layers named, or of all; gives the exit status.

    Raises `CannotCheckError` for a name that is none, or of no layer.
    """
    targets = [each for name in names for each in find(name)] if names else shipped()
    layers = [each for each in targets if isinstance(each.rule, Layer)]
    if not layers:
        raise CannotCheckError(f"the noise of layers is measured, got {', '.join(names)}: name a layer")
    device, rows = jax.devices()[0], []
    print(f"{device.device_kind}: largest error of a backward pass, over its largest entry\n")
    print(f"{'layer':48}" + "".join(f"{dtype:>10}" for dtype in DTYPES))
    for each in layers:
        rows += (found := measured([each]))
        print(f"{each.name:48}" + "".join(f"{noise:>10.0e}" for noise in found[0].noise), flush=True)
    tolerances = holds(rows)
    print(f"{'tolerance that holds':48}" + "".join(f"{tolerances[dtype]:>10.0e}" for dtype in DTYPES))
    if json_file is not None:
        noise = {row.name: dict(zip(DTYPES, row.noise, strict=True)) for row in rows}
        made = {"device": device.device_kind, "noise": noise, "tolerance": tolerances}
        json_file.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0
