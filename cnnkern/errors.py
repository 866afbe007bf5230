"""The exceptions of the library. Every message names op, argument, value, rule and fix; ``show`` writes the value."""

from __future__ import annotations

import numbers
from typing import Any


class ArgumentError(ValueError):
    """A value is wrong by itself: a stride of 0, an unknown layout."""


class ShapeError(ValueError):
    """Values do not fit together, or a size overflows."""


class DTypeError(TypeError):
    """A data type that the op does not take, or types that do not go together."""


class NoKernelError(RuntimeError):
    """The request is legal but no kernel serves it; the message lists every kernel's sentence."""


def show(value: Any, depth: int = 0) -> str:
    """The value as a message shows it: short, and safe for objects whose repr is long, slow or raises."""
    if type(value) is int and value.bit_length() > 128:  # Python refuses to print ints of more than 4300 digits
        return f"an int of {value.bit_length()} bits"
    if value is None or type(value) in (int, bool, float, str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    kind = type(value)
    if kind.__module__ == "numpy" and (issubclass(kind, numbers.Real) or kind.__name__ in ("bool", "bool_")):
        return str(value)
    if type(value) in (tuple, list) and len(value) <= 8 and depth < 2:
        inside = ", ".join(show(item, depth + 1) for item in value)
        if type(value) is list:
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) in (tuple, list):
        return f"a {type(value).__name__} of {len(value)} items"
    return f"an object of type {type(value).__name__}"
