"""The runner of rows without Python (tests/native/row_runner.cpp) and its judge, on this machine.

On rows that do one thing wrong each: every one is noticed. On the scalar target: all rows are there, and what a few of
them give is right. ``make test-neon`` runs all cases on an emulated Arm, ``make test-rows`` here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from matrix import NATIVE, needs_native
from oracle import expectation, same_bits
from row_cases import NOT_RUN, REFUSED, Case, Row, Runner
from samples import INTEGERS, NORMAL, parse, with_columns

ROOT = Path(__file__).resolve().parent.parent
RUNNER = "tests/native/row_runner.cpp"
CXX = os.environ.get("CXX", "g++")

pytestmark = [
    needs_native,
    pytest.mark.skipif(shutil.which(CXX.split()[0]) is None, reason=f"{CXX} is not here to compile the runner"),
]


def build(folder: Path, *sources: str) -> Runner:
    """Without optimisation: compiling takes longer than these cases."""
    program = folder / "row_runner"
    command = [*CXX.split(), "-std=c++17", "-O0", "-Icsrc", RUNNER, *sources, "-o", str(program), "-pthread"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Runner([str(program)])


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return build(tmp_path_factory.mktemp("broken"), "tests/native/broken_rows.cpp")


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    sources = (f"csrc/cpu/{name}.cpp" for name in ("isa", "parallel", "target_scalar"))
    return build(tmp_path_factory.mktemp("scalar"), *sources)


def case_of(row: Row, sizes: str, kind: str = INTEGERS, layout: str = "NCHW", order: str = "dense", **how) -> Case:
    request = with_columns(parse(row.op, sizes), row.dtype, layout)
    return Case(row, request, *expectation(request, kind), kind, order, **how)


def check_rows(runner: Runner, only: str, *options: str) -> tuple[int, str]:
    """Exit status and output of the tool."""
    tool = [sys.executable, str(ROOT / "tools" / "check_rows.py"), "-j", "1", "--only", only]
    command = [*tool, *options, *runner.command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


# ---- rows that do one thing wrong

RELU, CONV = "mb3ic5", "mb1ic1ih1iw1oc1kh1"
NOTICED = {
    "relu.nothing": None,
    "relu.wrong": "out: 1 of 15 elements differ, first at (0, 0)",
    "relu.after_output": "4 bytes outside the output were written",
    "relu.before_output": "4 bytes outside the output were written",
    "relu.input": "the input x was changed",
    "relu.beside_input": "the input x was changed",
    "relu.after_workspace": "bytes outside the workspace were written",
    "relu.before_workspace": "bytes outside the workspace were written",
    "relu.reads_workspace": "out: 1 of 15 elements differ, first at (0, 0): nan instead of",
    "relu.bad_index": "index 77 at place 5 lies outside its plane",
    "relu.refuses": "the row cannot serve this",
    "conv.nothing": None,
    "conv.other_when_packed": "out: 1 of 1 elements differ",
    "conv.changes_packed": "packed weights were changed by the call",
    "conv.packs_too_much": "bytes outside the packed weights were written",
}


@pytest.mark.parametrize("name", NOTICED)
def test_what_a_row_does_wrong_is_noticed(broken: Runner, name: str) -> None:
    (row,) = (row for row in broken.rows() if f"{row.op}.{row.algorithm}" == name)
    case = case_of(row, CONV if row.packs else RELU, packs_before=row.packs)
    assert broken.run([case]) is None
    failure, expected = case.failure(), NOTICED[name]
    assert failure is None if expected is None else expected in str(failure)
    assert (case.status == REFUSED) == (name == "relu.refuses")


def test_bits_that_depend_on_threads_are_noticed(broken: Runner) -> None:
    """A zero whose sign differs: by value both are right."""
    (row,) = (row for row in broken.rows() if row.algorithm == "other_on_threads")
    request = with_columns(parse("relu", RELU), "f32", "NCHW")
    x = -np.ones((3, 5), np.float32)
    cases = [Case(row, request, (x,), (0 * x,), (0.0,), "-1", threads=threads) for threads in (1, 2)]
    assert broken.run(cases) is None
    assert [case.failure() for case in cases] == [None, None]
    assert "1 of 15 elements have other bits, first at (0, 0)" in str(same_bits(*(case.outputs for case in cases)))


def test_a_crash_names_its_case_and_spoils_no_other(broken: Runner) -> None:
    rows = {row.algorithm: row for row in broken.rows() if row.op == "relu"}
    cases = [case_of(rows[name], RELU) for name in ("nothing", "crash", "nothing")]
    assert broken.run(cases) == "the runner ended with SIGABRT"
    assert cases[0].failure() is None
    assert [case.status for case in cases[1:]] == [NOT_RUN, NOT_RUN]


def test_the_tool_fails_and_says_where(broken: Runner) -> None:
    status, output = check_rows(broken, r"relu\.crash")
    assert status == 1 and "relu.crash.broken.f32 on relu:" in output and "ended with SIGABRT" in output
    status, output = check_rows(broken, r"relu\.wrong")
    assert status == 1 and "1 of 2 elements differ" in output
    status, output = check_rows(broken, r"relu\.refuses")
    assert status == 1 and "serves none of the samples" in output
    status, output = check_rows(broken, r"relu\.other_dtype")
    assert status == 1 and "relu.other_dtype.broken.i4: no cases for dtype 'i4'" in output
    status, output = check_rows(broken, r"conv\.twin\.broken", "--twin", broken.command[0])
    assert status == 1 and "other bits than conv.twin.other.f32: 1 of " in output
    status, output = check_rows(broken, "tanh")
    assert status == 1 and "has no row with tanh" in output


# ---- the scalar target


def test_the_runner_has_every_row(scalar: Runner) -> None:
    listed = [(row.op, row.algorithm, row.dtype) for row in scalar.rows()]
    rows = [(row.op, row.algorithm, dtype) for row in NATIVE if row.isa == "scalar" for dtype in row.dtypes]
    assert sorted(listed) == sorted(rows)


_CONV = (  # something for each algorithm
    "g2mb2ic6ih5iw6oc4kh3ph1",
    "mb3ic9ih5iw7oc14kh1",
    "g17mb1ic17ih3iw8oc17kh3ph1",
    "mb1ic3ih6iw33oc3kh3ph1",
    "mb3ic16ih14iw15oc18kh3ph1",
)
SIZES = {
    "conv": tuple(text + "@bias=1@act=relu" for text in _CONV),
    "conv_grad_input": (*_CONV, "mb1ic3ih9iw11oc4oh3ow4kh2sh3sw2@bias=1"),
    "conv_grad_weight": _CONV,
    "max_pool": ("mb1ic3ih5iw9kh5kw3sh1sw4ph2pw1@indices=window",),
    "dropout": ("mb2ic3ih5iw33@p=0.3@seed=7",),
    "batch_norm_training": ("mb2ic17ih3iw4@weight=1@bias=1",),
    "softmax_cross_entropy": ("mb3ic17",),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_rows_of_the_scalar_target_give_what_the_reference_gives(scalar: Runner, layout: str) -> None:
    """Absent operands, packed weights, indices, a mask, several outputs and none of an axis, in mixed orders."""
    rows = [row for row in scalar.rows() if row.op in SIZES]
    cases = [
        case_of(row, sizes, kind, layout, "mixed", threads=threads, packs_before=packs)
        for row in rows
        for sizes in SIZES[row.op]
        for kind, threads in ((INTEGERS, 1), (NORMAL, 2))
        for packs in ((False, True) if row.packs else (False,))
    ]
    assert scalar.run(cases) is None
    served = [case for case in cases if case.status != REFUSED]
    assert [text for text in (case.failure() for case in served) if text] == []
    assert {case.row for case in served} == set(rows)


def test_the_tool_passes_what_is_right(scalar: Runner) -> None:
    status, output = check_rows(scalar, r"relu\.direct")
    assert status == 0, output
    assert "relu.direct.scalar.f64 NCHW: " in output and ", 0 failures, " in output
    status, output = check_rows(scalar, r"relu\.direct", "--twin", scalar.command[0])
    assert status == 1 and "has no row to compare bits with" in output
