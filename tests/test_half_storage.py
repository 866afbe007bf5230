"""float16 and bfloat16 arrays of a convolution: every bit pattern read, every kind of rounding written.

A 1x1 convolution over two channels adds pairs of numbers, exactly in float32 here, and rounds the sums once. Vectors,
tails and single elements are converted by different instructions, so outputs lie in rows, in columns and apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import cnnkern as ck
from cnnkern.spec import numpy_dtype
from matrix import COMPLETE, needs_native

pytestmark = needs_native

NARROW = ("f16", "bf16")
ALGORITHMS = ("direct", "gemm", "rows")


def every_pattern(dtype: str) -> np.ndarray:
    return np.arange(65536, dtype=np.uint16).view(numpy_dtype(dtype))


def bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint16)


def in_rows(channels: np.ndarray) -> tuple[np.ndarray, str]:
    """(channels, values) as one image with values beside each other."""
    return channels.reshape(1, len(channels), 1, -1), "NCHW"


def in_columns(channels: np.ndarray) -> tuple[np.ndarray, str]:
    """Channels beside each other."""
    return np.ascontiguousarray(channels.T).reshape(1, 1, -1, len(channels)), "NHWC"


def apart(channels: np.ndarray) -> tuple[np.ndarray, str]:
    """No two elements beside each other."""
    wide = np.zeros((1, 2 * len(channels), 1, 3 * channels.shape[1]), channels.dtype)
    view = wide[:, ::2, :, ::3]
    view[...] = channels.reshape(1, len(channels), 1, -1)
    return view, "NCHW"


def added(channels: np.ndarray, place: Callable, algorithm: str, isa: str) -> np.ndarray:
    """The sum of two channels: by a 1x1 convolution with weights of one, on this row, its output placed like x."""
    x, layout = place(channels)
    out, _ = place(np.zeros_like(channels[:1]))
    weight = np.ones((1, 2, 1, 1), channels.dtype)
    with ck.using(kernel=f"cpp.{algorithm}.{isa}"):
        ck.conv2d(x, weight, precision="strict", layout=layout, out=out)
    return np.ascontiguousarray(out).reshape(-1)


each_way = pytest.mark.parametrize("place", [in_rows, in_columns, apart], ids=lambda place: place.__name__)
each_isa = pytest.mark.parametrize("isa", COMPLETE)
each_dtype = pytest.mark.parametrize("dtype", NARROW)


@each_dtype
@each_way
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@each_isa
def test_every_number_comes_back(isa: str, algorithm: str, place: Callable, dtype: str) -> None:
    """All 65,536 patterns, and 3 more for a tail: numbers with their bits, of NaN that it is one."""
    values = np.concatenate([every_pattern(dtype), every_pattern(dtype)[1:4]])
    got = added(np.stack([values, np.zeros_like(values)]), place, algorithm, isa)
    nan = np.isnan(values.astype(np.float32))
    assert np.isnan(got[nan].astype(np.float32)).all()
    zero = values.astype(np.float32) == 0  # -0 + 0 is +0
    np.testing.assert_array_equal(bits(got)[~nan & ~zero], bits(values)[~nan & ~zero])
    assert (bits(got)[zero] == 0).all()


@each_dtype
@each_way
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@each_isa
def test_sums_round_once_to_nearest_even(isa: str, algorithm: str, place: Callable, dtype: str) -> None:
    """Each number plus 0, 1, 2 or 3 quarters of the distance to its neighbour, exact in float32; half is a tie.

    Beyond the largest float16 a tie rounds to infinity.
    """
    values = every_pattern(dtype).astype(np.float32)
    normal = np.isfinite(values) & (abs(values) >= 4 * smallest_normal(dtype))
    values = values[normal]
    distance = np.exp2(np.floor(np.log2(abs(values))) - (10 if dtype == "f16" else 7)).astype(np.float32)
    quarters = np.tile(np.arange(4, dtype=np.float32), -(-len(values) // 4))[: len(values)] / 4
    for turn in range(4):
        part = (np.roll(quarters, turn)[: len(values)] * distance).astype(numpy_dtype(dtype))
        first = values.astype(numpy_dtype(dtype))
        exact = first.astype(np.float64) + part.astype(np.float64)
        assert (exact == exact.astype(np.float32)).all()
        with np.errstate(over="ignore"):
            want = exact.astype(np.float32).astype(numpy_dtype(dtype))
        got = added(np.stack([first, part]), place, algorithm, isa)
        np.testing.assert_array_equal(bits(got), bits(want))


def smallest_normal(dtype: str) -> float:
    return 2.0**-14 if dtype == "f16" else 2.0**-126


@each_dtype
@each_isa
def test_a_residual_is_added_before_the_one_rounding(isa: str, dtype: str) -> None:
    """1 + 3/8 + 3/8 of the distance to the next number: rounding 1 + 3/8 first would give 1."""
    kind = numpy_dtype(dtype)
    step = 2.0 ** (-10 if dtype == "f16" else -7)
    x = np.ones((1, 1, 2, 37), kind)
    part = np.full_like(x, step * 3 / 8)
    bias = np.full(1, step * 3 / 8, kind)
    with ck.using(backend="cpp", isa=isa):
        got = ck.conv2d(x, np.ones((1, 1, 1, 1), kind), bias, residual=part)
    assert (got.astype(np.float64) == 1 + step).all()


@each_dtype
@each_isa
def test_long_sums_are_taken_in_float32(isa: str, dtype: str) -> None:
    """4,096 ones and more: a sum in the storage type would stop growing at 2,048 or 256."""
    kind = numpy_dtype(dtype)
    x = np.ones((1, 4096, 3, 5), kind)
    weight = np.ones((4, 4096, 1, 1), kind)
    grad_output = np.ones((1, 4, 3, 5), kind)
    with ck.using(backend="cpp", isa=isa):
        assert (ck.conv2d(x, weight) == 4096).all()
        one = ck.conv2d_backward(
            np.ones((1, 2, 64, 64), kind), np.ones((1, 2, 64, 64), kind), np.ones((2, 2, 1, 1), kind)
        )
        assert (one[1] == 4096).all() and (one[2] == 4096).all()
        assert (ck.conv2d_backward(grad_output, x, weight)[0] == 4).all()


@each_dtype
def test_plans_pack_and_eager_calls_are_remembered(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(3)
    x = rng.integers(-4, 5, (2, 20, 9, 10)).astype(kind)
    weight = rng.integers(-4, 5, (33, 20, 3, 3)).astype(kind)
    made = ck.plan_conv2d(weight, x_shape=x.shape, padding=1, precision="strict")
    for _ in range(2):
        np.testing.assert_array_equal(bits(made(x)), bits(ck.conv2d(x, weight, None, 1, 1, precision="strict")))
    assert made.kernel.startswith("cpp.")
