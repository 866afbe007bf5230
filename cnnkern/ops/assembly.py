"""From requests and the caller's arrays to one Call: slots, outputs, the check of every array, the batch axis."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plan
from ..arrays import overlaps_itself, shares_memory
from ..errors import ArgumentError, DTypeError, ShapeError
from ..spec import OPS, Operand, Request
from ..spec.shapes import BYTES_LIMIT

if TYPE_CHECKING:
    from .invocation import Invocation

Named = tuple[str, np.ndarray | None]  # an operand under the name that the public function gives it


def unlike(
    op: str, main: str, main_dtype: np.dtype, name: str, dtype: np.dtype, wanted: np.dtype | None = None
) -> DTypeError:
    """Two arrays whose dtypes do not go together. ``wanted``: what ``name`` should be, if not the main array's."""
    wanted = main_dtype if wanted is None else wanted
    if name == "out":
        return DTypeError(f"{op}: out must be {wanted} where {main} is {main_dtype}, got {dtype}.")
    if wanted == main_dtype:
        return DTypeError(
            f'{op}: {main} is {main_dtype} but {name} is {dtype}. Convert one: {name}.astype("{wanted}").'
        )
    return DTypeError(
        f"{op}: {name} must be {wanted} where {main} is {main_dtype}, got {dtype}."
        f' Convert it: {name}.astype("{wanted}").'
    )


class Assembly:
    """Slots and steps of a Call while its operands are checked. ``add`` table ops in order, then ``run``."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self.op = invocation.op
        self.names: list[str] = []
        self.arrays: list[np.ndarray] = []
        self.expanded: list[np.ndarray] = []  # with the batch axis that the caller left out
        self.steps: list[tuple[Request, list[int | None], list[int | None]]] = []  # outputs numbered from 0
        self.outputs: list[plan.Output] = []
        self.stripped: list[bool] = []  # outputs that lose the batch axis again
        self.returns: list[int | None] = []

    def add(self, request: Request, inputs: Sequence[Named], out: np.ndarray | None) -> None:
        spec = OPS[request.op]
        main = inputs[0]
        slots: list[int | None] = [None] * len(spec.inputs)  # operands at the end may be left out
        for number, (operand, (name, array)) in enumerate(zip(spec.inputs, inputs)):
            if array is not None:
                slots[number] = self._input(request, operand, name, array, main)
        numbers: list[int | None] = []
        for operand in spec.outputs:
            if not operand.present(request):
                numbers.append(None)
                continue
            into = None if out is None else self._out(request, operand, out)
            out = None
            shape, dtype = operand.array_shape(request), operand.array_dtype(request)
            self._check_bytes(operand.name, shape, dtype)
            numbers.append(len(self.outputs))
            self.outputs.append(plan.Output(shape, dtype, into))
            self.stripped.append(self._has_batch(request, operand))
        self.steps.append((request, slots, numbers))
        self.returns += [number for number in numbers if number is not None]

    def _has_batch(self, request: Request, operand: Operand) -> bool:
        return operand.map or request.op in ("unfold", "fold")

    def _shape(self, request: Request, operand: Operand) -> tuple[int, ...]:
        """What the caller's array must look like."""
        shape = operand.array_shape(request)
        return shape[1:] if self._has_batch(request, operand) and not self.invocation.batched else shape

    def _input(self, request: Request, operand: Operand, name: str, array: np.ndarray, main: Named) -> int:
        self._check(request, operand, name, array, main)
        return self._slot(request, operand, name, array)

    def _check(self, request: Request, operand: Operand, name: str, array: np.ndarray, main: Named) -> None:
        dtype = operand.array_dtype(request)
        if array.dtype != dtype:
            main_name, main_array = main
            assert main_array is not None
            raise unlike(self.op, main_name, main_array.dtype, name, array.dtype, dtype)
        shape = self._shape(request, operand)
        if array.shape != shape:
            raise ShapeError(f"{self.op}: {name} must have shape {shape}, got {array.shape}{self._beside(name)}.")
        self._check_bytes(name, shape, dtype)

    def _beside(self, name: str) -> str:
        """The arrays looked at so far, for the end of a message."""
        shapes = [f"{other} {array.shape}" for other, array in zip(self.names, self.arrays) if other != name]
        return f" ({', '.join(shapes)})" if shapes else ""

    def _check_bytes(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        size = _bytes(shape, dtype)
        if size >= BYTES_LIMIT:
            raise ShapeError(
                f"{self.op}: {name} of shape {shape} would have {size} bytes, the limit is 2**62 - 1. Make it smaller."
            )

    def _slot(self, request: Request, operand: Operand, name: str, array: np.ndarray) -> int:
        if name in self.names:
            return self.names.index(name)
        self.names.append(name)
        self.arrays.append(array)
        expand = self._has_batch(request, operand) and not self.invocation.batched
        self.expanded.append(array[None] if expand else array)
        return len(self.arrays) - 1

    def _out(self, request: Request, operand: Operand, out: np.ndarray) -> int:
        main = (self.names[0], self.arrays[0])
        self._check(request, operand, "out", out, main)
        if not out.flags.writeable:
            raise ArgumentError(f"{self.op}: out is read-only. Give an array that may be written.")
        if overlaps_itself(out):
            raise ArgumentError(f"{self.op}: out names some memory twice (strides {out.strides}). Give a plain array.")
        for name, array in zip(self.names, self.arrays):
            if shares_memory(out, array):
                raise ArgumentError(f"{self.op}: out may not overlap {name} in memory. Give an array of its own.")
        return self._slot(request, operand, "out", out)

    def run(self) -> Any:
        """Execute the Call and give back its outputs, without the batch axis if the caller's arrays have none."""
        if not self.steps:
            return tuple(self.returns)
        call = self.call()
        if self.invocation.batched:
            return plan.execute(call, tuple(self.arrays), self.invocation.key)
        return self._without_batch(call)

    def call(self) -> plan.Call:
        """The Call on ``arrays``."""
        self._check_memory()
        count = len(self.arrays)

        def shifted(numbers: Sequence[int | None]) -> tuple[int | None, ...]:
            return tuple(None if n is None else count + n for n in numbers)

        return plan.Call(
            tuple(plan.Step(request, tuple(inputs), shifted(outputs)) for request, inputs, outputs in self.steps),
            count,
            tuple(self.outputs),
            count if len(self.returns) == 1 else shifted(self.returns),
        )

    def _check_memory(self) -> None:
        fresh = sum(_bytes(output.shape, output.dtype) for output in self.outputs if output.into is None)
        if fresh > _memory_bytes():
            shapes = ", ".join(str(output.shape) for output in self.outputs)
            raise ShapeError(
                f"{self.op}: the result {shapes} needs {fresh} bytes, and this machine has {_memory_bytes()} in all."
            )

    def _without_batch(self, call: plan.Call) -> Any:
        """Run on views with a batch of one; the plan is remembered under those views."""
        views = {id(array): view for array, view in zip(self.arrays, self.expanded)}
        key = tuple(views.get(id(value), value) for value in self.invocation.key or ())
        result = plan.lookup(*key)
        if result is plan.MISS:
            result = plan.execute(call, tuple(self.expanded), key)
        if not isinstance(result, tuple):
            return self._strip(result, 0)
        return tuple(None if n is None else self._strip(item, n) for item, n in zip(result, self.returns))

    def _strip(self, result: np.ndarray, number: int) -> np.ndarray:
        into = self.outputs[number].into
        if into is not None:
            return self.arrays[into]
        return result[0] if self.stripped[number] else result


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array, counting an empty axis as 1: NumPy's own limit does so, and an empty batch of maps that could
    not exist is a mistake as well."""
    return prod(max(extent, 1) for extent in shape) * dtype.itemsize


@functools.cache
def _memory_bytes() -> int:
    """Physical memory. A larger result is a mistake in the arguments, and asking for it could stall the machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a Unix
        return BYTES_LIMIT
