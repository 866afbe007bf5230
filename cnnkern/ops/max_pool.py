"""Max pooling over sliding windows and its gradient."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from math import prod

import numpy as np

from .. import plan
from ..errors import ArgumentError, DTypeError, show
from ..plan import MISS
from ..spec.arguments import flag
from ..spec.shapes import pool_geometry
from .docs import described, each_rank
from .invocation import BOOL, FLOATS, INTEGERS, Invocation, again, slow_path
from .types import Array, Padding, Shape, Size

MOST_WINDOW_CELLS = 2**16  # what a uint16 numbers

_FORWARD = """
    {n}-dimensional max pooling.

    y[n, c, p] = max over r of x[n, c, p*stride - before + r*dilation]; positions outside x do not take part.

    Args:
        x: (N, C, {sp}). Any float or integer type, or bool.
        kernel_size: one int, or one per axis, from 1.
        {POOL_STRIDE}
        {PADDING}
        {DILATION}
        {CEIL}
        return_indices: True: also int64 offsets of the maxima in x's plane (n, c), as PyTorch. "window": offsets in
            the window, row-major, in uint8 or (above 256 cells) uint16: an eighth of the memory traffic.
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype with out = (size + before + after - dilation*(kernel - 1) - 1) // stride + 1; with
        ``return_indices`` (y, indices), both of that shape. {UNBATCHED}

    Raises:
        {ERRORS}
        A window that reads padding only is a ShapeError.

    Notes:
        The first of equal elements wins, in row-major order. A NaN in the window gives NaN, and the index of the last
        one. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> y, indices = ck.{op}(x, 3, stride=2, padding=1, return_indices=True)
        >>> y.shape, indices.dtype.name
        ((2, 3, {s4}), 'int64')
"""


def _max_pool_of_rank(n: int):
    op = f"max_pool{n}d"

    def max_pool(
        x: Array,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        return_indices: bool | str = False,
        *,
        layout: str = "NCHW",
        out: Array | None = None,
    ) -> Array | tuple[Array, Array]:
        key = (op, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, layout, out)
        result = plan.lookup(*key)
        return _max_pool(n, *key) if result is MISS else result

    return described(max_pool, op, _FORWARD, n)


max_pool1d, max_pool2d, max_pool3d = each_rank(_max_pool_of_rank)


@slow_path(arrays=("x",), written=("out",))
def _max_pool(call: Invocation, x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, layout, out):
    dtype = call.dtype("x", x, (*FLOATS, *INTEGERS, *BOOL))
    ceil_mode = flag(call.op, "ceil_mode", ceil_mode)
    indices = _index_kind(call.op, return_indices)
    x_shape = call.map_shape("x", x.shape, layout)
    geometry = pool_geometry(call.op, x_shape, kernel_size, stride, padding, dilation, ceil_mode)
    cells = prod(geometry.kernel)
    if indices == "window" and cells > MOST_WINDOW_CELLS:
        raise ArgumentError(
            f"{call.op}: return_indices 'window' numbers up to {MOST_WINDOW_CELLS} cells, the kernel {geometry.kernel}"
            f" has {cells}. Use return_indices=True."
        )
    return call.run((call.request("max_pool", geometry, dtype, indices=indices), [("x", x)]), out=out)


def _index_kind(op: str, value: object) -> str | None:
    """``return_indices`` -> the option of the table op."""
    if isinstance(value, (bool, np.bool_)):
        return "torch" if value else None
    if not isinstance(value, str) or value != "window":
        raise ArgumentError(f"{op}: return_indices must be False, True or 'window', got {show(value)}.")
    return value


_BACKWARD = """
    Gradient of ``max_pool{n}d``: each element of grad_output goes to the element of x that its index names.

    grad_x[n, c, i] = sum over p with indices[n, c, p] = i of grad_output[n, c, p].

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        indices: what the forward call returned, with the shape of grad_output: int64 (or int32) offsets in a plane, or
            uint8 / uint16 offsets in a window.
        x_shape: shape of the forward call's x, in its layout.
        kernel_size, stride, padding, dilation, ceil_mode: as in the forward call.
        {LAYOUT}

    Returns:
        grad_x of shape ``x_shape`` and grad_output's dtype. {UNBATCHED}

    Raises:
        {ERRORS}
        An index outside its plane or window is an ArgumentError.

    Notes:
        Gradients that meet in one element are added in a fixed order. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> y, indices = ck.max_pool{n}d(x, 2, return_indices="window")
        >>> ck.{op}(np.ones_like(y), indices, x.shape, 2).shape
        (2, 3, {s8})
"""


def _max_pool_backward_of_rank(n: int):
    op = f"max_pool{n}d_backward"

    def max_pool_backward(
        grad_output: Array,
        indices: Array,
        x_shape: Shape,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        *,
        layout: str = "NCHW",
    ) -> Array:
        key = (op, grad_output, indices, x_shape, kernel_size, stride, padding, dilation, ceil_mode, layout)
        result = plan.lookup(*key)
        return _max_pool_backward(n, *key) if result is MISS else result

    return described(max_pool_backward, op, _BACKWARD, n, main="grad_output")


max_pool1d_backward, max_pool2d_backward, max_pool3d_backward = each_rank(_max_pool_backward_of_rank)


@slow_path(arrays=("grad_output", "indices"))
def _max_pool_backward(
    call: Invocation, grad_output, indices, x_shape, kernel_size, stride, padding, dilation, ceil_mode, layout
):
    if indices.dtype == np.int32:
        return again(_max_pool_backward, call, indices, indices.astype(np.int64))
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    ceil_mode = flag(call.op, "ceil_mode", ceil_mode)
    logical = call.shape_of_maps("x_shape", x_shape, layout)
    geometry = pool_geometry(call.op, logical, kernel_size, stride, padding, dilation, ceil_mode)
    call.check_map("grad_output", grad_output, geometry.y_shape)
    kind = "window" if indices.dtype in (np.uint8, np.uint16) else "torch"
    request = call.request("max_pool_grad", geometry, dtype, indices=kind)
    _check_index_dtype(call.op, indices, prod(geometry.kernel))
    return call.run((request, [("grad_output", grad_output), ("indices", indices)]))


def _check_index_dtype(op: str, indices: np.ndarray, cells: int) -> None:
    window = "uint8" if cells <= 256 else "uint16"
    if indices.dtype.name not in ("int64", window):
        raise DTypeError(
            f"{op}: indices must be int64 (offsets in a plane) or {window} (offsets in a window of {cells} cells),"
            f" got {indices.dtype}. Give what the forward call returned."
        )
