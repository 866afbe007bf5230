"""Every gradient row of the reference backend against central differences of its forward row, in float64.

The scalar differentiated is <forward(x), direction> for a random direction; its derivative in x along another random
vector must be <backward(direction), vector>. With a step h the difference of a smooth function is off by about
h**2 + 1e-16 / h, so h = 1e-5 leaves ten digits; 1e-7 is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cnnkern.spec import OPS, ChannelGeometry, ClassGeometry, PointwiseGeometry, ResizeGeometry
from reference_rows import call, conv_geometry, pool_geometry

STEP = 1e-5
TOLERANCE = 1e-7
DECLARED: set[str] = set()  # gradient rows that some test here compares
CALLED: set[str] = set()  # those that the running test has called


def check(
    forward: Callable[[np.ndarray], np.ndarray], backward: Callable[[np.ndarray], np.ndarray], x: np.ndarray
) -> None:
    """``backward(direction)`` is the gradient at x of <forward(x), direction>: along five random vectors."""
    rng = np.random.default_rng(99)
    direction = rng.standard_normal(np.shape(forward(x)))
    gradient = backward(direction)
    assert gradient.shape == x.shape
    for _ in range(5):
        vector = rng.standard_normal(x.shape)
        change = forward(x + STEP * vector) - forward(x - STEP * vector)
        slope = float(np.sum(change * direction)) / (2 * STEP)
        expected = float(np.sum(gradient * vector))
        size = math.sqrt(float(np.sum(gradient**2))) + 1e-3
        assert abs(slope - expected) < TOLERANCE * size, f"difference quotient {slope}, gradient {expected}"


def compares(*rows: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Declares which gradient rows a test compares, and fails the test if it did not call each of them."""
    DECLARED.update(rows)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*arguments: Any, **named: Any) -> None:
            CALLED.clear()
            test(*arguments, **named)
            assert set(rows) == CALLED

        return run

    return decorate


def gradient(op: str, *arguments: Any, **options: Any) -> Any:
    CALLED.add(op)
    return call(op, *arguments, **options)


def test_every_gradient_row_is_compared() -> None:
    assert {op for op in OPS if "_grad" in op} | {"channel_sum"} == DECLARED


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values at least 0.1 apart and at least 0.05 from 0, so that a small step changes no order and no sign."""
    count = math.prod(shape)
    return (rng.permutation(count) - count // 2 + 0.5).reshape(shape) / 10


def test_check_fails_on_a_wrong_gradient() -> None:
    x = np.array([0.3, -0.7])
    check(np.sin, lambda d: d * np.cos(x), x)
    with pytest.raises(AssertionError, match="difference quotient"):
        check(np.sin, lambda d: d * np.cos(x) * (1 + 1e-5), x)


CONVS = (
    conv_geometry((2, 4, 9), (6, 2, 3), 2, ((1, 3),), 2, 2),
    conv_geometry((2, 3, 6, 5), (4, 3, 3, 2), (2, 1), ((1, 0), (0, 2)), 1, 1),
    conv_geometry((1, 4, 5, 6), (4, 1, 3, 3), 1, 1, 1, 4),
    conv_geometry((1, 2, 4, 5, 3), (2, 2, 2, 3, 2), (1, 2, 1), 1, (2, 1, 1), 1),
)


@pytest.mark.parametrize("g", CONVS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@compares("conv_grad_input", "conv_grad_weight", "channel_sum")
def test_conv(g: Any, layout: str) -> None:
    rng = np.random.default_rng(1)
    x, w, b = rng.standard_normal(g.x_shape), rng.standard_normal(g.weight_shape), rng.standard_normal(g.out_channels)
    check(
        lambda x: call("conv", g, x, w, b, layout=layout),
        lambda d: gradient("conv_grad_input", g, d, w, layout=layout),
        x,
    )
    check(
        lambda w: call("conv", g, x, w, b, layout=layout),
        lambda d: gradient("conv_grad_weight", g, d, x, layout=layout),
        w,
    )
    maps = ChannelGeometry(g.batch, g.out_channels, g.output)
    check(
        lambda b: call("conv", g, x, w, b, layout=layout), lambda d: gradient("channel_sum", maps, d, layout=layout), b
    )


@pytest.mark.parametrize("g", CONVS, ids=str)
def test_transposed_conv(g: Any) -> None:
    """Forward is the input gradient, so its own gradients are a convolution and a weight gradient with x in front."""
    rng = np.random.default_rng(2)
    x, w, b = rng.standard_normal(g.y_shape), rng.standard_normal(g.weight_shape), rng.standard_normal(g.in_channels)
    maps = ChannelGeometry(g.batch, g.in_channels, g.input)
    check(lambda x: call("conv_grad_input", g, x, w, b), lambda d: call("conv", g, d, w), x)
    check(lambda w: call("conv_grad_input", g, x, w, b), lambda d: call("conv_grad_weight", g, x, d), w)
    check(lambda b: call("conv_grad_input", g, x, w, b), lambda d: call("channel_sum", maps, d), b)


def test_conv_with_relu_and_residual() -> None:
    """The documented recipe: zero the gradient where y <= 0; what is left is also the residual's gradient."""
    g = conv_geometry((1, 2, 5, 5), (3, 2, 3, 3), 1, 1)
    rng = np.random.default_rng(3)
    x, w, residual = (rng.standard_normal(shape) for shape in (g.x_shape, g.weight_shape, g.y_shape))

    def forward(x: np.ndarray, w: np.ndarray, residual: np.ndarray) -> np.ndarray:
        return call("conv", g, x, w, None, residual, activation="relu")

    y = forward(x, w, residual)
    pointwise = PointwiseGeometry(y.shape)
    assert abs(call("conv", g, x, w, None, residual)).min() > 1e-3  # no kink within a step
    check(
        lambda x: forward(x, w, residual),
        lambda d: call("conv_grad_input", g, call("relu_grad", pointwise, d, y), w),
        x,
    )
    check(lambda residual: forward(x, w, residual), lambda d: call("relu_grad", pointwise, d, y), residual)


POOLS = (
    pool_geometry((2, 3, 9), 3, 2, ((1, 0),), 1, True),
    pool_geometry((2, 2, 6, 7), (3, 2), (2, 1), ((1, 1), (0, 1))),
    pool_geometry((1, 2, 5, 6), 2, 3, 0, 1, True),
    pool_geometry((1, 2, 7, 8), 2, 1, 1, (3, 2)),
    pool_geometry((1, 2, 4, 5, 4), 2, (1, 2, 3), 1, 1, True),
)


@pytest.mark.parametrize("g", POOLS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@compares("max_pool_grad", "avg_pool_grad", "lp_pool_grad")
def test_pools(g: Any, layout: str) -> None:
    rng = np.random.default_rng(4)
    x = distinct(rng, g.x_shape)
    for kind in ("torch", "window"):
        index = call("max_pool", g, x, indices=kind, layout=layout)[1]
        check(
            lambda x: call("max_pool", g, x, layout=layout),
            lambda d, kind=kind, index=index: gradient("max_pool_grad", g, d, index, indices=kind, layout=layout),
            x,
        )
    for options in ({}, {"count_include_pad": False}, {"divisor": 3}):
        check(
            lambda x, options=options: call("avg_pool", g, x, layout=layout, **options),
            lambda d, options=options: gradient("avg_pool_grad", g, d, layout=layout, **options),
            x,
        )
    for p in (1.0, 1.5, 2.0, 3.0, math.inf):
        apart = np.sign(x) * (abs(x) + 0.01 * rng.random(x.shape))  # |x| distinct too, for p = inf
        check(
            lambda x, p=p: call("lp_pool", g, x, norm_type=p, layout=layout),
            lambda d, p=p, apart=apart: gradient("lp_pool_grad", g, d, apart, norm_type=p, layout=layout),
            apart,
        )


@pytest.mark.parametrize("sizes", [((7,), (3,)), ((5, 6), (2, 4)), ((3, 2), (4, 5)), ((4, 3, 5), (2, 2, 3))], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@compares("adaptive_avg_pool_grad", "adaptive_max_pool_grad", "max_unpool_grad")
def test_adaptive_pools_and_unpool(sizes: tuple, layout: str) -> None:
    rng = np.random.default_rng(5)
    g = ResizeGeometry(2, 2, *sizes)
    x = distinct(rng, g.x_shape)
    index = call("adaptive_max_pool", g, x, indices="torch", layout=layout)[1]
    check(
        lambda x: call("adaptive_max_pool", g, x, layout=layout),
        lambda d: gradient("adaptive_max_pool_grad", g, d, index, layout=layout),
        x,
    )
    check(
        lambda x: call("adaptive_avg_pool", g, x, layout=layout),
        lambda d: gradient("adaptive_avg_pool_grad", g, d, layout=layout),
        x,
    )
    places = rng.integers(0, math.prod(g.output), g.x_shape)  # with duplicates, whose loser has no effect
    check(
        lambda x: call("max_unpool", g, x, places, layout=layout),
        lambda d: gradient("max_unpool_grad", g, d, places, layout=layout),
        x,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@compares("local_response_norm_grad")
def test_local_response_norm(size: int, layout: str) -> None:
    rng = np.random.default_rng(6)
    g = ChannelGeometry(2, 6, (3, 2))
    x = rng.standard_normal(g.x_shape)
    options: dict[str, Any] = {"size": size, "alpha": 0.4, "beta": 0.75, "k": 1.2, "layout": layout}
    check(
        lambda x: call("local_response_norm", g, x, **options),
        lambda d: gradient("local_response_norm_grad", g, d, x, **options),
        x,
    )


@pytest.mark.parametrize("spatial", [(), (4,), (3, 2), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@compares("batch_norm_grad")
def test_batch_norm(spatial: tuple, layout: str) -> None:
    rng = np.random.default_rng(7)
    g = ChannelGeometry(5, 3, spatial)
    x, weight, bias = rng.standard_normal(g.x_shape) + 1, rng.standard_normal(3), rng.standard_normal(3)
    _, mean, var, rstd = call("batch_norm_training", g, x, weight, bias, layout=layout)

    def training(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return call("batch_norm_training", g, x, weight, bias, layout=layout)[0]

    def inference(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return call("batch_norm", g, x, mean, var, weight, bias, layout=layout)

    for forward, is_training in ((training, True), (inference, False)):

        def backward(d: np.ndarray, which: int, is_training: bool = is_training) -> np.ndarray:
            return gradient("batch_norm_grad", g, d, x, weight, mean, rstd, training=is_training, layout=layout)[which]

        check(lambda x, f=forward: f(x, weight, bias), lambda d, b=backward: b(d, 0), x)
        check(lambda weight, f=forward: f(x, weight, bias), lambda d, b=backward: b(d, 1), weight)
        check(lambda bias, f=forward: f(x, weight, bias), lambda d, b=backward: b(d, 2), bias)


@compares("relu_grad", "tanh_grad", "sigmoid_grad")
def test_activations() -> None:
    x = distinct(np.random.default_rng(8), (6, 7))
    g = PointwiseGeometry(x.shape)
    for op in ("relu", "tanh", "sigmoid"):
        y = call(op, g, x)
        check(
            lambda x, op=op: call(op, g, x),
            lambda d, op=op, y=y: gradient(f"{op}_grad", g, d, y),
            x,
        )


@compares("dropout_grad")
def test_dropout() -> None:
    rng = np.random.default_rng(9)
    x = rng.standard_normal((6, 7))
    g = PointwiseGeometry(x.shape)
    mask = call("dropout", g, x, p=0.3, seed=5)[1]
    check(lambda x: call("dropout", g, x, p=0.3, seed=5)[0], lambda d: gradient("dropout_grad", g, d, mask, p=0.3), x)


def test_unfold_and_fold() -> None:
    rng = np.random.default_rng(10)
    g = conv_geometry((2, 3, 5, 6), (18, 3, 2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1))
    x = rng.standard_normal(g.x_shape)
    columns = call("unfold", g, x)
    check(lambda x: call("unfold", g, x), lambda d: call("fold", g, d), x)
    check(lambda c: call("fold", g, c), lambda d: call("unfold", g, d), columns)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_cross_entropy(smoothing: float) -> None:
    rng = np.random.default_rng(11)
    logits, labels = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    g = ClassGeometry(5, 4)

    def both(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return call("softmax_cross_entropy", g, logits, labels, label_smoothing=smoothing)

    check(lambda x: both(x)[0], lambda d: d * both(logits)[1], logits)
