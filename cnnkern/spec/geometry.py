"""Geometry of the ops: frozen dataclasses of plain ints, one per family.

A geometry says everything about sizes and nothing about arrays, types or memory. Shapes are in logical order
(batch, channels, spatial axes outermost first); the layout of the arrays is a separate column of the request.
All tuples have one entry per spatial axis. Padding, dilation and strides count as PyTorch does (dilation 1 is dense).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class ConvGeometry:
    """A convolution and its two gradients, a transposed convolution (its ``output`` is then the array given), unfold.

    ``in_channels`` and ``out_channels`` are totals over all groups. ``pad_after`` is what the caller asked for; kernels
    need only ``pad_before`` and the sizes, because ``output`` already follows from both.
    """

    batch: int
    groups: int
    in_channels: int
    out_channels: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_before: tuple[int, ...]
    pad_after: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.input)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.in_channels, *self.input)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, self.out_channels, *self.output)

    @property
    def reduction(self) -> int:
        """Products per output element."""
        return self.in_channels // self.groups * prod(self.kernel)


@dataclass(frozen=True, slots=True)
class PoolGeometry:
    """Windowed pooling: max, average, lp."""

    batch: int
    channels: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_before: tuple[int, ...]
    pad_after: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.input)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.input)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.output)


@dataclass(frozen=True, slots=True)
class ResizeGeometry:
    """Planes of one size to planes of another: adaptive pooling, max unpooling."""

    batch: int
    channels: int
    input: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.input)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.input)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.output)


@dataclass(frozen=True, slots=True)
class ChannelGeometry:
    """Ops that look at channels and keep the shape: batch norm, local response norm, the bias gradient."""

    batch: int
    channels: int
    spatial: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.spatial)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.spatial)


@dataclass(frozen=True, slots=True)
class PointwiseGeometry:
    """Ops that look at one element at a time. ``shape`` is the array's shape as given."""

    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class ClassGeometry:
    """Rows of class scores: softmax cross-entropy."""

    rows: int
    classes: int

    @property
    def rank(self) -> int:
        return 0
