"""The speeds of one core that estimates are made from: measured by ``calibrate``, else defaults.

One core, whatever number of threads a call uses: an estimate that knew the threads would choose other kernels, and so
other bits, for other numbers of them.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, fields
from typing import Any

from .usercache import UserFile, cache_bytes, fingerprint, say_once

# Operations per cycle of one core, a multiply-add counting as two: lanes * 2 units * 2. SSE2 has no fused multiply-add:
# a unit does one operation per lane. NEON: two units, as in Neoverse N1. AMX: 16 * 16 * 32 multiply-adds in 16 cycles.
_PER_CYCLE = {"scalar.f32": 8, "avx2.f32": 32, "avx512.f32": 64, "avx512vnni.f32": 64, "neon.f32": 16, "amx.bf16": 1024}
_CLOCK = 3.5e9  # servers and laptops lie between 2.5 and 5 GHz under load; estimates are compared, so a common factor
# does not matter, and against the bandwidths below an error of 40 % moves the border between rows little


@dataclass(frozen=True)
class Ceilings:
    """What one core can do at best. Operations, bytes and seconds; bandwidths count bytes read plus bytes written.

    Attributes:
        peaks: multiply-adds per second, each counted as two operations, by "isa.dtype".
        memory: bytes per second of a copy in memory.
        cache: bytes per second read from the last-level cache.
        call: seconds of the smallest call.
    """

    peaks: dict[str, float]
    memory: float
    cache: float
    call: float


# Two x86 servers measured: 133 and 246 GFLOP/s (AVX2, AVX-512) and 11 to 24 GB/s per core, 30 GB/s from the last level.
DEFAULTS = Ceilings(
    peaks={name: per_cycle * _CLOCK for name, per_cycle in _PER_CYCLE.items()}
    | {name.replace("f32", "f64"): n * _CLOCK / 2 for name, n in _PER_CYCLE.items() if name.endswith("f32")},
    memory=15e9,
    cache=30e9,
    call=1.5e-6,
)


def second_level() -> int:
    """Bytes of a core's second-level cache."""
    return cache_bytes().get("L2", 1 << 20)


def last_level() -> int:
    """Bytes of the last-level cache."""
    return max(cache_bytes().values(), default=16 << 20)


def _file() -> UserFile:
    return UserFile("ceilings", fingerprint())


def _usable(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18


@functools.cache
def current() -> Ceilings:
    """What ``calibrate`` stored for this machine, defaults for what is not there. Read once, when first needed.

    A calibration that runs later counts from the next process on: until then equal calls keep equal kernels.
    """
    content = _file().read()
    if not content:
        return DEFAULTS
    peaks = content.get("peaks")
    numbers: dict[str, Any] = {f.name: content.get(f.name) for f in fields(Ceilings) if f.name != "peaks"}
    if not (isinstance(peaks, dict) and all(map(_usable, (*peaks.values(), *numbers.values())))):
        say_once(f"{_file().path()} is ignored: it holds something else than positive numbers")
        return DEFAULTS
    return Ceilings({**_scaled_defaults(peaks), **peaks}, **numbers)


def _scaled_defaults(peaks: dict[str, float]) -> dict[str, float]:
    """Default peaks, with the clock that the measured ones show: AMX has no loop to measure."""
    known = [peaks[name] / DEFAULTS.peaks[name] for name in peaks if name in DEFAULTS.peaks]
    factor = max(known, default=1.0)
    return {name: value * factor for name, value in DEFAULTS.peaks.items()}


def store(measured: Ceilings) -> str | None:
    """Keep for later processes; the file's path, or None if there is no place for it."""
    path = _file().write(asdict(measured))
    return None if path is None else str(path)


def stored_path() -> str | None:
    """The file that ``current`` reads, if there is one."""
    try:
        path = _file().path()
    except RuntimeError:  # this user has no home
        return None
    return str(path) if path.is_file() else None
