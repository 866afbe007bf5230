"""Is a result right? Asked before anything is timed, in the process that times it.

``sampled``: 256 output points (corners, tile edges, anywhere) against the definition in float64. ``full``: every
element against the reference backend. Ops without a pointwise definition here are cheap and always compared in full.
Either way the whole output must have been written, and nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

import cnnkern as ck
from cnnkern.problem import Problem

from .calls import public_call
from .data import Guarded, poison
from .definition import DEFINITIONS, products_per_point, sample_points

POINTS = 256
FEWEST_POINTS = 32
PRODUCTS = 30_000_000  # about half a second of checking
PEER_TOLERANCE = 3e-2  # of the rms value: peers may compute in bfloat16; wrong padding is far above

# Sums of products of small integers are exact in any order; these ops must match to the bit.
EXACT = ("conv", "conv_grad_input", "conv_grad_weight", "channel_sum", "max_pool", "max_pool_grad", "adaptive_max_pool",
         "adaptive_max_pool_grad", "max_unpool", "max_unpool_grad", "relu", "relu_grad", "unfold", "fold")  # fmt: skip
INEXACT_ALGORITHMS = ("winograd", "fft")
_RELATIVE = {"f64": 1e-12, "f16": 4e-3, "bf16": 3e-2}  # of the rms value; float32 and the rest: 1e-5
_UNIT = {"f64": 2.0**-53}


def compare(
    problem: Problem,
    inputs: dict[str, np.ndarray],
    outputs: Sequence[np.ndarray | None],
    how: str,
    row: str = "",
    tolerance: float | None = None,
) -> str | None:
    """Compare outputs with what they must be.

    Args:
        problem, inputs: what was computed, on which arrays.
        outputs: arrays with axes in the problem's layout; None, or left out at the end: not looked at.
        how: "sampled" or "full".
        row: the kernel's name: Winograd sums cannot be exact.
        tolerance: of the rms value; None: exact where the op and the row are, else by type and precision.

    Returns:
        None if right, else the sentence that says what is wrong.
    """
    for spec, got in zip(problem.outputs, outputs):
        if got is not None and got.shape != spec.shape:
            return f"{spec.name} has shape {got.shape}, must be {spec.shape}"
    if tolerance is None and (sentence := unwritten(problem, outputs)):
        return sentence
    if tolerance is None:
        tolerance = _tolerance(problem, row)
    if how == "sampled" and problem.op in DEFINITIONS and outputs[0] is not None:
        return _compare_sampled(problem, inputs, outputs[0], tolerance)
    call = public_call(problem, inputs)
    with ck.using(backend="reference", kernel="reference"):  # whatever is forced around
        wanted = call.pick(call.bind()())
    for spec, got, want in zip(problem.outputs, outputs, wanted):
        if got is None or want is None:
            continue
        if sentence := _differ(spec.name, got, np.asarray(want), list(np.ndindex(got.shape)), tolerance):
            return sentence
    return None


def unwritten(problem: Problem, outputs: Sequence[np.ndarray | None]) -> str | None:
    """Whether an output still holds the value it was filled with before the call."""
    for spec, got in zip(problem.outputs, outputs):
        if got is None or spec.dtype == np.bool_:
            continue
        untouched = got == poison(spec.dtype) if spec.dtype.kind in "iu" else np.isnan(got)
        if spec.dtype.kind != "u" and untouched.any():
            place = tuple(int(i) for i in np.argwhere(untouched)[-1])
            return f"{spec.name}{list(place)} was not written ({int(untouched.sum())} of {got.size} elements)"
    return None


def run_guarded(
    problem: Problem, inputs: dict[str, np.ndarray], kernel: Any
) -> tuple[tuple[np.ndarray, ...], str | None]:
    """Run a row of the table on guarded, poisoned outputs: the outputs, and what was damaged around them."""
    guarded = [Guarded.like(spec) for spec in problem.outputs]
    arrays = {**inputs, **{spec.name: g.array for spec, g in zip(problem.outputs, guarded)}}
    kernel.run(kernel.prepare(problem.request(), None), *problem.arrange(arrays))
    damage = next((d for g in guarded if (d := g.damage())), None)
    return tuple(g.array for g in guarded), damage


def _tolerance(problem: Problem, row: str) -> float:
    if problem.op not in EXACT:
        return _RELATIVE.get(problem.dtype, 1e-5)
    if not any(name in row for name in INEXACT_ALGORITHMS):
        return 0.0
    reduction = products_per_point(problem)  # 16 times the error that a sum in random order makes
    return max(16 * _UNIT.get(problem.dtype, 2.0**-24) * sqrt(reduction), 8e-5 if problem.precision == "fast" else 0.0)


def _compare_sampled(problem: Problem, inputs: dict[str, np.ndarray], got: np.ndarray, tolerance: float) -> str | None:
    last = problem.layout == "NHWC"
    maps = problem.op != "conv_grad_weight"
    logical = {
        name: np.moveaxis(array, -1, 1) if last and name not in ("weight", "bias") else array
        for name, array in inputs.items()
    }
    result = np.moveaxis(got, -1, 1) if last and maps else got
    count = int(min(POINTS, max(FEWEST_POINTS, PRODUCTS // max(1, products_per_point(problem)))))
    points = sample_points(result.shape, count, np.random.default_rng(0))
    definition = DEFINITIONS[problem.op]
    values = np.array([definition(problem, logical, point) for point in points])
    chosen = np.array([result[point] for point in points])
    names = [(p[0], *p[2:], p[1]) if last and maps else p for p in points]
    return _differ(problem.outputs[0].name, chosen, values, names, tolerance)


def _differ(
    name: str, got: np.ndarray, want: np.ndarray, places: list[tuple[int, ...]], tolerance: float
) -> str | None:
    """The first place where the values differ by more than ``tolerance`` times the rms of what is wanted."""
    if got.size == 0:
        return None
    exact = want.astype(got.dtype).astype(np.float64) if tolerance == 0 else want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - exact).ravel()
    bound = tolerance * sqrt(float(np.mean(np.square(exact))))
    wrong = np.flatnonzero(~(error <= bound) & ~(np.isnan(error) & np.isnan(exact).ravel()))
    if not wrong.size:
        return None
    i = int(wrong[0])
    place = list(map(int, places[i]))
    return (
        f"{name}{place} is {got.ravel()[i]}, must be {exact.ravel()[i]:.9g}"
        f"{f' within {bound:.2g}' if bound else ''} ({wrong.size} of {got.size} compared differ)"
    )
