"""What is told about a result: ratios, summaries, columns, JSON."""

from __future__ import annotations

import io
import json

import pytest

from cnnkern_bench import compare, jsonout, report
from cnnkern_bench.cases import select
from cnnkern_bench.results import Arm, CaseResult, Launch, RunResult
from cnnkern_bench.roofs import Roofs, copy_size

CONV = 'conv2d:mb1ic64ih56oc64oh56kh3ph1n"net:conv2*3"'
POOL = 'max_pool2d:mb1ic64ih112oh56kh3sh2ph1n"net:pool"'


def launches(*seconds: float) -> list[Launch]:
    return [Launch(number, [[value, value * 1.5], [value]]) for number, value in enumerate(seconds)]


@pytest.fixture
def result() -> RunResult:
    conv, pool = (CaseResult(case, 1, []) for case in select([CONV, POOL]))
    conv.arms = [
        Arm("cnnkern", row="conv2d.cpp.direct.avx2.f32", launches=launches(1e-3, 1.1e-3, 1.05e-3)),
        Arm("torch", peer=True, row="torch", launches=launches(2.1e-3)),
        Arm("ort", peer=True, row="ort", launches=launches(0.84e-3)),
    ]
    pool.arms = [
        Arm("cnnkern", row="max_pool2d.cpp.direct.avx2.f32", launches=launches(1e-4)),
        Arm("torch", peer=True, row="torch", launches=launches(4e-4)),
        Arm("ort", peer=True, status="cannot", message="no such layer"),
    ]
    pool.arms[0].launches[0].causes = ["other processes took 30% of a CPU"]
    roofs = Roofs({"avx2.f32": 440.0}, {copy_size(pool.case.problem.bytes): 100.0})
    return RunResult([conv, pool], ("torch", "ort"), {1: roofs}, {"hw_id": "0" * 12}, ["cnnkern", "bench"], launches=3)


def test_ratios_are_peer_time_over_ours(result: RunResult) -> None:
    conv, pool = result.cases
    assert compare.ratios(conv, conv.arms[0]) == pytest.approx({"torch": 2.0, "ort": 0.8, "fastest": 0.8})
    assert compare.ratios(pool, pool.arms[0]) == pytest.approx({"torch": 4.0, "fastest": 4.0})


def test_summary(result: RunResult) -> None:
    (line,) = compare.summarize(result)
    assert (line.suite, line.pass_name, line.count) == ("cases", "fwd", 2)
    assert line.means == pytest.approx({"torch": 8**0.5, "ort": 0.8, "fastest": (0.8 * 4) ** 0.5})
    assert line.minima == pytest.approx({"torch": 2.0, "ort": 0.8, "fastest": 0.8})
    assert line.worst == CONV
    assert line.seconds == pytest.approx(3 * 1.05e-3 + 1e-4)  # the convolution occurs three times


def test_plain_output(result: RunResult) -> None:
    out = io.StringIO()
    report.write_plain(result, out)
    text = out.getvalue()
    lines = text.splitlines()
    assert lines[0].split() == "case kernel time rate % peak vs torch vs ort vs fastest".split()
    assert lines[1].startswith(CONV)
    assert "cpp.direct.avx2.f32  1.05 ms ± 0.12  220 GFLOP/s  50%" in lines[1]
    assert "100 us ~" in lines[2] and "GB/s" in lines[2]
    assert f"ort declines {POOL}: no such layer" in lines
    assert any(line.startswith("~ 1 disturbed") and "other processes took 30% of a CPU" in line for line in lines)
    assert (
        lines[-1].startswith("2 of 2 checked and timed")
        and "1.79 times as fast as the fastest of torch, ort" in lines[-1]
    )
    assert "\x1b" not in text and "│" not in text


def test_terminal_output_has_the_same_cells(result: RunResult, monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    report.write_terminal(result)
    text = capsys.readouterr().out
    for cell in ("1.05 ms ± 0.12", "220 GFLOP/s", "50%", "2.00", "0.80", "1.79"):
        assert cell in text


def test_wrong_results_are_shouted_and_have_no_row(result: RunResult) -> None:
    arm = result.cases[0].arms[0]
    arm.status, arm.message = "wrong", "out[0, 0, 0, 0] is 1, must be 2"
    assert [row[0] for row in report.rows(result)] == [POOL]
    assert report.notes(result)[0] == f"WRONG  {CONV} [{arm.row}]: {arm.message}"
    assert report.verdict(result).endswith("1 WRONG OR CRASHED.")
    assert compare.summarize(result)[0].failed == 1


def test_above_the_roof_is_flagged(result: RunResult) -> None:
    result.roofs[1].peaks["avx2.f32"] = 100.0
    assert "220% !" in report.rows(result)[0][4]
    assert any("above the measured roof" in note for note in report.notes(result))


@pytest.mark.parametrize(("sort", "first"), [("case", CONV), ("time", CONV), ("ratio", CONV), ("rate", POOL)])
def test_sorting(result: RunResult, sort: str, first: str) -> None:
    result.cases[1].arms[0].launches[0].slots = [[1e-4]]
    assert report.rows(result, sort)[0][0] == first


@pytest.mark.parametrize(
    ("seconds", "interval", "text"),
    [
        (3.124e-4, 1.2e-6, "312.4 us ± 1.2"),
        (3.124e-4, 1.2e-5, "312 us ± 12"),
        (1.0e-3, None, "1.00 ms"),
        (2.5, 0.012, "2.500 s ± 0.012"),
        (4.2e-8, None, "42.0 ns"),
    ],
)
def test_times_end_where_the_interval_does(seconds: float, interval: float | None, text: str) -> None:
    assert report.format_time(seconds, interval) == text


def test_json(result: RunResult, tmp_path) -> None:
    path = tmp_path / "result.json"
    jsonout.write(result, path)
    found = json.loads(path.read_text())
    assert list(tmp_path.iterdir()) == [path]
    assert found["schema"] == 1 and found["complete"] is True
    assert {"command", "seed", "seconds", "launches", "peers", "fingerprint", "roofs", "summary", "cases"} <= set(found)
    conv = found["cases"][0]
    assert {"case", "key", "suites", "pass", "weight", "threads", "flops", "bytes", "disturbed", "arms"} == set(conv)
    assert (conv["case"], conv["key"], conv["weight"]) == (CONV, "conv2d:mb1ic64ih56oc64oh56kh3ph1", 3)
    ours, torch, _ = conv["arms"]
    assert ours["seconds"] == pytest.approx(1.05e-3) and ours["unit"] == "GFLOP/s"
    assert ours["ratios"] == pytest.approx({"torch": 2.0, "ort": 0.8, "fastest": 0.8})
    assert ours["of_roof"] == pytest.approx(0.5, rel=0.01)
    assert ours["launches"][0] == {"number": 0, "slots": [[1e-3, 1.5e-3], [1e-3]], "causes": []}
    assert "ratios" not in torch
    declined = found["cases"][1]["arms"][2]
    assert (declined["status"], declined["message"]) == ("cannot", "no such layer") and "seconds" not in declined
