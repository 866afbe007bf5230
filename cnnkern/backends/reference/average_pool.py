"""Average pooling, windowed and adaptive. Integers are summed exactly and the quotient is truncated toward zero."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import prod

import numpy as np

from ...spec import PoolGeometry, Request, ResizeGeometry
from .common import FLOATS, INTEGERS, channels_first, geometry, row, store, wide
from .taps import adaptive_windows, taps


def avg_pool(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, PoolGeometry)
    x = _summable(channels_first(request, inputs[0]))
    total = np.zeros(g.y_shape, x.dtype)
    for tap in taps(g):
        total[tap.output] += x[tap.input]
    _store_quotient(channels_first(request, outputs[0]), total, _divisors(request))


def avg_pool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, PoolGeometry)
    share = wide(channels_first(request, inputs[0])) / _divisors(request).astype(np.float64)
    grad_x = np.zeros(g.x_shape)
    for tap in taps(g):
        grad_x[tap.input] += share[tap.output]
    store(channels_first(request, outputs[0]), grad_x)


def adaptive_avg_pool(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, ResizeGeometry)
    x = _summable(channels_first(request, inputs[0]))
    total = np.zeros(g.y_shape, x.dtype)
    count = np.zeros(g.output, np.int64)
    for position, window in adaptive_windows(g):
        values = x[window]
        cells = prod(values.shape[2:])
        total[position] = values.reshape(g.batch, g.channels, cells).sum(axis=2)
        count[position] = cells
    _store_quotient(channels_first(request, outputs[0]), total, count)


def adaptive_avg_pool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, ResizeGeometry)
    grad_output = wide(channels_first(request, inputs[0]))
    grad_x = np.zeros(g.x_shape)
    for position, window in adaptive_windows(g):
        part = grad_x[window]
        part += grad_output[position].reshape(*part.shape[:2], *(1,) * g.rank) / prod(part.shape[2:])
    store(channels_first(request, outputs[0]), grad_x)


def _summable(x: np.ndarray) -> np.ndarray:
    """float64, or a type in which integer sums are exact: Python's own ints where int64 could overflow."""
    if x.dtype.kind not in "iu":
        return wide(x)
    return x.astype(object if x.dtype.itemsize == 8 else np.int64)


def _store_quotient(out: np.ndarray, total: np.ndarray, divisor: np.ndarray) -> None:
    if out.dtype.kind in "iu":
        total = np.sign(total) * (abs(total) // divisor)
        if total.dtype == object:  # wrap, as the narrower integers do when a small divisor makes the result too large
            total = (total & (2**64 - 1)).astype(np.uint64).view(np.int64)
        store(out, total)
    else:
        store(out, total / divisor.astype(np.float64))


def _divisors(request: Request) -> np.ndarray:
    """What each window's sum is divided by, shaped as the output's spatial axes.

    ``divisor`` if given; else the cells inside the padded input (beyond it, where only ceil_mode reaches, none count),
    or without ``count_include_pad`` the cells on real elements.
    """
    g = geometry(request, PoolGeometry)
    override = request.option("divisor")
    if override is not None:
        per_axis = [np.full(size, 1, object) for size in g.output]
        per_axis[0] = per_axis[0] * int(override)
    elif request.option("count_include_pad"):
        per_axis = _cells_per_axis(g, lambda axis: -g.pad_before[axis], lambda axis: g.input[axis] + g.pad_after[axis])
    else:
        per_axis = _cells_per_axis(g, lambda axis: 0, lambda axis: g.input[axis])
    product = reduce(np.multiply.outer, per_axis)
    return product.astype(np.int64) if product.size == 0 or product.max() < 2**63 else product


def _cells_per_axis(g: PoolGeometry, low: Callable[[int], int], high: Callable[[int], int]) -> list[np.ndarray]:
    """Per axis and window the number of cells at coordinates from ``low`` up to but not including ``high``."""
    counts = []
    for axis, out in enumerate(g.output):
        dilation, kernel = g.dilation[axis], g.kernel[axis]
        starts = [p * g.stride[axis] - g.pad_before[axis] for p in range(out)]
        before = [max(0, -((start - low(axis)) // dilation)) for start in starts]
        until = [min(kernel, (high(axis) - 1 - start) // dilation + 1) for start in starts]
        counts.append(np.array([max(0, u - b) for b, u in zip(before, until, strict=True)], object))
    return counts


ROWS = (
    row("avg_pool", avg_pool, (*FLOATS, *INTEGERS)),
    row("avg_pool_grad", avg_pool_grad),
    row("adaptive_avg_pool", adaptive_avg_pool, (*FLOATS, *INTEGERS)),
    row("adaptive_avg_pool_grad", adaptive_avg_pool_grad),
)
