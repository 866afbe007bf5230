"""What was built and what this machine can do at best: for ``doctor``, benchmarks and people."""

from __future__ import annotations

from typing import Any

from .backends import build_record, load
from .config import get_num_threads
from .errors import ArgumentError, NoKernelError, show


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
