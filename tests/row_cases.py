"""Cases for tests/native/row_runner.cpp: single rows run through the C interface alone, where there is no Python.

A case is a sample of ``samples.py`` in arrays of ``oracle.py``: guard words around outputs, NaN around inputs and in
the outputs, any order in memory. The runner maps the file and calls read and write it in place; afterwards every byte
of a case is known here, and ``Case.failure`` compares it with the reference as the tests of the module do, and looks at
what the module's tests cannot see: guard words around workspace and packed weights, and inputs that were changed.
"""

from __future__ import annotations

import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np

from bounds import Arrays, Bound
from cnnkern.spec import OPS, PRECISIONS, Request
from oracle import MEMORY, Target, allowed_of, differs, place
from samples import SEED, label

# The runner's struct Case: size, bytes; row; threads, packs_before, params, operands; operands; what came of it.
_OPERAND = "6q"
_MOST_OPERANDS = 10
_HEAD = struct.Struct(f"=2q64s4q{_OPERAND * _MOST_OPERANDS}4q")
_OUTCOME = struct.Struct("=4q")
_ABSENT = -1
_ALIGNMENT = 64
_PATIENCE = 300  # seconds for a file of cases

NOT_RUN, REFUSED = -1, -2
_STATUS = {
    NOT_RUN: "the runner ended before it",
    REFUSED: "the row cannot serve this",
    -3: "the runner has no such row for this CPU",
    -4: "the row takes another number of operands",
    1: "cancelled",
    2: "a params struct of another version",
    3: "the workspace that the row asked for is too small",
    4: "index {} at place {} lies outside its plane",
    5: "label {} at place {} lies outside the classes",
}
_DAMAGE = {
    1: "bytes outside the workspace were written",
    2: "bytes outside the packed weights were written",
    4: "packed weights were changed by the call",
}


@dataclass(frozen=True)
class Row:
    """A row of the C table, as the runner lists it."""

    op: str
    algorithm: str
    isa: str
    dtype: str
    precisions: tuple[str, ...]
    packs: bool

    @property
    def name(self) -> str:
        return f"{self.op}.{self.algorithm}.{self.isa}.{self.dtype}"


@dataclass
class Case:
    """One call of one row. ``inputs`` and ``expected`` have None where an optional operand is absent."""

    row: Row
    request: Request
    inputs: Arrays
    expected: Arrays
    exact: tuple[Bound, ...]  # what a row may be off that sums plain products
    what: str  # kind of values, for a failure
    order: str = "dense"
    threads: int = 1
    packs_before: bool = False
    status: int = field(default=NOT_RUN, init=False)
    bad: tuple[int, int] = field(default=(0, 0), init=False)  # value and place that the kernel complains about
    damage: int = field(default=0, init=False)
    changed: str | None = field(default=None, init=False)  # an input that is not as it was
    size: int = field(default=0, init=False)  # in bytes

    def __post_init__(self) -> None:
        orders = cycle(MEMORY if self.order == "mixed" else (self.order,))
        outputs = [o for o in OPS[self.row.op].outputs if o.present(self.request)]
        self._read = [None if a is None else place(a, next(orders)) for a in self.inputs]
        self._targets = [
            Target(o.array_shape(self.request), o.array_dtype(self.request), next(orders)) for o in outputs
        ]
        self._places: list[int | None] = []  # of the operands' buffers in the case's bytes

    @property
    def outputs(self) -> Arrays:
        """What the row left in its outputs."""
        targets = iter(self._targets)
        return tuple(next(targets).array if o.present(self.request) else None for o in OPS[self.row.op].outputs)

    # ---- the file

    def to_bytes(self) -> bytes:
        """Head, params, and the whole buffer of each operand, each piece aligned."""
        from cnnkern.backends import cpp  # needs the compiled module, which an installation may lack

        arrays = (*self._read, *self.outputs)
        slots = [None if a is None else i for i, a in enumerate(arrays)]
        bound = cpp.NativeStep(0, self.request).operands(slots, arrays, [None] * len(arrays))
        pieces = [_padded(bytes(_HEAD.size)), _padded(cpp.params(self.request))]
        self._places = []
        words = []
        for array, (_, _, strides) in zip(arrays, bound, strict=True):
            at = sum(map(len, pieces))
            self._places.append(None if array is None else at)
            if array is None:
                words += [_ABSENT, *strides]
                continue
            buffer = _buffer(array)
            words += [at + _address(array) - _address(buffer), *strides]
            pieces.append(_padded(buffer.tobytes()))
        words += [0] * (6 * (_MOST_OPERANDS - len(arrays)))
        self.size = sum(map(len, pieces))
        head = _HEAD.pack(
            *(_HEAD.size, self.size, self.row.name.encode()),
            *(self.threads, self.packs_before, len(pieces[0]), len(arrays)),
            *words,
            *(NOT_RUN, 0, 0, 0),
        )
        return b"".join([_padded(head), *pieces[1:]])

    def take(self, data: memoryview) -> None:
        """Read the outcome from the front of ``data``."""
        self.status, value, at, self.damage = _OUTCOME.unpack_from(data, _HEAD.size - _OUTCOME.size)
        self.bad = value, at
        self.changed = None
        for number, (array, begin) in enumerate(zip((*self._read, *self.outputs), self._places, strict=True)):
            if array is None or begin is None:
                continue
            buffer = _buffer(array)
            left = data[begin : begin + buffer.nbytes]
            if number >= len(self._read):
                buffer.reshape(-1).view(np.uint8)[...] = np.frombuffer(left, np.uint8)
            elif left != buffer.tobytes():
                self.changed = OPS[self.row.op].inputs[number].name

    # ---- the judgement

    def failure(self) -> str | None:
        """None, or the line that says what is wrong."""
        text = self._wrong()
        return text and f"{self}: {text}"

    def __str__(self) -> str:
        packed = ", packed before" if self.packs_before else ""
        how = f"{self.order} arrays of {self.what}, {self.threads} threads{packed}, CNNKERN_SEED={SEED}"
        return f"{self.row.name} on {label(self.request)} ({how})"

    def _wrong(self) -> str | None:
        if self.status != 0:
            return _STATUS.get(self.status, f"status {self.status}").format(*self.bad)
        damage = [text for bit, text in _DAMAGE.items() if self.damage & bit]
        damage += [f"the input {self.changed} was changed"] if self.changed else []
        damage += [text for text in (target.damage() for target in self._targets) if text]
        if damage:
            return "; ".join(damage)
        allowed = allowed_of(self.row, self.request, self.inputs, self.expected, self.exact)
        for operand, got, want, bound in zip(
            OPS[self.row.op].outputs, self.outputs, self.expected, allowed, strict=True
        ):
            if got is not None and got.dtype.kind == "b" and (got.view(np.uint8) > 1).any():
                return f"{operand.name}: a bool is neither 0 nor 1"
            difference = differs(got, want, bound)
            if difference:
                return f"{operand.name}: {difference}"
        return None


def _buffer(array: np.ndarray) -> np.ndarray:
    """The whole memory that a view looks into."""
    while array.base is not None:
        array = array.base
    return array


def _address(array: np.ndarray) -> int:
    """Of the first element."""
    return array.__array_interface__["data"][0]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


class Runner:
    """A built row_runner, by the words of its command: an emulator may stand first."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def rows(self) -> list[Row]:
        """The rows that this runner has for its CPU."""
        listed = subprocess.run([*self.command, "list"], capture_output=True, text=True, check=True).stdout
        rows = []
        for line in listed.splitlines():
            op, algorithm, isa, dtype, operands, precision, packs, missing = line.split(" ", 7)
            assert int(operands) == len(OPS[op].inputs) + len(OPS[op].outputs), f"operands of {op} differ: build again"
            if not missing:
                levels = PRECISIONS[PRECISIONS.index(precision) :]  # the tightest that it keeps, and all looser ones
                rows.append(Row(op, algorithm, isa, dtype, levels, packs == "1"))
        return rows

    def run(self, cases: Sequence[Case]) -> str | None:
        """Run these cases, which then know their outcome. None, or how the runner ended if not well."""
        with tempfile.NamedTemporaryFile(suffix=".cases") as file:
            for case in cases:
                file.write(case.to_bytes())
            file.flush()
            ended = self._end(file.name)
            data = memoryview(Path(file.name).read_bytes())
        for case in cases:
            case.take(data)
            data = data[case.size :]
        return ended

    def _end(self, path: str) -> str | None:
        try:
            done = subprocess.run([*self.command, path], capture_output=True, text=True, check=False, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"the runner did not end in {_PATIENCE} seconds"
        if done.returncode == 0:
            return None
        status = -done.returncode
        how = signal.Signals(status).name if status > 0 else f"status {done.returncode}"
        return " ".join(["the runner ended with", how, *done.stderr.split()])
