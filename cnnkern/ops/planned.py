"""Plans: a convolution whose kernel is chosen and whose weights are packed once, for many inputs of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dispatch, plan
from ..arrays import as_ndarray
from ..config import get_num_threads
from ..errors import ShapeError
from ..plan import MISS
from ..spec import Kernel, Request
from ..spec.arguments import choice
from ..spec.shapes import conv_geometry
from .assembly import Assembly
from .conv import ACTIVATIONS
from .invocation import FLOATS, Invocation, slow_path
from .types import Array, Padding, Size

OP = "plan_conv2d"


class Conv2dPlan:
    """What ``plan_conv2d`` gives: call it with x.

    Attributes:
        kernel: the row that runs, ``"cpp.direct.avx512"``.
        x_shape, out_shape: the shapes it was made for, in the plan's layout.
        packed_bytes: memory of the packed weights (0: the row reads them as they are).
        workspace_bytes: scratch memory of one call with this thread's number of threads.
    """

    def __init__(self, request: Request, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self._requests = {False: request, True: _with_residual(request)}
        self._kernel: Kernel = dispatch.choose(request)
        # Copies: a plan's results must not change when the caller goes on training these arrays.
        self._weight = plan.empty(weight.shape, weight.dtype)
        self._weight[...] = weight
        self._bias = None if bias is None else bias.copy()
        self.kernel = self._kernel.name
        self.x_shape, self.out_shape = (_shape(request, s) for s in (request.geometry.x_shape, request.geometry.y_shape))
        self._cache: Any = None
        self._program: Any = None  # the first native program; the others share its packed weights
        if self._kernel.backend == "cpp":
            from ..backends import cpp

            self._cache = cpp.Cache()
            self._bind(Invocation(2, (OP,)), np.empty(self.x_shape, weight.dtype), None, None)

    @property
    def packed_bytes(self) -> int:
        return 0 if self._program is None else self._program.packed_bytes

    @property
    def workspace_bytes(self) -> int:
        return 0 if self._program is None else self._program.workspace_bytes(get_num_threads())

    def __call__(self, x: Array, residual: Array | None = None, out: Array | None = None) -> Array:
        """Convolve x with the plan's weights.

        Args:
            x: of the plan's ``x_shape`` and dtype, any strides.
            residual: added before the activation: shape and dtype of the result, or None.
            out: written instead of a new array; may not overlap the inputs.

        Returns:
            An array of ``out_shape``.

        Raises:
            ShapeError, DTypeError, ArgumentError: an array does not fit the plan.
        """
        if self._cache is not None:
            result = self._cache.lookup(x, residual, out)
            if result is not MISS:
                return result
        return _run(2, OP, x, residual, out, self)

    def _bind(self, call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None) -> Assembly:
        """Check the arrays; make (or share) the packed weights."""
        request = self._requests[residual is not None]
        call.layout = request.layout
        assembly = Assembly(call)
        operands = [("x", x), ("weight", self._weight), ("bias", self._bias), ("residual", residual)]
        assembly.add(request, operands, out)
        if self._cache is not None and self._program is None:
            from ..backends import cpp

            self._program = cpp.packed_program(assembly.call(), self._kernel, assembly.arrays, None)
        return assembly

    def _execute(self, call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None) -> Any:
        assembly = self._bind(call, x, residual, out)
        steps = assembly.call()
        if self._cache is None:
            return plan.run_rows(steps, (self._kernel,), tuple(assembly.arrays))
        from ..backends import cpp

        program = cpp.packed_program(steps, self._kernel, assembly.arrays, self._program)
        arrays = tuple(assembly.arrays)
        self._cache.remember(program, arrays, x, residual, out)
        return program.run(arrays)

    def __repr__(self) -> str:
        return f"<plan_conv2d {self.x_shape} -> {self.out_shape}, {self.kernel}, {self.packed_bytes} bytes packed>"


def _shape(request: Request, logical: tuple[int, ...]) -> tuple[int, ...]:
    return (logical[0], *logical[2:], logical[1]) if request.layout == "NHWC" else logical


def _with_residual(request: Request) -> Request:
    return Request(
        request.op,
        request.geometry,
        request.dtype,
        request.layout,
        request.precision,
        request.device,
        tuple(sorted((*request.options, ("residual", True)))),
    )


def plan_conv2d(
    weight: Array,
    bias: Array | None = None,
    *,
    x_shape: tuple[int, ...],
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    precision: str | None = None,
    layout: str = "NCHW",
) -> Conv2dPlan:
    """Choose the kernel of a 2-dimensional convolution and pack its weights, once for many inputs.

    Computes what ``conv2d`` does with the same arguments, bit for bit.

    Args:
        weight: (Cout, Cin / groups, kh, kw). float32 or float64 (float16, bfloat16 where a row serves them). Copied.
        bias: (Cout,), or None. Copied.
        x_shape: the shape of every input, with its batch axis, axes in ``layout``.
        stride, padding, dilation, groups, activation, precision, layout: as for ``conv2d``.

    Returns:
        A ``Conv2dPlan``: ``plan(x, residual=None, out=None)``.

    Raises:
        ShapeError, DTypeError, ArgumentError: as ``conv2d``. NoKernelError: a forced row cannot serve.

    Notes:
        Settings of ``using`` count when the plan is made (the kernel) and at each call (the number of threads).

    Example:
        >>> plan = ck.plan_conv2d(np.ones((4, 3, 3, 3), np.float32), x_shape=(1, 3, 8, 8), padding=1)
        >>> plan(np.ones((1, 3, 8, 8), np.float32)).shape
        (1, 4, 8, 8)
    """
    call = Invocation(2, (OP,))
    weight = as_ndarray(OP, "weight", weight)
    bias = None if bias is None else as_ndarray(OP, "bias", bias)
    dtype = call.dtype("weight", weight, FLOATS)
    choice(OP, "activation", activation, ACTIVATIONS)
    logical = call.shape_of_maps("x_shape", x_shape, layout)
    if not call.batched:
        raise ShapeError(f"{OP}: x_shape must have 4 axes with the batch first, got {tuple(x_shape)}.")
    geometry = conv_geometry(
        OP, logical, call.weight_shape(weight.shape, "Cout, Cin / groups"), stride, padding, dilation, groups
    )
    request = call.request(
        "conv", geometry, dtype, call.precision(precision), bias=bias is not None, activation=activation
    )
    if bias is not None and (bias.dtype != weight.dtype or bias.shape != (geometry.out_channels,)):
        raise ShapeError(
            f"{OP}: bias must be {weight.dtype} of shape ({geometry.out_channels},), got {bias.dtype} {bias.shape}."
        )
    return Conv2dPlan(request, weight, bias)


@slow_path(arrays=("x",), optional=("residual",), written=("out",))
def _run(call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None, made: Conv2dPlan) -> Any:
    return made._execute(call, x, residual, out)

