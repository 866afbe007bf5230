"""Public functions on arrays as they lie in memory: any strides, alignment and permission; views to write into.

Values are small whole numbers and divisors powers of two, so every result must equal that of contiguous arrays exactly,
on the first call with such arrays and on the second, which the native cache answers.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import pytest

import cnnkern as ck
from samples import generator

LAYOUTS = ("NCHW", "NHWC")


def maps(layout: str, *shape: int, dtype: str = "float32") -> np.ndarray:
    """Whole numbers of logical shape (batch, channels, height, width) in a layout."""
    array = generator(shape).integers(-4, 5, shape).astype(dtype)
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if layout == "NHWC" else array


def weights(*shape: int, dtype: str = "float32") -> np.ndarray:
    return generator("w", shape).integers(-4, 5, shape).astype(dtype)


def plane_indices(layout: str, *shape: int, size: int) -> np.ndarray:
    return maps(layout, *shape, dtype="int64") % size


# name -> (function of (layout, arrays), arrays of a layout). Each array is changed by the tests.
CALLS: dict[str, tuple[Callable, Callable]] = {
    "conv2d": (
        lambda layout, x, w, b, r: ck.conv2d(x, w, b, 1, 1, residual=r, activation="relu", layout=layout),
        lambda layout: (maps(layout, 2, 5, 7, 9), weights(17, 5, 3, 3), weights(17), maps(layout, 2, 17, 7, 9)),
    ),
    "conv2d grouped": (
        lambda layout, x, w: ck.conv2d(x, w, None, 2, 1, groups=6, layout=layout),
        lambda layout: (maps(layout, 2, 6, 9, 8), weights(12, 1, 3, 3)),
    ),
    "conv2d_backward": (
        lambda layout, gy, x, w: ck.conv2d_backward(gy, x, w, 2, 1, layout=layout),
        lambda layout: (maps(layout, 2, 6, 4, 5), maps(layout, 2, 3, 8, 9), weights(6, 3, 3, 3)),
    ),
    "conv_transpose2d": (
        lambda layout, x, w, b: ck.conv_transpose2d(x, w, b, 2, 1, layout=layout),
        lambda layout: (maps(layout, 2, 4, 5, 6), weights(4, 7, 3, 3), weights(7)),
    ),
    "max_pool2d": (
        lambda layout, x: ck.max_pool2d(x, 3, 2, 1, return_indices=True, layout=layout),
        lambda layout: (maps(layout, 2, 5, 11, 13),),
    ),
    "max_pool2d_backward": (
        lambda layout, gy, i: ck.max_pool2d_backward(gy, i, maps(layout, 2, 3, 8, 10).shape, 2, layout=layout),
        lambda layout: (maps(layout, 2, 3, 4, 5), plane_indices(layout, 2, 3, 4, 5, size=80)),
    ),
    "avg_pool2d": (
        lambda layout, x: ck.avg_pool2d(x, 2, layout=layout),
        lambda layout: (maps(layout, 2, 5, 10, 12),),
    ),
    "avg_pool2d_backward": (
        lambda layout, gy: ck.avg_pool2d_backward(gy, maps(layout, 2, 5, 10, 12).shape, 2, layout=layout),
        lambda layout: (maps(layout, 2, 5, 5, 6),),
    ),
    "adaptive_max_pool2d": (
        lambda layout, x: ck.adaptive_max_pool2d(x, (3, 4), True, layout=layout),
        lambda layout: (maps(layout, 2, 5, 7, 9),),
    ),
    "max_unpool2d": (
        lambda layout, x, i: ck.max_unpool2d(x, i, 2, layout=layout),
        lambda layout: (maps(layout, 2, 3, 4, 5), plane_indices(layout, 2, 3, 4, 5, size=80)),
    ),
    "relu": (lambda layout, x: ck.relu(x), lambda layout: (maps(layout, 2, 3, 5, 17),)),
    "relu_backward": (
        lambda layout, gy, y: ck.relu_backward(gy, y),
        lambda layout: (maps(layout, 2, 3, 5, 17), maps(layout, 2, 3, 5, 17)[::-1]),
    ),
}


def strided(array: np.ndarray) -> np.ndarray:
    """Every second element of every axis of a larger array full of NaN."""
    fill = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    wide = np.full([2 * extent + 3 for extent in array.shape], fill, array.dtype)
    view = wide[tuple(slice(1, 1 + 2 * extent, 2) for extent in array.shape)]
    view[...] = array
    return view


def negative(array: np.ndarray) -> np.ndarray:
    return np.flip(np.flip(array).copy())


def transposed(array: np.ndarray) -> np.ndarray:
    return np.asfortranarray(array)


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array: np.ndarray) -> np.ndarray:
    """One byte beside any boundary."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def field(array: np.ndarray) -> np.ndarray:
    """A field of a structured array: strides that are no multiple of the element's size."""
    records = np.zeros(array.shape, [("flag", "u1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


MANNERS = [strided, negative, transposed, read_only, misaligned, field]


def as_tuple(result: object) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: manner.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_any_arrays_give_what_contiguous_ones_give(name: str, layout: str, manner: Callable) -> None:
    call, arrays_of = CALLS[name]
    arrays = arrays_of(layout)
    expected = as_tuple(call(layout, *arrays))
    changed = [manner(array) for array in arrays]
    for _ in range(2):
        for got, want in zip(as_tuple(call(layout, *changed)), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    for i in range(len(arrays)):  # one such array among contiguous ones
        mixed = [*arrays[:i], changed[i], *arrays[i + 1 :]]
        for got, want in zip(as_tuple(call(layout, *mixed)), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    for array, copy in zip(changed, arrays):
        np.testing.assert_array_equal(array, copy, "an input was changed")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CALLS)
def test_broadcast_arrays_give_what_their_copies_give(name: str, layout: str) -> None:
    """Each array in turn is its own first slice along each axis, seen many times with stride 0."""
    call, arrays_of = CALLS[name]
    arrays = arrays_of(layout)
    for i, array in enumerate(arrays):
        for axis in range(array.ndim):
            view = np.broadcast_to(array.take([0], axis), array.shape)
            assert view.strides[axis] == 0
            got = call(layout, *arrays[:i], view, *arrays[i + 1 :])
            want = call(layout, *arrays[:i], view.copy(), *arrays[i + 1 :])
            for a, b in zip(as_tuple(got), as_tuple(want), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CALLS)
def test_other_byte_orders_are_refused(name: str) -> None:
    call, arrays_of = CALLS[name]
    arrays = arrays_of("NCHW")
    for i, array in enumerate(arrays):
        other = array.astype(array.dtype.newbyteorder())
        for _ in range(2):
            with pytest.raises(ck.DTypeError, match="-endian"):
                call("NCHW", *arrays[:i], other, *arrays[i + 1 :])


# ---- views to write into

OUT: dict[str, Callable] = {  # (layout, x of 5 channels, out) -> out, of 17 channels for convolutions, else of 5
    "conv2d": lambda layout, x, out: ck.conv2d(x, weights(17, 5, 3, 3), weights(17), 1, 1, layout=layout, out=out),
    "conv_transpose2d": lambda layout, x, out: ck.conv_transpose2d(
        x, weights(5, 17, 3, 3), None, 1, 1, layout=layout, out=out
    ),
    "max_pool2d": lambda layout, x, out: ck.max_pool2d(x, 3, 1, 1, layout=layout, out=out),
    "avg_pool2d": lambda layout, x, out: ck.avg_pool2d(x, (2, 4), 1, ((0, 1), (1, 2)), layout=layout, out=out),
    "lp_pool2d": lambda layout, x, out: ck.lp_pool2d(x, 1, 3, 1, padding=1, layout=layout, out=out),
    "adaptive_avg_pool2d": lambda layout, x, out: ck.adaptive_avg_pool2d(x, (6, 8), layout=layout, out=out),
    "adaptive_max_pool2d": lambda layout, x, out: ck.adaptive_max_pool2d(x, (6, 8), layout=layout, out=out),
    "relu": lambda layout, x, out: ck.relu(x, out=out),
    "tanh": lambda layout, x, out: ck.tanh(x, out=out),
    "sigmoid": lambda layout, x, out: ck.sigmoid(x, out=out),
}


def channels(name: str) -> int:
    return 17 if name.startswith("conv") else 5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OUT)
def test_out_may_be_a_slice_of_a_concatenation(name: str, layout: str) -> None:
    """Channels 3 and up of a larger array: written directly, nothing beside them, and given back as the very object."""
    x, count = maps(layout, 2, 5, 6, 8), channels(name)
    expected = OUT[name](layout, x, None)
    whole = np.full(maps(layout, 2, 3 + count + 2, 6, 8).shape, np.nan, np.float32)
    part = whole[:, 3 : 3 + count] if layout == "NCHW" else whole[..., 3 : 3 + count]
    for _ in range(2):
        whole[...] = np.nan
        assert OUT[name](layout, x, part) is part
        np.testing.assert_array_equal(part, expected)
        assert np.isnan(whole).sum() == whole.size - part.size


@pytest.mark.parametrize("manner", [strided, negative, transposed, misaligned, field], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", OUT)
def test_out_may_lie_in_any_manner(name: str, manner: Callable) -> None:
    x = maps("NCHW", 2, 5, 6, 8)
    expected = OUT[name]("NCHW", x, None)
    for _ in range(2):
        out = manner(np.zeros_like(expected))
        assert OUT[name]("NCHW", x, out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", OUT)
def test_out_may_neither_overlap_an_input_nor_be_read_only(name: str) -> None:
    """Also where the same call with other memory is already known to the native cache."""
    count = channels(name)
    memory = np.zeros((2, 5 + count, 6, 8), np.float32)
    x, apart, across = memory[:, :5], memory[:, 5:], memory[:, 4 : 4 + count]
    x[...] = maps("NCHW", 2, 5, 6, 8)
    before = memory.copy()
    for _ in range(2):
        with pytest.raises(ck.ArgumentError, match="out may not overlap x"):
            OUT[name]("NCHW", x, across)
        np.testing.assert_array_equal(memory, before)
        OUT[name]("NCHW", x, apart)
        before = memory.copy()
    frozen = read_only(np.zeros((2, count, 6, 8), np.float32))
    with pytest.raises(ck.ArgumentError, match="read-only"):
        OUT[name]("NCHW", x, frozen)
    assert not frozen.any()


# ---- distances beyond 32 bits

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux: pages cost memory when they are written, not before


def sparse(elements: int) -> np.ndarray:
    """float32 zeros of which only what is written takes memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, 4 * elements, flags=flags), np.float32)


@pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="this platform has no anonymous mappings")
@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_beyond_32_bits(layout: str, axis: int) -> None:
    """Two slices of each array lie more than 2**31 elements apart, along each axis in turn, of input and output."""
    shape = [2, 2, 2, 2]
    step = 2**31 + 5
    strides = [64, 16, 4, 1]
    strides[axis] = step

    def far(values: np.ndarray) -> np.ndarray:
        memory = sparse(step + 128)
        view = np.lib.stride_tricks.as_strided(memory, shape, [4 * s for s in strides], writeable=True)
        view[...] = values
        return view

    x = maps(layout, 2, 2, 2, 2)
    w = weights(2, 2, 3, 3)
    for call in (
        lambda x, out: ck.conv2d(x, w, None, 1, 1, layout=layout, out=out),
        lambda x, out: ck.conv_transpose2d(x, w, None, 1, 1, layout=layout, out=out),
        lambda x, out: ck.max_pool2d(x, 3, 1, 1, layout=layout, out=out),
        lambda x, out: ck.avg_pool2d(x, (1, 1), layout=layout, out=out),
        lambda x, out: ck.relu(x, out=out),
    ):
        out = far(np.zeros_like(x))
        call(far(x), out)
        np.testing.assert_array_equal(out, call(x, None))
    gradients = ck.conv2d_backward(far(x), far(x[::-1]), w, 1, 1, layout=layout)
    for got, want in zip(gradients, ck.conv2d_backward(x, x[::-1].copy(), w, 1, 1, layout=layout)):
        np.testing.assert_array_equal(got, want)
