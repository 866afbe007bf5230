"""Other libraries beside ours: each way of running one is an arm of its own name.

A peer's module is imported only in the worker process that measures it. It has one function, ``prepare(problem, inputs,
arm, threads)``, which gives a ``Prepared`` or raises ``Cannot`` with a sentence. What happens inside ``call`` is timed;
copying, packing and compiling belong before it. A peer that can write into the same output again and again may.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class Cannot(Exception):
    """The peer does not compute this problem; the text says why."""


@dataclass(frozen=True)
class Prepared:
    """A call to time, and how its result becomes the problem's output arrays (axes in the problem's layout)."""

    call: Callable[[], Any]
    outputs: Callable[[Any], tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Peer:
    """An arm: its library, how it runs, the extra of this package that installs it, variables of its process."""

    arm: str
    library: str
    about: str
    install: str
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def worker(self) -> str:
        """Arms that may share a process have the same worker."""
        return self.library if not self.environment else self.arm


_AVX2 = (("ONEDNN_MAX_CPU_ISA", "AVX2"),)
_TORCH, _ORT, _OPENVINO, _JAX = "cnnkern[torch]", "cnnkern[onnx]", "openvino", "cnnkern[jax]"
PEERS = {
    peer.arm: peer
    for peer in (
        Peer("torch", "torch", "PyTorch eager, NCHW", _TORCH),
        Peer("torch_channels_last", "torch", "PyTorch eager, channels_last", _TORCH),
        Peer("torch_avx2", "torch", "PyTorch eager, NCHW, oneDNN limited to AVX2", _TORCH, _AVX2),
        Peer("ort", "onnxruntime", "ONNX Runtime, weights prepacked", _ORT),
        Peer("openvino_f32", "openvino", "OpenVINO, weights prepacked, float32 inference", _OPENVINO),
        Peer("openvino", "openvino", "OpenVINO, weights prepacked, its default precision", _OPENVINO),
        Peer("jax", "jax", "JAX, compiled, arrays on the device", _JAX),
    )
}
GROUPS = {  # what --vs accepts besides the arms themselves
    "torch": ("torch", "torch_channels_last"),
    "openvino": ("openvino_f32", "openvino"),
}
_MODULES = {"torch": "torch_peer", "onnxruntime": "ort_peer", "openvino": "openvino_peer", "jax": "jax_peer"}


def installed(library: str) -> bool:
    """Whether the library can be found; it is not imported."""
    return importlib.util.find_spec(library) is not None


def load(arm: str) -> Callable[..., Prepared]:
    """The ``prepare`` function of an arm; imports its library."""
    return importlib.import_module(f"{__name__}.{_MODULES[PEERS[arm].library]}").prepare


def logical(array: np.ndarray, layout: str) -> np.ndarray:
    """The array with axes (batch, channels, spatial...), without a copy."""
    return np.moveaxis(array, -1, 1) if layout == "NHWC" and array.ndim >= 3 else array


def in_layout(array: np.ndarray, layout: str) -> np.ndarray:
    """The array with axes in ``layout`` from one with logical axes, without a copy."""
    return np.moveaxis(array, 1, -1) if layout == "NHWC" and array.ndim >= 3 else array
