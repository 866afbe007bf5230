"""The sizes of a case string, benchdnn's, and the geometry they stand for.

``mb`` batch, ``g`` groups, ``ic`` and ``oc`` channels (totals over all groups); per axis d, h, w: ``i`` input, ``o``
output, ``k`` kernel, ``s`` stride, ``d`` dilation, ``p`` padding before, ``q`` padding after (ours). An axis left out
equals the axis before it: ``ih56`` is 56x56. **Dilation counts from 0 in the string and from 1 everywhere else; this
module alone converts.** An output size left out follows from the rest. A stated one must follow too, if need be with
another padding after than before.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..errors import ArgumentError, ShapeError
from ..spec import (
    OPS,
    ChannelGeometry,
    ClassGeometry,
    ConvGeometry,
    Geometry,
    PointwiseGeometry,
    PoolGeometry,
    ResizeGeometry,
    op_name,
)

KEYS = tuple("g mb ic id ih iw oc od oh ow kd kh kw sd sh sw dd dh dw pd ph pw qd qh qw".split())  # canonical order
AXES = {0: "", 1: "w", 2: "hw", 3: "dhw"}  # by rank
DEFAULT_BATCH = 2  # benchdnn's
LIMIT = 2**63 - 1  # sizes and byte offsets are signed 64-bit

_SIZE = re.compile("(" + "|".join(KEYS) + ")([0-9]+)_?")
_COLUMNS = ("unfold", "fold")  # one group, and a channel of output for each channel and cell of the kernel
_KNOWN = {  # by geometry: plain keys, and letters that take an axis
    "ConvGeometry": (("g", "mb", "ic", "oc"), "iokspdq"),
    "PoolGeometry": (("mb", "ic"), "iokspdq"),
    "ResizeGeometry": (("mb", "ic"), "io"),
    "ChannelGeometry": (("mb", "ic"), "i"),
    "PointwiseGeometry": (("mb", "ic"), "i"),
    "ClassGeometry": (("mb", "ic"), ""),
}


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a windowed op, and the arithmetic of its output size."""

    op: str
    letter: str
    size: int
    kernel: int
    stride: int
    dilation: int  # 1 is dense
    before: int

    @property
    def span(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def out(self, after: int, ceil: bool = False) -> int:
        """Output size; 0 where the padded input is smaller than the window."""
        room = self.size + self.before + after - self.span
        if room < 0:
            return 0
        if not ceil:
            return room // self.stride + 1
        last = -(-room // self.stride)  # a window may stick out, but not begin beyond the image
        return last + 1 if last * self.stride < self.size + self.before else last

    def solve(self, out: int | None, after: int | None, ceil: bool, lenient: bool) -> tuple[int, int]:
        """Output size and padding after, from what is stated of both.

        ``lenient``: an output smaller than the input allows is fine; the rest of the input is then not reached (an
        input gradient that is a transposed convolution with output_padding).
        """
        guess = self.before if after is None else after
        found = self.out(guess, ceil)
        if out is None and found < 1:
            raise ShapeError(
                f"{self.op}: kernel covers {self.span} along {self.letter} (k{self.letter}{self.kernel},"
                f" d{self.letter}{self.dilation - 1}) but the padded input has {self.size + self.before + guess}"
                f" ({self.size} + {self.before} + {guess}). Use more padding or a smaller dilation."
            )
        if out is None:
            return found, guess
        if out == found >= 1 or (lenient and 1 <= out < found):
            return out, guess
        if after is None and out >= 1:
            needed = max(0, (out - 1) * self.stride + self.span - self.size - self.before)
            if self.out(needed, ceil) == out:
                return out, needed
        raise ShapeError(f"{self.op}: o{self.letter}{out} does not follow: {self._arithmetic(guess, ceil)}")

    def _arithmetic(self, after: int, ceil: bool) -> str:
        rounded = " (ceil=1 rounds the quotient up)" if ceil else ""
        return (
            f"({self.size} + {self.before} + {after} - {self.dilation}*({self.kernel} - 1) - 1) // {self.stride} + 1"
            f" = {self.out(after, ceil)}{rounded}. Leave o{self.letter} out or change the padding."
        )


def _axes(op: str, g: ConvGeometry | PoolGeometry) -> list[Axis]:
    rows = zip(AXES[g.rank], g.input, g.kernel, g.stride, g.dilation, g.pad_before)
    return [Axis(op, *row) for row in rows]


def ceil_mode(g: Geometry) -> bool:
    """Whether output sizes follow from rounding up and not from rounding down."""
    if not isinstance(g, PoolGeometry):
        return False
    return any(axis.out(after) != out for axis, after, out in zip(_axes("", g), g.pad_after, g.output))


# Writing


def _family(letter: str, values: tuple[int, ...], default: tuple[int, ...] | None = None) -> Iterator[str]:
    """``kh3`` for (3, 3), ``kh3kw5`` for (3, 5), nothing for the default."""
    if values != default:
        axes = AXES[len(values)]
        for axis, value in zip(axes[:1] if len(set(values)) == 1 else axes, values):
            yield f"{letter}{axis}{value}"


def write_sizes(op: str, g: Geometry) -> Iterator[str]:
    """The sizes of a geometry in canonical order: squares shortened, defaults left out, output sizes always."""
    if isinstance(g, PointwiseGeometry):
        yield from (f"{key}{value}" for key, value in zip(("mb", "ic"), g.shape))
        yield from _family("i", g.shape[2:])
    elif isinstance(g, ClassGeometry):
        yield from (f"mb{g.rows}", f"ic{g.classes}")
    elif isinstance(g, ChannelGeometry):
        yield from (f"mb{g.batch}", f"ic{g.channels}", *_family("i", g.spatial))
    elif isinstance(g, ResizeGeometry):
        yield from (f"mb{g.batch}", f"ic{g.channels}", *_family("i", g.input), *_family("o", g.output))
    else:
        if isinstance(g, PoolGeometry) or op in _COLUMNS:
            channels = g.channels if isinstance(g, PoolGeometry) else g.in_channels
            yield from (f"mb{g.batch}", f"ic{channels}", *_family("i", g.input))
        else:
            yield from (f"g{g.groups}",) if g.groups != 1 else ()
            yield from (f"mb{g.batch}", f"ic{g.in_channels}", *_family("i", g.input), f"oc{g.out_channels}")
        yield from _family("o", g.output)
        yield from _family("k", g.kernel)
        yield from _family("s", g.stride, (1,) * g.rank)
        yield from _family("d", tuple(d - 1 for d in g.dilation), (0,) * g.rank)
        yield from _family("p", g.pad_before, (0,) * g.rank)
        yield from _family("q", g.pad_after, g.pad_before)


# Reading


def read_sizes(text: str, case: str, last_wins: bool = False) -> dict[str, int]:
    """``mb1ic3`` -> {"mb": 1, "ic": 3}. ``case`` is the whole string, for messages. A key given twice is refused,
    unless the last one wins."""
    sizes: dict[str, int] = {}
    position = 0
    while position < len(text):
        match = _SIZE.match(text, position)
        if match is None:
            raise ArgumentError(
                f"problem {case!r}: {text[position:]!r} does not begin with a size, a key and an integer. "
                f"Keys: {' '.join(KEYS)}."
            )
        key, value = match[1], int(match[2])
        if key in sizes and not last_wins:
            raise ArgumentError(f"problem {case!r}: {key} is given twice. Give it once.")
        if value > LIMIT:
            raise ShapeError(f"problem {case!r}: {key}{value} does not fit 64 bits. Use at most {LIMIT}.")
        if key[0] in "gks" and value < 1:
            raise ArgumentError(f"problem {case!r}: {key} must be >= 1, got {value}.")
        sizes[key] = value
        position = match.end()
    return sizes


class _Sizes:
    """The sizes of one case, asked for by meaning."""

    def __init__(self, case: str, op: str, rank: int | None, sizes: dict[str, int]) -> None:
        plain, letters = _KNOWN[OPS[op].geometry]
        if op in _COLUMNS:
            plain = ("mb", "ic")
        if rank is None:
            rank = next((r for r in (3, 2, 1) if any(letter + AXES[r][0] in sizes for letter in letters)), 0)
        self.op, self.case, self.rank, self.sizes = op_name(op, rank), case, rank, sizes
        known = {*plain, *(letter + axis for letter in letters for axis in AXES[rank])}
        for key in sizes:
            if key not in known:
                has = " ".join(k for k in KEYS if k in known)
                raise ArgumentError(f"problem {case!r}: {self.op} has no size {key}. It has {has}.")

    def one(self, key: str, default: int | None = None) -> int:
        value = self.sizes.get(key, default)
        if value is None:
            raise ArgumentError(f"problem {self.case!r}: {self.op} needs {key}. Add {key} and an integer.")
        return value

    def batch(self) -> int:
        if "mb" not in self.sizes:
            warnings.warn(f"problem {self.case!r} says no batch: mb{DEFAULT_BATCH} is assumed", stacklevel=5)
        return self.one("mb", DEFAULT_BATCH)

    def stated(self, letter: str) -> tuple[int | None, ...]:
        """One value per axis; an axis left out equals the one before it; None where nothing is said."""
        values: list[int | None] = []
        for axis in AXES[self.rank]:
            values.append(self.sizes.get(letter + axis, values[-1] if values else None))
        return tuple(values)

    def spatial(self, letter: str, default: int | None = None) -> tuple[int, ...]:
        pairs = zip(AXES[self.rank], self.stated(letter))
        return tuple(self.one(letter + axis, default) if value is None else value for axis, value in pairs)


def _windowed(s: _Sizes, ceil: bool, lenient: bool) -> dict[str, tuple[int, ...]]:
    """The fields that ConvGeometry and PoolGeometry share."""
    fields = {
        "input": s.spatial("i"),
        "kernel": s.spatial("k"),
        "stride": s.spatial("s", 1),
        "dilation": tuple(d + 1 for d in s.spatial("d", 0)),
        "pad_before": s.spatial("p", 0),
    }
    axes = [Axis(s.op, *row) for row in zip(AXES[s.rank], *fields.values())]
    solved = [axis.solve(o, q, ceil, lenient) for axis, o, q in zip(axes, s.stated("o"), s.stated("q"))]
    return {**fields, "output": tuple(out for out, _ in solved), "pad_after": tuple(after for _, after in solved)}


def read_geometry(op: str, rank: int | None, sizes: dict[str, int], case: str, ceil: bool) -> Geometry:
    """The geometry of table op ``op``; ``rank`` None: the axes given say it."""
    s = _Sizes(case, op, rank, sizes)
    kind = OPS[op].geometry
    batch = s.batch()
    if kind == "PointwiseGeometry" and s.rank == 0 and "ic" not in sizes:
        return PointwiseGeometry((batch,))
    channels = s.one("ic")
    if kind == "PointwiseGeometry":
        return PointwiseGeometry((batch, channels, *s.spatial("i")))
    if kind == "ClassGeometry":
        return ClassGeometry(batch, channels)
    if kind == "ChannelGeometry":
        return ChannelGeometry(batch, channels, s.spatial("i"))
    if s.rank == 0:
        raise ArgumentError(f"problem {case!r}: no spatial axis is given. Add iw, ih or id and the kernel's size.")
    if kind == "ResizeGeometry":
        return ResizeGeometry(batch, channels, s.spatial("i"), s.spatial("o"))
    windowed = _windowed(s, ceil, lenient=op == "conv_grad_input")
    if kind == "PoolGeometry":
        return PoolGeometry(batch, channels, **windowed)
    if op in _COLUMNS:
        return ConvGeometry(batch, 1, channels, channels * prod(windowed["kernel"]), **windowed)
    groups, out_channels = s.one("g", 1), s.one("oc")
    for key, value in (("ic", channels), ("oc", out_channels)):
        if value % groups:
            raise ShapeError(f"problem {case!r}: g{groups} must divide {key}{value}. {key} counts all groups together.")
    return ConvGeometry(batch, groups, channels, out_channels, **windowed)
