"""Tensors of PyTorch and arrays of JAX go in and come back as such, without copies where there is a way."""

from __future__ import annotations

import numpy as np
import pytest

import cnnkern as ck

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = jax.numpy

RNG = np.random.default_rng(5)
X, WEIGHT = RNG.standard_normal((2, 3, 8, 8), np.float32), RNG.standard_normal((4, 3, 3, 3), np.float32)


def test_torch_tensors_give_torch_tensors():
    x, weight = torch.from_numpy(X), torch.from_numpy(WEIGHT)
    for _ in range(2):  # the second call is one that the fast path knows
        y = ck.conv2d(x, weight, padding=[1, 1])
        assert type(y) is torch.Tensor and y.dtype is torch.float32
        assert np.array_equal(y.numpy(), ck.conv2d(X, WEIGHT, padding=1))
    y, indices = ck.max_pool2d(x, 2, return_indices=True)
    grad = ck.max_pool2d_backward(y, indices, x.shape, 2)  # torch.Size is a shape
    assert indices.dtype is torch.int64 and grad.shape == x.shape
    loss, _ = ck.softmax_cross_entropy(torch.zeros(2, 4), torch.tensor([1, 3]))
    assert loss.shape == () and abs(loss.item() - np.log(4)) < 1e-6


def test_results_follow_the_first_array():
    assert type(ck.conv2d(X, torch.from_numpy(WEIGHT))) is np.ndarray
    assert type(ck.conv2d(torch.from_numpy(X), WEIGHT)) is torch.Tensor


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_torch_dtypes(dtype):
    x = torch.from_numpy(X).to(getattr(torch, dtype))
    with ck.using(backend="reference"):  # which takes 16-bit types too
        assert torch.equal(ck.relu(x), torch.relu(x))
        out = torch.full_like(x, float("nan"))
        assert ck.relu(x, out=out) is out
    assert torch.equal(out, torch.relu(x))


def test_channels_last_is_a_view():
    x = torch.from_numpy(X).to(memory_format=torch.channels_last)
    assert np.array_equal(ck.conv2d(x, torch.from_numpy(WEIGHT)).numpy(), ck.conv2d(X, WEIGHT))


def test_running_statistics_are_written_through():
    mean, var = torch.zeros(3), torch.ones(3)
    theirs_mean, theirs_var = mean.clone(), var.clone()
    y = ck.batch_norm(torch.from_numpy(X), mean, var, training=True)
    theirs = torch.nn.functional.batch_norm(torch.from_numpy(X), theirs_mean, theirs_var, training=True)
    assert torch.allclose(y, theirs, atol=1e-6)
    assert torch.allclose(mean, theirs_mean, atol=1e-7) and torch.allclose(var, theirs_var, atol=1e-6)


def test_a_gradient_is_not_lost_silently():
    weight = torch.nn.Parameter(torch.from_numpy(WEIGHT))
    with pytest.raises(ck.ArgumentError, match=r"conv2d: weight requires a gradient.*detach"):
        ck.conv2d(torch.from_numpy(X), weight)
    with torch.no_grad():
        assert ck.conv2d(torch.from_numpy(X), weight).shape == (2, 4, 6, 6)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: torch.zeros(2, device="meta"), ck.NoKernelError, r"relu: x is on device meta.*x\.cpu\(\)"),
        (lambda: torch.zeros(2).to_sparse(), ck.ArgumentError, r"relu: x is a sparse tensor .*to_dense"),
        (lambda: torch.zeros(2, dtype=torch.float8_e5m2), ck.DTypeError, "relu: x is torch.float8_e5m2"),
        (lambda: torch.zeros(2, dtype=torch.int32), ck.DTypeError, "relu: x must be float32, .*, got int32"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), ck.ArgumentError, "relu: x .* cannot be read"),
    ],
)
def test_tensors_that_are_refused(make, error, sentence):
    with pytest.raises(error, match=sentence):
        ck.relu(make())


def test_jax_arrays_give_jax_arrays():
    x, weight = jnp.asarray(X), jnp.asarray(WEIGHT)
    for _ in range(2):
        y = ck.conv2d(x, weight)
        assert isinstance(y, jax.Array)
        assert np.array_equal(np.asarray(y), ck.conv2d(X, WEIGHT))
    y, indices = ck.max_pool2d(x, 2, return_indices=True)  # int32 where JAX has no int64
    assert ck.max_pool2d_backward(y, indices, x.shape, 2).shape == x.shape
    with ck.using(backend="reference"):
        assert ck.relu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_jax_results_are_not_copied():
    """They start on 64 bytes, and so JAX takes the very memory that the kernel wrote."""
    from cnnkern import arrays

    y = ck.relu(X)
    assert arrays.result_wrapper(jnp.asarray(X))(y).unsafe_buffer_pointer() == y.ctypes.data


def test_jax_tracers_and_read_only_outputs_are_refused():
    with pytest.raises(ck.ArgumentError, match=r"relu: x \(\w+\) cannot be read as an array"):
        jax.jit(ck.relu)(jnp.asarray(X))
    with pytest.raises(ck.ArgumentError, match="relu: out is read-only"):
        ck.relu(jnp.asarray(X), out=jnp.zeros_like(X))
