"""Dropout with a mask that depends on the seed and an element's position only."""

# mypy: allow-untyped-defs, allow-incomplete-defs
# (type checkers infer a family's signature from the function inside its factory; slow paths take anything)
from __future__ import annotations

from .. import plan
from ..errors import ArgumentError, show
from ..plan import MISS
from ..spec import PointwiseGeometry
from ..spec.arguments import is_integer, real
from .activation import MOST_AXES, flat
from .docs import described
from .invocation import FLOATS, Invocation, slow_path
from .types import Array

_FORWARD = """
    Dropout: each element is zeroed with probability p, the others are scaled so that the mean stays.

    y = x * mask / (1 - p), where element e of mask (C order) follows from ``seed`` and e alone.

    Args:
        x: any shape. float32, float64, float16 or bfloat16.
        p: from 0 to 1; 1 gives zeros.
        seed: an int from 0 to 2**64 - 1. Use another one for each call.

    Returns:
        (y, mask), arrays of x's shape, of x's dtype and bool, of the library that x comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        The mask is that of Philox4x32-10 (Salmon and others 2011): the same for any number of threads, layout of memory
        and backend.

    Example:
        >>> y, mask = ck.dropout(np.ones((2, 3), np.float32), 0.5, seed=1)
        >>> y.shape, mask.dtype.name
        ((2, 3), 'bool')
"""


def dropout(x: Array, p: float = 0.5, *, seed: int) -> tuple[Array, Array]:
    return _dropout(0, "dropout", x, p, seed)  # nothing to look up: a seed is used once


described(dropout, "dropout", _FORWARD)


@slow_path(arrays=("x",))
def _dropout(call: Invocation, x, p, seed):
    dtype = call.dtype("x", x, FLOATS)
    p = real(call.op, "p", p, 0, 1)
    if not is_integer(seed) or not 0 <= seed < 2**64:
        raise ArgumentError(f"{call.op}: seed must be an int from 0 to 2**64 - 1, got {show(seed)}.")
    call.check_extents("x", x.shape)
    call.key = None  # not to be remembered
    if x.ndim > MOST_AXES:
        y, mask = _dropout(0, call.op, flat(x), p, seed)
        return y.reshape(x.shape), mask.reshape(x.shape)
    request = call.request("dropout", PointwiseGeometry(x.shape), dtype, p=p, seed=int(seed))
    return call.run((request, [("x", x)]))


_BACKWARD = """
    Gradient of ``dropout``.

    grad_x = grad_output * mask / (1 - p).

    Args:
        grad_output: any shape. float32, float64, float16 or bfloat16.
        mask: what the forward call returned: bool, grad_output's shape.
        p: as in the forward call.

    Returns:
        grad_x, an array of grad_output's shape and dtype, of the library that it comes from, C-contiguous.

    Raises:
        {ERRORS}

    Notes:
        p = 1 gives zeros. {SUMS}

    Example:
        >>> y, mask = ck.dropout(np.ones((2, 3), np.float32), 0.5, seed=1)
        >>> ck.dropout_backward(np.ones_like(y), mask, 0.5).shape
        (2, 3)
"""


def dropout_backward(grad_output: Array, mask: Array, p: float) -> Array:
    result = plan.lookup("dropout_backward", grad_output, mask, p)
    return _dropout_backward(0, "dropout_backward", grad_output, mask, p) if result is MISS else result


described(dropout_backward, "dropout_backward", _BACKWARD, main="grad_output")


@slow_path(arrays=("grad_output", "mask"))
def _dropout_backward(call: Invocation, grad_output, mask, p):
    dtype = call.dtype("grad_output", grad_output, FLOATS)
    p = real(call.op, "p", p, 0, 1)
    call.check_extents("grad_output", grad_output.shape)
    if grad_output.ndim > MOST_AXES and mask.shape == grad_output.shape:
        return _dropout_backward(0, call.op, flat(grad_output), flat(mask), p).reshape(mask.shape)
    request = call.request("dropout_grad", PointwiseGeometry(grad_output.shape), dtype, p=p)
    return call.run((request, [("grad_output", grad_output), ("mask", mask)]))
