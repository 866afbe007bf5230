"""Max pooling, windowed and adaptive, with both kinds of index, and the gradients that follow the indices."""

from __future__ import annotations

from math import prod

import numpy as np

from ...spec import PoolGeometry, Request, ResizeGeometry
from ...spec.sentences import bad_index
from .common import BOOL, FLOATS, INTEGERS, channels_first, geometry, row, store, wide
from .indices import check_in_plane, first_outside, plane_offsets, scatter_add
from .taps import adaptive_windows, taps

MOST_WINDOW_CELLS = 65_536  # what a uint16 numbers


def max_pool(request: Request, inputs: tuple, outputs: tuple) -> None:
    """Scan each window in row-major order, taking v if v > m or v is NaN; the first real element is always taken.

    So of equal elements the first wins, of several NaN the last, and a window of -inf gives its first real element.
    """
    g = geometry(request, PoolGeometry)
    x = channels_first(request, inputs[0])
    best = np.zeros(g.y_shape, x.dtype)
    index = np.zeros(g.y_shape, np.int64)
    seen = np.zeros(g.output, bool)
    in_window = request.option("indices") == "window"
    offsets = plane_offsets(g.input)
    for tap in taps(g):
        value = x[tap.input]
        take = ~seen[tap.output] | (value > best[tap.output]) | (value != value)
        here = np.ravel_multi_index(tap.cell, g.kernel) if in_window else offsets[tap.input]
        np.copyto(best[tap.output], value, where=take)
        np.copyto(index[tap.output], here, where=take)
        seen[tap.output] = True
    _give(request, outputs, best, index)


def adaptive_max_pool(request: Request, inputs: tuple, outputs: tuple) -> None:
    """The same rule over adaptive windows."""
    g = geometry(request, ResizeGeometry)
    x = channels_first(request, inputs[0])
    best = np.zeros(g.y_shape, x.dtype)
    index = np.zeros(g.y_shape, np.int64)
    offsets = plane_offsets(g.input)
    for position, window in adaptive_windows(g):
        values = x[window]
        values = values.reshape(*values.shape[:2], prod(values.shape[2:]))
        chosen = _place_of_max(values)
        best[position] = np.take_along_axis(values, chosen[..., None], axis=2)[..., 0]
        index[position] = offsets[window].ravel()[chosen]
    _give(request, outputs, best, index)


def _place_of_max(values: np.ndarray) -> np.ndarray:
    """Along the last axis: the last NaN if there is one, else the first maximum."""
    nan = values != values
    last_nan = values.shape[-1] - 1 - nan[..., ::-1].argmax(axis=-1)
    return np.where(nan.any(axis=-1), last_nan, values.argmax(axis=-1))


def _give(request: Request, outputs: tuple, best: np.ndarray, index: np.ndarray) -> None:
    out, indices = outputs
    store(channels_first(request, out), best)
    if indices is not None:
        store(channels_first(request, indices), index)


def max_pool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    """Each output's gradient goes to the element its index names."""
    grad_output, indices = inputs
    g = geometry(request, PoolGeometry)
    if request.option("indices") == "window":
        offsets = _plane_offsets_of_cells(request, g, channels_first(request, indices))
    else:
        check_in_plane(request, indices, g.input)
        offsets = channels_first(request, indices)
    grad_x = scatter_add(wide(channels_first(request, grad_output)), offsets, g.input)
    store(channels_first(request, outputs[0]), grad_x)


def adaptive_max_pool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    grad_output, indices = inputs
    plane = geometry(request, ResizeGeometry).input
    check_in_plane(request, indices, plane)
    grad_x = scatter_add(wide(channels_first(request, grad_output)), channels_first(request, indices), plane)
    store(channels_first(request, outputs[0]), grad_x)


def _plane_offsets_of_cells(request: Request, g: PoolGeometry, cells: np.ndarray) -> np.ndarray:
    """Window-local indices (batch, channels, output...) -> offsets in the plane."""
    outside = cells >= prod(g.kernel)
    cell = np.unravel_index(np.where(outside, 0, cells), g.kernel)
    windows = np.ix_(*(np.arange(size) for size in g.output))
    coordinates = []
    for axis, (stride, dilation, before) in enumerate(zip(g.stride, g.dilation, g.pad_before, strict=True)):
        at = windows[axis] * stride - before + cell[axis] * dilation
        outside = outside | (at < 0) | (at >= g.input[axis])
        coordinates.append(at)
    place = first_outside(outside)
    if place is not None:
        raise bad_index(request, int(cells[place]), place)
    return np.ravel_multi_index(tuple(coordinates), g.input) if cells.size else np.zeros(cells.shape, np.int64)


def _why_not_window_indices(request: Request) -> str | None:
    cells = prod(geometry(request, PoolGeometry).kernel)
    if request.option("indices") == "window" and cells > MOST_WINDOW_CELLS:
        return f"needs at most {MOST_WINDOW_CELLS} cells in a window for window indices, got {cells}"
    return None


ROWS = (
    row("max_pool", max_pool, (*FLOATS, *INTEGERS, *BOOL), _why_not_window_indices),
    row("max_pool_grad", max_pool_grad, why_not=_why_not_window_indices),
    row("adaptive_max_pool", adaptive_max_pool, (*FLOATS, *INTEGERS, *BOOL)),
    row("adaptive_max_pool_grad", adaptive_max_pool_grad),
)
