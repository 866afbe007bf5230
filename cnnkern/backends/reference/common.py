"""What the rows share: their columns, the view of a layout, widening and the one rounding at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ...spec import OPS, PRECISIONS, Kernel, Request

FLOATS = ("f32", "f64", "f16", "bf16")
INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
BOOL = ("bool",)

G = TypeVar("G")
Run = Callable[[Request, tuple, tuple], None]


def _prepare(request: Request, weights: dict | None = None) -> Request:
    return request  # nothing is packed


def row(
    op: str,
    run: Run,
    dtypes: tuple[str, ...] = FLOATS,
    why_not: Callable[[Request], str | None] = lambda request: None,
) -> Kernel:
    """The table row of ``run``. Float64 sums keep every promise of every precision, so all are served."""

    def run_quietly(request: Request, inputs: tuple, outputs: tuple) -> None:
        with np.errstate(all="ignore"):  # inf and NaN are results here, not accidents
            run(request, inputs, outputs)

    return Kernel(
        op=op,
        backend="reference",
        algorithm="direct",
        isa=None,
        dtypes=dtypes,
        layouts=("NCHW", "NHWC"),
        ranks=OPS[op].ranks,
        precisions=PRECISIONS,
        run=run_quietly,
        prepare=_prepare,
        why_not=why_not,
    )


def geometry(request: Request, kind: type[G]) -> G:
    """The request's geometry, known to be of this class."""
    assert isinstance(request.geometry, kind)
    return request.geometry


def channels_first(request: Request, array: np.ndarray) -> np.ndarray:
    """View with axes (batch, channels, spatial...) of an array in the request's layout."""
    return np.moveaxis(array, -1, 1) if request.layout == "NHWC" and array.ndim >= 3 else array


def wide(array: np.ndarray) -> np.ndarray:
    """The array in float64, C order: sums then have the same bits whatever the strides it came with."""
    return np.asarray(array, np.float64, order="C")


def per_channel(vector: np.ndarray, rank: int) -> np.ndarray:
    """(channels,) in float64, shaped to broadcast against (batch, channels, ``rank`` spatial axes)."""
    return wide(vector).reshape(-1, *(1,) * rank)


def store(out: np.ndarray, value: np.ndarray) -> None:
    """Write ``value`` into ``out``, rounding once to nearest even; integers too large wrap as in int32 arithmetic."""
    if value.dtype != out.dtype:
        if out.dtype.kind in "iu":
            value = value.astype(np.int64)
        elif out.dtype.name == "bfloat16":
            value = _float32_rounded_to_odd(value)
    np.copyto(out, value, casting="unsafe")


def _float32_rounded_to_odd(value: np.ndarray) -> np.ndarray:
    """float64 -> float32 such that rounding on to bfloat16 gives what rounding at once would have given.

    ml_dtypes goes from float64 to bfloat16 through float32, which rounds twice: 1 + 2**-8 + 2**-40 becomes a tie and
    then 1. Where the first step is inexact, taking the neighbour with an odd last bit keeps the tie from arising
    (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd").
    """
    value = np.asarray(value)
    nearest = value.astype(np.float32)
    inexact = nearest.astype(np.float64) != value  # true for NaN too, where stepping changes nothing
    even = nearest.view(np.uint32) & 1 == 0
    towards = np.where(value > nearest, np.float32(np.inf), np.float32(-np.inf))
    return np.where(inexact & even, np.nextafter(nearest, towards), nearest)
