"""Convolution and its gradients."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import plan
from ..errors import ArgumentError, ShapeError, show
from ..plan import MISS
from ..spec import DTYPES, ChannelGeometry, ConvGeometry
from ..spec.arguments import choice, is_sequence
from ..spec.shapes import conv_geometry
from .docs import described, each_rank
from .invocation import FLOATS, Invocation, slow_path
from .types import Array, Padding, Size

ACTIVATIONS = (None, "relu")
# Longest reduction whose int32 sum cannot overflow: (2**31 - 1) over the largest product, 255*255, 255*128, 128*128.
LONGEST_INT32 = {("u8", "u8"): 33_025, ("i8", "u8"): 65_793, ("u8", "i8"): 65_793, ("i8", "i8"): 131_071}

_CONV = """
    {n}-dimensional convolution (cross-correlation: no flipped kernel), with bias, residual and activation fused.

    y[n, o, p] = act(bias[o] + sum over c, r of weight[o, c, r] * x[n, g*Cin/groups + c, p*stride - before + r*dilation]
    + residual[n, o, p]), where g is o's group; positions outside x contribute nothing.

    Args:
        x: (N, Cin, {sp}). float32, float64, float16, bfloat16; int8 or uint8.
        weight: (Cout, Cin / groups, {k}) in either layout. x's dtype; int8 or uint8 beside either of them.
        bias: (Cout,), or None. The result's dtype.
        {STRIDE}
        {PADDING}
        {DILATION}
        groups: divides Cin and Cout; with groups = Cin the convolution is depthwise.
        activation: None or "relu", applied last.
        residual: added before the activation: shape and dtype of the result, or None.
        {LAYOUT}
        {PRECISION}
        {OUT}

    Returns:
        (N, Cout, {osp}) with out = (size + before + after - dilation*(kernel - 1) - 1) // stride + 1; x's dtype, int32
        for int8 and uint8. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        float16 and bfloat16 are summed in float32 and rounded once; int8 and uint8 are exact in int32, and a reduction
        that could overflow it is refused. {SUMS}

    Example:
        >>> x = np.ones((2, 3, {s8}), np.float32)
        >>> weight = np.ones((4, 3, {s3}), np.float32)
        >>> ck.{op}(x, weight, padding="same", activation="relu").shape
        (2, 4, {s8})
"""


def _conv_of_rank(n: int):
    op = f"conv{n}d"

    def conv(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        activation: str | None = None,
        residual: Array | None = None,
        layout: str = "NCHW",
        precision: str | None = None,
        out: Array | None = None,
    ) -> Array:
        key = (op, x, weight, bias, stride, padding, dilation, groups, activation, residual, layout, precision, out)
        result = plan.lookup(*key)
        return _conv(n, *key) if result is MISS else result

    return described(conv, op, _CONV, n)


conv1d, conv2d, conv3d = each_rank(_conv_of_rank)


@slow_path(arrays=("x", "weight"), optional=("bias", "residual"), written=("out",))
def _conv(
    call: Invocation, x, weight, bias, stride, padding, dilation, groups, activation, residual, layout, precision, out
):
    dtype = call.dtype("x", x, (*FLOATS, "i8", "u8"))
    weight_dtype = call.dtype("weight", weight, ("i8", "u8")) if dtype in ("i8", "u8") else dtype
    choice(call.op, "activation", activation, ACTIVATIONS)
    precision = call.precision(precision)
    x_shape = call.map_shape("x", x.shape, layout)
    weight_shape = call.weight_shape(weight.shape, "Cout, Cin / groups")
    geometry = conv_geometry(call.op, x_shape, weight_shape, stride, padding, dilation, groups, x.shape)
    check_int32(call.op, dtype, weight_dtype, geometry)
    request = call.request(
        "conv",
        geometry,
        dtype,
        precision,
        bias=bias is not None,
        residual=residual is not None,
        activation=activation,
        weight_dtype=None if weight_dtype == dtype else weight_dtype,
    )
    return call.run((request, [("x", x), ("weight", weight), ("bias", bias), ("residual", residual)]), out=out)


def check_int32(op: str, dtype: str, weight_dtype: str, geometry: ConvGeometry) -> None:
    longest = LONGEST_INT32.get((dtype, weight_dtype))
    if longest is not None and geometry.reduction > longest:
        raise ShapeError(
            f"{op}: an int32 sum of {geometry.reduction} products may overflow, {longest} are safe for {DTYPES[dtype]}"
            f" with {DTYPES[weight_dtype]} weights (weight {geometry.weight_shape}). Convert both to float32."
        )


_BACKWARD = """
    Gradients of ``conv{n}d`` in x, weight and bias.

    grad_x[n, c, i] = sum over o, p, r with p*stride - before + r*dilation = i of
    grad_output[n, o, p] * weight[o, c, r]; grad_weight[o, c, r] = sum over n, p of
    grad_output[n, o, p] * x[n, c, p*stride - before + r*dilation];
    grad_bias[o] = sum over n, p of grad_output[n, o, p].

    Args:
        grad_output: gradient in the result before residual and activation: (N, Cout, {osp}). With a fused relu, pass
            ``relu_backward(grad, y)``; the residual's gradient is that same array.
        x: (N, Cin, {sp}). float32, float64, float16 or bfloat16, like the two others.
        weight: (Cout, Cin / groups, {k}).
        {STRIDE}
        {PADDING}
        {DILATION}
        groups: as in the forward call.
        output_mask: which of the three gradients are wanted.
        {LAYOUT}
        {PRECISION}

    Returns:
        (grad_x, grad_weight, grad_bias) with the shapes of x, weight and (Cout,), None where masked. {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        grad_weight and grad_bias sum over the batch in a fixed order. An empty batch gives zeros. {SUMS}

    Example:
        >>> x, weight = np.ones((2, 3, {s8}), np.float32), np.ones((4, 3, {s3}), np.float32)
        >>> grad_output = np.ones((2, 4, {s6}), np.float32)
        >>> [grad.shape for grad in ck.{op}(grad_output, x, weight)]
        [(2, 3, {s8}), (4, 3, {s3}), (4,)]
"""


def _conv_backward_of_rank(n: int):
    op = f"conv{n}d_backward"

    def conv_backward(
        grad_output: Array,
        x: Array,
        weight: Array,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        output_mask: Sequence[bool] = (True, True, True),
        layout: str = "NCHW",
        precision: str | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        key = (op, grad_output, x, weight, stride, padding, dilation, groups, output_mask, layout, precision)
        result = plan.lookup(*key)
        return _conv_backward(n, *key) if result is MISS else result

    return described(conv_backward, op, _BACKWARD, n, main="grad_output")


conv1d_backward, conv2d_backward, conv3d_backward = each_rank(_conv_backward_of_rank)


@slow_path(arrays=("grad_output", "x", "weight"))
def _conv_backward(
    call: Invocation, grad_output, x, weight, stride, padding, dilation, groups, output_mask, layout, precision
):
    dtype = call.same_dtype(FLOATS, grad_output=grad_output, x=x, weight=weight)
    mask = gradient_mask(call.op, output_mask)
    precision = call.precision(precision)
    x_shape = call.map_shape("x", x.shape, layout)
    weight_shape = call.weight_shape(weight.shape, "Cout, Cin / groups")
    geometry = conv_geometry(call.op, x_shape, weight_shape, stride, padding, dilation, groups, x.shape)
    call.check_map("grad_output", grad_output, geometry.y_shape)
    sums = ChannelGeometry(geometry.batch, geometry.out_channels, geometry.output)
    gradient = ("grad_output", grad_output)
    work = (
        (call.request("conv_grad_input", geometry, dtype, precision), [gradient, ("weight", weight)]),
        (call.request("conv_grad_weight", geometry, dtype, precision), [gradient, ("x", x)]),
        (call.request("channel_sum", sums, dtype, precision), [gradient]),
    )
    return call.run(*(item if wanted else None for item, wanted in zip(work, mask)))


def gradient_mask(op: str, value: object) -> tuple[bool, ...]:
    """Which of (grad_x, grad_weight, grad_bias) are wanted."""
    if not is_sequence(value) or len(value) != 3 or not all(isinstance(item, (bool, np.bool_)) for item in value):
        raise ArgumentError(f"{op}: output_mask must be three bools, for x, weight and bias, got {show(value)}.")
    return tuple(map(bool, value))
