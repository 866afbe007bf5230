"""Sample problems of every table op, as problem strings, and inputs for them.

Sizes go around everything that a kernel may cut by: 1 to 15, 27, 28, 29 and 56 pixels (register tiles of 6 and 14,
pairs of short rows), channels below, at and above vectors of 4 to 16 lanes and blocks of twice that, reductions beyond
one partial sum of 288 products, several strips, and empty axes. ``SEED`` moves all random values.
"""

from __future__ import annotations

import functools
import os
import re
import zlib
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from cnnkern import problem
from cnnkern.backends.reference import kernels as reference_kernels
from cnnkern.spec import OPS, PointwiseGeometry, Request, op_name

SEED = int(os.environ.get("CNNKERN_SEED", "0"))

PIXELS = (*range(1, 16), 27, 28, 29, 56)
CHANNELS = (1, 3, 15, 16, 17, 31, 32, 33, 48, 64, 65)

_CONV = (
    # pixels of a row, channels read, channels written, both
    *(f"mb1ic3ih2iw{n}oc5kh3ph1" for n in PIXELS),
    *(f"mb2ic2iw{n}oc3kw1" for n in PIXELS),
    *(f"mb1ic{n}ih3iw5oc4kh3ph1" for n in CHANNELS),
    *(f"mb1ic4ih3iw5oc{n}kh3ph1" for n in CHANNELS),
    *(f"mb1ic{n}ih3iw3oc{n}kh1" for n in (16, 33, 65)),
    # 3x3 and 5x5 of stride 1 with enough products for Winograd: rows of 1 to 9 and more tiles, both channels, tails
    *(f"mb1ic9ih{n}iw{m}oc10kh3ph1" for n, m in ((10, 11), (12, 13), (13, 15), (11, 33), (14, 57))),
    *(f"mb2ic{n}ih9iw8oc{n + 1}kh3ph1" for n in (8, 15, 16, 31, 47, 64)),
    "mb3ic10ih10iw9oc33kh3ph0pw2",
    "mb1ic130ih9iw12oc11kh3ph2qh0",
    "g2mb2ic18ih8iw9oc34kh3ph1",
    "mb5ic8ih5iw6oc9kh3ph3",
    "mb2ic9ih16iw17oc18kh5ph2",
    "g3mb2ic27ih18iw15oc30kh5ph1",
    # strides 1 to 4, less than, equal to and more than the kernel
    *(f"mb1ic3ih13iw11oc4kh{k}sh{s}ph{p}" for s in (2, 3, 4) for k, p in ((1, 0), (2, 1), (3, 1), (5, 2))),
    "mb2ic3ih9iw12oc4kh3kw2sh2sw3ph1pw0",
    "mb1ic17ih8iw29oc33kh3sh2ph1",
    "mb1ic3ih23iw30oc16kh11sh4ph2",
    # dilation, alone and with strides that share a factor with it
    "mb1ic3ih9iw10oc4kh3dh1ph2",
    "mb1ic3ih12iw17oc4kh3kw2dh2dw3ph1",
    "mb1ic2ih13oc3kh3sh2dh1ph2",
    "mb1ic2ih13iw14oc3kh3sh2sw3dh2dw1ph2",
    "mb1ic2ih17oc3kh3sh4dh1ph3",
    # padding: asymmetric, wider than the kernel, around a kernel as large as the input
    "mb1ic3ih6iw7oc4kh3ph0pw2qh2qw0",
    "mb1ic3ih6iw7oc4kh3ph2pw1qh0qw3",
    "mb1ic2iw9oc3kw4pw0qw3",
    "mb1ic2ih3iw4oc3kh2ph4",
    "mb1ic2ih3iw4oc3kh3sh5ph6",
    "mb2ic3ih5iw6oc7kh5kw6",
    "mb1ic2ih5iw6oc3kh7kw8ph1",
    "mb1ic5ih1iw1oc9kh1",
    "mb1ic5ih1iw1oc9kh3ph1",
    "mb3ic5ih7iw9oc6kh3kw1ph1pw0",
    "mb3ic5ih7iw9oc6kh1kw3ph0pw1",
    # groups: few, depthwise, depthwise with a multiplier, groups of one vector and one more
    "g2mb2ic6ih5iw6oc4kh3ph1",
    "g3mb1ic9ih7iw5oc6kh3sh2ph1",
    "g2mb1ic34ih4iw5oc32kh3ph1",
    "g4mb1ic64ih3iw4oc68kh1",
    "g16mb1ic16ih7iw15oc16kh3ph1",
    "g33mb2ic33ih5iw6oc33kh3sh2ph1",
    "g5mb1ic5ih8iw9oc15kh5ph2",
    "g7mb2ic7iw20oc14kw3dw1",
    # depthwise: channels around vectors, columns around tiles of 7, rows around pairs and bands of 7
    *(f"g{n}mb2ic{n}ih4iw5oc{n}kh3ph1" for n in (8, 15, 16, 17, 31, 32, 33)),
    *(f"g17mb1ic17ih3iw{n}oc17kh3ph1" for n in (1, 6, 7, 8, 13, 14, 15)),
    *(f"g9mb1ic9ih{n}iw5oc9kh3ph1" for n in (1, 2, 6, 7, 8, 15)),
    "g270mb1ic270ih3iw4oc270kh3ph1",
    # rows of pixels in lanes: from one and a half vectors, one and two of them, and one pixel more
    *(f"g8mb1ic8ih{h}iw{w}oc8kh3ph1" for h, w in ((6, 23), (7, 24), (8, 25), (15, 32), (3, 33), (9, 65))),
    *(f"g9mb2ic9ih{h}iw{w}oc9kh3sh2ph1" for h, w in ((13, 47), (14, 48), (5, 63), (6, 66), (3, 130))),
    "g8mb1ic8ih8iw40oc8kh3ph0",
    "g8mb2ic8ih5iw30oc24kh3ph2pw5qh1qw0",
    # depthwise: taps beside each other, apart, in depth; phases of the input gradient
    *(f"g16mb1ic16ih9iw10oc16kh{k}sh{s}ph{p}" for k, s, p in ((2, 1, 0), (4, 1, 2), (5, 1, 2), (6, 1, 3), (7, 1, 3))),
    *(f"g16mb1ic16ih17iw15oc16kh{k}sh{s}ph{p}" for k, s, p in ((1, 2, 0), (3, 2, 1), (5, 2, 2), (7, 2, 3), (3, 4, 0))),
    "g16mb1ic16ih9iw17oc16kh3kw1ph1pw0",
    "g16mb1ic16ih9iw17oc16kh1kw3ph0pw1",
    "g16mb1ic16ih12iw14oc16kh3dh1ph2",
    "g16mb1ic16ih11iw13oc16kh3sh3sw2dh2dw1ph2",
    "g16mb1ic16ih4iw5oc16kh3ph4qh0",
    "g8mb3ic8ih7iw6oc32kh3sh2ph1",
    "g16mb2ic16iw300oc16kw9pw4",
    "g8mb1ic8id4ih5iw26oc8kd3kh3kw3pd1ph1pw1",
    "g8mb1ic8id3ih4iw26oc8kd1kh3kw3qd2ph1pw1",
    "g16mb2ic16id5ih4iw6oc16kd2kh3kw3sd2sh1sw2pd1ph1pw0",
    # reductions longer than one partial sum, forward over channels and taps, backward over batch and pixels
    "mb1ic32ih3iw4oc5kh3ph1",
    "mb1ic33ih4iw5oc7kh3ph1",
    "mb1ic65ih3iw4oc5kh3ph1",
    "mb1ic300ih2iw3oc9kh1",
    "mb2ic1ih18iw17oc3kh17",
    "mb3ic2ih20iw21oc3kh3ph1",
    "mb5ic3ih7iw7oc9kh3ph1",
    "mb17ic3ih2iw2oc3kh2ph1",
    # several strips: tall images, rows longer than a strip
    "mb1ic2ih40iw45oc3kh3",
    "mb1ic1ih2iw1000oc2kh1kw3",
    "mb1ic2iw1301oc3kw5sw2pw2",
    # one and three spatial axes
    "mb2ic3iw17oc5kw3pw1",
    "mb1ic4iw31oc6kw5sw3dw1pw4",
    "mb1ic3id4ih5iw6oc4kd3pd1",
    "mb2ic2id5ih4iw7oc3kd2kh3kw1sd2sh1sw3pd1ph1pw0",
    "g2mb1ic4id5ih6iw5oc6kd3sd2dd1pd2",
    "mb1ic17id3ih3iw3oc33kd2",
    # nothing to read, or nothing to write
    "mb0ic3ih5oc4kh3",
    "mb2ic0ih5oc4kh3",
    "mb2ic3ih5oc0kh3",
    "mb1ic2ih0iw4oc3kh2ph1",
    "mb1ic2iw0oc3kw3pw2",
)
_EPILOGUES = ("", "@bias=1", "@act=relu", "@res=1", "@bias=1@act=relu@res=1")
_FUSED = tuple(text + _EPILOGUES[i % len(_EPILOGUES)] for i, text in enumerate(_CONV))
_TRANSPOSED = (  # an output smaller than the input allows: output_padding
    "mb1ic3ih8oc4oh2kh3sh3",
    "mb1ic3ih9iw11oc4oh3ow4kh2sh3sw2@bias=1",
)

_WINDOWS = (
    *(f"mb1ic2ih2iw{n}kh2kw1sw1" for n in PIXELS),
    *(f"mb1ic3ih3iw{n}kh3sh1ph1" for n in PIXELS),
    *(f"mb1ic2ih5iw{2 * n}kh2sh2" for n in PIXELS),
    *(f"mb1ic2ih7iw{2 * n}kh3sh2ph1" for n in PIXELS),
    *(f"mb2ic{n}ih5iw4kh3sh2ph1" for n in CHANNELS),
    *(f"mb1ic{n}ih4iw6kh2sh2" for n in CHANNELS),
    *(f"mb1ic3ih13iw11kh{k}sh{s}ph{p}" for s in (1, 3, 4) for k, p in ((1, 0), (2, 1), (5, 2))),
    "mb1ic2ih6iw7kh3sh2ph0pw1qh1qw0",
    "mb1ic2ih6iw7kh3sh2ph2qh2",
    "mb2ic3ih5iw6kh5kw6sh5sw6",
    "mb1ic3ih5iw9kh5kw3sh1sw4ph2pw1",
    "mb1ic1ih20iw19kh17sh3ph8",
    "mb1ic2ih1iw1kh1sh1",
    "mb1ic2ih1iw1kh3sh1ph1",
    "mb1ic2ih7kh3sh2@ceil=1",
    "mb1ic2ih8iw10kh3sh3ph1@ceil=1",
    "mb1ic3ih4kh3sh2ph1@ceil=1",
    "mb2ic4iw17kw3sw2pw1",
    "mb1ic3iw1000kw9sw1pw4",
    "mb1ic3iw40kw2sw5",
    "mb1ic2ih60iw9kh3sh1ph1",
    "mb1ic300ih4iw5kh2sh1",
    "mb1ic1100ih2iw3kh2sh2",
    "mb1ic3id4ih5iw6kd2sd2",
    "mb2ic5id5ih4iw7kd3kh2kw3sd2sh1sw2pd1ph1pw1",
    "mb1ic17id3ih3iw3kd3sd1pd1",
    "mb0ic3ih5kh2sh2",
    "mb2ic0ih5kh2sh2",
)
_DILATED = (
    "mb1ic2ih9iw12kh3sh1dh1ph1",
    "mb1ic3ih12iw17kh3kw2sh2dh2dw3ph1",
    "mb2ic17iw23kw4sw1dw2",
)
_INDICES = ("", "@indices=torch", "@indices=window")
_MAX = tuple(text + _INDICES[i % len(_INDICES)] for i, text in enumerate((*_WINDOWS, *_DILATED)))
_MAX_GRAD = tuple(text + ("", "@indices=window")[i % 2] for i, text in enumerate((*_WINDOWS, *_DILATED)))
_DIVISORS = ("", "@pad=exclude", "@div=3", "")
_AVERAGE = tuple(text + _DIVISORS[i % len(_DIVISORS)] for i, text in enumerate(_WINDOWS))
_NORMS = ("", "@p=1", "@p=3", "@p=inf", "@p=1.5")
_LP = tuple(text + _NORMS[i % len(_NORMS)] for i, text in enumerate(_WINDOWS))

_PLANES = (
    *(f"mb1ic2ih4iw{n}oh3ow5" for n in PIXELS),
    *(f"mb1ic2ih9iw7oh2ow{n}" for n in PIXELS),
    *(f"mb2ic{n}ih5iw4oh2ow3" for n in CHANNELS),
    *(f"mb1ic{n}ih7iw7oh1" for n in CHANNELS),
    "mb1ic3ih6iw8oh3ow4",
    "mb1ic3ih2iw3oh5ow7",
    "mb1ic2ih1iw1oh1",
    "mb2ic3iw37ow5",
    "mb1ic2iw1000ow1",
    "mb1ic3id4ih5iw6od2oh3ow4",
    "mb2ic5id3ih3iw3od1",
    "mb1ic2ih5oh0",
    "mb0ic3ih5oh2",
    "mb2ic0ih5oh2",
)
_UNPOOLED = (
    *(f"mb1ic2ih2iw{n}oh4ow{2 * n}" for n in PIXELS),
    *(f"mb2ic{n}ih3iw2oh5ow6" for n in CHANNELS),
    "mb1ic3ih5iw6oh2ow3",  # more elements than places: some are overwritten
    "mb2ic3iw9ow30",
    "mb1ic2id2ih3iw2od4oh5ow4",
    "mb0ic3ih2oh4",
    "mb2ic0ih2oh4",
    "mb1ic3ih0iw2oh4",
)

_CHANNELWISE = (
    *(f"mb1ic3ih2iw{n}" for n in PIXELS),
    *(f"mb2ic{n}ih3iw4" for n in CHANNELS),
    *(f"mb5ic{n}" for n in CHANNELS),
    "mb3ic4iw130",
    "mb1ic2ih33iw65",
    "mb2ic3id3ih4iw5",
    "mb1ic70ih9iw15",
    "mb1ic45ih25iw29",
    "mb0ic4ih3",
    "mb2ic0ih3",
    "mb2ic3ih0iw4",
)
_LRN_OPTIONS = (
    "",
    "@size=4@alpha=0.3@beta=0.5@k=2",
    "@size=1@alpha=1@beta=1@k=0.5",
    "@size=64@alpha=0.01@beta=0.6@k=1.5",
    "@size=3@alpha=0.1",
)
_AFFINE = ("", "@weight=1@bias=1", "@bias=1@eps=0.5", "@weight=1")
_NORM_GRAD = ("", "@weight=1", "@weight=1@training=0", "@training=0")

_ELEMENTS = (
    "mb0",
    "mb2ic0ih3",
    *(f"mb{n}" for n in PIXELS),
    *(f"mb3ic{n}" for n in CHANNELS),
    "mb2ic3ih5iw33",
    "mb3ic5ih19iw23",
)
_ROWS = (
    *(f"mb3ic{n}" for n in (*CHANNELS, 2, 10, 200, 1000)),
    "mb1ic1",
    "mb33ic7",
    "mb0ic4",
)
_SMOOTHED = ("", "@label_smoothing=0.1", "@label_smoothing=1")


def _spread(texts: tuple[str, ...], options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text + options[i % len(options)] for i, text in enumerate(texts))


def _columns(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Convolutions without groups as unfoldings: no output channels."""
    return tuple(dict.fromkeys(re.sub(r"oc\d+", "", text) for text in texts if not text.startswith("g")))


SIZES: dict[str, tuple[str, ...]] = {
    "conv": _FUSED,
    "conv_grad_input": (*_FUSED, *_TRANSPOSED),
    "conv_grad_weight": _CONV,
    "channel_sum": _CHANNELWISE,
    "max_pool": _MAX,
    "max_pool_grad": _MAX_GRAD,
    "avg_pool": _AVERAGE,
    "avg_pool_grad": _AVERAGE,
    "lp_pool": _LP,
    "lp_pool_grad": _LP,
    "adaptive_avg_pool": _PLANES,
    "adaptive_avg_pool_grad": _PLANES,
    "adaptive_max_pool": _spread(_PLANES, _INDICES[:2]),
    "adaptive_max_pool_grad": _PLANES,
    "max_unpool": _UNPOOLED,
    "max_unpool_grad": _UNPOOLED,
    "local_response_norm": _spread(_CHANNELWISE, _LRN_OPTIONS),
    "local_response_norm_grad": _spread(_CHANNELWISE, _LRN_OPTIONS),
    "batch_norm": _spread(_CHANNELWISE, _AFFINE),
    "batch_norm_training": _spread(_CHANNELWISE, _AFFINE),
    "batch_norm_grad": _spread(_CHANNELWISE, _NORM_GRAD),
    **dict.fromkeys(("relu", "relu_grad", "tanh", "tanh_grad", "sigmoid", "sigmoid_grad"), _ELEMENTS),
    "dropout": _spread(_ELEMENTS, ("", "@p=0.3@seed=7", "@p=0", "@p=1@seed=1")),
    "dropout_grad": _spread(_ELEMENTS, ("", "@p=0.3", "@p=0", "@p=1")),
    "unfold": _columns(_CONV),
    "fold": _columns(_CONV),
    "softmax_cross_entropy": _spread(_ROWS, _SMOOTHED),
}

# Work enough for several threads, cut in several ways.
_LARGE_CONV = (
    "mb3ic16ih14oc48kh3ph1",
    "mb1ic80ih7oc192kh3ph1",
    "mb2ic3ih57oc35kh7sh2ph3",
    "g8mb2ic64ih14oc64kh3sh2ph1",
    "mb1ic64ih28oc17kh1",
    "mb2ic8id6ih12iw13oc20kd3pd1",
    "g40mb2ic40ih30oc40kh3ph1",
    "g70mb2ic70ih29oc70kh5sh2ph2",
    "mb1ic24ih40oc3kh5ph2",
    "mb1ic300ih30iw31oc8kh3ph1",
    "mb2ic256ih9iw10oc256kh3ph1",
)
_LARGE_WINDOWS = (
    "mb2ic24ih57kh3sh2ph1",
    "mb2ic48ih30kh2sh2",
    "mb1ic7ih64kh5sh1ph2",
    "mb2ic9id8ih16kd3sd2pd1",
    "mb1ic300ih20iw21kh3sh2ph1",
)
_LARGE_PLANES = ("mb2ic50ih40oh7", "mb3ic300ih13oh1")
_LARGE_MAPS = ("mb3ic37ih61iw67", "mb2ic300ih13", "mb1ic2iw60000")
LARGE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conv", "conv_grad_input", "conv_grad_weight"), _LARGE_CONV),
    **{op: _columns(_LARGE_CONV[:3]) for op in ("unfold", "fold")},
    "max_pool": _spread(_LARGE_WINDOWS, _INDICES),
    **dict.fromkeys(("max_pool_grad", "avg_pool", "avg_pool_grad"), _LARGE_WINDOWS),
    **{op: _spread(_LARGE_WINDOWS, ("", "@p=3")) for op in ("lp_pool", "lp_pool_grad")},
    **{op: _LARGE_PLANES for op in OPS if op.startswith("adaptive")},
    **dict.fromkeys(("max_unpool", "max_unpool_grad"), ("mb2ic50ih20oh40",)),
    **{op: _LARGE_MAPS for op in OPS if OPS[op].geometry == "ChannelGeometry"},
    **{op: ("mb7ic50001",) for op in OPS if OPS[op].geometry == "PointwiseGeometry"},
    "softmax_cross_entropy": ("mb500ic203",),
}


def rank_of(sizes: str) -> int:
    """Spatial axes that a string of sizes has."""
    return next((rank for rank, key in ((3, r"id\d"), (2, r"ih\d"), (1, r"iw\d")) if re.search(key, sizes)), 0)


@functools.cache
def parse(op: str, sizes: str) -> Request:
    """The request, in float32 and NCHW, of table op ``op`` and a string without the op."""
    return problem.parse(f"{op_name(op, rank_of(sizes))}:{sizes}").request()


@functools.cache
def sample_requests(op: str) -> tuple[Request, ...]:
    """Small problems of one table op, in float32 and NCHW."""
    scalar = (Request(op, PointwiseGeometry(()), "f32"),) if OPS[op].geometry == "PointwiseGeometry" else ()
    return (*scalar, *(parse(op, text) for text in SIZES[op]))


@functools.cache
def large_requests(op: str) -> tuple[Request, ...]:
    """Problems of one table op that several threads share."""
    return tuple(parse(op, text) for text in LARGE[op])


def with_columns(request: Request, dtype: str, layout: str, precision: str = "f32") -> Request:
    """The same problem in other types and another layout."""
    return replace(request, dtype=dtype, layout=layout, precision=precision)


def label(request: Request) -> str:
    """The request as a problem string."""
    return str(problem.from_request(request))


def generator(*key: Any) -> np.random.Generator:
    """Random numbers that depend on ``SEED`` and the key alone."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


INTEGERS, NORMAL = "integers", "normal"  # kinds of values: small whole numbers, of which sums are exact; a bell curve


def values(kind: str, shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """An array of random values of a kind; integer types have small whole numbers in any case."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.kind == "u":
        return rng.integers(0, 5, shape).astype(dtype)
    if kind == INTEGERS or dtype.kind == "i":
        return rng.integers(-4, 5, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def sample_inputs(request: Request, kind: str) -> tuple[np.ndarray | None, ...]:
    """Arrays for the inputs of a request, C-contiguous; None where an optional one is absent."""
    rng = generator(label(replace(request, dtype="f32", layout="NCHW", precision="f32")), kind)
    inputs: list[np.ndarray | None] = []
    for operand in OPS[request.op].inputs:
        if not operand.present(request):
            inputs.append(None)
            continue
        shape, dtype = operand.array_shape(request), operand.array_dtype(request)
        if operand.name == "indices":
            inputs.append(_indices(request, rng))
        elif operand.name == "labels":
            inputs.append(rng.integers(0, request.geometry.classes, shape))
        elif operand.name in ("var", "rstd"):
            inputs.append(rng.uniform(0.5, 2, shape).astype(dtype))
        elif operand.name == "y" and request.op != "relu_grad":  # what tanh and the sigmoid give
            inputs.append(rng.uniform(-1 if request.op == "tanh_grad" else 0, 1, shape).astype(dtype))
        else:
            inputs.append(values(kind, shape, dtype, rng))
    return tuple(inputs)


_FORWARD = {"max_pool_grad": "max_pool", "adaptive_max_pool_grad": "adaptive_max_pool"}


def _indices(request: Request, rng: np.random.Generator) -> np.ndarray:
    """Indices that a forward call gives for whole numbers, ties among them; for unpooling any places of the plane."""
    operand = next(o for o in OPS[request.op].inputs if o.name == "indices")
    shape, dtype = operand.array_shape(request), operand.array_dtype(request)
    if request.op not in _FORWARD:
        return rng.integers(0, max(1, prod(request.geometry.output)), shape)
    options = (("indices", dict(request.options).get("indices", "torch")),)
    forward = Request(_FORWARD[request.op], request.geometry, "f32", request.layout, options=options)
    x = rng.integers(-4, 5, OPS[forward.op].inputs[0].array_shape(forward)).astype(np.float32)
    row = next(row for row in reference_kernels() if row.op == forward.op)
    indices = np.empty(shape, dtype)
    row.run(forward, (x,), (np.empty(shape, np.float32), indices))
    return indices
