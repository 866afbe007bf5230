"""Windows cut down to real elements: which outputs a tap of the kernel serves, and which inputs it reads for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from ...spec import ConvGeometry, PoolGeometry, ResizeGeometry

Index = tuple[Any, ...]  # an Ellipsis for the batch and channel axes, then one entry per spatial axis


@dataclass(frozen=True, slots=True)
class Tap:
    """One cell of the kernel: ``x[tap.input]`` is what it reads for the outputs ``y[tap.output]``.

    Outputs for which the cell falls on padding are not among them.
    """

    cell: tuple[int, ...]
    output: Index
    input: Index


def taps(g: ConvGeometry | PoolGeometry) -> Iterator[Tap]:
    """The taps that meet a real element somewhere, in row-major order."""
    axes = [
        _axis_taps(*sizes)
        for sizes in zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.pad_before, strict=True)
    ]
    for entries in product(*axes):
        cells, outputs, inputs = zip(*entries, strict=True)
        yield Tap(cells, (..., *outputs), (..., *inputs))


@lru_cache(maxsize=1024)
def _axis_taps(
    size: int, out: int, kernel: int, stride: int, dilation: int, before: int
) -> tuple[tuple[int, slice, slice], ...]:
    """(cell, outputs, inputs) along one axis, where output p reads input p * stride - before + cell * dilation.

    Cells that read only padding are stepped over without visiting them, so that a kernel of 2**40 cells over much
    padding costs no more than the real elements it covers.
    """
    found = []
    next_cell = 0
    for p in reversed(range(out)):  # the cells that are real for p rise as p falls: each is met once
        start = p * stride - before
        first = _ceil_div(max(0, -start), dilation)
        last = min(kernel, (size - 1 - start) // dilation + 1)
        for cell in range(max(first, next_cell), last):
            shift = cell * dilation - before
            low = max(0, _ceil_div(-shift, stride))
            high = min(out, (size - 1 - shift) // stride + 1)
            begin = low * stride + shift
            end = (high - 1) * stride + shift + 1
            found.append((cell, slice(low, high), slice(begin, end, stride)))
        next_cell = max(next_cell, last)
    return tuple(found)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def adaptive_windows(g: ResizeGeometry) -> Iterator[tuple[Index, Index]]:
    """(output position, its window): [floor(i L / out), ceil((i + 1) L / out)) on every axis, row-major."""
    axes = [
        [(i, slice(i * size // out, _ceil_div((i + 1) * size, out))) for i in range(out)]
        for size, out in zip(g.input, g.output, strict=True)
    ]
    for entries in product(*axes):
        position, window = zip(*entries, strict=True)
        yield (..., *position), (..., *window)
