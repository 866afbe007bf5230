"""Sliding windows: how many fit, where they start, and the errors when they do not. Shared by conv, pooling, unfold.

Sizes may be symbolic integers of a framework (torch.SymInt while a shape is traced). The arithmetic is therefore plain
``+ - * //`` and every check that would force a value looks only at sizes that are real ints.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from ..errors import ShapeError
from .arguments import AXIS_NAMES, LIMIT, per_axis
from .padding import Padding, parse_padding

Sizes = tuple[int, ...]


def known(*sizes: Any) -> bool:
    """Whether these are real ints, not symbols of a tracer."""
    return all(type(size) is int for size in sizes)


@dataclass(frozen=True, slots=True)
class Windows:
    """Parameters of sliding windows, checked by themselves; sizes of an input come with each call."""

    op: str
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Padding
    ceil_mode: bool = False

    @property
    def rank(self) -> int:
        return len(self.kernel)

    def reach(self, axis: int) -> int:
        """Input positions from a window's first to its last."""
        return self.dilation[axis] * (self.kernel[axis] - 1)

    def pads(self, sizes: Sizes) -> tuple[Sizes, Sizes]:
        """(before, after), each with one int per axis."""
        pairs = [self.padding.pair(i, size, self.reach(i), self.stride[i]) for i, size in enumerate(sizes)]
        return tuple(before for before, _ in pairs), tuple(after for _, after in pairs)

    def counts(self, sizes: Sizes) -> Sizes:
        """Windows per axis for an input of these spatial sizes.

        Raises:
            ShapeError: an axis has no window, or is 2**31 long or more with its padding.
        """
        return tuple(self._count(axis, size) for axis, size in enumerate(sizes))

    def _count(self, axis: int, size: int) -> int:
        stride, reach = self.stride[axis], self.reach(axis)
        if known(size):
            self._check_axis(axis, size)
        if self.padding.same is not None:
            return -(-size // stride)
        before, after = self.padding.pairs[axis]
        if not self.ceil_mode:
            return (size + before + after - reach - 1) // stride + 1
        # ceil(q) + 1 windows, less one if the last would start in the padding after the input. With e = size + before
        # and c = after - reach - 1 that is ceil((e + c + stride) / stride) while c + stride <= 0, ceil((e + c) /
        # stride) once c >= 0, and ceil(e / stride) between: one expression, and nothing is asked of a symbolic size.
        excess = after - reach - 1
        return -(-(size + before + max(excess, min(excess + stride, 0))) // stride)

    def _check_axis(self, axis: int, size: int) -> None:
        op, name = self.op, AXIS_NAMES[self.rank][axis]
        kernel, dilation = self.kernel[axis], self.dilation[axis]
        covered = self.reach(axis) + 1
        if covered >= LIMIT:
            raise ShapeError(
                f"{op}: kernel covers {covered} {name} (kernel {kernel}, dilation {dilation}), the limit is 2**31 - 1."
                " Use a smaller dilation or kernel."
            )
        before, after = self.padding.pair(axis, size, covered - 1, self.stride[axis])
        padded = size + before + after
        parts = f"({size} + {before} + {after})"
        if padded >= LIMIT:
            raise ShapeError(
                f"{op}: padded input would have {padded} {name} {parts}, the limit is 2**31 - 1. Pad less."
            )
        if padded < covered and (not self.ceil_mode or self._ceil_count(axis, padded) < 1):
            smaller = "dilation" if dilation > 1 else "kernel"
            raise ShapeError(
                f"{op}: kernel covers {covered} {name} (kernel {kernel}, dilation {dilation}) but the padded input has"
                f" {padded} {parts}. Use padding >= {(covered - size + 1) // 2} or a smaller {smaller}."
            )

    def _ceil_count(self, axis: int, padded: int) -> int:
        return -(-(padded - self.reach(axis) - 1) // self.stride[axis]) + 1


def parse_windows(
    op: str, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool = False
) -> Windows:
    """Check kernel, stride, padding and dilation as the caller wrote them.

    Raises:
        ArgumentError: not one positive int per axis, or not in the padding grammar.
        ShapeError: a value of 2**31 or more.
    """
    kernel = per_axis(op, "kernel_size", kernel, rank, 1)
    stride = per_axis(op, "stride", stride, rank, 1)
    dilation = per_axis(op, "dilation", dilation, rank, 1)
    return Windows(op, kernel, stride, dilation, parse_padding(op, padding, kernel, dilation), ceil_mode)


def check_windows_hold_input(windows: Windows, sizes: Sizes, counts: Sizes) -> None:
    """Every window of a pooling must hold at least one element of the input.

    Raises:
        ShapeError: a window that reads padding only, named with its numbers.
    """
    before, after = windows.pads(sizes)
    for axis, size in enumerate(sizes):
        kernel, stride, dilation = windows.kernel[axis], windows.stride[axis], windows.dilation[axis]
        name = AXIS_NAMES[windows.rank][axis]
        if size == 0:
            raise ShapeError(f"{windows.op}: every window must hold an element of x, but x has 0 {name}.")
        empty = first_empty_window(size, counts[axis], kernel, stride, dilation, before[axis])
        if empty is not None:
            raise ShapeError(
                f"{windows.op}: every window must hold an element of x, but window {empty} of the {name} starts at"
                f" {empty * stride - before[axis]} and reads padding only (input {size}, kernel {kernel}, stride"
                f" {stride}, dilation {dilation}, padding ({before[axis]}, {after[axis]})). Pad less or use a larger"
                " kernel."
            )


def first_empty_window(size: int, count: int, kernel: int, stride: int, dilation: int, before: int) -> int | None:
    """Number of a window that reads no position of ``[0, size)``, or None. Exact, without visiting every window.

    A window that starts at ``s >= 0`` reads ``s`` first: it is empty if ``s >= size``. One that starts before the input
    enters it at ``s mod dilation``, if its kernel is long enough, and can jump over it if dilation > size.
    """
    if count == 0:
        return None
    if (count - 1) * stride - before >= size:
        return count - 1
    if before > dilation * (kernel - 1):
        return 0  # the first window ends before the input begins
    if dilation <= size:
        return None
    # Entry points of the windows that start before the input: -before + o * stride, modulo dilation. They repeat with
    # period dilation / gcd, and rise inside a lap of the modulus, so that only each lap's last one needs a look. There
    # are at most min(kernel, dilation) laps, which is below 2**16 because dilation * (kernel - 1) < 2**31.
    step = stride % dilation
    left = min(count, -(-before // stride), dilation // gcd(stride, dilation))
    number, entry = 0, -before % dilation
    while number < left:
        hop = min(left - 1 - number, (dilation - 1 - entry) // max(step, 1))
        number, entry = number + hop, entry + hop * step
        if entry >= size:
            return number
        number, entry = number + 1, (entry + step) % dilation
    return None
