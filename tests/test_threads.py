"""Same bits: for any number of threads, for any batch under "strict", across instruction sets with fused multiply-add.

The samples are large enough that threads share them; a test of its own sees the threads at work.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

import cnnkern as ck
from cnnkern.config import using
from cnnkern.spec import OPS, Kernel, Request
from matrix import FUSED, NATIVE, Case, each_case, needs_native
from oracle import allowed_of, differs, expectation, run_row, same_bits, says, serves
from samples import NORMAL, large_requests, sample_requests, with_columns
from scripts import output_of

pytestmark = needs_native

THREADS = (1, 2, 5)
CONV_OPS = ("conv", "conv_grad_input", "conv_grad_weight")


def threaded(row: Kernel, request: Request, inputs: tuple, threads: int) -> tuple:
    with using(num_threads=threads):
        return run_row(row, request, inputs)


def served(case: Case, precision: str | None = None) -> Iterator[Request]:
    """Large samples, and every seventh small one: work for one thread must not change either."""
    for sample in (*large_requests(case.row.op), *sample_requests(case.row.op)[::7]):
        request = with_columns(sample, case.dtype, case.layout, precision or case.precision)
        if serves(case.row, request):
            yield request


@each_case(native=True)
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    """And what one thread gives is right: large problems are cut where small ones are not."""
    ran = 0
    for request in served(case):
        inputs, expected, allowed = expectation(request, NORMAL)
        allowed = allowed_of(case.row, request, inputs, expected, allowed)
        runs = [threaded(case.row, request, inputs, threads) for threads in THREADS]
        for got, want, bound in zip(runs[0], expected, allowed, strict=True):
            difference = differs(got, want, bound)
            assert difference is None, says(case.row, request, f"1 thread: {difference}")
        for threads, run in zip(THREADS[1:], runs[1:]):
            difference = same_bits(runs[0], run)
            assert difference is None, says(case.row, request, f"1 and {threads} threads: {difference}")
        ran += 1
    assert ran, f"{case} served none of the samples"


_WHICH_ARE_SHARED = """
import os
from cnnkern.config import using
from matrix import NATIVE
from oracle import run_row, serves
from samples import NORMAL, large_requests, sample_inputs

threads = lambda: len(os.listdir("/proc/self/task"))
for row in NATIVE:
    if row.isa != "scalar":
        continue
    for request in large_requests(row.op):
        if not serves(row, request):
            continue
        workers = threads() - 1
        with using(num_threads=workers + 2):
            run_row(row, request, sample_inputs(request, NORMAL))
        if threads() > workers + 1:
            break
    else:
        print(row.op, row.name)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to count threads")
def test_large_samples_are_shared_by_threads() -> None:
    """At least one large sample of each row is cut into chunks: the pool makes a worker only for a job that has two.

    With one thread more than there are in each call, so that a new worker shows that this call was cut.
    """
    assert output_of(_WHICH_ARE_SHARED) == "", "rows that never share their samples"


def _image(array: np.ndarray | None, i: int, operand_is_map: bool) -> np.ndarray | None:
    return array if array is None or not operand_is_map else array[i : i + 1]


@each_case("conv", "conv_grad_input", native=True, strict=True)
def test_strict_gives_an_image_the_same_bits_in_any_batch(case: Case) -> None:
    """conv(x)[i] equals conv(x[i:i+1]) for every image, with another number of threads at that."""
    ran = 0
    spec = OPS[case.row.op]
    for request in served(case, "strict"):
        g = request.geometry
        if g.batch < 2:
            g = replace(g, batch=3)
        request, single = replace(request, geometry=g), replace(request, geometry=replace(g, batch=1))
        if not serves(case.row, request) or not serves(case.row, single):
            continue
        inputs, _, _ = expectation(replace(request, precision="f32"), NORMAL)
        (whole,) = threaded(case.row, request, inputs, 2)
        for i in range(g.batch):
            parts = tuple(_image(a, i, o.map) for a, o in zip(inputs, spec.inputs, strict=True))
            (image,) = threaded(case.row, single, parts, 1)
            difference = same_bits((whole[i : i + 1].copy(),), (image,))
            assert difference is None, says(case.row, request, f"image {i} alone: {difference}")
        ran += 1
    assert ran, f"{case} served none of the samples"


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU lacks avx512 or avx2: nothing to compare")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["f32", "f64", "f16"])
@pytest.mark.parametrize("op", CONV_OPS)
def test_strict_gives_the_same_bits_on_every_fused_instruction_set(op: str, dtype: str, layout: str) -> None:
    """Rows of all algorithms: which of them a problem is given to may depend on the vector length."""
    compared = 0
    for sample in (*large_requests(op), *sample_requests(op)):
        request = with_columns(sample, dtype, layout, "strict")
        inputs, _, _ = expectation(replace(request, precision="f32"), NORMAL)
        rows = [row for row in NATIVE if row.op == op and row.isa in FUSED and serves(row, request)]
        runs = [(row, run_row(row, request, inputs)) for row in rows]
        for other, bits in runs[1:]:
            difference = same_bits(runs[0][1], bits)
            assert difference is None, says(rows[0], request, f"{other.name} gives other bits: {difference}")
            compared += 1
    assert compared, f"no problem of {op} was served by two instruction sets"


def _choices() -> list[tuple[str, Callable[[], object]]]:
    rng = np.random.default_rng(5)

    def array(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    x, w, gy, first = array(4, 20, 15, 14), array(33, 20, 3, 3), array(4, 33, 15, 14), array(33, 3, 7, 7)
    photo, g_photo = array(2, 3, 33, 35), array(2, 33, 17, 18)
    last = {"precision": "strict"}
    return [
        ("conv2d", lambda: ck.conv2d(x, w, None, 1, 1, **last)),
        ("conv2d of three channels", lambda: ck.conv2d(photo, first, None, 2, 3, **last)),
        ("conv2d_backward", lambda: ck.conv2d_backward(gy, x, w, 1, 1, **last)),
        ("conv2d_backward of three channels", lambda: ck.conv2d_backward(g_photo, photo, first, 2, 3, **last)),
        ("conv_transpose2d", lambda: ck.conv_transpose2d(gy, w, None, 2, 1, **last)),
    ]


@pytest.mark.skipif(len(FUSED) < 2, reason="this CPU lacks avx512 or avx2: nothing to compare")
@pytest.mark.parametrize(("name", "call"), _choices(), ids=[name for name, _ in _choices()])
def test_strict_chooses_rows_that_agree_across_instruction_sets(name: str, call: Callable) -> None:
    """With free choice of the row below each ceiling."""
    runs = []
    for isa in FUSED:
        with using(backend="cpp", isa=isa):
            result = call()
        runs.append(result if isinstance(result, tuple) else (result,))
    for isa, run in zip(FUSED[1:], runs[1:]):
        assert same_bits(runs[0], run) is None, f"{name}: {FUSED[0]} and {isa}: {same_bits(runs[0], run)}"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(3, 3, 40, 37, 20), (5, 24, 9, 8, 35), (2, 64, 7, 7, 64)], ids=str)
def test_strict_public_calls_do_not_see_the_batch(shape: tuple[int, ...], layout: str) -> None:
    """With free choice of the row: forward, input gradient, and a transposed convolution."""
    batch, channels, height, width, filters = shape
    rng = np.random.default_rng(7)

    def maps(c: int) -> np.ndarray:
        array = rng.standard_normal((batch, c, height, width)).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(array, 1, -1)) if layout == "NHWC" else array

    x, gy = maps(channels), maps(filters)
    w = rng.standard_normal((filters, channels, 3, 3)).astype(np.float32)
    how = {"layout": layout, "precision": "strict"}

    def all_three(x: np.ndarray, gy: np.ndarray) -> tuple[np.ndarray, ...]:
        grad, _, _ = ck.conv2d_backward(gy, x, w, 1, 1, output_mask=(True, False, False), **how)
        return ck.conv2d(x, w, None, 1, 1, **how), grad, ck.conv_transpose2d(gy, w, None, 1, 1, **how)

    whole = all_three(x, gy)
    for i in range(batch):
        alone = all_three(x[i : i + 1], gy[i : i + 1])
        difference = same_bits(tuple(a[i : i + 1].copy() for a in whole), alone)
        assert difference is None, f"image {i}: {difference}"


def _mixed_calls(rng: np.random.Generator) -> list[Callable[[], tuple]]:
    """Calls of several ops and shapes, some of them shared by threads."""
    calls: list[Callable[[], tuple]] = []
    for channels, size in ((3, 9), (16, 31), (40, 17)):
        x = rng.standard_normal((2, channels, size, size)).astype(np.float32)
        w = rng.standard_normal((24, channels, 3, 3)).astype(np.float32)
        gy = rng.standard_normal((2, 24, size, size)).astype(np.float32)
        calls += [
            lambda x=x, w=w: (ck.conv2d(x, w, None, 1, 1),),
            lambda x=x, w=w, gy=gy: ck.conv2d_backward(gy, x, w, 1, 1),
            lambda x=x: ck.max_pool2d(x, 3, 2, 1, return_indices=True),
            lambda x=x: (ck.local_response_norm(x, 5),),
            lambda x=x: (ck.relu(x),),
            lambda x=x: ck.batch_norm(x, None, None, training=True, return_stats=True),
        ]
    return calls


def test_eight_python_threads_at_once_get_what_one_gets() -> None:
    """Each runs every call many times, in an order of its own, with 1, 2 or 5 native threads."""
    calls = _mixed_calls(np.random.default_rng(6))
    expected = [call() for call in calls]
    barrier = threading.Barrier(8)
    wrong: list[str] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        barrier.wait(60)
        with using(num_threads=THREADS[number % 3]):
            for _ in range(4):
                for i in rng.permutation(len(calls)):
                    difference = same_bits(calls[i](), expected[i])
                    if difference is not None:
                        wrong.append(f"thread {number}, call {i}: {difference}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert barrier.n_waiting == 0 and not barrier.broken
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this platform does not list threads under /proc")
def test_workers_may_run_anywhere_again_after_a_call() -> None:
    """A caller keeps its core from the workers it wakes, only while it wakes them."""
    allowed = os.sched_getaffinity(0)
    x = np.ones((1, 64, 56, 56), np.float32)
    w = np.ones((64, 64, 3, 3), np.float32)
    with ck.using(num_threads=3):
        for _ in range(5):
            ck.conv2d(x, w, padding=1)
            time.sleep(0.002)  # long enough to fall asleep

    def restricted() -> list[str]:
        threads = os.listdir("/proc/self/task")
        return [t for t in threads if os.sched_getaffinity(int(t)) != allowed]

    deadline = time.monotonic() + 5
    while restricted() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert restricted() == []
