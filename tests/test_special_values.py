"""NaN, infinities, numbers near overflow, subnormals: where they come from and where they must go.

Values around the special ones are small whole numbers, so what is finite must be exact, on rows that only sum products.
Rows of every precision must be non-finite exactly where the formula is: those that would spread NaN over a tile compute
such an image again by another algorithm. "Each element in turn" is one
call: a batch with as many images as an image has elements.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import cnnkern as ck
from bounds import EXACT_ON_INTEGERS, FLOATS, REFERENCE, SMALLEST, reference
from cnnkern.spec import OPS, Request
from matrix import Case, each_case, needs_native
from oracle import ORDERS, allowed_of, differs, rounded, run_row, says, serves
from samples import INTEGERS, NORMAL, generator, parse, sample_inputs, sample_requests, with_columns

pytestmark = needs_native

each_float_case = functools.partial(each_case, dtypes=FLOATS)
CONV_OPS = ("conv", "conv_grad_input", "conv_grad_weight")
UNUSUAL_NAN = np.uint32(0x7FFFFFFF).view(np.float32)  # all bits of the payload
SPECIAL = (np.nan, np.inf, -np.inf, UNUSUAL_NAN)

# Two blocks of output channels on most instruction sets, tails of pixels, borders, strides, groups.
_EACH_ELEMENT = (
    "mb1ic3ih3iw17oc5kh3ph1",
    "mb1ic5ih4iw5oc35kh3sh2ph1@act=relu",
    "g2mb1ic6ih5iw6oc4kh3dh1ph2@bias=1",
    "mb1ic33ih2iw3oc4kh1@act=relu",
    "g3mb1ic3ih5iw20oc3kh3ph1",
    "g9mb1ic9ih4iw5oc9kh3ph1@act=relu",
    "g8mb1ic8ih2iw25oc8kh3ph1",
    "mb1ic9ih6iw7oc10kh3ph1@bias=1",
)


def compare(case: Case, request: Request, inputs: tuple, order: str = "dense") -> None:
    expected = rounded(request, reference(request, inputs))
    got = run_row(case.row, request, inputs, order)
    allowed = allowed_of(case.row, request, inputs, expected, (0.0,) * len(expected))
    for a, b, bound in zip(got, expected, allowed, strict=True):
        difference = differs(a, b, bound)
        assert difference is None, says(case.row, request, difference or "")


def each_element(request: Request, operand: int, value: float) -> tuple[Request, tuple]:
    """A batch in which image i has the value at its element i, in the map operand of this number."""
    shape = OPS[request.op].inputs[operand].array_shape(request)[1:]
    images = int(np.prod(shape))
    request = replace(request, geometry=replace(request.geometry, batch=images))
    inputs = [None if a is None else a.copy() for a in sample_inputs(request, INTEGERS)]
    array = inputs[operand]
    assert array is not None
    array.reshape(images, images)[np.arange(images), np.arange(images)] = value
    return request, tuple(inputs)


def served(case: Case, texts: tuple[str, ...]) -> Iterator[Request]:
    for text in texts:
        request = with_columns(parse(case.row.op, text), case.dtype, case.layout, case.row.precisions[0])
        if serves(case.row, request):
            yield request


@each_float_case(*CONV_OPS[:2], native=True)
def test_a_special_value_at_each_element_reaches_what_the_formula_says(case: Case) -> None:
    """Under "strict", y is not finite exactly where the formula is not: no neighbour in a tile, no padding, no relu."""
    ran = 0
    for request in served(case, _EACH_ELEMENT):
        for value in SPECIAL:
            batch, inputs = each_element(request, 0, value)
            if serves(case.row, batch):
                compare(case, batch, inputs)
                ran += 1
    assert ran, f"{case} served none of the samples"


@each_float_case(*CONV_OPS, native=True)
def test_special_values_in_every_operand(case: Case) -> None:
    """A few at random places of one operand at a time: weights, bias, residual and both factors of a gradient."""
    ran = 0
    samples = (*(parse(case.row.op, text) for text in _MANY_OUTPUTS), *sample_requests(case.row.op)[::4])
    for number, sample in enumerate(samples):
        request = with_columns(sample, case.dtype, case.layout, case.row.precisions[0])
        if not serves(case.row, request):
            continue
        plain = sample_inputs(replace(request, precision="f32"), INTEGERS)
        for i, operand in enumerate(plain):
            if operand is None or not operand.size:
                continue
            rng = generator(str(request), i)
            special = operand.copy()
            count = min(operand.size, int(rng.integers(1, 4)))
            special.flat[rng.choice(operand.size, count, replace=False)] = rng.choice(SPECIAL, count)
            compare(case, request, (*plain[:i], special, *plain[i + 1 :]), ORDERS[number % len(ORDERS)])
            ran += 1
    assert ran, f"{case} served none of the samples"


# The last two have so many outputs that weights are packed once for all of them.
_MANY_OUTPUTS = ("mb3ic2ih30iw31oc19kh3ph1", "g4mb2ic4ih30iw31oc4kh3ph1", "mb3ic9ih12iw13oc18kh3ph1")
_PADDED = (
    "mb2ic2ih6iw5oc20kh5sh2ph2",
    "g4mb1ic4ih4iw9oc4kh3ph3",
    "mb1ic3ih13iw33oc4kh3sh4ph3",
    "mb1ic8ih6iw5oc9kh3ph4",
    "g16mb1ic16ih4iw26oc16kh3ph3",
    "g16mb1ic16ih13iw7oc16kh3sh4ph3",
    *_MANY_OUTPUTS,
)


@each_float_case(*CONV_OPS[:2], native=True)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_padding_contributes_nothing_under_a_weight_that_is_not_finite(case: Case, value: float) -> None:
    """All weights inf and all inputs 1: sums of real elements are inf, while a product with a stored zero is NaN."""
    ran, alone = 0, False
    for request in served(case, _PADDED):
        spec = OPS[case.row.op]
        ones = np.ones(spec.inputs[0].array_shape(request), spec.inputs[0].array_dtype(request))
        weight = np.full(spec.inputs[1].array_shape(request), value, ones.dtype)
        inputs = (ones, weight, *(None,) * (len(spec.inputs) - 2))
        (got,) = run_row(case.row, request, inputs)
        reached = reference(request, (ones, np.ones_like(weight), *inputs[2:]))[0] > 0
        ran += 1
        assert np.isinf(got[reached]).all() if np.isinf(value) else np.isnan(got[reached]).all()
        assert (got[~reached] == 0).all(), "an output that no real element reaches"
        alone |= not reached.all()
    if case.row.algorithm == "gemm":  # which has no padding
        assert not ran
        return
    assert ran, f"{case} served none of the samples"
    everywhere = case.row.op == "conv_grad_input" and "strict" not in case.row.precisions  # stride 1 reaches all
    assert alone or everywhere, "some samples were to have outputs that no real element reaches"


@each_float_case(*CONV_OPS[:2], native=True, strict=True)
def test_an_infinite_weight_leaves_other_channels_their_bits(case: Case) -> None:
    """Such a call is computed tap by tap; outputs that do not meet the weight are rounded as ever."""
    ran = 0
    for request in served(case, ("mb2ic33ih6iw19oc40kh3ph1", "g20mb1ic20ih9iw19oc20kh3ph1", "mb2ic33ih6iw19oc40kh1")):
        x, weight, *rest = sample_inputs(request, NORMAL)
        assert x is not None and weight is not None
        infinite = weight.copy()
        infinite[0 if case.row.op == "conv" or request.geometry.groups > 1 else slice(None), 0] = np.inf
        plain, got = (run_row(case.row, request, (x, w, *rest))[0] for w in (weight, infinite))
        assert plain is not None and got is not None
        channels = 1 if case.layout == "NCHW" else -1
        plain, got = (np.moveaxis(y, channels, 0) for y in (plain, got))
        assert not np.isfinite(got[0]).all()
        assert np.array_equal(got[1:], plain[1:])
        ran += 1
    assert ran, f"{case} served none of the samples"


@each_float_case(*CONV_OPS, native=True)
def test_looser_precisions_never_hide_what_is_not_finite(case: Case) -> None:
    """Where the formula gives NaN or inf the result is NaN or inf, whatever the precision; inf may come out as NaN."""
    ran = 0
    for precision in case.row.precisions:
        for number, sample in enumerate(sample_requests(case.row.op)):
            request = with_columns(sample, case.dtype, case.layout, precision)
            if number % 9 or not serves(case.row, request):
                continue
            inputs = [None if a is None else a.copy() for a in sample_inputs(sample_as(request), INTEGERS)]
            for i, value in enumerate(SPECIAL[:3]):
                first = inputs[i % 2]
                if first is not None and first.size:
                    first.flat[(number * 7 + i * 3) % first.size] = value
            expected = reference(request, tuple(inputs))[0]
            got = run_row(case.row, request, tuple(inputs))[0]
            hidden = ~np.isfinite(expected) & np.isfinite(got)
            assert not hidden.any(), says(case.row, request, f"{hidden.sum()} finite results should not be")
            ran += 1
    assert ran, f"{case} served none of the samples"


def sample_as(request: Request) -> Request:
    return replace(request, precision="f32")


@each_float_case("conv", "conv_grad_input", native=True)
def test_values_near_overflow_stay_finite(case: Case) -> None:
    """One element of 3.4e38 (1.7e308; float16 32768) in each image, weights -1, 0 and 1: no output holds it twice."""
    largest = {"f64": np.finfo(np.float64).max, "f16": 2.0**15, "bf16": 255 * 2.0**120}
    ran = 0
    for request in served(case, (*_EACH_ELEMENT[:3], _EACH_ELEMENT[-1])):
        batch, (x, weight, *rest) = each_element(request, 0, largest.get(case.dtype, np.finfo(np.float32).max))
        if serves(case.row, batch):
            compare(case, batch, (x, np.sign(weight), *rest))
            ran += 1
    assert ran or case.row.algorithm != "direct", f"{case} served none of the samples"


@each_float_case("conv", "conv_grad_input", native=True)
def test_the_fused_relu_keeps_nan_in_every_channel(case: Case) -> None:
    """A NaN bias of one output channel after the other, beside sums of either sign."""
    ran = 0
    for request in served(
        case,
        (
            "mb1ic3ih2iw19oc37kh1@bias=1@act=relu",
            "g37mb1ic37ih3iw19oc37kh3@bias=1@act=relu",
            "mb1ic37ih3iw19oc37kh3@bias=1@act=relu",
        ),
    ):
        inputs = [None if a is None else a.copy() for a in sample_inputs(sample_as(request), INTEGERS)]
        bias = inputs[2]
        assert bias is not None
        for channel in range(bias.size):
            kept, bias[channel] = bias[channel], np.nan
            compare(case, request, tuple(inputs))
            bias[channel] = kept
            ran += 1
    assert ran, f"{case} served none of the samples"


@each_float_case("relu", "relu_grad", native=True)
def test_relu_keeps_nan_in_every_lane_and_tail(case: Case) -> None:
    """Row i of a square has NaN at its element i; all sizes from 1 to a vector more than two cache lines."""
    for size in (*range(1, 40), 65):
        request = with_columns(parse(case.row.op, f"mb{size}ic{size}"), case.dtype, case.layout)
        for i in range(len(OPS[case.row.op].inputs)):
            inputs = tuple(np.copy(a) for a in sample_inputs(request, INTEGERS))
            np.fill_diagonal(inputs[i], np.nan)
            compare(case, request, inputs, ORDERS[size % len(ORDERS)])


@each_float_case("max_pool", "adaptive_max_pool", native=True)
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_max_pooling_of_a_special_value_at_each_element(case: Case, value: float) -> None:
    """NaN wins and the last one gives the index; in every lane, tail and layout. A window of -inf gives its first."""
    windows = ("kh2kw2", "kh3sh2ph1", "kh3sh1ph1", "kh5kw7sh1ph2pw3", "kh1kw1sh3")
    texts = (
        [f"mb1ic3ih4iw19{window}@indices={kind}" for window in windows for kind in ("torch", "window")]
        if case.row.op == "max_pool"
        else ["mb1ic3ih4iw19oh2ow5@indices=torch", "mb1ic17ih3iw4oh1@indices=torch"]
    )
    for text in texts:
        request = with_columns(parse(case.row.op, text), case.dtype, case.layout)
        batch, (x,) = each_element(request, 0, value)
        compare(case, batch, (x,))
        if value != value:  # two in each image: the last one counts
            x = x.copy()
            x.reshape(len(x), -1)[:, x[0].size // 3] = value
            compare(case, batch, (x,))
        compare(case, batch, (np.full_like(x, value),))


# Operands that a linear op may have scaled: the factor comes out of the op unchanged.
_SCALED = ("x", "grad_output", "bias", "residual")


@each_float_case(*EXACT_ON_INTEGERS, native=True, strict=True)
def test_subnormal_numbers_are_kept(case: Case) -> None:
    """Whole numbers times the smallest subnormal give the same whole numbers times it: nothing is flushed to zero."""
    smallest = SMALLEST[case.dtype]
    spec = OPS[case.row.op]
    ran = 0
    for number, sample in enumerate(sample_requests(case.row.op)):
        request = with_columns(sample, case.dtype, case.layout, "strict")
        if number % 6 or not serves(case.row, request):
            continue
        whole = sample_inputs(sample_as(request), INTEGERS)
        seen = False
        tiny = []
        for operand, array in zip(spec.inputs, whole, strict=True):
            second = case.row.op == "conv_grad_weight" and operand.name == "x"
            scale = array is not None and operand.name in _SCALED and not second
            tiny.append((array * smallest).astype(array.dtype) if scale and array is not None else array)
            seen |= scale
        assert seen
        got = run_row(case.row, request, tuple(tiny))
        scaled = tuple(b if b is None or b.dtype.kind in "iub" else b * smallest for b in reference(request, whole))
        for a, b in zip(got, rounded(request, scaled), strict=True):
            difference = differs(a, b)
            assert difference is None, says(case.row, request, difference or "")
        ran += 1
    assert ran, f"{case} served none of the samples"


def test_calls_leave_the_arithmetic_of_the_process_as_it_was() -> None:
    """No call switches the processor to flushing subnormals, whatever the precision."""
    x, w = np.full((1, 8, 30, 30), 1e-39, np.float32), np.ones((8, 8, 3, 3), np.float32)
    for precision in ("strict", "f32", "fast", "bf16"):
        ck.conv2d(x, w, None, 1, 1, precision=precision)
        ck.conv2d_backward(x, x, w, 1, 1, precision=precision)
        assert np.float32(1e-39) * np.float32(0.5) != 0, precision


def test_every_op_exact_on_integers_has_a_reference() -> None:
    assert set(EXACT_ON_INTEGERS) <= set(REFERENCE)
