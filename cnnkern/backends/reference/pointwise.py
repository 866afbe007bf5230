"""Activations and their gradients; a gradient is given y, the activation's output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...spec import Request
from .common import Run, row, store, wide


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)  # keeps NaN


def _relu_grad(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.where(y <= 0, 0, gy)  # a NaN in y is not <= 0: the gradient passes


def _sigmoid(x: np.ndarray) -> np.ndarray:
    small = np.exp(-abs(x))  # the exponential that cannot overflow
    return np.where(x >= 0, 1, small) / (1 + small)


def _sigmoid_grad(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return gy * y * (1 - y)


def _tanh_grad(gy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return gy * (1 - y) * (1 + y)


def _elementwise(function: Callable[..., np.ndarray]) -> Run:
    def run(request: Request, inputs: tuple, outputs: tuple) -> None:
        store(outputs[0], function(*(wide(array) for array in inputs)))

    return run


ROWS = (
    row("relu", _elementwise(_relu)),
    row("relu_grad", _elementwise(_relu_grad)),
    row("tanh", _elementwise(np.tanh)),
    row("tanh_grad", _elementwise(_tanh_grad)),
    row("sigmoid", _elementwise(_sigmoid)),
    row("sigmoid_grad", _elementwise(_sigmoid_grad)),
)
