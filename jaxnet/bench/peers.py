"""The same computation in torch, where it is installed: eager, and by `torch.compile`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from jaxnet.bench.measure import Variant


@cache
def torch() -> Any:
    """The module, with as many threads as there are cores; None, and a line that says so, where there is none."""
    try:
        module = import_module("torch")
    except ImportError:
        print("torch is not installed: its variants are left out (pip install torch)")
        return None
    module.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return module


def torch_variants(
    forward: Callable, inputs: Sequence[Any], d_out: Any, arrange: Callable = lambda out, *grads: (out, *grads), **aims
) -> tuple[Variant, ...]:
    """Forward and backward in torch: `forward(*inputs)` of tensors, and ∂/∂inputs of ⟨d_out, it⟩.

    `arrange(out, *gradients)`: its results in the order of ours. `aims` hold against eager and compiled alike.
    """
    module = torch()
    if module is None:
        return ()
    tensors = [module.tensor(np.asarray(t), requires_grad=True) for t in inputs]
    cotangent = module.tensor(np.asarray(d_out))

    def by(function: Callable[[], Callable]) -> Callable[[], Any]:
        def run() -> Any:
            out = function()(*tensors)
            grads = module.autograd.grad(out, tensors, cotangent)
            return arrange(out.detach().numpy(), *(grad.numpy() for grad in grads))

        return run

    return (
        Variant("torch, eager", by(lambda: forward), **aims),
        Variant("torch.compile", by(cache(lambda: module.compile(forward))), **aims),  # at its first run
    )
