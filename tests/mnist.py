"""The MNIST test split, read by a reader that trusts nothing.

gzip files of different mirrors differ, what they hold does not: the decompressed bytes are compared by SHA-256.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from math import prod
from pathlib import Path

import numpy as np

SHA256 = {
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
UNSIGNED_BYTE = 0x08  # the only element type of the four MNIST files


def parse_idx(content: bytes) -> np.ndarray:
    """An IDX file: two zero bytes, element type, number of axes, extents (big-endian int32), elements in row order.

    Raises:
        ValueError: another format, another element type, or a length that the extents do not explain.
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE or not 1 <= content[3] <= 3:
        raise ValueError(f"not an IDX file of bytes with 1 to 3 axes: begins with {content[:4].hex() or 'nothing'}")
    head = 4 + 4 * content[3]
    if len(content) < head:
        raise ValueError(f"the header ends after {len(content)} of {head} bytes")
    shape = struct.unpack(f">{content[3]}i", content[4:head])
    if min(shape) < 0 or len(content) - head != prod(shape):
        raise ValueError(f"{len(content) - head} elements for shape {shape}")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def read_test_split(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (10000, 28, 28) and labels (10000,), both uint8."""
    images, labels = (_read(data / "mnist" / f"{name}.gz", digest) for name, digest in SHA256.items())
    if images.shape != (10_000, 28, 28) or labels.shape != (10_000,):
        raise ValueError(f"MNIST's test split has other shapes: {images.shape} and {labels.shape}")
    return images, labels


def _read(path: Path, digest: str) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} does not hold MNIST: its decompressed bytes have another SHA-256 than {digest}")
    return parse_idx(content)
