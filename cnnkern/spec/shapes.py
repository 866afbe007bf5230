"""From shapes and parameters to geometry: the checks between arguments and the output sizes, op family by op family.

Shapes here are logical, (batch, channels, spatial axes), whatever the layout of the arrays. Functions ``*_output``
give the output's logical shape and take symbolic sizes; functions ``*_geometry`` take real ints, check everything
that can be known without the data, and give the geometry of the table ops.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ..errors import ArgumentError, ShapeError, show
from .arguments import AXIS_NAMES, LIMIT, count_of, integer, is_integer, is_sequence, per_axis
from .geometry import ConvGeometry, PoolGeometry, ResizeGeometry
from .windows import Sizes, Windows, check_windows_hold_input, known, parse_windows

BYTES_LIMIT = 2**62  # of one array; a product of two such numbers' strides still has a sign to spare


# --- convolution


def conv_output(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    given: Sizes | None = None,
) -> Sizes:
    """Shape (N, Cout, out...) of a convolution; ``weight_shape`` is (Cout, Cin / groups, k...)."""
    windows, _ = _conv_windows(op, x_shape, weight_shape, stride, padding, dilation, groups, given)
    return (x_shape[0], weight_shape[0], *windows.counts(x_shape[2:]))


def conv_geometry(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    given: Sizes | None = None,
) -> ConvGeometry:
    """Geometry of a convolution. ``given``: the shape of x as the caller wrote it, for messages."""
    windows, groups = _conv_windows(op, x_shape, weight_shape, stride, padding, dilation, groups, given)
    output = windows.counts(x_shape[2:])
    return _conv(windows, groups, x_shape, (x_shape[0], weight_shape[0], *output))


def _conv_windows(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    given: Sizes | None,
) -> tuple[Windows, int]:
    windows = _weight_windows(op, weight_shape, stride, padding, dilation)
    groups = integer(op, "groups", groups, 1)
    channels, filters, per_group = x_shape[1], weight_shape[0], weight_shape[1]
    if known(channels) and channels % groups:
        raise ShapeError(
            f"{op}: groups must divide the channels of x, got {channels} channels"
            f" {_both(groups, given or x_shape, weight_shape)}. Use a divisor of {channels}."
        )
    if known(filters) and filters % groups:
        raise ShapeError(
            f"{op}: groups must divide the filters of weight, got {filters} filters"
            f" {_both(groups, given or x_shape, weight_shape)}. Use a divisor of {filters}."
        )
    if known(channels, per_group) and channels // groups != per_group:
        wanted = (filters, channels // groups, *weight_shape[2:])
        raise ShapeError(
            f"{op}: weight expects {per_group} channels per group, x has {channels // groups}"
            f" {_both(groups, given or x_shape, weight_shape)}."
            f" Give weight shape {wanted}."
        )
    return windows, groups


def _both(groups: int, x_shape: Sizes, weight_shape: Sizes) -> str:
    return f"(groups={groups}, x {x_shape}, weight {weight_shape})"


def _weight_windows(op: str, weight_shape: Sizes, stride: Any, padding: Any, dilation: Any) -> Windows:
    kernel = tuple(weight_shape[2:])
    if known(*kernel) and min(kernel) < 1:
        raise ArgumentError(f"{op}: the kernel in weight must be >= 1 on each axis, got weight shape {weight_shape}.")
    return parse_windows(op, len(kernel), kernel, stride, padding, dilation)


def _conv(windows: Windows, groups: int, x_shape: Sizes, y_shape: Sizes) -> ConvGeometry:
    before, after = windows.pads(x_shape[2:])
    return ConvGeometry(
        batch=x_shape[0],
        groups=groups,
        in_channels=x_shape[1],
        out_channels=y_shape[1],
        input=tuple(x_shape[2:]),
        output=tuple(y_shape[2:]),
        kernel=windows.kernel,
        stride=windows.stride,
        dilation=windows.dilation,
        pad_before=before,
        pad_after=after,
    )


# --- transposed convolution


def conv_transpose_output(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    given: Sizes | None = None,
) -> Sizes:
    """Shape (N, Cout, out...) of a transposed convolution; ``weight_shape`` is (Cin, Cout / groups, k...)."""
    return _transposed(op, x_shape, weight_shape, stride, padding, output_padding, groups, dilation, given)[2]


def conv_transpose_geometry(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    given: Sizes | None = None,
) -> ConvGeometry:
    """Geometry of the convolution whose input gradient this is: its ``output`` is x, its ``input`` the result."""
    windows, groups, y_shape = _transposed(
        op, x_shape, weight_shape, stride, padding, output_padding, groups, dilation, given
    )
    return _conv(windows, groups, y_shape, x_shape)


def _transposed(
    op: str,
    x_shape: Sizes,
    weight_shape: Sizes,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    given: Sizes | None,
) -> tuple[Windows, int, Sizes]:
    windows = _weight_windows(op, weight_shape, stride, padding, dilation)
    extra = per_axis(op, "output_padding", output_padding, windows.rank, 0)
    groups = integer(op, "groups", groups, 1)
    channels, filters, per_group = x_shape[1], weight_shape[0], weight_shape[1]
    if known(channels, filters) and channels != filters:
        raise ShapeError(
            f"{op}: weight expects {filters} channels, x has {channels}"
            f" {_both(groups, given or x_shape, weight_shape)}. Give weight shape {(channels, *weight_shape[1:])}."
        )
    if known(channels) and channels % groups:
        raise ShapeError(
            f"{op}: groups must divide the channels of x, got {channels} channels"
            f" {_both(groups, given or x_shape, weight_shape)}. Use a divisor of {channels}."
        )
    for axis, amount in enumerate(extra):
        most = max(windows.stride[axis], windows.dilation[axis])
        if windows.padding.same is not None and amount:
            raise ArgumentError(
                f"{op}: output_padding must be 0 with padding {windows.padding.same!r}, got {show(output_padding)}."
            )
        if amount >= most:
            raise ArgumentError(
                f"{op}: output_padding must be smaller than stride or dilation, here below {most},"
                f" got {show(output_padding)}."
            )
    sizes = tuple(_transposed_size(windows, axis, size, extra[axis]) for axis, size in enumerate(x_shape[2:]))
    return windows, groups, (x_shape[0], groups * per_group, *sizes)


def _transposed_size(windows: Windows, axis: int, size: int, extra: int) -> int:
    stride, reach = windows.stride[axis], windows.reach(axis)
    if windows.padding.same is not None:
        before = after = 0
        out = size * stride
        formula = f"{size} * {stride}"
    else:
        before, after = windows.padding.pairs[axis]
        out = (size - 1) * stride - before - after + reach + extra + 1
        formula = f"({size} - 1) * {stride} - {before} - {after} + {reach} + {extra} + 1"
    if known(out):
        name = AXIS_NAMES[windows.rank][axis]
        if out < 1:
            raise ShapeError(
                f"{windows.op}: output would have {out} {name} ({formula}). Use less padding, a larger kernel or"
                " output_padding."
            )
        if max(out, reach + 1, out + before + after) >= LIMIT:
            raise ShapeError(
                f"{windows.op}: padded output would have {out + before + after} {name} (kernel covers {reach + 1}),"
                " the limit is 2**31 - 1. Use a smaller stride or dilation."
            )
    return out


# --- pooling


def pool_output(
    op: str, x_shape: Sizes, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> Sizes:
    """Shape (N, C, out...) of max, average or lp pooling."""
    windows = _pool_windows(op, len(x_shape) - 2, kernel, stride, padding, dilation, ceil_mode)
    sizes = tuple(x_shape[2:])
    counts = windows.counts(sizes)
    if known(*sizes):
        _check_pool(windows, sizes, counts)
    return (*x_shape[:2], *counts)


def pool_geometry(
    op: str, x_shape: Sizes, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, ceil_mode: bool = False
) -> PoolGeometry:
    windows = _pool_windows(op, len(x_shape) - 2, kernel, stride, padding, dilation, ceil_mode)
    sizes = tuple(x_shape[2:])
    counts = windows.counts(sizes)
    _check_pool(windows, sizes, counts)
    before, after = windows.pads(sizes)
    return PoolGeometry(
        batch=x_shape[0],
        channels=x_shape[1],
        input=sizes,
        output=counts,
        kernel=windows.kernel,
        stride=windows.stride,
        dilation=windows.dilation,
        pad_before=before,
        pad_after=after,
    )


def _pool_windows(
    op: str, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool = False
) -> Windows:
    """Windows side by side where no stride is given."""
    return parse_windows(op, rank, kernel, kernel if stride is None else stride, padding, dilation, ceil_mode)


def _check_pool(windows: Windows, sizes: Sizes, counts: Sizes) -> None:
    check_windows_hold_input(windows, sizes, counts)
    cells = prod(windows.kernel)
    if cells >= BYTES_LIMIT:
        raise ShapeError(
            f"{windows.op}: a window would have {cells} cells (kernel {windows.kernel}), the limit is 2**62."
        )


def adaptive_output(op: str, x_shape: Sizes, output_size: Any) -> Sizes:
    """Shape (N, C, output_size...); None in ``output_size`` keeps an axis as it is."""
    sizes = tuple(x_shape[2:])
    output = _output_size(op, output_size, sizes)
    for axis, (size, out) in enumerate(zip(sizes, output)):
        if known(size, out) and size == 0 and out > 0:
            name = AXIS_NAMES[len(sizes)][axis]
            raise ShapeError(f"{op}: x has 0 {name}, so that output_size must be 0 there, got {out}.")
    return (*x_shape[:2], *output)


def _output_size(op: str, value: Any, sizes: Sizes) -> Sizes:
    if value is None:
        return sizes
    if is_sequence(value) and len(value) == len(sizes) and all(item is None or is_integer(item) for item in value):
        return tuple(
            size if item is None else integer(op, "output_size", item, 0, value) for size, item in zip(sizes, value)
        )
    return per_axis(op, "output_size", value, len(sizes), 0)


def adaptive_geometry(op: str, x_shape: Sizes, output_size: Any) -> ResizeGeometry:
    return resize_geometry(x_shape, adaptive_output(op, x_shape, output_size))


def unpool_output(op: str, x_shape: Sizes, kernel: Any, stride: Any, padding: Any, output_size: Any) -> Sizes:
    """Shape (N, C, out...) of max unpooling; by default the smallest input from which pooling makes ``x_shape``."""
    rank = len(x_shape) - 2
    windows = _pool_windows(op, rank, kernel, stride, padding, 1)
    if output_size is not None:
        if is_sequence(output_size) and len(output_size) == rank + 2:
            raise ArgumentError(
                f"{op}: output_size must be one int or one int per axis, got the {count_of(output_size)}"
                f" {show(output_size)}. Leave out batch and channels."
            )
        return (*x_shape[:2], *per_axis(op, "output_size", output_size, rank, 0))
    if windows.padding.same is not None:
        raise ArgumentError(
            f"{op}: padding {windows.padding.same!r} does not say how large the input was. Give output_size."
        )
    return (*x_shape[:2], *(_unpooled_size(windows, axis, size) for axis, size in enumerate(x_shape[2:])))


def _unpooled_size(windows: Windows, axis: int, size: int) -> int:
    (before, after), stride, kernel = windows.padding.pairs[axis], windows.stride[axis], windows.kernel[axis]
    out = (size - 1) * stride - before - after + kernel
    if known(out) and not 0 <= out < LIMIT:
        name = AXIS_NAMES[windows.rank][axis]
        raise ShapeError(
            f"{windows.op}: output would have {out} {name} (({size} - 1) * {stride} - {before} - {after} + {kernel}),"
            " it must be from 0 to 2**31 - 1. Give output_size."
        )
    return out


def unpool_geometry(
    op: str, x_shape: Sizes, kernel: Any, stride: Any, padding: Any, output_size: Any
) -> ResizeGeometry:
    return resize_geometry(x_shape, unpool_output(op, x_shape, kernel, stride, padding, output_size))


def resize_geometry(x_shape: Sizes, y_shape: Sizes) -> ResizeGeometry:
    return ResizeGeometry(x_shape[0], x_shape[1], tuple(x_shape[2:]), tuple(y_shape[2:]))


# --- unfold and fold


def unfold_geometry(op: str, x_shape: Sizes, kernel: Any, dilation: Any, padding: Any, stride: Any) -> ConvGeometry:
    """Geometry with one group and a channel of output for each channel and cell of the kernel."""
    windows = parse_windows(op, len(x_shape) - 2, kernel, stride, padding, dilation)
    output = windows.counts(x_shape[2:])
    return _conv(windows, 1, x_shape, (x_shape[0], x_shape[1] * prod(windows.kernel), *output))


def unfold_output(op: str, x_shape: Sizes, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Sizes:
    """Shape (N, C * kernel cells, windows)."""
    windows = parse_windows(op, len(x_shape) - 2, kernel, stride, padding, dilation)
    return (x_shape[0], x_shape[1] * prod(windows.kernel), prod(windows.counts(x_shape[2:])))


def fold_geometry(
    op: str, columns: Sizes, output_size: Sizes, kernel: Any, dilation: Any, padding: Any, stride: Any
) -> ConvGeometry:
    """Of the unfold that fold reverses. ``columns``: (N, C * kernel cells, windows)."""
    windows = parse_windows(op, len(output_size), kernel, stride, padding, dilation)
    counts = windows.counts(output_size)
    cells = prod(windows.kernel)
    batch, rows, positions = columns
    if known(rows) and rows % cells:
        raise ShapeError(
            f"{op}: the {cells} cells of the kernel must divide axis 1 of x, got {rows} (x {columns},"
            f" kernel {windows.kernel})."
        )
    if known(positions, *counts) and positions != prod(counts):
        raise ShapeError(
            f"{op}: output_size {output_size} has {prod(counts)} windows {counts}, x has {positions} (x {columns})."
            f" Give x shape {(batch, rows, prod(counts))}."
        )
    return _conv(windows, 1, (batch, rows // cells, *output_size), (batch, rows, *counts))
