"""The error of a call at each precision, as root mean square over its output, against what is promised.

"strict" and "f32": at most 4 times the error of a sequential float32 sum on the same data. "fast": 1e-5 of the rms
output. "bf16": what rounding both operands to bfloat16 costs. Of 16-bit arrays: besides, the rounding of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bounds import NARROW, UNIT, reference
from cnnkern.spec import OPS, ConvGeometry, Request, numpy_dtype
from matrix import Case, each_case
from oracle import exceeds_rms, rms, run_row, says, serves
from samples import generator, parse, with_columns

# Reductions from 9 to 4,608 products, odd sizes, a stride, a long reduction over pixels for the weight gradient,
# depthwise.
PROBLEMS = (
    "mb1ic3ih13iw15oc19kh3ph1",
    "mb1ic16ih9iw7oc33kh3ph1",
    "mb1ic100ih5iw6oc35kh1",
    "mb1ic128ih7iw5oc19kh3ph1",
    "mb1ic512ih4iw5oc17kh3ph1",
    "mb1ic48ih9iw18oc3kh3ph1",
    "mb4ic5ih31iw33oc6kh5ph2",
    "g16mb2ic16ih9iw26oc16kh3ph1",
    "g16mb2ic16ih10iw11oc16kh7ph3",
)


def bell(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape)


def rectified(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.maximum(rng.standard_normal(shape), 0)


def offset(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape) + 3


def columns(g: ConvGeometry, x: np.ndarray) -> np.ndarray:
    """(batch, products, outputs): what each product of an output reads, in the order of weight's elements."""
    geometry = replace(g, groups=1, out_channels=g.reduction)
    unfolded = reference(Request("unfold", geometry, "f64"), (x,))[0]
    assert unfolded is not None
    return unfolded.astype(np.float32)


def sequential(factors: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The sum of outer products in float32, one product after the other, each rounded and then added."""
    total = np.float32(0)
    for a, b in factors:
        total = total + np.multiply.outer(a, b)
    return total


def sequential_sum(request: Request, inputs: tuple) -> np.ndarray:
    """Result of a convolution or a gradient, of stride 1 for the input's, by sequential float32 sums."""
    g = request.geometry
    if g.groups > 1:
        parts = replace(g, groups=1, in_channels=g.in_channels // g.groups, out_channels=g.out_channels // g.groups)
        splits = [np.split(a, g.groups, int(o.map)) for a, o in zip(inputs[:2], OPS[request.op].inputs)]
        sums = [sequential_sum(replace(request, geometry=parts), pair) for pair in zip(*splits)]
        return np.concatenate(sums, int(OPS[request.op].outputs[0].map))
    if request.op == "conv":
        x, weight = inputs[0], inputs[1].reshape(g.out_channels, -1)
        images = [sequential(list(zip(weight.T, image))) for image in columns(g, x)]
        return np.stack(images).reshape(g.y_shape)
    if request.op == "conv_grad_weight":
        gy, x = inputs
        by_output = np.moveaxis(gy.reshape(g.batch, g.out_channels, -1), 1, 2)  # (batch, outputs, channels)
        by_column = np.swapaxes(columns(g, x), 1, 2)  # (batch, outputs, products)
        factors = [pair for image in zip(by_output, by_column) for pair in zip(*image)]
        return sequential(factors).reshape(g.weight_shape)
    gy, weight = inputs[0], inputs[1]
    flipped = np.swapaxes(np.flip(weight, tuple(range(2, weight.ndim))), 0, 1)
    before = tuple(k - 1 - p for k, p in zip(g.kernel, g.pad_before))
    swapped = ConvGeometry(
        g.batch, 1, g.out_channels, g.in_channels, g.output, g.input, g.kernel, g.stride, g.dilation, before, before
    )
    return sequential_sum(Request("conv", swapped, "f32"), (gy, flipped))


def drawn(request: Request, data: Callable) -> tuple:
    """Arrays of this distribution where maps stand, bell-shaped weights."""
    g, rng = request.geometry, generator(str(request.geometry), data.__name__)
    maps = [data(shape, rng).astype(np.float32) for shape in (g.x_shape, g.y_shape)]
    weight = bell(g.weight_shape, rng).astype(np.float32)
    if request.op == "conv":
        return maps[0], weight, None, None
    return (maps[1], weight, None, None) if request.op == "conv_grad_input" else (maps[1], maps[0])


def in_bfloat16(array: np.ndarray | None) -> np.ndarray | None:
    """Rounded to bfloat16, half away from zero."""
    if array is None:
        return None
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def limits(request: Request, inputs: tuple, exact: np.ndarray) -> dict[str, float]:
    """The rms error that each precision may have."""
    sequential = 4 * rms(sequential_sum(request, inputs) - exact)
    rounded = reference(request, tuple(in_bfloat16(a) for a in inputs))[0]
    return {
        "strict": sequential,
        "f32": sequential,
        "fast": 1e-5 * rms(exact),
        "bf16": 1.1 * rms(rounded - exact) + sequential,
    }


def in_layout(request: Request, array: np.ndarray | None) -> np.ndarray | None:
    moved = array is not None and request.layout == "NHWC" and array.shape != request.geometry.weight_shape
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if moved and array is not None else array


CONV_OPS = ("conv", "conv_grad_input", "conv_grad_weight")


@pytest.mark.parametrize("op", CONV_OPS)
def test_sequential_sums_are_sums(op: str) -> None:
    """Exact on whole numbers; on a bell curve some last places off, more for more products."""
    for text in PROBLEMS[:2]:
        request = parse(op, text)
        whole = tuple(None if a is None else np.rint(a) for a in drawn(request, bell))
        np.testing.assert_array_equal(sequential_sum(request, whole), reference(request, whole)[0])
    errors = []
    for text in ("mb1ic2ih5iw6oc9kh1", "mb1ic512ih5iw6oc9kh1"):
        request = parse("conv", text)
        inputs = drawn(request, bell)
        exact = reference(request, inputs)[0]
        errors.append(rms(sequential_sum(request, inputs) - exact) / rms(exact))
    assert 1e-8 < errors[0] < 1e-7 < errors[1] < 1e-6


def test_a_sum_in_half_precision_would_be_noticed() -> None:
    request = parse("conv", PROBLEMS[1])
    inputs = drawn(request, bell)
    exact = reference(request, inputs)[0]
    limit = 4 * rms(sequential_sum(request, inputs) - exact)
    assert exceeds_rms(exact.astype(np.float32), exact, limit) is None
    assert exceeds_rms(exact.astype(np.float16), exact, limit) is not None


@each_case(*CONV_OPS, dtypes=("f32", *NARROW))
@pytest.mark.parametrize("data", [bell, rectified, offset], ids=lambda data: data.__name__)
def test_errors_stay_within_what_the_precision_promises(case: Case, data: Callable) -> None:
    ran = 0
    for text in PROBLEMS:
        plain = parse(case.row.op, text)
        kind = numpy_dtype(case.dtype)
        inputs = tuple(a if a is None else a.astype(kind).astype(np.float32) for a in drawn(plain, data))
        exact = reference(plain, inputs)[0]
        allowed = limits(plain, inputs, exact)
        for precision in case.row.precisions:
            request = with_columns(plain, case.dtype, case.layout, precision)
            if not serves(case.row, request):
                continue
            placed = tuple(None if a is None else in_layout(request, a.astype(kind)) for a in inputs)
            got = run_row(case.row, request, placed)[0]
            got = np.moveaxis(got, -1, 1) if request.layout == "NHWC" and case.row.op != "conv_grad_weight" else got
            rounding = UNIT[case.dtype] * rms(exact) if case.dtype in NARROW else 0.0
            failure = exceeds_rms(got, exact, allowed[precision] + rounding)
            assert failure is None, says(case.row, request, f"{data.__name__} data: {failure}")
            ran += 1
    assert ran, f"{case} served none of the problems"
