"""Random geometries and options for hypothesis: whatever an op accepts, within sizes that take milliseconds."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from hypothesis import strategies as st

from cnnkern.spec import (
    OPS,
    ChannelGeometry,
    ClassGeometry,
    ConvGeometry,
    Geometry,
    PointwiseGeometry,
    PoolGeometry,
    ResizeGeometry,
)

BATCHES = st.sampled_from((1, 2, 3, 5, 0))
CHANNELS = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 24, 31, 32, 33, 40, 63, 65, 0))
PER_GROUP = st.sampled_from((1, 2, 3, 5, 8, 16, 17))
RANKS = st.sampled_from((2, 1, 3))
LARGEST = {0: 1, 1: 150, 2: 34, 3: 9}  # extent, by rank
KERNELS = {1: 9, 2: 5, 3: 3}
MOST_PRODUCTS = 300_000  # of one call
FIELDS = ("input", "output", "kernel", "stride", "dilation", "pad_before", "pad_after")


@st.composite
def conv_axes(draw: st.DrawFn, rank: int) -> dict[str, tuple[int, ...]]:
    """Sizes of a convolution along each axis; there is always a window, if need be thanks to padding."""
    axes = []
    for _ in range(rank):
        size = draw(st.integers(0, LARGEST[rank]))
        kernel, stride = draw(st.integers(1, KERNELS[rank])), draw(st.integers(1, 4))
        dilation = draw(st.integers(1, 3)) if kernel > 1 else 1
        reach = dilation * (kernel - 1) + 1
        before = draw(st.integers(0, kernel + 1))
        after = max(draw(st.one_of(st.just(before), st.integers(0, kernel + 1))), reach - size - before)
        axes.append((size, (size + before + after - reach) // stride + 1, kernel, stride, dilation, before, after))
    return dict(zip(FIELDS, zip(*axes)))


@st.composite
def convolutions(draw: st.DrawFn) -> ConvGeometry:
    groups = draw(st.sampled_from((1, 1, 1, 2, 3, 8)))
    channels = CHANNELS if groups == 1 else PER_GROUP
    sizes = draw(conv_axes(draw(RANKS)))
    g = ConvGeometry(draw(BATCHES), groups, draw(channels) * groups, draw(channels) * groups, **sizes)
    while g.batch * g.out_channels * prod(g.output) * g.reduction > MOST_PRODUCTS:
        if g.batch > 1:
            g = replace(g, batch=g.batch // 2)
        elif max(g.in_channels, g.out_channels) > groups:
            halved = [max(1, c // groups // 2) * groups for c in (g.in_channels, g.out_channels)]
            g = replace(g, in_channels=halved[0], out_channels=halved[1])
        else:
            break
    return g


@st.composite
def unfoldings(draw: st.DrawFn) -> ConvGeometry:
    g = draw(convolutions())
    per_group = min(g.in_channels // g.groups, 8)
    return replace(g, groups=1, in_channels=per_group, out_channels=per_group * prod(g.kernel))


def _pool_output(size: int, reach: int, stride: int, before: int, after: int, ceil: bool) -> int:
    room = size + before + after - reach
    if not ceil:
        return room // stride + 1
    out = -(-room // stride) + 1
    return out - 1 if (out - 1) * stride >= size + before else out


def _windows_hold(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> bool:
    """Whether each window has a cell on a real element."""
    starts = (i * stride - before for i in range(out))
    return all(any(0 <= start + j * dilation < size for j in range(kernel)) for start in starts)


@st.composite
def poolings(draw: st.DrawFn, dilate: bool = True) -> PoolGeometry:
    """Padding that leaves a window without a real element is left out."""
    rank = draw(RANKS)
    ceil = draw(st.booleans())
    axes = []
    for _ in range(rank):
        kernel, stride = draw(st.integers(1, KERNELS[rank])), draw(st.integers(1, 4))
        dilation = draw(st.integers(1, 3)) if dilate and kernel > 1 else 1
        reach = dilation * (kernel - 1) + 1
        size = draw(st.integers(1, LARGEST[rank]))
        before, after = draw(st.integers(0, kernel)), draw(st.integers(0, kernel))
        out = _pool_output(size, reach, stride, before, after, ceil)
        if size + before + after < reach or not _windows_hold(size, out, kernel, stride, dilation, before):
            size, before, after = max(size, reach), 0, 0
            out = _pool_output(size, reach, stride, 0, 0, ceil)
        axes.append((size, out, kernel, stride, dilation, before, after))
    return PoolGeometry(draw(BATCHES), draw(CHANNELS), **dict(zip(FIELDS, zip(*axes))))


@st.composite
def resizings(draw: st.DrawFn) -> ResizeGeometry:
    rank = draw(RANKS)
    most = LARGEST[rank] // 2
    extents = [tuple(draw(st.integers(1, most)) for _ in range(rank)) for _ in range(2)]
    return ResizeGeometry(draw(BATCHES), draw(CHANNELS), *extents)


@st.composite
def channelwise(draw: st.DrawFn) -> ChannelGeometry:
    rank = draw(st.sampled_from((2, 0, 1, 3)))
    return ChannelGeometry(
        draw(st.integers(1, 5)), draw(CHANNELS), tuple(draw(st.integers(1, LARGEST[rank])) for _ in range(rank))
    )


_GEOMETRIES: dict[str, st.SearchStrategy] = {
    "ConvGeometry": convolutions(),
    "PoolGeometry": poolings(),
    "ResizeGeometry": resizings(),
    "ChannelGeometry": channelwise(),
    "PointwiseGeometry": st.lists(st.integers(0, 40), max_size=4).map(lambda s: PointwiseGeometry(tuple(s))),
    "ClassGeometry": st.builds(ClassGeometry, st.integers(0, 40), st.integers(1, 300)),
}
_OPTIONS: dict[str, st.SearchStrategy] = {
    "bias": st.booleans(),
    "residual": st.booleans(),
    "weight": st.booleans(),
    "activation": st.sampled_from((None, "relu")),
    "count_include_pad": st.booleans(),
    "divisor": st.sampled_from((None, 1, 2, 7)),
    "norm_type": st.sampled_from((2.0, 1.0, 3.0, 1.5, float("inf"))),
    "size": st.integers(1, 9),
    "alpha": st.sampled_from((1e-4, 0.1, 0.0)),
    "beta": st.sampled_from((0.75, 0.5, 1.0)),
    "k": st.sampled_from((1.0, 2.0)),
    "eps": st.sampled_from((1e-5, 0.1)),
    "training": st.booleans(),
    "p": st.sampled_from((0.5, 0.1, 0.0, 1.0)),
    "seed": st.integers(0, 2**64 - 1),
    "label_smoothing": st.sampled_from((0.0, 0.1)),
}


def geometries(op: str) -> st.SearchStrategy[Geometry]:
    if op in ("unfold", "fold"):
        return unfoldings()
    if OPS[op].geometry == "PoolGeometry":
        return poolings(dilate=op.startswith("max_pool"))
    return _GEOMETRIES[OPS[op].geometry]


@st.composite
def options(draw: st.DrawFn, op: str) -> tuple[tuple[str, Any], ...]:
    """Options of an op that differ from their defaults, sorted by name."""
    chosen = {}
    for name, default in OPS[op].options.items():
        if name == "weight_dtype":  # integers only
            continue
        if name == "indices":
            kinds = ["torch"] if op.startswith("adaptive") else ["torch", "window"]
            value = draw(st.sampled_from(kinds if default is not None else [None, *kinds]))
        else:
            value = draw(_OPTIONS[name])
        if value != default:
            chosen[name] = value
    return tuple(sorted(chosen.items()))
