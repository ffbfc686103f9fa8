"""Kernels in Pallas for GPUs (Triton) and TPUs (Mosaic): the plain equations, in a few launches."""

from functools import partial
from importlib import import_module
from typing import Any

from jaxnet.lowering.op import Form, form


def kernel(module: str, name: str, axes: str = "", **fixed: Any) -> Form:
    """The form `name(…, **fixed)` of a module of this room, where its `fits` says so. Only its use imports Pallas.

    axes: as of `form`.
    """

    def of_module(name: str) -> Any:
        return partial(getattr(import_module(f"{__name__}.{module}"), name), **fixed)

    return form(
        lambda *arrays, **options: of_module(name)(*arrays, **options),
        when=lambda *arrays, **options: of_module("fits")(*arrays, **options),
        axes=axes,
    )
