"""The rows that run on matrix tiles, over the portable model of the tile unit: built here, driven through ctypes.

``rows()`` compiles ``tests/native/split_model.cpp`` once and gives its table. A ``ModelRow`` runs on arrays between
guards, with a workspace between guards and full of NaN, on any number of threads.

``rows(code=True)`` gives the same rows compiled to the instructions of AMX. ``executed()`` makes them run: where the
CPU has none, ``tests/native/tile_trap.cpp`` computes each of them in a signal handler, at 8 us or so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnkern.spec import OPS, PRECISIONS, Request
from matrix import AVAILABLE
from oracle import MEMORY, Target, place

ROOT = Path(__file__).resolve().parent.parent
FLAGS = (
    *("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fno-trapping-math"),
    *("-fPIC", "-shared", "-pthread", "-w"),
)
CODE_FLAGS = (  # of target_amx.cpp in setup.py
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"),
    *("-mamx-tile", "-mamx-bf16", "-DCK_TILE_CODE"),
)
COMPILER = os.environ.get("CXX", "g++")
GUARD = 4096  # bytes before and after what a row may write

needs_compiler = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"the compiler {COMPILER} is not on PATH")


class _Row(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_char_p) for name in ("op", "algorithm", "isa", "dtype", "family")),
        ("operands", ctypes.c_int32),
        ("precision", ctypes.c_char_p),
        *((name, ctypes.c_void_p) for name in ("workspace", "run", "why_not", "packed_size", "pack")),
    ]


class _Table(ctypes.Structure):
    _fields_ = [("isa", ctypes.c_char_p), ("count", ctypes.c_int), ("rows", ctypes.POINTER(_Row))]


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("stride", ctypes.c_int64 * 5)]


class _Exec(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_size_t),
        ("packed", ctypes.c_void_p),
        ("poll", ctypes.c_void_p),
        ("poll_arg", ctypes.c_void_p),
        ("bad_index", ctypes.c_int64),
        ("bad_place", ctypes.c_int64),
    ]


POINTER = ctypes.c_void_p
_PARAMS = ctypes.c_char_p
_WORKSPACE = ctypes.CFUNCTYPE(ctypes.c_size_t, _PARAMS, ctypes.c_int)
_RUN = ctypes.CFUNCTYPE(ctypes.c_int, _PARAMS, ctypes.POINTER(_Tensor), ctypes.POINTER(_Exec))
_WHY_NOT = ctypes.CFUNCTYPE(ctypes.c_char_p, _PARAMS)
_SIZE = ctypes.CFUNCTYPE(ctypes.c_size_t, _PARAMS)
_PACK = ctypes.CFUNCTYPE(ctypes.c_int, _PARAMS, ctypes.POINTER(_Tensor), ctypes.c_void_p, ctypes.POINTER(_Exec))


@functools.cache
def build(code: bool) -> ctypes.CDLL | str:
    """The library, or what the compiler said: it is asked once."""
    names = ["tests/native/split_model.cpp", "csrc/cpu/parallel.cpp", *(["tests/native/tile_trap.cpp"] if code else [])]
    with tempfile.TemporaryDirectory(prefix="cnnkern-tile-model-") as folder:
        built = str(Path(folder, "model.so"))
        command = [COMPILER, *FLAGS, f"-I{ROOT / 'csrc'}", *(str(ROOT / name) for name in names), "-o", built]
        for flags in [CODE_FLAGS] if code else [["-march=native"], []]:
            done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return ctypes.CDLL(built)
        return done.stderr


def library(code: bool = False) -> ctypes.CDLL:
    built = build(code)
    assert isinstance(built, ctypes.CDLL), built
    return built


def set_cache_bytes(count: int) -> None:
    """How large the model is told that the second-level cache is: it decides where strips are cut."""
    library().set_l2_bytes(ctypes.c_int64(count))


@contextlib.contextmanager
def executed() -> Iterator[None]:
    """Within, the instructions of AMX run on any CPU with AVX-512."""
    if "amx" in AVAILABLE:
        yield
        return
    library(code=True).trap_tiles()
    try:
        yield
    finally:
        library(code=True).untrap_tiles()


class _Room:
    """Bytes between guard words, aligned to a cache line and full of NaN."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size + 2 * GUARD + 64, 0xFF, np.uint8)
        start = GUARD + -(self.bytes.ctypes.data + GUARD) % 64
        self.address = self.bytes.ctypes.data + start
        self.inside = slice(start, start + size)

    def check(self, what: str) -> None:
        outside = np.delete(self.bytes, self.inside)
        assert (outside == 0xFF).all(), f"wrote outside the {what}"


@dataclass(frozen=True)
class ModelRow:
    """A row of the model's table."""

    op: str
    algorithm: str
    precision: str
    _row: Any

    def __str__(self) -> str:
        return f"{self.op}.{self.algorithm}"

    def why_not(self, request: Request) -> str | None:
        sentence = _WHY_NOT(self._row.why_not)(_params(request))
        return None if sentence is None else sentence.decode()

    def packed_size(self, request: Request) -> int:
        """Bytes; 0 for a row that packs nothing."""
        return 0 if not self._row.pack else _SIZE(self._row.packed_size)(_params(request))

    def workspace(self, request: Request, threads: int) -> int:
        return _WORKSPACE(self._row.workspace)(_params(request), threads)

    def run(
        self, request: Request, inputs: tuple, order: str = "dense", threads: int = 1, packed: bool = False
    ) -> np.ndarray:
        """The output, in the layout's axes; ``packed``: weights packed by a call before."""
        spec, params = OPS[request.op], _params(request)
        orders = itertools.cycle(MEMORY if order == "mixed" else (order,))
        placed = [None if a is None else place(a, next(orders)) for a in inputs]
        target = Target(spec.outputs[0].array_shape(request), spec.outputs[0].array_dtype(request), next(orders))
        tensors = (_Tensor * self._row.operands)()
        for i, (operand, array) in enumerate(zip((*spec.inputs, *spec.outputs), [*placed, target.array], strict=True)):
            if array is not None:
                tensors[i].data = array.ctypes.data
                tensors[i].stride[:] = _strides(operand, request, array)
        scratch = _Room(self.workspace(request, threads))
        call = _Exec(ctypes.sizeof(_Exec), threads, scratch.address, scratch.inside.stop - scratch.inside.start)
        packed = packed and bool(self._row.pack)
        weights = _Room(self.packed_size(request) if packed else 0)
        if packed:
            without = _Exec(ctypes.sizeof(_Exec), threads)
            status = _PACK(self._row.pack)(params, ctypes.byref(tensors[1]), weights.address, ctypes.byref(without))
            assert status == 0
            call.packed = weights.address
        status = _RUN(self._row.run)(params, tensors, ctypes.byref(call))
        assert status == 0, f"status {status}"
        scratch.check("workspace")
        weights.check("packed weights")
        assert target.damage() is None, target.damage()
        return target.array.copy()


def _params(request: Request) -> bytes:
    from cnnkern.backends import cpp

    return cpp.params(request)


def _strides(operand: Any, request: Request, array: np.ndarray) -> list[int]:
    from cnnkern.backends import cpp

    return cpp._strides(operand, request, array, array.shape, array.itemsize)


@functools.cache
def rows(code: bool = False) -> tuple[ModelRow, ...]:
    table = _Table.in_dll(library(code), "ck_table_model")
    found = [table.rows[i] for i in range(table.count)]
    names = [(row.op.decode(), row.algorithm.decode(), row.precision.decode(), row) for row in found]
    assert all(row.dtype == b"f32" for row in found) and {name[2] for name in names} <= set(PRECISIONS)
    return tuple(ModelRow(*name) for name in names)
