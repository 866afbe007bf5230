"""Plans: a convolution whose kernel is chosen and whose weights are packed once, for many inputs of one shape."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import dispatch, plan
from ..arrays import as_ndarray
from ..errors import DTypeError, ShapeError, show
from ..plan import MISS
from ..spec import OPS, SHORT_DTYPES, Request, numpy_dtype
from ..spec.arguments import choice
from ..spec.shapes import conv_geometry
from .assembly import Assembly
from .conv import ACTIVATIONS, check_int32
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
        request = replace(request, prepacked=True)
        with_residual = replace(request, options=tuple(sorted((*request.options, ("residual", True)))))
        self._requests = {False: request, True: with_residual}
        self._prepared = plan.Prepared(dispatch.choose(request))
        # Copies: a plan's results must not change when the caller goes on training these arrays.
        self._weight = plan.empty(weight.shape, weight.dtype)
        self._weight[...] = weight
        self._bias = None if bias is None else bias.copy()
        self.kernel = self._prepared.kernel.name
        x, *_ = OPS["conv"].inputs
        (y,) = OPS["conv"].outputs
        self.x_shape, self.out_shape = x.array_shape(request), y.array_shape(request)
        first = self._assemble(Invocation(2, (OP,)), plan.empty(self.x_shape, x.array_dtype(request)), None, None)
        self._prepared.pack(first.call(), tuple(first.arrays))

    @property
    def packed_bytes(self) -> int:
        return self._prepared.packed_bytes

    @property
    def workspace_bytes(self) -> int:
        return self._prepared.workspace_bytes()

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
        result = self._prepared.lookup(x, residual, out)
        return _run(2, OP, x, residual, out, self) if result is MISS else result

    def _assemble(
        self, call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None
    ) -> Assembly:
        """Check the arrays."""
        request = self._requests[residual is not None]
        call.layout = request.layout
        assembly = Assembly(call)
        operands = [("x", x), ("weight", self._weight), ("bias", self._bias), ("residual", residual)]
        assembly.add(request, operands, out)
        return assembly

    def _execute(self, call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None) -> Any:
        assembly = self._assemble(call, x, residual, out)
        return self._prepared.run(assembly.call(), tuple(assembly.arrays), (x, residual, out))

    def __repr__(self) -> str:
        return f"<plan_conv2d {self.x_shape} -> {self.out_shape}, {self.kernel}, {self.packed_bytes} bytes packed>"


def plan_conv2d(
    weight: Array,
    bias: Array | None = None,
    *,
    x_shape: tuple[int, ...],
    x_dtype: Any = None,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: str | None = None,
    precision: str | None = None,
    layout: str = "NCHW",
) -> Conv2dPlan:
    """Choose the kernel of a 2-dimensional convolution and pack its weights, once for many inputs.

    Computes what ``conv2d`` does with the same arguments: bit for bit under ``precision="strict"`` and wherever both
    choose the same kernel. A plan may choose another one, because its calls do not pay for packing weights.

    Args:
        weight: (Cout, Cin / groups, kh, kw). float32 or float64 (float16, bfloat16 where a row serves them), int8 or
            uint8. Copied.
        bias: (Cout,), or None. The result's dtype. Copied.
        x_shape: the shape of every input, with its batch axis, axes in ``layout``.
        x_dtype: the dtype of every input; None: the weight's. Another one only for int8 beside uint8.
        stride, padding, dilation, groups, activation, precision, layout: as for ``conv2d``.

    Returns:
        A ``Conv2dPlan``: ``plan(x, residual=None, out=None)``.

    Raises:
        ShapeError, DTypeError, ArgumentError: as ``conv2d``. NoKernelError: a forced row cannot serve.

    Notes:
        Settings of ``using`` count when the plan is made (the kernel, ``tune`` too) and at each call (the number of
        threads). ``explain("conv2d:...@plan=1")`` says what a plan would choose.

    Example:
        >>> plan = ck.plan_conv2d(np.ones((4, 3, 3, 3), np.float32), x_shape=(1, 3, 8, 8), padding=1)
        >>> plan(np.ones((1, 3, 8, 8), np.float32)).shape
        (1, 4, 8, 8)
    """
    call = Invocation(2, (OP,))
    weight = as_ndarray(OP, "weight", weight)
    bias = None if bias is None else as_ndarray(OP, "bias", bias)
    weight_dtype = call.dtype("weight", weight, (*FLOATS, "i8", "u8"))
    dtype = weight_dtype if x_dtype is None else _beside(weight_dtype, x_dtype)
    choice(OP, "activation", activation, ACTIVATIONS)
    logical = call.shape_of_maps("x_shape", x_shape, layout)
    if not call.batched:
        raise ShapeError(f"{OP}: x_shape must have 4 axes with the batch first, got {tuple(x_shape)}.")
    geometry = conv_geometry(
        OP, logical, call.weight_shape(weight.shape, "Cout, Cin / groups"), stride, padding, dilation, groups
    )
    check_int32(OP, dtype, weight_dtype, geometry)
    request = call.request(
        "conv",
        geometry,
        dtype,
        call.precision(precision),
        bias=bias is not None,
        activation=activation,
        weight_dtype=None if weight_dtype == dtype else weight_dtype,
    )
    result_dtype = OPS["conv"].outputs[0].array_dtype(request)
    if bias is not None and (bias.dtype != result_dtype or bias.shape != (geometry.out_channels,)):
        raise ShapeError(
            f"{OP}: bias must be {result_dtype} of shape ({geometry.out_channels},), got {bias.dtype} {bias.shape}."
        )
    return Conv2dPlan(request, weight, bias)


def _beside(weight_dtype: str, x_dtype: Any) -> str:
    """The short name of the input's dtype, which must go together with the weight's."""
    fitting = ("i8", "u8") if weight_dtype in ("i8", "u8") else (weight_dtype,)
    try:
        name = np.dtype(x_dtype).name
    except TypeError:
        name = show(x_dtype)
    short = SHORT_DTYPES.get(name, "")
    if short not in fitting:
        names = " or ".join(numpy_dtype(dtype).name for dtype in fitting)
        raise DTypeError(f"{OP}: x_dtype must be {names} beside such weights, got {name}.")
    return short


@slow_path(arrays=("x",), optional=("residual",), written=("out",))
def _run(call: Invocation, x: np.ndarray, residual: np.ndarray | None, out: np.ndarray | None, made: Conv2dPlan) -> Any:
    return made._execute(call, x, residual, out)
