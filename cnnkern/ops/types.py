"""Names for the types in public signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Array = Any  # NumPy, or __array_interface__, __dlpack__, the buffer protocol or __array__; see cnnkern/arrays.py
Shape = Sequence[int]
Size = int | Sequence[int]  # one int for all axes, or one per axis
Padding = int | str | Sequence[int] | Sequence[Sequence[int]]
