"""Every row of the table on every sample, dtype and layout, against the reference.

Exactly on small whole numbers, by the computed bound of ``bounds.py`` on normal data, with arrays of every order in
memory between guards; the row that ran is the row under test. The reference's own rows are compared with the reference
in float64, which for float64 tests only that memory order and guards do not matter: its values are tested in
``test_reference*.py``.
"""

from __future__ import annotations

import numpy as np

from bounds import bounds, reference
from cnnkern.spec import OPS
from matrix import NATIVE, ROWS, Case, each_case, needs_native
from oracle import ORDERS, allowed_of, check_sample, differs, run_row, says, serves
from samples import INTEGERS, LARGE, NORMAL, SIZES, sample_inputs, sample_requests, with_columns


def test_every_op_has_samples_and_a_reference_row() -> None:
    assert set(SIZES) == set(LARGE) == set(OPS)
    assert {row.op for row in ROWS if row.backend == "reference"} == set(OPS)


@needs_native
def test_every_op_has_a_native_row_in_both_float_types() -> None:
    served = {(row.op, dtype) for row in NATIVE for dtype in row.dtypes}
    assert served >= {(op, dtype) for op in OPS for dtype in ("f32", "f64")}


@each_case()
def test_against_the_reference(case: Case) -> None:
    """Whole numbers in dense arrays; normal data in arrays of each order by turns."""
    ran, failures = 0, []
    for number, sample in enumerate(sample_requests(case.row.op)):
        request = with_columns(sample, case.dtype, case.layout, case.precision)
        if not serves(case.row, request):
            continue
        for kind, order in ((INTEGERS, "dense"), (NORMAL, ORDERS[number % len(ORDERS)])):
            failure = check_sample(case.row, request, kind, order)
            ran += 1
            if failure:
                failures.append(failure)
    assert ran, f"{case} served none of the samples"
    assert not failures, "\n".join([f"{len(failures)} of {ran} failed", *failures[:20]])


@each_case()
def test_inputs_of_zero_stride(case: Case) -> None:
    """Maps that are one image, one channel or one row seen many times over."""
    ran, failures = 0, []
    for number, sample in enumerate(sample_requests(case.row.op)):
        request = with_columns(sample, case.dtype, case.layout, case.precision)
        if number % 5 or not serves(case.row, request):
            continue
        inputs = tuple(_broadcast(a, number // 5) for a in sample_inputs(request, NORMAL))
        expected = reference(request, inputs)
        allowed = allowed_of(case.row, request, inputs, expected, bounds(request, inputs, expected))
        got = run_row(case.row, request, inputs)
        for a, b, bound in zip(got, expected, allowed, strict=True):
            difference = differs(a, b, bound)
            if difference:
                failures.append(says(case.row, request, difference))
        ran += 1
    assert ran, f"{case} served none of the samples"
    assert not failures, "\n".join(failures)


def _broadcast(array: np.ndarray | None, number: int) -> np.ndarray | None:
    """One of the array's axes with stride 0; arrays of integers stay, because indices must fit their windows."""
    if array is None or array.dtype.kind in "iub" or array.ndim == 0:
        return array
    axis = number % array.ndim
    return np.broadcast_to(array.take([0] if array.shape[axis] else [], axis), array.shape)
