"""The slow path of a public function: check everything, build the Call, let plan.py choose and run.

A public function asks ``plan.lookup`` with its bare arguments first. Only what that does not know comes here: the first
call with some shapes, arrays of other libraries, input without the batch axis, and every mistake.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import plan
from ..arrays import as_ndarray, as_writable, result_wrapper
from ..config import PRECISIONS, current
from ..errors import ArgumentError, DTypeError, ShapeError
from ..plan import MISS
from ..spec import DTYPES, OPS, SHORT_DTYPES, Geometry, Request
from ..spec.arguments import (
    LIMIT,
    axes,
    axis_letters,
    choice,
    integer,
    is_integer,
    is_sequence,
    layout_name,
    listed,
    show,
)
from .assembly import Assembly, Named, unlike

FLOATS = ("f32", "f64", "f16", "bf16")
INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
BOOL = ("bool",)

Work = tuple[Request, Sequence[Named]]  # a table op with its inputs, in operand order


def slow_path(
    arrays: tuple[str, ...], optional: tuple[str, ...] = (), written: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Make ``body(invocation, *arguments)`` the slow path of public functions; it then sees plain ndarrays only.

    Args:
        arrays: the body's parameters that must be arrays. The first one's library receives the results.
        optional: array parameters that may be None.
        written: array parameters that may be None and that the call may write: the caller sees what is written.

    Returns:
        A decorator. The decorated body is called as ``body(rank, op, *arguments)``; ``(op, *arguments)`` is the key
        that ``plan.lookup`` was asked with.
    """

    def decorate(body: Callable) -> Callable:
        parameters = body.__code__.co_varnames[: body.__code__.co_argcount]  # the invocation stands where the op does
        places = {i: name for i, name in enumerate(parameters) if name in (*arrays, *optional, *written)}

        @functools.wraps(body)
        def run(rank: int, *key: Any) -> Any:
            op = key[0]
            adopted = list(key)
            views = {}
            for place, name in places.items():
                if key[place] is None and name not in arrays:
                    continue
                if name in written:
                    adopted[place], views[place] = as_writable(op, name, key[place])
                else:
                    adopted[place] = as_ndarray(op, name, key[place])
            plain = tuple(value if type(value) in _PLAIN else _plain(value) for value in adopted)
            result = MISS if all(new is old for new, old in zip(plain, key)) else plan.lookup(*plain)
            if result is MISS:
                result = body(Invocation(rank, plain, parameters), *adopted[1:])
            for place, view in views.items():
                if view is not adopted[place] and view.flags.writeable:
                    np.copyto(view, adopted[place])
            written_arrays = [(adopted[place], key[place]) for place in views]
            return _give_back(result, result_wrapper(key[min(places)]), written_arrays)

        return run

    return decorate


_PLAIN = frozenset((np.ndarray, int, str, bool, float, type(None)))


def _plain(value: Any, depth: int = 0) -> Any:
    """The argument as the fast path can know it: lists as tuples, NumPy's numbers as Python's."""
    if isinstance(value, (tuple, list)) and len(value) <= 8 and depth < 2:
        items = tuple(_plain(item, depth + 1) for item in value)
        return value if type(value) is tuple and all(map(operator.is_, items, value)) else items
    if isinstance(value, np.generic):
        return value.item()
    return value


def _give_back(result: Any, wrap: Callable | None, written: list[tuple[np.ndarray, Any]]) -> Any:
    """Results in the caller's library; an array that the caller gave to be written comes back as the very object."""
    if isinstance(result, tuple):
        return tuple(_give_back(item, wrap, written) for item in result)
    for array, original in written:
        if result is array:
            return original
    return result if wrap is None or result is None else wrap(result)


def again(body: Callable, call: Invocation, old: np.ndarray, new: np.ndarray) -> Any:
    """The whole call once more, fast path first, with one of its arrays converted."""
    assert call.key is not None
    key = tuple(new if value is old else value for value in call.key)
    result = plan.lookup(*key)
    return body(call.rank, *key) if result is MISS else result


class Invocation:
    """One call of a public function: its name, its spatial rank, and how its arrays are laid out."""

    def __init__(self, rank: int, key: tuple, parameters: tuple[str, ...] = ()) -> None:
        self.op: str = key[0]
        self.rank = rank
        self.key: tuple | None = key  # what plan.lookup is asked with; None: the call is not to be remembered
        self.parameters = parameters  # the name of each item of the key
        self.layout = "NCHW"
        self.batched = True

    def map_shape(self, name: str, shape: tuple[int, ...], layout: Any) -> tuple[int, ...]:
        """Logical shape (batch, channels, spatial...) of an array in ``layout``; notes whether it has a batch."""
        self.layout = layout_name(self.op, layout, self.rank)
        if len(shape) not in (self.rank + 1, self.rank + 2):
            letters = axis_letters(self.rank, self.layout)
            raise ShapeError(
                f"{self.op}: {name} must have {self.rank + 2} axes ({letters}), or {self.rank + 1} without the batch,"
                f" got {len(shape)} (shape {shape})."
            )
        self.batched = len(shape) == self.rank + 2
        return self._logical(name, shape if self.batched else (1, *shape))

    def channel_map_shape(self, name: str, shape: tuple[int, ...], layout: Any) -> tuple[int, ...]:
        """The same for ops of any rank whose input always has a batch axis; sets the rank."""
        if not 2 <= len(shape) <= 5:
            raise ShapeError(
                f"{self.op}: {name} must have 2 to 5 axes (batch, channels and up to 3 more), got {len(shape)}"
                f" (shape {shape})."
            )
        self.rank = len(shape) - 2
        self.layout = layout_name(self.op, layout, self.rank)
        return self._logical(name, shape)

    def _logical(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        self.check_extents(name, shape)
        return (shape[0], shape[-1], *shape[1:-1]) if self.layout == "NHWC" else shape

    def weight_shape(self, shape: tuple[int, ...], first: str) -> tuple[int, ...]:
        """The shape of a kernel's weights, which has two axes (named by ``first``) before the spatial ones."""
        if len(shape) != self.rank + 2:
            raise ShapeError(
                f"{self.op}: weight must have {self.rank + 2} axes ({first}, then the kernel's {axes(self.rank)}),"
                f" got {len(shape)} (shape {shape})."
            )
        self.check_extents("weight", shape)
        return shape

    def check_map(self, name: str, array: np.ndarray, logical: tuple[int, ...]) -> None:
        """The array must have this logical shape, in the call's layout and with a batch axis if the call has one."""
        shape = (logical[0], *logical[2:], logical[1]) if self.layout == "NHWC" else logical
        shape = shape if self.batched else shape[1:]
        if array.shape != shape:
            raise ShapeError(f"{self.op}: {name} must have shape {shape}, got {array.shape}.")

    def check_extents(self, name: str, shape: tuple[int, ...]) -> None:
        if max(shape, default=0) >= LIMIT:
            raise ShapeError(f"{self.op}: each axis of {name} must be shorter than 2**31, got shape {shape}.")

    def shape_of_maps(self, name: str, value: Any, layout: Any) -> tuple[int, ...]:
        """``map_shape`` of a shape that the caller wrote."""
        shape = self.shape_argument(name, value)
        logical = self.map_shape(name, shape, layout)
        if (
            not self.batched and self.key is not None and name in self.parameters
        ):  # the plan is remembered for arrays with a batch axis
            place = self.parameters.index(name)
            self.key = (*self.key[:place], (1, *shape), *self.key[place + 1 :])
        return logical

    def shape_argument(self, name: str, value: Any) -> tuple[int, ...]:
        """A shape that the caller wrote as a tuple or list."""
        if not is_sequence(value) or len(value) > 8 or not all(map(is_integer, value)):
            raise ArgumentError(f"{self.op}: {name} must be a shape, a tuple of ints, got {show(value)}.")
        return tuple(integer(self.op, name, extent, 0, value) for extent in value)

    def dtype(self, name: str, array: np.ndarray, allowed: tuple[str, ...]) -> str:
        """Short name of the array's dtype, which must be one of these."""
        short = SHORT_DTYPES.get(array.dtype.name)
        if short not in allowed:
            names = [DTYPES[dtype] for dtype in allowed]
            raise DTypeError(
                f"{self.op}: {name} must be {listed(names)}, got {array.dtype}."
                f' Convert it: {name}.astype("{names[0]}").'
            )
        return short

    def same_dtype(self, allowed: tuple[str, ...], **arrays: np.ndarray) -> str:
        """Short name of the one dtype that these arrays have."""
        (main, first), *others = arrays.items()
        dtype = self.dtype(main, first, allowed)
        for name, array in others:
            if array.dtype != first.dtype:
                raise unlike(self.op, main, first.dtype, name, array.dtype)
        return dtype

    def precision(self, value: Any) -> str:
        """The argument if given, else this thread's setting."""
        return choice(self.op, "precision", value, (None, *PRECISIONS)) or current().precision

    def request(self, op: str, geometry: Geometry, dtype: str, precision: str | None = None, **options: Any) -> Request:
        """A request for table op ``op``; options equal to their default are left out, so that equal calls are equal."""
        precision = precision or current().precision
        if dtype not in ("f32", "f16", "bf16") and precision != "strict":
            precision = "f32"  # float64 and integers have one way of computing, whatever looseness is allowed
        defaults = OPS[op].options
        changed = tuple(sorted((name, value) for name, value in options.items() if value != defaults[name]))
        return Request(op, geometry, dtype, self.layout, precision, "cpu", changed)

    def run(self, *work: Work | None, out: np.ndarray | None = None) -> Any:
        """Check the arrays against their requests and run them in one Call.

        Args:
            work: table ops in order; None leaves a None in the results.
            out: where the first output goes, or None.

        Returns:
            The outputs in order; not in a tuple if there is but one.
        """
        assembly = Assembly(self)
        for item in work:
            if item is None:
                assembly.returns.append(None)
            else:
                assembly.add(*item, out)
                out = None
        return assembly.run()
