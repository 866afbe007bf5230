"""Sizes: the padding grammar, windows counted one by one, transposed sizes, and shape functions against the ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnkern as ck
from cnnkern.spec.padding import parse_padding
from cnnkern.spec.shapes import conv_geometry, conv_transpose_geometry
from cnnkern.spec.windows import first_empty_window, parse_windows

seeded = settings(derandomize=True, deadline=None, max_examples=150)


# --- the padding grammar


@pytest.mark.parametrize(
    ("value", "kernel", "dilation", "pairs"),
    [
        (0, (3, 3), (1, 1), ((0, 0), (0, 0))),
        (2, (3, 3), (1, 1), ((2, 2), (2, 2))),
        (np.int64(2), (3,), (1,), ((2, 2),)),
        ((1, 2), (3, 3), (1, 1), ((1, 1), (2, 2))),
        ([1, 2], (3, 3), (1, 1), ((1, 1), (2, 2))),
        (((1, 2), (0, 3)), (3, 3), (1, 1), ((1, 2), (0, 3))),
        ([[1, 2]], (3,), (1,), ((1, 2),)),
        ((1, 2, 3), (3, 3, 3), (1, 1, 1), ((1, 1), (2, 2), (3, 3))),
        ("valid", (3, 3), (1, 1), ((0, 0), (0, 0))),
        ("causal", (3,), (1,), ((2, 0),)),
        ("causal", (3,), (4,), ((8, 0),)),
    ],
)
def test_padding_grammar(value, kernel, dilation, pairs):
    padding = parse_padding("op", value, kernel, dilation)
    assert tuple(padding.pair(axis, 7, 2, 1) for axis in range(len(kernel))) == pairs


@pytest.mark.parametrize(
    "value", ["full", "SAME", (1,), (1, 2, 3), (1, (0, 1)), ((1, 2, 3), (1, 2, 3)), 1.0, None, True]
)
def test_what_is_no_padding(value):
    with pytest.raises(ck.ArgumentError, match="padding must be one int or one"):
        parse_padding("op", value, (3, 3), (1, 1))


def test_same_pads_for_the_ceiling_and_puts_the_odd_element_where_its_name_says():
    for size, kernel, stride, dilation in itertools.product(range(1, 12), range(1, 6), range(1, 5), range(1, 4)):
        upper = conv_geometry("op", (1, 1, size), (1, 1, kernel), stride, "same", dilation, 1)
        lower = conv_geometry("op", (1, 1, size), (1, 1, kernel), stride, "same_lower", dilation, 1)
        (windows,) = upper.output
        assert windows == -(-size // stride) == lower.output[0]
        (before,), (after,) = upper.pad_before, upper.pad_after
        assert (lower.pad_before, lower.pad_after) == (upper.pad_after, upper.pad_before)
        assert 0 <= after - before <= 1
        if before + after:  # the last window then ends exactly where the padding does
            assert (windows - 1) * stride + dilation * (kernel - 1) + 1 == size + before + after


def test_same_by_hand():
    """x = 1..4, weights 1, kernel 3, stride 2: the padded element is after the input, or before it."""
    x, weight = np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4), np.ones((1, 1, 3), np.float32)
    assert ck.conv1d(x, weight, stride=2, padding="same").ravel().tolist() == [6, 7]
    assert ck.conv1d(x, weight, stride=2, padding="same_lower").ravel().tolist() == [3, 9]


def test_causal_never_looks_ahead():
    weight = np.ones((1, 1, 3), np.float32)
    x = np.zeros((1, 1, 9), np.float32)
    before = ck.conv1d(x, weight, padding="causal", dilation=2)
    x[..., 5] = 1
    after = ck.conv1d(x, weight, padding="causal", dilation=2)
    assert before.shape == x.shape
    assert np.flatnonzero(before != after).tolist() == [5, 7]


# --- windows counted one by one


def windows_by_hand(
    size: int, kernel: int, stride: int, dilation: int, before: int, after: int, ceil_mode: bool
) -> list[int]:
    """Starts of the windows, by definition: those that fit into the padded input; with ceil_mode also the one after a
    window that ends before the padded input does; but then no last one that starts after the input's end."""
    last, reach = size + after - 1, dilation * (kernel - 1)
    starts: list[int] = []
    start = -before
    while start + reach <= last or (ceil_mode and start - stride + reach < last):
        starts.append(start)
        start += stride
    if ceil_mode and starts and starts[-1] >= size:
        starts.pop()
    return starts


def reads_input(start: int, size: int, kernel: int, dilation: int) -> bool:
    return any(0 <= start + tap * dilation < size for tap in range(kernel))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_sizes_against_windows_counted_by_hand(ceil_mode):
    refused = served = 0
    sizes = itertools.product(range(6), range(1, 4), range(1, 5), range(1, 4), range(4), range(4))
    for size, kernel, stride, dilation, before, after in sizes:
        starts = windows_by_hand(size, kernel, stride, dilation, before, after, ceil_mode)
        good = bool(starts) and all(reads_input(start, size, kernel, dilation) for start in starts)
        arguments = ((1, 1, size), kernel, stride, ((before, after),), dilation, ceil_mode)
        if good:
            served += 1
            assert ck.pool1d_output_shape(*arguments)[2] == len(starts), arguments
        else:
            refused += 1
            with pytest.raises(ck.ShapeError):
                ck.pool1d_output_shape(*arguments)
    assert min(refused, served) > 500


def test_conv_sizes_against_windows_counted_by_hand():
    sizes = itertools.product(range(7), range(1, 4), range(1, 4), range(1, 4), range(3), range(3))
    for size, kernel, stride, dilation, before, after in sizes:
        starts = windows_by_hand(size, kernel, stride, dilation, before, after, False)
        arguments = ((2, 3, size), (5, 3, kernel), stride, ((before, after),), dilation)
        if starts:
            assert ck.conv1d_output_shape(*arguments) == (2, 5, len(starts))
        else:
            with pytest.raises(ck.ShapeError, match="kernel covers"):
                ck.conv1d_output_shape(*arguments)


def test_empty_windows_are_found_exactly():
    found = 0
    ranges = (range(1, 6), range(6), range(1, 4), range(1, 6), range(1, 8), range(13))
    for size, count, kernel, stride, dilation, before in itertools.product(*ranges):
        empty = [o for o in range(count) if not reads_input(o * stride - before, size, kernel, dilation)]
        answer = first_empty_window(size, count, kernel, stride, dilation, before)
        assert answer in empty if empty else answer is None
        found += bool(empty)
    assert found > 1000


def test_empty_windows_of_huge_problems_are_found_at_once():
    """A search window by window would take minutes."""
    assert first_empty_window(2**30, 2**30 - 1, 2, 1, 2**30 + 1, 2**30 - 1) == 2**30 - 2
    assert first_empty_window(2**30, 2**30, 3, 1, 2**29, 2**30) is None


# --- transposed convolution

PADDING = st.one_of(st.tuples(st.tuples(*[st.integers(0, 3)] * 2)), st.sampled_from(["same", "same_lower"]))


@given(
    size=st.integers(1, 9),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=PADDING,
)
@seeded
def test_transposed_size_undoes_the_size_of_the_convolution(size, kernel, stride, dilation, padding):
    """conv: size -> out; conv_transpose of out gives size back, with the rest of the division as output_padding."""
    try:
        (out,) = ck.conv1d_output_shape((1, 1, size), (1, 1, kernel), stride, padding, dilation)[2:]
    except ck.ShapeError:
        return
    if isinstance(padding, str):
        assert ck.conv_transpose1d_output_shape((1, 1, out), (1, 1, kernel), stride, padding, dilation=dilation) == (
            1,
            1,
            out * stride,
        )
        assert ck.conv1d_output_shape((1, 1, out * stride), (1, 1, kernel), stride, padding, dilation)[2] == out
        return
    ((before, after),) = padding
    rest = (size + before + after - dilation * (kernel - 1) - 1) % stride
    shape = ck.conv_transpose1d_output_shape((1, 1, out), (1, 1, kernel), stride, padding, rest, 1, dilation)
    assert shape == (1, 1, size)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding", [0, 1, ((0, 2), (1, 0)), "same", "same_lower"])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (3, 2, 1)])
def test_transposed_convolution_is_the_adjoint(stride, dilation, groups, padding, layout):
    """<conv(x, w), y> = <x, conv_transpose(y, w)>, exactly, on small integers."""
    rng = np.random.default_rng(7)
    weight = rng.integers(-3, 4, (4, 6 // groups, 3, 2)).astype(np.float32)
    y = rng.integers(-3, 4, (2, 4, 3, 4)).astype(np.float32)
    back = ck.conv_transpose2d(_to(y, layout), weight, None, stride, padding, 0, groups, dilation, layout=layout)
    x = rng.integers(-3, 4, back.shape).astype(np.float32)
    forward = ck.conv2d(x, weight, None, stride, padding, dilation, groups, layout=layout)
    assert forward.shape == _to(y, layout).shape
    assert np.vdot(forward, _to(y, layout)) == np.vdot(x, back) != 0


def _to(maps: np.ndarray, layout: str) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(maps, 1, -1)) if layout == "NHWC" else maps


def test_positions_that_no_tap_reaches_hold_the_bias():
    y = ck.conv_transpose1d(np.ones((1, 1, 2), np.float32), np.ones((1, 1, 2), np.float32), np.float32([5]), stride=4)
    assert y.ravel().tolist() == [6, 6, 5, 5, 6, 6]


def test_geometry_of_a_transposed_convolution_is_that_of_the_convolution():
    transposed = conv_transpose_geometry("op", (2, 4, 5), (4, 3, 3), 2, 1, 1, 1, 1)
    assert transposed == conv_geometry("op", (2, 3, 10), (4, 3, 3), 2, 1, 1, 1)


# --- shape functions and the ops themselves

SPATIAL = st.integers(1, 3).flatmap(lambda rank: st.lists(st.integers(1, 7), min_size=rank, max_size=rank))


def maps(layout: str, batched: bool, channels: int, spatial: list[int]) -> np.ndarray:
    shape = (2, *spatial, channels) if layout == "NHWC" else (2, channels, *spatial)
    return np.ones(shape if batched else shape[1:], np.float32)


@given(data=st.data(), spatial=SPATIAL, layout=st.sampled_from(["NCHW", "NHWC"]), batched=st.booleans())
@seeded
def test_shape_functions_agree_with_the_ops(data, spatial, layout, batched):
    rank = len(spatial)

    def per_axis(least: int, most: int):
        return data.draw(st.one_of(st.integers(least, most), st.tuples(*[st.integers(least, most)] * rank)))

    stride, dilation, groups = per_axis(1, 3), per_axis(1, 2), data.draw(st.integers(1, 2))
    padding = data.draw(st.one_of(st.integers(0, 2), st.sampled_from(["same", "same_lower", "valid"])))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * rank))
    extra = 0 if isinstance(padding, str) else data.draw(st.integers(0, 1))
    x = maps(layout, batched, 2 * groups, spatial)
    forward, transposed = np.ones((4, 2, *kernel), np.float32), np.ones((2 * groups, 3, *kernel), np.float32)
    ceil_mode, output_size = data.draw(st.booleans()), per_axis(0, 5)
    window = (stride, padding, dilation)
    spread = (stride, padding, extra, groups, dilation)
    cases = {  # op -> its arguments, its shape function, that one's arguments
        f"conv{rank}d": ((forward, None, *window, groups), f"conv{rank}d", (forward.shape, *window, groups)),
        f"conv_transpose{rank}d": (
            (transposed, None, *spread),
            f"conv_transpose{rank}d",
            (transposed.shape, *spread),
        ),
        f"max_pool{rank}d": ((kernel, *window, ceil_mode), f"pool{rank}d", (kernel, *window, ceil_mode)),
        f"adaptive_avg_pool{rank}d": ((output_size,), f"adaptive_pool{rank}d", (output_size,)),
    }
    for op, (arguments, family, shape_arguments) in cases.items():
        expected = _outcome(getattr(ck, f"{family}_output_shape"), x.shape, *shape_arguments, layout=layout)
        result = _outcome(getattr(ck, op), x, *arguments, layout=layout)
        assert expected == (result if isinstance(result, type) else result.shape), op


def _outcome(function: Callable, *arguments: object, **named: object):
    """The result, or the class of the error."""
    try:
        return function(*arguments, **named)
    except (ck.ShapeError, ck.ArgumentError) as error:
        return type(error)


def test_unfold_and_fold_shapes():
    x = np.ones((2, 3, 6, 7), np.float32)
    columns = ck.unfold(x, (2, 3), dilation=(2, 1), padding=1, stride=2)
    assert columns.shape == ck.unfold_output_shape(x.shape, (2, 3), (2, 1), 1, 2) == (2, 18, 12)
    assert ck.fold(columns, (6, 7), (2, 3), (2, 1), 1, 2).shape == x.shape
    assert ck.fold_output_shape(columns.shape, (6, 7), (2, 3), (2, 1), 1, 2) == x.shape
    assert ck.unfold(x[0], (2, 3)).shape == ck.unfold_output_shape(x.shape[1:], (2, 3)) == (18, 25)
    assert ck.fold(np.ones((18, 25), np.float32), (6, 7), (2, 3)).shape == (3, 6, 7)
    assert ck.unfold(x[:, :, 0], 2).shape == (2, 6, 6)  # the rank follows from x
    assert ck.fold(np.ones((1, 4, 9), np.float32), 4, 2).shape == (1, 1, 4, 4)  # two ints: 2d, as in PyTorch


def test_default_size_of_unpooling_is_the_smallest_input_of_the_pooling():
    for size, kernel, stride in itertools.product(range(1, 6), range(1, 4), range(1, 4)):
        (back,) = ck.max_unpool1d_output_shape((1, 1, size), kernel, stride)[2:]
        assert ck.pool1d_output_shape((1, 1, back), kernel, stride) == (1, 1, size)
        assert back == kernel or ck.pool1d_output_shape((1, 1, back - 1), kernel, stride) != (1, 1, size)


@pytest.mark.parametrize(("rank", "names"), [(1, ("NCW", "NWC")), (2, ("NCHW", "NHWC")), (3, ("NCDHW", "NDHWC"))])
def test_layout_has_names_for_each_rank(rank, names):
    first, last = np.ones((2, 3, *[4] * rank), np.float32), np.ones((2, *[4] * rank, 3), np.float32)
    pool = getattr(ck, f"avg_pool{rank}d")
    for alias, name, x in ((names[0], "NCHW", first), (names[1], "NHWC", last)):
        assert np.array_equal(pool(x, 2, layout=alias), pool(x, 2, layout=name))


class Symbol:
    """A size that a tracer does not know yet: it knows its formula, and whoever asks for more fails."""

    def __init__(self, formula: str) -> None:
        self.formula = formula

    def __neg__(self):
        return Symbol(f"(-{self.formula})")

    def _asked(self, *_):
        raise AssertionError(f"a shape function asked for the value of {self.formula}")

    __bool__ = __int__ = __index__ = __float__ = __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _asked


def _operator(name: str, sign: str) -> None:
    setattr(Symbol, f"__{name}__", lambda self, other: Symbol(f"({self.formula} {sign} {_text(other)})"))
    setattr(Symbol, f"__r{name}__", lambda self, other: Symbol(f"({_text(other)} {sign} {self.formula})"))


for _name, _sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("floordiv", "//"), ("mod", "%")):
    _operator(_name, _sign)


def _text(value) -> str:
    return value.formula if isinstance(value, Symbol) else str(value)


SYMBOLIC = [
    (ck.conv2d_output_shape, (4, 3, 3, 2), dict(stride=2, padding=((1, 0), (2, 1)), dilation=2)),
    (ck.conv2d_output_shape, (4, 3, 3, 2), dict(stride=3, padding="same")),
    (ck.conv_transpose2d_output_shape, (3, 4, 3, 2), dict(stride=2, padding=1, output_padding=1)),
    (ck.conv_transpose2d_output_shape, (3, 4, 3, 2), dict(stride=2, padding="same_lower")),
    (ck.pool2d_output_shape, (3, 2), dict(stride=2, padding=1)),
    (ck.pool2d_output_shape, (3, 2), dict(stride=2, padding=1, ceil_mode=True)),
    (ck.pool2d_output_shape, (3, 2), dict(stride=3, padding="same_lower")),
    (ck.adaptive_pool2d_output_shape, (3, None), {}),
    (ck.max_unpool2d_output_shape, (3, 2), dict(stride=2, padding=1)),
    (ck.unfold_output_shape, (3, 2), dict(padding=1, stride=2)),
]


@pytest.mark.parametrize(("function", "second", "rest"), SYMBOLIC)
def test_shape_functions_take_symbolic_sizes(function, second, rest):
    """One formula, asked nothing, that is right for every size."""
    symbolic = function((Symbol("n"), 3, Symbol("h"), Symbol("w")), second, **rest)
    for n, h, w in itertools.product((1, 4), (5, 6, 7), (8, 9, 11)):
        values = tuple(eval(_text(size), {"n": n, "h": h, "w": w}) for size in symbolic)
        assert values == function((n, 3, h, w), second, **rest)


def test_windows_remember_what_they_were_given():
    windows = parse_windows("op", 2, 3, 2, (1, 0), (1, 2))
    assert (windows.kernel, windows.stride, windows.dilation) == ((3, 3), (2, 2), (1, 2))
    assert windows.pads((5, 9)) == ((1, 0), (1, 0))
