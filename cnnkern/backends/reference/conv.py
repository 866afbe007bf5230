"""Convolution, its two gradients and the bias gradient: one float64 matrix product per tap of the kernel."""

from __future__ import annotations

from math import prod

import numpy as np

from ...spec import ConvGeometry, Request
from .common import FLOATS, channels_first, geometry, per_channel, row, store, wide
from .taps import taps

# Longest reduction whose int32 sum cannot overflow. Extreme products: 255 * 255, 255 * -128, -128 * -128.
_LONGEST_INT32 = {("u8", "u8"): 33_025, ("u8", "i8"): 65_793, ("i8", "u8"): 65_793, ("i8", "i8"): 131_071}


def conv(request: Request, inputs: tuple, outputs: tuple) -> None:
    """act(bias[o] + sum over c, r of w[o, c, r] x[n, c, p s - b + r d] + residual[n, o, p]).

    int8 and uint8 are exact here: every partial sum is an integer far below 2**53.
    """
    x, weight, bias, residual = inputs
    g = geometry(request, ConvGeometry)
    x = _grouped(request, x)
    w = _by_tap(g, weight)
    total = np.zeros((g.batch, g.groups, g.out_channels // g.groups, *g.output))
    for tap in taps(g):
        total[tap.output] += _mix_channels(w[tap.cell], x[tap.input])
    _finish(request, total.reshape(g.y_shape), bias, residual, outputs[0])


def conv_grad_input(request: Request, inputs: tuple, outputs: tuple) -> None:
    """The adjoint in x; with bias, residual and activation it is the transposed convolution.

    Positions that no tap reaches hold the bias.
    """
    grad_output, weight, bias, residual = inputs
    g = geometry(request, ConvGeometry)
    grad_output = _grouped(request, grad_output)
    w = _by_tap(g, weight)
    total = np.zeros((g.batch, g.groups, g.in_channels // g.groups, *g.input))
    for tap in taps(g):
        total[tap.input] += _mix_channels(w[tap.cell].swapaxes(-1, -2), grad_output[tap.output])
    _finish(request, total.reshape(g.x_shape), bias, residual, outputs[0])


def conv_grad_weight(request: Request, inputs: tuple, outputs: tuple) -> None:
    """sum over n, p of gy[n, o, p] x[n, c, p s - b + r d]: per image a matrix product, then the images in order."""
    g = geometry(request, ConvGeometry)
    grad_output, x = (_grouped(request, array) for array in inputs)
    total = np.zeros((*g.kernel, g.groups, g.out_channels // g.groups, g.in_channels // g.groups))
    for tap in taps(g):
        gy = _flat(grad_output[tap.output])
        total[tap.cell] = (gy @ _flat(x[tap.input]).swapaxes(-1, -2)).sum(axis=0)
    rank = g.rank
    store(outputs[0], total.transpose(*range(rank, rank + 3), *range(rank)).reshape(g.weight_shape))


def channel_sum(request: Request, inputs: tuple, outputs: tuple) -> None:
    x = wide(channels_first(request, inputs[0]))
    store(outputs[0], x.sum(axis=(0, *range(2, x.ndim))))


def _grouped(request: Request, array: np.ndarray) -> np.ndarray:
    """(batch, groups, channels of a group, spatial...) in float64."""
    array = wide(channels_first(request, array))
    groups = geometry(request, ConvGeometry).groups
    return array.reshape(array.shape[0], groups, array.shape[1] // groups, *array.shape[2:])


def _by_tap(g: ConvGeometry, weight: np.ndarray) -> np.ndarray:
    """(kernel..., groups, output channels of a group, input channels of a group): one matrix per tap and group."""
    w = wide(weight).reshape(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, *g.kernel)
    return np.ascontiguousarray(np.moveaxis(w, (0, 1, 2), (-3, -2, -1)))


def _flat(maps: np.ndarray) -> np.ndarray:
    """Spatial axes of (batch, groups, channels, spatial...) joined into one."""
    return np.ascontiguousarray(maps).reshape(*maps.shape[:3], prod(maps.shape[3:]))


def _mix_channels(matrix: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """(groups, o, c) times (batch, groups, c, spatial...) over c.

    One product per image and group, each of the same shape whatever the batch: so an image's bits do not depend on its
    neighbours.
    """
    return (matrix @ _flat(maps)).reshape(*maps.shape[:2], matrix.shape[1], *maps.shape[3:])


def _finish(
    request: Request, total: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None, out: np.ndarray
) -> None:
    """Bias, then residual, then activation, then the one rounding."""
    if bias is not None:
        total = total + per_channel(bias, request.geometry.rank)
    if residual is not None:
        total = total + wide(channels_first(request, residual))
    if request.option("activation") == "relu":
        total = np.maximum(total, 0)  # keeps NaN
    store(channels_first(request, out), total)


def _why_not_activation(request: Request) -> str | None:
    activation = request.option("activation")
    return None if activation in (None, "relu") else f"needs activation relu or None, got {activation}"


def _why_not_conv(request: Request) -> str | None:
    weight_dtype = request.option("weight_dtype") or request.dtype
    longest = _LONGEST_INT32.get((request.dtype, weight_dtype))
    if longest is None and weight_dtype != request.dtype:
        return f"needs weight of dtype {request.dtype}, got {weight_dtype}"
    if longest is not None and geometry(request, ConvGeometry).reduction > longest:
        return (
            f"needs at most {longest} products per output, beyond which an int32 sum of {request.dtype} times "
            f"{weight_dtype} may overflow, got {geometry(request, ConvGeometry).reduction}"
        )
    return _why_not_activation(request)


ROWS = (
    row("conv", conv, (*FLOATS, "i8", "u8"), _why_not_conv),
    row("conv_grad_input", conv_grad_input, why_not=_why_not_activation),
    row("conv_grad_weight", conv_grad_weight),
    row("channel_sum", channel_sum),
)
