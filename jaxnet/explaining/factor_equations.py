"""The gradient of a parameter as its factor's equation: ∇W = δ aᵀ, Σ_p δ_p a_{sp+k}ᵀ."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from jaxnet.explaining import expressions as ex
from jaxnet.explaining.records import Site
from jaxnet.explaining.transcription import Transcription, UnwritableError, at, multiple, padding_before, window_place
from jaxnet.factors import Factor, FactorSum, Outer, Plain
from jaxnet.layers.conv import Patches
from jaxnet.layers.embedding import Rows


@singledispatch
def gradient_of(factor: Factor, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    """∇ of a parameter as its factor's equation, and the index of the parameter there."""
    raise UnwritableError(f"{type(factor).__name__} has no equation")


def summed(sums: int, of: ex.Expression, site: Site) -> ex.Expression:
    """Σ over leading axes, those of the positions among them."""
    axes = sums + site.record.positions
    return ex.BigSum(site.record.index(axes), of) if axes else of


@gradient_of.register
def _(factor: Outer, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    delta, a = written.value(factor.delta), written.value(factor.a)
    return summed(factor.sums, site.outer(delta, a), site), ""


@gradient_of.register
def _(factor: Plain, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    return summed(factor.sums, written.value(factor.delta), site), ""


@gradient_of.register
def _(factor: FactorSum, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    return ex.Sum(tuple(gradient_of(use, written, site, grad)[0] for use in factor.uses)), ""


@gradient_of.register
def _(factor: Rows, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    index = "t" if np.ndim(factor.tokens) else ""
    delta, tokens = (at(written.value(each), index) for each in (factor.delta, factor.tokens))
    outer = site.outer(ex.Call(ex.Name("unit"), tokens), delta)
    return written.known_by_value(ex.BigSum(index, outer) if index else outer, grad), ""


@gradient_of.register
def _(factor: Patches, written: Transcription, site: Site, grad: np.ndarray) -> tuple[ex.Expression, str]:
    window = factor.window
    before = padding_before(window.padding)
    place = window_place(multiple(window.stride), multiple(window.dilation), before)
    delta, a = written.value(factor.delta), written.value(factor.a)
    delta, a = (at(delta, place), at(a, "p")) if factor.transposed else (at(delta, "p"), at(a, place))
    return written.known_by_value(ex.BigSum("p", site.outer(delta, a)), grad), "k"
