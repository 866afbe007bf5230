"""Power-average (lp) pooling over sliding windows and its gradient."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

import math

import numpy as np

from .. import plan
from ..errors import ArgumentError, show
from ..plan import MISS
from ..spec.arguments import flag
from ..spec.shapes import pool_geometry
from .docs import described, each_rank
from .invocation import FLOATS, Invocation, slow_path
from .types import Array, Padding, Size

_FORWARD = """
    {n}-dimensional lp pooling: the p-norm of every window.

    y[n, c, q] = (sum over r of abs(x[n, c, q*stride - before + r]) ** p) ** (1 / p), over positions inside x; for
    p = inf the largest absolute value.

    Args:
        x: (N, C, {sp}). float32, float64, float16 or bfloat16.
        norm_type: p, a number above 0; inf is allowed.
        kernel_size: one int, or one per axis, from 1.
        {POOL_STRIDE}
        {CEIL}
        {PADDING}
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype with out = (size + before + after - kernel) // stride + 1. {UNBATCHED}

    Raises:
        {ERRORS}
        A window that reads padding only is a ShapeError.

    Notes:
        PyTorch leaves out the absolute value and scales windows that stick out; this is the norm, as in ONNX. {SUMS}

    Example:
        >>> ck.{op}(np.ones((2, 3, {s8}), np.float32), 2, kernel_size=2).shape
        (2, 3, {s4})
"""


def _lp_pool_of_rank(n: int):
    op = f"lp_pool{n}d"

    def lp_pool(
        x: Array,
        norm_type: float,
        kernel_size: Size,
        stride: Size | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        layout: str = "NCHW",
        out: Array | None = None,
    ) -> Array:
        key = (op, x, norm_type, kernel_size, stride, ceil_mode, padding, layout, out)
        result = plan.lookup(*key)
        return _lp_pool(n, *key) if result is MISS else result

    return described(lp_pool, op, _FORWARD, n)


lp_pool1d, lp_pool2d, lp_pool3d = each_rank(_lp_pool_of_rank)


@slow_path(arrays=("x",), written=("out",))
def _lp_pool(call: Invocation, x, norm_type, kernel_size, stride, ceil_mode, padding, layout, out):
    dtype = call.dtype("x", x, FLOATS)
    norm_type = _norm_type(call.op, norm_type)
    ceil_mode = flag(call.op, "ceil_mode", ceil_mode)
    geometry = pool_geometry(call.op, call.map_shape("x", x.shape, layout), kernel_size, stride, padding, 1, ceil_mode)
    return call.run((call.request("lp_pool", geometry, dtype, norm_type=norm_type), [("x", x)]), out=out)


def _norm_type(op: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"{op}: norm_type must be a number, got {show(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of a double
        number = math.inf if value > 0 else -math.inf
    if not number > 0:
        raise ArgumentError(f"{op}: norm_type must be > 0, got {show(value)}.")
    return number


_BACKWARD = """
    Gradient of ``lp_pool{n}d``.

    grad_x[n, c, i] = sum over the windows q that hold i of sign(x) * abs(x)**(p - 1) * y[q]**(1 - p) * grad_output[q],
    with x = x[n, c, i], and 0 where y is 0.

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        x: (N, C, {sp}), the forward call's input, grad_output's dtype.
        norm_type, kernel_size, stride, ceil_mode, padding: as in the forward call.
        {LAYOUT}

    Returns:
        grad_x of x's shape and dtype. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        Gradients that meet in one element are added in a fixed order. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> ck.{op}(np.ones((2, 3, {s4}), np.float32), x, 2, kernel_size=2).shape
        (2, 3, {s8})
"""


def _lp_pool_backward_of_rank(n: int):
    op = f"lp_pool{n}d_backward"

    def lp_pool_backward(
        grad_output: Array,
        x: Array,
        norm_type: float,
        kernel_size: Size,
        stride: Size | None = None,
        ceil_mode: bool = False,
        *,
        padding: Padding = 0,
        layout: str = "NCHW",
    ) -> Array:
        key = (op, grad_output, x, norm_type, kernel_size, stride, ceil_mode, padding, layout)
        result = plan.lookup(*key)
        return _lp_pool_backward(n, *key) if result is MISS else result

    return described(lp_pool_backward, op, _BACKWARD, n, main="grad_output")


lp_pool1d_backward, lp_pool2d_backward, lp_pool3d_backward = each_rank(_lp_pool_backward_of_rank)


@slow_path(arrays=("grad_output", "x"))
def _lp_pool_backward(call: Invocation, grad_output, x, norm_type, kernel_size, stride, ceil_mode, padding, layout):
    dtype = call.same_dtype(FLOATS, grad_output=grad_output, x=x)
    norm_type = _norm_type(call.op, norm_type)
    ceil_mode = flag(call.op, "ceil_mode", ceil_mode)
    geometry = pool_geometry(call.op, call.map_shape("x", x.shape, layout), kernel_size, stride, padding, 1, ceil_mode)
    request = call.request("lp_pool_grad", geometry, dtype, norm_type=norm_type)
    return call.run((request, [("grad_output", grad_output), ("x", x)]))
