"""Pure shape functions: the shape a public op gives, from the shapes it is given. One per family of ops.

Sizes may be symbolic integers of a framework: on those the functions use ``+ - * //`` only and ask nothing, so that one
traced graph serves every size. Sizes that are real ints are checked as the op itself checks them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from numbers import Number
from typing import Any

from ..errors import ArgumentError, ShapeError, show
from ..spec import shapes
from ..spec.arguments import axis_letters, flag, integer, is_integer, is_sequence, layout_name, per_axis
from .docs import described, each_rank
from .types import Padding, Shape, Size
from .unfold import fold_rank

_RAISES = """Raises:
        ArgumentError, ShapeError: as the op itself, for sizes that are real ints."""


def _sizes(op: str, name: str, value: Any) -> tuple:
    """A shape whose sizes are ints from 0, or symbols that pass untouched."""
    if not is_sequence(value) or not all(is_integer(item) or _is_symbol(item) for item in value):
        raise ArgumentError(f"{op}: {name} must be a shape, a tuple of ints, got {show(value)}.")
    return tuple(item if _is_symbol(item) else integer(op, name, item, 0, value) for item in value)


def _is_symbol(value: Any) -> bool:
    """A framework's symbolic integer: it can be divided and rounded down, but is neither a number nor an array."""
    return hasattr(value, "__floordiv__") and not isinstance(value, Number) and not hasattr(value, "__array__")


class _Maps:
    """Shape of an array of maps taken apart, and put together again for the result."""

    def __init__(self, op: str, rank: int, value: Any, layout: Any) -> None:
        shape = _sizes(op, "x_shape", value)
        self.layout = layout_name(op, layout, rank)
        self.given = shape
        if len(shape) not in (rank + 1, rank + 2):
            raise ShapeError(
                f"{op}: x_shape must have {rank + 2} axes ({axis_letters(rank, self.layout)}), or {rank + 1} without"
                f" the batch, got {len(shape)} (shape {shape})."
            )
        self.batched = len(shape) == rank + 2
        shape = shape if self.batched else (1, *shape)
        self.logical = (shape[0], shape[-1], *shape[1:-1]) if self.layout == "NHWC" else shape

    def result(self, logical: tuple) -> tuple:
        shape = (logical[0], *logical[2:], logical[1]) if self.layout == "NHWC" else logical
        return shape if self.batched else shape[1:]


def _weight(op: str, rank: int, value: Any) -> tuple:
    shape = _sizes(op, "weight_shape", value)
    if len(shape) != rank + 2:
        raise ShapeError(f"{op}: weight_shape must have {rank + 2} axes, got {len(shape)} (shape {shape}).")
    return shape


_CONV = (
    """
    Shape of ``conv{n}d(x, weight, ...)``.

    Args:
        x_shape: shape of x, with or without the batch axis.
        weight_shape: (Cout, Cin / groups, {k}).
        stride, padding, dilation, groups, layout: as ``conv{n}d`` takes them.

    Returns:
        (N, Cout, {osp}), in the layout.

    """
    + _RAISES
    + """

    Example:
        >>> ck.{op}((2, 3, {s8}), (4, 3, {s3}), padding="same")
        (2, 4, {s8})
"""
)


def _conv_of_rank(n: int):
    op = f"conv{n}d_output_shape"

    def conv_output_shape(
        x_shape: Shape,
        weight_shape: Shape,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        *,
        layout: str = "NCHW",
    ) -> tuple[int, ...]:
        maps = _Maps(op, n, x_shape, layout)
        weight = _weight(op, n, weight_shape)
        return maps.result(shapes.conv_output(op, maps.logical, weight, stride, padding, dilation, groups, maps.given))

    return described(conv_output_shape, op, _CONV, n)


conv1d_output_shape, conv2d_output_shape, conv3d_output_shape = each_rank(_conv_of_rank)

_CONV_TRANSPOSE = (
    """
    Shape of ``conv_transpose{n}d(x, weight, ...)``.

    Args:
        x_shape: shape of x, with or without the batch axis.
        weight_shape: (Cin, Cout / groups, {k}).
        stride, padding, output_padding, groups, dilation, layout: as ``conv_transpose{n}d`` takes them.

    Returns:
        (N, Cout, {osp}), in the layout.

    """
    + _RAISES
    + """

    Example:
        >>> ck.{op}((2, 4, {s4}), (4, 3, {s2}), stride=2)
        (2, 3, {s8})
"""
)


def _conv_transpose_of_rank(n: int):
    op = f"conv_transpose{n}d_output_shape"

    def conv_transpose_output_shape(
        x_shape: Shape,
        weight_shape: Shape,
        stride: Size = 1,
        padding: Padding = 0,
        output_padding: Size = 0,
        groups: int = 1,
        dilation: Size = 1,
        *,
        layout: str = "NCHW",
    ) -> tuple[int, ...]:
        maps = _Maps(op, n, x_shape, layout)
        weight = _weight(op, n, weight_shape)
        shape = shapes.conv_transpose_output(
            op, maps.logical, weight, stride, padding, output_padding, groups, dilation, maps.given
        )
        return maps.result(shape)

    return described(conv_transpose_output_shape, op, _CONV_TRANSPOSE, n)


conv_transpose1d_output_shape, conv_transpose2d_output_shape, conv_transpose3d_output_shape = each_rank(
    _conv_transpose_of_rank
)

_POOL = (
    """
    Shape of ``max_pool{n}d``, ``avg_pool{n}d`` and ``lp_pool{n}d`` (whose dilation is 1).

    Args:
        x_shape: shape of x, with or without the batch axis.
        kernel_size, stride, padding, dilation, ceil_mode, layout: as ``max_pool{n}d`` takes them.

    Returns:
        (N, C, {osp}), in the layout.

    """
    + _RAISES
    + """

    Example:
        >>> ck.{op}((2, 3, {s8}), 3, stride=2, padding=1)
        (2, 3, {s4})
"""
)


def _pool_of_rank(n: int):
    op = f"pool{n}d_output_shape"

    def pool_output_shape(
        x_shape: Shape,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        *,
        layout: str = "NCHW",
    ) -> tuple[int, ...]:
        maps = _Maps(op, n, x_shape, layout)
        ceil_mode = flag(op, "ceil_mode", ceil_mode)
        return maps.result(shapes.pool_output(op, maps.logical, kernel_size, stride, padding, dilation, ceil_mode))

    return described(pool_output_shape, op, _POOL, n)


pool1d_output_shape, pool2d_output_shape, pool3d_output_shape = each_rank(_pool_of_rank)

_ADAPTIVE_POOL = (
    """
    Shape of ``adaptive_avg_pool{n}d`` and ``adaptive_max_pool{n}d``.

    Args:
        x_shape: shape of x, with or without the batch axis.
        output_size, layout: as the ops take them.

    Returns:
        (N, C, {osp}), in the layout.

    """
    + _RAISES
    + """

    Example:
        >>> ck.{op}((2, 3, {s8}), 5)
        (2, 3, {s5})
"""
)


def _adaptive_pool_of_rank(n: int):
    op = f"adaptive_pool{n}d_output_shape"

    def adaptive_pool_output_shape(x_shape: Shape, output_size: Size, *, layout: str = "NCHW") -> tuple[int, ...]:
        maps = _Maps(op, n, x_shape, layout)
        return maps.result(shapes.adaptive_output(op, maps.logical, output_size))

    return described(adaptive_pool_output_shape, op, _ADAPTIVE_POOL, n)


adaptive_pool1d_output_shape, adaptive_pool2d_output_shape, adaptive_pool3d_output_shape = each_rank(
    _adaptive_pool_of_rank
)

_MAX_UNPOOL = (
    """
    Shape of ``max_unpool{n}d``.

    Args:
        x_shape: shape of x, with or without the batch axis.
        kernel_size, stride, padding, output_size, layout: as ``max_unpool{n}d`` takes them.

    Returns:
        (N, C, {osp}), in the layout.

    """
    + _RAISES
    + """

    Example:
        >>> ck.{op}((2, 3, {s4}), 2)
        (2, 3, {s8})
"""
)


def _max_unpool_of_rank(n: int):
    op = f"max_unpool{n}d_output_shape"

    def max_unpool_output_shape(
        x_shape: Shape,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Padding = 0,
        output_size: Size | None = None,
        *,
        layout: str = "NCHW",
    ) -> tuple[int, ...]:
        maps = _Maps(op, n, x_shape, layout)
        return maps.result(shapes.unpool_output(op, maps.logical, kernel_size, stride, padding, output_size))

    return described(max_unpool_output_shape, op, _MAX_UNPOOL, n)


max_unpool1d_output_shape, max_unpool2d_output_shape, max_unpool3d_output_shape = each_rank(_max_unpool_of_rank)

_UNFOLD = (
    """
    Shape of ``unfold``.

    Args:
        x_shape: (N, C, one to three spatial axes).
        kernel_size, dilation, padding, stride: as ``unfold`` takes them.

    Returns:
        (N, C * kernel cells, windows).

    """
    + _RAISES
    + """

    Example:
        >>> ck.unfold_output_shape((2, 3, 8, 8), 3)
        (2, 27, 36)
"""
)


def unfold_output_shape(
    x_shape: Shape, kernel_size: Size, dilation: Size = 1, padding: Padding = 0, stride: Size = 1
) -> tuple[int, ...]:
    op = "unfold_output_shape"
    rank = len(kernel_size) if is_sequence(kernel_size) else len(_sizes(op, "x_shape", x_shape)) - 2
    if rank not in (1, 2, 3):
        raise ShapeError(f"{op}: x_shape must have 3 to 5 axes (N, C, spatial axes), got {show(x_shape)}.")
    maps = _Maps(op, rank, x_shape, "NCHW")
    shape = shapes.unfold_output(op, maps.logical, kernel_size, dilation, padding, stride)
    return shape if maps.batched else shape[1:]


described(unfold_output_shape, "unfold_output_shape", _UNFOLD)

_FOLD = (
    """
    Shape of ``fold``.

    Args:
        x_shape: (N, C * kernel cells, windows), or without N.
        output_size, kernel_size, dilation, padding, stride: as ``fold`` takes them.

    Returns:
        (N, C, *output_size), without N if x has none.

    """
    + _RAISES
    + """

    Example:
        >>> ck.fold_output_shape((2, 27, 36), (8, 8), 3)
        (2, 3, 8, 8)
"""
)


def fold_output_shape(
    x_shape: Shape,
    output_size: Size,
    kernel_size: Size,
    dilation: Size = 1,
    padding: Padding = 0,
    stride: Size = 1,
) -> tuple[int, ...]:
    op = "fold_output_shape"
    shape = _sizes(op, "x_shape", x_shape)
    if len(shape) not in (2, 3):
        raise ShapeError(f"{op}: x_shape must have 3 axes, or 2 without the batch, got {len(shape)} (shape {shape}).")
    columns = shape if len(shape) == 3 else (1, *shape)
    sizes = per_axis(op, "output_size", output_size, fold_rank(op, output_size, kernel_size), 0)
    geometry = shapes.fold_geometry(op, columns, sizes, kernel_size, dilation, padding, stride)
    return geometry.x_shape if len(shape) == 3 else geometry.x_shape[1:]


described(fold_output_shape, "fold_output_shape", _FOLD)
