"""Geometries by the formulas of the documentation, and calls of reference rows on arrays with channels first.

Kept apart from the library's own shape functions on purpose: what is tested here must not be computed by what is
tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnkern.backends.reference import kernels
from cnnkern.spec import OPS, ConvGeometry, Kernel, PoolGeometry, Request

ROWS: dict[str, Kernel] = {row.op: row for row in kernels()}


def each(value: Any, rank: int) -> tuple:
    """A scalar for every axis."""
    return value if isinstance(value, tuple) else (value,) * rank


def pairs(padding: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """int or one (before, after) per axis -> all before, all after."""
    sides = padding if isinstance(padding, tuple) else ((padding, padding),) * rank
    return tuple(before for before, _ in sides), tuple(after for _, after in sides)


def conv_geometry(
    x_shape: tuple, weight_shape: tuple, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> ConvGeometry:
    batch, in_channels, *size = x_shape
    out_channels, per_group, *kernel = weight_shape
    assert per_group * groups == in_channels
    rank = len(size)
    stride, dilation, (before, after) = each(stride, rank), each(dilation, rank), pairs(padding, rank)
    output = tuple(
        (length + b + a - d * (k - 1) - 1) // s + 1
        for length, k, s, d, b, a in zip(size, kernel, stride, dilation, before, after, strict=True)
    )
    return ConvGeometry(
        batch, groups, in_channels, out_channels, tuple(size), output, tuple(kernel), stride, dilation, before, after
    )


def pool_geometry(
    x_shape: tuple, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> PoolGeometry:
    batch, channels, *size = x_shape
    rank = len(size)
    kernel, dilation, (before, after) = each(kernel, rank), each(dilation, rank), pairs(padding, rank)
    stride = kernel if stride is None else each(stride, rank)
    output = []
    for length, k, s, d, b, a in zip(size, kernel, stride, dilation, before, after, strict=True):
        room = length + b + a - d * (k - 1) - 1
        out = -(-room // s) + 1 if ceil_mode else room // s + 1
        if ceil_mode and (out - 1) * s >= length + b:
            out -= 1
        output.append(out)
    return PoolGeometry(batch, channels, tuple(size), tuple(output), kernel, stride, dilation, before, after)


def to_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """Channels first -> a C-contiguous array of the layout."""
    if layout == "NHWC" and array.ndim >= 3:
        array = np.moveaxis(array, 1, -1)
    return np.array(array, order="C")


def from_layout(array: np.ndarray, layout: str) -> np.ndarray:
    return np.moveaxis(array, -1, 1) if layout == "NHWC" and array.ndim >= 3 else array


def poison(array: np.ndarray) -> None:
    """Fill with what no test expects, so that an element left unwritten shows."""
    if array.dtype.kind in "iu":
        array.fill(np.iinfo(array.dtype).max - 7)
    elif array.dtype.kind == "b":
        array.fill(True)
    else:
        array.fill(np.nan)


def with_absent(op: str, inputs: tuple) -> tuple:
    """None for the operands left out at the end."""
    return (*inputs, *(None,) * (len(OPS[op].inputs) - len(inputs)))


def make_request(
    op: str, geometry: Any, inputs: tuple, dtype: str = "f64", layout: str = "NCHW", **options: Any
) -> Request:
    """The request for these inputs: presence options follow from which of them are None."""
    spec = OPS[op]
    values = dict(options)
    for operand, array in zip(spec.inputs, with_absent(op, inputs), strict=True):
        if operand.given_by is not None:
            values[operand.given_by] = array is not None
    assert set(values) <= set(spec.options), f"{op} has no option {set(values) - set(spec.options)}"
    changed = tuple(sorted((name, value) for name, value in values.items() if value != spec.options[name]))
    return Request(op, geometry, dtype, layout, options=changed)


def call(op: str, geometry: Any, *inputs: Any, dtype: str = "f64", layout: str = "NCHW", **options: Any) -> Any:
    """Run the reference row of ``op``; arrays in and out have channels first whatever the layout they are run in.

    Returns:
        The output, or the tuple of outputs where there are several.
    """
    row, spec = ROWS[op], OPS[op]
    inputs = with_absent(op, inputs)
    request = make_request(op, geometry, inputs, dtype, layout, **options)
    assert dtype in row.dtypes and layout in row.layouts and geometry.rank in row.ranks
    assert row.why_not(request) is None, row.why_not(request)
    arrays: list[np.ndarray | None] = []
    for operand, array in zip(spec.inputs, inputs, strict=True):
        if array is None:
            arrays.append(None)
            continue
        array = np.asarray(array)
        assert array.shape == operand.shape(geometry), f"{op}: {operand.name} has shape {array.shape}"
        array = array.astype(operand.array_dtype(request))
        arrays.append(to_layout(array, layout) if operand.map else array)
    outputs: list[np.ndarray | None] = []
    for operand in spec.outputs:
        if operand.present(request):
            outputs.append(np.empty(operand.array_shape(request), operand.array_dtype(request)))
            poison(outputs[-1])
        else:
            outputs.append(None)
    row.run(row.prepare(request, None), tuple(arrays), tuple(outputs))
    results = tuple(
        from_layout(out, layout) if operand.map and out is not None else out
        for operand, out in zip(spec.outputs, outputs, strict=True)
        if out is not None
    )
    return results if len(results) > 1 else results[0]


def integers(rng: np.random.Generator, shape: tuple, low: int = -4, high: int = 4) -> np.ndarray:
    """Small integers in float64: sums of their products are exact in any order."""
    return rng.integers(low, high + 1, shape).astype(np.float64)
