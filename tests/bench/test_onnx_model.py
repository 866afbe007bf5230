"""The hand-written protobuf of one-layer ONNX models, read back by a reader that knows the wire format only."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from cnnkern.problem import parse
from cnnkern_bench import data
from cnnkern_bench.peers import Cannot
from cnnkern_bench.peers.onnx_model import model


def fields(content: bytes) -> dict[int, list]:
    """Field number -> values: ints, or bytes (four of them for a float)."""
    found: dict[int, list] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(content):
        key = varint()
        if key & 7 == 0:
            value: object = varint()
        else:
            size = 4 if key & 7 == 5 else varint()
            value = content[position : position + size]
            position += size
        found.setdefault(key >> 3, []).append(value)
    return found


def built(text: str):
    problem = parse(text)
    inputs = data.inputs(problem, "time", 0)
    content, feeds, shape = model(problem, inputs)
    graph = fields(fields(content)[7][0])
    return problem, inputs, fields(content), [fields(node) for node in graph[1]], graph, feeds, shape


def test_convolution_with_everything() -> None:
    problem, inputs, top, nodes, graph, feeds, shape = built(
        "conv2d:g2mb2ic8ih11iw9oc6kh3sh2dh1ph2@bias=1@act=relu@res=1"
    )
    assert top[1] == [8] and fields(top[8][0])[2] == [17]  # ir version, opset
    assert [node[4] for node in nodes] == [[b"Conv"], [b"Add"], [b"Relu"]]
    assert nodes[0][1] == [b"x", b"weight", b"bias"] and nodes[1][1] == [nodes[0][2][0], b"residual"]
    assert nodes[2][2] == [b"y"]
    attributes = {fields(a)[1][0]: fields(a) for a in nodes[0][5]}
    assert attributes[b"pads"][8] == [2, 2, 2, 2] and attributes[b"strides"][8] == [2, 2]
    assert attributes[b"dilations"][8] == [2, 2] and attributes[b"group"][3] == [2]
    weight = next(t for t in map(fields, graph[5]) if t[8] == [b"weight"])
    assert (weight[1], weight[2]) == ([6, 4, 3, 3], [1])
    assert np.array_equal(np.frombuffer(weight[9][0], np.float32), inputs["weight"].ravel())
    assert list(feeds) == ["x", "residual"] and shape == problem.outputs[0].shape


def test_floats_and_negative_free_attributes() -> None:
    *_, nodes, _, _, _ = built("local_response_norm:mb1ic8ih4@alpha=0.0002@k=2")
    attributes = {fields(a)[1][0]: fields(a) for a in nodes[0][5]}
    assert struct.unpack("<f", attributes[b"alpha"][2][0])[0] == pytest.approx(0.001)  # ONNX divides by size
    assert attributes[b"size"][3] == [5]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("conv2d:mb1ic4ih6oc4kh3@layout=NHWC", "NCHW only"),
        ("conv2d_grad_weight:mb1ic4ih6oc4kh3", "no layer for conv2d_grad_weight"),
        ("avg_pool2d:mb1ic4ih6kh3@div=5", "no divisor"),
        ("max_pool2d:mb1ic4ih6kh3@indices=torch", "indices"),
    ],
)
def test_what_has_no_model_says_so(text: str, sentence: str) -> None:
    with pytest.raises(Cannot, match=sentence):
        built(text)
