"""Sentences about bad values in the data, the same whichever backend finds them."""

from __future__ import annotations

from math import prod

from ..errors import ArgumentError
from .geometry import ClassGeometry, PoolGeometry, ResizeGeometry
from .kernel import Request
from .ops import OPS, op_name


def public_name(request: Request) -> str:
    """What the caller called: ("max_pool_grad", 2) -> "max_pool2d_backward"."""
    name = op_name(request.op, request.geometry.rank)
    return name.removesuffix("_grad") + "_backward" if name.endswith("_grad") else name


def bad_label(request: Request, label: int, row: int) -> ArgumentError:
    """A class label outside the classes."""
    assert isinstance(request.geometry, ClassGeometry)
    classes = request.geometry.classes
    return ArgumentError(
        f"{public_name(request)}: the label of row {row} is {label}, but there are {classes} classes. "
        f"Valid labels are 0 <= label < {classes}."
    )


def indexed_plane(request: Request) -> tuple[int, ...]:
    """Sizes of the plane that an op's indices point into."""
    g = request.geometry
    assert isinstance(g, (PoolGeometry, ResizeGeometry))
    return g.output if request.op.startswith("max_unpool") else g.input


def bad_index(request: Request, index: int, place: tuple[int, ...]) -> ArgumentError:
    """An index outside its plane, or a window cell that is no element. ``place``: batch, channel, position."""
    g = request.geometry
    where = f"{public_name(request)}: the index at (batch, channel, position...) {place} is {index}, but"
    if isinstance(g, PoolGeometry) and request.option("indices") == "window":
        return ArgumentError(
            f"{where} that window of kernel {g.kernel} on input {g.input} has no real element in such a cell. "
            f"Give the indices that max_pool{g.rank}d returned with the same arguments."
        )
    plane = indexed_plane(request)
    size = prod(plane)
    return ArgumentError(
        f"{where} a plane of sizes {plane} has {size} elements. Valid offsets are 0 <= offset < {size}."
    )


def index_shape(request: Request) -> tuple[int, ...]:
    """Logical shape of the op's index operand."""
    spec = OPS[request.op]
    (operand,) = [o for o in (*spec.inputs, *spec.outputs) if o.name == "indices"]
    return operand.shape(request.geometry)
