"""Adaptive average and max pooling: the output's size is given, the windows follow from it. And their gradients."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

import numpy as np

from .. import plan
from ..plan import MISS
from ..spec.arguments import flag
from ..spec.shapes import adaptive_geometry, resize_geometry
from .docs import described, each_rank
from .invocation import BOOL, FLOATS, INTEGERS, Invocation, again, slow_path
from .types import Array, Shape, Size

_WINDOWS = """Window i of an axis is [floor(i * size / out), ceil((i + 1) * size / out)). Windows overlap where out does
    not divide size; out may be larger than size; out = 1 is global pooling."""

_OUTPUT_SIZE = """output_size: one int, or one per axis, from 0; None in place of an axis keeps its size."""

_AVG = (
    """
    {n}-dimensional adaptive average pooling.

    y[n, c, p] = mean of x over window p. """
    + _WINDOWS
    + """

    Args:
        x: (N, C, {sp}). Any float or integer type.
        """
    + _OUTPUT_SIZE
    + """
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        Integers are summed exactly and the quotient is truncated toward zero. {SUMS}

    Example:
        >>> ck.{op}(np.ones((2, 3, {s8}), np.float32), 3).shape
        (2, 3, {s3})
"""
)


def _adaptive_avg_pool_of_rank(n: int):
    op = f"adaptive_avg_pool{n}d"

    def adaptive_avg_pool(x: Array, output_size: Size, *, layout: str = "NCHW", out: Array | None = None) -> Array:
        result = plan.lookup(op, x, output_size, layout, out)
        return _adaptive_avg_pool(n, op, x, output_size, layout, out) if result is MISS else result

    return described(adaptive_avg_pool, op, _AVG, n)


adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d = each_rank(_adaptive_avg_pool_of_rank)


@slow_path(arrays=("x",), written=("out",))
def _adaptive_avg_pool(call: Invocation, x, output_size, layout, out):
    dtype = call.dtype("x", x, (*FLOATS, *INTEGERS))
    geometry = adaptive_geometry(call.op, call.map_shape("x", x.shape, layout), output_size)
    return call.run((call.request("adaptive_avg_pool", geometry, dtype), [("x", x)]), out=out)


_AVG_BACKWARD = """
    Gradient of ``adaptive_avg_pool{n}d``.

    grad_x[n, c, i] = sum over the windows p that hold i of grad_output[n, c, p] / size of window p.

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        x_shape: shape of the forward call's x, in its layout.
        {LAYOUT}

    Returns:
        grad_x of shape ``x_shape`` and grad_output's dtype. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        Gradients that meet in one element are added in a fixed order. {SUMS}

    Example:
        >>> ck.{op}(np.ones((2, 3, {s3}), np.float32), (2, 3, {s8})).shape
        (2, 3, {s8})
"""


def _adaptive_avg_pool_backward_of_rank(n: int):
    op = f"adaptive_avg_pool{n}d_backward"

    def adaptive_avg_pool_backward(grad_output: Array, x_shape: Shape, *, layout: str = "NCHW") -> Array:
        result = plan.lookup(op, grad_output, x_shape, layout)
        return _adaptive_avg_pool_backward(n, op, grad_output, x_shape, layout) if result is MISS else result

    return described(adaptive_avg_pool_backward, op, _AVG_BACKWARD, n, main="grad_output")


adaptive_avg_pool1d_backward, adaptive_avg_pool2d_backward, adaptive_avg_pool3d_backward = each_rank(
    _adaptive_avg_pool_backward_of_rank
)


@slow_path(arrays=("grad_output",))
def _adaptive_avg_pool_backward(call: Invocation, grad_output, x_shape, layout):
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    geometry = _geometry_from_both(call, grad_output, x_shape, layout)
    return call.run((call.request("adaptive_avg_pool_grad", geometry, dtype), [("grad_output", grad_output)]))


def _geometry_from_both(call: Invocation, grad_output: np.ndarray, x_shape: object, layout: object):
    """Geometry of a backward call, whose output size is that of grad_output."""
    output = call.map_shape("grad_output", grad_output.shape, layout)
    logical = call.shape_of_maps("x_shape", x_shape, layout)
    geometry = adaptive_geometry(call.op, logical, output[2:])
    call.check_map("grad_output", grad_output, geometry.y_shape)
    return resize_geometry(geometry.x_shape, geometry.y_shape)


_MAX = (
    """
    {n}-dimensional adaptive max pooling.

    y[n, c, p] = max of x over window p. """
    + _WINDOWS
    + """

    Args:
        x: (N, C, {sp}). Any float or integer type, or bool.
        """
    + _OUTPUT_SIZE
    + """
        return_indices: also int64 offsets of the maxima in x's plane (n, c).
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype; with ``return_indices`` (y, indices), both of that shape. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        The first of equal elements wins, in row-major order. A NaN in the window gives NaN, and the index of the last
        one. {SUMS}

    Example:
        >>> y, indices = ck.{op}(np.ones((2, 3, {s8}), np.float32), 3, return_indices=True)
        >>> y.shape
        (2, 3, {s3})
"""
)


def _adaptive_max_pool_of_rank(n: int):
    op = f"adaptive_max_pool{n}d"

    def adaptive_max_pool(
        x: Array, output_size: Size, return_indices: bool = False, *, layout: str = "NCHW", out: Array | None = None
    ) -> Array | tuple[Array, Array]:
        key = (op, x, output_size, return_indices, layout, out)
        result = plan.lookup(*key)
        return _adaptive_max_pool(n, *key) if result is MISS else result

    return described(adaptive_max_pool, op, _MAX, n)


adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d = each_rank(_adaptive_max_pool_of_rank)


@slow_path(arrays=("x",), written=("out",))
def _adaptive_max_pool(call: Invocation, x, output_size, return_indices, layout, out):
    dtype = call.dtype("x", x, (*FLOATS, *INTEGERS, *BOOL))
    indices = "torch" if flag(call.op, "return_indices", return_indices) else None
    geometry = adaptive_geometry(call.op, call.map_shape("x", x.shape, layout), output_size)
    return call.run((call.request("adaptive_max_pool", geometry, dtype, indices=indices), [("x", x)]), out=out)


_MAX_BACKWARD = """
    Gradient of ``adaptive_max_pool{n}d``: each element of grad_output goes to the element of x that its index names.

    grad_x[n, c, i] = sum over p with indices[n, c, p] = i of grad_output[n, c, p].

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        indices: what the forward call returned: int64 (or int32), with the shape of grad_output.
        x_shape: shape of the forward call's x, in its layout.
        {LAYOUT}

    Returns:
        grad_x of shape ``x_shape`` and grad_output's dtype. {UNBATCHED}

    Raises:
        {ERRORS}
        An index outside its plane is an ArgumentError.

    Notes:
        Gradients that meet in one element are added in a fixed order. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> y, indices = ck.adaptive_max_pool{n}d(x, 3, return_indices=True)
        >>> ck.{op}(np.ones_like(y), indices, x.shape).shape
        (2, 3, {s8})
"""


def _adaptive_max_pool_backward_of_rank(n: int):
    op = f"adaptive_max_pool{n}d_backward"

    def adaptive_max_pool_backward(
        grad_output: Array, indices: Array, x_shape: Shape, *, layout: str = "NCHW"
    ) -> Array:
        result = plan.lookup(op, grad_output, indices, x_shape, layout)
        return _adaptive_max_pool_backward(n, op, grad_output, indices, x_shape, layout) if result is MISS else result

    return described(adaptive_max_pool_backward, op, _MAX_BACKWARD, n, main="grad_output")


adaptive_max_pool1d_backward, adaptive_max_pool2d_backward, adaptive_max_pool3d_backward = each_rank(
    _adaptive_max_pool_backward_of_rank
)


@slow_path(arrays=("grad_output", "indices"))
def _adaptive_max_pool_backward(call: Invocation, grad_output, indices, x_shape, layout):
    if indices.dtype == np.int32:
        return again(_adaptive_max_pool_backward, call, indices, indices.astype(np.int64))
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    geometry = _geometry_from_both(call, grad_output, x_shape, layout)
    request = call.request("adaptive_max_pool_grad", geometry, dtype)
    return call.run((request, [("grad_output", grad_output), ("indices", indices)]))
