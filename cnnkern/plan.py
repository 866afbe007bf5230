"""Plan apart from execution: a Call says which table ops run on which arrays; ``execute`` chooses rows and runs them.

The eager path asks ``lookup`` first, with the public function's own arguments as the key. Where every row of a call is
native, the whole call was stored under that key as one native program, so that a repeated call builds no Python object
but its result. Everything else takes the slow path below.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import config
from .backends import load
from .dispatch import Explanation, choose, explain_request
from .spec import Kernel, Request

MISS = NotImplemented
ALIGNMENT = 64  # bytes; also what JAX and DLPack consumers want for a transfer without copy


@dataclass(frozen=True, slots=True)
class Step:
    """One table op. Slots number the caller's arrays first, then the call's outputs; None: operand not there."""

    request: Request
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A result: a new array of ``shape`` and ``dtype``, or the caller's array in slot ``into``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    into: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Steps in order, on ``inputs`` arrays of the caller and ``outputs``. ``returns``: one slot, or a tuple of them."""

    steps: tuple[Step, ...]
    inputs: int
    outputs: tuple[Output, ...]
    returns: int | tuple[int | None, ...]


class _ThreadState(threading.local):
    rows: tuple[str, ...] = ()
    explanations: list[Explanation] | None = None


_state = _ThreadState()


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A new C-contiguous array whose first element lies on ``ALIGNMENT`` bytes."""
    dtype = np.dtype(dtype)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _first_lookup(*key: Any) -> Any:
    """Stands in for ``lookup`` until the first call: loads the native cache if there is one."""
    global lookup
    if load("cpp").reason is None:
        from .backends import cpp

        lookup = cpp.lookup
        return lookup(*key)
    lookup = _never
    return MISS


def _never(*key: Any) -> Any:
    return MISS


lookup: Callable[..., Any] = _first_lookup


def execute(call: Call, arrays: tuple[np.ndarray | None, ...], key: tuple | None = None) -> Any:
    """Choose a row for each step, run them, give back what ``call.returns`` names.

    Args:
        call: what to run.
        arrays: the caller's arrays, None where optional ones are absent; ``len(arrays) == call.inputs``.
        key: what ``lookup`` was called with. None: do not remember this call (its arrays were converted).
    """
    if _state.explanations is not None:
        _state.explanations.extend(explain_request(step.request) for step in call.steps)
        raise _Explained
    config.sync()
    kernels = tuple(choose(step.request) for step in call.steps)
    if kernels and all(kernel.backend == "cpp" for kernel in kernels):
        from .backends import cpp

        program = cpp.program(call, kernels, arrays)
        if key is not None:
            cpp.remember(program, arrays, key)
        return program.run(arrays)
    return run_rows(call, kernels, arrays)


def run_rows(call: Call, kernels: tuple[Kernel, ...], arrays: tuple[np.ndarray | None, ...]) -> Any:
    """Run the steps of a call on the given rows, one by one."""
    slots: list[np.ndarray | None] = list(arrays)
    for output in call.outputs:
        slots.append(empty(output.shape, output.dtype) if output.into is None else slots[output.into])
    for step, kernel in zip(call.steps, kernels):
        state = kernel.prepare(step.request, None)
        kernel.run(state, _pick(slots, step.inputs), _pick(slots, step.outputs))
    if kernels and kernels[0].backend != "cpp" and load("cpp").reason is None:
        from .backends import cpp

        cpp.forget_rows()
    _state.rows = tuple(f"{s.request.op}.{k.name}.{s.request.dtype}" for s, k in zip(call.steps, kernels))
    if isinstance(call.returns, tuple):
        return _pick(slots, call.returns)
    return slots[call.returns]


def runner(call: Call, kernel: Kernel, arrays: tuple[np.ndarray | None, ...]) -> Callable[[], Any]:
    """A function that runs a call of one step on these arrays again and again: what tuning times.

    A step of a plan (``prepacked``) has its weights packed here and not in the function.
    """
    if kernel.backend != "cpp":
        return functools.partial(run_rows, call, (kernel,), arrays)
    from .backends import cpp

    if call.steps[0].request.prepacked:
        return functools.partial(cpp.packed_program(call, kernel, arrays, None).run, arrays)
    return functools.partial(cpp.program(call, (kernel,), arrays).run, arrays)


class Prepared:
    """A row whose weights are packed once. Calls may differ in strides and in which optional operands are there."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._program: Any = None  # the first native program; the others share its packed weights
        self._cache: Any = None
        if kernel.backend == "cpp":
            from .backends import cpp

            self._cache = cpp.Cache()

    def pack(self, call: Call, arrays: tuple[np.ndarray | None, ...]) -> None:
        """Pack the weights that ``arrays`` hold; a row that does not pack reads them at each call."""
        if self._cache is not None:
            from .backends import cpp

            self._program = cpp.packed_program(call, self.kernel, arrays, None)

    def lookup(self, *key: Any) -> Any:
        """The result of a call remembered under an equal key, or MISS."""
        return MISS if self._cache is None else self._cache.lookup(*key)

    def run(self, call: Call, arrays: tuple[np.ndarray | None, ...], key: tuple) -> Any:
        """Run the call and remember it; arrays that are not in the key are the plan's own and stay in use."""
        if self._cache is None:
            return run_rows(call, (self.kernel,), arrays)
        from .backends import cpp

        program = cpp.packed_program(call, self.kernel, arrays, self._program)
        self._cache.remember(program, arrays, *key)
        return program.run(arrays)

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights."""
        return 0 if self._program is None else self._program.packed_bytes

    def workspace_bytes(self) -> int:
        """Scratch memory of one call with this thread's number of threads."""
        return 0 if self._program is None else self._program.workspace_bytes(config.get_num_threads())


def _pick(slots: list[np.ndarray | None], numbers: tuple[int | None, ...]) -> tuple:
    return tuple(None if n is None else slots[n] for n in numbers)


def last_rows() -> tuple[str, ...]:
    """Rows that this thread's last call ran: ``conv.cpp.direct.avx2.f32``. Native rows report themselves."""
    if load("cpp").reason is None:
        from .backends import cpp

        rows = cpp.last_rows()
        if rows:
            return rows
    return _state.rows


class _Explained(Exception):
    """Ends a public function whose requests are wanted instead of its result."""


@contextmanager
def explaining() -> Iterator[list[Explanation]]:
    """Inside the block, calls in this thread are explained instead of run."""
    found: list[Explanation] = []
    _state.explanations = found
    config.suspend(True)
    try:
        yield found
    except _Explained:
        pass
    finally:
        _state.explanations = None
        config.suspend(False)
