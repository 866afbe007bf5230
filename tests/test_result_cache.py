"""Results that die give their memory to the next ones: how much is kept, and that no two live arrays share any."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import config
from matrix import NATIVE, needs_native

pytestmark = needs_native

if NATIVE:
    from cnnkern.backends.cpp import core

MB = 1 << 20


@pytest.fixture(autouse=True)
def own_limit() -> Iterator[None]:
    gc.collect()
    core.set_result_cache(0)
    core.set_result_cache(8 * MB)
    yield
    core.set_result_cache(config.result_cache_mb << 20)


def result(megabytes: float, fill: float = 1.0) -> np.ndarray:
    return ck.relu(np.full(int(megabytes * MB) // 4, fill, np.float32))


def test_a_dead_result_is_the_next_ones_memory() -> None:
    first = result(2)
    address = first.ctypes.data
    assert core.result_cache_bytes() == 0
    del first
    assert core.result_cache_bytes() == 2 * MB
    second = result(2, 3.0)
    assert second.ctypes.data == address
    assert core.result_cache_bytes() == 0
    assert (second == 3).all()


def test_small_results_are_not_kept() -> None:
    small = result(0.5)
    del small
    assert core.result_cache_bytes() == 0


def test_the_limit_holds_and_the_oldest_go_first() -> None:
    arrays = [result(3) for _ in range(4)]
    addresses = [a.ctypes.data for a in arrays]
    while arrays:
        del arrays[0]
        assert core.result_cache_bytes() <= 8 * MB
    assert core.result_cache_bytes() == 6 * MB
    assert result(3).ctypes.data in addresses[2:]
    core.set_result_cache(0)
    assert core.result_cache_bytes() == 0


def test_a_view_keeps_its_memory() -> None:
    whole = result(2, 5.0)
    part = whole[10:20]
    del whole
    other = result(2, 7.0)
    assert (part == 5).all()
    assert (other == 7).all()


def test_sizes_near_each_other_share_a_class_but_wide_ones_do_not() -> None:
    first = result(2.1)
    address = first.ctypes.data
    del first
    assert result(4).ctypes.data != address
    assert result(2.12).ctypes.data == address


def test_threads_never_hold_the_same_memory() -> None:
    failures = []

    def work(number: int) -> None:
        for _ in range(60):
            mine = [result(1 + number % 2, float(number)) for _ in range(3)]
            if not all((a == number).all() for a in mine):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert core.result_cache_bytes() <= 8 * MB
