"""Tuning: rows are timed at the first call and remembered.

Where a time decides it is made up, so that nothing depends on how fast or how busy the machine is; tests of the race
itself look at which rows took part.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

import cnnkern as ck
from choosing import CASE, THIRTY, fake, file_of, forget, request, warnings
from cnnkern import config, dispatch, plan, roofline, tuning
from cnnkern.spec import OPS, Request
from matrix import AVAILABLE, COMPLETE, needs_native
from oracle import same_bits
from samples import large_requests
from scripts import output_of, run_script

pytestmark = pytest.mark.usefixtures("plain_settings", "cache_folder")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Made-up seconds by row name, in place of a race; 1.0 where nothing is said."""
    said: dict[str, float] = {}
    monkeypatch.setattr(tuning, "_race", lambda request, rows: {row.name: said.get(row.name, 1.0) for row in rows})
    return said


@needs_native
def test_tuning_is_off_unless_asked_for(races: list, cache_folder: Path) -> None:
    dispatch.choose(request())
    assert races == [] and not cache_folder.exists()


@needs_native
def test_the_first_call_measures_and_later_ones_remember(races: list, cache_folder: Path) -> None:
    x, weight = np.ones((1, 16, 9, 9), np.float32), np.ones((32, 16, 3, 3), np.float32)
    plain = ck.conv2d(x, weight, padding=1)
    with ck.using(tune=True):
        assert "measured" not in str(ck.explain(CASE)) and races == []  # explaining runs nothing
        for _ in range(3):
            assert np.array_equal(ck.conv2d(x, weight, padding=1), plain)
        assert len(races) == 1
        (ran,) = plan.last_rows()
        (explanation,) = ck.explain(CASE)
        assert explanation.chosen is not None and ran == f"conv.{explanation.chosen.name}.f32"
        first = explanation.verdicts[0]
        assert first.measured is not None
        assert first.sentence == f"chosen, tuned: {dispatch._duration(first.measured)} measured"
        forget()  # as in another process
        dispatch.choose(request())
        assert len(races) == 1 and str(ck.explain(CASE)) == str(explanation)
    assert "measured" not in str(ck.explain(CASE))
    (path,) = cache_folder.iterdir()
    assert list(json.loads(path.read_text())["content"]) == [CASE.replace("kh3", "oh9kh3")]


@needs_native
def test_every_row_that_can_serve_competes(races: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "HOPELESS", math.inf)
    case = "conv2d:mb1ic4ih40oc3kh3ph1"
    with ck.using(tune=True):
        dispatch.choose(request(case))
    (raced,) = races
    able = [v.kernel.name for v in ck.explain(case)[0].verdicts if v.kernel and v.seconds is not None]
    assert sorted(raced[1]) == sorted(able) and len(able) >= 2 * len(AVAILABLE)


@needs_native
def test_rows_without_hope_are_not_even_run(table: Callable[..., None], times: dict[str, float]) -> None:
    table(*(fake(f"row{i}", "avx2", lambda r, i=i: 1.0 * i) for i in (1, 4, 5)))
    times.update({"reference.row1.avx2": 3.0, "reference.row4.avx2": 2.0, "reference.row5.avx2": 1.0})
    with ck.using(tune=True):
        assert dispatch.choose(request()).algorithm == "row4"


def test_a_row_must_be_faster_by_more_than_noise(table: Callable[..., None], times: dict[str, float]) -> None:
    for time, winner in ((0.99, "direct"), (0.9, "winograd")):
        table(fake("direct", "avx2", lambda r: 1.0), fake("winograd", "avx2", lambda r: 2.0))
        times["reference.winograd.avx2"] = time
        with ck.using(tune=True):
            assert dispatch.choose(request(f"conv2d:mb1ic{int(time * 100)}ih9oc32kh3")).algorithm == winner


@needs_native
def test_remembered_programs_of_tuned_and_untuned_calls_are_two(times: dict[str, float]) -> None:
    """The same call in turns, with and without tuning, answered by the native cache from the second round on."""
    slower = [name for name in AVAILABLE if name != "scalar"][:1] or ["scalar"]
    times.update({f"cpp.direct.{slower[0]}": 0.5})
    x = np.ones((1, 2, 11, 13), np.float32)
    ran = []
    for _ in range(3):
        for tune in (False, True):
            with ck.using(tune=tune):
                ck.relu(x)
                ran.append(plan.last_rows()[0].split(".")[3])
    assert ran == [COMPLETE[-1], slower[0]] * 3


@needs_native
def test_a_forced_row_is_neither_measured_nor_replaced(races: list) -> None:
    for isa in COMPLETE:
        with ck.using(tune=True, kernel=f"cpp.direct.{isa}"):
            assert dispatch.choose(request()).isa == isa
    with ck.using(tune=True, backend="reference"):
        assert dispatch.choose(request()).backend == "reference"
    assert races == []


@needs_native
def test_a_ceiling_holds_for_remembered_winners(times: dict[str, float]) -> None:
    with ck.using(tune=True):
        best = dispatch.choose(request()).isa
        with ck.using(isa=AVAILABLE[0]):
            assert dispatch.choose(request()).isa == AVAILABLE[0]
        forget()
        assert dispatch.choose(request()).isa == best


def test_the_level_of_precision_stays(table: Callable[..., None], races: list) -> None:
    """A row of a looser level would win any race; it is not let in. Strict also keeps out rows of other bits."""
    table(
        fake("direct", "avx2", None),
        fake("rows", "avx2", None),
        fake("direct", "scalar", None),
        fake("split3", "avx2", None, precisions=("fast", "bf16")),
    )
    expected = {
        "strict": {"direct.avx2", "rows.avx2"},
        "f32": {"direct.avx2", "rows.avx2", "direct.scalar"},
        "fast": {"direct.avx2", "rows.avx2", "direct.scalar", "split3.avx2"},
    }
    with ck.using(tune=True):
        for precision, names in expected.items():
            case = f"conv2d:mb3ic2ih5oc3kh3@precision={precision}"
            chosen = dispatch.choose(request(case))
            raced, rows = races[-1]
            assert {name.removeprefix("reference.") for name in rows} == names
            assert raced.geometry.batch == (1 if precision == "strict" else 3)
            assert precision in chosen.precisions
    assert len(races) == 3


@needs_native
def test_races_run_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, real = [], tuning._seconds

    def seconds(run: Callable[[], object], repeats: int) -> float:
        threads.append(ck.get_num_threads())
        return real(run, repeats)

    monkeypatch.setattr(tuning, "_seconds", seconds)
    with ck.using(tune=True, num_threads=3):
        dispatch.choose(request())
        assert ck.get_num_threads() == 3
    assert threads and set(threads) == {1}


@pytest.mark.parametrize("op", OPS)
def test_every_op_can_be_tuned(op: str, races: list) -> None:
    """Made-up operands are legal for every op: indices, labels and masks too."""
    asked = large_requests(op)[0]
    with ck.using(tune=True):
        chosen = dispatch.choose(asked)
        verdicts = dispatch.explain_request(asked).verdicts
    (first, *_) = (v for v in verdicts if v.kernel == chosen)
    rivals = [v for v in verdicts if v.kernel and v.kernel.backend == chosen.backend and "needs" not in v.sentence]
    assert len(races) == (len(rivals) > 1)
    assert (first.measured is not None) == bool(races)


@needs_native
@pytest.mark.parametrize(
    "case", ["max_pool2d_grad:mb1ic2ih1kh1", "max_unpool1d:mb1ic1iw1ow1", "softmax_cross_entropy:mb3ic1"]
)
def test_made_up_indices_and_labels_exist(case: str, races: list) -> None:
    with ck.using(tune=True):
        dispatch.choose(request(case))
    assert len(races) == 1


@needs_native
@pytest.mark.parametrize("extra", ["", "@bias=1@act=relu@res=1@layout=NHWC"])
def test_a_plan_is_tuned_with_packed_weights(extra: str, races: list, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnkern.backends import cpp

    packed, real = [], cpp.packed_program
    monkeypatch.setattr(cpp, "packed_program", lambda *arguments: packed.append(arguments) or real(*arguments))
    with ck.using(tune=True):
        dispatch.choose(request(f"{CASE}{extra}"))
        assert packed == []
        dispatch.choose(request(f"{CASE}{extra}@plan=1"))
    assert [raced.prepacked for raced, _ in races] == [False, True]
    assert len(packed) == len(races[1][1])
    x, weight = np.ones((1, 16, 9, 9), np.float32), np.ones((32, 16, 3, 3), np.float32)
    with ck.using(tune=True, precision="strict"):
        made = ck.plan_conv2d(weight, x_shape=x.shape, padding=1)
        assert same_bits((made(x),), (ck.conv2d(x, weight, padding=1),)) is None


@needs_native
def test_threads_that_ask_at_once_measure_once(races: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race takes long enough for all to be there before it ends."""
    barrier = threading.Barrier(6)
    chosen = []
    race = tuning._race
    monkeypatch.setattr(tuning, "_race", lambda request, rows: sleep(0.1) or race(request, rows))

    def work() -> None:
        with ck.using(tune=True):
            barrier.wait(THIRTY)
            chosen.append(dispatch.choose(request()).name)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THIRTY)
    assert len(chosen) == 6 and len(set(chosen)) == 1 and len(races) == 1


_PROCESS = """
import sys
import numpy as np, cnnkern as ck
from cnnkern import tuning
tuning.BUDGET = 0.01
for size in map(int, sys.argv[1:]):
    assert (ck.relu(np.ones((1, 1, 3, size), np.float32)) == 1).all()
"""


@needs_native
def test_processes_share_a_file(cache_folder: Path) -> None:
    """Switched on by the environment; the second process keeps what the first one wrote."""
    environment = {"CNNKERN_TUNE": "1", "CNNKERN_CACHE_DIR": str(cache_folder)}
    for sizes in (("5", "6"), ("6", "7")):
        output_of(_PROCESS, *sizes, environment=environment)
    (path,) = cache_folder.iterdir()
    assert list(json.loads(path.read_text())["content"]) == [f"relu:mb1ic1ih3iw{n}" for n in (5, 6, 7)]


@needs_native
def test_processes_that_write_at_once_leave_a_whole_file(cache_folder: Path) -> None:
    environment = {"CNNKERN_TUNE": "1", "CNNKERN_CACHE_DIR": str(cache_folder)}
    sizes = [tuple(str(10 * process + n) for n in range(2, 8)) for process in range(3)]
    done: list[tuple[int, str, str]] = []
    threads = [
        threading.Thread(target=lambda s=s: done.append(run_script(_PROCESS, *s, environment=environment)))
        for s in sizes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * THIRTY)
    assert [(status, errors) for status, _, errors in done] == [(0, "")] * 3
    (path,) = cache_folder.iterdir()
    content = json.loads(path.read_text())["content"]
    assert set(content) <= {f"relu:mb1ic1ih3{'' if n == '3' else f'iw{n}'}" for s in sizes for n in s}
    assert any(set(content) >= {f"relu:mb1ic1ih3iw{n}" for n in s if n != "3"} for s in sizes), "the last one is whole"


_FORK = """
import os, threading
import numpy as np, cnnkern as ck
from cnnkern import tuning
held, end = threading.Event(), threading.Event()

def hold():
    with tuning._lock:
        held.set()
        end.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
child = os.fork()
if child == 0:
    with ck.using(tune=True):
        ck.relu(np.ones((2, 3), np.float32))
    os._exit(0)
status = os.waitpid(child, 0)[1]
end.set()
thread.join(60)
print(status)
"""


@needs_native
def test_a_forked_child_tunes_while_its_parent_did(cache_folder: Path) -> None:
    environment = {"CNNKERN_CACHE_DIR": str(cache_folder)}
    assert output_of(_FORK, timeout=THIRTY, environment=environment).strip() == "0"


@needs_native
@pytest.mark.parametrize("content", [b"", b"{torn", file_of({}, {"cpu": "another"})])
def test_a_tuning_file_that_cannot_be_used_is_replaced(
    content: bytes, cache_folder: Path, races: list, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.mkdir()
    tuning._file().path().write_bytes(content)
    with ck.using(tune=True):
        dispatch.choose(request())
    assert len(races) == 1 and len(warnings(caplog)) == 1
    forget()
    with ck.using(tune=True):
        dispatch.choose(request())
    assert len(races) == 1


@needs_native
@pytest.mark.parametrize("entry", [3, {"cpp.direct.scalar": "fast"}, {"cpp.direct.scalar": -1.0}, {}])
def test_an_entry_that_is_no_time_is_measured_again(entry: Any, races: list) -> None:
    key = CASE.replace("kh3", "oh9kh3")
    tuning._file().write({key: entry, "another": {"row": 1.0}})
    with ck.using(tune=True):
        dispatch.choose(request())
    assert len(races) == 1
    content = tuning._file().read()
    assert content["another"] == {"row": 1.0} and set(content[key]) == set(races[0][1])


def test_the_file_keeps_the_latest_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "KEPT", 3)
    for number in range(5):
        tuning._keep(f"case {number}", {"row": 1.0})
    assert list(tuning._file().read()) == list(tuning._times) == ["case 2", "case 3", "case 4"]


@needs_native
def test_without_memory_for_a_race_estimates_choose(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(request: Request) -> None:
        raise MemoryError

    monkeypatch.setattr(tuning, "_call", full)
    expected = dispatch.choose(request())
    with ck.using(tune=True):
        assert dispatch.choose(request()) == expected
    (line,) = warnings(caplog)
    assert "is not tuned: there is no memory for a second set of its arrays" in line


@pytest.mark.parametrize("value", [1, 0, "yes", np.True_])
def test_tune_is_a_truth(value: Any) -> None:
    with pytest.raises(ck.ArgumentError, match="using: tune must be True or False, got "):
        ck.using(tune=value)


def test_blocks_switch_tuning_on_and_off() -> None:
    assert not config.current().tune
    with ck.using(tune=True):
        with ck.using(num_threads=1):
            assert config.current().tune
        with ck.using(tune=False):
            assert not config.current().tune
        assert config.current().tune


def test_the_variable_is_checked() -> None:
    status, _, errors = run_script("import cnnkern", environment={"CNNKERN_TUNE": "yes"})
    assert status == 1 and "CNNKERN_TUNE must be an int from 0 to 1, got 'yes'" in errors
    assert output_of("from cnnkern import config; print(config.current().tune)", environment={"CNNKERN_TUNE": "1"}) == (
        "True\n"
    )


# ---- without a place for files


@pytest.fixture(params=["a folder under a file", "no home"])
def no_place(
    request: pytest.FixtureRequest, cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """A cache folder that cannot be made: as on a read-only disk, but also for root. Gives a number of its own."""
    (tmp_path / "file").touch()
    if request.param == "no home":

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setitem(config._cache_home, "CNNKERN_CACHE_DIR", "")
        monkeypatch.setitem(config._cache_home, "XDG_CACHE_HOME", "")
        monkeypatch.setattr(Path, "home", homeless)
    else:
        monkeypatch.setitem(config._cache_home, "CNNKERN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    return request.param_index


@needs_native
def test_no_call_fails_for_want_of_a_folder(no_place: int, races: list, caplog: pytest.LogCaptureFixture) -> None:
    with ck.using(tune=True):
        for size in (5, 6, 5):
            assert ck.relu(np.ones((1, 1, size, 7 + no_place), np.float32)).all()
    assert len(races) == 2, "the times are remembered in memory all the same"
    assert roofline.store(roofline.DEFAULTS) is None
    kept = [line for line in warnings(caplog) if line.startswith("what was measured is not kept for later processes: ")]
    assert len(kept) == 1
    assert len(warnings(caplog)) <= 2  # and one that the folder cannot be read
