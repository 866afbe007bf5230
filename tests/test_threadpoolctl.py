"""threadpoolctl sees and limits the native pool."""

from __future__ import annotations

import numpy as np
import threadpoolctl

import cnnkern as ck
import cnnkern.interop.threadpoolctl


def test_limits_are_seen_and_restored():
    x = np.ones((8, 16, 32, 32), np.float32)
    weight = np.ones((16, 16, 3, 3), np.float32)
    before = ck.get_num_threads()
    ck.set_num_threads(4)
    try:
        expected = ck.conv2d(x, weight)
        assert _threads() == 4
        with threadpoolctl.threadpool_limits(1, user_api="cnnkern"):
            assert _threads() == 1
            np.testing.assert_array_equal(ck.conv2d(x, weight), expected)
        assert _threads() == 4
        with threadpoolctl.threadpool_limits(1, user_api="cnnkern"):
            with ck.using(num_threads=2):  # another thread's block, say
                ck.conv2d(x, weight)
            assert _threads() == 1
    finally:
        ck.set_num_threads(before)


def _threads() -> int:
    (info,) = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "cnnkern"]
    return info["num_threads"]
