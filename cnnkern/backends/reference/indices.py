"""Offsets into a plane as other ops hand them over: checked before use, and summed into the plane they name."""

from __future__ import annotations

from math import prod

import numpy as np

from ...spec import Request
from ...spec.sentences import bad_index
from .common import channels_first


def plane_offsets(plane: tuple[int, ...]) -> np.ndarray:
    """The row-major offset of every element, shaped as the plane."""
    return np.arange(prod(plane)).reshape(plane)


def first_outside(outside: np.ndarray) -> tuple[int, ...] | None:
    """Position of the first True."""
    if not outside.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(outside.argmax()), outside.shape))


def check_in_plane(request: Request, indices: np.ndarray, plane: tuple[int, ...]) -> None:
    """Raise ArgumentError unless every index is an offset into a plane of these sizes."""
    size = prod(plane)
    indices = channels_first(request, indices)
    place = first_outside((indices < 0) | (indices >= size))
    if place is not None:
        raise bad_index(request, int(indices[place]), place)


def flat_targets(indices: np.ndarray, plane_size: int) -> np.ndarray:
    """Offsets in a plane (batch, channels, ...) -> offsets in the whole array, in row-major order."""
    batch, channels = indices.shape[:2]
    planes = np.arange(batch * channels).reshape(batch, channels, *(1,) * (indices.ndim - 2))
    return (planes * plane_size + indices).ravel()


def scatter_add(values: np.ndarray, indices: np.ndarray, plane: tuple[int, ...]) -> np.ndarray:
    """Zeros (batch, channels, plane...) plus each value at the offset its index names, in row-major order."""
    batch, channels = indices.shape[:2]
    total = np.zeros((batch, channels, *plane))
    np.add.at(total.reshape(-1), flat_targets(indices, prod(plane)), values.ravel())
    return total
