"""The C++ backend: rows of csrc/kernels.inc, compiled per instruction set, run through ``_cnnkern_core``.

A request becomes the params struct of its family (csrc/geometry.h) and a call becomes one native Program. The struct
layouts below repeat geometry.h; their sizes are compared when the module loads, and every kernel checks them again.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _cnnkern_core as core
from .. import config
from ..spec import (
    OPS,
    PRECISIONS,
    ChannelGeometry,
    ClassGeometry,
    ConvGeometry,
    Kernel,
    Operand,
    PointwiseGeometry,
    PoolGeometry,
    Request,
    ResizeGeometry,
)
from ..spec.sentences import bad_index, bad_label, index_shape
from . import cpp_cost

if TYPE_CHECKING:
    from ..plan import Call

lookup = core.lookup
set_settings = core.set_settings
forget_rows = core.forget_rows

AXES = 3
_NO_SLOT = -1
_INDEX_KINDS = {None: 0, "u8": 1, "u16": 2, "i64": 3}


def _axes(values: Sequence[int], fill: int) -> list[int]:
    """Three spatial axes from one to three: leading ones are units."""
    return [fill] * (AXES - len(values)) + list(values)


def _index_kind(request: Request) -> int:
    spec = OPS[request.op]
    for operand in (*spec.inputs, *spec.outputs):
        if operand.name == "indices" and operand.present(request):
            dtype = operand.dtype(request) if callable(operand.dtype) else operand.dtype
            return _INDEX_KINDS[dtype]
    return 0


def _option(request: Request, name: str, default: Any) -> Any:
    return request.option(name) if name in OPS[request.op].options else default


def _conv_params(request: Request, g: ConvGeometry) -> bytes:
    values = [g.batch, g.groups, g.in_channels, g.out_channels]
    values += _axes(g.input, 1) + _axes(g.output, 1) + _axes(g.kernel, 1)
    values += _axes(g.stride, 1) + _axes(g.dilation, 1) + _axes(g.pad_before, 0)
    values += [int(_option(request, "activation", None) == "relu")]
    values += [int((_option(request, "weight_dtype", None) or request.dtype) == "u8")]
    return struct.pack("=24q", *values)


def _pool_params(request: Request, g: PoolGeometry) -> bytes:
    values = [g.batch, g.channels]
    values += _axes(g.input, 1) + _axes(g.output, 1) + _axes(g.kernel, 1) + _axes(g.stride, 1) + _axes(g.dilation, 1)
    values += _axes(g.pad_before, 0) + _axes(g.pad_after, 0)
    values += [_index_kind(request), int(_option(request, "count_include_pad", True))]
    values += [_option(request, "divisor", None) or 0]
    return struct.pack("=26qd", *values, float(_option(request, "norm_type", 0.0)))


def _resize_params(request: Request, g: ResizeGeometry) -> bytes:
    return struct.pack("=9q", g.batch, g.channels, *_axes(g.input, 1), *_axes(g.output, 1), _index_kind(request))


def _channel_params(request: Request, g: ChannelGeometry) -> bytes:
    integers = [g.batch, g.channels, *_axes(g.spatial, 1)]
    integers += [_option(request, "size", 0), int(_option(request, "training", False))]
    reals = [float(_option(request, name, 0.0)) for name in ("alpha", "beta", "k", "eps")]
    return struct.pack("=7q4d", *integers, *reals)


def _pointwise_params(request: Request, g: PointwiseGeometry) -> bytes:
    shape = (1,) * (5 - len(g.shape)) + g.shape
    return struct.pack("=5qdQ", *shape, float(_option(request, "p", 0.0)), _option(request, "seed", 0) & (2**64 - 1))


def _class_params(request: Request, g: ClassGeometry) -> bytes:
    return struct.pack("=2qd", g.rows, g.classes, float(_option(request, "label_smoothing", 0.0)))


_FAMILIES: dict[str, tuple[type, Callable[[Request, Any], bytes], int]] = {
    "conv": (ConvGeometry, _conv_params, 24),
    "pool": (PoolGeometry, _pool_params, 27),
    "resize": (ResizeGeometry, _resize_params, 9),
    "channel": (ChannelGeometry, _channel_params, 11),
    "pointwise": (PointwiseGeometry, _pointwise_params, 7),
    "class": (ClassGeometry, _class_params, 3),
}

for _family in _FAMILIES:
    _words = _FAMILIES[_family][2]
    if core.struct_sizes()[_family] != 8 * (_words + 1):
        raise ImportError(f"_cnnkern_core was built from another version: struct {_family} differs. Build again.")


def params(request: Request) -> bytes:
    """The params struct of a request; its first field is its own size."""
    for geometry, fields, words in _FAMILIES.values():
        if isinstance(request.geometry, geometry):
            return struct.pack("=q", 8 * (words + 1)) + fields(request, request.geometry)
    raise TypeError(f"no native family for {request.geometry!r}")


def _strides(operand: Operand, request: Request, array: np.ndarray | None, shape: tuple[int, ...], item: int) -> list:
    """Five strides in elements, in the order of ck_tensor, for an array or (None) a new C-contiguous one."""
    if array is None:
        byte_strides: list[int] = []
        step = item
        for extent in reversed(shape):
            byte_strides.insert(0, step)
            step *= max(extent, 1)
    else:
        byte_strides = list(array.strides)
    strides = [s // item for s in byte_strides]
    if not operand.map and isinstance(request.geometry, PointwiseGeometry):
        return [0] * (5 - len(strides)) + strides
    rank = len(strides) - 2
    if operand.map and rank >= 1:  # batch, channel, spatial
        if request.layout == "NHWC":
            strides = [strides[0], strides[-1], *strides[1:-1]]
        return strides[:2] + [0] * (AXES - rank) + strides[2:]
    if isinstance(request.geometry, ConvGeometry) and operand.name in ("weight", "grad_weight"):
        return strides[:2] + [0] * (AXES - rank) + strides[2:]
    return strides + [0] * (5 - len(strides))


class NativeStep:
    """A native row bound to a request: what ``prepare`` gives."""

    __slots__ = ("params", "request", "row")

    def __init__(self, row: int, request: Request) -> None:
        self.row = row
        self.request = request
        self.params = params(request)

    def operands(self, slots: Sequence[int | None], arrays: Sequence[np.ndarray | None], shapes: Sequence) -> list:
        """(slot, offset, strides) of each operand; an array that is None is a new one of the given (shape, dtype)."""
        spec = OPS[self.request.op]
        bound = []
        for operand, slot, array, new in zip((*spec.inputs, *spec.outputs), slots, arrays, shapes):
            if slot is None:
                bound.append((_NO_SLOT, 0, [0] * 5))
            elif array is not None:
                bound.append((slot, 0, _strides(operand, self.request, array, array.shape, array.itemsize)))
            else:
                shape, dtype = new
                bound.append((slot, 0, _strides(operand, self.request, None, shape, dtype.itemsize)))
        return bound


def program(call: Call, kernels: Sequence[Kernel], arrays: Sequence[np.ndarray | None]) -> core.Program:
    """Bind a call, whose every step has a native row, to the strides of ``arrays``."""
    outputs = [(o.dtype, o.shape, _NO_SLOT if o.into is None else o.into) for o in call.outputs]
    slot_arrays = [*arrays, *(None if o.into is None else arrays[o.into] for o in call.outputs)]
    slot_shapes = [*(None for _ in arrays), *((o.shape, o.dtype) for o in call.outputs)]
    steps = []
    for step, kernel in zip(call.steps, kernels):
        native: NativeStep = kernel.prepare(step.request, None)
        slots = (*step.inputs, *step.outputs)
        picked = [None if s is None else slot_arrays[s] for s in slots]
        shapes = [None if s is None else slot_shapes[s] for s in slots]
        steps.append((native.row, native.params, native.operands(slots, picked, shapes)))
    return core.Program(call.inputs, outputs, steps, call.returns, _Failure([step.request for step in call.steps]))


class _Failure:
    """Words the error of a kernel that found a bad value in the data."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests

    def __call__(self, step: int, kind: str, value: int, place: int) -> Exception:
        request = self.requests[step]
        if kind == "label":
            return bad_label(request, value, place)
        position = np.unravel_index(place, index_shape(request))
        return bad_index(request, value, tuple(int(i) for i in position))


def _run(step: NativeStep, inputs: tuple, outputs: tuple) -> None:
    """Run one row on arrays of its own: the slow path, and tests that drive a row directly."""
    arrays = (*inputs, *outputs)
    slots = [None if array is None else i for i, array in enumerate(arrays)]
    bound = step.operands(slots, arrays, [None] * len(arrays))
    core.Program(len(arrays), [], [(step.row, step.params, bound)], (), _Failure([step.request])).run(arrays)


Cache = core.Cache


def packed_program(
    call: Call, kernel: Kernel, arrays: Sequence[np.ndarray | None], packed: core.Program | None
) -> core.Program:
    """A one-step program whose weights are packed now, or shared with ``packed``."""
    config.sync()  # a thread that only runs plans has not been told its settings yet
    native = program(call, [kernel], arrays)
    if packed is not None:
        native.share_packed(0, packed)
    elif native.packs:
        slot = call.steps[0].inputs[1]
        assert slot is not None
        native.pack(0, np.asarray(arrays[slot]))
    return native


def remember(native: core.Program, arrays: tuple, key: tuple) -> None:
    """Run this program for later calls whose key is equal."""
    core.remember(native, arrays, *key)


def last_rows() -> tuple[str, ...]:
    """Rows that this thread's last native program reported: ``conv.cpp.direct.avx2.f32``."""
    return tuple(f"{op}.cpp.{algorithm}.{isa}.{dtype}" for op, algorithm, isa, dtype in core.last_rows())


_ROWS: dict[tuple[str, str, str], dict[str, int]] = {}  # (op, algorithm, isa) -> dtype -> native row
_LEVELS: dict[tuple[str, str, str], tuple[str, ...]] = {}  # of the same rows: the precisions served
_ISAS: dict[str, str | None] = {}  # isa -> why this CPU lacks it
for _index, _op, _algorithm, _isa, _dtype, _, _operands, _missing, _, _precision in core.rows():
    if _operands != len(OPS[_op].inputs) + len(OPS[_op].outputs):
        raise ImportError(f"_cnnkern_core was built from another version: operands of {_op} differ. Build again.")
    _ROWS.setdefault((_op, _algorithm, _isa), {})[_dtype] = _index
    _LEVELS[_op, _algorithm, _isa] = PRECISIONS[PRECISIONS.index(_precision) :]
    _ISAS[_isa] = _missing


def isas() -> tuple[str, ...]:
    """Instruction sets that this build has and this CPU offers, weakest first."""
    return tuple(isa for isa in config.ISAS if isa in _ISAS and _ISAS[isa] is None)


def kernels() -> list[Kernel]:
    """One row for each line of csrc/kernels.inc and instruction set, best instruction set first."""
    return [
        Kernel(
            op=op,
            backend="cpp",
            algorithm=algorithm,
            isa=isa,
            dtypes=tuple(rows),
            layouts=("NCHW", "NHWC"),
            ranks=OPS[op].ranks,
            precisions=_LEVELS[op, algorithm, isa],
            run=_run,
            prepare=functools.partial(_prepare, rows),
            why_not=functools.partial(_why_not, rows),
            cost=cpp_cost.cost(op, algorithm, isa),
        )
        for (op, algorithm, isa), rows in _ROWS.items()
    ]


def _prepare(rows: dict[str, int], request: Request, weights: dict | None = None) -> NativeStep:
    return NativeStep(rows[request.dtype], request)


def _why_not(rows: dict[str, int], request: Request) -> str | None:
    if isinstance(request.geometry, PointwiseGeometry) and len(request.geometry.shape) > 5:
        return f"needs at most 5 axes, got {len(request.geometry.shape)}"
    sentence = core.why_not(rows[request.dtype], params(request))
    return sentence and sentence.format_map(_sizes(request.geometry))


def _sizes(g: Any) -> dict[str, int]:
    """What the names in a native row's sentence stand for (csrc/cnnkern.h)."""
    sizes = {}
    if isinstance(g, ConvGeometry):
        sizes = {"groups": g.groups, "products": g.reduction}
        sizes |= {"in_per_group": g.in_channels // g.groups, "out_per_group": g.out_channels // g.groups}
    if isinstance(g, PoolGeometry):
        sizes["cells"] = math.prod(g.kernel)
    if isinstance(g, (ConvGeometry, PoolGeometry, ResizeGeometry)):
        sizes.update(width=g.output[-1], plane=math.prod(g.input))
    return sizes


core.set_spin_us(config.spin_us)
core.set_result_cache(config.result_cache_mb << 20)
config.subscribe(set_settings, core.forget_all_settings)
