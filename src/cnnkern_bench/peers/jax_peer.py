"""JAX on the CPU: jit-compiled functions on committed arrays; gradients by vjp inside the compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnkern.problem import Problem

from . import Cannot, Prepared

_SPATIAL = {1: "W", 2: "HW", 3: "DHW"}


def prepare(problem: Problem, inputs: dict[str, np.ndarray], arm: str, threads: int) -> Prepared:
    """XLA's thread pool has as many threads as the process had CPUs when it was started; ``threads`` must be that."""
    jax.config.update("jax_enable_x64", problem.dtype == "f64")
    build = _BUILDERS.get(problem.op)
    if build is None:
        raise Cannot(f"no JAX call is written for {problem.op_name}")
    function, names = build(problem)
    arrays = [jax.device_put(inputs[name]) for name in names if name in inputs]
    compiled = jax.jit(function).lower(*arrays).compile()
    return Prepared(lambda: compiled(*arrays).block_until_ready(), lambda result: (np.asarray(result),))


def _conv_function(problem: Problem) -> Callable[[Any, Any], Any]:
    g = problem.geometry
    maps = f"N{_SPATIAL[g.rank]}C" if problem.layout == "NHWC" else f"NC{_SPATIAL[g.rank]}"
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(g.output, g.stride, g.dilation, g.kernel)]
    padding = [(before, r - size - before) for before, r, size in zip(g.pad_before, reach, g.input)]

    def conv(x: Any, weight: Any) -> Any:
        return lax.conv_general_dilated(
            x,
            weight,
            g.stride,
            padding,
            rhs_dilation=g.dilation,
            dimension_numbers=(maps, f"OI{_SPATIAL[g.rank]}", maps),
            feature_group_count=g.groups,
            precision=lax.Precision.HIGHEST,
        )

    return conv


def _conv(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    conv = _conv_function(problem)
    relu = problem.option("activation") == "relu"
    channel = problem.geometry.rank + 1 if problem.layout == "NHWC" else 1
    names = [name for name in ("bias", "residual") if problem.option(name)]

    def function(x: Any, weight: Any, *rest: Any) -> Any:
        y = conv(x, weight)
        for name, value in zip(names, rest):
            y += jnp.expand_dims(value, [a for a in range(y.ndim) if a != channel]) if name == "bias" else value
        return jnp.maximum(y, 0) if relu else y

    return function, ("x", "weight", *names)


def _conv_grad_input(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    if problem.options:
        raise Cannot("no JAX call is written for a fused transposed convolution")
    conv, x = _conv_function(problem), problem.outputs[0]
    return (
        lambda grad, weight: jax.vjp(lambda v: conv(v, weight), jnp.zeros(x.shape, x.dtype))[1](grad)[0],
        ("grad_output", "weight"),
    )


def _conv_grad_weight(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    conv, weight = _conv_function(problem), problem.outputs[0]
    return (
        lambda grad, x: jax.vjp(lambda w: conv(x, w), jnp.zeros(weight.shape, weight.dtype))[1](grad)[0],
        ("grad_output", "x"),
    )


def _reduce(problem: Problem) -> Callable[[Any], Any]:
    g = problem.geometry
    if problem.ceil_mode and not problem.op.startswith("max"):
        raise Cannot("no JAX call is written for rounded-up average windows")
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(g.output, g.stride, g.dilation, g.kernel)]
    pads = [(before, max(0, r - size - before)) for before, r, size in zip(g.pad_before, reach, g.input)]

    def spread(values: Any, one: Any) -> list:
        return [one, *values, one] if problem.layout == "NHWC" else [one, one, *values]

    window, strides, padding = spread(g.kernel, 1), spread(g.stride, 1), spread(pads, (0, 0))
    dilation = spread(g.dilation, 1)

    def pool(x: Any) -> Any:
        if problem.op.startswith("max"):
            return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding, window_dilation=dilation)
        total = lax.reduce_window(x, 0.0, lax.add, window, strides, padding)
        if problem.option("divisor"):
            return total / problem.option("divisor")
        if problem.option("count_include_pad"):
            return total / np.prod(g.kernel)
        return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, window, strides, padding)

    return pool


def _pool(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    if problem.op == "max_pool" and problem.option("indices"):
        raise Cannot("JAX gives no indices")
    return _reduce(problem), ("x",)


def _max_pool_grad(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    pool = _reduce(problem)
    return lambda grad, x: jax.vjp(pool, x)[1](grad)[0], ("grad_output", "x")


def _avg_pool_grad(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    pool, x = _reduce(problem), problem.outputs[0]
    return lambda grad: jax.vjp(pool, jnp.zeros(x.shape, x.dtype))[1](grad)[0], ("grad_output",)


def _relu(problem: Problem) -> tuple[Callable, tuple[str, ...]]:
    return lambda x: jnp.maximum(x, 0), ("x",)


_BUILDERS: dict[str, Callable[[Problem], tuple[Callable, tuple[str, ...]]]] = {
    "conv": _conv,
    "conv_grad_input": _conv_grad_input,
    "conv_grad_weight": _conv_grad_weight,
    "max_pool": _pool,
    "avg_pool": _pool,
    "max_pool_grad": _max_pool_grad,
    "avg_pool_grad": _avg_pool_grad,
    "relu": _relu,
}
