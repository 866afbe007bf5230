"""The library inside a process: forks, Ctrl-C, memory over many shapes. Each in a process of its own."""

from __future__ import annotations

import os

import pytest

from matrix import needs_native
from scripts import output_of

pytestmark = needs_native

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")

_COMPUTE = """
import os, signal, sys, threading, time
import numpy as np
import cnnkern as ck

rng = np.random.default_rng(3)
x = rng.standard_normal((2, 16, 40, 40)).astype(np.float32)
w = rng.standard_normal((32, 16, 3, 3)).astype(np.float32)

def compute():
    return ck.conv2d(x, w, None, 1, 1).tobytes() + ck.max_pool2d(x, 3, 1, 1).tobytes()

def child_computes():
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # a child that hangs kills itself
        os._exit(0 if compute() == expected else 1)
    return os.waitpid(pid, 0)[1]

workers = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
"""

_FORK_AFTER_USE = (
    _COMPUTE
    + """
with ck.using(num_threads=3):
    before = workers()
    expected = compute()
    assert workers() == before + 2 or not before, "the pool was to be in use"
    for _ in range(5):
        assert child_computes() == 0
    assert compute() == expected
print("done")
"""
)

_FORK_DURING_USE = (
    _COMPUTE
    + """
with ck.using(num_threads=2):
    expected = compute()
going, calls = True, [0, 0]

def keep_busy(number):
    with ck.using(num_threads=2):
        while going:
            assert compute() == expected
            calls[number] += 1

threads = [threading.Thread(target=keep_busy, args=(i,), daemon=True) for i in range(2)]
for thread in threads:
    thread.start()
while min(calls) == 0:
    time.sleep(0.001)
with ck.using(num_threads=2):
    for _ in range(20):
        assert child_computes() == 0
seen = list(calls)
while min(a - b for a, b in zip(calls, seen)) == 0:  # the parent's threads go on
    time.sleep(0.001)
going = False
for thread in threads:
    thread.join(60)
print("done")
"""
)

_MULTIPROCESSING = (
    _COMPUTE
    + """
import multiprocessing

def work(i):
    return ck.get_num_threads(), compute() == expected

expected = compute()
with multiprocessing.get_context("fork").Pool(2) as pool:
    answers = pool.map(work, range(8))
assert answers == [(1, True)] * 8, answers  # a child of multiprocessing has one thread if nobody says otherwise
print("done")
"""
)


@needs_fork
@pytest.mark.parametrize("script", [_FORK_AFTER_USE, _FORK_DURING_USE, _MULTIPROCESSING], ids=["after", "during", "mp"])
def test_a_forked_child_computes_and_ends(script: str) -> None:
    assert output_of(script) == "done\n"


_INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np
import cnnkern as ck

# Each a minute of work with baseline instructions on two cores, and hardly any memory: 2,000 GFLOP on zeros that nobody
# has written, 4,000,000,000 powers of one number.
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started with SIGINT ignored
x = np.zeros((64, 256, 56, 56), np.float32)
w = np.zeros((256, 256, 9, 9), np.float32)
many = np.broadcast_to(np.float32(2), (64, 64, 1000, 1000))
call = {
    "forward": lambda: ck.conv2d(x, w, None, 1, 4),
    "grad_x": lambda: ck.conv2d_backward(x, x, w, 1, 4, output_mask=(True, False, False)),
    "grad_weight": lambda: ck.conv2d_backward(x, x, w, 1, 4, output_mask=(False, True, False)),
    "lp_pool": lambda: ck.lp_pool2d(many, 3, 100),
}[sys.argv[1]]
with ck.using(isa="scalar", num_threads=int(sys.argv[2])):
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        print(time.monotonic() - start)
    small = ck.conv2d(np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32))
    assert (small == 9).all(), "the next call is wrong"
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["forward", "grad_x", "grad_weight", "lp_pool"])
def test_an_interrupt_ends_a_long_call(what: str, threads: int) -> None:
    """KeyboardInterrupt arrives long before the work would be done, and the next call works."""
    output = output_of(_INTERRUPTED, what, str(threads))
    assert output, "the call ran to its end"
    assert float(output) < 15


_MANY_SHAPES = """
import sys
import numpy as np
import cnnkern as ck
from cnnkern import _cnnkern_core as core

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

rng = np.random.default_rng(4)
sizes = {}
for number in range(10_000):
    n, c, k, h, w = (int(i) for i in rng.integers(1, (4, 9, 9, 12, 12)))
    x = rng.standard_normal((n, c, h, w)).astype(np.float32)
    kind = number % 5
    if kind == 0:
        ck.conv2d(x, np.ones((k, c, 3, 3), np.float32), None, 1, 1)
    elif kind == 1:
        ck.conv2d_backward(np.ones((n, k, h, w), np.float32), x, np.ones((k, c, 1, 1), np.float32))
    elif kind == 2:
        ck.max_pool2d(x, 3, int(rng.integers(1, 4)), 1, return_indices=True)
    elif kind == 3:
        ck.batch_norm(x, np.zeros(c, np.float32), np.ones(c, np.float32))
    else:
        ck.relu(x)
    if number in (5_000, 9_999):
        sizes[number] = resident()
assert 0 < core.cache_size() <= 2048, core.cache_size()
print(sizes[9_999] - sizes[5_000])
"""

_MANY_RESULTS = """
import numpy as np
import cnnkern as ck

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

x, w = np.ones((1, 16, 256, 256), np.float32), np.ones((16, 16, 3, 3), np.float32)
plan = ck.plan_conv2d(w, x_shape=x.shape, padding=1)
before = 0
for number in range(120):
    ck.conv2d(x, w, None, 1, 1)
    ck.conv2d_backward(x, x, w, 1, 1)
    ck.max_pool2d(x, 2, return_indices=True)
    plan(x)
    before = before or (resident() if number == 20 else 0)
print(resident() - before)
"""

needs_proc = pytest.mark.skipif(not os.path.isfile("/proc/self/status"), reason="needs /proc to see the memory in use")


@needs_proc
def test_memory_and_the_cache_stay_bounded_over_ten_thousand_shapes() -> None:
    """After 5,000 shapes every cache is full; 5,000 more would need 5 MB if each left a kilobyte behind."""
    assert int(output_of(_MANY_SHAPES)) < 4096


@needs_proc
def test_results_are_given_back() -> None:
    """100 rounds of 16 MB of results leave less than one round behind."""
    assert int(output_of(_MANY_RESULTS)) < 12_000
