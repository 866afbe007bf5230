"""Request (what is asked, without arrays) and Kernel (one row of the table of kernels)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .geometry import (
    ChannelGeometry,
    ClassGeometry,
    ConvGeometry,
    PointwiseGeometry,
    PoolGeometry,
    ResizeGeometry,
)

Geometry = ConvGeometry | PoolGeometry | ResizeGeometry | ChannelGeometry | PointwiseGeometry | ClassGeometry

ISA_LEVELS = ("scalar", "avx2", "avx512", "avx512vnni", "amx")  # weakest first; "neon" stands alone on Arm
PRECISIONS = ("strict", "f32", "fast", "bf16")  # tightest first


@dataclass(frozen=True, slots=True)
class Request:
    """One table op to be computed: equal requests get equal answers.

    ``op`` is the table op without rank ("conv", "max_pool_grad"); ``dtype`` the short name of the main operand's type
    ("f32"); ``options`` the op's options that differ from their defaults, sorted by name; ``prepacked`` says that a
    plan packs the weights, so that a call does not pay for it. Number of threads and memory addresses are deliberately
    absent: a choice that saw them would break "same bits for any number of threads".
    """

    op: str
    geometry: Geometry
    dtype: str
    layout: str = "NCHW"
    precision: str = "f32"
    device: str = "cpu"
    options: tuple[tuple[str, Any], ...] = ()
    prepacked: bool = False

    def option(self, name: str) -> Any:
        for key, value in self.options:
            if key == name:
                return value
        from .ops import OPS  # the defaults live with the op

        return OPS[self.op].options[name]


@dataclass(frozen=True)
class Kernel:
    """A row of the table of kernels. Columns give generic refusals, ``why_not`` the algorithm's own conditions.

    ``cost`` estimates seconds on one core, None where it cannot; a row without it has its place in the table alone.
    """

    op: str
    backend: str
    algorithm: str
    isa: str | None
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    ranks: tuple[int, ...]
    precisions: tuple[str, ...]
    run: Callable[[Any, tuple, tuple], None] = field(repr=False)
    prepare: Callable[[Request, dict | None], Any] = field(repr=False)
    why_not: Callable[[Request], str | None] = field(default=lambda request: None, repr=False)
    cost: Callable[[Request], float | None] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """``backend.algorithm[.isa]``: what ``using(kernel=...)`` takes and the tail of a case string names."""
        return ".".join(part for part in (self.backend, self.algorithm, self.isa) if part)

    def full_name(self, rank: int, dtype: str) -> str:
        from .ops import op_name

        return f"{op_name(self.op, rank)}.{self.name}.{dtype}"
