"""Drive single native rows beside the reference: memory orders, guards, threads, comparison.

Inputs lie in buffers full of NaN and outputs in buffers of guard values, in several memory orders. The reference
computes and keeps float64.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pytest

from cnnkern import plan
from cnnkern.config import using
from cnnkern.dispatch import kernels
from cnnkern.spec import OPS, Kernel, Request
from reference_rows import ROWS as REFERENCE

LAYOUTS = ("NCHW", "NHWC")
DTYPES = {"f32": np.float32, "f64": np.float64}
MEMORY = ("dense", "strided", "reversed", "swapped")
ORDERS = (*MEMORY, "mixed")  # mixed: each operand another one
GUARD = 64  # elements before and after an array

NATIVE = kernels(backend="cpp")
needs_native = pytest.mark.skipif(not NATIVE, reason="the native module is not built")
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def rows_of(*ops: str) -> Any:
    """Parametrize a test by ``row``: every native row of these table ops."""
    some = [row for row in NATIVE if row.op in ops]
    assert {row.op for row in some} == set(ops) or not NATIVE, "an op without a native row"
    return pytest.mark.parametrize("row", some, ids=[f"{row.op}.{row.name}" for row in some])


def generator(*key: Any) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def as_arrays(request: Request, inputs: tuple) -> tuple:
    """Channels first in float64 -> the request's types and layout."""
    arrays = []
    for operand, values in zip(OPS[request.op].inputs, inputs, strict=True):
        if values is not None:
            values = np.asarray(values).astype(operand.array_dtype(request))
            if operand.map and request.layout == "NHWC" and values.ndim >= 3:
                values = np.ascontiguousarray(np.moveaxis(values, 1, -1))
        arrays.append(values)
    return tuple(arrays)


def unit(request: Request) -> float:
    return float(np.finfo(DTYPES[request.dtype]).eps) / 2


def view_of(buffer_of: Callable[[tuple[int, ...]], np.ndarray], shape: tuple[int, ...], order: str) -> tuple:
    """(whole buffer, view of ``shape`` in it); ``buffer_of(shape)`` makes a buffer."""
    if order == "strided":  # every second element of every axis
        buffer = buffer_of(tuple(2 * extent + 3 for extent in shape))
        return buffer, buffer[(..., *(slice(1, 1 + 2 * extent, 2) for extent in shape))]  # a view, of a scalar too
    buffer = buffer_of((prod(shape) + 2 * GUARD,))
    inside = buffer[GUARD : GUARD + prod(shape)]
    if order == "reversed":
        return buffer, inside.reshape(shape)[(..., *(slice(None, None, -1),) * len(shape))]
    if order == "swapped" and len(shape) >= 2:  # channels last in memory if they are first in the array
        moved = inside.reshape(shape[0], *shape[2:], shape[1])
        return buffer, np.moveaxis(moved, -1, 1)
    return buffer, inside.reshape(shape)


def place(values: np.ndarray, order: str) -> np.ndarray:
    """A read-only input with these values, between NaN (or values far outside)."""
    fill = np.nan if values.dtype.kind == "f" else np.iinfo(values.dtype).min if values.dtype.kind == "i" else True
    _, view = view_of(lambda shape: np.full(shape, fill, values.dtype), values.shape, order)
    view[...] = values
    view.flags.writeable = False
    return view


class Target:
    """An output: filled with values that no test expects, and a check that nothing else was written."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, order: str) -> None:
        stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype  # bool outputs: bytes, so that 77 stays 77
        self.fill = stored.type(77)
        self.buffer, inside = view_of(lambda s: np.full(s, self.fill), shape, order)
        inside[...] = np.nan if dtype.kind == "f" else 66
        self.array = inside.view(dtype)
        self.outside, inside = view_of(lambda s: np.ones(s, bool), shape, order)
        inside[...] = False

    def check(self) -> None:
        assert (self.buffer[self.outside] == self.fill).all(), "wrote outside the output"


def run_native(row: Kernel, request: Request, inputs: tuple, order: str = "dense") -> tuple[np.ndarray, ...]:
    """The row's outputs that the request asks for, as copies in the layout's axes."""
    assert row.why_not(request) is None
    orders = itertools.cycle(MEMORY if order == "mixed" else (order,))
    placed = tuple(None if array is None else place(array, next(orders)) for array in inputs)
    targets = [
        Target(o.array_shape(request), o.array_dtype(request), next(orders)) if o.present(request) else None
        for o in OPS[request.op].outputs
    ]
    row.run(row.prepare(request, None), placed, tuple(target and target.array for target in targets))
    present = [target for target in targets if target]
    for target in present:
        target.check()
    return tuple(target.array.copy() for target in present)


def run_reference(request: Request, inputs: tuple) -> tuple[np.ndarray, ...]:
    """The reference's outputs, computed and kept in float64."""
    wide = Request(request.op, request.geometry, "f64", request.layout, options=request.options)
    outputs = tuple(
        np.empty(o.array_shape(wide), o.array_dtype(wide)) if o.present(wide) else None for o in OPS[request.op].outputs
    )
    inputs = tuple(a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in inputs)
    row = REFERENCE[request.op]
    row.run(row.prepare(wide, None), inputs, outputs)
    return tuple(out for out in outputs if out is not None)


def close(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
    """|actual - expected| <= bound where expected is finite; the same NaN and infinities elsewhere."""
    assert actual.shape == expected.shape
    actual = actual.astype(np.float64)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(actual[~finite], expected[~finite])
    excess = abs(actual[finite] - expected[finite]) - np.broadcast_to(bound, expected.shape)[finite]
    assert not excess.size or excess.max() <= 0, f"beyond the bound by {excess.max():.3g}"


def with_threads(threads: int, row: Kernel, request: Request, inputs: tuple) -> tuple[np.ndarray, ...]:
    """``run_native`` on this many threads."""
    plan.lookup("")  # the first lookup loads the native cache, which then hears of settings
    with using(num_threads=threads):
        return run_native(row, request, inputs)


def same_bits(runs: list[tuple[np.ndarray, ...]]) -> None:
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            assert one.tobytes() == two.tobytes()
