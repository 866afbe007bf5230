"""Arrays that touch a page which may be neither read nor written: whoever steps over their edge dies on the spot.

Guard words find what is written outside an array, NaN finds what is read there and used; this finds what is only read.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
from collections.abc import Callable

import numpy as np

PAGE = mmap.PAGESIZE
END, BEGIN = "end", "begin"  # which edge of the array touches the page


class Arena:
    """Memory between two pages without access, for one array at a time. Reused: mapping costs more than a call."""

    def __init__(self, most: int = 1 << 22) -> None:
        """most: bytes of the largest array."""
        pages = -(-most // PAGE) * PAGE
        whole = np.frombuffer(mmap.mmap(-1, pages + 2 * PAGE), np.uint8)
        _take_access_away(whole[:PAGE])
        _take_access_away(whole[PAGE + pages :])
        self.bytes = whole[PAGE : PAGE + pages]

    def put(self, values: np.ndarray, edge: str) -> np.ndarray:
        """A C-contiguous copy that ends right before, or begins right after, a page without access."""
        start = 0 if edge == BEGIN else self.bytes.size - values.nbytes
        array = self.bytes[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        array[...] = values
        return array


def _take_access_away(page: np.ndarray) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page.ctypes.data), ctypes.c_size_t(page.nbytes), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect failed")


def in_child(body: Callable[[Callable[[str], None]], None], seconds: int = 120) -> str | None:
    """Run ``body(note)`` in a forked process. None if it ended well, else how it ended, after its last note."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            faulthandler.disable()  # the last note says more than its report of a crash
            signal.alarm(seconds)
            body(lambda text: os.write(writable, f"{text}\n".encode()) and None)
        finally:  # whatever happened, pytest must not go on in two processes
            error = sys.exc_info()[1]
            if error is not None:
                os.write(writable, f"{type(error).__name__}: {error}"[:4096].encode())
            os._exit(0 if error is None else 1)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        notes = pipe.read().decode().splitlines()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        return None
    ended = f"killed by {signal.Signals(status & 0x7F).name}" if status & 0x7F else "failed"
    return f"{ended}: {' '.join(notes[-2:])}"
