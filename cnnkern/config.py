"""Settings: environment, ``set_num_threads`` and ``using``. The package's only reader of environment variables.

Environment variables are read once, when the package is imported. ``using`` holds for the thread that enters it.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import ArgumentError, show

BACKENDS = ("cpp", "reference")  # the order in which host arrays are offered to them
PRECISIONS = ("strict", "f32", "fast", "bf16")  # tightest first
ISAS = ("scalar", "avx2", "avx512", "avx512vnni", "amx", "neon")
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for, by environment or ``using``. None: free choice."""

    backend: str | None = None
    kernel: str | None = None
    isa: str | None = None
    num_threads: int | None = None
    precision: str = "f32"
    tune: bool = False


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ArgumentError(f"{name} must be one of {', '.join(allowed)}, got {show(value)}.")
    return value


def _thread_count(name: str, value: Any) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be an int from 1 to {MAX_THREADS}, got {show(value)}.") from None
    if isinstance(value, (bool, float)) or not 1 <= count <= MAX_THREADS:
        raise ArgumentError(f"{name} must be an int from 1 to {MAX_THREADS}, got {show(value)}.")
    return count


def _checked(changes: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Validate settings by name; ``where`` turns a field into the name the user wrote."""
    checked: dict[str, Any] = {}
    for field, value in changes.items():
        if value is None:
            continue
        if field == "backend":
            value = _choice(where(field), value, BACKENDS)
        elif field == "isa":
            value = _choice(where(field), value, ISAS)
        elif field == "precision":
            value = _choice(where(field), value, PRECISIONS)
        elif field == "num_threads":
            value = _thread_count(where(field), value)
        elif field == "tune":
            if not isinstance(value, bool):
                raise ArgumentError(f"{where(field)} must be True or False, got {show(value)}.")
        elif not isinstance(value, str) or not value:
            raise ArgumentError(f"{where(field)} must name a row such as 'cpp.direct.avx2', got {show(value)}.")
        checked[field] = value
    return checked


_ENVIRONMENT = {
    "backend": "CNNKERN_BACKEND",
    "isa": "CNNKERN_ISA",
    "num_threads": "CNNKERN_NUM_THREADS",
    "precision": "CNNKERN_PRECISION",
}


def _natural(name: str, default: int, most: int) -> int:
    """An environment variable that is a number from 0."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or int(text) > most:
        raise ArgumentError(f"{name} must be an int from 0 to {most}, got {text!r}.")
    return int(text)


strict_backend = _natural("CNNKERN_STRICT", 0, 1) == 1  # falling to a slower backend is then an error
# Memory of results that died, kept for the next ones: fresh pages cost more than the arithmetic of many layers.
result_cache_mb = _natural("CNNKERN_RESULT_CACHE_MB", 256, 1 << 20)
spin_us = _natural("CNNKERN_SPIN_US", 20, 1_000_000)  # how long an idle worker spins before it sleeps

_environment = _checked(
    {field: os.environ.get(name) or None for field, name in _ENVIRONMENT.items()}, _ENVIRONMENT.__getitem__
)
_environment_threads: int | None = _environment.pop("num_threads", None)  # set_num_threads wins over it
_base = Settings(**_environment, tune=_natural("CNNKERN_TUNE", 0, 1) == 1)
_cache_home = {name: os.environ.get(name) or "" for name in ("CNNKERN_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA")}
_omp_threads = os.environ.get("OMP_NUM_THREADS", "")
_set_threads: int | None = None  # by set_num_threads


class _ThreadState(threading.local):
    stack: tuple[Settings, ...] = ()
    suspended = False


_state = _ThreadState()
_listeners: list[Callable[[int, int, int], None]] = []
_forgetters: list[Callable[[], None]] = []
_ids: dict[Settings, int] = {}
_new_ids = itertools.count()  # no lock: one held by another thread at a fork would stay locked in the child
UNKNOWN = -1  # the id under which nothing is remembered


def current() -> Settings:
    """The settings of this thread."""
    return _state.stack[-1] if _state.stack else _base


def settings_id(settings: Settings) -> int:
    """A number that stands for equal settings; the native plan cache has it in its key."""
    known = _ids.get(settings)
    return _ids.setdefault(settings, next(_new_ids)) if known is None else known


def subscribe(listener: Callable[[int, int, int], None], forget: Callable[[], None]) -> None:
    """Tell ``listener(settings id, threads, process's threads)`` of this thread's settings, now and at each change.

    ``forget()`` says that what any thread was told before no longer holds.
    """
    _listeners.append(listener)
    _forgetters.append(forget)
    sync()


def sync() -> None:
    """Push this thread's settings to the listeners."""
    settings = current()
    known = UNKNOWN if _state.suspended else settings_id(replace(settings, num_threads=None))
    for listener in _listeners:
        listener(known, get_num_threads(), _process_threads())


def suspend(suspended: bool) -> None:
    """While suspended, no call of this thread is answered by a remembered program."""
    _state.suspended = suspended
    sync()


class using:
    """Settings for a block, in this thread: ``with using(backend="cpp", isa="avx2", num_threads=2): ...``.

    Args:
        backend: one of ``"cpp"``, ``"reference"``: only rows of this backend may run.
        kernel: ``"cpp.direct.avx512"``: exactly this row (parts left out at the end are free). An op that has no row
            of that algorithm keeps the row's backend and ISA.
        isa: the highest instruction set that may run: ``"scalar"``, ``"avx2"``, ``"avx512"``,
            ``"avx512vnni"``, ``"amx"``, ``"neon"``.
        num_threads: threads per call, from 1.
        precision: ``"strict"``, ``"f32"``, ``"fast"``, ``"bf16"``; an op's own argument wins.
        tune: ``True``: the first call with new sizes times every row that may serve it and keeps the fastest, in memory
            and in a file of the user's cache folder (``docs/choosing.md``). ``False``: rows are chosen by estimates.

    Raises:
        ArgumentError: a value that is not one of these. A choice that cannot serve an op is refused by that op.
    """

    def __init__(
        self,
        *,
        backend: str | None = None,
        kernel: str | None = None,
        isa: str | None = None,
        num_threads: int | None = None,
        precision: str | None = None,
        tune: bool | None = None,
    ) -> None:
        changes = dict(backend=backend, kernel=kernel, isa=isa, num_threads=num_threads, precision=precision, tune=tune)
        self._changes = _checked(changes, lambda field: f"using: {field}")

    def __enter__(self) -> Settings:
        settings = replace(current(), **self._changes)
        _state.stack = (*_state.stack, settings)
        sync()
        return settings

    def __exit__(self, *exception: object) -> None:
        _state.stack = _state.stack[:-1]
        sync()


def set_num_threads(n: int) -> None:
    """Set the number of threads per call for all threads of the process; ``using(num_threads=)`` wins over it.

    Args:
        n: from 1 to 1024. More than the machine has cores is allowed and slower.

    Raises:
        ArgumentError: n is not such an int.
    """
    global _set_threads
    _set_threads = _thread_count("set_num_threads: n", n)
    for forget in _forgetters:
        forget()
    sync()


def get_num_threads() -> int:
    """Threads that a call from this thread uses: ``using``, ``set_num_threads``, ``CNNKERN_NUM_THREADS``,
    ``OMP_NUM_THREADS``, 1 in a child of ``multiprocessing``, else what the affinity mask and the cgroup allow."""
    asked_for = current().num_threads
    return _process_threads() if asked_for is None else asked_for


def _process_threads() -> int:
    """The number of threads where no ``using`` says otherwise."""
    for asked_for in (_set_threads, _environment_threads):
        if asked_for is not None:
            return asked_for
    if _omp_threads.isdigit() and int(_omp_threads) > 0:
        return min(int(_omp_threads), MAX_THREADS)
    if _is_worker_process():
        return 1
    return available_cpus()


def _is_worker_process() -> bool:
    """Whether multiprocessing started this process; then it is loaded here (and importing it would cost 7 ms)."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


def cache_dir() -> Path:
    """Where files live that make later processes faster and that may be deleted at any time.

    Raises:
        RuntimeError: no variable names a folder and this user has no home.
    """
    if _cache_home["CNNKERN_CACHE_DIR"]:
        return Path(_cache_home["CNNKERN_CACHE_DIR"])
    general = Path(_cache_home["LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"])
    if not general.is_absolute():  # unset; or relative, which the XDG specification wants ignored
        general = Path.home() / ("AppData/Local" if os.name == "nt" else ".cache")
    return general / "cnnkern"


@functools.cache
def available_cpus() -> int:
    """CPUs this process may use: the smaller of the affinity mask and the cgroup quota, rounded up."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cpus, MAX_THREADS, math.ceil(quota) if quota else cpus))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _cgroup_quota() -> float | None:
    """CPUs that cgroup limits of this process and its parents leave, or None. Version 2 first, then version 1."""
    quotas = []
    root = Path("/sys/fs/cgroup")
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        group = root / path.lstrip("/") if not controllers else root / "cpu" / path.lstrip("/")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            if controllers:
                limit, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
            else:
                limit, _, period = _read(folder / "cpu.max").partition(" ")
            if limit.strip().isdigit() and period.strip().isdigit() and int(period) > 0:
                quotas.append(int(limit) / int(period))
    return min(quotas, default=None)
