"""Max unpooling: zeros with each element put back where its index says."""

from __future__ import annotations

from math import prod

import numpy as np

from ...spec import Request, ResizeGeometry
from .common import BOOL, FLOATS, INTEGERS, channels_first, geometry, row, store
from .indices import check_in_plane, flat_targets


def _last_writers(request: Request, indices: np.ndarray) -> np.ndarray:
    """For each element of the output the row-major place in x of the last element put there; -1 where there is none."""
    g = geometry(request, ResizeGeometry)
    check_in_plane(request, indices, g.output)
    targets = flat_targets(channels_first(request, indices), prod(g.output))
    writer = np.full(prod(g.y_shape), -1)
    np.maximum.at(writer, targets, np.arange(targets.size))
    return writer


def max_unpool(request: Request, inputs: tuple, outputs: tuple) -> None:
    x, indices = inputs
    writer = _last_writers(request, indices)
    values = channels_first(request, x).ravel()
    out = np.zeros(writer.shape, x.dtype)
    written = writer >= 0
    out[written] = values[writer[written]]
    store(channels_first(request, outputs[0]), out.reshape(geometry(request, ResizeGeometry).y_shape))


def max_unpool_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    """The element that the output kept gets its gradient; one that was overwritten had no effect and gets 0."""
    grad_output, indices = inputs
    writer = _last_writers(request, indices)
    values = channels_first(request, grad_output).ravel()
    grad_x = np.zeros(prod(geometry(request, ResizeGeometry).x_shape), grad_output.dtype)
    written = writer >= 0
    grad_x[writer[written]] = values[written]
    store(channels_first(request, outputs[0]), grad_x.reshape(geometry(request, ResizeGeometry).x_shape))


ROWS = (
    row("max_unpool", max_unpool, (*FLOATS, *INTEGERS, *BOOL)),
    row("max_unpool_grad", max_unpool_grad),
)
