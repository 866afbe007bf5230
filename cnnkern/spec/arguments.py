"""Checks of single arguments: each turns what the caller wrote into plain ints, floats, bools and strings, or raises.

Every function takes the public op's name and the argument's name first, because both stand in every message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np

from ..errors import ArgumentError, ShapeError, show

LIMIT = 2**31  # every extent and parameter stays below it, so that a product of two of them fits in 64 bits

_AXIS_LETTERS = {0: "", 1: "W", 2: "HW", 3: "DHW"}
AXIS_NAMES = {1: ("positions",), 2: ("rows", "columns"), 3: ("planes", "rows", "columns")}


def is_integer(value: Any) -> bool:
    """Whether this is a whole number that is not a bool: int or a NumPy integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (tuple, list))


def integer(op: str, name: str, value: Any, least: int, shown: Any = None) -> int:
    """An int from ``least`` and below ``LIMIT``. ``shown``: the whole argument, where value is one part of it."""
    shown = value if shown is None else shown
    if not is_integer(value):
        raise ArgumentError(f"{op}: {name} must be an int, got {show(shown)}.")
    value = int(value)
    if value < least:
        raise ArgumentError(f"{op}: {name} must be >= {least}, got {show(shown)}.")
    if value >= LIMIT:
        raise ShapeError(f"{op}: {name} must be below 2**31, got {show(shown)}.")
    return value


def per_axis(op: str, name: str, value: Any, rank: int, least: int) -> tuple[int, ...]:
    """One int for all axes, or a tuple or list of one int per axis."""
    if is_integer(value):
        return (integer(op, name, value, least),) * rank
    if not is_sequence(value) or not all(is_integer(item) for item in value):
        raise ArgumentError(f"{op}: {name} must be one int or one int per axis, got {show(value)}.")
    if len(value) != rank:
        raise ArgumentError(
            f"{op}: {name} must be one int or one int per axis, got the {count_of(value)} {show(value)} for"
            f" {axes(rank)}."
        )
    return tuple(integer(op, name, item, least, value) for item in value)


def listed(options: Iterable[str]) -> str:
    """ "a, b or c"."""
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last


def count_of(values: Sequence) -> str:
    return f"{len(values)} value{'s' * (len(values) != 1)}"


def axes(rank: int) -> str:
    return "1 axis" if rank == 1 else f"{rank} axes"


def flag(op: str, name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{op}: {name} must be True or False, got {show(value)}.")
    return bool(value)


def choice(op: str, name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """One of a few strings (or None, where that is allowed)."""
    if not (value is None or isinstance(value, (str, bool))) or value not in allowed:
        raise ArgumentError(f"{op}: {name} must be {listed(map(repr, allowed))}, got {show(value)}.")
    return value


def real(op: str, name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number between ``least`` and ``most``, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ArgumentError(f"{op}: {name} must be a number, got {show(value)}.")
    try:
        number = float(value)
    except OverflowError:  # an int beyond the range of a double
        number = math.inf
    if not math.isfinite(number):
        raise ArgumentError(f"{op}: {name} must be finite, got {show(value)}.")
    if not least <= number <= most:
        rule = f"between {least:g} and {most:g}" if math.isfinite(most) else f">= {least:g}"
        raise ArgumentError(f"{op}: {name} must be {rule}, got {show(value)}.")
    return number


def layout_name(op: str, value: Any, rank: int) -> str:
    """``"NCHW"`` or ``"NHWC"`` from these names or their 1d and 3d forms."""
    letters = _AXIS_LETTERS[rank]
    names = {"NCHW": "NCHW", "NHWC": "NHWC", f"NC{letters}": "NCHW", f"N{letters}C": "NHWC"}
    if not isinstance(value, str) or value not in names:
        raise ArgumentError(f"{op}: layout must be 'NCHW' or 'NHWC', got {show(value)}.")
    return names[value]


def axis_letters(rank: int, layout: str) -> str:
    """Names of the axes of a batch, for messages: "N, C, H, W"."""
    letters = _AXIS_LETTERS[rank]
    return ", ".join(f"N{letters}C" if layout == "NHWC" else f"NC{letters}")
