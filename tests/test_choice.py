"""Choosing among rows that can serve, by estimates and by a calibration file. Tuning is in ``test_tuning.py``."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnnkern as ck
from choosing import CASE, THIRTY, fake, file_of, request, warnings
from cnnkern import dispatch, machine, roofline, usercache
from cnnkern.spec import Request
from matrix import AVAILABLE, COMPLETE, needs_native
from scripts import output_of

pytestmark = pytest.mark.usefixtures("plain_settings", "cache_folder")


# ---- by estimates


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
    made = ck.plan_conv2d(weight, x_shape=x.shape, padding=1, precision="strict")
    assert asked == [request(f"{CASE}@precision=strict@plan=1")] and asked[0].prepacked
    for residual in (None, np.ones((1, 32, 9, 9), np.float32)):
        assert np.array_equal(made(x, residual), ck.conv2d(x, weight, padding=1, residual=residual, precision="strict"))


@needs_native
@pytest.mark.parametrize("op", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_an_explanation_has_a_time_for_every_native_row_that_can_serve(op: str) -> None:
    (explanation,) = ck.explain(f"{op}:mb1ic16ih9oc4kh3ph1")
    native = [v for v in explanation.verdicts if v.kernel and v.kernel.backend == "cpp"]
    able = [v for v in native if v.sentence.startswith(("chosen", "can serve"))]
    assert explanation.chosen == able[0].kernel and len({v.name for v in able}) == len(able) >= len(COMPLETE)
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
