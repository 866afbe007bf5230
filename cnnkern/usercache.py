"""What was measured on this machine, kept as JSON in the user's cache folder.

A cache may be missing, torn, of another machine or read-only at any time, and no call may fail for it: reading then
gives nothing, writing does nothing, and one line of the log says so.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import sys
import zlib
from pathlib import Path
from typing import Any

from .config import cache_dir

log = logging.getLogger("cnnkern")

# Instruction sets that kernels are chosen by, as Linux names them.
_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"),
    *("asimd", "sve"),
)
_said: set[str] = set()


def say_once(text: str) -> None:
    """Log a warning, the first time only."""
    if text not in _said:
        _said.add(text)
        log.warning(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cpu() -> dict[str, str]:
    """/proc/cpuinfo of the first CPU; empty where there is none."""
    found = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:  # not read whole: it has a paragraph per CPU
                key, _, value = line.partition(":")
                if not key.strip():
                    break
                found[key.strip()] = value.strip()
    except OSError:
        pass
    return found


@functools.cache
def cache_bytes() -> dict[str, int]:
    """Bytes of this machine's data caches by name ("L1", "L2", "L3"); empty where the system does not say."""
    sizes = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size, kind = _read(folder / "size"), _read(folder / "type")
        if size[:-1].isdecimal() and size[-1] in "KM" and kind in ("Data", "Unified"):
            sizes[f"L{_read(folder / 'level')}"] = int(size[:-1]) << (10 if size[-1] == "K" else 20)
    return sizes


@functools.cache
def fingerprint() -> dict[str, Any]:
    """What must be equal for measurements to hold: CPU, instruction sets, caches, version of this package."""
    cpu = _cpu()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    names = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision")
    return {
        "cpu": [platform.machine(), *(cpu[name] for name in names if name in cpu)] if cpu else [platform.processor()],
        "sets": [flag for flag in _FLAGS if flag in flags],
        "caches": cache_bytes(),
        "cnnkern": sys.modules[__package__].__version__,
    }


class UserFile:
    """One JSON file: what it says of itself (``owner``, compared when it is read) and its content.

    Attributes:
        kind: the beginning of its name; the rest is a checksum of ``owner``, so that a home shared by several machines
            holds a file for each.
        owner: what the content belongs to.
    """

    def __init__(self, kind: str, owner: dict[str, Any]) -> None:
        self.kind = kind
        self.owner = owner

    def path(self) -> Path:
        """Where it lies.

        Raises:
            RuntimeError: this user has no home.
        """
        text = json.dumps(self.owner, sort_keys=True)
        return cache_dir() / f"{self.kind}-{zlib.crc32(text.encode()):08x}.json"

    def read(self) -> dict[str, Any]:
        """The content; empty if there is no such file, or none that can be used."""
        path: Path | None = None
        try:
            path = self.path()
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, RuntimeError, ValueError) as error:  # unreadable, no home, torn
            say_once(f"{path or 'the cache folder'} is ignored: {error}")
            return {}
        content = found.get("content") if isinstance(found, dict) and found.get("owner") == self.owner else None
        if not isinstance(content, dict):
            say_once(f"{path} is ignored: it was not written by this version of cnnkern on this machine")
            return {}
        return content

    def write(self, content: dict[str, Any]) -> Path | None:
        """Replace the file as a whole, so that other processes read the old or the new one; None: not possible."""
        import tempfile  # on use: it costs a millisecond of import

        temporary = None
        try:
            path = self.path()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            with open(number, "w", encoding="utf-8") as file:
                json.dump({"owner": self.owner, "content": content}, file, indent=1)
            os.replace(temporary, path)
            return path
        except (OSError, RuntimeError) as error:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)
            say_once(f"what was measured is not kept for later processes: {error}")
            return None
