"""The reference backend against a second implementation: the documented formulas, element by element, in pure Python.

Nothing here is vectorised or shared with the backend. Values are small integers where the result is then exact in any
order, so most comparisons are equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest

from cnnkern.spec import ChannelGeometry, ClassGeometry, ConvGeometry, PoolGeometry, ResizeGeometry
from reference_rows import call, conv_geometry, integers, pool_geometry

SEEDS = range(12)
RANKS = (1, 2, 3)


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def positions(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Row-major."""
    return product(*(range(size) for size in sizes))


def layout_of(seed: int) -> str:
    return "NHWC" if seed % 2 else "NCHW"


def draw_conv(rng: np.random.Generator, rank: int) -> ConvGeometry:
    """A small convolution with at least one window: uneven padding, any stride, dilation and groups."""
    while True:
        groups = int(rng.integers(1, 4))
        size = tuple(int(v) for v in rng.integers(1, (9, 6, 4)[rank - 1], rank))
        kernel, stride, dilation = (tuple(int(v) for v in rng.integers(1, 4, rank)) for _ in range(3))
        padding = tuple((int(b), int(a)) for b, a in rng.integers(0, 4, (rank, 2)))
        x_shape = (int(rng.integers(1, 3)), groups * int(rng.integers(1, 3)), *size)
        w_shape = (groups * int(rng.integers(1, 3)), x_shape[1] // groups, *kernel)
        g = conv_geometry(x_shape, w_shape, stride, padding, dilation, groups)
        if min(g.output) >= 1:
            return g


def draw_pool(rng: np.random.Generator, rank: int, dilated: bool = True) -> PoolGeometry:
    """A small pooling in which every window holds a real element."""
    while True:
        size = tuple(int(v) for v in rng.integers(1, (10, 7, 5)[rank - 1], rank))
        kernel, stride = (tuple(int(v) for v in rng.integers(1, 4, rank)) for _ in range(2))
        dilation = tuple(int(v) for v in rng.integers(1, 3, rank)) if dilated else 1
        padding = tuple((int(b), int(a)) for b, a in rng.integers(0, 3, (rank, 2)))
        g = pool_geometry((2, 2, *size), kernel, stride, padding, dilation, bool(rng.integers(2)))
        if min(g.output) >= 1 and all(any(window(g, p)) for p in positions(g.output)):
            return g


def source(g: ConvGeometry | PoolGeometry, p: tuple[int, ...], cell: tuple[int, ...]) -> tuple[int, ...] | None:
    """The element that output ``p`` meets under ``cell``; None on padding."""
    at = tuple(i * s - b + r * d for i, s, b, r, d in zip(p, g.stride, g.pad_before, cell, g.dilation, strict=True))
    return at if all(0 <= i < size for i, size in zip(at, g.input, strict=True)) else None


def window(g: PoolGeometry, p: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(cell, element) of the real elements of output ``p``'s window, row-major."""
    for cell in positions(g.kernel):
        at = source(g, p, cell)
        if at is not None:
            yield cell, at


def adaptive_window(g: ResizeGeometry, p: tuple[int, ...]) -> list[tuple[int, ...]]:
    ranges = [
        range(math.floor(i * size / out), math.ceil((i + 1) * size / out))
        for i, size, out in zip(p, g.input, g.output, strict=True)
    ]
    return list(product(*ranges))


def offset(at: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    total = 0
    for i, size in zip(at, sizes, strict=True):
        total = total * size + i
    return total


def conv_by_formula(g: ConvGeometry, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    y = np.zeros(g.y_shape)
    per_group = g.in_channels // g.groups
    for n, o in product(range(g.batch), range(g.out_channels)):
        first = o // (g.out_channels // g.groups) * per_group
        for p in positions(g.output):
            for c, r in product(range(per_group), positions(g.kernel)):
                at = source(g, p, r)
                if at is not None:
                    y[(n, o, *p)] += w[(o, c, *r)] * x[(n, first + c, *at)]
    return y


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_conv(rank: int, seed: int) -> None:
    rng = generator(1, rank, seed)
    g = draw_conv(rng, rank)
    x, w = integers(rng, g.x_shape), integers(rng, g.weight_shape)
    bias, residual = integers(rng, (g.out_channels,)), integers(rng, g.y_shape, -40, 40)
    expected = conv_by_formula(g, x, w)
    layout = layout_of(seed)
    np.testing.assert_array_equal(call("conv", g, x, w, layout=layout), expected)
    for o in range(g.out_channels):
        expected[:, o] += bias[o]
    expected = np.where(expected + residual > 0, expected + residual, 0)
    actual = call("conv", g, x, w, bias, residual, activation="relu", layout=layout, dtype="f32")
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("x_dtype, w_dtype", list(product(("i8", "u8"), repeat=2)))
@pytest.mark.parametrize("rank", RANKS)
def test_conv_of_bytes(rank: int, x_dtype: str, w_dtype: str) -> None:
    rng = generator(2, rank)
    g = draw_conv(rng, rank)
    limits = {"i8": (-128, 127), "u8": (0, 255)}
    x, w = integers(rng, g.x_shape, *limits[x_dtype]), integers(rng, g.weight_shape, *limits[w_dtype])
    y = call("conv", g, x, w, dtype=x_dtype, weight_dtype=w_dtype)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, conv_by_formula(g, x, w))


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_conv_gradients(rank: int, seed: int) -> None:
    rng = generator(3, rank, seed)
    g = draw_conv(rng, rank)
    x, w, gy = integers(rng, g.x_shape), integers(rng, g.weight_shape), integers(rng, g.y_shape)
    grad_x, grad_w = np.zeros(g.x_shape), np.zeros(g.weight_shape)
    per_group, filters = g.in_channels // g.groups, g.out_channels // g.groups
    for n, c in product(range(g.batch), range(g.in_channels)):
        group = c // per_group
        for i in positions(g.input):
            for o in range(group * filters, (group + 1) * filters):
                for p, r in product(positions(g.output), positions(g.kernel)):
                    if source(g, p, r) == i:
                        grad_x[(n, c, *i)] += gy[(n, o, *p)] * w[(o, c % per_group, *r)]
                        grad_w[(o, c % per_group, *r)] += gy[(n, o, *p)] * x[(n, c, *i)]
    layout = layout_of(seed)
    np.testing.assert_array_equal(call("conv_grad_input", g, gy, w, layout=layout), grad_x)
    np.testing.assert_array_equal(call("conv_grad_weight", g, gy, x, layout=layout), grad_w)
    bias, residual = integers(rng, (g.in_channels,)), integers(rng, g.x_shape)
    for c in range(g.in_channels):
        grad_x[:, c] += bias[c]
    actual = call("conv_grad_input", g, gy, w, bias, residual, activation="relu", layout=layout)
    np.testing.assert_array_equal(actual, np.where(grad_x + residual > 0, grad_x + residual, 0))


def test_transposed_conv_by_its_own_formula() -> None:
    """y[n, o, j] = bias[o] + sum over i s - b + r d = j of x[n, c, i] w[c, o, r]; output_padding adds positions."""
    for seed in SEEDS:
        rng = generator(4, seed)
        length, k, s, d = (int(v) for v in rng.integers(1, 5, 4))
        extra = int(rng.integers(0, max(s, d)))
        reach = (length - 1) * s + d * (k - 1) + extra + 1
        b, a = (int(v) for v in rng.integers(0, 3, 2))
        out = reach - b - a
        if out < 1:
            continue
        x, w, bias = integers(rng, (2, 3, length)), integers(rng, (3, 2, k)), integers(rng, (2,))
        expected = np.zeros((2, 2, out)) + bias[:, None]
        for n, c, o, i, r in product(range(2), range(3), range(2), range(length), range(k)):
            if 0 <= i * s - b + r * d < out:
                expected[n, o, i * s - b + r * d] += x[n, c, i] * w[c, o, r]
        g = ConvGeometry(2, 1, 2, 3, (out,), (length,), (k,), (s,), (d,), (b,), (a,))
        np.testing.assert_array_equal(call("conv_grad_input", g, x, w, bias), expected)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_max_pool(rank: int, seed: int) -> None:
    rng = generator(5, rank, seed)
    g = draw_pool(rng, rank)
    x = rng.choice(
        [-2.0, -1.0, 0.0, 1.0, -math.inf, math.inf, math.nan], g.x_shape, p=[0.2] * 3 + [0.15, 0.15, 0.05, 0.05]
    )
    gy = integers(rng, g.y_shape)
    y, torch_index = np.zeros(g.y_shape), np.zeros(g.y_shape)
    window_index, grad_x = np.zeros(g.y_shape), np.zeros(g.x_shape)
    for n, c, p in product(range(2), range(2), positions(g.output)):
        m, chosen = -math.inf, None
        for cell, at in window(g, p):
            v = float(x[(n, c, *at)])
            if chosen is None or v > m or math.isnan(v):
                m, chosen = v, (cell, at)
        assert chosen is not None
        y[(n, c, *p)] = m
        torch_index[(n, c, *p)] = offset(chosen[1], g.input)
        window_index[(n, c, *p)] = offset(chosen[0], g.kernel)
        grad_x[(n, c, *chosen[1])] += gy[(n, c, *p)]
    for dtype, layout in (("f64", "NCHW"), ("f32", "NHWC"), ("bf16", "NCHW")):
        for kind, expected in (("torch", torch_index), ("window", window_index)):
            actual, index = call("max_pool", g, x, indices=kind, dtype=dtype, layout=layout)
            np.testing.assert_array_equal(actual.astype(np.float64), y)
            np.testing.assert_array_equal(index, expected)
            back = call("max_pool_grad", g, gy, index, indices=kind, dtype=dtype, layout=layout)
            np.testing.assert_array_equal(back.astype(np.float64), grad_x)
    np.testing.assert_array_equal(call("max_pool", g, x), y)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_avg_pool(rank: int, seed: int) -> None:
    rng = generator(6, rank, seed)
    g = draw_pool(rng, rank, dilated=False)
    x, gy = integers(rng, g.x_shape, -99, 99), integers(rng, g.y_shape)
    layout = layout_of(seed)
    for options in ({}, {"count_include_pad": False}, {"divisor": 7}):
        y, truncated, grad_x = np.zeros(g.y_shape), np.zeros(g.y_shape), np.zeros(g.x_shape)
        for p in positions(g.output):
            counted = real = 1
            for axis, i in enumerate(p):
                start = i * g.stride[axis] - g.pad_before[axis]
                end = min(start + g.kernel[axis], g.input[axis] + g.pad_after[axis])
                counted *= end - start
                real *= min(end, g.input[axis]) - max(start, 0)
            divisor = options.get("divisor", counted if options.get("count_include_pad", True) else real)
            for n, c in product(range(2), range(2)):
                total = sum(float(x[(n, c, *at)]) for _, at in window(g, p))
                y[(n, c, *p)] = total / divisor
                truncated[(n, c, *p)] = math.trunc(total / divisor)
                for _, at in window(g, p):
                    grad_x[(n, c, *at)] += gy[(n, c, *p)] / divisor
        np.testing.assert_array_equal(call("avg_pool", g, x, layout=layout, **options), y)
        np.testing.assert_array_equal(call("avg_pool", g, x, layout=layout, dtype="i16", **options), truncated)
        np.testing.assert_array_equal(call("avg_pool", g, x, layout=layout, dtype="i64", **options), truncated)
        np.testing.assert_allclose(call("avg_pool_grad", g, gy, layout=layout, **options), grad_x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 2.5, math.inf])
def test_lp_pool(rank: int, norm_type: float) -> None:
    for seed in range(4):
        rng = generator(7, rank, seed)
        g = draw_pool(rng, rank)
        x, gy = integers(rng, g.x_shape), integers(rng, g.y_shape)
        y, grad_x = np.zeros(g.y_shape), np.zeros(g.x_shape)
        for n, c, p in product(range(2), range(2), positions(g.output)):
            values = {at: float(x[(n, c, *at)]) for _, at in window(g, p)}
            largest = max(abs(v) for v in values.values())
            finite = norm_type < math.inf
            norm = sum(abs(v) ** norm_type for v in values.values()) ** (1 / norm_type) if finite else largest
            y[(n, c, *p)] = norm
            ties = sum(abs(v) == largest for v in values.values())
            for at, v in values.items():
                if norm == 0 or v == 0:
                    continue
                slope = abs(v) ** (norm_type - 1) * norm ** (1 - norm_type) if finite else (abs(v) == largest) / ties
                grad_x[(n, c, *at)] += math.copysign(slope, v) * gy[(n, c, *p)]
        layout = layout_of(seed)
        np.testing.assert_allclose(call("lp_pool", g, x, norm_type=norm_type, layout=layout), y, rtol=1e-14)
        actual = call("lp_pool_grad", g, gy, x, norm_type=norm_type, layout=layout)
        np.testing.assert_allclose(actual, grad_x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_adaptive_pools(rank: int, seed: int) -> None:
    rng = generator(8, rank, seed)
    sizes = rng.integers(1, (12, 8, 5)[rank - 1], (2, rank))
    g = ResizeGeometry(2, 2, tuple(map(int, sizes[0])), tuple(map(int, sizes[1])))
    x, gy = integers(rng, g.x_shape, -9, 9), integers(rng, g.y_shape)
    mean, largest, index = np.zeros(g.y_shape), np.zeros(g.y_shape), np.zeros(g.y_shape)
    mean_grad, max_grad = np.zeros(g.x_shape), np.zeros(g.x_shape)
    for n, c, p in product(range(2), range(2), positions(g.output)):
        elements = adaptive_window(g, p)
        values = [float(x[(n, c, *at)]) for at in elements]
        mean[(n, c, *p)] = sum(values) / len(values)
        largest[(n, c, *p)] = max(values)
        first = elements[values.index(max(values))]
        index[(n, c, *p)] = offset(first, g.input)
        max_grad[(n, c, *first)] += gy[(n, c, *p)]
        for at in elements:
            mean_grad[(n, c, *at)] += gy[(n, c, *p)] / len(values)
    layout = layout_of(seed)
    np.testing.assert_array_equal(call("adaptive_avg_pool", g, x, layout=layout), mean)
    np.testing.assert_array_equal(call("adaptive_avg_pool", g, x, layout=layout, dtype="i32"), np.trunc(mean))
    np.testing.assert_allclose(call("adaptive_avg_pool_grad", g, gy, layout=layout), mean_grad, rtol=0, atol=1e-13)
    y, actual = call("adaptive_max_pool", g, x, indices="torch", layout=layout)
    np.testing.assert_array_equal(y, largest)
    np.testing.assert_array_equal(actual, index)
    np.testing.assert_array_equal(call("adaptive_max_pool_grad", g, gy, index, layout=layout), max_grad)


@pytest.mark.parametrize("rank", RANKS)
def test_max_unpool(rank: int) -> None:
    for seed in SEEDS:
        rng = generator(9, rank, seed)
        sizes = rng.integers(1, 5, (2, rank))
        g = ResizeGeometry(2, 2, tuple(map(int, sizes[0])), tuple(map(int, sizes[1])))
        x, gy = integers(rng, g.x_shape), integers(rng, g.y_shape)
        index = rng.integers(0, prod(g.output), g.x_shape)  # with duplicates
        out, grad_x = np.zeros(g.y_shape), np.zeros(g.x_shape)
        for n, c in product(range(2), range(2)):
            kept: dict[int, tuple[int, ...]] = {}
            for p in positions(g.input):
                kept[int(index[(n, c, *p)])] = p
            for q in positions(g.output):
                p = kept.get(offset(q, g.output), ())
                if p:
                    out[(n, c, *q)] = x[(n, c, *p)]
                    grad_x[(n, c, *p)] = gy[(n, c, *q)]
        layout = layout_of(seed)
        np.testing.assert_array_equal(call("max_unpool", g, x, index, layout=layout), out)
        np.testing.assert_array_equal(call("max_unpool_grad", g, gy, index, layout=layout), grad_x)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_local_response_norm(size: int, layout: str) -> None:
    rng = generator(10, size)
    channels, alpha, beta, k = 6, 0.3, 0.75, 1.5
    g = ChannelGeometry(2, channels, (2, 3))
    x, gy = rng.standard_normal(g.x_shape), rng.standard_normal(g.x_shape)
    scale, y, grad = np.zeros(g.x_shape), np.zeros(g.x_shape), np.zeros(g.x_shape)
    windows = {
        c: [j for j in range(c - size // 2, c + (size - 1) // 2 + 1) if 0 <= j < channels] for c in range(channels)
    }
    elements = list(positions((2, 3)))
    for n, c, p in product(range(2), range(channels), elements):
        scale[(n, c, *p)] = k + alpha * sum(x[(n, j, *p)] ** 2 for j in windows[c])
        y[(n, c, *p)] = x[(n, c, *p)] * scale[(n, c, *p)] ** -beta
    for n, c, p in product(range(2), range(channels), elements):
        own = gy[(n, c, *p)] * scale[(n, c, *p)] ** -beta
        shared = sum(
            gy[(n, j, *p)] * x[(n, j, *p)] * scale[(n, j, *p)] ** (-beta - 1)
            for j in range(channels)
            if c in windows[j]
        )
        grad[(n, c, *p)] = own - 2 * alpha * beta * x[(n, c, *p)] * shared
    options: dict[str, Any] = {"size": size, "alpha": alpha, "beta": beta, "k": k, "layout": layout}
    np.testing.assert_allclose(call("local_response_norm", g, x, **options), y, rtol=1e-13)
    np.testing.assert_allclose(call("local_response_norm_grad", g, gy, x, **options), grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("spatial", [(), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm(spatial: tuple, layout: str) -> None:
    rng = generator(11, len(spatial))
    g = ChannelGeometry(3, 2, spatial)
    x, gy = rng.standard_normal(g.x_shape), rng.standard_normal(g.x_shape)
    weight, bias = rng.standard_normal(2), rng.standard_normal(2)
    y, grad_x, grad_weight, grad_bias = np.zeros(g.x_shape), np.zeros(g.x_shape), np.zeros(2), np.zeros(2)
    mean, var, rstd = np.zeros(2), np.zeros(2), np.zeros(2)
    for c in range(2):
        places = [(n, c, *p) for n, p in product(range(3), positions(spatial))]
        count = len(places)
        mean[c] = sum(x[at] for at in places) / count
        var[c] = sum((x[at] - mean[c]) ** 2 for at in places) / count
        rstd[c] = 1 / math.sqrt(var[c] + 1e-3)
        for at in places:
            y[at] = weight[c] * (x[at] - mean[c]) / math.sqrt(var[c] + 1e-3) + bias[c]
            grad_weight[c] += gy[at] * (x[at] - mean[c]) * rstd[c]
            grad_bias[c] += gy[at]
        # d y_a / d x_b = weight rstd (delta_ab - 1/m - xhat_a xhat_b / m)
        for b in places:
            for a in places:
                both = (x[a] - mean[c]) * (x[b] - mean[c]) * rstd[c] ** 2
                grad_x[b] += gy[a] * weight[c] * rstd[c] * ((a == b) - 1 / count - both / count)
    actual = call("batch_norm_training", g, x, weight, bias, eps=1e-3, layout=layout)
    for got, expected in zip(actual, (y, mean, var, rstd), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-14)
    given = call("batch_norm", g, x, mean, var, weight, bias, eps=1e-3, layout=layout)
    np.testing.assert_allclose(given, y, rtol=1e-11, atol=1e-14)
    gradients = call("batch_norm_grad", g, gy, x, weight, mean, rstd, layout=layout)
    for got, expected in zip(gradients, (grad_x, grad_weight, grad_bias), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rank", RANKS)
def test_unfold_and_fold(rank: int) -> None:
    for seed in SEEDS:
        rng = generator(12, rank, seed)
        drawn = draw_conv(rng, rank)
        cells, count, layout = prod(drawn.kernel), prod(drawn.output), layout_of(seed)
        weight_shape = (drawn.in_channels * cells, drawn.in_channels, *drawn.kernel)
        padding = tuple(zip(drawn.pad_before, drawn.pad_after, strict=True))
        g = conv_geometry(drawn.x_shape, weight_shape, drawn.stride, padding, drawn.dilation)
        x = integers(rng, g.x_shape)
        columns = integers(rng, (g.batch, g.in_channels * cells, count))
        unfolded, folded = np.zeros(columns.shape), np.zeros(g.x_shape)
        for n, c, cell, p in product(range(g.batch), range(g.in_channels), positions(g.kernel), positions(g.output)):
            at = source(g, p, cell)
            if at is not None:
                line, column = c * cells + offset(cell, g.kernel), offset(p, g.output)
                unfolded[n, line, column] = x[(n, c, *at)]
                folded[(n, c, *at)] += columns[n, line, column]
        np.testing.assert_array_equal(call("unfold", g, x, layout=layout), unfolded)
        np.testing.assert_array_equal(call("fold", g, columns, layout=layout), folded)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_softmax_cross_entropy(smoothing: float) -> None:
    rng = generator(13)
    rows, classes = 4, 5
    logits, labels = rng.standard_normal((rows, classes)) * 3, rng.integers(0, classes, rows)
    loss, grad = 0.0, np.zeros((rows, classes))
    for r in range(rows):
        total = sum(math.exp(v) for v in logits[r])
        for k in range(classes):
            target = (1 - smoothing) * (k == labels[r]) + smoothing / classes
            probability = math.exp(logits[r, k]) / total
            loss -= target * math.log(probability) / rows
            grad[r, k] = (probability - target) / rows
    actual = call("softmax_cross_entropy", ClassGeometry(rows, classes), logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(actual[0], loss, rtol=1e-13)
    np.testing.assert_allclose(actual[1], grad, rtol=1e-12, atol=1e-15)
