"""Choosing among rows that can serve: by estimates, by a calibration file, by tuning.

Where a time decides it is made up, so that nothing depends on how fast or how busy the machine is; tests of the race
itself look at which rows took part.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import config, dispatch, machine, plan, problem, roofline, tuning, usercache
from cnnkern.backends import Backend
from cnnkern.spec import OPS, Kernel, Request
from matrix import AVAILABLE, needs_native
from oracle import same_bits
from samples import large_requests
from scripts import output_of, run_script

pytestmark = pytest.mark.usefixtures("plain_settings", "cache_folder")

CASE = "conv2d:mb1ic16ih9oc32kh3ph1"
THIRTY = 30  # seconds that no thread of these tests needs


def forget() -> None:
    dispatch._choose.cache_clear()
    roofline.current.cache_clear()
    usercache._said.clear()
    tuning.forget()


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the user's, and nothing remembered from it, before or after."""
    folder = tmp_path / "cache"
    monkeypatch.setitem(config._cache_home, "CNNKERN_CACHE_DIR", str(folder))
    monkeypatch.setattr(tuning, "BUDGET", 0.01)
    monkeypatch.setattr(tuning, "SAMPLE", 1e-5)
    forget()
    yield folder
    forget()


def request(case: str = CASE) -> Request:
    return problem.parse(case).request()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---- by estimates


def fake(algorithm: str, isa: str, cost: Callable[[Request], float | None] | None, **columns: Any) -> Kernel:
    """A row that computes nothing."""
    defaults: dict[str, Any] = dict(
        dtypes=("f32",), layouts=("NCHW",), ranks=(2,), precisions=("strict", "f32", "fast", "bf16")
    )
    return Kernel(
        op="conv",
        backend="reference",
        algorithm=algorithm,
        isa=isa,
        run=lambda state, inputs, outputs: None,
        prepare=lambda request, weights: None,
        cost=cost,
        **{**defaults, **columns},
    )


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*rows: Kernel) -> None:
        monkeypatch.setattr(dispatch, "load_all", lambda: (Backend("reference", rows),))
        forget()

    return install


def order(case: str = CASE, **settings: Any) -> list[str]:
    """Names of the rows that can serve, the chosen one first."""
    with ck.using(**settings):
        explanation = dispatch.explain_request(request(case))
    names = [v.kernel.name for v in explanation.verdicts if v.kernel and v.sentence.startswith(("chosen", "can serve"))]
    assert explanation.chosen is not None and names[0] == explanation.chosen.name
    return [name.removeprefix("reference.") for name in names]


def test_the_least_estimate_is_chosen(table: Callable[..., None]) -> None:
    table(fake("direct", "avx2", lambda r: 2.0), fake("winograd", "avx2", lambda r: 1.0))
    assert order() == ["winograd.avx2", "direct.avx2"]


def test_a_row_without_an_estimate_leaves_the_choice_to_the_table(table: Callable[..., None]) -> None:
    for cost in (None, lambda r: None):
        table(fake("direct", "avx2", lambda r: 2.0), fake("new", "avx2", cost), fake("winograd", "avx2", lambda r: 1.0))
        assert order() == ["direct.avx2", "new.avx2", "winograd.avx2"]


def test_a_row_that_cannot_serve_is_not_asked_for_an_estimate(table: Callable[..., None]) -> None:
    def never(request: Request) -> float:
        raise AssertionError("an estimate of a request that the row refuses")

    table(fake("direct", "avx2", lambda r: 1.0), fake("fast", "avx2", never, why_not=lambda r: "needs luck"))
    assert order() == ["direct.avx2"]


def test_an_estimate_never_prefers_a_weaker_instruction_set_of_the_same_algorithm(table: Callable[..., None]) -> None:
    table(
        fake("direct", "avx512", lambda r: 3.0),
        fake("direct", "avx2", lambda r: 1.0),
        fake("winograd", "avx512", lambda r: 2.0),
        fake("winograd", "avx2", lambda r: 4.0),
    )
    assert order() == ["winograd.avx512", "direct.avx512", "direct.avx2", "winograd.avx2"]
    assert order(isa="avx2") == ["direct.avx2", "winograd.avx2"]


def test_strict_chooses_without_looking_at_the_batch(table: Callable[..., None]) -> None:
    table(fake("direct", "avx2", lambda r: 1.0 * r.geometry.batch), fake("rows", "avx2", lambda r: 2.0))
    for batch in (1, 2, 3, 64):
        case = f"conv2d:mb{batch}ic16ih9oc32kh3ph1"
        assert order(case)[0] == ("direct.avx2" if batch == 1 else "direct.avx2" if batch == 2 else "rows.avx2")
        assert order(f"{case}@precision=strict")[0] == "direct.avx2"


def test_a_plan_may_choose_what_an_eager_call_does_not(table: Callable[..., None]) -> None:
    table(fake("direct", "avx2", lambda r: 2.0), fake("winograd", "avx2", lambda r: 1.0 if r.prepacked else 3.0))
    assert order()[0] == "direct.avx2" and order(f"{CASE}@plan=1")[0] == "winograd.avx2"


@needs_native
def test_a_plan_asks_for_a_row_as_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, choose = [], dispatch.choose
    monkeypatch.setattr(dispatch, "choose", lambda request: asked.append(request) or choose(request))
    x, weight = np.ones((1, 16, 9, 9), np.float32), np.ones((32, 16, 3, 3), np.float32)
    made = ck.plan_conv2d(weight, x_shape=x.shape, padding=1)
    assert asked == [replace(request(), prepacked=True)] == [request(f"{CASE}@plan=1")]
    for residual in (None, np.ones((1, 32, 9, 9), np.float32)):
        assert np.array_equal(made(x, residual), ck.conv2d(x, weight, padding=1, residual=residual, precision="strict"))


@needs_native
@pytest.mark.parametrize("op", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_an_explanation_has_a_time_for_every_native_row_that_can_serve(op: str) -> None:
    (explanation,) = ck.explain(f"{op}:mb1ic16ih9oc4kh3ph1")
    able = [v for v in explanation.verdicts if v.kernel and v.kernel.backend == "cpp" and "needs" not in v.sentence]
    assert explanation.chosen == able[0].kernel and len({v.name for v in able}) == len(able) >= len(AVAILABLE)
    for verdict in able:
        assert verdict.kernel is not None and verdict.kernel.cost is not None and verdict.measured is None
        assert verdict.seconds == verdict.kernel.cost(explanation.request)
        assert verdict.sentence.endswith(f", estimated {dispatch._duration(verdict.seconds)} on one core")
    assert sum(v.sentence.startswith("chosen, ") for v in able) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00000123, "1.23 us"), (4.56e-5, "45.6 us"), (0.0123, "12.3 ms"), (7, "7 s"), (1234, "1234 s")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert dispatch._duration(seconds) == text


@needs_native
@pytest.mark.parametrize("tune", [False, True])
def test_the_choice_is_the_same_for_any_number_of_threads(tune: bool, races: list) -> None:
    cases = [CASE, "conv2d:mb8ic64ih28oc64kh3ph1", "conv2d_grad_input:mb1ic3ih32oc64kh7sh2ph3", "relu:mb4ic4ih50"]
    for case in cases:
        chosen = set()
        before = dispatch._choose.cache_info().currsize
        for threads in (1, 2, 8):
            with ck.using(num_threads=threads, tune=tune):
                chosen.add(dispatch.choose(request(case)).name)
        assert len(chosen) == 1
        assert dispatch._choose.cache_info().currsize == before + 1, "the number of threads is part of the choice's key"
    assert len(races) == (len(cases) if tune else 0)


def test_a_seed_is_no_part_of_the_choice() -> None:
    before = dispatch._choose.cache_info().currsize
    x = np.ones(1000, np.float32)
    masks = [ck.dropout(x, 0.5, seed=seed)[1].tobytes() for seed in range(20)]
    assert dispatch._choose.cache_info().currsize == before + 1
    assert len(set(masks)) == 20


# ---- by a calibration file


def calibrated(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"peaks": {"avx2.f32": 56e9}, "memory": 1e9, "cache": 2e9, "call": 1e-6}
    return {**content, **changes}


def file_of(content: Any, owner: Any = None) -> bytes:
    return json.dumps({"owner": owner or usercache.fingerprint(), "content": content}).encode()


def test_without_a_file_there_are_defaults_and_no_word_about_it(caplog: pytest.LogCaptureFixture) -> None:
    assert roofline.current() is roofline.DEFAULTS and ck.ceilings()["file"] is None
    assert warnings(caplog) == []


def test_a_stored_calibration_is_read_and_what_it_lacks_follows_its_clock(cache_folder: Path) -> None:
    measured = roofline.Ceilings({"avx2.f32": 56e9}, 1e9, 2e9, 1e-6)
    path = roofline.store(measured)
    assert path is not None and Path(path).parent == cache_folder
    assert [entry.name for entry in cache_folder.iterdir()] == [Path(path).name]
    current = roofline.current()
    assert (current.memory, current.cache, current.call) == (1e9, 2e9, 1e-6)
    assert current.peaks["avx2.f32"] == 56e9
    assert current.peaks["amx.bf16"] == roofline.DEFAULTS.peaks["amx.bf16"] / 2
    assert ck.ceilings()["file"] == path and ck.ceilings()["memory"] == 1.0


@needs_native
def test_estimates_follow_the_calibration() -> None:
    before = ck.explain(CASE)[0].verdicts[0].seconds
    d = roofline.DEFAULTS
    roofline.store(roofline.Ceilings({name: peak / 10 for name, peak in d.peaks.items()}, d.memory, d.cache, d.call))
    assert ck.explain(CASE)[0].verdicts[0].seconds == before, "a process goes on with what it has read"
    roofline.current.cache_clear()
    after = ck.explain(CASE)[0].verdicts[0].seconds
    assert before is not None and after is not None and after > 3 * before


NOT_A_FILE = {
    "empty": b"",
    "torn": file_of(calibrated())[:-9],
    "not text": b"\xff\xfe\x00",
    "not an object": b"[1]",
    "no content": b'{"owner": 1}',
    "another machine's": file_of(calibrated(), {"cpu": ["x86_64", "another"]}),
    "a content that is no object": file_of([1]),
    "no peaks": file_of({"memory": 1e9, "cache": 1e9, "call": 1e-6}),
    "peaks that are a list": file_of(calibrated(peaks=[1])),
    "a peak of 0": file_of(calibrated(peaks={"avx2.f32": 0})),
    "a number missing": file_of({"peaks": {}, "memory": 1e9}),
    "a negative number": file_of(calibrated(cache=-1.0)),
    "infinity": file_of(calibrated(memory=math.inf)),
    "no number at all": file_of(calibrated(call=math.nan)),
    "text": file_of(calibrated(memory="fast")),
    "a truth": file_of(calibrated(memory=True)),
}


@pytest.mark.parametrize("content", NOT_A_FILE.values(), ids=NOT_A_FILE)
def test_a_file_that_cannot_be_used_is_ignored_with_one_line(
    content: bytes, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_folder.mkdir()
    path = roofline._file().path()
    path.write_bytes(content)
    for _ in range(2):
        roofline.current.cache_clear()
        assert roofline.current() is roofline.DEFAULTS
    (line,) = warnings(caplog)
    assert line.startswith(f"{path} is ignored: ")
    assert roofline.store(roofline.DEFAULTS) == str(path), "and written anew by the next calibration"
    roofline.current.cache_clear()
    assert roofline.current() == roofline.DEFAULTS and len(warnings(caplog)) == 1


@needs_native
def test_calibrate_measures_every_ceiling_and_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        machine, "measure_peak", lambda isa, dtype, threads: {"f32": 30.0, "f64": 15.0}[dtype] * threads
    )
    monkeypatch.setattr(machine, "measure_copy", lambda threads: 7.0 * threads)
    monkeypatch.setattr(machine, "measure_read", lambda nbytes: 9.0)
    found = ck.calibrate()
    isas = [isa for isa in AVAILABLE if isa != "amx"]
    peaks = {f"{isa}.{dtype}": peak for isa in isas for dtype, peak in (("f32", 30.0), ("f64", 15.0))}
    assert found["peaks"] == pytest.approx(peaks)
    assert (found["memory"], found["cache"]) == pytest.approx((7.0, 9.0)) and 0 < found["call"] < 1
    assert Path(found["file"]).is_file()
    roofline.current.cache_clear()
    again = ck.ceilings()
    assert again["file"] == found["file"] and again["peaks"].items() >= found["peaks"].items()


@needs_native
def test_reading_a_buffer_has_a_bandwidth() -> None:
    assert 0.01 < ck.measure_read(1 << 16) < 1e5
    with pytest.raises(ck.ArgumentError, match="measure_read: nbytes must be >= 1, got 0"):
        ck.measure_read(0)


# ---- where files go

_WHERE = "import cnnkern.config as c; print(c.cache_dir())"


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CNNKERN_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cnnkern"),
        ({"XDG_CACHE_HOME": "x", "HOME": "/h"}, "/h/.cache/cnnkern"),  # relative: the specification wants it ignored
        ({"XDG_CACHE_HOME": "", "CNNKERN_CACHE_DIR": "", "HOME": "/h"}, "/h/.cache/cnnkern"),
    ],
    ids=str,
)
def test_the_folder_follows_the_environment(environment: dict[str, str], folder: str) -> None:
    assert output_of(_WHERE, environment=environment).strip() == folder


def test_nothing_is_read_or_made_at_import(cache_folder: Path) -> None:
    script = """
        import builtins, io, sys
        real = io.open
        def watch(file, *rest, **named):
            assert "cpuinfo" not in str(file) and "/cache/" not in str(file), file
            return real(file, *rest, **named)
        io.open = builtins.open = watch
        import cnnkern
        assert "cnnkern.tuning" not in sys.modules and "cnnkern.roofline" not in sys.modules
    """
    output_of(script, environment={"CNNKERN_CACHE_DIR": str(cache_folder)})
    assert not cache_folder.exists()


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


def test_files_are_whole_while_they_are_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Two threads replace a file without pause, a third reads it: always one of the two contents."""
    file = usercache.UserFile("test", {"who": 1})
    contents = [{"all": [number] * 20_000} for number in (1, 2)]
    file.write(contents[0])
    stop = threading.Event()

    def write(content: dict) -> None:
        while not stop.is_set():
            assert file.write(content) is not None

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    try:
        assert all(file.read() in contents for _ in range(60))
    finally:
        stop.set()
        for thread in threads:
            thread.join(THIRTY)
    assert warnings(caplog) == []
    assert [path.name for path in file.path().parent.iterdir()] == [file.path().name], "temporary files are left"


# ---- by tuning


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, list[str]]]:
    """Every race that is run: the request, and the names of the rows in it."""
    seen: list[tuple[Request, list[str]]] = []
    real = tuning._race

    def race(request: Request, rows: list[Kernel]) -> dict[str, float]:
        seen.append((request, [row.name for row in rows]))
        return real(request, rows)

    monkeypatch.setattr(tuning, "_race", race)
    return seen


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
    assert sorted(raced[1]) == sorted(able) and len(able) == 2 * len(AVAILABLE)


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
    assert ran == [AVAILABLE[-1], slower[0]] * 3


@needs_native
def test_a_forced_row_is_neither_measured_nor_replaced(races: list) -> None:
    for isa in AVAILABLE:
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
@pytest.mark.parametrize("extra", ["", "@bias=1@act=relu@res=1@layout=NHWC"])
def test_a_plan_is_tuned_with_packed_weights(extra: str, races: list) -> None:
    with ck.using(tune=True):
        dispatch.choose(request(f"{CASE}{extra}"))
        dispatch.choose(request(f"{CASE}{extra}@plan=1"))
    assert [raced.prepacked for raced, _ in races] == [False, True]
    x, weight = np.ones((1, 16, 9, 9), np.float32), np.ones((32, 16, 3, 3), np.float32)
    with ck.using(tune=True):
        made = ck.plan_conv2d(weight, x_shape=x.shape, padding=1)
    assert same_bits((made(x),), (ck.conv2d(x, weight, padding=1),)) is None


@needs_native
def test_threads_that_ask_at_once_measure_once(races: list) -> None:
    barrier = threading.Barrier(6)
    chosen = []

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
