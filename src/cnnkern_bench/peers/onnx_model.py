"""A one-layer ONNX model as bytes, written without the onnx package.

ONNX is protobuf: each field is a key (number * 8 + wire type) and a value, an integer in base 128 or a length and
bytes. Field numbers are those of onnx.proto3, which are fixed for good.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnkern.problem import Problem

from . import Cannot, logical

_ELEMENT_TYPES = {"float32": 1, "float16": 10, "float64": 11}
_IR_VERSION, _OPSET = 8, 17


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: int | float | Sequence[int]) -> bytes:
    if isinstance(value, int):
        body = _int(3, value) + _int(20, 2)  # i, type INT
    elif isinstance(value, float):
        body = _varint(2 << 3 | 5) + struct.pack("<f", value) + _int(20, 1)  # f, type FLOAT
    else:
        body = b"".join(_int(8, item) for item in value) + _int(20, 7)  # ints, type INTS
    return _bytes(1, name) + body


def _node(op: str, inputs: Sequence[str], output: str, attributes: dict[str, Any]) -> bytes:
    body = b"".join(_bytes(1, name) for name in inputs) + _bytes(2, output) + _bytes(4, op)
    return body + b"".join(_bytes(5, _attribute(name, value)) for name, value in attributes.items())


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_int(1, size) for size in array.shape)
    return dims + _int(2, _ELEMENT_TYPES[array.dtype.name]) + _bytes(8, name) + _bytes(9, array.tobytes())


def _value(name: str, shape: Sequence[int], element: int) -> bytes:
    dims = b"".join(_bytes(1, _int(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _int(1, element) + _bytes(2, dims)))


def model(problem: Problem, inputs: dict[str, np.ndarray]) -> tuple[bytes, dict[str, np.ndarray], tuple[int, ...]]:
    """The layer as a model: its bytes, the arrays to feed by name, the shape of "y". Weights are constants inside.

    Raises:
        Cannot: ONNX or its runtimes on the CPU have no such layer.
    """
    if problem.layout != "NCHW":
        raise Cannot("ONNX knows NCHW only")
    if problem.outputs[0].dtype.name not in _ELEMENT_TYPES:
        raise Cannot(f"no model is written for {problem.dtype}")
    if problem.op not in _LAYERS:
        raise Cannot(f"ONNX has no layer for {problem.op_name}")
    op, operands, attributes = _LAYERS[problem.op](problem)
    present = [name for name in operands if name in inputs]
    feeds = {name: inputs[name] for name in present if name in ("x", "grad_output", "residual")}
    constants = {name: inputs[name] for name in present if name not in feeds}
    steps = [(op, [name for name in present if name != "residual"], attributes)]
    if "residual" in feeds:
        steps.append(("Add", ["", "residual"], {}))
    if dict(problem.options).get("activation") == "relu":
        steps.append(("Relu", [""], {}))
    element = _ELEMENT_TYPES[problem.outputs[0].dtype.name]
    graph, previous = b"", ""
    for number, (name, names, values) in enumerate(steps):
        result = "y" if number == len(steps) - 1 else f"t{number}"
        graph += _bytes(1, _node(name, [n or previous for n in names], result, values))
        previous = result
    graph += _bytes(2, "layer")
    graph += b"".join(_bytes(5, _tensor(name, np.ascontiguousarray(array))) for name, array in constants.items())
    graph += b"".join(_bytes(11, _value(name, array.shape, element)) for name, array in feeds.items())
    graph += _bytes(12, _value("y", problem.outputs[0].shape, element))
    opset = _bytes(8, _bytes(1, "") + _int(2, _OPSET))
    contiguous = {name: np.ascontiguousarray(logical(array, problem.layout)) for name, array in feeds.items()}
    return _int(1, _IR_VERSION) + opset + _bytes(7, graph), contiguous, problem.outputs[0].shape


def _windows(problem: Problem) -> dict[str, Any]:
    g = problem.geometry
    pads = (*g.pad_before, *g.pad_after)
    return {"kernel_shape": g.kernel, "strides": g.stride, "dilations": g.dilation, "pads": pads}


def _conv(problem: Problem) -> tuple[str, list[str], dict[str, Any]]:
    return "Conv", ["x", "weight", "bias", "residual"], {**_windows(problem), "group": problem.geometry.groups}


def _conv_transpose(problem: Problem) -> tuple[str, list[str], dict[str, Any]]:
    g = problem.geometry
    rows = zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after)
    extra = tuple(size - ((out - 1) * s - b - a + d * (k - 1) + 1) for size, out, k, s, d, b, a in rows)
    attributes = {**_windows(problem), "group": g.groups, "output_padding": extra}
    return "ConvTranspose", ["grad_output", "weight", "bias", "residual"], attributes


def _pool(op: str) -> Any:
    def build(problem: Problem) -> tuple[str, list[str], dict[str, Any]]:
        attributes = {**_windows(problem), "ceil_mode": int(problem.ceil_mode)}
        if op == "AveragePool":
            if problem.option("divisor"):
                raise Cannot("ONNX has no divisor of its own")
            del attributes["dilations"]
            attributes["count_include_pad"] = int(problem.option("count_include_pad"))
        elif problem.option("indices"):
            raise Cannot("ONNX numbers indices otherwise")
        return op, ["x"], attributes

    return build


def _local_response_norm(problem: Problem) -> tuple[str, list[str], dict[str, Any]]:
    size = problem.option("size")
    values = {"alpha": problem.option("alpha") * size, "beta": problem.option("beta"), "bias": problem.option("k")}
    return "LRN", ["x"], {"size": size, **{name: float(value) for name, value in values.items()}}


def _relu(problem: Problem) -> tuple[str, list[str], dict[str, Any]]:
    return "Relu", ["x"], {}


_LAYERS = {
    "conv": _conv,
    "conv_grad_input": _conv_transpose,
    "max_pool": _pool("MaxPool"),
    "avg_pool": _pool("AveragePool"),
    "local_response_norm": _local_response_norm,
    "relu": _relu,
}
