"""What must hold between rows of the reference backend whatever the values: adjoints, flips, shifts, axes, layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cnnkern.spec import ChannelGeometry, ResizeGeometry
from reference_rows import call, conv_geometry, integers, pool_geometry

# rank, spatial size, kernel, stride, padding, dilation, groups, batch, channels of a group in and out
CONVS: tuple[tuple[Any, ...], ...] = (
    (1, (11,), (3,), 1, 0, 1, 1, (2, 3, 4)),
    (1, (12,), (4,), 3, ((5, 2),), 2, 2, (2, 2, 3)),
    (1, (5,), (2,), 4, ((0, 1),), 1, 3, (1, 1, 2)),  # stride larger than the kernel: columns that no tap reads
    (2, (7, 9), (3, 3), 1, 1, 1, 1, (2, 3, 4)),
    (2, (8, 7), (3, 2), (2, 3), ((1, 0), (2, 3)), (1, 2), 2, (3, 2, 1)),
    (2, (6, 6), (5, 1), 2, ((4, 4), (0, 0)), 1, 4, (1, 1, 1)),
    (2, (1, 5), (1, 3), 1, ((0, 0), (2, 0)), (3, 2), 1, (2, 5, 2)),
    (3, (5, 4, 6), (3, 2, 3), (1, 2, 3), ((1, 0), (0, 2), (2, 1)), (2, 1, 1), 2, (2, 2, 2)),
    (3, (3, 3, 3), (3, 3, 3), 1, 1, 1, 3, (1, 1, 2)),
)

POOLS: tuple[tuple[Any, ...], ...] = (  # spatial size, kernel, stride, padding, ceil_mode
    ((9,), (3,), 2, 1, False),
    ((10,), (3,), 2, ((0, 1),), True),
    ((7, 8), (3, 2), (2, 1), ((1, 2), (0, 1)), False),
    ((7, 8), (2, 3), 3, 1, True),
    ((5, 6, 4), (2, 3, 2), (1, 2, 2), ((1, 0), (1, 1), (0, 1)), True),
)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a * b))


def build_conv(case: tuple[Any, ...]) -> Any:
    _, size, kernel, stride, padding, dilation, groups, (batch, per_in, per_out) = case
    shapes = (batch, per_in * groups, *size), (per_out * groups, per_in, *kernel)
    return conv_geometry(*shapes, stride, padding, dilation, groups)


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_conv_adjoints(case: tuple, layout: str, dtype: str) -> None:
    """<conv(x, w), y> = <x, grad_x> = <w, grad_w>, exactly: integers in floating-point storage."""
    rng = np.random.default_rng(1)
    g = build_conv(case)
    x, w, y = integers(rng, g.x_shape), integers(rng, g.weight_shape), integers(rng, g.y_shape)
    how = {"layout": layout, "dtype": dtype}
    forward = inner(call("conv", g, x, w, **how).astype(np.float64), y)
    assert forward != 0
    assert forward == inner(x, call("conv_grad_input", g, y, w, **how).astype(np.float64))
    assert forward == inner(w, call("conv_grad_weight", g, y, x, **how).astype(np.float64))
    bias = integers(rng, (g.out_channels,))
    with_bias = inner(call("conv", g, x, w, bias, **how).astype(np.float64), y)
    total = call("channel_sum", ChannelGeometry(g.batch, g.out_channels, g.output), y, **how).astype(np.float64)
    assert with_bias - forward == inner(bias, total)


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_is_a_product_with_unfolded_columns(case: tuple) -> None:
    rng = np.random.default_rng(2)
    g = build_conv(case)
    x, w = integers(rng, g.x_shape), integers(rng, g.weight_shape)
    padding = tuple(zip(g.pad_before, g.pad_after, strict=True))
    cells = int(np.prod(g.kernel))
    whole = conv_geometry(g.x_shape, (g.in_channels * cells, g.in_channels, *g.kernel), g.stride, padding, g.dilation)
    columns = call("unfold", whole, x).reshape(g.batch, g.groups, -1, int(np.prod(g.output)))
    matrix = w.reshape(g.groups, g.out_channels // g.groups, -1)
    np.testing.assert_array_equal((matrix @ columns).reshape(g.y_shape), call("conv", g, x, w))


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv_of_flipped_arrays_is_flipped(case: tuple) -> None:
    """Mirrored input, kernel and padding give the mirrored output where the windows fit without remainder."""
    rng = np.random.default_rng(3)
    g = build_conv(case)
    span = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(g.output, g.stride, g.dilation, g.kernel, strict=True)]
    after = [need - size - b for need, size, b in zip(span, g.input, g.pad_before, strict=True)]
    x, w = integers(rng, g.x_shape), integers(rng, g.weight_shape)
    axes = tuple(range(2, 2 + g.rank))
    # the flipped image begins with what the windows left out at the end: cut that off before flipping
    kept = tuple(slice(0, size + min(0, a)) for size, a in zip(g.input, after, strict=True))
    flipped_x = np.flip(x[(..., *kept)], axes)
    padding = tuple((max(0, a), b) for a, b in zip(after, g.pad_before, strict=True))
    mirrored = conv_geometry(flipped_x.shape, g.weight_shape, g.stride, padding, g.dilation, g.groups)
    assert mirrored.output == g.output
    actual = call("conv", mirrored, flipped_x, np.flip(w, axes))
    np.testing.assert_array_equal(np.flip(actual, axes), call("conv", g, x, w))


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_groups_are_convolutions_side_by_side(case: tuple) -> None:
    rng = np.random.default_rng(4)
    g = build_conv(case)
    x, w, y = integers(rng, g.x_shape), integers(rng, g.weight_shape), integers(rng, g.y_shape)
    padding = tuple(zip(g.pad_before, g.pad_after, strict=True))
    forward, grad_x, grad_w = [], [], []
    for xs, ws, ys in zip(*(np.split(a, g.groups, axis) for a, axis in ((x, 1), (w, 0), (y, 1))), strict=True):
        one = conv_geometry(xs.shape, ws.shape, g.stride, padding, g.dilation)
        forward.append(call("conv", one, xs, ws))
        grad_x.append(call("conv_grad_input", one, ys, ws))
        grad_w.append(call("conv_grad_weight", one, ys, xs))
    np.testing.assert_array_equal(np.concatenate(forward, 1), call("conv", g, x, w))
    np.testing.assert_array_equal(np.concatenate(grad_x, 1), call("conv_grad_input", g, y, w))
    np.testing.assert_array_equal(np.concatenate(grad_w, 0), call("conv_grad_weight", g, y, x))


@pytest.mark.parametrize("case", CONVS, ids=str)
def test_padding_is_an_image_with_a_border_of_zeros(case: tuple) -> None:
    rng = np.random.default_rng(5)
    g = build_conv(case)
    x, w = integers(rng, g.x_shape), integers(rng, g.weight_shape)
    bordered = np.pad(x, ((0, 0), (0, 0), *zip(g.pad_before, g.pad_after, strict=True)))
    plain = conv_geometry(bordered.shape, g.weight_shape, g.stride, 0, g.dilation, g.groups)
    np.testing.assert_array_equal(call("conv", plain, bordered, w), call("conv", g, x, w))


def test_a_whole_image_kernel_is_a_matrix_product() -> None:
    rng = np.random.default_rng(6)
    x, w = integers(rng, (3, 2, 4, 5)), integers(rng, (6, 2, 4, 5))
    y = call("conv", conv_geometry(x.shape, w.shape), x, w)
    np.testing.assert_array_equal(y[..., 0, 0], x.reshape(3, -1) @ w.reshape(6, -1).T)


@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_avg_pool_adjoint(case: tuple, layout: str) -> None:
    size, kernel, stride, padding, ceil_mode = case
    rng = np.random.default_rng(7)
    g = pool_geometry((2, 3, *size), kernel, stride, padding, 1, ceil_mode)
    x, y = integers(rng, g.x_shape), integers(rng, g.y_shape)
    for options in ({"divisor": 2}, {"divisor": 1, "count_include_pad": False}):  # powers of two: exact
        forward = inner(call("avg_pool", g, x, layout=layout, **options), y)
        assert forward == inner(x, call("avg_pool_grad", g, y, layout=layout, **options)) != 0
    for options in ({}, {"count_include_pad": False}):
        forward = inner(call("avg_pool", g, x, layout=layout, **options), y)
        assert forward == pytest.approx(inner(x, call("avg_pool_grad", g, y, layout=layout, **options)), rel=1e-12)


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_avg_pool_is_a_depthwise_convolution_with_ones(case: tuple) -> None:
    size, kernel, stride, padding, _ = case
    rng = np.random.default_rng(8)
    g = pool_geometry((2, 3, *size), kernel, stride, padding)
    x = integers(rng, g.x_shape)
    depthwise = conv_geometry(g.x_shape, (3, 1, *kernel), stride, padding, 1, 3)
    ones = np.ones((3, 1, *kernel))
    np.testing.assert_array_equal(call("avg_pool", g, x, divisor=1), call("conv", depthwise, x, ones))
    actual = call("lp_pool", g, x, norm_type=1.0)
    np.testing.assert_allclose(actual, call("conv", depthwise, abs(x), ones), rtol=1e-14)


@pytest.mark.parametrize("case", POOLS, ids=str)
@pytest.mark.parametrize("kind", ["torch", "window"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_max_pool_gradient_is_the_adjoint_of_the_selection(case: tuple, kind: str, layout: str) -> None:
    """With the choice of elements fixed by the indices, pooling is linear: <pool(x), y> = <x, grad>, exactly."""
    size, kernel, stride, padding, ceil_mode = case
    rng = np.random.default_rng(9)
    g = pool_geometry((2, 3, *size), kernel, stride, padding, 1, ceil_mode)
    x, y = integers(rng, g.x_shape, -9, 9), integers(rng, g.y_shape)
    out, index = call("max_pool", g, x, indices=kind, layout=layout)
    assert inner(out, y) == inner(x, call("max_pool_grad", g, y, index, indices=kind, layout=layout))
    if kind == "torch":
        flat = x.reshape(2, 3, -1)
        np.testing.assert_array_equal(np.take_along_axis(flat, index.reshape(2, 3, -1), 2).reshape(out.shape), out)


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pools_of_shifted_and_scaled_arrays(case: tuple) -> None:
    size, kernel, stride, padding, ceil_mode = case
    rng = np.random.default_rng(10)
    g = pool_geometry((2, 3, *size), kernel, stride, padding, 1, ceil_mode)
    x = integers(rng, g.x_shape)
    out, index = call("max_pool", g, x, indices="torch")
    shifted, same_index = call("max_pool", g, x - 100, indices="torch")
    np.testing.assert_array_equal(shifted, out - 100)
    np.testing.assert_array_equal(same_index, index)
    mean = call("avg_pool", g, x, count_include_pad=False)
    np.testing.assert_allclose(call("avg_pool", g, x + 8, count_include_pad=False), mean + 8, rtol=1e-13)
    norm = call("lp_pool", g, x, norm_type=3.0)
    np.testing.assert_allclose(call("lp_pool", g, -4 * x, norm_type=3.0), 4 * norm, rtol=1e-13)
    np.testing.assert_array_equal(call("lp_pool", g, x, norm_type=np.inf), call("max_pool", g, abs(x)))


def test_pools_of_flipped_arrays() -> None:
    rng = np.random.default_rng(11)
    x = integers(rng, (2, 2, 7, 9))
    for padding in (((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 0), (0, 2))):
        g = pool_geometry(x.shape, 3, 2, padding)
        mirrored = pool_geometry(x.shape, 3, 2, tuple((a, b) for b, a in padding))
        for op in ("max_pool", "avg_pool", "lp_pool"):
            actual = call(op, mirrored, x[..., ::-1, ::-1])[..., ::-1, ::-1]
            np.testing.assert_allclose(actual, call(op, g, x), rtol=1e-14)


def test_pooling_a_bordered_image() -> None:
    """Padding equals a border of -infinity for the maximum and of zeros for the mean that counts it."""
    rng = np.random.default_rng(12)
    x = integers(rng, (1, 2, 6, 7))
    sides = ((1, 2), (2, 0))
    g = pool_geometry(x.shape, 3, 2, sides)
    for op, fill in (("max_pool", -np.inf), ("avg_pool", 0), ("lp_pool", 0)):
        bordered = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=fill)
        np.testing.assert_array_equal(call(op, pool_geometry(bordered.shape, 3, 2), bordered), call(op, g, x))


@pytest.mark.parametrize("sizes", [((5,), (3,)), ((4, 7), (4, 2)), ((3, 2), (5, 3)), ((4, 3, 5), (2, 3, 4))], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_adaptive_adjoints(sizes: tuple, layout: str) -> None:
    rng = np.random.default_rng(13)
    g = ResizeGeometry(2, 3, *sizes)
    x, y = integers(rng, g.x_shape, -9, 9), integers(rng, g.y_shape)
    forward = inner(call("adaptive_avg_pool", g, x, layout=layout), y)
    assert forward == pytest.approx(inner(x, call("adaptive_avg_pool_grad", g, y, layout=layout)), rel=1e-12)
    out, index = call("adaptive_max_pool", g, x, indices="torch", layout=layout)
    assert inner(out, y) == inner(x, call("adaptive_max_pool_grad", g, y, index, layout=layout))


def test_adaptive_pools_are_windowed_pools_where_sizes_divide() -> None:
    rng = np.random.default_rng(14)
    x = integers(rng, (2, 3, 6, 8))
    g, windowed = ResizeGeometry(2, 3, (6, 8), (3, 2)), pool_geometry(x.shape, (2, 4))
    np.testing.assert_array_equal(call("adaptive_avg_pool", g, x), call("avg_pool", windowed, x))
    for adaptive, plain in zip(
        call("adaptive_max_pool", g, x, indices="torch"), call("max_pool", windowed, x, indices="torch"), strict=True
    ):
        np.testing.assert_array_equal(adaptive, plain)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_unpool_adjoint_and_return_to_the_maxima(layout: str) -> None:
    rng = np.random.default_rng(15)
    x = integers(rng, (2, 3, 6, 8))
    windowed = pool_geometry(x.shape, 2)
    out, index = call("max_pool", windowed, x, indices="torch", layout=layout)
    g = ResizeGeometry(2, 3, windowed.output, windowed.input)
    back = call("max_unpool", g, out, index, layout=layout)
    np.testing.assert_array_equal(back, call("max_pool_grad", windowed, out, index, layout=layout))
    duplicates = rng.integers(0, 48, g.x_shape)
    small, large = integers(rng, g.x_shape), integers(rng, g.y_shape)
    forward = inner(call("max_unpool", g, small, duplicates, layout=layout), large)
    assert forward == inner(small, call("max_unpool_grad", g, large, duplicates, layout=layout)) != 0


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_fold_is_the_adjoint_of_unfold(case: tuple, layout: str) -> None:
    rng = np.random.default_rng(16)
    drawn = build_conv(case)
    padding = tuple(zip(drawn.pad_before, drawn.pad_after, strict=True))
    rows = drawn.in_channels * int(np.prod(drawn.kernel))
    weight_shape = (rows, drawn.in_channels, *drawn.kernel)
    g = conv_geometry(drawn.x_shape, weight_shape, drawn.stride, padding, drawn.dilation)
    x, columns = integers(rng, g.x_shape), integers(rng, (g.batch, rows, int(np.prod(g.output))))
    forward = inner(call("unfold", g, x, layout=layout), columns)
    assert forward == inner(x, call("fold", g, columns, layout=layout)) != 0


def test_both_layouts_give_the_same_bits() -> None:
    """Every op on maps, on values whose sums round."""
    rng = np.random.default_rng(17)
    for rank, size in ((1, (9,)), (2, (7, 8)), (3, (4, 5, 6))):
        x = rng.standard_normal((2, 4, *size))
        conv = conv_geometry(x.shape, (6, 2, *(3,) * rank), 2, 1, 1, 2)
        pool = pool_geometry(x.shape, 3, 2, 1)
        resize, channel = ResizeGeometry(2, 4, size, (3,) * rank), ChannelGeometry(2, 4, size)
        columns = conv_geometry(x.shape, (4 * 3**rank, 4, *(3,) * rank), 2, 1)
        weight, gy = rng.standard_normal(conv.weight_shape), rng.standard_normal(conv.y_shape)
        pooled, resized = rng.standard_normal(pool.y_shape), rng.standard_normal(resize.y_shape)
        index = call("max_pool", pool, x, indices="torch")[1]
        far = call("adaptive_max_pool", resize, x, indices="torch")[1]
        wide = rng.standard_normal((2, 4 * 3**rank, int(np.prod(conv.output))))
        calls: list[tuple[Any, ...]] = [
            ("conv", conv, x, weight, rng.standard_normal(6), gy),
            ("conv_grad_input", conv, gy, weight, rng.standard_normal(4), x),
            ("conv_grad_weight", conv, gy, x),
            ("channel_sum", channel, x),
            ("max_pool", pool, x),
            ("max_pool_grad", pool, pooled, index),
            ("avg_pool", pool, x),
            ("avg_pool_grad", pool, pooled),
            ("lp_pool", pool, x),
            ("lp_pool_grad", pool, pooled, x),
            ("adaptive_avg_pool", resize, x),
            ("adaptive_avg_pool_grad", resize, resized),
            ("adaptive_max_pool", resize, x),
            ("adaptive_max_pool_grad", resize, resized, far),
            ("max_unpool", ResizeGeometry(2, 4, resize.output, size), resized, far),
            ("max_unpool_grad", ResizeGeometry(2, 4, resize.output, size), x, far),
            ("local_response_norm", channel, x),
            ("local_response_norm_grad", channel, x[::-1], x),
            ("batch_norm", channel, x, np.zeros(4), np.ones(4)),
            ("batch_norm_training", channel, x),
            ("batch_norm_grad", channel, x[::-1], x, None, np.zeros(4), np.ones(4)),
            ("unfold", columns, x),
            ("fold", columns, wide),
        ]
        for op, g, *arrays in calls:
            first, last = (call(op, g, *arrays, layout=layout) for layout in ("NCHW", "NHWC"))
            for a, b in zip(first, last, strict=True) if isinstance(first, tuple) else [(first, last)]:
                np.testing.assert_array_equal(a, b, err_msg=op)


def test_one_axis_is_two_axes_with_a_unit_one() -> None:
    rng = np.random.default_rng(18)
    x, weight = integers(rng, (2, 4, 9)), integers(rng, (6, 2, 3))
    x2, weight2 = x[:, :, None], weight[:, :, None]
    line = conv_geometry(x.shape, weight.shape, 2, ((1, 2),), 2, 2)
    flat = conv_geometry(x2.shape, weight2.shape, (1, 2), ((0, 0), (1, 2)), (1, 2), 2)
    y, gy = call("conv", line, x, weight), integers(rng, line.y_shape)
    np.testing.assert_array_equal(call("conv", flat, x2, weight2)[:, :, 0], y)
    np.testing.assert_array_equal(
        call("conv_grad_input", flat, gy[:, :, None], weight2)[:, :, 0], call("conv_grad_input", line, gy, weight)
    )
    np.testing.assert_array_equal(
        call("conv_grad_weight", flat, gy[:, :, None], x2)[:, :, 0], call("conv_grad_weight", line, gy, x)
    )
    line_pool = pool_geometry(x.shape, 3, 2, ((1, 1),), 1, True)
    flat_pool = pool_geometry(x2.shape, (1, 3), (1, 2), ((0, 0), (1, 1)), 1, True)
    for op in ("max_pool", "avg_pool", "lp_pool"):
        np.testing.assert_array_equal(call(op, flat_pool, x2)[:, :, 0], call(op, line_pool, x))
    line_resize, flat_resize = ResizeGeometry(2, 4, (9,), (4,)), ResizeGeometry(2, 4, (1, 9), (1, 4))
    for op in ("adaptive_max_pool", "adaptive_avg_pool"):
        np.testing.assert_array_equal(call(op, flat_resize, x2)[:, :, 0], call(op, line_resize, x))


def test_normalised_batches() -> None:
    rng = np.random.default_rng(19)
    g = ChannelGeometry(4, 3, (5, 6))
    x = rng.standard_normal(g.x_shape) * 7 + 3
    y, mean, var, _ = call("batch_norm_training", g, x, eps=0.0)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, rtol=1e-13)
    np.testing.assert_allclose(call("batch_norm", g, x, mean, var, eps=0.0), y, rtol=1e-12)
    gy = rng.standard_normal(g.x_shape)
    rstd = 1 / np.sqrt(var)
    grad_x, _, _ = call("batch_norm_grad", g, gy, x, None, mean, rstd)
    # training removes mean and scale of each channel, so the gradient is orthogonal to both
    np.testing.assert_allclose(grad_x.sum(axis=(0, 2, 3)), 0, atol=1e-13)
    np.testing.assert_allclose((grad_x * y).sum(axis=(0, 2, 3)), 0, atol=1e-12)
