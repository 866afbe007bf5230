"""A whole run: arms, launches, refusals, crashes, interruption; no assertion is about how long anything took."""

from __future__ import annotations

import dataclasses

import pytest

import cnnkern_bench as cb
from cnnkern_bench import runner
from cnnkern_bench.process import Worker, WorkerDied
from cnnkern_bench.worker import Session

CASES = ["conv2d:mb1ic3ih6oc4kh3ph1", "conv2d_grad_weight:mb1ic3ih6oc4kh3ph1", "max_pool2d:mb1ic3ih6kh2sh2"]
EFFORT = cb.Effort(launches=2, blocks=2, samples=2, min_sample=1e-5)
HERE = cb.Options(backend="reference", effort=EFFORT, isolated=False)


def run(texts=CASES, **changes) -> cb.RunResult:
    return cb.run(cb.select(texts), dataclasses.replace(HERE, **changes))


def test_every_case_is_checked_and_timed_in_every_launch() -> None:
    seen = []
    result = cb.run(cb.select(CASES), HERE, lambda done, total, text: seen.append((done, total, text)))
    assert result.complete and result.timed and not result.failures
    for case in result.cases:
        (arm,) = case.arms
        assert arm.status == "ok" and arm.row.endswith(".reference.direct.f32")
        assert {launch.number for launch in arm.launches} >= {0, 1}
        assert all(len(launch.slots) >= 4 for launch in arm.launches[:2])  # two blocks there and back
        assert arm.estimate.seconds > 0
    assert (0, 6) == seen[0][:2]
    assert [text for _, _, text in seen if text.endswith("done")][:2] == ["launch 1 done", "launch 2 done"]


def test_processes_of_their_own() -> None:
    result = run(CASES[:1], isolated=True, effort=dataclasses.replace(EFFORT, launches=1))
    (arm,) = result.cases[0].arms
    assert (arm.status, arm.message) == ("ok", "")
    assert arm.launches


def test_a_row_for_each_kernel_that_the_pattern_finds() -> None:
    result = run(CASES[:1], backend=None, kernel="^reference")
    assert [arm.name for arm in result.cases[0].arms] == ["reference.direct"]
    nothing = run(CASES[:1], backend=None, kernel="^turbo")
    assert "no kernel that '^turbo' finds: " in nothing.cases[0].arms[0].message
    named = run([f"{CASES[0]}@reference.direct"])
    assert [arm.name for arm in named.cases[0].arms] == ["reference.direct"]


def test_refusals_are_sentences_and_no_times() -> None:
    asked = ["@dt=u16", "@cpp.nothing", "@cold=all"]
    result = run([*(f"{CASES[0]}{attribute}" for attribute in asked), "conv1d:mb1ic3iw6oc4kw3@plan=1"])
    messages = [arm.message for case in result.cases for arm in case.arms]
    assert [case.arms[0].status for case in result.cases] == ["cannot"] * 4
    assert "uint16" in messages[0] and "cpp.nothing" in messages[1] and "warm caches" in messages[2]
    assert messages[3] == "plans are for conv2d"
    assert not result.timed and not result.failures


def test_a_wrong_kernel_gets_no_time(monkeypatch) -> None:
    monkeypatch.setattr(
        "cnnkern_bench.own.verify", lambda problem, how, seed: ("conv2d.x.y.f32", "out[0] is 1, must be 2")
    )
    result = run()
    assert [(arm.status, arm.message) for _, arm in result.failures] == [("wrong", "out[0] is 1, must be 2")] * 3
    assert not result.timed
    assert all(not arm.launches for case in result.cases for arm in case.arms)


def test_a_crash_is_the_arms_fault_and_the_run_goes_on(monkeypatch) -> None:
    class Dying:
        pid = 0

        def __init__(self) -> None:
            self.session = Session()

        def ask(self, **message):
            if "conv2d:" in message.get("case", ""):
                raise WorkerDied("killed by SIGSEGV")
            return self.session.handle(message)

        def close(self) -> None:
            pass

    monkeypatch.setattr(runner, "Local", Dying)
    result = run()
    assert [(case.case.problem.op, arm.message) for case, arm in result.failures] == [("conv", "killed by SIGSEGV")]
    assert all(case.arms[0].estimate for case in result.cases[1:])


def test_a_dead_worker_says_how_it_died() -> None:
    worker = Worker([0], {})
    try:
        with pytest.raises(WorkerDied, match=r"exit code 1.*no attribute '_nonsense'"):
            worker.ask(do="nonsense")
    finally:
        worker.close()


def test_interruption_keeps_what_was_found() -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    result = cb.run(cb.select(CASES), HERE, interrupt)
    assert not result.complete
    assert sum(bool(case.arms[0].launches) for case in result.cases) == 1


def test_a_budget_shortens_the_run() -> None:
    result = run(budget=1e-3, effort=dataclasses.replace(EFFORT, launches=50))
    assert result.launches == 1 and result.complete and result.timed


def test_disturbed_rows_are_repeated_a_few_times_and_marked(monkeypatch) -> None:
    monkeypatch.setattr(runner, "too_many_switches", lambda switches, seconds: True)
    monkeypatch.setattr(runner, "_calm", lambda: True)
    result = run(CASES[:1])
    assert result.cases[0].disturbed
    (arm,) = result.cases[0].arms
    assert len(arm.launches) == EFFORT.launches + runner.REPEATS
    assert arm.estimate is not None
    monkeypatch.setattr(runner, "_calm", lambda: False)  # no use to repeat while the load goes on
    assert len(run(CASES[:1]).cases[0].arms[0].launches) == EFFORT.launches


def test_peers_are_resolved_or_name_what_is_missing(monkeypatch) -> None:
    monkeypatch.setattr("cnnkern_bench.peers.installed", lambda library: True)
    assert cb.resolve_peers(["torch", "ort"]) == ("torch", "torch_channels_last", "ort")
    assert cb.usual_peers() == ("torch", "torch_channels_last")
    with pytest.raises(cb.UsageError, match="peer 'tf' does not exist"):
        cb.resolve_peers(["tf"])
    monkeypatch.setattr("cnnkern_bench.peers.installed", lambda library: False)
    assert cb.usual_peers() == ()
    with pytest.raises(cb.UsageError, match=r"needs onnxruntime. Install it: pip install 'cnnkern\[onnx\]'"):
        cb.resolve_peers(["ort"])


def test_validation() -> None:
    cb.validate(HERE)
    with pytest.raises(ValueError, match="backend must be one of"):
        cb.validate(dataclasses.replace(HERE, backend="gpu"))
    with pytest.raises(cb.UsageError, match="finds no row"):
        cb.validate(dataclasses.replace(HERE, kernel="turbo"))
