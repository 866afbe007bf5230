"""relu, tanh and sigmoid, and their gradients from the output."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from math import prod

import numpy as np

from .. import plan
from ..errors import ArgumentError
from ..plan import MISS
from ..spec import PointwiseGeometry
from .docs import described
from .invocation import FLOATS, Invocation, slow_path
from .types import Array

MOST_AXES = 5  # what native pointwise kernels take; arrays of more axes are flattened first

_FORWARD = """
    %(line)s

    %(formula)s

    Args:
        x: any shape. float32, float64, float16 or bfloat16.
        {OUT}

    Returns:
        An array of x's shape and dtype, of the library that x comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        %(notes)s float16 and bfloat16 are computed in float32. {SUMS}

    Example:
        >>> ck.{op}(np.zeros((2, 3), np.float32)).shape
        (2, 3)
"""

_BACKWARD = """
    Gradient of ``%(name)s`` from its output.

    %(formula)s

    Args:
        grad_output: any shape. float32, float64, float16 or bfloat16.
        y: what the forward call returned: grad_output's shape and dtype.

    Returns:
        grad_x, an array of that shape and dtype, of the library that grad_output comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        %(notes)s {SUMS}

    Example:
        >>> ck.{op}(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)).shape
        (2, 3)
"""


def _forward(op: str, **words: str):
    def activation(x: Array, *, out: Array | None = None) -> Array:
        result = plan.lookup(op, x, out)
        return _pointwise(0, op, x, out) if result is MISS else result

    return described(activation, op, _FORWARD % words)


def _backward(name: str, **words: str):
    op = f"{name}_backward"

    def activation_backward(grad_output: Array, y: Array) -> Array:
        result = plan.lookup(op, grad_output, y)
        return _pointwise_backward(0, op, grad_output, y) if result is MISS else result

    return described(activation_backward, op, _BACKWARD % {"name": name, **words}, main="grad_output")


relu = _forward(
    "relu", line="Rectified linear unit.", formula="y = max(x, 0).", notes="NaN stays NaN; -0 may become +0."
)
tanh = _forward("tanh", line="Hyperbolic tangent.", formula="y = tanh(x).", notes="NaN stays NaN.")
sigmoid = _forward(
    "sigmoid", line="Logistic function.", formula="y = 1 / (1 + exp(-x)).", notes="NaN stays NaN; no x overflows."
)
relu_backward = _backward(
    "relu", formula="grad_x = 0 where y <= 0, else grad_output.", notes="Where y is NaN the gradient passes."
)
tanh_backward = _backward("tanh", formula="grad_x = grad_output * (1 - y*y).", notes="NaN in y gives NaN.")
sigmoid_backward = _backward("sigmoid", formula="grad_x = grad_output * y * (1 - y).", notes="NaN in y gives NaN.")


@slow_path(arrays=("x",), written=("out",))
def _pointwise(call: Invocation, x, out):
    dtype = call.dtype("x", x, FLOATS)
    call.check_extents("x", x.shape)
    if x.ndim > MOST_AXES:
        if out is not None:
            raise ArgumentError(
                f"{call.op}: out is for arrays of up to {MOST_AXES} axes, x has {x.ndim}. Leave it out."
            )
        return _pointwise(0, call.op, flat(x), None).reshape(x.shape)
    return call.run((call.request(call.op, PointwiseGeometry(x.shape), dtype), [("x", x)]), out=out)


@slow_path(arrays=("grad_output", "y"))
def _pointwise_backward(call: Invocation, grad_output, y):
    dtype = call.same_dtype(FLOATS, grad_output=grad_output, y=y)
    call.check_extents("grad_output", grad_output.shape)
    if grad_output.ndim > MOST_AXES and y.shape == grad_output.shape:
        return _pointwise_backward(0, call.op, flat(grad_output), flat(y)).reshape(y.shape)
    request = call.request(call.op.replace("backward", "grad"), PointwiseGeometry(grad_output.shape), dtype)
    return call.run((request, [("grad_output", grad_output), ("y", y)]))


def flat(array: np.ndarray) -> np.ndarray:
    """The first axis as it is, the others joined, copied where the strides demand it."""
    return array.reshape(array.shape[0], prod(array.shape[1:]))
