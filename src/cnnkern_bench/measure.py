"""Timing one call, and what many timings say.

A *sample* is n calls in a row that last long enough for the clock. A *slot* is one untimed call and the minimum of a
few samples: the minimum because whatever else runs on the machine can only add time. A *block* visits the arms there
and back (A B C C B A, the next one C B A A B C), so that a drift of the machine's speed meets all arms alike. A
*launch* is a set of fresh processes: two runs of the same program differ by where its memory happens to lie, which no
repetition inside one process averages out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from statistics import median, stdev

Clock = Callable[[], float]

# Student's t for a two-sided 95 % interval, by degrees of freedom
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Effort:
    """How much measuring a run does.

    Attributes:
        launches: fresh processes per arm.
        blocks: blocks per launch and case.
        samples: samples per slot.
        min_sample: seconds that a sample lasts at least.
        case_seconds: about how long one launch may spend on one case; slow cases get fewer samples, then fewer blocks.
    """

    launches: int = 5
    blocks: int = 4
    samples: int = 4
    min_sample: float = 0.5e-3
    case_seconds: float = 2.0

    def plan(self, call_seconds: Sequence[float]) -> tuple[int, int]:
        """Blocks and samples per slot for arms whose calls last this long, within ``case_seconds``."""
        sample = sum(max(seconds, self.min_sample) for seconds in call_seconds)
        for blocks, samples in ((self.blocks, self.samples), (self.blocks, 2), (self.blocks, 1), (2, 1)):
            if 2 * blocks * (samples + 1) * sample <= self.case_seconds:
                return blocks, min(samples, self.samples)
        return 1, 1


def calibrate(call: Callable[[], object], min_sample: float, clock: Clock = time.perf_counter) -> tuple[int, float]:
    """Calls per sample so that a sample lasts ``min_sample`` seconds, and the seconds of one call, after warming up."""
    calls = 1
    while True:
        seconds = _run(call, calls, clock)
        if seconds >= min_sample or calls >= 1 << 24:
            return calls, seconds / calls
        calls = min(1 << 24, max(2 * calls, math.ceil(1.2 * calls * min_sample / max(seconds, 1e-9))))


def slot(call: Callable[[], object], calls: int, samples: int, clock: Clock = time.perf_counter) -> list[float]:
    """One untimed call, then seconds per call of each sample."""
    call()
    return [_run(call, calls, clock) / calls for _ in range(samples)]


def _run(call: Callable[[], object], calls: int, clock: Clock) -> float:
    start = clock()
    for _ in repeat(None, calls):
        call()
    return clock() - start


def block_order(arms: Sequence[str], block: int) -> list[str]:
    """A B C C B A in even blocks, C B A A B C in odd ones."""
    there = list(arms) if block % 2 == 0 else list(reversed(arms))
    return there + there[::-1]


@dataclass(frozen=True)
class Estimate:
    """A time and the half width of its 95 % interval; None where one launch alone cannot tell."""

    seconds: float
    interval: float | None


def estimate(launches: Sequence[Sequence[float]]) -> Estimate | None:
    """The median over launches of each launch's median slot; the interval is Student's over launches.

    Args:
        launches: for each launch the slots' times in seconds; launches without a slot are left out.
    """
    values = [median(slots) for slots in launches if slots]
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], None)
    return Estimate(median(values), t95(len(values) - 1) * stdev(values) / math.sqrt(len(values)))


def t95(freedom: int) -> float:
    """Student's t of a two-sided 95 % interval; beyond 15 degrees of freedom to within 0.005."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.5 / freedom


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
