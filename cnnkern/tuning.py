"""``using(tune=True)``: rows that can serve a request are timed at its first call, and the times are kept.

Kept in memory and in a file of the user's cache folder, by problem string; the file belongs to one machine and one
build of the kernels. A request means what it always means: rows that may not serve it, for precision or because another
one is forced, do not compete.

One thread runs while rows are timed. The threads of a call are in no request, so that the same call gives the same bits
on any number of them, and a choice made on eight must hold on one. What differs between rows, arithmetic and traffic of
a core, one thread shows best: it disturbs itself least. The price: a row that spreads badly over many cores is not
found out.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import zlib
from collections.abc import Callable
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np

from . import config, plan
from .spec import OPS, Kernel, Request
from .usercache import UserFile, fingerprint, say_once

BUDGET = 0.5  # seconds for one request, or a call of each row if that takes longer
ROUNDS = 7  # in each, every row left has a turn; its time is the median
SAMPLE = 1e-3  # seconds of a turn, at least: the clock and interrupts are then below a percent
SLOW = 2.0  # a row this many times slower than the best leaves the race
HOPELESS = 4.0  # by estimate: it is not even run
LONG = 0.05  # a call this long is its own warming up
KEPT = 4096  # requests: the file stays below a megabyte

_lock = threading.RLock()  # one race at a time: two would measure each other
_times: dict[str, dict[str, float]] = {}  # problem string -> row -> seconds
_own: dict[str, dict[str, float]] = {}  # those of them that this process measured


def _renew_lock() -> None:
    """A forked child must not wait for a thread that it does not have."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def known(request: Request, rows: list[Kernel], estimates: dict[str, float | None]) -> dict[str, float]:
    """Seconds by row name from earlier calls, of this or another process; empty if not all that compete were timed."""
    names = [row.name for row in _competitors(request, rows, estimates)]
    if len(names) < 2:
        return {}
    key = _key(request)
    with _lock:
        if not all(name in _times.get(key, {}) for name in names):
            _load()
        times = _times.get(key, {})
    return {name: times[name] for name in names} if all(name in times for name in names) else {}


def measure(request: Request, rows: list[Kernel], estimates: dict[str, float | None]) -> dict[str, float]:
    """As ``known``, but what is not known is timed now. Empty if there is nothing to compare, or no memory for it."""
    competitors = _competitors(request, rows, estimates)
    if len(competitors) < 2:
        return {}
    with _lock:  # whoever waited here finds what was measured meanwhile
        times = known(request, rows, estimates)
        if not times:
            try:
                times = _race(request, competitors)
            except MemoryError:
                say_once(f"{_key(request)} is not tuned: there is no memory for a second set of its arrays")
                return {}
            _keep(_key(request), times)
    return times


def _competitors(request: Request, rows: list[Kernel], estimates: dict[str, float | None]) -> list[Kernel]:
    """Rows worth a run. Under "strict" those with fused multiply-add, if any: they all give the same bits."""
    costs = [cost for cost in estimates.values() if cost is not None]
    if costs and len(costs) == len(estimates):
        rows = [row for row in rows if (estimates[row.name] or 0.0) <= HOPELESS * min(costs)]
    if request.precision == "strict":
        rows = [row for row in rows if row.isa != "scalar"] or rows
    return rows


def _key(request: Request) -> str:
    from . import problem  # on use: it costs a millisecond of import

    return str(problem.from_request(request))


# ---- the race


def _race(request: Request, rows: list[Kernel]) -> dict[str, float]:
    """Seconds of a call by row name, on arrays of the request's shapes."""
    call, arrays = _call(request)
    end = perf_counter() + BUDGET
    with config.using(num_threads=1):
        runners = {row.name: plan.runner(call, row, arrays) for row in rows}
        times = {name: _warm(run) for name, run in runners.items()}
        best = min(times.values())
        racing = [name for name, seconds in times.items() if seconds <= SLOW * best]
        if len(racing) == 1:
            return times
        repeats = ceil(SAMPLE / best)
        samples: dict[str, list[float]] = {name: [] for name in racing}
        for _ in range(ROUNDS):
            if perf_counter() > end:
                break
            for name in racing:
                samples[name].append(_seconds(runners[name], repeats))
            racing.reverse()
    return times | {name: sorted(taken)[len(taken) // 2] for name, taken in samples.items() if taken}


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Of one call, in a turn of several."""
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats


def _warm(run: Callable[[], object]) -> float:
    """The least of three calls; of one if it is long. The first touches new pages and fills the caches."""
    least = float("inf")
    for _ in range(3):
        least = min(least, _seconds(run, 1))
        if least > LONG:
            break
    return least


def _call(request: Request) -> tuple[plan.Call, tuple[np.ndarray | None, ...]]:
    """One step on arrays of its own. Values are near 1: variances are among the operands. Integers are 0, which is
    right for any index or label."""
    spec = OPS[request.op]
    operands = (*spec.inputs, *spec.outputs)
    arrays: list[np.ndarray | None] = []
    for operand in operands:
        if not operand.present(request):
            arrays.append(None)
            continue
        array = plan.empty(operand.array_shape(request), operand.array_dtype(request))
        if operand in spec.inputs:
            integer = array.dtype.kind in "iub"
            array[...] = 0 if integer else np.random.default_rng(0).random(array.shape, np.float32) + 0.5
        arrays.append(array)
    slots = tuple(None if array is None else i for i, array in enumerate(arrays))
    count = len(spec.inputs)
    step = plan.Step(request, slots[:count], slots[count:])
    return plan.Call((step,), len(arrays), (), ()), tuple(arrays)


# ---- the file


@functools.cache
def _file() -> UserFile:
    """Of this machine and this build: other kernels have other times."""
    core = sys.modules.get(f"{__package__}._cnnkern_core")
    path = getattr(core, "__file__", None)
    build = f"{zlib.crc32(Path(path).read_bytes()):08x}" if path else ""
    return UserFile("tuning", {**fingerprint(), "build": build})


def _stored() -> dict[str, dict[str, float]]:
    found = _file().read()
    return {
        key: times
        for key, times in found.items()
        if isinstance(times, dict) and all(isinstance(time, float) and time > 0 for time in times.values())
    }


def _load() -> None:
    """What other processes have written; this one's own times stay."""
    for key, times in _stored().items():
        _times.setdefault(key, times)


def _keep(key: str, times: dict[str, float]) -> None:
    """In memory, and merged into the file; the oldest go first.

    Of two processes that merge at the same moment one may lose its entry. It writes all its own again with the next
    one; the last one of a process that ends may have to be timed again.
    """
    stored = {**_own, **_stored()}
    for kept in (_times, _own, stored):
        kept[key] = {**kept.pop(key, {}), **times}
        while len(kept) > KEPT:
            del kept[next(iter(kept))]
    _file().write(stored)


def forget() -> None:
    """Forget what is in memory; the file stays."""
    _times.clear()
    _own.clear()
    _file.cache_clear()
