"""Unfold (sliding windows as columns, im2col) and fold, its adjoint. The rank follows from the arguments."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from typing import Any

import numpy as np

from .. import plan
from ..errors import ArgumentError, ShapeError, show
from ..plan import MISS
from ..spec.arguments import is_integer, is_sequence, per_axis
from ..spec.shapes import fold_geometry, unfold_geometry
from .docs import described
from .invocation import FLOATS, Invocation, slow_path
from .types import Array, Padding, Size

_WINDOWS = """kernel_size: one int, or one per axis, from 1.
        {DILATION}
        {PADDING}
        {STRIDE}"""

_UNFOLD = (
    """
    Sliding windows as columns.

    y[n, c*cells + r, p] = x[n, c, p*stride - before + r*dilation], 0 outside x, with r over the kernel's cells and
    p over the windows, both in row-major order.

    Args:
        x: (N, C, one to three spatial axes), batch first, channels next. float32, float64, float16 or bfloat16.
        """
    + _WINDOWS
    + """

    Returns:
        (N, C * kernel cells, windows) of x's dtype, of the library that x comes from, C-contiguous. With
        ``kernel_size`` given per axis the batch axis may be left out, and is then left out of the result.

    Raises:
        {ERRORS}

    Notes:
        A convolution is the product of its weights, as (Cout, Cin * cells), with the unfolded input.

    Example:
        >>> ck.unfold(np.ones((2, 3, 8, 8), np.float32), 3).shape
        (2, 27, 36)
"""
)


def unfold(x: Array, kernel_size: Size, dilation: Size = 1, padding: Padding = 0, stride: Size = 1) -> Array:
    key = ("unfold", x, kernel_size, dilation, padding, stride)
    result = plan.lookup(*key)
    return _unfold(0, *key) if result is MISS else result


described(unfold, "unfold", _UNFOLD)


@slow_path(arrays=("x",))
def _unfold(call: Invocation, x, kernel_size, dilation, padding, stride):
    dtype = call.dtype("x", x, FLOATS)
    call.rank = _unfold_rank(call.op, x, kernel_size)
    geometry = unfold_geometry(call.op, call.map_shape("x", x.shape, "NCHW"), kernel_size, dilation, padding, stride)
    return call.run((call.request("unfold", geometry, dtype), [("x", x)]))


def _unfold_rank(op: str, x: np.ndarray, kernel_size: Any) -> int:
    """That of a kernel given per axis, else that of x, which then has a batch axis."""
    rank = len(kernel_size) if is_sequence(kernel_size) else x.ndim - 2
    if is_sequence(kernel_size) and rank not in (1, 2, 3):
        raise ArgumentError(f"{op}: kernel_size must be one int or one int per axis (1 to 3), got {show(kernel_size)}.")
    if rank not in (1, 2, 3):
        raise ShapeError(f"{op}: x must have 3 to 5 axes (N, C, spatial axes), got {x.ndim} (shape {x.shape}).")
    return rank


_FOLD = (
    """
    The adjoint of ``unfold``: columns are added up where their windows lie.

    y[n, c, i] = sum over r, p with p*stride - before + r*dilation = i of x[n, c*cells + r, p].

    Args:
        x: (N, C * kernel cells, windows), or without N. float32, float64, float16 or bfloat16.
        output_size: one int, or one per axis: the spatial size of the result.
        """
    + _WINDOWS
    + """

    Returns:
        (N, C, *output_size) of x's dtype, without N if x has none; of the library that x comes from, C-contiguous. The
        rank is the length of ``output_size``, else of ``kernel_size``; where both are one int, 2 as in PyTorch.

    Raises:
        {ERRORS}

    Notes:
        {SUMS}

    Example:
        >>> ck.fold(np.ones((2, 27, 36), np.float32), (8, 8), 3).shape
        (2, 3, 8, 8)
"""
)


def fold(
    x: Array, output_size: Size, kernel_size: Size, dilation: Size = 1, padding: Padding = 0, stride: Size = 1
) -> Array:
    key = ("fold", x, output_size, kernel_size, dilation, padding, stride)
    result = plan.lookup(*key)
    return _fold(0, *key) if result is MISS else result


described(fold, "fold", _FOLD)


@slow_path(arrays=("x",))
def _fold(call: Invocation, x, output_size, kernel_size, dilation, padding, stride):
    dtype = call.dtype("x", x, FLOATS)
    call.rank = fold_rank(call.op, output_size, kernel_size)
    if x.ndim not in (2, 3):
        raise ShapeError(
            f"{call.op}: x must have 3 axes (N, C * kernel cells, windows), or 2 without the batch, got {x.ndim}"
            f" (shape {x.shape})."
        )
    call.check_extents("x", x.shape)
    call.batched = x.ndim == 3
    sizes = per_axis(call.op, "output_size", output_size, call.rank, 0)
    columns = x.shape if call.batched else (1, *x.shape)
    geometry = fold_geometry(call.op, columns, sizes, kernel_size, dilation, padding, stride)
    return call.run((call.request("fold", geometry, dtype), [("x", x)]))


def fold_rank(op: str, output_size: Any, kernel_size: Any) -> int:
    for name, value in (("output_size", output_size), ("kernel_size", kernel_size)):
        if is_sequence(value):
            if len(value) not in (1, 2, 3):
                raise ArgumentError(f"{op}: {name} must be one int or one int per axis (1 to 3), got {show(value)}.")
            return len(value)
        if not is_integer(value):
            raise ArgumentError(f"{op}: {name} must be one int or one int per axis, got {show(value)}.")
    return 2
