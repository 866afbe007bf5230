"""Max unpooling, the partial inverse of max pooling, and its gradient."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

import numpy as np

from .. import plan
from ..plan import MISS
from ..spec.shapes import resize_geometry, unpool_geometry
from .docs import described, each_rank
from .invocation import BOOL, FLOATS, INTEGERS, Invocation, again, slow_path
from .types import Array, Padding, Size

_FORWARD = """
    {n}-dimensional max unpooling: zeros, with each element of x put back where its index says.

    y[n, c, indices[n, c, p]] = x[n, c, p], and 0 elsewhere.

    Args:
        x: (N, C, {sp}). Any float or integer type, or bool.
        indices: x's shape; int64 (or int32) offsets into a plane of the result, as ``max_pool{n}d`` returns them.
        kernel_size, stride, padding: of the pooling that made x; they give the default size of the result.
        output_size: one int, or one per axis: the result's spatial size. None: (size - 1)*stride - before - after
            + kernel.
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype. {UNBATCHED}

    Raises:
        {ERRORS}
        An index outside its plane is an ArgumentError.

    Notes:
        Where several elements have the same index, the last in row-major order wins. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> y, indices = ck.max_pool{n}d(x, 2, return_indices=True)
        >>> ck.{op}(y, indices, 2).shape
        (2, 3, {s8})
"""


def _max_unpool_of_rank(n: int):
    op = f"max_unpool{n}d"

    def max_unpool(
        x: Array,
        indices: Array,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        output_size: Size | None = None,
        *,
        layout: str = "NCHW",
        out: Array | None = None,
    ) -> Array:
        key = (op, x, indices, kernel_size, stride, padding, output_size, layout, out)
        result = plan.lookup(*key)
        return _max_unpool(n, *key) if result is MISS else result

    return described(max_unpool, op, _FORWARD, n)


max_unpool1d, max_unpool2d, max_unpool3d = each_rank(_max_unpool_of_rank)


@slow_path(arrays=("x", "indices"), written=("out",))
def _max_unpool(call: Invocation, x, indices, kernel_size, stride, padding, output_size, layout, out):
    if indices.dtype == np.int32:
        return again(_max_unpool, call, indices, indices.astype(np.int64))
    dtype = call.dtype("x", x, (*FLOATS, *INTEGERS, *BOOL))
    x_shape = call.map_shape("x", x.shape, layout)
    geometry = unpool_geometry(call.op, x_shape, kernel_size, stride, padding, output_size)
    return call.run((call.request("max_unpool", geometry, dtype), [("x", x), ("indices", indices)]), out=out)


_BACKWARD = """
    Gradient of ``max_unpool{n}d``.

    grad_x[n, c, p] = grad_output[n, c, indices[n, c, p]], or 0 where a later element had the same index and won.

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        indices: (N, C, {sp}), int64 (or int32), those of the forward call.
        {LAYOUT}

    Returns:
        grad_x of indices' shape and grad_output's dtype. {UNBATCHED}

    Raises:
        {ERRORS}
        An index outside its plane is an ArgumentError.

    Notes:
        {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> y, indices = ck.max_pool{n}d(x, 2, return_indices=True)
        >>> ck.{op}(np.ones_like(x), indices).shape
        (2, 3, {s4})
"""


def _max_unpool_backward_of_rank(n: int):
    op = f"max_unpool{n}d_backward"

    def max_unpool_backward(grad_output: Array, indices: Array, *, layout: str = "NCHW") -> Array:
        result = plan.lookup(op, grad_output, indices, layout)
        return _max_unpool_backward(n, op, grad_output, indices, layout) if result is MISS else result

    return described(max_unpool_backward, op, _BACKWARD, n, main="grad_output")


max_unpool1d_backward, max_unpool2d_backward, max_unpool3d_backward = each_rank(_max_unpool_backward_of_rank)


@slow_path(arrays=("grad_output", "indices"))
def _max_unpool_backward(call: Invocation, grad_output, indices, layout):
    if indices.dtype == np.int32:
        return again(_max_unpool_backward, call, indices, indices.astype(np.int64))
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    y_shape = call.map_shape("grad_output", grad_output.shape, layout)
    x_shape = call.map_shape("indices", indices.shape, layout)
    geometry = resize_geometry(x_shape, (*x_shape[:2], *y_shape[2:]))
    call.check_map("grad_output", grad_output, geometry.y_shape)
    request = call.request("max_unpool_grad", geometry, dtype)
    return call.run((request, [("grad_output", grad_output), ("indices", indices)]))
