"""What was built and what this machine can do at best: for estimates, ``doctor``, benchmarks and people."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import isqrt
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import build_record, load
from .config import get_num_threads, using
from .errors import ArgumentError, NoKernelError, show

if TYPE_CHECKING:
    from .roofline import Ceilings


def build_info() -> dict[str, Any]:
    """How the native module was built, or why it was not.

    Returns:
        ``built`` (bool), ``reason`` (why not), ``compiler``, ``isas``, ``flags`` as the build recorded them; an empty
        record if there is none. ``loads`` (bool) and ``load_error``: whether it can be imported here. ``available``:
        instruction sets of it that this CPU offers, weakest first.
    """
    cpp = load("cpp")
    return {**build_record(), "loads": cpp.reason is None, "load_error": cpp.reason or "", "available": list(cpp.isas)}


def _core(op: str) -> Any:
    cpp = load("cpp")
    if cpp.reason is not None:
        raise NoKernelError(f"{op} needs the native module: {cpp.reason}")
    from . import _cnnkern_core

    return _cnnkern_core


def measure_peak(isa: str, dtype: str = "f32", threads: int | None = None) -> float:
    """Multiply-adds that the machine can do: independent chains in registers, the best of 12 runs of about 10 ms.

    Args:
        isa: an instruction set of ``build_info()["available"]``.
        dtype: "f32" or "f64".
        threads: at once; None: ``get_num_threads()``.

    Returns:
        GFLOP/s, a multiply-add counting as two operations. Without fused multiply-add it is
        a multiplication and an addition.

    Raises:
        ArgumentError: no such ISA here, or another dtype. NoKernelError: there is no native module.
    """
    core = _core("measure_peak")
    available = load("cpp").isas
    if isa not in available:
        raise ArgumentError(f"measure_peak: isa must be one of {', '.join(available)}, got {show(isa)}.")
    if dtype not in ("f32", "f64"):
        raise ArgumentError(f"measure_peak: dtype must be 'f32' or 'f64', got {show(dtype)}.")
    return core.measure_peak(isa, 0 if dtype == "f32" else 1, threads or get_num_threads())


def measure_copy(threads: int | None = None, nbytes: int = 1 << 28) -> float:
    """Copy bandwidth: ``nbytes`` from one buffer to another, pages touched before, the best of 12 runs.

    Args:
        threads: that share the copy; None: ``get_num_threads()``.
        nbytes: size of each buffer; what fits in a cache measures that cache.

    Returns:
        GB/s, read plus written.

    Raises:
        ArgumentError: nbytes is not positive. NoKernelError: there is no native module.
    """
    if nbytes < 1:
        raise ArgumentError(f"measure_copy: nbytes must be >= 1, got {show(nbytes)}.")
    return _core("measure_copy").measure_copy(threads or get_num_threads(), nbytes)


def measure_read(nbytes: int) -> float:
    """Bandwidth of one thread that reads the same ``nbytes`` over and over, the best of 12 runs.

    Args:
        nbytes: size of the buffer; the bandwidth is that of the cache it fits in.

    Returns:
        GB/s.

    Raises:
        ArgumentError: nbytes is not positive. NoKernelError: there is no native module.
    """
    if nbytes < 1:
        raise ArgumentError(f"measure_read: nbytes must be >= 1, got {show(nbytes)}.")
    return _core("measure_read").measure_read(nbytes)


def calibrate() -> dict[str, Any]:
    """Measure what one core can do, and keep it for the estimates that kernels are chosen by: some seconds.

    Later processes on this machine choose with it. This one stays with what it has, so that equal calls go on giving
    equal bits.

    Returns:
        As ``ceilings``.

    Raises:
        NoKernelError: there is no native module.
    """
    from . import roofline  # on use: importing the package need not wait for it

    _core("calibrate")
    isas = [isa for isa in load("cpp").isas if isa != "amx"]  # AMX has no loop to measure
    with using(num_threads=1):
        measured = roofline.Ceilings(
            peaks={f"{isa}.{dtype}": measure_peak(isa, dtype, 1) * 1e9 for isa in isas for dtype in ("f32", "f64")},
            memory=measure_copy(1) * 1e9,
            # well above the second-level and well below the last-level cache
            cache=measure_read(isqrt(roofline.second_level() * roofline.last_level())) * 1e9,
            call=_smallest_call(),
        )
    return _readable(measured, roofline.store(measured))


def ceilings() -> dict[str, Any]:
    """What this process takes one core to be able to do, when it estimates how long kernels need.

    Returns:
        ``peaks`` (GFLOP/s of multiply-adds by "isa.dtype"), ``memory`` (GB/s of a copy), ``cache`` (GB/s read from the
        last-level cache), ``call`` (seconds of the smallest call), and ``file``, which ``calibrate`` wrote; None:
        these are defaults, or there was no place for a file.
    """
    from . import roofline

    current = roofline.current()
    return _readable(current, None if current is roofline.DEFAULTS else roofline.stored_path())


def _readable(found: Ceilings, file: str | None) -> dict[str, Any]:
    values = asdict(found)
    values.update(memory=found.memory * 1e-9, cache=found.cache * 1e-9, file=file)
    values["peaks"] = {name: peak * 1e-9 for name, peak in sorted(found.peaks.items())}
    return values


def _smallest_call() -> float:
    """Seconds of a convolution of 16 pixels: the best of 12 runs of 200."""
    conv2d = sys.modules[__package__].conv2d
    x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    best = float("inf")
    for _ in range(12):
        start = perf_counter()
        for _ in range(200):
            conv2d(x, weight)
        best = min(best, (perf_counter() - start) / 200)
    return best
