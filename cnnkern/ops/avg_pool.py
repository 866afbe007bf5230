"""Average pooling over sliding windows and its gradient."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from .. import plan
from ..plan import MISS
from ..spec import Request
from ..spec.arguments import flag, integer
from ..spec.shapes import pool_geometry
from .docs import described, each_rank
from .invocation import FLOATS, INTEGERS, Invocation, slow_path
from .types import Array, Padding, Shape, Size

_COUNT = """count_include_pad: whether padding counts in the divisor (ONNX says no by default, TensorFlow always).
        divisor_override: an int from 1 to divide by, instead of the number of elements."""

_FORWARD = (
    """
    {n}-dimensional average pooling.

    y[n, c, p] = (sum of x over the window at p*stride - before) / divisor, where the divisor is ``divisor_override``,
    or the window's positions inside the padded input (``count_include_pad``), or those inside x.

    Args:
        x: (N, C, {sp}). Any float or integer type.
        kernel_size: one int, or one per axis, from 1.
        {POOL_STRIDE}
        {PADDING}
        {CEIL}
        """
    + _COUNT
    + """
        {LAYOUT}
        {OUT}

    Returns:
        (N, C, {osp}) of x's dtype with out = (size + before + after - kernel) // stride + 1. {UNBATCHED}

    Raises:
        {ERRORS}
        A window that reads padding only is a ShapeError.

    Notes:
        Integers are summed exactly and the quotient is truncated toward zero. What lies beyond the padding (in a window
        of ``ceil_mode``) never counts. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> ck.{op}(x, 3, stride=2, padding=1, count_include_pad=False).shape
        (2, 3, {s4})
"""
)


def _avg_pool_of_rank(n: int):
    op = f"avg_pool{n}d"

    def avg_pool(
        x: Array,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        layout: str = "NCHW",
        out: Array | None = None,
    ) -> Array:
        key = (op, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, layout, out)
        result = plan.lookup(*key)
        return _avg_pool(n, *key) if result is MISS else result

    return described(avg_pool, op, _FORWARD, n)


avg_pool1d, avg_pool2d, avg_pool3d = each_rank(_avg_pool_of_rank)


@slow_path(arrays=("x",), written=("out",))
def _avg_pool(
    call: Invocation, x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, layout, out
):
    dtype = call.dtype("x", x, (*FLOATS, *INTEGERS))
    x_shape = call.map_shape("x", x.shape, layout)
    request = _request(
        call, "avg_pool", dtype, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    )
    return call.run((request, [("x", x)]), out=out)


def _request(
    call: Invocation,
    op: str,
    dtype: str,
    x_shape: tuple[int, ...],
    kernel_size: object,
    stride: object,
    padding: object,
    ceil_mode: object,
    count_include_pad: object,
    divisor_override: object,
) -> Request:
    ceil_mode = flag(call.op, "ceil_mode", ceil_mode)
    count = flag(call.op, "count_include_pad", count_include_pad)
    divisor = None if divisor_override is None else integer(call.op, "divisor_override", divisor_override, 1)
    geometry = pool_geometry(call.op, x_shape, kernel_size, stride, padding, 1, ceil_mode)
    return call.request(op, geometry, dtype, count_include_pad=count, divisor=divisor)


_BACKWARD = (
    """
    Gradient of ``avg_pool{n}d``: each element of grad_output, over its divisor, goes to every element of its window.

    grad_x[n, c, i] = sum over the windows p that hold i of grad_output[n, c, p] / divisor[p].

    Args:
        grad_output: (N, C, {osp}). float32, float64, float16 or bfloat16.
        x_shape: shape of the forward call's x, in its layout.
        kernel_size, stride, padding, ceil_mode: as in the forward call.
        """
    + _COUNT
    + """
        {LAYOUT}

    Returns:
        grad_x of shape ``x_shape`` and grad_output's dtype. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        Gradients that meet in one element are added in a fixed order. {SUMS}

    Example:
        >>> ck.{op}(np.ones((2, 3, {s4}), np.float32), (2, 3, {s8}), 2).shape
        (2, 3, {s8})
"""
)


def _avg_pool_backward_of_rank(n: int):
    op = f"avg_pool{n}d_backward"

    def avg_pool_backward(
        grad_output: Array,
        x_shape: Shape,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        layout: str = "NCHW",
    ) -> Array:
        key = (
            op, grad_output, x_shape, kernel_size, stride, padding,
            ceil_mode, count_include_pad, divisor_override, layout,
        )  # fmt: skip
        result = plan.lookup(*key)
        return _avg_pool_backward(n, *key) if result is MISS else result

    return described(avg_pool_backward, op, _BACKWARD, n, main="grad_output")


avg_pool1d_backward, avg_pool2d_backward, avg_pool3d_backward = each_rank(_avg_pool_backward_of_rank)


@slow_path(arrays=("grad_output",))
def _avg_pool_backward(
    call: Invocation,
    grad_output, x_shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, layout,
):  # fmt: skip
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    logical = call.shape_of_maps("x_shape", x_shape, layout)
    request = _request(
        call,
        "avg_pool_grad",
        dtype,
        logical,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return call.run((request, [("grad_output", grad_output)]))
