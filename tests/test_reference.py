"""The reference backend on cases worked out by hand. Each expected number can be checked without a computer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnnkern.backends.reference.dropout import philox4x32, random_words
from cnnkern.errors import ArgumentError
from cnnkern.spec import OPS, PRECISIONS, ChannelGeometry, ClassGeometry, PointwiseGeometry, ResizeGeometry, numpy_dtype
from reference_rows import ROWS, call, conv_geometry, make_request, pool_geometry

INF, NAN = math.inf, math.nan
LAYOUTS = ("NCHW", "NHWC")
FLOATS = ("f32", "f64", "f16", "bf16")


def line(*values: float) -> np.ndarray:
    """One image, one channel, one row."""
    return np.array(values, np.float64).reshape(1, 1, -1)


def same(actual: np.ndarray, expected: object) -> None:
    """Equal values (NaN equals NaN) and, for an array that is expected, equal shape."""
    actual = np.asarray(actual)
    actual = actual.astype(np.float64) if actual.dtype.kind in "fV" else actual
    expected = np.asarray(expected)
    np.testing.assert_array_equal(actual.reshape(expected.shape) if actual.size == expected.size else actual, expected)


def near(actual: np.ndarray, expected: object, rtol: float = 1e-14) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual).reshape(expected.shape), expected, rtol=rtol, atol=0)


def test_every_op_has_one_row() -> None:
    assert set(ROWS) == set(OPS)
    for op, row in ROWS.items():
        assert row.ranks == OPS[op].ranks
        assert set(FLOATS) <= set(row.dtypes)
        assert row.precisions == PRECISIONS
        assert row.name == "reference.direct"


def test_comparison_fails_on_wrong_values() -> None:
    with pytest.raises(AssertionError):
        same(line(1, 2), [1, 3])
    with pytest.raises(AssertionError):
        same(line(1, 2), [1, 2, 2])
    with pytest.raises(AssertionError):
        near(line(1.0), [1 + 1e-13])


class TestConv:
    @pytest.mark.parametrize("padding, expected", [(((0, 1),), [6, 7]), (((1, 0),), [3, 9])])
    def test_same_and_same_lower(self, padding: tuple, expected: list) -> None:
        g = conv_geometry((1, 1, 4), (1, 1, 3), stride=2, padding=padding)
        same(call("conv", g, line(1, 2, 3, 4), np.ones((1, 1, 3))), expected)

    def test_kernel_is_not_flipped(self) -> None:
        g = conv_geometry((1, 1, 3), (1, 1, 2))
        same(call("conv", g, line(1, 2, 3), np.array([[[10, 1]]])), [12, 23])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_two_axes_two_channels(self, layout: str) -> None:
        x = np.arange(1.0, 19).reshape(1, 2, 3, 3)  # channel 0 holds 1..9, channel 1 10..18
        weight = np.array([[[[1, 0], [0, 1]], [[0, 1], [0, 0]]]])
        g = conv_geometry(x.shape, weight.shape)
        # output (0, 0): 1 + 5 from channel 0, 11 from channel 1; each step right or down adds to all three
        same(call("conv", g, x, weight, layout=layout), [[17, 20], [26, 29]])

    def test_dilation_and_stride(self) -> None:
        g = conv_geometry((1, 1, 7), (1, 1, 3), stride=2, dilation=2)
        same(call("conv", g, line(1, 2, 3, 4, 5, 6, 7), np.array([[[100, 10, 1]]])), [135, 357])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_groups(self, layout: str) -> None:
        g = conv_geometry((1, 4, 1), (2, 2, 1), groups=2)
        x = np.array([1, 2, 3, 4]).reshape(1, 4, 1)
        same(call("conv", g, x, np.array([[1, 10], [100, 1000]]).reshape(2, 2, 1), layout=layout), [21, 4300])

    def test_depthwise_with_multiplier(self) -> None:
        g = conv_geometry((1, 2, 1), (4, 1, 1), groups=2)
        x, weight = np.array([3, 5]).reshape(1, 2, 1), np.array([1, 2, 3, 4]).reshape(4, 1, 1)
        same(call("conv", g, x, weight), [3, 6, 15, 20])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_bias_then_residual_then_relu(self, layout: str) -> None:
        g = conv_geometry((1, 1, 3), (2, 1, 1))
        x, weight, bias = line(1, 2, 3), np.array([1, -1]).reshape(2, 1, 1), np.array([-2, 2])
        residual = np.array([[0, 0, -5], [0, 3, 0]]).reshape(1, 2, 3)
        same(call("conv", g, x, weight, bias, residual, layout=layout), [[-1, 0, -4], [1, 3, -1]])
        same(call("conv", g, x, weight, bias, residual, activation="relu", layout=layout), [[0, 0, 0], [1, 3, 0]])

    def test_relu_keeps_nan(self) -> None:
        g = conv_geometry((1, 1, 3), (1, 1, 1))
        same(call("conv", g, line(NAN, -1, 1), np.ones((1, 1, 1)), activation="relu"), [NAN, 0, 1])

    def test_padding_contributes_nothing_under_an_infinite_weight(self) -> None:
        g = conv_geometry((1, 1, 3), (1, 1, 3), padding=1)
        weight = np.array([[[INF, 1, NAN]]])
        same(call("conv", g, line(1, 2, 3), weight), [NAN, NAN, INF])  # the last window's NaN weight is on padding
        weight = np.array([[[INF, 1, 1]]])
        same(call("conv", g, line(1, 2, 3), weight), [3, INF, INF])

    def test_no_input_channels_gives_the_bias(self) -> None:
        g = conv_geometry((2, 0, 3), (2, 0, 2))
        y = call("conv", g, np.zeros((2, 0, 3)), np.zeros((2, 0, 2)), np.array([5, 7]))
        assert y.shape == (2, 2, 2)
        same(y[0], [[5, 5], [7, 7]])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_empty_batch(self, layout: str) -> None:
        g = conv_geometry((0, 2, 4, 4), (3, 2, 3, 3))
        weight = np.ones((3, 2, 3, 3))
        assert call("conv", g, np.zeros(g.x_shape), weight, layout=layout).shape == (0, 3, 2, 2)
        assert call("conv_grad_input", g, np.zeros(g.y_shape), weight, layout=layout).shape == (0, 2, 4, 4)
        same(call("conv_grad_weight", g, np.zeros(g.y_shape), np.zeros(g.x_shape), layout=layout), weight * 0)

    def test_no_output_channels(self) -> None:
        g = conv_geometry((1, 2, 4), (0, 2, 3))
        assert call("conv", g, np.ones((1, 2, 4)), np.zeros((0, 2, 3))).shape == (1, 0, 2)
        same(call("conv_grad_input", g, np.zeros((1, 0, 2)), np.zeros((0, 2, 3))), np.zeros((1, 2, 4)))

    def test_all_padding(self) -> None:
        g = conv_geometry((1, 1, 0), (1, 1, 3), padding=2)
        same(call("conv", g, np.zeros((1, 1, 0)), np.ones((1, 1, 3)), np.array([9])), [9, 9])
        same(call("conv_grad_weight", g, np.ones((1, 1, 2)), np.zeros((1, 1, 0))), [0, 0, 0])

    def test_far_padding_costs_nothing(self) -> None:
        g = conv_geometry((1, 1, 1), (1, 1, 2), stride=2**40, padding=((2**40, 2**40),), dilation=2**40)
        assert g.output == (2,)
        same(call("conv", g, line(3), np.array([[[10, 1]]])), [3, 30])

    def test_sixteen_bit_sums_are_rounded_once(self) -> None:
        g = conv_geometry((1, 3, 1), (1, 3, 1))
        ones = np.ones((1, 3, 1))
        same(call("conv", g, np.array([2048, 1, 1]).reshape(1, 3, 1), ones, dtype="f16"), [2050])
        same(call("conv", g, np.array([256, 1, 1]).reshape(1, 3, 1), ones, dtype="bf16"), [258])
        # a hair above the middle between 1 and the next bfloat16: rounding to float32 first would make it a tie
        above = np.array([1, 2.0**-8, 2.0**-40]).reshape(1, 3, 1)
        same(call("conv", g, above, ones, dtype="bf16"), [1 + 2.0**-7])
        same(call("conv", g, -above, ones, dtype="bf16"), [-1 - 2.0**-7])
        below = np.array([1 + 2.0**-7, 2.0**-8, -(2.0**-40)]).reshape(1, 3, 1)
        same(call("conv", g, below, ones, dtype="bf16"), [1 + 2.0**-7])

    def test_overflow_and_warnings(self) -> None:
        g = conv_geometry((1, 2, 1), (1, 2, 1))
        with np.errstate(all="raise"):
            big = np.array([3e38, 3e38]).reshape(1, 2, 1)
            same(call("conv", g, big, np.ones((1, 2, 1)), dtype="f32"), [INF])
            same(call("conv", g, big, np.ones((1, 2, 1)), dtype="bf16"), [INF])
            same(call("conv", g, np.array([INF, -INF]).reshape(1, 2, 1), np.ones((1, 2, 1)), dtype="f32"), [NAN])

    @pytest.mark.parametrize(
        "x_dtype, w_dtype, x_value, w_value",
        [("u8", "u8", 255, 255), ("u8", "i8", 255, -128), ("i8", "u8", -128, 255), ("i8", "i8", -128, -128)],
    )
    def test_bytes_sum_exactly_to_the_longest_reduction(
        self, x_dtype: str, w_dtype: str, x_value: int, w_value: int
    ) -> None:
        longest = {("u8", "u8"): 33_025, ("i8", "i8"): 131_071}.get((x_dtype, w_dtype), 65_793)
        g = conv_geometry((1, longest, 1), (1, longest, 1))
        x, weight = np.full((1, longest, 1), x_value), np.full((1, longest, 1), w_value)
        y = call("conv", g, x, weight, dtype=x_dtype, weight_dtype=w_dtype)
        assert y.dtype == np.int32
        assert int(y[0, 0, 0]) == longest * x_value * w_value
        beyond = conv_geometry((1, longest + 1, 1), (1, longest + 1, 1))
        request = make_request("conv", beyond, (), x_dtype, weight_dtype=w_dtype)
        assert f"needs at most {longest} products per output" in ROWS["conv"].why_not(request)

    def test_bytes_with_epilogue(self) -> None:
        g = conv_geometry((1, 1, 3), (1, 1, 1))
        weight, bias, residual = np.full((1, 1, 1), -5), np.array([10**9]), line(0, -(10**9), 1)
        y = call("conv", g, line(1, 2, 3), weight, bias, residual, dtype="i8", activation="relu")
        same(y, [10**9 - 5, 0, 10**9 - 14])
        y = call("conv", g, line(1, 2, 3), np.ones((1, 1, 1)), np.array([2**31 - 1]), dtype="i8")
        same(y, [-(2**31), -(2**31) + 1, -(2**31) + 2])  # a bias that leaves int32 wraps, as int32 arithmetic does

    def test_refusals(self) -> None:
        g = conv_geometry((1, 1, 3), (1, 1, 1))
        mixed = make_request("conv", g, (), "f32", weight_dtype="i8")
        assert ROWS["conv"].why_not(mixed) == "needs weight of dtype f32, got i8"
        for op in ("conv", "conv_grad_input"):
            request = make_request(op, g, (), "f32", activation="gelu")
            assert ROWS[op].why_not(request) == "needs activation relu or None, got gelu"

    def test_an_image_has_the_same_bits_in_any_batch(self) -> None:
        rng = np.random.default_rng(3)
        x, weight = rng.standard_normal((5, 6, 9, 7)), rng.standard_normal((4, 3, 3, 3))
        whole = call("conv", conv_geometry(x.shape, weight.shape, padding=1, groups=2), x, weight)
        for i in range(5):
            alone = call("conv", conv_geometry((1, 6, 9, 7), weight.shape, padding=1, groups=2), x[i : i + 1], weight)
            same(alone[0], whole[i])

    def test_any_strides(self) -> None:
        rng = np.random.default_rng(4)
        x, weight = rng.integers(-4, 5, (2, 3, 6, 5)) * 1.0, rng.integers(-4, 5, (4, 3, 3, 3)) * 1.0
        g = conv_geometry(x.shape, weight.shape, padding=1)
        expected = call("conv", g, x, weight)
        misaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(np.float64).reshape(x.shape)
        misaligned[...] = x
        backwards = np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1]
        backwards.flags.writeable = False
        request = make_request("conv", g, ())
        for view in (misaligned, backwards, np.asfortranarray(x)):
            parent = np.full((2, 9, 6, 10), NAN)
            out = parent[:, 3:7, :, ::-2]  # a channel slice, every second column from the right
            ROWS["conv"].run(request, (view, np.asfortranarray(weight), None, None), (out,))
            same(out, expected)
            assert np.isnan(parent).sum() == parent.size - out.size
        image = np.broadcast_to(x[:1], x.shape)
        out = np.empty(g.y_shape)
        ROWS["conv"].run(request, (image, weight, None, None), (out,))
        same(out, np.broadcast_to(expected[:1], g.y_shape))


class TestConvGradients:
    def test_transposed_by_hand(self) -> None:
        g = conv_geometry((1, 1, 5), (1, 1, 3), stride=2)
        same(call("conv_grad_input", g, line(1, 2), np.array([[[1, 10, 100]]])), [1, 10, 102, 20, 200])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_beyond_the_last_tap_lies_the_bias(self, layout: str) -> None:
        g = conv_geometry((1, 2, 6), (1, 2, 1), stride=3)  # 3-fold upsampling with one tap: columns 0 and 3 are reached
        weight = np.array([1, -1]).reshape(1, 2, 1)
        y = call("conv_grad_input", g, line(5, 6), weight, np.array([100, 1]), layout=layout)
        same(y, [[105, 100, 100, 106, 100, 100], [-4, 1, 1, -5, 1, 1]])
        residual = np.full((1, 2, 6), 2)
        bias = np.array([100, 1])
        y = call("conv_grad_input", g, line(5, 6), weight, bias, residual, activation="relu", layout=layout)
        same(y, [[107, 102, 102, 108, 102, 102], [0, 3, 3, 0, 3, 3]])

    def test_weight_gradient_by_hand(self) -> None:
        g = conv_geometry((2, 1, 4), (1, 1, 2), stride=2, padding=((1, 1),))
        x = np.array([[1, 2, 3, 4], [10, 20, 30, 40]]).reshape(2, 1, 4)
        gy = np.array([[1, 10, 100], [1, 1, 1]]).reshape(2, 1, 3)
        # windows (-1, 0) (1, 2) (3, 4): cell 0 meets 2, 4 and 20, 40; cell 1 meets 1, 3 and 10, 30
        same(call("conv_grad_weight", g, gy, x), [10 * 2 + 100 * 4 + 20 + 40, 1 * 1 + 10 * 3 + 10 + 30])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_bias_gradient(self, layout: str) -> None:
        x = np.arange(12).reshape(2, 3, 2)
        same(call("channel_sum", ChannelGeometry(2, 3, (2,)), x, layout=layout), [0 + 1 + 6 + 7, 2 + 3 + 8 + 9, 30])
        same(call("channel_sum", ChannelGeometry(2, 3, ()), x[..., 0]), [6, 10, 14])
        same(call("channel_sum", ChannelGeometry(0, 2, (3,)), np.zeros((0, 2, 3))), [0, 0])

    def test_bias_gradient_in_half_precision(self) -> None:
        x = np.ones((1, 1, 4096))
        x[0, 0, 0] = 2048  # where a half-precision sum would stay; the exact 6143 lies between the halves 6140 and 6144
        same(call("channel_sum", ChannelGeometry(1, 1, (4096,)), x, dtype="f16"), [6144])


class TestMaxPool:
    def test_padding_is_never_the_maximum(self) -> None:
        g = pool_geometry((1, 1, 3), 3, stride=1, padding=1)
        y, index = call("max_pool", g, line(-5, -2, -7), indices="torch")
        same(y, [-2, -2, -2])
        same(index, [1, 1, 1])

    def test_first_of_equals(self) -> None:
        g = pool_geometry((1, 1, 4), 4)
        for values in ((1, 3, 3, 2), (-1, 0.0, -0.0, -2), (-1, -0.0, 0.0, -2)):
            same(call("max_pool", g, line(*values), indices="torch")[1], [1])

    @pytest.mark.parametrize("dtype", FLOATS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_nan_gives_nan_and_the_last_index(self, dtype: str, layout: str) -> None:
        g = pool_geometry((1, 1, 5), 5)
        for values, place in (((1, NAN, 9, NAN, 7), 3), ((NAN, 1, 2, 3, 4), 0), ((INF, 1, 2, 3, NAN), 4)):
            y, index = call("max_pool", g, line(*values), indices="torch", dtype=dtype, layout=layout)
            same(y, [NAN])
            same(index, [place])

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_all_minus_infinity(self, dtype: str) -> None:
        g = pool_geometry((1, 1, 3), 3, stride=1, padding=1)
        y, index = call("max_pool", g, line(-INF, -INF, -INF), indices="torch", dtype=dtype)
        same(y, [-INF] * 3)
        same(index, [0, 0, 1])  # the first real element, not the padding before it

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_indices_of_both_kinds(self, layout: str) -> None:
        x = np.array([[1, 2, 9, 1], [3, 8, 1, 1], [7, 1, 1, 6]] * 2).reshape(1, 2, 3, 4)
        g = pool_geometry(x.shape, 2, padding=((1, 0), (0, 0)))  # rows -1 and 0, then 1 and 2
        y, index = call("max_pool", g, x, indices="torch", layout=layout)
        same(y[0, 1], [[2, 9], [8, 6]])
        same(index[0, 1], [[1, 2], [5, 11]])
        assert index.dtype == np.int64
        y, index = call("max_pool", g, x, indices="window", layout=layout)
        same(index[0, 1], [[3, 2], [1, 3]])  # the padded row counts
        assert index.dtype == np.uint8

    def test_wide_windows_number_their_cells_in_two_bytes(self) -> None:
        x = np.zeros((1, 1, 17, 17))
        x[0, 0, 16, 16] = 1
        index = call("max_pool", pool_geometry(x.shape, 17), x, indices="window")[1]
        assert index.dtype == np.uint16 and int(index[0, 0, 0, 0]) == 288
        x = np.arange(256).reshape(1, 1, 256)
        index = call("max_pool", pool_geometry(x.shape, 256), x, indices="window")[1]
        assert index.dtype == np.uint8 and int(index[0, 0, 0]) == 255
        for op in ("max_pool", "max_pool_grad"):
            request = make_request(op, pool_geometry((1, 1, 256, 256), 256), (), indices="window")
            assert ROWS[op].why_not(request) is None
            request = make_request(op, pool_geometry((1, 1, 65_537), 65_537), (), indices="window")
            assert ROWS[op].why_not(request) == "needs at most 65536 cells in a window for window indices, got 65537"

    def test_dilation_and_ceil_mode(self) -> None:
        g = pool_geometry((1, 1, 6), 2, stride=3, dilation=2, ceil_mode=True)
        assert g.output == (3 - 1,)  # the third window would begin at 6 = the end of the image
        same(call("max_pool", g, line(1, 5, 2, 7, 9, 8)), [2, 8])
        g = pool_geometry((1, 1, 5), 3, stride=3, ceil_mode=True)
        same(call("max_pool", g, line(1, 5, 2, -7, -9)), [5, -7])  # the second window sticks out by one

    @pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"])
    def test_integers_in_their_own_type(self, dtype: str) -> None:
        info = np.iinfo(numpy_dtype(dtype))
        x = np.array([[[info.min, info.min, info.max - 1, info.max]]], info.dtype)
        y, index = call("max_pool", pool_geometry((1, 1, 4), 2), x, dtype=dtype, indices="torch")
        assert y.tolist() == [[[info.min, info.max]]] and y.dtype == x.dtype
        same(index, [0, 3])

    def test_bool_is_or(self) -> None:
        x = np.array([[[False, False, False, True, True, True]]])
        y, index = call("max_pool", pool_geometry((1, 1, 6), 2), x, dtype="bool", indices="torch")
        same(y, [False, True, True])
        same(index, [0, 3, 4])

    def test_kernel_far_larger_than_the_image(self) -> None:
        g = pool_geometry((1, 1, 2), 2**40, stride=1, padding=((2**40 - 1, 1),))
        assert g.output == (3,)
        y, index = call("max_pool", g, line(4, 6), indices="torch")
        same(y, [4, 6, 6])
        same(index, [0, 1, 1])

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("indices", ["torch", "window"])
    def test_gradient_goes_to_the_maximum(self, indices: str, layout: str) -> None:
        x = np.array([1, 7, 2, 5, 7, 0] * 2).reshape(1, 2, 6)
        g = pool_geometry(x.shape, 3, stride=1)
        index = call("max_pool", g, x, indices=indices, layout=layout)[1]
        gy = np.array([[1, 2, 4, 8], [10, 20, 40, 80]]).reshape(1, 2, 4)
        grad = call("max_pool_grad", g, gy, index, indices=indices, layout=layout)
        same(grad, [[0, 3, 0, 0, 12, 0], [0, 30, 0, 0, 120, 0]])

    def test_gradient_refuses_indices_that_point_nowhere(self) -> None:
        g = pool_geometry((1, 1, 4), 2)
        with pytest.raises(
            ArgumentError, match=r"max_pool1d_backward: the index at .*\(0, 0, 1\) is 4, but .* 4 elements"
        ):
            call("max_pool_grad", g, line(1, 1), np.array([[[0, 4]]]))
        with pytest.raises(ArgumentError, match=r"max_pool1d_backward: the index at .*\(0, 0, 0\) is -1"):
            call("max_pool_grad", g, line(1, 1), np.array([[[-1, 2]]]))
        with pytest.raises(
            ArgumentError, match=r"max_pool1d_backward: the index at .*\(0, 0, 1\) is 2, but that window"
        ):
            call("max_pool_grad", g, line(1, 1), np.array([[[0, 2]]]), indices="window")
        padded = pool_geometry((1, 1, 4), 2, padding=1)
        with pytest.raises(ArgumentError, match=r"the index at .*\(0, 0, 0\) is 0, but that window"):
            call("max_pool_grad", padded, line(1, 1, 1), np.array([[[0, 0, 0]]]), indices="window")

    @pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4)])
    def test_empty(self, shape: tuple) -> None:
        g = pool_geometry(shape, 2)
        for indices in ("torch", "window"):
            y, index = call("max_pool", g, np.zeros(shape), indices=indices)
            assert y.shape == index.shape == (*shape[:2], 2, 2)
            assert call("max_pool_grad", g, y, index, indices=indices).shape == shape


class TestAvgPool:
    def test_divisor_of_the_last_ceil_window(self) -> None:
        g = pool_geometry((1, 1, 4), 3, stride=2, padding=1, ceil_mode=True)
        near(call("avg_pool", g, line(1, 1, 1, 1)), [2 / 3, 1, 0.5])
        same(call("avg_pool", g, line(1, 1, 1, 1), count_include_pad=False), [1, 1, 1])
        same(call("avg_pool", g, line(1, 1, 1, 1), divisor=4), [0.5, 0.75, 0.25])
        same(call("avg_pool", g, line(1, 1, 1, 1), divisor=4, count_include_pad=False), [0.5, 0.75, 0.25])

    def test_same_padding(self) -> None:
        g = pool_geometry((1, 1, 4), 3, stride=2, padding=((0, 1),))
        near(call("avg_pool", g, line(1, 1, 1, 1)), [1, 2 / 3])
        same(call("avg_pool", g, line(1, 1, 1, 1), count_include_pad=False), [1, 1])

    def test_dilated_cells_count_one_by_one(self) -> None:
        g = pool_geometry((1, 1, 4), 2, stride=1, padding=1, dilation=3)  # cells -1 and 2, 0 and 3, 1 and 4
        same(call("avg_pool", g, line(2, 4, 6, 8)), [3, 5, 2])
        same(call("avg_pool", g, line(2, 4, 6, 8), count_include_pad=False), [6, 5, 4])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_two_axes(self, layout: str) -> None:
        x = np.arange(1.0, 10).reshape(1, 1, 3, 3)
        g = pool_geometry(x.shape, 2, ceil_mode=True)
        same(call("avg_pool", g, x, layout=layout), [[3, 4.5], [7.5, 9]])
        same(call("avg_pool", g, x, divisor=2, layout=layout), [[6, 4.5], [7.5, 4.5]])

    @pytest.mark.parametrize("dtype", ["i8", "i16", "i32", "i64"])
    def test_integers_are_truncated_toward_zero(self, dtype: str) -> None:
        x = np.array([-4, -3, 4, 3, 127, 127, -128, -127]).reshape(1, 1, 8)
        y = call("avg_pool", pool_geometry((1, 1, 8), 2), x, dtype=dtype)
        assert y.tolist() == [[[-3, 3, 127, -127]]]

    def test_sums_beyond_64_bits(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        top = 2**63 - 1
        assert call("avg_pool", g, np.array([[[top, top - 1]]]), dtype="i64").tolist() == [[[top - 1]]]
        assert call("avg_pool", g, np.array([[[-top - 1, -top - 1]]]), dtype="i64").tolist() == [[[-top - 1]]]
        top = 2**64 - 1
        assert call("avg_pool", g, np.array([[[top, top]]], np.uint64), dtype="u64").tolist() == [[[top]]]
        window = ResizeGeometry(1, 1, (2,), (1,))
        assert call("adaptive_avg_pool", window, np.array([[[top, top]]], np.uint64), dtype="u64").tolist() == [[[top]]]

    def test_a_small_divisor_wraps_integers(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        assert call("avg_pool", g, line(100, 100), dtype="i8", divisor=1).tolist() == [[[200 - 256]]]
        x = np.array([[[2**62, 2**62]]])
        assert call("avg_pool", g, x, dtype="i64", divisor=1).tolist() == [[[-(2**63)]]]

    def test_padding_of_more_cells_than_64_bits_count(self) -> None:
        g = pool_geometry((1, 1, 1, 1, 1), 2**31, stride=1, padding=((2**30, 2**30 - 1),) * 3)
        assert g.output == (1, 1, 1)
        same(call("avg_pool", g, np.full((1, 1, 1, 1, 1), 2.0**100)), [2.0**7])
        assert call("avg_pool", g, np.full((1, 1, 1, 1, 1), 5), dtype="i32").tolist() == [[[[[0]]]]]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gradient(self, layout: str) -> None:
        g = pool_geometry((1, 2, 4), 3, stride=2, padding=1, ceil_mode=True)
        gy = np.array([[6, 12, 8], [0, 3, 0]]).reshape(1, 2, 3)
        same(call("avg_pool_grad", g, gy, layout=layout), [[2, 6, 4, 8], [0, 1, 1, 1]])
        same(call("avg_pool_grad", g, gy, count_include_pad=False, layout=layout), [[3, 7, 4, 12], [0, 1, 1, 1]])
        same(call("avg_pool_grad", g, gy, divisor=2, layout=layout), [[3, 9, 6, 10], [0, 1.5, 1.5, 1.5]])

    def test_non_finite_stays_in_its_windows(self) -> None:
        g = pool_geometry((1, 1, 4), 2, stride=1)
        same(call("avg_pool", g, line(1, INF, 1, 3)), [INF, INF, 2])
        same(call("adaptive_avg_pool", ResizeGeometry(1, 1, (4,), (2,)), line(NAN, 1, 1, 3)), [NAN, 2])


class TestLpPool:
    def test_norms(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        for p, expected in ((1.0, 7), (2.0, 5), (INF, 4), (3.0, 91 ** (1 / 3)), (0.5, (3**0.5 + 2) ** 2)):
            near(call("lp_pool", g, line(-3, -4), norm_type=p), [expected])

    def test_ceil_windows_hold_what_is_there(self) -> None:
        g = pool_geometry((1, 1, 3, 3), 2, ceil_mode=True)
        near(call("lp_pool", g, np.ones((1, 1, 3, 3))), [[2, 2**0.5], [2**0.5, 1]])

    def test_padding_adds_nothing(self) -> None:
        g = pool_geometry((1, 1, 2), 3, stride=1, padding=1)
        for p in (1.0, 2.0, INF):
            near(call("lp_pool", g, line(0, -3), norm_type=p), [3, 3])

    def test_powers_that_would_overflow_or_vanish(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        near(call("lp_pool", g, line(3e200, 4e200)), [5e200])
        near(call("lp_pool", g, line(3e-200, 4e-200)), [5e-200])
        near(call("lp_pool", g, line(1e30, 1e30), norm_type=1000.0), [1e30 * 2**0.001])
        near(call("lp_pool_grad", g, line(5), line(3e200, 4e200)), [3, 4])

    def test_non_finite(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        for p in (1.0, 2.0, INF):
            same(call("lp_pool", g, line(-INF, 1), norm_type=p), [INF])
            same(call("lp_pool", g, line(INF, NAN), norm_type=p), [NAN])
            same(call("lp_pool", g, line(NAN, 1), norm_type=p), [NAN])

    def test_gradient(self) -> None:
        g = pool_geometry((1, 1, 2), 2)
        same(call("lp_pool_grad", g, line(5), line(-3, 4), norm_type=1.0), [-5, 5])
        near(call("lp_pool_grad", g, line(5), line(-3, 4)), [-3, 4])
        near(call("lp_pool_grad", g, line(91 ** (2 / 3)), line(-3, 4), norm_type=3.0), [-9, 16])
        same(call("lp_pool_grad", g, line(5), line(-3, 4), norm_type=INF), [0, 5])

    @pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, INF])
    def test_gradient_at_zero(self, p: float) -> None:
        g = pool_geometry((1, 1, 4), 2)
        grad = call("lp_pool_grad", g, line(5, 5), line(0, 0, 0, -2), norm_type=p)
        same(grad, [0, 0, 0, -5])

    def test_equal_maxima_share_the_gradient(self) -> None:
        g = pool_geometry((1, 1, 4), 4)
        same(call("lp_pool_grad", g, line(6), line(-2, 1, 2, 0), norm_type=INF), [-3, 0, 3, 0])

    def test_refuses_a_norm_that_is_none(self) -> None:
        for op in ("lp_pool", "lp_pool_grad"):
            for p in (0.0, -1.0, NAN):
                request = make_request(op, pool_geometry((1, 1, 2), 2), (), norm_type=p)
                assert ROWS[op].why_not(request) == f"needs norm_type > 0, got {p}"


class TestAdaptivePool:
    def test_windows_overlap(self) -> None:
        g = ResizeGeometry(1, 1, (5,), (3,))  # [0, 2) [1, 4) [3, 5)
        same(call("adaptive_avg_pool", g, line(1, 2, 3, 4, 6)), [1.5, 3, 5])
        y, index = call("adaptive_max_pool", g, line(1, 2, 3, 4, 6), indices="torch")
        same(y, [2, 4, 6])
        same(index, [1, 3, 4])

    def test_more_outputs_than_inputs(self) -> None:
        g = ResizeGeometry(1, 1, (2,), (3,))  # [0, 1) [0, 2) [1, 2)
        same(call("adaptive_avg_pool", g, line(1, 3)), [1, 2, 3])
        same(call("adaptive_max_pool", g, line(1, 3)), [1, 3, 3])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_global(self, layout: str) -> None:
        x = np.arange(16.0).reshape(1, 2, 2, 4)
        g = ResizeGeometry(1, 2, (2, 4), (1, 1))
        same(call("adaptive_avg_pool", g, x, layout=layout), [3.5, 11.5])
        y, index = call("adaptive_max_pool", g, x, indices="torch", layout=layout)
        same(y, [7, 15])
        same(index, [7, 7])

    def test_nan_ties_and_infinity(self) -> None:
        g = ResizeGeometry(1, 1, (4,), (1,))
        for values, place in (((NAN, NAN, 1, 2), 1), ((1, 2, 2, 1), 1), ((-INF,) * 4, 0), ((-0.0, 0, 0, 0), 0)):
            for dtype in FLOATS:
                y, index = call("adaptive_max_pool", g, line(*values), indices="torch", dtype=dtype)
                same(y, [values[place]])
                same(index, [place])

    def test_no_outputs(self) -> None:
        g = ResizeGeometry(2, 3, (4, 4), (0, 2))
        for op in ("adaptive_avg_pool", "adaptive_max_pool"):
            assert call(op, g, np.ones((2, 3, 4, 4))).shape == (2, 3, 0, 2)
        same(call("adaptive_avg_pool_grad", g, np.ones((2, 3, 0, 2))), np.zeros((2, 3, 4, 4)))
        index = np.zeros((2, 3, 0, 2), np.int64)
        same(call("adaptive_max_pool_grad", g, np.ones((2, 3, 0, 2)), index), np.zeros((2, 3, 4, 4)))

    def test_integers_and_bool(self) -> None:
        g = ResizeGeometry(1, 1, (4,), (2,))
        assert call("adaptive_avg_pool", g, line(-4, -3, 127, 126), dtype="i8").tolist() == [[[-3, 126]]]
        assert call("adaptive_max_pool", g, line(-4, -3, 127, 126), dtype="i8").tolist() == [[[-3, 127]]]
        assert call("adaptive_max_pool", g, line(0, 0, 0, 1), dtype="bool").tolist() == [[[False, True]]]

    def test_gradients(self) -> None:
        g = ResizeGeometry(1, 1, (5,), (3,))
        same(call("adaptive_avg_pool_grad", g, line(2, 3, 4)), [1, 2, 1, 3, 2])
        same(call("adaptive_max_pool_grad", g, line(2, 3, 4), np.array([[[1, 1, 4]]])), [0, 5, 0, 0, 4])
        with pytest.raises(ArgumentError, match=r"adaptive_max_pool1d_backward: the index at .*\(0, 0, 2\) is 5"):
            call("adaptive_max_pool_grad", g, line(2, 3, 4), np.array([[[1, 1, 5]]]))


class TestUnpool:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_elements_go_where_the_index_says(self, layout: str) -> None:
        g = ResizeGeometry(1, 2, (2,), (4,))
        x, index = np.array([[5, 6], [7, 8]]).reshape(1, 2, 2), np.array([[3, 0], [1, 2]]).reshape(1, 2, 2)
        same(call("max_unpool", g, x, index, layout=layout), [[6, 0, 0, 5], [0, 7, 8, 0]])
        gy = np.array([[1, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 2, 4)
        same(call("max_unpool_grad", g, gy, index, layout=layout), [[4, 1], [6, 7]])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_the_last_of_duplicates_wins(self, layout: str) -> None:
        g = ResizeGeometry(1, 1, (2, 2), (1, 3))
        x, index = np.array([[1, 2], [3, 4]]).reshape(1, 1, 2, 2), np.array([[2, 0], [2, 0]]).reshape(1, 1, 2, 2)
        same(call("max_unpool", g, x, index, layout=layout), [4, 0, 3])
        gy = np.array([10, 20, 30]).reshape(1, 1, 1, 3)
        same(call("max_unpool_grad", g, gy, index, layout=layout), [[0, 0], [30, 10]])  # what was overwritten is lost

    @pytest.mark.parametrize("dtype", ["u8", "i64", "bool", "bf16"])
    def test_any_type_is_moved(self, dtype: str) -> None:
        g = ResizeGeometry(1, 1, (1,), (2,))
        y = call("max_unpool", g, np.ones((1, 1, 1)), np.array([[[1]]]), dtype=dtype)
        assert y.astype(np.float64).tolist() == [[[0, 1]]]

    @pytest.mark.parametrize("bad", [4, -1, 2**62])
    def test_index_out_of_range(self, bad: int) -> None:
        g = ResizeGeometry(1, 1, (2,), (2,))
        index = np.array([[[0, bad]]])
        message = rf"max_unpool1d{{}}: the index at .*\(0, 0, 1\) is {bad}, but a plane of sizes \(2,\) has 2 elements"
        with pytest.raises(ArgumentError, match=message.format("")):
            call("max_unpool", g, line(1, 2), index)
        with pytest.raises(ArgumentError, match=message.format("_backward")):
            call("max_unpool_grad", g, line(1, 2), index)

    def test_empty(self) -> None:
        g = ResizeGeometry(0, 2, (2,), (4,))
        assert call("max_unpool", g, np.zeros((0, 2, 2)), np.zeros((0, 2, 2))).shape == (0, 2, 4)
        g = ResizeGeometry(1, 1, (0,), (3,))
        same(call("max_unpool", g, np.zeros((1, 1, 0)), np.zeros((1, 1, 0))), [0, 0, 0])


class TestLocalResponseNorm:
    def test_even_size(self) -> None:
        g = ChannelGeometry(1, 4, (1,))
        x = np.array([1, 2, 3, 4]).reshape(1, 4, 1)
        y = call("local_response_norm", g, x, size=2, alpha=0.5, beta=1.0, k=0.0)
        near(y, [2, 0.8, 3 / 6.5, 0.32])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_odd_size(self, layout: str) -> None:
        g = ChannelGeometry(1, 4, (1, 1))
        x = np.array([1, 2, 3, 4]).reshape(1, 4, 1, 1)
        y = call("local_response_norm", g, x, size=3, alpha=1.0, beta=2.0, k=1.0, layout=layout)
        near(y, [1 / 36, 2 / 225, 3 / 900, 4 / 676])  # S = 1 + 1 + 4, 1 + 1 + 4 + 9, 1 + 4 + 9 + 16, 1 + 9 + 16

    def test_window_wider_than_the_channels(self) -> None:
        g = ChannelGeometry(1, 2, ())
        y = call("local_response_norm", g, np.array([[3, 4]]), size=2**40 + 1, alpha=1.0, beta=0.5, k=0.0)
        near(y, [0.6, 0.8])

    def test_gradient_by_hand(self) -> None:
        g = ChannelGeometry(1, 2, ())
        # size 2, beta 1, S0 = 1 + 1 = 2, S1 = 1 + 1 + 4 = 6; x = (1, 2), gy = (4, 36)
        # channel 0 is in both windows: 4/2 - 2 (4*1/4 + 36*2/36) = -4; channel 1 in its own: 36/6 - 2*2*(36*2/36) = -2
        grad = call(
            "local_response_norm_grad", g, np.array([[4, 36]]), np.array([[1, 2]]), size=2, alpha=1.0, beta=1.0, k=1.0
        )
        near(grad, [-4, -2])

    def test_no_channels(self) -> None:
        g = ChannelGeometry(2, 0, (3,))
        assert call("local_response_norm", g, np.zeros((2, 0, 3))).shape == (2, 0, 3)
        assert call("local_response_norm_grad", g, np.zeros((2, 0, 3)), np.zeros((2, 0, 3))).shape == (2, 0, 3)


class TestBatchNorm:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_inference(self, layout: str) -> None:
        g = ChannelGeometry(1, 2, (2,))
        x = np.array([[1, 5], [10, 20]]).reshape(1, 2, 2)
        mean, var = np.array([1, 10]), np.array([3, 99])
        same(call("batch_norm", g, x, mean, var, eps=1.0, layout=layout), [[0, 2], [0, 1]])
        y = call("batch_norm", g, x, mean, var, np.array([10, 20]), np.array([1, 2]), eps=1.0, layout=layout)
        same(y, [[1, 21], [2, 22]])
        same(call("batch_norm", g, x, mean, var, None, np.array([1, 2]), eps=1.0, layout=layout), [[1, 3], [2, 3]])

    @pytest.mark.parametrize("shape", [(2, 1, 1), (2, 1)])
    def test_training_gives_biased_variance(self, shape: tuple) -> None:
        g = ChannelGeometry(2, 1, shape[2:])
        x = np.array([2, 6]).reshape(shape)
        y, mean, var, rstd = call("batch_norm_training", g, x, np.array([3]), np.array([1]), eps=5.0)
        same(mean, [4])
        same(var, [4])
        near(rstd, [1 / 3])
        near(y, [-1, 3])

    def test_training_far_from_zero(self) -> None:
        g = ChannelGeometry(1, 1, (4,))
        x = 1e8 + line(0, 1, 2, 3)
        same(call("batch_norm_training", g, x)[2], [1.25])

    def test_statistics_of_sixteen_bit_data_are_float32(self) -> None:
        g = ChannelGeometry(1, 1, (3,))
        for dtype in ("f16", "bf16"):
            _, mean, var, rstd = call("batch_norm_training", g, line(1, 1, 2), dtype=dtype)
            assert mean.dtype == var.dtype == rstd.dtype == np.float32
            same(mean, [np.float32(4 / 3)])
            same(var, [np.float32(2 / 9)])

    def test_empty_batch(self) -> None:
        g = ChannelGeometry(0, 2, (3,))
        y, mean, var, rstd = call("batch_norm_training", g, np.zeros((0, 2, 3)), eps=0.25)
        assert y.shape == (0, 2, 3)
        same(mean, [0, 0])
        same(var, [0, 0])
        same(rstd, [2, 2])
        empty = np.zeros((0, 2, 3))
        grad_x, grad_weight, grad_bias = call("batch_norm_grad", g, empty, empty, None, mean, rstd)
        assert grad_x.shape == (0, 2, 3)
        same(grad_weight, [0, 0])
        same(grad_bias, [0, 0])

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gradient_by_hand(self, layout: str) -> None:
        g = ChannelGeometry(1, 1, (4,))
        x, gy = line(-1, 1, -1, 1), line(1, 3, 5, 3)
        mean, rstd, weight = np.array([0]), np.array([1]), np.array([2])
        # xhat = x, mean(gy) = 3, sum(gy xhat) = -1 + 3 - 5 + 3 = 0
        grad_x, grad_weight, grad_bias = call("batch_norm_grad", g, gy, x, weight, mean, rstd, layout=layout)
        same(grad_x, [-4, 0, 4, 0])
        same(grad_weight, [0])
        same(grad_bias, [12])
        grad_x, grad_weight, grad_bias = call(
            "batch_norm_grad", g, gy, x, None, np.array([1]), np.array([0.5]), training=False, layout=layout
        )
        same(grad_x, [0.5, 1.5, 2.5, 1.5])
        same(grad_weight, [-1 - 5])  # xhat = (-1, 0, -1, 0)
        same(grad_bias, [12])


class TestPointwise:
    def test_relu(self) -> None:
        g = PointwiseGeometry((5,))
        same(call("relu", g, np.array([-2, -0.0, 3, NAN, -INF])), [0, 0, 3, NAN, 0])
        gy, y = np.array([1, 2, 3, 4, NAN]), np.array([0, -0.0, 3, NAN, 0])
        same(call("relu_grad", g, gy, y), [0, 0, 3, 4, 0])

    def test_tanh(self) -> None:
        g = PointwiseGeometry((2, 2))
        near(call("tanh", g, np.array([[0, INF], [math.log(3), -1e9]])), [[0, 1], [0.8, -1]])
        same(call("tanh_grad", g, np.array([[2, 2], [4, NAN]]), np.array([[0, 1], [0.5, 0]])), [[2, 0], [3, NAN]])

    def test_sigmoid(self) -> None:
        g = PointwiseGeometry((5,))
        y = call("sigmoid", g, np.array([0, math.log(3), -math.log(3), INF, -INF]))
        near(y, [0.5, 0.75, 0.25, 1, 0])
        near(call("sigmoid", PointwiseGeometry(()), np.array(-720.0)), math.exp(-720))  # where exp(720) overflows
        same(call("sigmoid_grad", g, np.full(5, 16), np.array([0.5, 0.75, 0.25, 1, 0])), [4, 3, 3, 0, 0])

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shapes_without_elements_or_axes(self, dtype: str) -> None:
        for op in ("relu", "tanh", "sigmoid"):
            assert call(op, PointwiseGeometry((0, 3)), np.zeros((0, 3)), dtype=dtype).shape == (0, 3)
            assert call(op, PointwiseGeometry(()), np.array(0.0), dtype=dtype).shape == ()
            gradient = call(f"{op}_grad", PointwiseGeometry(()), np.array(2.0), np.array(0.5), dtype=dtype)
            assert float(gradient) == {"relu": 2, "tanh": 1.5, "sigmoid": 0.5}[op]


class TestDropout:
    def test_known_philox_vectors(self) -> None:
        word = np.array([0xFFFFFFFF], np.uint64)
        cases = (
            (word * 0, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
            (word, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        )
        for counter, key, expected in cases:
            assert [int(w[0]) for w in philox4x32((counter,) * 4, key)] == expected

    def test_words_in_order(self) -> None:
        words = random_words(11, seed=0)
        assert words[:4].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
        zero = np.array([0], np.uint64)
        block = [int(w[0]) for w in philox4x32((zero + np.uint64(2), zero, zero, zero), (0, 0))]
        assert words[8:].tolist() == block[:3]
        key = 0x1234_5678_9ABC_DEF0
        expected = [int(w[0]) for w in philox4x32((zero,) * 4, (0x9ABC_DEF0, 0x1234_5678))]
        assert random_words(4, key).tolist() == expected

    def test_first_mask_of_seed_zero(self) -> None:
        # the four words are 0.399, 0.881, 0.736, 0.605 of 2**32
        g = PointwiseGeometry((2, 2))
        y, mask = call("dropout", g, np.array([[1, 2], [3, NAN]]), p=0.75)
        assert mask.tolist() == [[False, True], [False, False]] and mask.dtype == bool
        same(y, [[0, 8], [0, 0]])
        same(call("dropout_grad", g, np.array([[1, 2], [INF, 4]]), mask, p=0.75), [[0, 8], [0, 0]])

    def test_limits(self) -> None:
        g = PointwiseGeometry((6,))
        x = np.array([1, 2, INF, NAN, -5, 6])
        y, mask = call("dropout", g, x, p=0.0, seed=5)
        same(y, x)
        assert mask.all()
        y, mask = call("dropout", g, x, p=1.0, seed=5)
        same(y, np.zeros(6))
        assert not mask.any()
        same(call("dropout_grad", g, x, np.ones(6), p=1.0), np.zeros(6))

    def test_share_kept(self) -> None:
        n = 100_000
        mask = call("dropout", PointwiseGeometry((n,)), np.ones(n), p=0.3, seed=1)[1]
        assert abs(mask.mean() - 0.7) < 5 * math.sqrt(0.21 / n)
        other = call("dropout", PointwiseGeometry((n,)), np.ones(n), p=0.3, seed=1 << 32)[1]
        assert abs((mask == other).mean() - 0.58) < 5 * math.sqrt(0.58 * 0.42 / n)

    def test_position_decides_not_shape(self) -> None:
        mask = call("dropout", PointwiseGeometry((24,)), np.ones(24), seed=9)[1]
        for shape in ((2, 3, 4), (24, 1), (5,)):
            count = math.prod(shape)
            again = call("dropout", PointwiseGeometry(shape), np.ones(shape), seed=9)[1]
            assert again.ravel().tolist() == mask[:count].tolist()


class TestUnfold:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_order_of_rows_and_columns(self, layout: str) -> None:
        x = np.arange(1, 13).reshape(1, 2, 2, 3)
        g = conv_geometry(x.shape, (8, 2, 2, 2))
        expected = [[1, 2], [2, 3], [4, 5], [5, 6], [7, 8], [8, 9], [10, 11], [11, 12]]
        columns = call("unfold", g, x, layout=layout)
        assert columns.shape == (1, 8, 2)
        same(columns, expected)
        summed = call("fold", g, columns, layout=layout)
        same(summed, [[[1, 4, 3], [4, 10, 6]], [[7, 16, 9], [10, 22, 12]]])

    def test_padding_is_zero(self) -> None:
        g = conv_geometry((1, 1, 3), (2, 1, 2), stride=2, padding=1, dilation=2)
        same(call("unfold", g, line(1, 2, 3)), [[0, 2], [2, 0]])
        same(call("fold", g, np.array([[[INF, 2], [3, NAN]]])), [0, 5, 0])


class TestSoftmaxCrossEntropy:
    def test_by_hand(self) -> None:
        g = ClassGeometry(1, 2)
        loss, grad = call("softmax_cross_entropy", g, np.array([[0, math.log(3)]]), np.array([1]))
        assert loss.shape == ()
        near(loss, -math.log(0.75))
        near(grad, [0.25, -0.25])

    def test_mean_over_rows(self) -> None:
        g = ClassGeometry(2, 2)
        loss, grad = call("softmax_cross_entropy", g, np.zeros((2, 2)), np.array([0, 1]))
        near(loss, math.log(2))
        same(grad, [[-0.25, 0.25], [0.25, -0.25]])

    def test_label_smoothing(self) -> None:
        g = ClassGeometry(1, 2)
        loss, grad = call("softmax_cross_entropy", g, np.array([[0, math.log(3)]]), np.array([1]), label_smoothing=0.2)
        near(loss, -0.9 * math.log(0.75) - 0.1 * math.log(0.25))
        near(grad, [0.15, -0.15])

    def test_huge_and_infinite_logits(self) -> None:
        g = ClassGeometry(1, 3)
        loss, grad = call("softmax_cross_entropy", g, np.array([[1e300, -1e300, -INF]]), np.array([0]))
        same(loss, 0)
        same(grad, [0, 0, 0])
        loss, grad = call("softmax_cross_entropy", g, np.array([[0, 0, -INF]]), np.array([2]))
        same(loss, INF)
        same(grad, [0.5, 0.5, -1])
        loss, grad = call("softmax_cross_entropy", g, np.array([[0, NAN, 0]]), np.array([0]))
        same(loss, NAN)

    @pytest.mark.parametrize("bad", [3, -1, -100, 2**40])
    def test_label_out_of_range(self, bad: int) -> None:
        g = ClassGeometry(2, 3)
        with pytest.raises(ArgumentError, match=f"softmax_cross_entropy: the label of row 1 is {bad}, but there are 3"):
            call("softmax_cross_entropy", g, np.zeros((2, 3)), np.array([0, bad]))

    def test_no_rows_no_classes(self) -> None:
        for classes in (0, 3):
            loss, grad = call("softmax_cross_entropy", ClassGeometry(0, classes), np.zeros((0, classes)), np.zeros(0))
            same(loss, NAN)
            assert grad.shape == (0, classes)
        with pytest.raises(ArgumentError, match="row 0 is 0, but there are 0 classes"):
            call("softmax_cross_entropy", ClassGeometry(1, 0), np.zeros((1, 0)), np.zeros(1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_to_the_output_type(dtype: str) -> None:
    """x / 3 by average pooling, against the type's neighbours of the quotient."""
    g = pool_geometry((1, 1, 3), 3)
    y = float(call("avg_pool", g, line(1, 0, 0), dtype=dtype)[0, 0, 0])
    bits = {"f32": 24, "f64": 53, "f16": 11, "bf16": 8}[dtype]
    assert y == round(2 ** (bits + 1) / 3) / 2 ** (bits + 1)
