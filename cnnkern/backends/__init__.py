"""The backends, loaded by name on demand. One that does not load keeps its reason for ``explain`` and ``doctor``."""

from __future__ import annotations

import importlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def _renew_lock() -> None:
    """A forked child must not wait for a thread that it does not have."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


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
                    _loaded[name] = Backend(name, (), f"backend {name} is not available: {_why(name, error)}")
            backend = _loaded[name]
    return backend


def _why(name: str, error: Exception) -> str:
    """The error of the import; for cpp also what the build wrote down if it could not make the module."""
    reason = build_record().get("reason") if name == "cpp" else None
    return f"{error} (not built: {reason})" if reason else str(error)


def build_record() -> dict[str, Any]:
    """What setup.py recorded about the native module; empty if it recorded nothing."""
    record = Path(__file__).parent.with_name("_build_info.json")
    return json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}


def load_all() -> tuple[Backend, ...]:
    """Every backend, in the order of preference."""
    return tuple(load(name) for name in BACKENDS)
