"""The padding grammar, one for convolution and pooling: what the caller wrote -> (before, after) per axis.

Parsing does not look at the size of the input; only "same" needs it, afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ArgumentError, show
from .arguments import axes, count_of, integer, is_integer, is_sequence

_GRAMMAR = "one int or one (before, after) pair per axis"


@dataclass(frozen=True, slots=True)
class Padding:
    """Parsed padding: pairs for every axis, or the rule "same" / "same_lower" that makes them from the input's size."""

    pairs: tuple[tuple[int, int], ...]
    same: str | None = None

    def pair(self, axis: int, size: int, reach: int, stride: int) -> tuple[int, int]:
        """(before, after) of one axis. ``reach``: from a window's first position to its last, dilation*(kernel-1).

        "same" pads so that there are ceil(size / stride) windows; what cannot be halved goes after the input,
        with "same_lower" before it.
        """
        if self.same is None:
            return self.pairs[axis]
        total = max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
        half = total // 2
        return (half, total - half) if self.same == "same" else (total - half, half)


def parse_padding(op: str, value: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Padding:
    """Read a padding argument.

    Args:
        op: the public op's name, for messages.
        value: an int; one int per axis; one (before, after) pair per axis; "valid", "same", "same_lower", and for 1d
            "causal" (all padding before the input, so that no output looks ahead).
        kernel, dilation: per axis; "causal" needs them.

    Raises:
        ArgumentError: anything else, or a negative padding.
        ShapeError: a padding of 2**31 or more.
    """
    rank = len(kernel)
    if isinstance(value, str):
        return _named(op, value, kernel, dilation)
    if is_integer(value):
        amount = integer(op, "padding", value, 0)
        return Padding(((amount, amount),) * rank)
    if is_sequence(value) and len(value) == rank:
        if all(is_integer(item) for item in value):
            amounts = [integer(op, "padding", item, 0, value) for item in value]
            return Padding(tuple((amount, amount) for amount in amounts))
        if all(_is_pair(item) for item in value):
            return Padding(
                tuple(
                    (integer(op, "padding", before, 0, value), integer(op, "padding", after, 0, value))
                    for before, after in value
                )
            )
    raise ArgumentError(f"{op}: padding must be {_GRAMMAR}, got {_what_came(value, rank)}")


def _is_pair(item: Any) -> bool:
    return is_sequence(item) and len(item) == 2 and all(is_integer(side) for side in item)


def _what_came(value: Any, rank: int) -> str:
    if not is_sequence(value):
        return f"{show(value)}. Names are 'valid', 'same', 'same_lower' and, for one axis, 'causal'."
    if len(value) == rank:
        return f"{show(value)}."
    text = f"the {count_of(value)} {show(value)} for {axes(rank)}."
    if len(value) == 2 * rank and all(is_integer(item) for item in value):
        pairs = tuple((int(value[i]), int(value[i + 1])) for i in range(0, 2 * rank, 2))
        text += f" Write {show(pairs)}."
    return text


def _named(op: str, name: str, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Padding:
    rank = len(kernel)
    if name == "valid":
        return Padding(((0, 0),) * rank)
    if name in ("same", "same_lower"):
        return Padding((), same=name)
    if name != "causal":
        raise ArgumentError(f"{op}: padding must be {_GRAMMAR}, got {_what_came(name, rank)}")
    if rank != 1:
        raise ArgumentError(
            f"{op}: padding 'causal' means one axis, this op has {axes(rank)}. Write a (before, after) pair per axis."
        )
    return Padding(((dilation[0] * (kernel[0] - 1), 0),))
