"""Softmax cross-entropy with its gradient."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

import numpy as np

from .. import plan
from ..errors import DTypeError, ShapeError
from ..plan import MISS
from ..spec import ClassGeometry
from ..spec.arguments import real
from .docs import described
from .invocation import FLOATS, Invocation, again, slow_path
from .types import Array

_SOFTMAX_CROSS_ENTROPY = """
    Mean softmax cross-entropy of class scores, and its gradient, in one pass over the rows.

    loss = mean over rows of log(sum of exp(x - max)) - (x[label] - max); grad = (softmax(x) - target) / N. The target
    is onehot(label), with ``label_smoothing`` e (1 - e) * onehot(label) + e / C.

    Args:
        logits: (N, C). float32, float64, float16 or bfloat16.
        labels: (N,), any integer type, from 0 to C - 1.
        label_smoothing: from 0 to 1.

    Returns:
        (loss, grad_logits): an array without axes and one of logits' shape, both of logits' dtype, of the library that
        logits come from.

    Raises:
        {ERRORS}
        A label out of range is an ArgumentError that names its row.

    Notes:
        An empty batch gives NaN and an empty gradient. {SUMS}

    Example:
        >>> loss, grad = ck.softmax_cross_entropy(np.zeros((2, 4), np.float32), np.array([1, 3]))
        >>> round(float(loss), 4), grad.shape
        (1.3863, (2, 4))
"""


def softmax_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> tuple[Array, Array]:
    key = ("softmax_cross_entropy", logits, labels, label_smoothing)
    result = plan.lookup(*key)
    return _softmax_cross_entropy(0, *key) if result is MISS else result


described(softmax_cross_entropy, "softmax_cross_entropy", _SOFTMAX_CROSS_ENTROPY, main="logits")


@slow_path(arrays=("logits", "labels"))
def _softmax_cross_entropy(call: Invocation, logits, labels, label_smoothing):
    dtype = call.dtype("logits", logits, FLOATS)
    if labels.dtype.kind not in "iu":
        raise DTypeError(
            f"{call.op}: labels must be integers, got {labels.dtype}. Convert them: labels.astype('int64')."
        )
    smoothing = real(call.op, "label_smoothing", label_smoothing, 0, 1)
    if logits.ndim != 2:
        raise ShapeError(f"{call.op}: logits must have 2 axes (N, C), got {logits.ndim} (shape {logits.shape}).")
    call.check_extents("logits", logits.shape)
    if labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"{call.op}: labels must have shape {logits.shape[:1]}, got {labels.shape} (logits {logits.shape})."
        )
    if labels.dtype != np.int64:
        return again(_softmax_cross_entropy, call, labels, _as_int64(labels))
    request = call.request("softmax_cross_entropy", ClassGeometry(*logits.shape), dtype, label_smoothing=smoothing)
    return call.run((request, [("logits", logits), ("labels", labels)]))


def _as_int64(labels: np.ndarray) -> np.ndarray:
    """Labels of another type; a uint64 beyond int64 becomes the largest int64, which is out of range as well."""
    if labels.dtype == np.uint64:
        labels = np.minimum(labels, np.uint64(2**63 - 1))
    return labels.astype(np.int64)
