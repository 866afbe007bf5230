"""``using``, ``set_num_threads`` and the environment: which wins, in which thread, and for how long."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import config, plan
from matrix import AVAILABLE, COMPLETE, needs_native
from scripts import output_of, run_script

X = np.ones((1, 4, 6, 6), np.float32)
W = np.ones((8, 4, 3, 3), np.float32)


def ran() -> str:
    ck.conv2d(X, W)
    return plan.last_rows()[0]


# ---- using


def test_inner_blocks_add_to_outer_ones_and_end_with_them() -> None:
    before = config.current()
    with ck.using(backend="reference", precision="fast") as outer:
        assert (outer.backend, outer.precision) == ("reference", "fast")
        with ck.using(precision="strict", num_threads=3):
            assert config.current().backend == "reference"
            assert (config.current().precision, ck.get_num_threads()) == ("strict", 3)
            assert ran() == "conv.reference.direct.f32"
        assert config.current() == outer
    assert config.current() == before


def test_an_exception_ends_a_block_too() -> None:
    before = config.current()
    with pytest.raises(KeyError), ck.using(backend="reference"):
        raise KeyError
    assert config.current() == before


def test_one_block_object_serves_again_and_inside_itself() -> None:
    before = config.current()
    block = ck.using(backend="reference")
    for _ in range(2):
        with block, block:
            assert config.current().backend == "reference"
        assert config.current() == before


@needs_native
def test_blocks_of_other_threads_do_not_matter() -> None:
    """Two threads inside blocks of their own at the same time, each calling what the other has just called."""
    barrier = threading.Barrier(2)
    seen: dict[str, set[str]] = {}

    def work(isa: str) -> None:
        with ck.using(backend="cpp", isa=isa, num_threads=1 + AVAILABLE.index(isa)):
            barrier.wait(30)
            seen[isa] = {f"{ran()} {ck.get_num_threads()}" for _ in range(200)}

    isas = [COMPLETE[0], COMPLETE[-1]]
    threads = [threading.Thread(target=work, args=(isa,)) for isa in dict.fromkeys(isas)]
    if len(threads) == 1:
        threads.append(threading.Thread(target=barrier.wait, args=(30,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {isa: len(names) for isa, names in seen.items()} == dict.fromkeys(isas, 1)
    for isa, names in seen.items():
        (name,) = names
        assert f".{isa}." in name and name.endswith(f" {1 + AVAILABLE.index(isa)}")


def test_a_new_thread_begins_with_the_settings_of_the_process() -> None:
    found = []
    with ck.using(backend="reference"):
        thread = threading.Thread(target=lambda: found.append(config.current()))
        thread.start()
        thread.join(30)
    assert found == [config.current()]


def test_an_argument_wins_over_the_precision_of_the_block() -> None:
    with ck.using(precision="fast"):
        assert ck.explain("conv2d", X, W)[0].request.precision == "fast"
        assert ck.explain("conv2d", X, W, precision="strict")[0].request.precision == "strict"
    with pytest.raises(ck.ArgumentError, match="precision must be"):
        ck.conv2d(X, W, precision="exact")


# ---- number of threads

_THREADS = """
import cnnkern as ck
found = [ck.get_num_threads()]
ck.set_num_threads(5)
found.append(ck.get_num_threads())
for n in (1, 3, 4):
    with ck.using(num_threads=n):
        found.append(ck.get_num_threads())
        with ck.using(precision="strict"):
            assert ck.get_num_threads() == n
with ck.using(precision="strict"):
    found.append(ck.get_num_threads())
print(*found)
"""


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"CNNKERN_NUM_THREADS": "3"}, "3"),
        ({"CNNKERN_NUM_THREADS": "3", "OMP_NUM_THREADS": "7"}, "3"),
        ({"OMP_NUM_THREADS": "7"}, "7"),
        ({"OMP_NUM_THREADS": "no number"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
    ids=str,
)
def test_using_wins_over_set_num_threads_over_the_environment(environment: dict[str, str], first: str | None) -> None:
    first = first or str(config.available_cpus())
    assert output_of(_THREADS, environment=environment).split() == [first, "5", "1", "3", "4", "5"]


_USED = """
import os, threading, time
import numpy as np, cnnkern as ck
x, w = np.ones((4, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
workers = lambda: len(os.listdir("/proc/self/task"))

def wait_for(count):  # a thread that has been joined leaves /proc a little later
    for _ in range(500):
        if workers() == count:
            break
        time.sleep(0.01)
    return workers()
"""

_SET_REACHES_OTHER_THREADS = (
    _USED
    + """
go, done = threading.Event(), threading.Event()

def work():
    for _ in range(2):
        ck.conv2d(x, w)  # the second call is answered by the native cache
    done.set()
    go.wait(60)
    ck.conv2d(x, w)

ck.set_num_threads(1)
thread = threading.Thread(target=work)
thread.start()
done.wait(60)
before = workers() - 1  # without the thread itself
ck.set_num_threads(4)
go.set()
thread.join(60)
print(wait_for(before + 3) - before)
"""
)

_PLANS_ALONE = (
    _USED
    + """
ck.set_num_threads(3)
plan = ck.plan_conv2d(w, x_shape=x.shape, padding=1)
before = workers()
plan(x)
made = workers() - before

def work():
    with ck.using(num_threads=5):
        plan(x)

thread = threading.Thread(target=work)
thread.start()
thread.join(60)
print(made, wait_for(before + 4) - before)
"""
)


@needs_native
@pytest.mark.parametrize(
    ("script", "workers"), [(_SET_REACHES_OTHER_THREADS, "3"), (_PLANS_ALONE, "2 4")], ids=["set_num_threads", "plans"]
)
def test_calls_use_as_many_threads_as_were_set(script: str, workers: str) -> None:
    """Seen by the workers that the pool makes: for set_num_threads in a thread that computed before, and for a process
    and a thread that only run plans."""
    assert output_of(script).strip() == workers


# ---- the environment

_WHAT_RUNS = """
import numpy as np, cnnkern as ck
from cnnkern import plan
x, w = np.ones((1, 4, 6, 6), np.float32), np.ones((8, 4, 3, 3), np.float32)
for _ in range(2):
    ck.conv2d(x, w)
print(plan.last_rows()[0], ck.explain("conv2d", x, w)[0].request.precision)
"""


@needs_native
def test_the_environment_chooses_the_backend_and_the_precision() -> None:
    environment = {"CNNKERN_BACKEND": "reference", "CNNKERN_PRECISION": "strict"}
    assert output_of(_WHAT_RUNS, environment=environment) == "conv.reference.direct.f32 strict\n"


@needs_native
@pytest.mark.parametrize("isa", COMPLETE)
def test_the_environment_sets_a_ceiling_of_instruction_sets(isa: str) -> None:
    assert f".{isa}.f32 f32" in output_of(_WHAT_RUNS, environment={"CNNKERN_ISA": isa})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("CNNKERN_BACKEND", "cuda", "CNNKERN_BACKEND must be one of cpp, reference, got 'cuda'"),
        ("CNNKERN_ISA", "sse9", "CNNKERN_ISA must be one of scalar, avx2, avx512, avx512vnni, amx, neon, got 'sse9'"),
        ("CNNKERN_PRECISION", "double", "CNNKERN_PRECISION must be one of strict, f32, fast, bf16, got 'double'"),
        ("CNNKERN_NUM_THREADS", "many", "CNNKERN_NUM_THREADS must be an int from 1 to 1024, got 'many'"),
        ("CNNKERN_NUM_THREADS", "0", "CNNKERN_NUM_THREADS must be an int from 1 to 1024, got '0'"),
        ("CNNKERN_SPIN_US", "long", "CNNKERN_SPIN_US must be an int from 0 to 1000000, got 'long'"),
        ("CNNKERN_STRICT", "yes", "CNNKERN_STRICT must be an int from 0 to 1, got 'yes'"),
    ],
)
def test_a_value_in_the_environment_that_is_no_choice_is_an_error(name: str, value: str, sentence: str) -> None:
    status, _, errors = run_script(_WHAT_RUNS, environment={name: value})
    assert status == 1
    assert "ArgumentError" in errors and sentence in errors


@needs_native
@pytest.mark.skipif("neon" in AVAILABLE, reason="this CPU lacks avx2")
def test_an_instruction_set_in_the_environment_that_is_not_here_is_an_error() -> None:
    status, _, errors = run_script(_WHAT_RUNS, environment={"CNNKERN_ISA": "neon"})
    assert status == 1 and "isa 'neon' is not available" in errors


def test_an_empty_variable_is_none() -> None:
    names = ("CNNKERN_BACKEND", "CNNKERN_ISA", "CNNKERN_PRECISION", "CNNKERN_NUM_THREADS", "CNNKERN_STRICT")
    assert output_of(_WHAT_RUNS, environment=dict.fromkeys(names, "")).endswith(" f32\n")
