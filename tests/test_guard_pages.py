"""No row reads or writes one byte outside its arrays: each ends, or begins, at a page without access.

The rows run in a forked process, which a step over the edge kills.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cnnkern.spec import OPS, Kernel, Request
from guard_pages import BEGIN, END, PAGE, Arena, in_child
from matrix import NATIVE, missing, needs_native, precision_of
from oracle import allowed_of, differs, expectation, run_on, serves
from samples import INTEGERS, label, sample_requests, with_columns

LAYOUTS = ("NCHW", "NHWC")

pytestmark = [needs_native, pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")]


@pytest.mark.parametrize("edge", [END, BEGIN])
def test_the_pages_kill_whoever_steps_over_the_edge(edge: str) -> None:
    from ctypes import string_at

    values = np.arange(3 * PAGE // 4 + 5, dtype=np.float32)
    array = Arena(values.nbytes).put(values, edge)
    np.testing.assert_array_equal(array, values)
    outside = array.ctypes.data + (array.nbytes if edge == END else -1)

    def step(note: Callable[[str], None]) -> None:
        string_at(outside, 1)

    def stay(note: Callable[[str], None]) -> None:
        string_at(array.ctypes.data, array.nbytes)

    assert in_child(stay) is None
    assert "killed by SIG" in str(in_child(step))


def test_a_failure_in_the_child_is_told_with_its_last_note() -> None:
    def body(note: Callable[[str], None]) -> None:
        note("first")
        note("second")
        raise ValueError("no good")

    assert in_child(body) == "failed: second ValueError: no good"


# bfloat16 is read and written by the same instructions as float16.
@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        (o, d)
        for o in OPS
        for d in ("f32", "f64", "f16", "i8", "u8")
        if any(row.op == o and d in row.dtypes for row in NATIVE)
    ],
)
def test_rows_stay_inside_their_arrays(op: str, dtype: str) -> None:
    """Every sample with the edge at the end of its arrays, every third with the edge at their beginning; in types
    other than float32 with one layout by turns."""
    rows = [row for row in NATIVE if row.op == op and missing(row) is None]
    assert rows
    arenas = [Arena() for _ in (*OPS[op].inputs, *OPS[op].outputs)]

    def body(note: Callable[[str], None]) -> None:
        for number, sample in enumerate(sample_requests(op)):
            for layout in LAYOUTS if dtype == "f32" else LAYOUTS[number % 2 :][:1]:
                request = with_columns(sample, dtype, layout)
                asked = [(row, replace(request, precision=precision_of(row))) for row in rows]
                served = [(row, as_served) for row, as_served in asked if serves(row, as_served)]
                for edge in (END, BEGIN) if number % 3 == 0 else (END,):
                    where = f"of {label(request)} with the edge at the {edge}"
                    arrays = expectation(request, INTEGERS)[0]
                    inputs = [None if a is None else arena.put(a, edge) for a, arena in zip(arrays, arenas)]
                    for row, as_served in served:
                        note(f"{row.name} {where}")
                        _check(row, as_served, inputs, edge, arenas[len(inputs) :])

    ended = in_child(body)
    assert ended is None, ended


def _check(row: Kernel, request: Request, inputs: list, edge: str, arenas: list[Arena]) -> None:
    """Run the row on outputs at the same edge, and compare: a row that did nothing would stay inside, too."""
    values, expected, allowed = expectation(replace(request, precision="f32"), INTEGERS)
    allowed = allowed_of(row, request, values, expected, allowed)
    wanted = [o for o in OPS[row.op].outputs if o.present(request)]
    shapes = [np.zeros(o.array_shape(request), o.array_dtype(request)) for o in wanted]
    outputs = [arena.put(zeros, edge) for zeros, arena in zip(shapes, arenas)]
    run_on(row, request, inputs, outputs)
    present = [(want, bound) for want, bound in zip(expected, allowed, strict=True) if want is not None]
    for got, (want, bound) in zip(outputs, present, strict=True):
        difference = differs(got, want, bound)
        assert difference is None, difference
