"""From a problem to the public call that a user would write: function, arguments, which results are the problem's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import cnnkern as ck
from cnnkern.problem import Problem

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class PublicCall:
    """``getattr(cnnkern, name)(*args, **kwargs)``.

    ``pick`` takes the problem's outputs from its result, in order; None stands for one that the function keeps.
    """

    name: str
    args: tuple
    kwargs: dict[str, Any]
    pick: Callable[[Any], tuple] = lambda result: result if isinstance(result, tuple) else (result,)

    def bind(self) -> Callable[[], Any]:
        """The call without arguments, as cheap to call as Python allows."""
        return functools.partial(getattr(ck, self.name), *self.args, **self.kwargs)


def _short(values: tuple[int, ...]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else values


def padding_argument(g: Any) -> Any:
    """The padding as a user would write it: an int, one int per axis, or a pair per axis."""
    if g.pad_before == g.pad_after:
        return _short(g.pad_before)
    return tuple(zip(g.pad_before, g.pad_after))


def pool_arguments(problem: Problem) -> tuple[str, tuple, dict[str, Any]]:
    """Forward function, positional arguments after x, and keywords of a max or adaptive max pooling."""
    g, layout = problem.geometry, {"layout": problem.layout}
    if problem.op.startswith("adaptive"):
        return f"adaptive_max_pool{g.rank}d", (_short(g.output),), layout
    window = (_short(g.kernel), _short(g.stride), padding_argument(g), _short(g.dilation), problem.ceil_mode)
    return f"max_pool{g.rank}d", window, layout


def public_call(problem: Problem, a: Arrays) -> PublicCall:
    """The public call of a problem on its input arrays (by operand name)."""
    return _BUILDERS[problem.op](problem, a)


def _conv(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    args = (a["x"], a["weight"], a.get("bias"), _short(g.stride), padding_argument(g), _short(g.dilation), g.groups)
    keywords: dict[str, Any] = {"layout": problem.layout, "precision": problem.precision}
    if problem.option("activation"):
        keywords["activation"] = problem.option("activation")
    if "residual" in a:
        keywords["residual"] = a["residual"]
    return PublicCall(f"conv{g.rank}d", args, keywords)


def _output_padding(g: Any) -> tuple[int, ...]:
    rows = zip(g.input, g.output, g.kernel, g.stride, g.dilation, g.pad_before, g.pad_after)
    return tuple(size - ((out - 1) * s - b - a + d * (k - 1) + 1) for size, out, k, s, d, b, a in rows)


def _conv_grad_input(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    keywords: dict[str, Any] = {"layout": problem.layout, "precision": problem.precision}
    extra = _output_padding(g)
    if problem.options or any(e >= s for e, s in zip(extra, g.stride)):  # only a transposed convolution can be meant
        args = (a["grad_output"], a["weight"], a.get("bias"), _short(g.stride), padding_argument(g), _short(extra))
        if problem.option("activation"):
            keywords["activation"] = problem.option("activation")
        if "residual" in a:
            keywords["residual"] = a["residual"]
        return PublicCall(f"conv_transpose{g.rank}d", (*args, g.groups, _short(g.dilation)), keywords)
    x = np.empty(problem.outputs[0].shape, problem.outputs[0].dtype)  # only its shape matters
    return _conv_backward(problem, a["grad_output"], x, a["weight"], (True, False, False))


def _conv_grad_weight(problem: Problem, a: Arrays) -> PublicCall:
    weight = np.empty(problem.outputs[0].shape, problem.outputs[0].dtype)
    return _conv_backward(problem, a["grad_output"], a["x"], weight, (False, True, False))


def _conv_backward(
    problem: Problem, grad: np.ndarray, x: np.ndarray, weight: np.ndarray, mask: tuple[bool, bool, bool]
) -> PublicCall:
    g = problem.geometry
    args = (grad, x, weight, _short(g.stride), padding_argument(g), _short(g.dilation), g.groups)
    keywords = {"output_mask": mask, "layout": problem.layout, "precision": problem.precision}
    return PublicCall(f"conv{g.rank}d_backward", args, keywords, lambda triple: (triple[mask.index(True)],))


def _channel_sum(problem: Problem, a: Arrays) -> PublicCall:
    """The bias gradient of a 1x1 convolution from one channel."""
    g = problem.geometry
    axis = -1 if problem.layout == "NHWC" else 1
    x = np.zeros_like(a["x"]).take([0], axis)
    weight = np.zeros((g.channels, 1, *(1,) * g.rank), a["x"].dtype)
    keywords = {"output_mask": (False, False, True), "layout": problem.layout}
    return PublicCall(f"conv{g.rank}d_backward", (a["x"], x, weight), keywords, lambda triple: (triple[2],))


def _max_pool(problem: Problem, a: Arrays) -> PublicCall:
    name, arguments, keywords = pool_arguments(problem)
    indices = problem.option("indices")
    if indices:
        keywords["return_indices"] = "window" if indices == "window" else True
    return PublicCall(name, (a["x"], *arguments), keywords)


def _max_pool_grad(problem: Problem, a: Arrays) -> PublicCall:
    name, arguments, keywords = pool_arguments(problem)
    args = (a["grad_output"], a["indices"], problem.outputs[0].shape)
    return PublicCall(f"{name}_backward", (*args, *(() if name.startswith("adaptive") else arguments)), keywords)


def _avg_pool(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    window = (_short(g.kernel), _short(g.stride), padding_argument(g), problem.ceil_mode)
    counting = (problem.option("count_include_pad"), problem.option("divisor"))
    return _forward_or_backward(problem, a, f"avg_pool{g.rank}d", (*window, *counting), {"layout": problem.layout})


def _forward_or_backward(
    problem: Problem, a: Arrays, name: str, arguments: tuple, keywords: dict[str, Any]
) -> PublicCall:
    """Ops whose backward function takes the gradient and the input's shape before the forward arguments."""
    if not problem.op.endswith("_grad"):
        return PublicCall(name, (a["x"], *arguments), keywords)
    return PublicCall(f"{name}_backward", (a["grad_output"], problem.outputs[0].shape, *arguments), keywords)


def _lp_pool(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    arguments = (problem.option("norm_type"), _short(g.kernel), _short(g.stride), problem.ceil_mode)
    keywords = {"padding": padding_argument(g), "layout": problem.layout}
    if problem.op == "lp_pool":
        return PublicCall(f"lp_pool{g.rank}d", (a["x"], *arguments), keywords)
    return PublicCall(f"lp_pool{g.rank}d_backward", (a["grad_output"], a["x"], *arguments), keywords)


def _adaptive_avg_pool(problem: Problem, a: Arrays) -> PublicCall:
    g, keywords = problem.geometry, {"layout": problem.layout}
    if problem.op == "adaptive_avg_pool":
        return PublicCall(f"adaptive_avg_pool{g.rank}d", (a["x"], _short(g.output)), keywords)
    args = (a["grad_output"], problem.outputs[0].shape)
    return PublicCall(f"adaptive_avg_pool{g.rank}d_backward", args, keywords)


def _max_unpool(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    stride = tuple(max(1, out // max(1, size)) for out, size in zip(g.output, g.input))
    if problem.op == "max_unpool":
        keywords = {"output_size": g.output, "layout": problem.layout}
        return PublicCall(f"max_unpool{g.rank}d", (a["x"], a["indices"], stride, stride, 0), keywords)
    args = (a["grad_output"], a["indices"])
    return PublicCall(f"max_unpool{g.rank}d_backward", args, {"layout": problem.layout})


def _local_response_norm(problem: Problem, a: Arrays) -> PublicCall:
    settings = tuple(problem.option(name) for name in ("size", "alpha", "beta", "k"))
    keywords = {"alpha_scaling": "sum", "layout": problem.layout}  # the option is already the factor of the sum
    if problem.op == "local_response_norm":
        return PublicCall("local_response_norm", (a["x"], *settings), keywords)
    return PublicCall("local_response_norm_backward", (a["grad_output"], a["x"], *settings), keywords)


def _batch_norm(problem: Problem, a: Arrays) -> PublicCall:
    args = (a["x"], a["mean"], a["var"], a.get("weight"), a.get("bias"))
    return PublicCall("batch_norm", args, {"eps": problem.option("eps"), "layout": problem.layout})


def _batch_norm_training(problem: Problem, a: Arrays) -> PublicCall:
    args = (a["x"], None, None, a.get("weight"), a.get("bias"))
    keywords = {"training": True, "eps": problem.option("eps"), "layout": problem.layout, "return_stats": True}

    return PublicCall("batch_norm", args, keywords, lambda r: (r[0], r[1], None, r[2]))  # var stays inside


def _batch_norm_grad(problem: Problem, a: Arrays) -> PublicCall:
    args = (a["grad_output"], a["x"], a.get("weight"), a["mean"], a["rstd"])
    keywords = {"training": problem.option("training"), "layout": problem.layout}
    return PublicCall("batch_norm_backward", args, keywords)


def _pointwise(problem: Problem, a: Arrays) -> PublicCall:
    if problem.op.endswith("_grad"):
        return PublicCall(problem.op.replace("_grad", "_backward"), (a["grad_output"], a["y"]), {})
    return PublicCall(problem.op, (a["x"],), {})


def _dropout(problem: Problem, a: Arrays) -> PublicCall:
    p = problem.option("p")
    if problem.op == "dropout":
        return PublicCall("dropout", (a["x"], p), {"seed": problem.option("seed")})
    return PublicCall("dropout_backward", (a["grad_output"], a["mask"], p), {})


def _unfold(problem: Problem, a: Arrays) -> PublicCall:
    g = problem.geometry
    window = (_short(g.kernel), _short(g.dilation), padding_argument(g), _short(g.stride))
    if problem.op == "unfold":
        return PublicCall("unfold", (a["x"], *window), {})
    return PublicCall("fold", (a["x"], g.input, *window), {})


def _softmax_cross_entropy(problem: Problem, a: Arrays) -> PublicCall:
    keywords = {"label_smoothing": problem.option("label_smoothing")}
    return PublicCall("softmax_cross_entropy", (a["logits"], a["labels"]), keywords)


_BUILDERS: dict[str, Callable[[Problem, Arrays], PublicCall]] = {
    "conv": _conv,
    "conv_grad_input": _conv_grad_input,
    "conv_grad_weight": _conv_grad_weight,
    "channel_sum": _channel_sum,
    "max_pool": _max_pool,
    "max_pool_grad": _max_pool_grad,
    "avg_pool": _avg_pool,
    "avg_pool_grad": _avg_pool,
    "lp_pool": _lp_pool,
    "lp_pool_grad": _lp_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "adaptive_avg_pool_grad": _adaptive_avg_pool,
    "adaptive_max_pool": _max_pool,
    "adaptive_max_pool_grad": _max_pool_grad,
    "max_unpool": _max_unpool,
    "max_unpool_grad": _max_unpool,
    "local_response_norm": _local_response_norm,
    "local_response_norm_grad": _local_response_norm,
    "batch_norm": _batch_norm,
    "batch_norm_training": _batch_norm_training,
    "batch_norm_grad": _batch_norm_grad,
    **{name: _pointwise for op in ("relu", "tanh", "sigmoid") for name in (op, f"{op}_grad")},
    "dropout": _dropout,
    "dropout_grad": _dropout,
    "unfold": _unfold,
    "fold": _unfold,
    "softmax_cross_entropy": _softmax_cross_entropy,
}
