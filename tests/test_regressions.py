"""Mistakes that were made once: each stays here as the smallest program that showed it."""

from __future__ import annotations

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import plan
from cnnkern.backends import load
from cnnkern.problem import parse
from cnnkern.spec import Request
from matrix import needs_native
from scripts import output_of

FAR = 2**29 - 2  # dilation and padding: the strip of a 4 x 4 image would have 2**60 pixels


def far_request(op: str, channels: tuple[int, int]) -> Request:
    case = f"conv2d:mb1ic{channels[0]}ih4oc{channels[1]}oh4kh3ph{FAR}dh{FAR - 1}"
    request = parse(case).request()
    return Request(op, request.geometry, "f32")


@pytest.mark.parametrize("op", ["conv", "conv_grad_input", "conv_grad_weight"])
@pytest.mark.parametrize("channels", [(4, 8), (8, 4), (1, 1)])
def test_taps_far_apart_are_refused_before_sizes_wrap(op: str, channels: tuple[int, int]) -> None:
    request = far_request(op, channels)
    sentences = [row.why_not(request) for row in ck.kernels(op, "cpp") if request.dtype in row.dtypes]
    assert all(sentences)
    assert any("taps near each other" in sentence for sentence in sentences)


@pytest.mark.parametrize("stride", [2**20, 2**30])
def test_a_huge_stride_needs_no_huge_strip(stride: int) -> None:
    x = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    weight = np.ones((2, 3, 3, 3), np.float32)
    for _ in range(2):
        y = ck.conv2d(x, weight, stride=stride)
        assert np.array_equal(y, np.full((1, 2, 1, 1), x[:, :, :3, :3].sum(), np.float32))
    grads = ck.conv2d_backward(y, x, weight, stride=stride)
    with ck.using(backend="reference"):
        for ours, theirs in zip(grads, ck.conv2d_backward(y, x, weight, stride=stride)):
            assert np.array_equal(ours, theirs)


@needs_native
def test_the_product_of_strides_is_never_computed() -> None:
    """It leaves 64 bits; the matrix product asks whether all strides are one."""
    x = np.arange(368, dtype=np.float32).reshape(1, 8, 1, 1, 46)
    weight = np.ones((4, 8, 1, 1, 1), np.float32)
    stride = (2**31 - 1, 2**31 - 1, 3)
    with ck.using(kernel="cpp.gemm"):
        y = ck.conv3d(x, weight, stride=stride)
    assert np.array_equal(y, np.broadcast_to(x[..., ::3].sum(1, keepdims=True), (1, 4, 1, 1, 16)))


def test_an_odd_number_of_sums_and_weights() -> None:
    """Tap offsets stood behind 85 sums and 4 weights, and so on an odd multiple of 4 bytes."""
    x, weight = np.ones((1, 1, 6, 18), np.float32), np.ones((1, 1, 2, 2), np.float32)
    assert np.array_equal(ck.conv2d(x, weight), np.full((1, 1, 5, 17), 4, np.float32))


@pytest.mark.skipif("avx2" not in load("cpp").isas, reason="this CPU lacks avx2")
@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_a_forced_algorithm_under_a_ceiling_serves_its_companions(isa: str) -> None:
    x, weight = np.ones((1, 1, 8, 40), np.float32), np.ones((1, 1, 3, 3), np.float32)
    with ck.using(kernel="cpp.rows", isa=isa):
        ck.conv2d_backward(np.ones((1, 1, 6, 38), np.float32), x, weight)
        assert all(f".{isa}." in row for row in plan.last_rows())


def test_explaining_runs_nothing_whatever_happens_inside() -> None:
    x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    ck.conv2d(x, weight)
    with plan.explaining() as found, ck.using(num_threads=1):
        ck.conv2d(x, weight)
    assert len(found) == 1
    assert ck.conv2d(x, weight).shape == (1, 1, 2, 2)


def test_a_signal_handler_may_call_a_kernel() -> None:
    """It used the workspace of the call that it interrupted."""
    output_of(
        """
        import signal
        import numpy as np
        import cnnkern as ck

        x = np.random.default_rng(0).integers(-4, 5, (8, 64, 112, 112)).astype(np.float32)
        weight = np.random.default_rng(1).integers(-4, 5, (64, 64, 3, 3)).astype(np.float32)
        small, large = x[:1, :4, :8, :8].copy(), x[:2]
        calls = []

        def handler(number, frame):
            calls.append(ck.conv2d(small, weight[:, :4].copy()))
            calls.append(ck.conv2d(large, weight, padding=1))

        signal.signal(signal.SIGALRM, handler)
        with ck.using(num_threads=1):
            expected = ck.conv2d(x, weight, padding=1)
            for _ in range(4):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                assert np.array_equal(ck.conv2d(x, weight, padding=1), expected)
                signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )


def test_a_fork_beside_a_long_call_does_not_hang() -> None:
    """The forking thread held the GIL and waited for the job, whose caller waited for the GIL."""
    output_of(
        """
        import os, threading, time
        import numpy as np
        import cnnkern as ck

        x, weight = np.ones((16, 64, 112, 112), np.float32), np.ones((64, 64, 3, 3), np.float32)
        small = np.ones((2, 8, 16, 16), np.float32)
        ck.set_num_threads(2)
        stop = False

        def compute():
            while not stop:
                ck.conv2d(x, weight, padding=1)
                with ck.using(precision="strict"):
                    ck.conv2d(small, weight[:, :8].copy())

        thread = threading.Thread(target=compute)
        thread.start()
        for _ in range(8):
            time.sleep(0.13)
            pid = os.fork()
            if pid == 0:
                ck.conv2d(small, weight[:, :8].copy())
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop = True
        thread.join()
        """
    )
