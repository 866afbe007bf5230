"""Run every row that a row_runner has on the samples of the tests, and compare with the float64 reference.

    python tools/check_rows.py [-j N] [--only PATTERN] [--twin COMMAND] COMMAND...

COMMAND is a built tests/native/row_runner.cpp, behind an emulator if it is for another CPU:
``qemu-aarch64-static build/rows/arm/row_runner``. ``make test-neon`` and ``make test-rows`` build one and call this.
Each row runs on each sample of its op that it serves, in both layouts: on whole numbers exactly, on normal data within
the bounds of ``tests/bounds.py``, and with NaN and infinities among whole numbers, in arrays of each order in memory by
turns; on large problems with 1 and 3 threads, which must give equal bits; and where it packs weights, packed before and
in the call, with equal bits.

--twin: a runner for another CPU. Rows of convolutions that serve "strict" must give the bits that its rows of the same
algorithm give, where both fuse multiply-adds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402

from bounds import EXACT_ON_INTEGERS, Arrays, Bound, reference  # noqa: E402
from cnnkern.spec import OPS, Request  # noqa: E402
from oracle import ORDERS, expectation, rounded, same_bits  # noqa: E402
from row_cases import NOT_RUN, REFUSED, Case, Row, Runner  # noqa: E402
from samples import (  # noqa: E402
    INTEGERS,
    NORMAL,
    generator,
    label,
    large_requests,
    sample_inputs,
    sample_requests,
    with_columns,
)

SPECIAL = "special values"
VALUES = {  # of each dtype that a row may have: the kinds of values that it is run on
    "f32": (INTEGERS, NORMAL, SPECIAL),
    "f64": (INTEGERS, NORMAL, SPECIAL),
    "f16": (INTEGERS, NORMAL, SPECIAL),
    "bf16": (INTEGERS, NORMAL, SPECIAL),
    "i8": (INTEGERS,),
    "u8": (INTEGERS,),
}
LAYOUTS = ("NCHW", "NHWC")
CONVOLUTIONS = ("conv", "conv_grad_input", "conv_grad_weight")
ONE, MANY = 1, 3  # threads
SHOWN = 20  # failures of a row


def layouts(op: str) -> tuple[str, ...]:
    """Those in which the op's arrays differ."""
    return LAYOUTS if any(o.map for o in (*OPS[op].inputs, *OPS[op].outputs)) else LAYOUTS[:1]


# ---- the calls of a row


def with_special_values(request: Request, number: int) -> Arrays:
    """Whole numbers, with a few NaN and infinities in one of the operands, in which by turns."""
    inputs = [None if a is None else a.copy() for a in sample_inputs(request, INTEGERS)]
    floats = [a for a in inputs if a is not None and a.dtype.kind == "f" and a.size]
    if floats:
        array = floats[number % len(floats)]
        rng = generator(label(request), number)
        count = min(array.size, int(rng.integers(1, 4)))
        array.flat[rng.choice(array.size, count, replace=False)] = rng.choice((np.nan, np.inf, -np.inf), count)
    return tuple(inputs)


def in_all_ways(
    row: Row, request: Request, given: tuple[Arrays, Arrays, tuple[Bound, ...]], what: str, order: str, *threads: int
) -> list[Case]:
    """The call on each of these numbers of threads and, if the row packs weights, packed before and in the call."""
    ways = itertools.product(threads, (False, True) if row.packs else (False,))
    return [Case(row, request, *given, what, order, *way) for way in ways]


def groups(row: Row, layout: str) -> Iterator[list[Case]]:
    """All calls of a row, in groups that must give the same bits."""
    kinds = VALUES[row.dtype]
    for number, sample in enumerate(sample_requests(row.op)):
        request = with_columns(sample, row.dtype, layout)
        order = ORDERS[number % len(ORDERS)]
        if INTEGERS in kinds:
            yield in_all_ways(row, request, expectation(request, INTEGERS), INTEGERS, "dense", ONE)
        if NORMAL in kinds:
            yield in_all_ways(row, request, expectation(request, NORMAL), NORMAL, order, MANY)
        if SPECIAL in kinds and row.op in EXACT_ON_INTEGERS and "f32" in row.precisions:
            inputs = with_special_values(request, number)  # looser levels may make NaN of an infinity
            expected = rounded(request, reference(request, inputs))
            yield in_all_ways(row, request, (inputs, expected, (0.0,) * len(expected)), SPECIAL, order, ONE)
    for sample in large_requests(row.op):
        request = with_columns(sample, row.dtype, layout)
        kind = NORMAL if NORMAL in kinds else INTEGERS
        yield in_all_ways(row, request, expectation(request, kind), kind, "dense", ONE, MANY)


# ---- what came of them


class Result(NamedTuple):
    row: Row
    layout: str
    calls: int
    refused: int
    compared: int  # with the twin
    failures: list[str]


def judge(group: list[Case]) -> list[str]:
    """What is wrong with calls that must give the same bits."""
    first, *others = group
    wrong = [text for text in (case.failure() for case in group) if text]
    for case in others:
        difference = same_bits(first.outputs, case.outputs)
        if difference:
            wrong.append(f"{case}: other bits than {first}: {difference}")
    return wrong


class Twin:
    """A runner whose rows must give the same bits."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.rows: dict[tuple[str, str, str], Row] = {}
        for row in runner.rows():  # best instruction set first
            if row.isa != "scalar" and "strict" in row.precisions and row.op in CONVOLUTIONS:
                self.rows.setdefault((row.op, row.algorithm, row.dtype), row)

    def differences(self, row: Row, cases: list[Case]) -> tuple[int, list[str]]:
        """Calls that both served, and those that gave other bits. Not of special values: a NaN has the CPU's sign."""
        other = self.rows.get((row.op, row.algorithm, row.dtype))
        if other is None:
            return 0, []
        ours = [case for case in cases if case.what != SPECIAL and case.status == 0]
        theirs = [replace(case, row=other) for case in ours]
        ended = self.runner.run(theirs)
        if ended:
            return 0, [f"{other.name}: {ended}"]
        pairs = [(one, two) for one, two in zip(ours, theirs, strict=True) if two.status == 0]
        found = [(one, two, same_bits(one.outputs, two.outputs)) for one, two in pairs]
        return len(pairs), [f"{one}: other bits than {two.row.name}: {text}" for one, two, text in found if text]


def check_row(runner: Runner, twin: Twin | None, row: Row, layout: str) -> Result:
    if row.dtype not in VALUES:
        text = f"{row.name}: no cases for dtype {row.dtype!r}; say in VALUES of tools/check_rows.py what to run it on"
        return Result(row, layout, 0, 0, 0, [text])
    some = list(groups(row, layout))
    cases = [case for group in some for case in group]
    ended = runner.run(cases)
    if ended:
        last = next((case for case in cases if case.status == NOT_RUN), cases[-1])
        return Result(row, layout, 0, 0, 0, [f"{last}: {ended}"])
    served = [group for group in some if any(case.status != REFUSED for case in group)]
    failures = [text for group in served for text in judge(group)] if served else ["serves none of the samples"]
    compared, differences = twin.differences(row, cases) if twin else (0, [])
    calls = sum(map(len, served))
    return Result(row, layout, calls, len(cases) - calls, compared, differences + failures)


def check(runner: Runner, twin: Twin | None, rows: list[Row], layout: str) -> list[Result]:
    """Rows of one problem one after the other, because they share its expectations."""
    return [check_row(runner, twin, row, layout) for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count(), help="processes at once")
    only = "rows whose op.algorithm.isa.dtype has this; given twice, both"
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help=only)
    parser.add_argument("--twin", metavar="COMMAND", help="a runner whose rows must give the same bits")
    parser.add_argument("command", nargs="+", help="the runner, behind its emulator")
    options = parser.parse_args()
    began = time.monotonic()
    runner = Runner(options.command)
    twin = Twin(Runner(shlex.split(options.twin))) if options.twin else None
    rows = [row for row in runner.rows() if all(re.search(pattern, row.name) for pattern in options.only)]
    if not rows:
        print(f"{' '.join(options.command)} has no row with {' and '.join(options.only)} for its CPU", file=sys.stderr)
        return 1
    by_problem: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_problem.setdefault((row.op, row.dtype), []).append(row)
    calls, compared, failed = 0, 0, 0
    with ProcessPoolExecutor(options.jobs) as pool:
        tasks = [
            pool.submit(check, runner, twin, some, layout)
            for (op, _), some in by_problem.items()
            for layout in layouts(op)
        ]
        for result in itertools.chain.from_iterable(task.result() for task in tasks):
            counts = f"{result.calls} calls, {result.refused} refused"
            counts += f", {result.compared} compared with the twin" if result.compared else ""
            print(f"{result.row.name} {result.layout}: {counts}, {len(result.failures)} failed", flush=True)
            print("".join(f"  {text}\n" for text in result.failures[:SHOWN]), end="", flush=True)
            calls, failed = calls + result.calls, failed + len(result.failures)
            compared += result.compared
    if twin and not compared:
        print(f"{options.twin} has no row to compare bits with", file=sys.stderr)
        failed += 1
    bits = f", {compared} compared with the twin" if twin else ""
    print(f"{len(rows)} rows, {calls} calls{bits}, {failed} failures, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
