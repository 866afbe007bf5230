"""PyTorch, eager: the functions and aten ops that autograd itself would call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cnnkern.problem import Problem

from . import Cannot, Prepared, in_layout, logical

aten = torch.ops.aten
Tensors = dict[str, torch.Tensor]


def prepare(problem: Problem, inputs: dict[str, np.ndarray], arm: str, threads: int) -> Prepared:
    """Contiguous NCHW tensors, or channels_last ones for that arm; both hold the problem's values."""
    torch.set_num_threads(threads)
    last = arm == "torch_channels_last"
    rank = problem.geometry.rank
    if last and rank not in (2, 3):
        raise Cannot("channels_last is for maps with 2 or 3 spatial axes")
    build = _BUILDERS.get(problem.op)
    if build is None:
        raise Cannot(f"no PyTorch call is written for {problem.op_name}")
    operands = {spec.name for spec in problem.inputs if spec.name not in ("weight", "bias", "mean", "var", "rstd")}
    tensors = {}
    for name, array in inputs.items():
        is_map = (name in operands or name == "x") and hasattr(problem.geometry, "x_shape")
        tensor = _tensor(logical(array, problem.layout) if is_map else array)
        if last and tensor.ndim == rank + 2:
            tensor = tensor.contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)
        tensors[name] = tensor
    torch.set_grad_enabled(False)  # for good: this process only measures, and a context manager per call costs 1 us
    call = build(problem, tensors)

    def outputs(result: Any) -> tuple[np.ndarray, ...]:
        parts = result if isinstance(result, (tuple, list)) else (result,)
        arrays = [_array(part) for part in parts if part is not None]
        maps = problem.op != "conv_grad_weight" and hasattr(problem.geometry, "x_shape")
        return tuple(in_layout(a, problem.layout) if maps else a for a in arrays)

    return Prepared(call, outputs)


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _like(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of which only shape and memory format matter."""
    for memory in (torch.channels_last, torch.channels_last_3d):
        if tensor.ndim == (4 if memory is torch.channels_last else 5) and not tensor.is_contiguous():
            return torch.empty(shape, dtype=tensor.dtype, memory_format=memory)
    return torch.empty(shape, dtype=tensor.dtype)


def _symmetric(problem: Problem) -> tuple[int, ...]:
    g = problem.geometry
    if g.pad_before != g.pad_after:
        raise Cannot("PyTorch pads both sides alike")
    return g.pad_before


def _conv(problem: Problem, t: Tensors) -> Callable[[], Any]:
    g = problem.geometry
    conv = getattr(torch, f"conv{g.rank}d")
    args = (t["x"], t["weight"], t.get("bias"), g.stride, _symmetric(problem), g.dilation, g.groups)
    residual, relu = t.get("residual"), problem.option("activation") == "relu"

    def call() -> torch.Tensor:
        y = conv(*args)
        if residual is not None:
            y.add_(residual)
        return y.relu_() if relu else y

    return call if residual is not None or relu else lambda: conv(*args)


def _conv_backward(mask: tuple[bool, bool, bool]) -> Callable[[Problem, Tensors], Callable[[], Any]]:
    def build(problem: Problem, t: Tensors) -> Callable[[], Any]:
        g = problem.geometry
        if problem.options:
            raise Cannot("no PyTorch call is written for a fused transposed convolution")
        x = t.get("x", _like(t["grad_output"], g.x_shape))
        weight = t.get("weight", _like(t["grad_output"], g.weight_shape))
        settings = (g.stride, _symmetric(problem), g.dilation, False, (0,) * g.rank, g.groups, mask)
        return lambda: aten.convolution_backward(t["grad_output"], x, weight, None, *settings)

    return build


def _window(problem: Problem) -> tuple:
    g = problem.geometry
    return g.kernel, g.stride, _symmetric(problem)


def _max_pool(problem: Problem, t: Tensors) -> Callable[[], Any]:
    g = problem.geometry
    if problem.option("indices"):
        function = getattr(F, f"max_pool{g.rank}d_with_indices")
    else:
        function = getattr(torch, f"max_pool{g.rank}d")
    settings = (*_window(problem), g.dilation, problem.ceil_mode)
    return lambda: function(t["x"], *settings)


def _max_pool_grad(problem: Problem, t: Tensors) -> Callable[[], Any]:
    g = problem.geometry
    forward = getattr(aten, f"max_pool{g.rank}d_with_indices", None)
    backward = getattr(aten, f"max_pool{g.rank}d_with_indices_backward", None)
    if forward is None or backward is None:
        raise Cannot("PyTorch has this gradient for 2 and 3 spatial axes")
    settings = (*_window(problem), g.dilation, problem.ceil_mode)
    _, indices = forward(t["x"], *settings)
    return lambda: backward(t["grad_output"], t["x"], *settings, indices)


def _avg_settings(problem: Problem) -> tuple:
    counted, divisor = problem.option("count_include_pad"), problem.option("divisor")
    return (*_window(problem), problem.ceil_mode, counted, divisor)


def _avg_pool(problem: Problem, t: Tensors) -> Callable[[], Any]:
    rank = problem.geometry.rank
    if rank == 1:
        raise Cannot("no PyTorch call is written for avg_pool1d")
    function, settings = getattr(F, f"avg_pool{rank}d"), _avg_settings(problem)
    return lambda: function(t["x"], *settings)


def _avg_pool_grad(problem: Problem, t: Tensors) -> Callable[[], Any]:
    g = problem.geometry
    if g.rank == 1:
        raise Cannot("PyTorch has this gradient for 2 and 3 spatial axes")
    backward, settings = getattr(aten, f"avg_pool{g.rank}d_backward"), _avg_settings(problem)
    x = _like(t["grad_output"], g.x_shape)
    return lambda: backward(t["grad_output"], x, *settings)


def _adaptive_avg_pool(problem: Problem, t: Tensors) -> Callable[[], Any]:
    function, size = getattr(F, f"adaptive_avg_pool{problem.geometry.rank}d"), problem.geometry.output
    return lambda: function(t["x"], size)


def _local_response_norm(problem: Problem, t: Tensors) -> Callable[[], Any]:
    size = problem.option("size")
    settings = (size, problem.option("alpha") * size, problem.option("beta"), problem.option("k"))
    return lambda: F.local_response_norm(t["x"], *settings)


def _batch_norm(problem: Problem, t: Tensors) -> Callable[[], Any]:
    eps = problem.option("eps")
    return lambda: F.batch_norm(t["x"], t["mean"], t["var"], t.get("weight"), t.get("bias"), False, 0.1, eps)


def _pointwise(problem: Problem, t: Tensors) -> Callable[[], Any]:
    function = getattr(torch, problem.op)
    return lambda: function(t["x"])


def _pointwise_grad(problem: Problem, t: Tensors) -> Callable[[], Any]:
    grad, y = t["grad_output"], t["y"]
    if problem.op == "relu_grad":
        return lambda: aten.threshold_backward(grad, y, 0)
    backward = getattr(aten, problem.op.replace("_grad", "_backward"))
    return lambda: backward(grad, y)


_BUILDERS: dict[str, Callable[[Problem, Tensors], Callable[[], Any]]] = {
    "conv": _conv,
    "conv_grad_input": _conv_backward((True, False, False)),
    "conv_grad_weight": _conv_backward((False, True, False)),
    "max_pool": _max_pool,
    "max_pool_grad": _max_pool_grad,
    "avg_pool": _avg_pool,
    "avg_pool_grad": _avg_pool_grad,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "local_response_norm": _local_response_norm,
    "batch_norm": _batch_norm,
    **dict.fromkeys(("relu", "tanh", "sigmoid"), _pointwise),
    **{f"{name}_grad": _pointwise_grad for name in ("relu", "tanh", "sigmoid")},
}
