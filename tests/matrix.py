"""The table of kernels as test parameters: every row, in every dtype and layout that it has.

A row whose instruction set this CPU lacks is skipped with that sentence, so the summary of a run names it. Which rows
there are is asked of ``cnnkern.kernels()``; there is no list of rows in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import cnnkern
from cnnkern.spec import DTYPES, OPS, Kernel

ROWS = cnnkern.kernels()
NATIVE = cnnkern.kernels(backend="cpp")
AVAILABLE = cnnkern.build_info()["available"]  # instruction sets of the native rows that this CPU offers
COMPLETE = [isa for isa in AVAILABLE if isa not in ("amx", "avx512vnni")]  # those with a row of every op
FUSED = [isa for isa in COMPLETE if isa != "scalar"]  # those with fused multiply-add: equal bits under "strict"

needs_native = pytest.mark.skipif(not NATIVE, reason="the native module is not built")


def precision_of(row: Kernel) -> str:
    """The default one, or the tightest that the row serves."""
    return "f32" if "f32" in row.precisions else row.precisions[0]


class Case(NamedTuple):
    row: Kernel
    dtype: str
    layout: str

    @property
    def precision(self) -> str:
        return precision_of(self.row)

    def __str__(self) -> str:
        return f"{self.row.op}.{self.row.name}.{self.dtype}-{self.layout}"


def missing(row: Kernel) -> str | None:
    """Why this row cannot run here."""
    return None if row.isa is None or row.isa in AVAILABLE else f"this CPU lacks {row.isa}"


def _parameter(value: Any, row: Kernel, name: str) -> Any:
    reason = missing(row)
    return pytest.param(value, id=name, marks=[pytest.mark.skip(reason=reason)] if reason else [])


def _layouts(row: Kernel) -> tuple[str, ...]:
    spec = OPS[row.op]
    return row.layouts if any(operand.map for operand in (*spec.inputs, *spec.outputs)) else row.layouts[:1]


def _chosen(ops: tuple[str, ...], native: bool, strict: bool = False) -> Iterator[Kernel]:
    rows = [row for row in (NATIVE if native else ROWS) if not ops or row.op in ops]
    assert not ops or {row.op for row in rows} == set(ops) or (native and not NATIVE), "an op without a row"
    yield from (row for row in rows if not strict or "strict" in row.precisions)


def each_case(
    *ops: str, native: bool = False, dtypes: tuple[str, ...] = tuple(DTYPES), strict: bool = False
) -> pytest.MarkDecorator:
    """Parametrize by ``case``: every row of these table ops (none: of all), in each of its dtypes and layouts.

    native: without the reference, which knows neither threads nor instruction sets. dtypes: only these.
    strict: only rows that serve this precision.
    """
    cases = [
        Case(row, dtype, layout)
        for row in _chosen(ops, native, strict)
        for dtype in row.dtypes
        if dtype in dtypes
        for layout in _layouts(row)
    ]
    cases.sort(key=lambda case: (case.row.op, case.dtype, case.layout))  # rows side by side share their expectations
    return pytest.mark.parametrize("case", [_parameter(case, case.row, str(case)) for case in cases])


def each_row(*ops: str, native: bool = False) -> pytest.MarkDecorator:
    """Parametrize by ``row``: every row of these table ops (none: of all)."""
    rows = list(_chosen(ops, native))
    return pytest.mark.parametrize("row", [_parameter(row, row, f"{row.op}.{row.name}") for row in rows])
