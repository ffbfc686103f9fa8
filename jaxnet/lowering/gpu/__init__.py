"""Kernels for GPUs, in Pallas for Triton: the same operations as the plain equations, in a few launches."""

from importlib import import_module
from typing import Any

from jaxnet.lowering.op import Form, form


def kernel(module: str, name: str) -> Form:
    """The form `name` of a module of this room, used where its `fits` says so. Only its use imports Pallas."""

    def of_module(name: str) -> Any:
        return getattr(import_module(f"{__name__}.{module}"), name)

    return form(
        lambda *arrays, **options: of_module(name)(*arrays, **options),
        when=lambda *arrays, **options: of_module("fits")(*arrays, **options),
    )
