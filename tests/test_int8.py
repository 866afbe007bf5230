"""Convolutions of int8 and uint8: exact for every mix of signs, at the ends of the types and of int32.

The shared matrix runs these rows too, on small whole numbers with weights of the input's type. Here values fill the
types, and what is expected comes from integers of any length where an int32 is nearly full.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

import cnnkern as ck
from bounds import reference
from cnnkern import plan
from cnnkern.ops.conv import LONGEST_INT32
from cnnkern.spec import OPS, ConvGeometry, Kernel, Request, numpy_dtype
from matrix import NATIVE, missing, needs_native
from oracle import ORDERS, differs, run_row, says, serves
from samples import generator, label, large_requests, parse, sample_requests

pytestmark = needs_native

MIXES = list(LONGEST_INT32)  # (dtype of x, of the weights)
ROWS = [row for row in NATIVE if "i8" in row.dtypes and row.op == "conv"]

each_mix = pytest.mark.parametrize("mix", MIXES, ids="-".join)
each_int8_row = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.skip(reason=str(missing(row)))] if missing(row) else [])
        for row in ROWS
    ],
)


def mixed(request: Request, mix: tuple[str, str], layout: str = "NCHW") -> Request:
    """The same problem with operands of these types."""
    x, weight = mix
    options = tuple(item for item in request.options if item[0] != "weight_dtype")
    if weight != x:
        options = tuple(sorted((*options, ("weight_dtype", weight))))
    return replace(request, dtype=x, layout=layout, options=options)


def full_range(request: Request, extremes: bool) -> tuple[np.ndarray | None, ...]:
    """Bytes of any value, or only the smallest and the largest; 32-bit operands that leave room for the sums."""
    rng = generator(label(request), extremes)
    inputs: list[np.ndarray | None] = []
    for operand in OPS[request.op].inputs:
        if not operand.present(request):
            inputs.append(None)
            continue
        shape, dtype = operand.array_shape(request), operand.array_dtype(request)
        if dtype.itemsize > 1:
            inputs.append(rng.integers(-(2**20), 2**20, shape).astype(dtype))
        elif extremes:
            inputs.append(rng.choice([np.iinfo(dtype).min, np.iinfo(dtype).max], shape).astype(dtype))
        else:
            inputs.append(rng.integers(0, 256, shape).astype(np.uint8).view(dtype))
    return tuple(inputs)


def test_there_is_a_row_for_every_instruction_set() -> None:
    built = {row.isa for row in NATIVE}
    assert {row.isa for row in ROWS} == built - {"amx"}
    assert {row.dtypes for row in ROWS if row.isa == "avx512vnni"} <= {("i8", "u8")}


@each_mix
@each_int8_row
def test_every_sign_mix_is_exact_over_the_whole_range(row: Kernel, mix: tuple[str, str]) -> None:
    """Every sample, in both layouts and all memory orders by turns, with values that fill the types."""
    failures, ran = [], 0
    for number, sample in enumerate((*sample_requests("conv"), *large_requests("conv"))):
        request = mixed(sample, mix, ("NCHW", "NHWC")[number % 2])
        if not serves(row, request):
            continue
        inputs = full_range(request, number % 3 == 0)
        got, want = run_row(row, request, inputs, ORDERS[number % len(ORDERS)]), reference(request, inputs)
        difference = differs(got[0], want[0])
        ran += 1
        if difference:
            failures.append(says(row, request, difference))
    assert ran > 100
    assert not failures, "\n".join(failures[:20])


def longest(mix: tuple[str, str]) -> Iterator[ConvGeometry]:
    """Reductions as long as they may be, over channels, over taps and over both; 4 outputs of each of 3 channels."""
    most = LONGEST_INT32[mix]
    for channels, kernel in ((most, 1), (1, most), (most // 9, 9), (most // 1025, 1025)):
        yield parse("conv", f"mb1ic{channels}iw{kernel + 3}oc3kw{kernel}").geometry


@each_mix
@each_int8_row
def test_the_longest_sums_do_not_overflow(row: Kernel, mix: tuple[str, str]) -> None:
    """Products as large as they come, of either sign: the sums nearly fill an int32."""
    ends = [(np.iinfo(numpy_dtype(dtype)).min, np.iinfo(numpy_dtype(dtype)).max) for dtype in mix]
    for geometry, layout, a, b in product(longest(mix), ("NCHW", "NHWC"), *ends):
        request = mixed(Request("conv", geometry, "f32"), mix, layout)
        assert row.why_not(request) is None
        x_operand, w_operand, *_ = OPS["conv"].inputs
        x = np.full(x_operand.array_shape(request), a, x_operand.array_dtype(request))
        weight = np.full(w_operand.array_shape(request), b, w_operand.array_dtype(request))
        (got,) = run_row(row, request, (x, weight, None, None))
        want = int(a) * int(b) * geometry.reduction
        assert abs(want) < 2**31
        assert got is not None and (got == want).all(), says(row, request, f"{a} by {b}: not {want} everywhere")


@each_mix
@each_int8_row
def test_longer_sums_are_refused(row: Kernel, mix: tuple[str, str]) -> None:
    most = LONGEST_INT32[mix]
    one_more = mixed(parse("conv", f"mb1ic{most + 1}iw1oc1kw1"), mix)
    types = " by ".join(sorted(numpy_dtype(dtype).name for dtype in mix))
    assert row.why_not(one_more) == f"needs at most {most} products per output of {types}, got {most + 1}"


@each_int8_row
def test_pairs_of_the_largest_products_stand_alone(row: Kernel) -> None:
    """Two and four products and no more: what a 16-bit sum of pairs would saturate or wrap."""
    for mix, channels in product(MIXES, (1, 2, 3, 4, 5)):
        request = mixed(parse("conv", f"mb1ic{channels}ih3iw17oc33kh1"), mix)
        for x_value, w_value in product(*((np.iinfo(numpy_dtype(d)).min, np.iinfo(numpy_dtype(d)).max) for d in mix)):
            x = np.full((1, channels, 3, 17), x_value, numpy_dtype(mix[0]))
            weight = np.full((33, channels, 1, 1), w_value, numpy_dtype(mix[1]))
            (got,) = run_row(row, request, (x, weight, None, None))
            assert got is not None and (got == int(x_value) * int(w_value) * channels).all()


@each_int8_row
def test_padding_adds_nothing(row: Kernel) -> None:
    """Outputs that see mostly padding, which some rows store as another value than 0."""
    for mix in MIXES:
        request = mixed(parse("conv", "mb2ic5ih2iw3oc19kh5ph4"), mix)
        x = np.full((2, 5, 2, 3), np.iinfo(numpy_dtype(mix[0])).max, numpy_dtype(mix[0]))
        weight = np.full((19, 5, 5, 5), np.iinfo(numpy_dtype(mix[1])).min or 255, numpy_dtype(mix[1]))
        (got,) = run_row(row, request, (x, weight, None, None))
        assert got is not None and differs(got, reference(request, (x, weight, None, None))[0]) is None
        assert got[0, 0, 0, 0] == 5 * int(x[0, 0, 0, 0]) * int(weight[0, 0, 0, 0])  # one pixel


@each_int8_row
def test_axes_of_stride_zero(row: Kernel) -> None:
    """Maps and weights that are one image, channel, row or filter seen many times over."""
    for mix, layout in product(MIXES, ("NCHW", "NHWC")):
        request = mixed(parse("conv", "g2mb2ic10ih7iw19oc34kh3ph1"), mix, layout)
        x, weight, *_ = full_range(request, False)
        assert x is not None and weight is not None
        for axis in range(4):
            inputs = tuple(np.broadcast_to(a.take([0], axis), a.shape) for a in (x, weight))
            (got,) = run_row(row, request, (*inputs, None, None))
            want = reference(request, (*inputs, None, None))[0]
            assert differs(got, want) is None, says(row, request, f"axis {axis}")


@each_mix
@each_int8_row
def test_plans_pack_weights_of_either_sign(row: Kernel, mix: tuple[str, str]) -> None:
    """Large weights too, which a plain call packs late; plan and call agree, with bias, residual and relu."""
    x_dtype, w_dtype = (numpy_dtype(dtype) for dtype in mix)
    for shape, filters in (
        ((2, 9, 8, 7), (20, 9, 3, 3)),
        ((1, 300, 7, 7), (70, 300, 3, 3)),
        ((1, 64, 1, 1), (33, 64, 1, 1)),
    ):
        rng = generator(shape, mix)
        x = rng.integers(0, 256, shape).astype(np.uint8).view(x_dtype)
        weight = rng.integers(0, 256, filters).astype(np.uint8).view(w_dtype)
        bias = rng.integers(-(2**20), 2**20, filters[:1]).astype(np.int32)
        with ck.using(kernel=row.name):
            made = ck.plan_conv2d(weight, bias, x_shape=shape, x_dtype=x_dtype, padding=(1, 0), activation="relu")
            want = ck.conv2d(x, weight, bias, 1, (1, 0), activation="relu")
            assert made.kernel == row.name and made.packed_bytes >= weight.nbytes
            np.testing.assert_array_equal(made(x), want)
            residual = np.full_like(want, -(2**18))
            summed = ck.conv2d(x, weight, bias, 1, (1, 0), activation="relu", residual=residual)
            np.testing.assert_array_equal(made(x, residual), summed)
            with pytest.raises(ck.DTypeError):
                made(x.astype(np.int16))


def test_a_plan_of_bytes_says_what_it_wants() -> None:
    weight = np.ones((4, 3, 3, 3), np.int8)
    with pytest.raises(ck.DTypeError, match=r"x_dtype must be int8 or uint8 beside such weights, got float32\."):
        ck.plan_conv2d(weight, x_shape=(1, 3, 8, 8), x_dtype=np.float32)
    with pytest.raises(ck.DTypeError, match=r"x_dtype must be float32 beside such weights, got int8\."):
        ck.plan_conv2d(weight.astype(np.float32), x_shape=(1, 3, 8, 8), x_dtype="int8")
    with pytest.raises(ck.DTypeError, match=r"x_dtype must be int8 or uint8 beside such weights, got 'bytes of mine'"):
        ck.plan_conv2d(weight, x_shape=(1, 3, 8, 8), x_dtype="bytes of mine")
    with pytest.raises(ck.ShapeError, match=r"bias must be int32 of shape \(4,\), got int8"):
        ck.plan_conv2d(weight, np.ones(4, np.int8), x_shape=(1, 3, 8, 8))
    with pytest.raises(ck.ShapeError, match="may overflow"):
        ck.plan_conv2d(np.ones((1, 2**17, 1, 1), np.int8), x_shape=(1, 2**17, 1, 1))


def test_bytes_are_packed_as_bytes_where_they_are_multiplied_as_bytes() -> None:
    """Once the weights with VNNI, as pairs of int16 on other x86, as int32 elsewhere; and a little for whole blocks."""
    for row in ROWS:
        if missing(row):
            continue
        with ck.using(kernel=row.name):
            weight = np.ones((256, 256, 3, 3), np.int8)
            made = ck.plan_conv2d(weight, x_shape=(1, 256, 14, 14), padding=1)
        times = 1 if row.isa == "avx512vnni" else 2 if platform.machine() in ("x86_64", "AMD64") else 4
        assert times <= made.packed_bytes / prod(weight.shape) < 1.1 * times


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_public_calls_choose_a_native_row(layout: str) -> None:
    x = np.ones((1, 8, 9, 9) if layout == "NCHW" else (1, 9, 9, 8), np.uint8)
    weight = np.ones((4, 8, 3, 3), np.int8)
    y = ck.conv2d(x, weight, np.ones(4, np.int32), layout=layout)
    assert y.dtype == np.int32 and (y == 73).all()
    assert plan.last_rows()[0].startswith("conv.cpp.direct.")
