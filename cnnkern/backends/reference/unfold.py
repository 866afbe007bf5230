"""Unfold: every window as a column (batch, channels * cells, windows). Fold: its adjoint."""

from __future__ import annotations

import numpy as np

from ...spec import ConvGeometry, Request
from .common import channels_first, geometry, row, store, wide
from .taps import taps


def unfold(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, ConvGeometry)
    x = channels_first(request, inputs[0])
    columns = np.zeros((g.batch, g.in_channels, *g.kernel, *g.output), x.dtype)
    by_cell = _cells_first(columns, g.rank)
    for tap in taps(g):
        by_cell[tap.cell][tap.output] = x[tap.input]
    store(outputs[0], columns.reshape(outputs[0].shape))


def fold(request: Request, inputs: tuple, outputs: tuple) -> None:
    g = geometry(request, ConvGeometry)
    by_cell = _cells_first(wide(inputs[0]).reshape(g.batch, g.in_channels, *g.kernel, *g.output), g.rank)
    total = np.zeros(g.x_shape)
    for tap in taps(g):
        total[tap.input] += by_cell[tap.cell][tap.output]
    store(channels_first(request, outputs[0]), total)


def _cells_first(columns: np.ndarray, rank: int) -> np.ndarray:
    """View (kernel..., batch, channels, output...) of (batch, channels, kernel..., output...)."""
    return np.moveaxis(columns, range(2, 2 + rank), range(rank))


ROWS = (row("unfold", unfold), row("fold", fold))
