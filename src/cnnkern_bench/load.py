"""What disturbed a measurement: reasons from the kernel's counters, never from the measured values themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
# A quiet machine preempts for its own housekeeping a few times a second; a rival process does at every time slice.
SWITCHES_ALLOWED = 2
SWITCHES_PER_SECOND = 25
STEAL_ALLOWED = 0.02  # of the time of one CPU
FOREIGN_ALLOWED = 0.10  # of one CPU
SHORTEST = 0.25  # seconds; below that the counters' ticks of 10 ms say nothing


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _machine_times() -> tuple[float, float] | None:
    """Seconds that all CPUs were busy (without steal), and stolen seconds, since boot."""
    fields = _read("/proc/stat").partition("\n")[0].split()[1:]
    if len(fields) < 8:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(f) / TICK for f in fields[:8])
    return user + nice + system + irq + softirq, steal


def process_seconds(pid: int) -> float:
    """CPU time of a process and all its threads; 0 where it cannot be read."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK if len(fields) > 12 else 0.0


def _throttled() -> int:
    """How often the cgroup's CPU quota stopped this process so far."""
    total = 0
    for path in ("/sys/fs/cgroup/cpu.stat", "/sys/fs/cgroup/cpu/cpu.stat"):
        for line in _read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "nr_throttled" and value.isdigit():
                total += int(value)
    return total


@dataclass(frozen=True)
class Counters:
    """The counters at one moment. ``own`` is the CPU time of the processes that measure."""

    at: float
    busy: float | None
    steal: float
    throttled: int
    own: float

    @classmethod
    def now(cls, pids: Iterable[int] = ()) -> Counters:
        times = _machine_times()
        own = sum(process_seconds(pid) for pid in (os.getpid(), *pids))
        busy, steal = times if times else (None, 0.0)
        return cls(time.monotonic(), busy, steal, _throttled(), own)

    def causes_until(self, later: Counters) -> list[str]:
        """What disturbed the time between two moments, as sentences; empty if nothing did."""
        causes = []
        seconds = later.at - self.at
        if later.throttled > self.throttled:
            causes.append("the CPU quota throttled")
        if seconds >= SHORTEST:
            steal = (later.steal - self.steal) / seconds
            if steal > STEAL_ALLOWED:
                causes.append(f"the hypervisor took {steal:.0%} of a CPU")
            if self.busy is not None and later.busy is not None:
                foreign = (later.busy - self.busy - (later.own - self.own)) / seconds
                if foreign > FOREIGN_ALLOWED:
                    causes.append(f"other processes took {foreign:.0%} of a CPU")
        return causes


def too_many_switches(switches: int, seconds: float) -> bool:
    """Whether the measuring process was preempted more often than housekeeping explains."""
    return switches > SWITCHES_ALLOWED + SWITCHES_PER_SECOND * seconds
