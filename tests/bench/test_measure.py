"""Timing and its statistics, on a clock that the test turns."""

from __future__ import annotations

import math

import pytest

from cnnkern_bench import measure
from cnnkern_bench.load import Counters, too_many_switches
from cnnkern_bench.measure import Effort, block_order, calibrate, estimate, slot


class Machine:
    """A clock, and a call that takes ``seconds`` on it (the first one ``first`` more)."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self.now, self.seconds, self.first, self.calls = 0.0, seconds, first, 0

    def clock(self) -> float:
        return self.now

    def call(self) -> None:
        self.now += self.seconds + (self.first if self.calls == 0 else 0.0)
        self.calls += 1


@pytest.mark.parametrize("seconds", [1e-7, 3e-6, 1e-4, 0.02])
def test_samples_last_long_enough(seconds: float) -> None:
    machine = Machine(seconds, first=1e-4)
    calls, found = calibrate(machine.call, 0.5e-3, machine.clock)
    assert calls * seconds >= 0.5e-3 * 0.999 or calls == 1
    assert calls * seconds < 3e-3 or calls == 1
    assert found == pytest.approx(seconds, rel=0.3)


def test_a_slot_leaves_its_first_call_out() -> None:
    machine = Machine(1e-3, first=1.0)
    assert slot(machine.call, 5, 4, machine.clock) == pytest.approx([1e-3] * 4)
    assert machine.calls == 1 + 5 * 4


def test_blocks_go_there_and_back() -> None:
    assert block_order(["a", "b", "c"], 0) == ["a", "b", "c", "c", "b", "a"]
    assert block_order(["a", "b", "c"], 1) == ["c", "b", "a", "a", "b", "c"]


def test_a_linear_drift_meets_all_arms_alike() -> None:
    for block in (0, 1):
        order = block_order(["a", "b", "c"], block)
        places = {arm: [i for i, name in enumerate(order) if name == arm] for arm in "abc"}
        assert len({sum(p) for p in places.values()}) == 1


def test_slow_calls_get_less_measuring() -> None:
    effort = Effort(case_seconds=1.0)
    assert effort.plan([1e-6, 1e-6]) == (4, 4)
    assert effort.plan([0.03]) == (4, 2)
    assert effort.plan([0.1]) == (2, 1)
    assert effort.plan([10.0]) == (1, 1)


def test_estimate_is_the_median_launch() -> None:
    found = estimate([[3.0, 1.0, 2.0], [4.0], [3.0, 3.0], []])
    assert found is not None
    assert found.seconds == 3.0
    assert found.interval == pytest.approx(measure.t95(2) * 1.0 / math.sqrt(3))
    assert estimate([[], []]) is None
    single = estimate([[1.0, 2.0]])
    assert single is not None and single.interval is None


def test_t_table_is_student() -> None:
    """P(|T| < t) by integrating the density: 95 %."""
    for freedom in (1, 2, 4, 9, 15, 40):
        factor = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
        steps, t = 40_000, measure.t95(freedom)
        width = 2 * t / steps
        inside = sum(
            factor * (1 + (-t + (i + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) * width for i in range(steps)
        )
        assert inside == pytest.approx(0.95, abs=0.0005)


def test_disturbances_have_causes() -> None:
    quiet = Counters(at=0.0, busy=10.0, steal=0.0, throttled=0, own=1.0)
    assert quiet.causes_until(Counters(at=1.0, busy=12.0, steal=0.0, throttled=0, own=3.0)) == []
    later = Counters(at=1.0, busy=11.5, steal=0.3, throttled=2, own=2.0)
    assert quiet.causes_until(later) == [
        "the CPU quota throttled",
        "the hypervisor took 30% of a CPU",
        "other processes took 50% of a CPU",
    ]
    short = Counters(at=0.01, busy=11.5, steal=0.3, throttled=0, own=2.0)
    assert quiet.causes_until(short) == []  # too short for counters that tick every 10 ms
    assert not too_many_switches(3, 0.1)
    assert too_many_switches(30, 0.1)
