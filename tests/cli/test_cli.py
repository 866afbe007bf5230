"""The command: arguments, exit codes, what is printed where. Tiny cases on the reference backend, in this process."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import cnnkern
import cnnkern.roofline
import cnnkern_bench
from cnnkern_cli import main
from matrix import needs_native

CASE = "conv2d:mb1ic3ih6oc4oh6kh3ph1"
SMALL = ["--backend", "reference", "--launches", "1", "--progress", "none"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Measure little, without worker processes."""
    real = cnnkern_bench.run
    effort = dict(blocks=1, samples=1, min_sample=1e-5)

    def run(cases, options, progress):
        small = dataclasses.replace(options, isolated=False, effort=dataclasses.replace(options.effort, **effort))
        return real(cases, small, progress)

    monkeypatch.setattr(cnnkern_bench, "run", run)


def call(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def test_bench_prints_a_table_and_a_summary() -> None:
    done = call("bench", CASE, *SMALL)
    assert done.exit_code == 0, done.output
    assert CASE in done.stdout and "reference.direct.f32" in done.stdout
    assert "1 of 1 checked and timed" in done.stdout
    assert "\x1b" not in done.stdout
    assert "1 cases, 1 launches" in done.stderr


def test_axes_reach_the_cases() -> None:
    done = call(
        "bench", CASE, *SMALL, "--mb", "1,2", "--layout", "NCHW,NHWC", "--pass", "fwd,grad_input", "--threads", "1"
    )
    assert done.exit_code == 0, done.output
    assert "8 of 8 checked and timed" in done.stdout
    assert "conv2d_grad_input:mb2ic3ih6oc4oh6kh3ph1@layout=NHWC@threads=1" in done.stdout


def test_bare_bench_is_the_quick_suite_with_a_budget(monkeypatch) -> None:
    asked = {}

    def run(cases, options, progress):
        asked.update(cases=cases, options=options)
        return cnnkern_bench.RunResult([])

    monkeypatch.setattr(cnnkern_bench, "run", run)
    monkeypatch.setattr(cnnkern_bench, "usual_peers", lambda: ("torch",))
    assert call("bench").exit_code == 5  # the stand-in timed nothing
    assert {case.suites for case in asked["cases"]} == {("quick",)}
    assert asked["options"].peers == ("torch",)
    assert asked["options"].budget <= 50
    assert call("bench", "--suite", "lenet", "--launches", "7").exit_code == 5
    assert (asked["options"].peers, asked["options"].effort.launches, asked["options"].budget) == ((), 7, None)


@pytest.mark.parametrize("arguments", [(CASE, "--match", "nothing"), ("--suite", "lenet", "--skip", ".")])
def test_nothing_to_measure_is_exit_5(arguments) -> None:
    done = call("bench", *arguments, *SMALL)
    assert done.exit_code == 5
    assert "nothing to measure" in done.stderr


def test_nothing_timed_is_exit_5() -> None:
    done = call("bench", f"{CASE}@dt=u16", *SMALL)
    assert done.exit_code == 5
    assert "declines" in done.stdout and "uint16" in done.stdout


def test_a_wrong_kernel_is_exit_4(monkeypatch) -> None:
    monkeypatch.setattr(
        "cnnkern_bench.own.verify", lambda problem, how, seed: ("conv2d.x.y.f32", "out[0] is 1, must be 2")
    )
    done = call("bench", CASE, *SMALL)
    assert done.exit_code == 4
    assert f"WRONG  {CASE} [conv2d.x.y.f32]: out[0] is 1, must be 2" in done.stdout
    assert " us" not in done.stdout.splitlines()[1]


def test_interruption_is_exit_130_and_leaves_json(monkeypatch, tmp_path) -> None:
    real = cnnkern_bench.run

    def interrupted(cases, options, progress):
        def stop(done, total, text):
            raise KeyboardInterrupt

        return real(cases, options, stop)

    monkeypatch.setattr(cnnkern_bench, "run", interrupted)
    path = tmp_path / "partial.json"
    done = call("bench", CASE, *SMALL, "--json", str(path))
    assert done.exit_code == 130
    assert json.loads(path.read_text())["complete"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["conv2d:mb1ic3"], "conv2d needs"),
        (["--suite", "nets"], "suite 'nets' does not exist"),
        ([CASE, "--backend", "gpu"], "backend must be one of"),
        ([CASE, "--isa", "sse9"], "isa must be one of"),
        ([CASE, "--kernel", "turbo"], "finds no row"),
        ([CASE, "--kernel", "("], "is not a regular expression"),
        ([CASE, "--dt", "f31"], "'f31' is not one of f32"),
        ([CASE, "--mb", "0"], "'0' is not an integer from 1"),
        ([CASE, "--threads", "two"], "'two' is not an integer from 1"),
        ([CASE, "--budget", "soon"], "'soon' is not a time"),
        ([CASE, "--vs", "tensorflow"], "peer 'tensorflow' does not exist"),
        ([CASE, "--frobnicate"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_2_with_a_sentence(arguments, sentence: str) -> None:
    done = call("bench", *arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_missing_peer_names_its_extra(monkeypatch) -> None:
    monkeypatch.setattr("cnnkern_bench.peers.installed", lambda library: False)
    done = call("bench", CASE, "--vs", "torch")
    assert done.exit_code == 2
    assert "pip install 'cnnkern[torch]'" in done.stderr


def test_json_and_progress(tmp_path) -> None:
    path = tmp_path / "result.json"
    done = call("bench", CASE, "--backend", "reference", "--launches", "2", "--progress", "plain", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "launch 2 done: 2 of 2" in done.stderr
    found = json.loads(path.read_text())
    assert found["fingerprint"]["hw_id"] and found["cases"][0]["arms"][0]["seconds"] > 0


def test_list() -> None:
    suites = call("list", "suites").stdout
    assert "resnet50" in suites and "23 cases" in suites
    assert call("list", "cases", "--suite", "lenet", "--match", "lenet5:C1").stdout.count("\n") == 1
    assert "conv.reference.direct" in call("list", "kernels", "--match", r"^conv\.").stdout
    assert call("list", "cases", "--match", "nothing").exit_code == 5
    assert call("list", "cases", "--suite", "nets").exit_code == 2


def test_explain() -> None:
    done = call("explain", 'conv2d:ic3ih6oc4kh3ph1mb1n"a"', "--backend", "reference")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith('conv2d:mb1ic3ih6oc4oh6kh3ph1n"a"\n')
    assert "chosen" in done.stdout and "weight (4, 3, 3, 3) float32" in done.stdout
    assert call("explain", "conv2d:mb1").exit_code == 2


@needs_native
def test_explain_shows_estimates_and_with_tune_what_was_measured(cache_folder) -> None:
    case = "conv2d:mb1ic3ih6oc4kh3ph1"
    assert "chosen, estimated " in call("explain", case).stdout
    assert "measured" not in call("explain", case, "--tune").stdout  # explaining measures nothing
    with cnnkern.using(tune=True):
        cnnkern.dispatch.choose(cnnkern.problem.parse(case).request())
    assert "measured" not in call("explain", case).stdout
    assert "chosen, tuned: " in call("explain", case, "--tune").stdout
    assert "weights packed before" in call("explain", f"{case}@plan=1").stdout


@needs_native
def test_calibrate(monkeypatch, cache_folder) -> None:
    shown = call("calibrate", "--show")
    assert shown.exit_code == 0 and "defaults, not measured" in shown.stdout and not cache_folder.exists()
    for name in ("measure_peak", "measure_copy", "measure_read"):
        monkeypatch.setattr(cnnkern.machine, name, lambda *arguments: 12.5)
    done = call("calibrate")
    assert done.exit_code == 0, done.output
    (path,) = cache_folder.iterdir()
    assert f"kept in {path}; later processes use it" in done.stdout and done.stdout.count("12.5 G") >= 4
    cnnkern.roofline.current.cache_clear()
    assert str(path) in call("calibrate", "--show").stdout
    assert str(path) in call("doctor").stdout


def test_calibrate_without_the_native_module_is_exit_5(monkeypatch) -> None:
    def missing():
        raise cnnkern.NoKernelError("calibrate needs the native module")

    monkeypatch.setattr(cnnkern, "calibrate", missing)
    done = call("calibrate")
    assert done.exit_code == 5 and "needs the native module" in done.stderr


def test_doctor(tmp_path) -> None:
    path = tmp_path / "doctor.json"
    done = call("doctor", "--json", str(path))
    assert done.exit_code == 0, done.output
    for section in ("build", "kernels that cannot run here", "peers", "what spoils timing"):
        assert f"\n{section}\n" in done.stdout
    assert json.loads(path.read_text())["hw_id"] in done.stdout


def test_module_entry_ends_without_a_terminal() -> None:
    done = subprocess.run([sys.executable, "-m", "cnnkern_cli", "list", "suites"], capture_output=True, text=True)
    assert done.returncode == 0 and "quick" in done.stdout
    assert subprocess.run([sys.executable, "-m", "cnnkern_cli", "bench", "--mb"], capture_output=True).returncode == 2


def test_ctrl_c_ends_the_workers_and_keeps_the_json(tmp_path) -> None:
    """A real signal to a real run: exit code 130, valid JSON, no worker left behind."""
    path = tmp_path / "partial.json"
    command = [sys.executable, "-m", "cnnkern_cli", "bench", "--suite", "vgg16", "--backend", "reference"]
    run = subprocess.Popen([*command, "--json", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "9 cases" in run.stderr.readline()
    deadline = time.monotonic() + 60
    while not (workers := children(run.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert json.loads(path.read_text())["complete"] is False
    while any(runs(pid) for pid in workers):  # one that was just starting ends at the end of its input
        assert time.monotonic() < deadline, "a worker was left behind"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """A dead process stays listed until its parent asks for it, which the one that adopted it may not do."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
