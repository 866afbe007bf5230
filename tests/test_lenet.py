"""A trained network on real input: the LeNet of examples/lenet_digits.py, by cnnkern's ops alone.

What must come out was recorded: logits that PyTorch computed for 200 digits, and which of MNIST's 10,000 test images
the network gets wrong. How near the logits must come is measured on the same digits: a plain float32 sum, one product
after the other, has an error against float64, and a kernel under the default precision may have four times that.
"""

from __future__ import annotations

import gzip
import json
import os
import runpy
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import plan
from matrix import AVAILABLE
from mnist import parse_idx, read_test_split
from oracle import exceeds_rms, rms

ROOT = Path(__file__).resolve().parent.parent
lenet = SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / "lenet_digits.py")))
LAYOUTS = ("NCHW", "NHWC")
ALLOWED = 4  # times the rms error of a sequential float32 sum: what precision "f32" promises
BATCH = 1000


class Digits(NamedTuple):
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray  # of images, by PyTorch
    misread_images: np.ndarray
    misread_labels: np.ndarray


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return lenet.load_weights()


@pytest.fixture(scope="module")
def digits() -> Digits:
    with np.load(ROOT / "tests" / "data" / "digits.npz") as file:
        return Digits(**file)


def logits(weights: dict[str, np.ndarray], images: np.ndarray, layout: str = "NCHW") -> np.ndarray:
    x = lenet.normalise(images)
    return lenet.logits(weights, np.moveaxis(x, 1, -1) if layout == "NHWC" else x, layout)


# ---- every way to run it


def each_way(reference: bool = True) -> pytest.MarkDecorator:
    """Parametrize by ``isa``: every instruction set of the build, and None for the reference."""
    ways = [
        pytest.param(isa, id=isa, marks=[] if isa in AVAILABLE else pytest.mark.skip(reason=f"this CPU lacks {isa}"))
        for isa in ck.build_info().get("isas", ())
    ]
    return pytest.mark.parametrize("isa", [*ways, pytest.param(None, id="reference")] if reference else ways)


@contextmanager
def only(isa: str | None) -> Iterator[None]:
    """Rows of one instruction set, or (None) of the reference; the block's last call proves it."""
    with ck.using(backend="cpp", isa=isa) if isa else ck.using(backend="reference"):
        yield
        (row,) = plan.last_rows()
    assert row.split(".")[1:4:2] == (["cpp", isa] if isa else ["reference", "f32"])


# ---- what the logits are compared with


def in_order(weights: dict[str, np.ndarray], images: np.ndarray, dtype: type) -> np.ndarray:
    """The network's logits in NumPy, every sum product by product in ``dtype``."""

    def layer(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        height, width = (x.shape[2 + axis] - weight.shape[2 + axis] + 1 for axis in (0, 1))
        total = np.zeros((len(x), len(weight), height, width), dtype)
        for c, r, s in np.ndindex(weight.shape[1:]):
            total += x[:, None, c, r : r + height, s : s + width] * weight[:, c, r, s, None, None].astype(dtype)
        return total + bias[:, None, None].astype(dtype)

    def pool(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max(axis=(3, 5))

    kernels = {name: weights[f"{name}.weight"] for name in ("conv1", "conv2")}
    kernels["fc1"] = weights["fc1.weight"].reshape(500, 50, 4, 4)
    kernels["fc2"] = weights["fc2.weight"][:, :, None, None]
    x = lenet.normalise(images).astype(dtype)
    for name, kernel in kernels.items():
        x = layer(x, kernel, weights[f"{name}.bias"])
        x = x if name == "fc2" else np.maximum(x, 0)
        x = pool(x) if name.startswith("conv") else x
    return x[:, :, 0, 0]


class Scale(NamedTuple):
    truth: np.ndarray
    allowed: float  # rms distance of a float32 network from the truth


@pytest.fixture(scope="module")
def scale(weights: dict[str, np.ndarray], digits: Digits) -> Scale:
    truth = in_order(weights, digits.images, np.float64)
    return Scale(truth, ALLOWED * rms(in_order(weights, digits.images, np.float32) - truth))


def test_the_recorded_logits_are_those_of_this_network(digits: Digits, scale: Scale) -> None:
    assert exceeds_rms(digits.logits, scale.truth, scale.allowed) is None
    assert scale.allowed < 1e-5 * rms(scale.truth), "too wide to mean anything"


# ---- the 200 digits


@pytest.mark.parametrize("layout", LAYOUTS)
@each_way()
def test_recorded_digits(weights, digits, scale, isa, layout):
    with only(isa):
        got = logits(weights, digits.images, layout)
    assert got.dtype == np.float32 and got.shape == digits.logits.shape
    assert exceeds_rms(got, scale.truth, scale.allowed) is None
    # PyTorch's own rounding stands between its logits and the truth.
    assert exceeds_rms(got, digits.logits, scale.allowed + rms(digits.logits - scale.truth)) is None
    assert (got.argmax(axis=1) == digits.labels).all()


@each_way()
def test_digits_that_the_network_gets_wrong(weights, digits, isa):
    with only(isa):
        got = logits(weights, digits.misread_images)
    assert (got.argmax(axis=1) != digits.misread_labels).all()


def test_one_wrong_weight_shows(weights, digits, scale):
    changed = weights["conv2.weight"].copy()
    changed.flat[abs(changed).argmax()] *= 1.01
    got = logits({**weights, "conv2.weight": changed}, digits.images)
    assert exceeds_rms(got, scale.truth, scale.allowed) is not None


@each_way()
def test_strict_precision_gives_one_digit_the_same_bits_as_two_hundred(weights, digits, isa):
    with ck.using(precision="strict"), only(isa):
        together = logits(weights, digits.images)
        with ck.using(num_threads=3):
            alone = [logits(weights, digits.images[i : i + 1]) for i in (0, 7, 199)]
    assert np.array_equal(np.concatenate(alone), together[[0, 7, 199]])


# ---- all of MNIST's test images


def data_folder() -> Path:
    """Where MNIST lies, or a skip: it is not part of the repository. A folder that lacks a file is a failure."""
    if not os.environ.get("CNNKERN_DATA"):
        pytest.skip("CNNKERN_DATA is not set")
    return Path(os.environ["CNNKERN_DATA"])


@pytest.fixture(scope="module")
def all_digits() -> tuple[np.ndarray, np.ndarray]:
    return read_test_split(data_folder())


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((data_folder() / "weights" / "lenet_seed" / "expected.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
@each_way(reference=False)  # which takes half a minute for them
def test_all_ten_thousand_test_images(weights, all_digits, expected, isa, layout):
    images, labels = all_digits
    read = []
    with only(isa):
        for first in range(0, len(images), BATCH):
            read.append(logits(weights, images[first : first + BATCH], layout).argmax(axis=1))
    wrong = np.flatnonzero(np.concatenate(read) != labels)
    assert wrong.tolist() == expected["wrong_indices"]
    assert len(images) - len(wrong) == 9922


def test_carried_digits_are_those_of_the_data_set(digits, all_digits, expected):
    images, labels = all_digits
    misread = expected["wrong_indices"][: len(digits.misread_images)]
    assert np.array_equal(digits.images, images[:200]) and np.array_equal(digits.labels, labels[:200])
    assert np.array_equal(digits.misread_images, images[misread])


# ---- the reader


def test_idx_reader_reads():
    content = struct.pack(">HBB2i", 0, 8, 2, 2, 3) + bytes(range(6))
    assert np.array_equal(parse_idx(content), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x0d\1" + struct.pack(">i", 1) + bytes(4),  # float32
        b"\0\1\x08\1" + struct.pack(">i", 1) + bytes(1),
        b"\0\0\x08\0",  # no axes
        b"\0\0\x08\3" + struct.pack(">i", 1),  # header cut off
        b"\0\0\x08\1" + struct.pack(">i", 5) + bytes(4),  # too short
        b"\0\0\x08\1" + struct.pack(">i", 5) + bytes(6),  # too long
        b"\0\0\x08\2" + struct.pack(">2i", -2, -3) + bytes(6),
    ],
)
def test_idx_reader_refuses(content):
    with pytest.raises(ValueError):
        parse_idx(content)


def test_another_data_set_in_mnist_s_place_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(b"\0\0\x08\1" + struct.pack(">i", 1) + b"\7"))
    with pytest.raises(ValueError, match="does not hold MNIST"):
        read_test_split(tmp_path)
