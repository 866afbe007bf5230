"""The package's only reader of environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Variables that change how many threads, or which kernels, we or a peer use
_THREAD_VARIABLES = (
    *("CNNKERN_BACKEND", "CNNKERN_ISA", "CNNKERN_NUM_THREADS", "CNNKERN_PRECISION", "CNNKERN_SPIN_US"),
    "CNNKERN_RESULT_CACHE_MB",
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS"),
    *("OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "XLA_FLAGS", "LD_PRELOAD"),
)


def thread_variables() -> dict[str, str]:
    """Those that are set, with their values."""
    return {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}


def worker_environment(extra: Mapping[str, str], path: list[str]) -> dict[str, str]:
    """The environment of a worker process: ours, ``extra``, and ``path`` before everything else to import from."""
    inherited = os.environ.get("PYTHONPATH")
    roots = dict.fromkeys([*path, *([inherited] if inherited else [])])
    return {**os.environ, **extra, "PYTHONPATH": os.pathsep.join(roots)}
