"""Transposed convolution: the input gradient of a convolution, used forward; its own gradients are that convolution's
forward pass and its weight gradient with the two arrays exchanged."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from collections.abc import Sequence

from .. import plan
from ..plan import MISS
from ..spec import ChannelGeometry
from ..spec.arguments import choice
from ..spec.shapes import conv_transpose_geometry
from .conv import ACTIVATIONS, gradient_mask
from .docs import described, each_rank
from .invocation import FLOATS, Invocation, slow_path
from .types import Array, Padding, Size

_FORWARD = """
    {n}-dimensional transposed convolution, with bias, residual and activation fused.

    y[n, o, j] = act(bias[o] + sum over c, i, r with i*stride - before + r*dilation = j of x[n, c, i] * weight[c, o, r]
    + residual[n, o, j]), over the channels c of o's group. Positions that no tap reaches hold the bias.

    Args:
        x: (N, Cin, {sp}). float32, float64, float16 or bfloat16.
        weight: (Cin, Cout / groups, {k}) in either layout, x's dtype.
        bias: (Cout,) of x's dtype, or None.
        stride: one int, or one per axis, from 1: the distance at which x's elements are spread over the result.
        padding: taken off the result. An int; one int per axis; one (before, after) pair per axis; "valid" (none);
            "same" (the result is stride times as large), "same_lower" (then the odd element before it){causal}.
        output_padding: one int, or one per axis, below stride or dilation: added to the result's size at the end.
        groups: divides Cin. Mind PyTorch's order: groups before dilation.
        {DILATION}
        activation: None or "relu", applied last.
        residual: added before the activation: shape and dtype of the result, or None.
        {LAYOUT}
        {PRECISION}
        {OUT}

    Returns:
        (N, Cout, {osp}) of x's dtype, with out = (size - 1)*stride - before - after + dilation*(kernel - 1)
        + output_padding + 1; size*stride for "same". {UNBATCHED}

    Raises:
        {ERRORS}

    Notes:
        float16 and bfloat16 are summed in float32 and rounded once. {SUMS}

    Example:
        >>> x = np.ones((2, 4, {s4}), np.float32)
        >>> weight = np.ones((4, 3, {s2}), np.float32)
        >>> ck.{op}(x, weight, stride=2).shape
        (2, 3, {s8})
"""


def _conv_transpose_of_rank(n: int):
    op = f"conv_transpose{n}d"

    def conv_transpose(
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        activation: str | None = None,
        residual: Array | None = None,
        layout: str = "NCHW",
        precision: str | None = None,
        out: Array | None = None,
    ) -> Array:
        key = (
            op, x, weight, bias, stride, padding, output_padding, groups, dilation,
            activation, residual, layout, precision, out,
        )  # fmt: skip
        result = plan.lookup(*key)
        return _conv_transpose(n, *key) if result is MISS else result

    return described(conv_transpose, op, _FORWARD, n)


conv_transpose1d, conv_transpose2d, conv_transpose3d = each_rank(_conv_transpose_of_rank)


@slow_path(arrays=("x", "weight"), optional=("bias", "residual"), written=("out",))
def _conv_transpose(
    call: Invocation,
    x, weight, bias, stride, padding, output_padding, groups, dilation, activation, residual, layout, precision, out,
):  # fmt: skip
    dtype = call.dtype("x", x, FLOATS)
    choice(call.op, "activation", activation, ACTIVATIONS)
    precision = call.precision(precision)
    x_shape = call.map_shape("x", x.shape, layout)
    weight_shape = call.weight_shape(weight.shape, "Cin, Cout / groups")
    geometry = conv_transpose_geometry(
        call.op, x_shape, weight_shape, stride, padding, output_padding, groups, dilation, x.shape
    )
    request = call.request(
        "conv_grad_input",
        geometry,
        dtype,
        precision,
        bias=bias is not None,
        residual=residual is not None,
        activation=activation,
    )
    return call.run((request, [("x", x), ("weight", weight), ("bias", bias), ("residual", residual)]), out=out)


_BACKWARD = """
    Gradients of ``conv_transpose{n}d`` in x, weight and bias.

    grad_x is the convolution of grad_output with weight; grad_weight[c, o, r] = sum over n, i of x[n, c, i] *
    grad_output[n, o, i*stride - before + r*dilation]; grad_bias[o] = sum over n, j of grad_output[n, o, j].

    Args:
        grad_output: gradient in the result before residual and activation: (N, Cout, {osp}).
        x: (N, Cin, {sp}). float32, float64, float16 or bfloat16, like the two others.
        weight: (Cin, Cout / groups, {k}).
        stride, padding, output_padding, groups, dilation: as in the forward call.
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
        >>> x, weight = np.ones((2, 4, {s4}), np.float32), np.ones((4, 3, {s2}), np.float32)
        >>> grad_output = np.ones((2, 3, {s8}), np.float32)
        >>> [grad.shape for grad in ck.{op}(grad_output, x, weight, stride=2)]
        [(2, 4, {s4}), (4, 3, {s2}), (3,)]
"""


def _conv_transpose_backward_of_rank(n: int):
    op = f"conv_transpose{n}d_backward"

    def conv_transpose_backward(
        grad_output: Array,
        x: Array,
        weight: Array,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        output_mask: Sequence[bool] = (True, True, True),
        layout: str = "NCHW",
        precision: str | None = None,
    ) -> tuple[Array | None, Array | None, Array | None]:
        key = (
            op, grad_output, x, weight, stride, padding, output_padding, groups, dilation,
            output_mask, layout, precision,
        )  # fmt: skip
        result = plan.lookup(*key)
        return _conv_transpose_backward(n, *key) if result is MISS else result

    return described(conv_transpose_backward, op, _BACKWARD, n, main="grad_output")


conv_transpose1d_backward, conv_transpose2d_backward, conv_transpose3d_backward = each_rank(
    _conv_transpose_backward_of_rank
)


@slow_path(arrays=("grad_output", "x", "weight"))
def _conv_transpose_backward(
    call: Invocation,
    grad_output, x, weight, stride, padding, output_padding, groups, dilation, output_mask, layout, precision,
):  # fmt: skip
    dtype = call.same_dtype(FLOATS, grad_output=grad_output, x=x, weight=weight)
    mask = gradient_mask(call.op, output_mask)
    precision = call.precision(precision)
    x_shape = call.map_shape("x", x.shape, layout)
    weight_shape = call.weight_shape(weight.shape, "Cin, Cout / groups")
    geometry = conv_transpose_geometry(
        call.op, x_shape, weight_shape, stride, padding, output_padding, groups, dilation, x.shape
    )
    call.check_map("grad_output", grad_output, geometry.x_shape)
    sums = ChannelGeometry(geometry.batch, geometry.in_channels, geometry.input)
    gradient = ("grad_output", grad_output)
    work = (
        (call.request("conv", geometry, dtype, precision), [gradient, ("weight", weight)]),
        (call.request("conv_grad_weight", geometry, dtype, precision), [("x", x), gradient]),
        (call.request("channel_sum", sums, dtype, precision), [gradient]),
    )
    return call.run(*(item if wanted else None for item, wanted in zip(work, mask)))
