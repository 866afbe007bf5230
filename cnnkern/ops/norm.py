"""Local response normalisation and batch normalisation, and their gradients."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from math import prod

import numpy as np

from .. import plan
from ..errors import ArgumentError, ShapeError
from ..plan import MISS
from ..spec import ChannelGeometry, Request
from ..spec.arguments import choice, flag, integer, real
from .assembly import unlike
from .docs import described
from .invocation import FLOATS, Invocation, slow_path
from .types import Array

_LRN_ARGUMENTS = """size: an int from 1: channels summed; the window of channel c is c - size//2 ... c + (size-1)//2.
        alpha, beta, k: finite numbers.
        alpha_scaling: "mean" divides alpha by size (Caffe, PyTorch, ONNX), "sum" does not (AlexNet, TensorFlow).
        {LAYOUT}"""

_LRN = (
    """
    Local response normalisation across channels.

    y[c] = x[c] * S[c]**(-beta) with S[c] = k + A * (sum of x[j]**2 over the window of c), A = alpha / size or alpha.

    Args:
        x: (N, C) or (N, C, up to three spatial axes). float32, float64, float16 or bfloat16.
        """
    + _LRN_ARGUMENTS
    + """

    Returns:
        An array of x's shape and dtype, of the library that x comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        AlexNet's paper: alpha_scaling="sum", size 5, alpha 1e-4, beta 0.75, k 2, after relu and before pooling. {SUMS}

    Example:
        >>> ck.local_response_norm(np.ones((2, 8, 4, 4), np.float32), 5).shape
        (2, 8, 4, 4)
"""
)


def local_response_norm(
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    alpha_scaling: str = "mean",
    layout: str = "NCHW",
) -> Array:
    key = ("local_response_norm", x, size, alpha, beta, k, alpha_scaling, layout)
    result = plan.lookup(*key)
    return _local_response_norm(0, *key) if result is MISS else result


described(local_response_norm, "local_response_norm", _LRN)


@slow_path(arrays=("x",))
def _local_response_norm(call: Invocation, x, size, alpha, beta, k, alpha_scaling, layout):
    request = _lrn_request(call, "local_response_norm", x, size, alpha, beta, k, alpha_scaling, layout)
    return call.run((request, [("x", x)]))


def _lrn_request(call: Invocation, op: str, x: np.ndarray, size, alpha, beta, k, alpha_scaling, layout) -> Request:
    dtype = call.dtype("x", x, FLOATS)
    size = integer(call.op, "size", size, 1)
    alpha, beta, k = (real(call.op, name, value) for name, value in (("alpha", alpha), ("beta", beta), ("k", k)))
    if choice(call.op, "alpha_scaling", alpha_scaling, ("mean", "sum")) == "mean":
        alpha /= size
    batch, channels, *spatial = call.channel_map_shape("x", x.shape, layout)
    geometry = ChannelGeometry(batch, channels, tuple(spatial))
    return call.request(op, geometry, dtype, size=size, alpha=alpha, beta=beta, k=k)


_LRN_BACKWARD = (
    """
    Gradient of ``local_response_norm``.

    grad_x[c] = grad_output[c] * S[c]**(-beta) - 2*A*beta * x[c] * (sum of grad_output[j] * x[j] *
    S[j]**(-beta - 1) over the channels j whose window holds c).

    Args:
        grad_output: (N, C) or (N, C, up to three spatial axes). float32, float64, float16 or bfloat16.
        x: the forward call's input: grad_output's shape and dtype.
        """
    + _LRN_ARGUMENTS
    + """

    Returns:
        grad_x, an array of x's shape and dtype, of the library that grad_output comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        {SUMS}

    Example:
        >>> x = np.ones((2, 8, 4, 4), np.float32)
        >>> ck.local_response_norm_backward(np.ones_like(x), x, 5).shape
        (2, 8, 4, 4)
"""
)


def local_response_norm_backward(
    grad_output: Array,
    x: Array,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    alpha_scaling: str = "mean",
    layout: str = "NCHW",
) -> Array:
    key = ("local_response_norm_backward", grad_output, x, size, alpha, beta, k, alpha_scaling, layout)
    result = plan.lookup(*key)
    return _local_response_norm_backward(0, *key) if result is MISS else result


described(local_response_norm_backward, "local_response_norm_backward", _LRN_BACKWARD, main="grad_output")


@slow_path(arrays=("grad_output", "x"))
def _local_response_norm_backward(call: Invocation, grad_output, x, size, alpha, beta, k, alpha_scaling, layout):
    call.same_dtype(FLOATS, grad_output=grad_output, x=x)
    request = _lrn_request(call, "local_response_norm_grad", x, size, alpha, beta, k, alpha_scaling, layout)
    return call.run((request, [("grad_output", grad_output), ("x", x)]))


_BATCH_NORM = """
    Batch normalisation, in inference by given statistics, in training by those of the batch.

    y = weight * (x - mu) / sqrt(sigma2 + eps) + bias, per channel. In training mu and sigma2 (biased) are the batch's,
    and mean and var are updated in place: r = (1 - momentum) * r + momentum * value, var with the unbiased variance.

    Args:
        x: (N, C) or (N, C, up to three spatial axes). float32, float64, float16 or bfloat16.
        mean, var: (C,), x's dtype, or float32 beside 16-bit data. In training they are written, or None.
        weight, bias: (C,), as mean; or None for 1 and 0.
        training: whether the batch's own statistics are used.
        momentum: from 0 to 1: the weight of the new value (TensorFlow, Keras and ONNX give that of the old one).
        eps: a number from 0.
        {LAYOUT}
        return_stats: also return the mean and 1 / sqrt(variance + eps) that were used; the backward op needs them.

    Returns:
        y of x's shape and dtype; with ``return_stats`` (y, mean, rstd), the latter (C,), float32 beside 16-bit data.
        All of the library that x comes from, C-contiguous.

    Raises:
        {ERRORS}
        One value per channel in training is a ShapeError.

    Notes:
        An empty batch in training leaves mean and var as they are. {SUMS}

    Example:
        >>> x, mean, var = np.ones((2, 3, 4, 4), np.float32), np.zeros(3, np.float32), np.ones(3, np.float32)
        >>> y, batch_mean, rstd = ck.batch_norm(x, mean, var, training=True, return_stats=True)
        >>> y.shape, batch_mean.shape, rstd.shape
        ((2, 3, 4, 4), (3,), (3,))
"""


def batch_norm(
    x: Array,
    mean: Array | None,
    var: Array | None,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    layout: str = "NCHW",
    return_stats: bool = False,
) -> Array | tuple[Array, Array, Array]:
    key = ("batch_norm", x, mean, var, weight, bias, training, momentum, eps, layout, return_stats)
    result = plan.lookup(*key)
    return _batch_norm(0, *key) if result is MISS else result


described(batch_norm, "batch_norm", _BATCH_NORM)


@slow_path(arrays=("x",), optional=("weight", "bias"), written=("mean", "var"))
def _batch_norm(call: Invocation, x, mean, var, weight, bias, training, momentum, eps, layout, return_stats):
    dtype = call.dtype("x", x, FLOATS)
    training = flag(call.op, "training", training)
    return_stats = flag(call.op, "return_stats", return_stats)
    momentum = real(call.op, "momentum", momentum, 0, 1)
    eps = real(call.op, "eps", eps, 0)
    batch, channels, *spatial = call.channel_map_shape("x", x.shape, layout)
    geometry = ChannelGeometry(batch, channels, tuple(spatial))
    for name, vector in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        _check_vector(call.op, name, vector, x, channels)
    if training:
        _check_running(call.op, mean, var)
        results = _normalise_by_batch(call, geometry, dtype, x, _wide(weight), _wide(bias), eps)
        y, batch_mean, batch_var, rstd = results
        _update_running(mean, var, batch_mean, batch_var, momentum, batch * prod(spatial))
        return (y, batch_mean, rstd) if return_stats else y
    if mean is None or var is None:
        raise ArgumentError(f"{call.op}: mean and var must be arrays in inference, got None. Or pass training=True.")
    request = call.request("batch_norm", geometry, dtype, weight=weight is not None, bias=bias is not None, eps=eps)
    mean, var = _wide(mean), _wide(var)
    operands = [("x", x), ("mean", mean), ("var", var), ("weight", _wide(weight)), ("bias", _wide(bias))]
    if not return_stats:
        return call.run((request, operands))
    call.key = None  # the remembered program would give y alone
    with np.errstate(all="ignore"):
        rstd = (1 / np.sqrt(var.astype(np.float64) + eps)).astype(var.dtype)
    return call.run((request, operands)), mean.copy(), rstd


def _normalise_by_batch(call: Invocation, geometry: ChannelGeometry, dtype: str, x, weight, bias, eps: float) -> tuple:
    """(y, mean, biased variance, rstd). Its own key: the running statistics are no part of the program."""
    values = geometry.batch * prod(geometry.spatial)
    if values == 1 and geometry.channels:
        raise ShapeError(
            f"{call.op}: training needs more than one value per channel, x {x.shape} has 1. Use a larger batch."
        )
    call.key = ("batch_norm_training", x, weight, bias, eps, call.layout)
    result = plan.lookup(*call.key)
    if result is not MISS:
        return result
    request = call.request(
        "batch_norm_training", geometry, dtype, weight=weight is not None, bias=bias is not None, eps=eps
    )
    return call.run((request, [("x", x), ("weight", weight), ("bias", bias)]))


def _check_vector(op: str, name: str, vector: np.ndarray | None, x: np.ndarray, channels: int) -> None:
    """Shape (channels,) and x's dtype, or float32 beside 16-bit data."""
    if vector is None:
        return
    if vector.dtype != x.dtype and not (x.dtype.itemsize == 2 and vector.dtype == np.float32):
        raise unlike(op, "x", x.dtype, name, vector.dtype)
    if vector.shape != (channels,):
        raise ShapeError(f"{op}: {name} must have shape {(channels,)}, got {vector.shape} (x {x.shape}).")


def _check_running(op: str, mean: np.ndarray | None, var: np.ndarray | None) -> None:
    if (mean is None) != (var is None):
        raise ArgumentError(f"{op}: mean and var must both be arrays or both be None.")
    for name, vector in (("mean", mean), ("var", var)):
        if vector is not None and not vector.flags.writeable:
            raise ArgumentError(f"{op}: {name} is read-only, and training updates it. Give a writable array, or None.")


def _wide(vector: np.ndarray | None) -> np.ndarray | None:
    """Statistics beside 16-bit data are kept in float32."""
    return vector.astype(np.float32) if vector is not None and vector.dtype.itemsize == 2 else vector


def _update_running(mean, var, batch_mean, batch_var, momentum: float, values: int) -> None:
    if mean is None or values == 0:
        return
    unbiased = batch_var.astype(np.float64) * (values / (values - 1))
    for running, value in ((mean, batch_mean), (var, unbiased)):
        with np.errstate(all="ignore"):
            running[...] = (1 - momentum) * running.astype(np.float64) + momentum * value.astype(np.float64)


_BATCH_NORM_BACKWARD = """
    Gradients of ``batch_norm`` in x, weight and bias.

    With n = (x - mean) * rstd: grad_weight = sum of grad_output * n, grad_bias = sum of grad_output, and grad_x =
    weight * rstd * grad_output in inference, weight * rstd * (grad_output - mean of grad_output - n * mean of
    (grad_output * n)) in training, sums and means per channel.

    Args:
        grad_output: (N, C) or (N, C, up to three spatial axes). float32, float64, float16 or bfloat16.
        x: the forward call's input: grad_output's shape and dtype.
        weight: (C,) as in the forward call, or None for 1.
        mean, rstd: (C,), what the forward call returned with ``return_stats``.
        training: as in the forward call.
        {LAYOUT}

    Returns:
        (grad_x, grad_weight, grad_bias); the latter (C,) and of weight's dtype (without weight, mean's). All of the
        library that grad_output comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        Sums over the batch are made in a fixed order. {SUMS}

    Example:
        >>> x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
        >>> y, mean, rstd = ck.batch_norm(x, None, None, training=True, return_stats=True)
        >>> [grad.shape for grad in ck.batch_norm_backward(np.ones_like(x), x, None, mean, rstd, training=True)]
        [(2, 3, 2), (3,), (3,)]
"""


def batch_norm_backward(
    grad_output: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    *,
    training: bool,
    layout: str = "NCHW",
) -> tuple[Array, Array, Array]:
    key = ("batch_norm_backward", grad_output, x, weight, mean, rstd, training, layout)
    result = plan.lookup(*key)
    return _batch_norm_backward(0, *key) if result is MISS else result


described(batch_norm_backward, "batch_norm_backward", _BATCH_NORM_BACKWARD, main="grad_output")


@slow_path(arrays=("grad_output", "x", "mean", "rstd"), optional=("weight",))
def _batch_norm_backward(call: Invocation, grad_output, x, weight, mean, rstd, training, layout):
    dtype = call.same_dtype(FLOATS, grad_output=grad_output, x=x)
    training = flag(call.op, "training", training)
    batch, channels, *spatial = call.channel_map_shape("grad_output", grad_output.shape, layout)
    vectors = (("weight", weight), ("mean", mean), ("rstd", rstd))
    for name, vector in vectors:
        _check_vector(call.op, name, vector, grad_output, channels)
    geometry = ChannelGeometry(batch, channels, tuple(spatial))
    request = call.request("batch_norm_grad", geometry, dtype, weight=weight is not None, training=training)
    wide = [(name, _wide(vector)) for name, vector in vectors]
    grad_x, grad_weight, grad_bias = call.run((request, [("grad_output", grad_output), ("x", x), *wide]))
    like = mean if weight is None else weight
    return grad_x, grad_weight.astype(like.dtype, copy=False), grad_bias.astype(like.dtype, copy=False)
