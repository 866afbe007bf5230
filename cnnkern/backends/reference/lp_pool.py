"""Lp pooling: the norm of each window's real elements."""

from __future__ import annotations

import numpy as np

from ...spec import PoolGeometry, Request
from .common import channels_first, geometry, row, store, wide
from .taps import taps


def lp_pool(request: Request, inputs: tuple, outputs: tuple) -> None:
    x = abs(wide(channels_first(request, inputs[0])))
    store(
        channels_first(request, outputs[0]),
        _norm(geometry(request, PoolGeometry), x, float(request.option("norm_type"))),
    )


def lp_pool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    """gy sign(x) (|x| / y)^(p-1), 0 where x = 0 (so where y = 0 too).

    p = inf is the limit of that: the elements with |x| = y share the gradient equally.
    """
    g = geometry(request, PoolGeometry)
    p = float(request.option("norm_type"))
    grad_output, x = (wide(channels_first(request, array)) for array in inputs)
    size = abs(x)
    y = _norm(g, size, p)
    if np.isinf(p):
        share = grad_output / _count_equal(g, size, y)
    else:
        share = grad_output
    grad_x = np.zeros(g.x_shape)
    for tap in taps(g):
        served, read = tap.output, tap.input
        ratio = size[read] / y[served]
        slope = np.where(np.isnan(ratio), ratio, ratio == 1) if np.isinf(p) else ratio ** (p - 1)
        grad_x[read] += np.where(x[read] == 0, 0, np.sign(x[read]) * slope * share[served])
    store(channels_first(request, outputs[0]), grad_x)


def _norm(g: PoolGeometry, size: np.ndarray, p: float) -> np.ndarray:
    """(sum of size^p)^(1/p) per window, taken relative to the largest so that no power over- or underflows."""
    largest = np.zeros(g.y_shape)
    for tap in taps(g):
        largest[tap.output] = np.maximum(largest[tap.output], size[tap.input])  # keeps NaN
    if np.isinf(p):
        return largest
    total = np.zeros(g.y_shape)
    for tap in taps(g):
        total[tap.output] += (size[tap.input] / largest[tap.output]) ** p
    return np.where((largest == 0) | np.isinf(largest), largest, largest * total ** (1 / p))


def _count_equal(g: PoolGeometry, size: np.ndarray, y: np.ndarray) -> np.ndarray:
    count = np.zeros(g.y_shape)
    for tap in taps(g):
        count[tap.output] += size[tap.input] == y[tap.output]
    return count


def _why_not(request: Request) -> str | None:
    p = request.option("norm_type")
    return None if p > 0 else f"needs norm_type > 0, got {p}"


ROWS = (
    row("lp_pool", lp_pool, why_not=_why_not),
    row("lp_pool_grad", lp_pool_grad, why_not=_why_not),
)
