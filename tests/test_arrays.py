"""Arrays of every kind that lies on the host: each protocol alone, what is refused, and where results go."""

from __future__ import annotations

import array
import pickle

import numpy as np
import pytest

import cnnkern as ck

X = np.array([[-1, 2], [3, -4]], np.float32)
RELU = np.array([[0, 2], [3, 0]], np.float32)


class Interface:
    """Only ``__array_interface__``."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    @property
    def __array_interface__(self):
        return self.data.__array_interface__


class DLPack:
    """Only the DLPack protocol, on a device of our choice."""

    def __init__(self, data: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.data = data
        self.device = device

    def __dlpack__(self, **options):
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device


class Convertible:
    """Only ``__array__``, which may hand out a copy."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = data

    def __array__(self, dtype=None, copy=None):
        return self.data


class Raises:
    @property
    def __array_interface__(self):
        raise RuntimeError("the data is gone")


class OnCuda:
    @property
    def __cuda_array_interface__(self):
        return {"version": 3}


@pytest.mark.parametrize("wrap", [Interface, DLPack, Convertible, memoryview], ids=lambda wrap: wrap.__name__)
def test_each_protocol_is_read_and_gives_numpy(wrap):
    y = ck.relu(wrap(X.copy()))
    assert type(y) is np.ndarray
    assert np.array_equal(y, RELU)


def test_buffers_and_subclasses_are_read_and_give_plain_arrays():
    assert np.array_equal(ck.relu(array.array("f", [-1, 2])), np.float32([0, 2]))
    y = ck.relu(X.view(np.matrix))
    assert type(y) is np.ndarray and np.array_equal(y, RELU)
    assert np.array_equal(ck.relu(np.float32(-3)), np.float32(0))


@pytest.mark.parametrize("wrap", [Interface, DLPack, memoryview], ids=lambda wrap: wrap.__name__)
def test_out_may_be_anything_that_shares_its_memory(wrap):
    memory = np.full_like(X, np.nan)
    out = wrap(memory)
    assert ck.relu(X, out=out) is out
    assert np.array_equal(memory, RELU)


def test_statistics_of_other_libraries_are_updated_in_place():
    mean, var = np.zeros(2, np.float32), np.ones(2, np.float32)
    ck.batch_norm(X, Interface(mean), Interface(var), training=True, momentum=1.0)
    assert mean.tolist() == [1, -1]
    assert var.tolist() == [8, 18]


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        (Raises(), ck.ArgumentError, r"relu: x \(Raises\) cannot be read as an array: the data is gone"),
        (OnCuda(), ck.NoKernelError, "relu: x is on a CUDA device, and every kernel here reads host memory"),
        (DLPack(X, (2, 0)), ck.NoKernelError, r"relu: x is on DLPack device \(2, 0\)"),
        (Convertible(X.astype(">f4")), ck.DTypeError, "relu: x is big-endian float32"),
        (Convertible("no array"), ck.ArgumentError, r"relu: x \(Convertible\) cannot be read as an array"),
        (np.ma.masked_array(X), ck.ArgumentError, "relu: x is a masked array"),
        ([1.0, 2.0], ck.ArgumentError, "relu: x must be an array .* got list"),
    ],
)
def test_what_cannot_be_read(value, error, sentence):
    with pytest.raises(error, match=sentence):
        ck.relu(value)


def test_out_may_not_be_a_copy():
    with pytest.raises(ck.ArgumentError, match="relu: out must be an array that shares its memory, got Convertible"):
        ck.relu(X, out=Convertible(X.copy()))


def test_a_broadcast_array_of_irregular_strides_is_not_blown_up():
    """Its copy keeps the broadcast axes: 2**50 bytes would not fit."""
    packed = np.zeros(3, np.dtype([("flag", "u1"), ("value", "<f4")]))["value"]
    packed[...] = [1, 2, 3]
    broadcast = np.broadcast_to(packed, (2**12, 2**12, 2**12, 2**12, 3))[:1, :1, :1, :1]
    assert ck.relu(broadcast).ravel().tolist() == [1, 2, 3]
    with pytest.raises(ck.ShapeError, match="relu: the result"):
        ck.relu(np.broadcast_to(packed, (2**12, 2**12, 2**12, 2**12, 3)))


def test_results_are_contiguous_new_and_aligned():
    x = np.ones((2, 3, 8, 8), np.float32)[:, :, ::-1, ::2]
    for layout in ("NCHW", "NHWC"):
        y = ck.max_pool2d(x, 2, layout=layout)
        assert y.flags.c_contiguous and y.flags.writeable and y.ctypes.data % 64 == 0
    assert not np.shares_memory(ck.avg_pool2d(x, 1), x)


def test_lists_and_numpy_numbers_are_known_to_the_fast_path():
    """They mean what tuples and ints mean, the second time too."""
    x = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    expected = ck.max_pool2d(x, (2, 3), (1, 2), padding=((1, 0), (1, 1)))
    for _ in range(2):
        y = ck.max_pool2d(x, [2, np.int64(3)], [np.uint8(1), 2], padding=[[1, 0], [1, 1]], ceil_mode=np.False_)
        assert np.array_equal(y, expected)


def test_input_without_batch_axis_is_one_image_the_second_time_too():
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((1, 3, 8, 8), np.float32), rng.standard_normal((4, 3, 3, 3), np.float32)
    y = ck.conv2d(x, weight, padding=1)
    pooled, indices = ck.max_pool2d(y, 2, return_indices=True)
    for _ in range(2):
        assert np.array_equal(ck.conv2d(x[0], weight, padding=1), y[0])
        out = np.empty_like(y[0])
        assert ck.conv2d(x[0], weight, padding=1, out=out) is out and np.array_equal(out, y[0])
        one, where = ck.max_pool2d(y[0], 2, return_indices=True)
        assert np.array_equal(one, pooled[0]) and np.array_equal(where, indices[0])
        back = ck.max_pool2d_backward(one, where, y[0].shape, 2)
        assert np.array_equal(back, ck.max_pool2d_backward(pooled, indices, y.shape, 2)[0])
        with pytest.raises(ck.ShapeError):  # and it does not make a wrong shape right
            ck.max_pool2d_backward(pooled, indices, y[0].shape, 2)
        grads = ck.conv2d_backward(y[0], x[0], weight, padding=1)
        for grad, expected in zip(grads, ck.conv2d_backward(y, x, weight, padding=1)):
            assert np.array_equal(grad, expected.reshape(grad.shape))


def test_public_functions_can_be_pickled():
    for name in ("conv2d", "max_pool1d_backward", "relu", "batch_norm", "pool3d_output_shape"):
        function = getattr(ck, name)
        assert pickle.loads(pickle.dumps(function)) is function
