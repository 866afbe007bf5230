"""The backends, loaded by name on demand. One that does not load keeps its reason for ``explain`` and ``doctor``."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass

from ..config import BACKENDS
from ..spec import Kernel


@dataclass(frozen=True)
class Backend:
    """A loaded backend, or the sentence that says why it is not there."""

    name: str
    kernels: tuple[Kernel, ...]
    reason: str | None = None
    isas: tuple[str, ...] = ()  # instruction sets that this CPU and build offer; empty where there are none to choose


_loaded: dict[str, Backend] = {}
_lock = threading.RLock()


def load(name: str) -> Backend:
    """Import backend ``name`` once. The one place where a failing import becomes a sentence."""
    backend = _loaded.get(name)
    if backend is None:
        with _lock:
            if name not in _loaded:
                try:
                    module = importlib.import_module(f"{__name__}.{name}")
                    isas = module.isas() if hasattr(module, "isas") else ()
                    _loaded[name] = Backend(name, tuple(module.kernels()), isas=isas)
                except (ImportError, OSError, RuntimeError) as error:
                    _loaded[name] = Backend(name, (), f"backend {name} is not available: {error}")
            backend = _loaded[name]
    return backend


def load_all() -> tuple[Backend, ...]:
    """Every backend, in the order of preference."""
    return tuple(load(name) for name in BACKENDS)
