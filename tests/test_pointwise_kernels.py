"""Native rows of activations, dropout, unfold, fold and the loss against the reference, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from cnnkern.errors import ArgumentError
from cnnkern.spec import OPS, ClassGeometry, Kernel, PointwiseGeometry, Request
from native_rows import (
    DTYPES,
    LAYOUTS,
    ORDERS,
    Target,
    as_arrays,
    close,
    each_dtype,
    generator,
    needs_native,
    rows_of,
    run_native,
    run_reference,
    same_bits,
    unit,
    with_threads,
)
from reference_rows import conv_geometry, make_request

pytestmark = needs_native

POINTWISE_OPS = ("relu", "tanh", "sigmoid", "relu_grad", "tanh_grad", "sigmoid_grad")
POINTWISE_SHAPES = [(), (1,), (5,), (130,), (3, 7), (2, 3, 4, 5), (3, 1, 17, 2, 3), (0,), (3, 0, 2), (33, 130)]
CLASS_SHAPES = [(1, 1), (3, 10), (5, 16), (7, 37), (2, 1000), (0, 4)]


def test_comparison_fails_on_wrong_values() -> None:
    one = np.array([1.0, np.nan, np.inf])
    close(one + 1e-9, one, 1e-8)
    for wrong in ([1.1, np.nan, np.inf], [np.nan, np.nan, np.inf], [1, 1, np.inf], [1, np.nan, -np.inf]):
        with pytest.raises(AssertionError):
            close(np.array(wrong), one, 1e-8)
    target = Target((2, 3), np.dtype(np.float32), "strided")
    target.check()
    target.buffer[0, 0] = 0
    with pytest.raises(AssertionError):
        target.check()


def pointwise_inputs(op: str, shape: tuple[int, ...], rng: np.random.Generator) -> tuple:
    x = rng.normal(0, 3, shape)
    if op == "relu_grad":
        return x, rng.integers(-1, 2, shape).astype(np.float64)
    if op == "tanh_grad":
        return x, np.tanh(rng.normal(0, 2, shape))
    if op == "sigmoid_grad":
        return x, rng.uniform(0, 1, shape)
    return (x,)


@rows_of(*POINTWISE_OPS)
@each_dtype
def test_pointwise(row: Kernel, dtype: str) -> None:
    served = 0
    for shape in POINTWISE_SHAPES:
        for order in ORDERS:
            inputs = pointwise_inputs(row.op, shape, generator(row.op, shape))
            request = make_request(row.op, PointwiseGeometry(shape), inputs, dtype)
            if row.why_not(request):
                continue
            served += 1
            arrays = as_arrays(request, inputs)
            (expected,) = run_reference(request, arrays)
            (actual,) = run_native(row, request, arrays, order)
            close(actual, expected, 0 if row.op.startswith("relu") else 6 * unit(request) * abs(expected))
    assert served


@rows_of("tanh", "sigmoid")
@each_dtype
def test_tanh_and_sigmoid_are_within_three_units_in_the_last_place(row: Kernel, dtype: str) -> None:
    magnitudes = np.concatenate(
        [np.geomspace(1e-320, 1e-3, 3001), np.linspace(0, 30, 200001), np.linspace(30, 760, 3001)]
    )
    x = np.concatenate([-magnitudes[::-1], magnitudes]).astype(DTYPES[dtype])
    request = make_request(row.op, PointwiseGeometry(x.shape), (x,), dtype)
    (actual,) = run_native(row, request, (x,))
    wide = x.astype(np.longdouble)
    with np.errstate(under="ignore"):
        small = np.exp(-abs(wide))
        expected = np.tanh(wide) if row.op == "tanh" else np.where(wide >= 0, 1, small) / (1 + small)
    ulp = np.spacing(abs(expected).astype(DTYPES[dtype])).astype(np.longdouble)
    assert (abs(actual - expected) / ulp).max() < 3
    assert abs(actual).max() <= 1
    assert (np.signbit(actual) == (np.signbit(x) if row.op == "tanh" else False)).all()


@rows_of(*POINTWISE_OPS)
@each_dtype
def test_special_values_of_pointwise_ops(row: Kernel, dtype: str) -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-310, -1e-40, 2.0, -2.0, 1.0, -1.0])
    pairs = np.array([(a, b) for a in special for b in special]).T
    inputs = tuple(pairs[: len(OPS[row.op].inputs)])
    request = make_request(row.op, PointwiseGeometry(pairs[0].shape), inputs, dtype)
    arrays = as_arrays(request, inputs)
    for order in ORDERS:
        (actual,), (expected,) = run_native(row, request, arrays, order), run_reference(request, arrays)
        close(
            actual,
            expected,
            4 * unit(request) * np.nan_to_num(abs(expected)) + np.finfo(DTYPES[dtype]).smallest_subnormal,
        )


@rows_of(*POINTWISE_OPS, "dropout", "dropout_grad")
def test_threads_change_nothing_in_pointwise_ops(row: Kernel) -> None:
    served = 0
    for shape in ((7, 100003), (3, 1031)):
        inputs = pointwise_inputs(row.op, shape, generator(row.op))
        if row.op == "dropout_grad":
            inputs = (inputs[0], generator("mask").integers(0, 2, shape).astype(bool))
        request = make_request(row.op, PointwiseGeometry(shape), inputs, "f32")
        if row.why_not(request):
            continue
        served += 1
        arrays = as_arrays(request, inputs)
        same_bits([with_threads(threads, row, request, arrays) for threads in (1, 2, 5)])
    assert served


# ---- dropout

DROPOUT_CASES = [(0.0, 0), (0.3, 1), (0.5, 2**63 + 5), (0.999, 2**32 - 1), (1.0, 3), (1 - 2**-40, 4), (2.0**-40, 5)]


@rows_of("dropout")
@each_dtype
def test_dropout(row: Kernel, dtype: str) -> None:
    for shape in [*POINTWISE_SHAPES, (5, 1031), (2, 3, 700)]:
        for p, seed in DROPOUT_CASES:
            for order in ORDERS:
                x = generator(shape).normal(0, 1, shape)
                if x.size:
                    x.flat[0] = np.nan
                request = make_request("dropout", PointwiseGeometry(shape), (x,), dtype, p=p, seed=seed)
                arrays = as_arrays(request, (x,))
                (out, mask), (expected, expected_mask) = (
                    run_native(row, request, arrays, order),
                    run_reference(request, arrays),
                )
                np.testing.assert_array_equal(mask.view(np.uint8), expected_mask.view(np.uint8))
                close(out, expected, 3 * unit(request) * np.nan_to_num(abs(expected)))


@rows_of("dropout")
def test_dropout_words_are_the_published_ones(row: Kernel) -> None:
    """Seed 0, counter 0 gives 6627e8d5 e169c58d bc57ac4c 9b00dbd8: each word found by bisecting p."""
    for at, word in enumerate((0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)):
        for p, kept in ((word * 2.0**-32, True), ((word + 1) * 2.0**-32, False)):
            request = make_request("dropout", PointwiseGeometry((4,)), (np.ones(4),), "f32", p=p, seed=0)
            _, mask = run_native(row, request, (np.ones(4, np.float32),))
            assert mask[at] == kept


@rows_of("dropout_grad")
@each_dtype
def test_dropout_grad(row: Kernel, dtype: str) -> None:
    for shape in POINTWISE_SHAPES:
        for p in (0.0, 0.3, 1.0):
            for order in ORDERS:
                rng = generator(shape)
                inputs = (rng.choice([np.nan, -1.5, 0.25, 3.0], shape), rng.integers(0, 2, shape).astype(bool))
                request = make_request("dropout_grad", PointwiseGeometry(shape), inputs, dtype, p=p)
                arrays = as_arrays(request, inputs)
                (actual,), (expected,) = run_native(row, request, arrays, order), run_reference(request, arrays)
                close(actual, expected, 3 * unit(request) * np.nan_to_num(abs(expected)))


# ---- unfold and fold

UNFOLD_CASES = [  # x shape, kernel, stride, padding as (before, after) pairs, dilation
    ((2, 3, 7), (3,), (1,), ((1, 1),), (1,)),
    ((1, 2, 9), (4,), (3,), ((0, 3),), (2,)),
    ((2, 3, 6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((2, 3, 9, 8), (2, 3), (2, 3), ((0, 2), (3, 0)), (1, 2)),
    ((1, 1, 5, 40), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    ((1, 2, 3, 3), (3, 3), (2, 2), ((5, 5), (6, 6)), (2, 2)),
    ((2, 2, 4, 3, 5), (2, 3, 2), (1, 2, 1), ((1, 0), (1, 1), (0, 1)), (1, 1, 2)),
    ((0, 3, 6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((2, 0, 6, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((1, 2, 0, 4), (2, 2), (1, 1), ((1, 1), (1, 1)), (1, 1)),
]


@rows_of("unfold", "fold")
@each_dtype
def test_unfold_and_fold(row: Kernel, dtype: str) -> None:
    """Integers: copies and sums are exact."""
    for x_shape, kernel, stride, padding, dilation in UNFOLD_CASES:
        g = conv_geometry(x_shape, (1, x_shape[1], *kernel), stride, padding, dilation)
        for layout in LAYOUTS:
            for order in ORDERS:
                shape = OPS[row.op].inputs[0].shape(g)
                inputs = (generator(x_shape).integers(-9, 10, shape).astype(np.float64),)
                request = make_request(row.op, g, inputs, dtype, layout)
                arrays = as_arrays(request, inputs)
                (actual,), (expected,) = run_native(row, request, arrays, order), run_reference(request, arrays)
                close(actual, expected, 0)


@rows_of("unfold", "fold")
def test_threads_change_nothing_in_unfold_and_fold(row: Kernel) -> None:
    g = conv_geometry((2, 13, 50, 51), (1, 13, 5, 5), 1, ((2, 2), (2, 2)), 1)
    inputs = (generator(row.op).normal(0, 1, OPS[row.op].inputs[0].shape(g)),)
    request = make_request(row.op, g, inputs, "f32")
    arrays = as_arrays(request, inputs)
    same_bits([with_threads(threads, row, request, arrays) for threads in (1, 2, 5)])


@rows_of("unfold")
def test_unfold_carries_not_finite_values_but_not_into_the_padding(row: Kernel) -> None:
    g = conv_geometry((1, 1, 4, 4), (1, 1, 3, 3), 1, ((1, 1), (1, 1)), 1)
    x = np.full((1, 1, 4, 4), np.nan)
    request = make_request("unfold", g, (x,), "f32")
    (actual,) = run_native(row, request, as_arrays(request, (x,)))
    padding = run_reference(request, (np.ones_like(x),))[0] == 0
    assert (actual[padding] == 0).all() and np.isnan(actual[~padding]).all()


# ---- softmax cross-entropy


@rows_of("softmax_cross_entropy")
@each_dtype
def test_softmax_cross_entropy(row: Kernel, dtype: str) -> None:
    for rows, classes in CLASS_SHAPES:
        for smoothing in (0.0, 0.1, 1.0):
            for offset, deviation in ((0.0, 1.0), (1e4, 30.0)):
                rng = generator(rows, classes)
                inputs = (rng.normal(offset, deviation, (rows, classes)), rng.integers(0, classes, rows))
                g = ClassGeometry(rows, classes)
                request = make_request("softmax_cross_entropy", g, inputs, dtype, label_smoothing=smoothing)
                arrays = as_arrays(request, inputs)
                check_loss(row, request, arrays)


def check_loss(row: Kernel, request: Request, arrays: tuple) -> None:
    loss, grad = run_reference(request, arrays)
    rows, classes = arrays[0].shape
    u = unit(request)
    z = arrays[0].astype(np.float64)
    depth = abs(z - z.max(axis=1, keepdims=True)) if z.size else z  # rounding z costs exp(z) |z| u
    target = np.zeros_like(z)
    target[np.arange(rows), arrays[1]] = 1
    summing = 2 * classes * 2.0**-53  # sums over the classes are taken in double, here and there
    target += request.option("label_smoothing") / classes
    grad_bound = ((8 + depth) * u + summing) * (abs(grad) + 2 * target / max(1, rows))
    grad_bound += np.finfo(DTYPES[request.dtype]).smallest_subnormal
    loss_bound = (4 * u + summing) * (1 + abs(loss) + (depth.mean() if z.size else 0))
    for order in ORDERS:
        got_loss, got_grad = run_native(row, request, arrays, order)
        close(got_loss, loss, loss_bound)
        close(got_grad, grad, grad_bound)


@rows_of("softmax_cross_entropy")
@each_dtype
def test_not_finite_logits(row: Kernel, dtype: str) -> None:
    """-inf is probability 0; NaN, +inf and a row of -inf make their own row NaN."""
    for classes in (3, 37):
        for value in (np.nan, np.inf, -np.inf):
            for at in range(classes):
                logits = generator(classes).normal(0, 1, (3, classes))
                logits[1, at] = value
                labels = np.array([0, (at + 1) % classes, 1])
                request = make_request("softmax_cross_entropy", ClassGeometry(3, classes), (logits, labels), dtype)
                arrays = as_arrays(request, (logits, labels))
                for got, want in zip(run_native(row, request, arrays), run_reference(request, arrays), strict=True):
                    close(got, want, 1e-5)
        logits = np.full((2, classes), -np.inf)
        arrays = as_arrays(request, (logits, np.zeros(2, np.int64)))
        request = make_request("softmax_cross_entropy", ClassGeometry(2, classes), arrays, dtype)
        assert all(np.isnan(out).all() for out in run_native(row, request, arrays))


@rows_of("softmax_cross_entropy")
def test_labels_out_of_range(row: Kernel) -> None:
    for wrong in (-1, 10, 2**62, -(2**63)):
        labels = np.array([3, 9, wrong, 77])
        request = make_request("softmax_cross_entropy", ClassGeometry(4, 10), (np.zeros((4, 10)), labels), "f32")
        with pytest.raises(ArgumentError, match=f"label of row 2 is {wrong}, "):
            run_native(row, request, (np.zeros((4, 10), np.float32), labels))


@rows_of("softmax_cross_entropy")
def test_threads_change_nothing_in_the_loss(row: Kernel) -> None:
    rng = generator("loss")
    inputs = (rng.normal(0, 3, (1000, 203)), rng.integers(0, 203, 1000))
    request = make_request("softmax_cross_entropy", ClassGeometry(1000, 203), inputs, "f32")
    arrays = as_arrays(request, inputs)
    same_bits([with_threads(threads, row, request, arrays) for threads in (1, 2, 5)])
