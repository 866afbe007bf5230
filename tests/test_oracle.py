"""The tools of the tests: each comparison fails on wrong values, each guard sees what it guards against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bounds import EXACT, FLOATS, bounds, gamma, reference
from cnnkern.spec import OPS, Kernel, numpy_dtype
from matrix import ROWS
from oracle import MEMORY, Target, differs, exceeds_rms, expectation, place, rms, run_row, same_bits, says
from samples import INTEGERS, NORMAL, sample_inputs, sample_requests, with_columns


def test_differs_sees_every_kind_of_wrong_value() -> None:
    want = np.array([1.0, np.nan, np.inf, -np.inf, 0.0])
    assert differs(want.astype(np.float32), want) is None
    assert differs(want + 1e-9, want, 1e-8) is None
    inf, nan = np.inf, np.nan
    for at, wrong in ((0, 1.1), (0, nan), (0, inf), (1, 1.0), (1, inf), (2, 3.0), (2, -inf), (3, nan), (4, -1.0)):
        got = want.copy()
        got[at] = wrong
        assert f"first at ({at},)" in str(differs(got, want, 1e-8))
    assert "up to 2 times the bound" in str(differs(want + 2e-8, want, 1e-8))
    assert differs(np.array([1, 2]), np.array([1, 3])) is not None
    assert differs(np.array([1.0, 2.0]), np.array([[1.0, 2.0]])) is not None
    assert differs(None, None) is None
    assert differs(want, None) is not None and differs(None, want) is not None


def test_a_bound_that_is_not_a_number_lets_nothing_pass() -> None:
    assert differs(np.ones(3), np.zeros(3), np.full(3, np.nan)) is not None
    assert differs(np.zeros(3), np.zeros(3), np.full(3, np.nan)) is not None


def test_the_rms_comparison_fails_beyond_its_limit() -> None:
    want = np.array([3.0, 4.0])
    assert rms(want) == pytest.approx(np.sqrt(12.5))
    assert exceeds_rms(want + 0.1, want, 0.11) is None
    assert exceeds_rms(want + 0.1, want, 0.09) is not None
    assert exceeds_rms(np.array([np.nan, 4.0]), want, 1.0) is not None


def test_same_bits_tells_zeros_and_missing_outputs_apart() -> None:
    one = np.array([0.0, np.nan, 2.0], np.float32)
    assert same_bits((one, None), (one.copy(), None)) is None
    assert "first at (0" in str(same_bits((one,), (np.array([-0.0, np.nan, 2.0], np.float32),)))
    assert same_bits((one,), (np.nextafter(one, np.float32(3)),)) is not None
    assert same_bits((one,), (None,)) is not None


@pytest.mark.parametrize("order", MEMORY)
@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "u8", "i64", "bool"])
def test_targets_see_every_byte_written_outside(order: str, dtype: str) -> None:
    shape = (2, 3, 4, 5)
    target = Target(shape, numpy_dtype(dtype), order)
    target.array[...] = 1
    assert target.damage() is None
    assert target.outside.sum() == target.bytes.size - 120 * target.array.itemsize
    for byte in np.flatnonzero(target.outside)[:: 41 if order == "strided" else 3]:
        target.bytes[byte] ^= 1
        assert target.damage() is not None
        target.bytes[byte] ^= 1


@pytest.mark.parametrize("order", MEMORY)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2, 2), (2, 3, 4, 5)])
def test_placed_inputs_are_read_only_equal_and_between_nan(order: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    placed = place(values, order)
    np.testing.assert_array_equal(placed, values)
    assert not placed.flags.writeable
    buffer = placed
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    assert np.isnan(buffer).sum() == buffer.size - values.size >= 128
    if len(shape) == 4:
        contiguous = {"dense": True, "strided": False, "reversed": False, "swapped": False}
        assert placed.flags.c_contiguous == contiguous[order]


def test_gamma_is_the_textbook_one() -> None:
    assert gamma(1, 2.0**-24) == pytest.approx(2.0**-24, rel=1e-6)
    assert gamma(10**6, 2.0**-24) > 10**6 * 2.0**-24


@pytest.mark.parametrize("op", OPS)
def test_bounds_are_small_and_not_negative(op: str) -> None:
    """A bound that grew to the size of the values would let anything pass; only sums of thousands come near 1e-3."""
    for sample in sample_requests(op):
        for dtype in ("f32", "f64"):
            request = with_columns(sample, dtype, "NCHW")
            inputs = sample_inputs(request, NORMAL)
            expected = reference(request, inputs)
            for want, bound in zip(expected, bounds(request, inputs, expected), strict=True):
                if want is None or not want.size or np.isnan(want).all():
                    continue
                assert np.all(bound >= 0), says("reference", request, "a negative bound")
                limit = (1e-2 if dtype == "f32" else 1e-10) * (rms(want) + 0.05)
                assert np.mean(bound) <= limit, says("reference", request, "a loose bound")
                assert op not in EXACT or np.all(bound == 0)


class _Wrong:
    """A row that gives the reference's result with one element of one output changed."""

    def __init__(self, row: Kernel, output: int, by: float) -> None:
        self.row, self.output, self.by = row, output, by

    def run(self, state: object, inputs: tuple, outputs: tuple) -> None:
        self.row.run(state, inputs, outputs)
        out = outputs[self.output]
        at = np.unravel_index(out.size // 2, out.shape)
        out[at] = out[at] + self.by * (1 + abs(out[at])) if out.dtype.kind == "f" else out[at] ^ 1


@pytest.mark.parametrize("op", OPS)
def test_a_change_of_one_element_is_seen(op: str) -> None:
    """The expectation of every op, on either kind of values, refuses a result that is off by one part in a thousand."""
    request = with_columns(sample_requests(op)[5], "f32", "NCHW")
    row = next(row for row in ROWS if row.op == op and row.backend == "reference")
    for kind in (INTEGERS, NORMAL):
        inputs, expected, allowed = expectation(request, kind)
        for output, want in enumerate(expected):
            if want is None:
                continue
            wrong = replace(row, run=_Wrong(row, output, 1e-3).run)
            results = [o.array_shape(request) for o in OPS[op].outputs]
            arrays = tuple(
                None if e is None else np.empty(shape, o.array_dtype(request))
                for e, shape, o in zip(expected, results, OPS[op].outputs)
            )
            wrong.run(request, inputs, arrays)
            assert differs(arrays[output], want, allowed[output]) is not None


def test_another_row_than_the_one_under_test_is_noticed() -> None:
    """``run_row`` compares what ran with what was asked for: a row under a false name cannot pass."""
    request = with_columns(sample_requests("relu")[5], "f32", "NCHW")
    row = next(row for row in ROWS if row.op == "relu" and row.backend == "reference")
    inputs = sample_inputs(request, NORMAL)
    run_row(row, request, inputs)
    with pytest.raises(Exception, match="no_such"):
        run_row(replace(row, algorithm="no_such"), request, inputs)


def test_float_types_are_those_of_the_bounds() -> None:
    assert all(numpy_dtype(dtype).kind not in "iub" for dtype in FLOATS)
