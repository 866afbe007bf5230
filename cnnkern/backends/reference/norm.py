"""Batch normalisation and local response normalisation."""

from __future__ import annotations

import numpy as np

from ...spec import Request
from .common import channels_first, per_channel, row, store, wide


def batch_norm(request: Request, inputs: tuple, outputs: tuple) -> None:
    x, mean, var, weight, bias = inputs
    rstd = 1 / np.sqrt(wide(var) + request.option("eps"))
    store(channels_first(request, outputs[0]), _affine(request, x, wide(mean), rstd, weight, bias))


def batch_norm_training(request: Request, inputs: tuple, outputs: tuple) -> None:
    """Normalise by the batch's own mean and biased variance. Of an empty batch both are 0, so that neither is NaN."""
    x, weight, bias = inputs
    out, *statistics = outputs
    centred = wide(channels_first(request, x))
    mean = _channel_mean(centred)
    centred = centred - per_channel(mean, request.geometry.rank)
    var = _channel_mean(centred * centred)
    rstd = 1 / np.sqrt(var + request.option("eps"))
    store(channels_first(request, out), _affine(request, x, mean, rstd, weight, bias))
    for array, value in zip(statistics, (mean, var, rstd), strict=True):
        store(array, value)


def batch_norm_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    """In training mean and rstd depend on x too: gx = w rstd (gy - mean(gy) - xhat mean(gy xhat))."""
    grad_output, x, weight, mean, rstd = inputs
    grad_x, grad_weight, grad_bias = outputs
    rank = request.geometry.rank
    gy = wide(channels_first(request, grad_output))
    normal = _affine(request, x, wide(mean), wide(rstd), None, None)
    scale = per_channel(rstd, rank) if weight is None else per_channel(rstd, rank) * per_channel(weight, rank)
    store(grad_weight, _channel_sum(gy * normal))
    store(grad_bias, _channel_sum(gy))
    if request.option("training"):
        shift = per_channel(_channel_mean(gy), rank) + normal * per_channel(_channel_mean(gy * normal), rank)
        gy = gy - shift
    store(channels_first(request, grad_x), gy * scale)


def _affine(
    request: Request,
    x: np.ndarray,
    mean: np.ndarray,
    rstd: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
) -> np.ndarray:
    """weight (x - mean) rstd + bias in float64, channels first."""
    rank = request.geometry.rank
    y = (wide(channels_first(request, x)) - per_channel(mean, rank)) * per_channel(rstd, rank)
    if weight is not None:
        y = y * per_channel(weight, rank)
    if bias is not None:
        y = y + per_channel(bias, rank)
    return y


def _channel_sum(x: np.ndarray) -> np.ndarray:
    return x.sum(axis=(0, *range(2, x.ndim)))


def _channel_mean(x: np.ndarray) -> np.ndarray:
    return _channel_sum(x) / max(1, x.size // max(1, x.shape[1]))


def local_response_norm(request: Request, inputs: tuple, outputs: tuple) -> None:
    x = wide(channels_first(request, inputs[0]))
    store(channels_first(request, outputs[0]), x * _scale(request, x) ** -request.option("beta"))


def local_response_norm_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    """gy S^-beta - 2 A beta x sum over j of gy_j x_j S_j^(-beta-1), over the j whose window holds this channel."""
    gy, x = (wide(channels_first(request, array)) for array in inputs)
    size, alpha, beta = (request.option(name) for name in ("size", "alpha", "beta"))
    scale = _scale(request, x)
    shared = _sum_neighbours(gy * x * scale ** (-beta - 1), (size - 1) // 2, size // 2)
    store(channels_first(request, outputs[0]), gy * scale**-beta - 2 * alpha * beta * x * shared)


def _scale(request: Request, x: np.ndarray) -> np.ndarray:
    """S = k + A sum of x_j^2 for j from c - size // 2 to c + (size - 1) // 2."""
    size = request.option("size")
    return request.option("k") + request.option("alpha") * _sum_neighbours(x * x, size // 2, (size - 1) // 2)


def _sum_neighbours(x: np.ndarray, below: int, above: int) -> np.ndarray:
    """Per channel c the sum over the channels c - below ... c + above that exist."""
    channels = x.shape[1]
    total = np.zeros(x.shape)
    for offset in range(-min(below, channels - 1), min(above, channels - 1) + 1):
        first, last = max(0, -offset), channels - max(0, offset)
        total[:, first:last] += x[:, first + offset : last + offset]
    return total


ROWS = (
    row("batch_norm", batch_norm),
    row("batch_norm_training", batch_norm_training),
    row("batch_norm_grad", batch_norm_grad),
    row("local_response_norm", local_response_norm),
    row("local_response_norm_grad", local_response_norm_grad),
)
