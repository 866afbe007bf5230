"""Random problems: shape, stride, padding, dilation, groups, options, layout, memory order, type, row and threads.

Problems come from hypothesis, the same in every run for one ``CNNKERN_SEED``. A failure is shrunk and ends with one
line: the problem string, the row, the number of threads and the seed. ``CNNKERN_EXAMPLES=20`` tries 20 times as many.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bounds import EXACT_ON_INTEGERS, bounds, reference
from cnnkern.config import using
from cnnkern.spec import OPS, Request
from matrix import NATIVE, missing, needs_native
from oracle import ORDERS, differs, run_row, says, serves
from samples import INTEGERS, NORMAL, SEED, sample_inputs
from strategies import geometries, options

pytestmark = needs_native

TIMES = int(os.environ.get("CNNKERN_EXAMPLES", "1"))
EXAMPLES = {"ConvGeometry": 200, "PoolGeometry": 100}  # per op; 40 of the others


def problems(op: str) -> st.SearchStrategy[Request]:
    return st.builds(
        Request,
        st.just(op),
        geometries(op),
        st.sampled_from(("f32", "f64")),
        st.sampled_from(("NCHW", "NHWC")),
        st.sampled_from(("strict", "f32")),
        st.just("cpu"),
        options(op),
    )


@pytest.mark.parametrize("op", OPS)
def test_any_row_on_any_problem(op: str) -> None:
    rows = [row for row in NATIVE if row.op == op and missing(row) is None]
    ran = 0

    @seed(SEED)
    @settings(
        max_examples=TIMES * EXAMPLES.get(OPS[op].geometry, 40),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(problems(op), st.sampled_from(ORDERS), st.sampled_from((INTEGERS, NORMAL)), st.sampled_from((1, 2, 5)))
    def check(request: Request, order: str, kind: str, threads: int) -> None:
        nonlocal ran
        served = [row for row in rows if serves(row, request)]
        assert served, f"no row serves {request}"
        inputs = sample_inputs(request, kind)
        expected = reference(request, inputs)
        exact = kind == INTEGERS and op in EXACT_ON_INTEGERS
        allowed = (0.0,) * len(expected) if exact else bounds(request, inputs, expected)
        for row in served:
            with using(num_threads=threads):
                got = run_row(row, request, inputs, order)
                for operand, a, b, bound in zip(OPS[op].outputs, got, expected, allowed, strict=True):
                    difference = differs(a, b, bound)
                    assert difference is None, says(row, request, f"{operand.name}, {order} {kind}: {difference}")
            ran += 1

    check()
    assert ran >= len(rows), "hardly any problem was tried"
