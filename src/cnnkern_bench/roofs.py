"""This machine's measured roofs: multiply-add peak by instruction set and copy bandwidth by size."""

from __future__ import annotations

from dataclasses import dataclass, field

import cnnkern as ck
from cnnkern.problem import Problem

_SMALLEST_COPY = 1 << 16


@dataclass(frozen=True)
class Roofs:
    """The roofs of one number of threads, by "isa.dtype" in GFLOP/s and by bytes in GB/s."""

    peaks: dict[str, float | None] = field(default_factory=dict)
    copies: dict[int, float | None] = field(default_factory=dict)

    def fraction(self, problem: Problem, row: str, seconds: float) -> float | None:
        """What part of its roof a time reaches; None where the roof was not measured."""
        if bound_by_arithmetic(problem):
            roof = self.peaks.get(peak_key(row))
        else:
            roof = self.copies.get(copy_size(problem.bytes))
        return rate(problem, seconds)[0] / roof if roof else None


def peak_key(row: str) -> str:
    """``op.backend.algorithm.isa.dtype`` -> "isa.dtype": the loop that a row is judged by."""
    return ".".join(row.split(".")[-2:])


def copy_size(nbytes: int) -> int:
    """Copies are measured at powers of two: what fits a cache is judged by that cache's bandwidth."""
    return max(_SMALLEST_COPY, 1 << (nbytes - 1).bit_length()) if nbytes else _SMALLEST_COPY


def measure_roof(kind: str, what: str, threads: int) -> float | None:
    """GFLOP/s of multiply-adds on registers ("peak", "avx2.f32"), or GB/s read plus written ("copy", bytes).

    None where the native library is missing, or has no such loop for this instruction set or type.
    """
    try:
        if kind == "copy":
            return ck.measure_copy(threads, int(what) // 2)  # half is read, half written
        isa, dtype = what.split(".")
        return ck.measure_peak(isa, dtype, threads)
    except (ck.NoKernelError, ck.ArgumentError):
        return None


def bound_by_arithmetic(problem: Problem) -> bool:
    """Whether GFLOP/s (convolutions) or GB/s (everything else, depthwise too) says how good a time is."""
    if problem.op not in ("conv", "conv_grad_input", "conv_grad_weight"):
        return False
    return problem.geometry.groups == 1 or problem.geometry.groups < problem.geometry.in_channels


def rate(problem: Problem, seconds: float) -> tuple[float, str]:
    """What the time amounts to: (GFLOP/s or GB/s, its unit)."""
    if bound_by_arithmetic(problem):
        return problem.flops / seconds * 1e-9, "GFLOP/s"
    return problem.bytes / seconds * 1e-9, "GB/s"
