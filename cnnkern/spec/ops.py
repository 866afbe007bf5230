"""One OpSpec per table op: operands, options, counts of operations and bytes.

Table ops are finer than public ops: ``conv2d_backward`` is a ``conv_grad_input``, a ``conv_grad_weight`` and a
``channel_sum``; a transposed convolution is a ``conv_grad_input`` forward and a ``conv`` backward. Their names here
carry no rank; ``op_name`` adds it (``conv2d_grad_input``), and that is the name in case strings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .kernel import Request

DTYPES = {  # short name -> NumPy name; bf16 is ml_dtypes' and looked up on use
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "uint8",
    "i16": "int16",
    "u16": "uint16",
    "i32": "int32",
    "u32": "uint32",
    "i64": "int64",
    "u64": "uint64",
    "bool": "bool",
}
SHORT_DTYPES = {long: short for short, long in DTYPES.items()}


def numpy_dtype(short: str) -> np.dtype:
    if short == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(DTYPES[short])


@dataclass(frozen=True)
class Operand:
    """An array of a table op. ``map``: batch, channels, spatial axes, permuted by the request's layout."""

    name: str
    shape: Callable[[Any], tuple[int, ...]]  # of the geometry, in logical order
    map: bool = True
    dtype: str | Callable[[Request], str] | None = None  # None: the request's
    given_by: str | None = None  # optional operand: the option that says whether it is there

    def present(self, request: Request) -> bool:
        return self.given_by is None or request.option(self.given_by) not in (False, None)

    def array_shape(self, request: Request) -> tuple[int, ...]:
        """Shape of the array itself, axes in the request's layout."""
        shape = self.shape(request.geometry)
        if self.map and request.layout == "NHWC" and len(shape) >= 3:
            return (shape[0], *shape[2:], shape[1])
        return shape

    def array_dtype(self, request: Request) -> np.dtype:
        dtype = self.dtype(request) if callable(self.dtype) else self.dtype
        return numpy_dtype(dtype or request.dtype)


@dataclass(frozen=True)
class OpSpec:
    """What a table op takes and gives, apart from any kernel."""

    name: str  # "{n}" stands where the rank goes
    geometry: str  # the geometry class
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    flops: Callable[[Request], int]
    options: dict[str, Any] = field(default_factory=dict)  # name -> default
    values: tuple[str, ...] = ()  # options that say what is computed but not how: no choice of a row depends on them

    @property
    def ranks(self) -> tuple[int, ...]:
        return (1, 2, 3) if "{n}" in self.name else (0, 1, 2, 3)

    def bytes(self, request: Request) -> int:
        """Bytes read and written if every operand moves once."""
        operands = [o for o in (*self.inputs, *self.outputs) if o.present(request)]
        return sum(prod(o.shape(request.geometry)) * o.array_dtype(request).itemsize for o in operands)


def _geometry(request: Request) -> Any:
    """The geometry as the class that the op's spec names; which one it is, type checkers cannot know."""
    return request.geometry


def _x(g: Any) -> tuple[int, ...]:
    return g.x_shape


def _y(g: Any) -> tuple[int, ...]:
    return g.y_shape


def _weight(g: Any) -> tuple[int, ...]:
    return g.weight_shape


def _channels(g: Any) -> tuple[int, ...]:
    return (g.channels,)


def _same(g: Any) -> tuple[int, ...]:
    return g.shape


def window_index_dtype(request: Request) -> str:
    """Smallest type that numbers the cells of a window."""
    return "u8" if prod(_geometry(request).kernel) <= 256 else "u16"


def _index_dtype(request: Request) -> str:
    return window_index_dtype(request) if request.option("indices") == "window" else "i64"


def _accumulator(request: Request) -> str:
    return {"i8": "i32", "u8": "i32"}.get(request.dtype, request.dtype)


def _statistics(request: Request) -> str:
    return {"f16": "f32", "bf16": "f32"}.get(request.dtype, request.dtype)


def _conv_flops(request: Request) -> int:
    g = _geometry(request)
    return 2 * g.batch * g.out_channels * prod(g.output) * g.reduction


def _pool_flops(request: Request) -> int:
    g = _geometry(request)
    return prod(g.y_shape) * prod(g.kernel)


def _touch_x(request: Request) -> int:
    return prod(_geometry(request).x_shape)


def _touch_y(request: Request) -> int:
    return prod(_geometry(request).y_shape)


def _touch(request: Request) -> int:
    return prod(_geometry(request).shape)


def _vector(length: Callable[[Any], tuple[int, ...]], name: str, given_by: str | None = None, **kw: Any) -> Operand:
    return Operand(name, length, map=False, given_by=given_by, **kw)


_CONV_EPILOGUE = {"bias": False, "residual": False, "activation": None}
_INDICES = {"indices": "torch"}  # "torch": int64 offsets in a plane; "window": offsets in the window; None: not wanted

OPS: dict[str, OpSpec] = {
    "conv": OpSpec(
        "conv{n}d",
        "ConvGeometry",
        (
            Operand("x", _x),
            Operand("weight", _weight, map=False, dtype=lambda r: r.option("weight_dtype") or r.dtype),
            _vector(lambda g: (g.out_channels,), "bias", "bias", dtype=_accumulator),
            Operand("residual", _y, given_by="residual", dtype=_accumulator),
        ),
        (Operand("out", _y, dtype=_accumulator),),
        _conv_flops,
        {**_CONV_EPILOGUE, "weight_dtype": None},
    ),
    "conv_grad_input": OpSpec(  # bias, residual and activation serve the transposed convolution
        "conv{n}d_grad_input",
        "ConvGeometry",
        (
            Operand("grad_output", _y),
            Operand("weight", _weight, map=False),
            _vector(lambda g: (g.in_channels,), "bias", "bias"),
            Operand("residual", _x, given_by="residual"),
        ),
        (Operand("grad_x", _x),),
        _conv_flops,
        _CONV_EPILOGUE,
    ),
    "conv_grad_weight": OpSpec(
        "conv{n}d_grad_weight",
        "ConvGeometry",
        (Operand("grad_output", _y), Operand("x", _x)),
        (Operand("grad_weight", _weight, map=False),),
        _conv_flops,
    ),
    "channel_sum": OpSpec(  # the bias gradient
        "channel_sum",
        "ChannelGeometry",
        (Operand("x", _x),),
        (_vector(_channels, "out"),),
        _touch_x,
    ),
    "max_pool": OpSpec(
        "max_pool{n}d",
        "PoolGeometry",
        (Operand("x", _x),),
        (Operand("out", _y), Operand("indices", _y, dtype=_index_dtype, given_by="indices")),
        _pool_flops,
        {"indices": None},
    ),
    "max_pool_grad": OpSpec(
        "max_pool{n}d_grad",
        "PoolGeometry",
        (Operand("grad_output", _y), Operand("indices", _y, dtype=_index_dtype)),
        (Operand("grad_x", _x),),
        _touch_y,
        _INDICES,
    ),
    "avg_pool": OpSpec(
        "avg_pool{n}d",
        "PoolGeometry",
        (Operand("x", _x),),
        (Operand("out", _y),),
        _pool_flops,
        {"count_include_pad": True, "divisor": None},
    ),
    "avg_pool_grad": OpSpec(
        "avg_pool{n}d_grad",
        "PoolGeometry",
        (Operand("grad_output", _y),),
        (Operand("grad_x", _x),),
        _pool_flops,
        {"count_include_pad": True, "divisor": None},
    ),
    "lp_pool": OpSpec(
        "lp_pool{n}d", "PoolGeometry", (Operand("x", _x),), (Operand("out", _y),), _pool_flops, {"norm_type": 2.0}
    ),
    "lp_pool_grad": OpSpec(
        "lp_pool{n}d_grad",
        "PoolGeometry",
        (Operand("grad_output", _y), Operand("x", _x)),
        (Operand("grad_x", _x),),
        _pool_flops,
        {"norm_type": 2.0},
    ),
    "adaptive_avg_pool": OpSpec(
        "adaptive_avg_pool{n}d", "ResizeGeometry", (Operand("x", _x),), (Operand("out", _y),), _touch_x
    ),
    "adaptive_avg_pool_grad": OpSpec(
        "adaptive_avg_pool{n}d_grad",
        "ResizeGeometry",
        (Operand("grad_output", _y),),
        (Operand("grad_x", _x),),
        _touch_x,
    ),
    "adaptive_max_pool": OpSpec(
        "adaptive_max_pool{n}d",
        "ResizeGeometry",
        (Operand("x", _x),),
        (Operand("out", _y), Operand("indices", _y, dtype="i64", given_by="indices")),
        _touch_x,
        {"indices": None},
    ),
    "adaptive_max_pool_grad": OpSpec(
        "adaptive_max_pool{n}d_grad",
        "ResizeGeometry",
        (Operand("grad_output", _y), Operand("indices", _y, dtype="i64")),
        (Operand("grad_x", _x),),
        _touch_y,
    ),
    "max_unpool": OpSpec(
        "max_unpool{n}d",
        "ResizeGeometry",
        (Operand("x", _x), Operand("indices", _x, dtype="i64")),
        (Operand("out", _y),),
        _touch_x,
    ),
    "max_unpool_grad": OpSpec(
        "max_unpool{n}d_grad",
        "ResizeGeometry",
        (Operand("grad_output", _y), Operand("indices", _x, dtype="i64")),
        (Operand("grad_x", _x),),
        _touch_x,
    ),
    "local_response_norm": OpSpec(  # alpha is the factor of the sum of squares: already divided by size for "mean"
        "local_response_norm",
        "ChannelGeometry",
        (Operand("x", _x),),
        (Operand("out", _x),),
        lambda r: _touch_x(r) * (r.option("size") + 3),
        {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0},
    ),
    "local_response_norm_grad": OpSpec(
        "local_response_norm_grad",
        "ChannelGeometry",
        (Operand("grad_output", _x), Operand("x", _x)),
        (Operand("grad_x", _x),),
        lambda r: _touch_x(r) * (2 * r.option("size") + 6),
        {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 1.0},
    ),
    "batch_norm": OpSpec(  # inference: given statistics
        "batch_norm",
        "ChannelGeometry",
        (
            Operand("x", _x),
            _vector(_channels, "mean", dtype=_statistics),
            _vector(_channels, "var", dtype=_statistics),
            _vector(_channels, "weight", "weight", dtype=_statistics),
            _vector(_channels, "bias", "bias", dtype=_statistics),
        ),
        (Operand("out", _x),),
        lambda r: 2 * _touch_x(r),
        {"weight": False, "bias": False, "eps": 1e-5},
    ),
    "batch_norm_training": OpSpec(  # gives the batch's mean, biased variance and 1/sqrt(variance + eps)
        "batch_norm_training",
        "ChannelGeometry",
        (
            Operand("x", _x),
            _vector(_channels, "weight", "weight", dtype=_statistics),
            _vector(_channels, "bias", "bias", dtype=_statistics),
        ),
        (
            Operand("out", _x),
            _vector(_channels, "mean", dtype=_statistics),
            _vector(_channels, "var", dtype=_statistics),
            _vector(_channels, "rstd", dtype=_statistics),
        ),
        lambda r: 5 * _touch_x(r),
        {"weight": False, "bias": False, "eps": 1e-5},
    ),
    "batch_norm_grad": OpSpec(
        "batch_norm_grad",
        "ChannelGeometry",
        (
            Operand("grad_output", _x),
            Operand("x", _x),
            _vector(_channels, "weight", "weight", dtype=_statistics),
            _vector(_channels, "mean", dtype=_statistics),
            _vector(_channels, "rstd", dtype=_statistics),
        ),
        (
            Operand("grad_x", _x),
            _vector(_channels, "grad_weight", dtype=_statistics),
            _vector(_channels, "grad_bias", dtype=_statistics),
        ),
        lambda r: 8 * _touch_x(r),
        {"weight": False, "training": True},
    ),
    **{
        name: OpSpec(
            name, "PointwiseGeometry", (Operand("x", _same, map=False),), (Operand("out", _same, map=False),), _touch
        )
        for name in ("relu", "tanh", "sigmoid")
    },
    **{
        f"{name}_grad": OpSpec(  # y is the op's output
            f"{name}_grad",
            "PointwiseGeometry",
            (Operand("grad_output", _same, map=False), Operand("y", _same, map=False)),
            (Operand("grad_x", _same, map=False),),
            _touch,
        )
        for name in ("relu", "tanh", "sigmoid")
    },
    "dropout": OpSpec(
        "dropout",
        "PointwiseGeometry",
        (Operand("x", _same, map=False),),
        (Operand("out", _same, map=False), Operand("mask", _same, map=False, dtype="bool")),
        _touch,
        {"p": 0.5, "seed": 0},
        values=("seed",),
    ),
    "dropout_grad": OpSpec(
        "dropout_grad",
        "PointwiseGeometry",
        (Operand("grad_output", _same, map=False), Operand("mask", _same, map=False, dtype="bool")),
        (Operand("grad_x", _same, map=False),),
        _touch,
        {"p": 0.5},
    ),
    "unfold": OpSpec(  # groups 1; out is (batch, channels * kernel cells, output positions), PyTorch's order
        "unfold{n}d",
        "ConvGeometry",
        (Operand("x", _x),),
        (Operand("out", lambda g: (g.batch, g.in_channels * prod(g.kernel), prod(g.output)), map=False),),
        lambda r: _geometry(r).batch * _geometry(r).reduction * prod(_geometry(r).output),
    ),
    "fold": OpSpec(
        "fold{n}d",
        "ConvGeometry",
        (Operand("x", lambda g: (g.batch, g.in_channels * prod(g.kernel), prod(g.output)), map=False),),
        (Operand("out", _x),),
        lambda r: _geometry(r).batch * _geometry(r).reduction * prod(_geometry(r).output),
    ),
    "softmax_cross_entropy": OpSpec(
        "softmax_cross_entropy",
        "ClassGeometry",
        (
            Operand("logits", lambda g: (g.rows, g.classes), map=False),
            Operand("labels", lambda g: (g.rows,), map=False, dtype="i64"),
        ),
        (
            Operand("loss", lambda g: (), map=False),
            Operand("grad_logits", lambda g: (g.rows, g.classes), map=False),
        ),
        lambda r: 5 * _geometry(r).rows * _geometry(r).classes,
        {"label_smoothing": 0.0},
    ),
}


def op_name(op: str, rank: int) -> str:
    """Table op and rank -> the name in case strings: ("conv_grad_input", 2) -> "conv2d_grad_input"."""
    return OPS[op].name.format(n=rank)
