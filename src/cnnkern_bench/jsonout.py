"""The result as JSON: everything that was measured, so that any statistic can be made again later.

Top level: ``schema`` (1), ``complete``, ``command``, ``seed``, ``seconds``, ``launches``, ``peers``, ``fingerprint``
(hw_id, cpu, software, environment), ``roofs`` (by number of threads: peaks in GFLOP/s, copies in GB/s), ``summary``
(a line for each suite, pass and kernel) and ``cases``. A case has its string, key, suites, pass, weight (how often the
layer occurs), threads, flops, bytes and ``arms``; an arm its name, row, status and message, and where it was timed
seconds, interval (half of the 95 % interval), calls per sample, rate, of_roof, ratios, and all ``launches`` with every
sample of every slot and what disturbed them.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare import of_roof, ratios, summarize
from .results import Arm, CaseResult, RunResult
from .roofs import rate

SCHEMA = 1


def as_dict(run: RunResult) -> dict[str, Any]:
    """The result as plain dicts and lists."""
    return {
        "schema": SCHEMA,
        "complete": run.complete,
        "command": list(run.command),
        "seed": run.seed,
        "seconds": run.seconds,
        "launches": run.launches,
        "peers": list(run.peers),
        "fingerprint": run.fingerprint,
        "roofs": {str(threads): asdict(roofs) for threads, roofs in run.roofs.items()},
        "summary": [asdict(summary) for summary in summarize(run)],
        "cases": [_case(run, result) for result in run.cases],
    }


def write(run: RunResult, path: str | Path) -> None:
    """Write the result; what stood there before stays until the new file is whole."""
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(as_dict(run), indent=1) + "\n", encoding="utf-8")
    partial.replace(target)


def _case(run: RunResult, result: CaseResult) -> dict[str, Any]:
    problem = result.case.problem
    return {
        "case": result.case.id,
        "key": problem.key,
        "suites": list(result.case.suites),
        "pass": result.case.pass_name,
        "weight": problem.count,
        "threads": result.threads,
        "flops": problem.flops,
        "bytes": problem.bytes,
        "disturbed": result.disturbed,
        "arms": [_arm(run, result, arm) for arm in result.arms],
    }


def _arm(run: RunResult, result: CaseResult, arm: Arm) -> dict[str, Any]:
    found: dict[str, Any] = {"name": arm.name, "peer": arm.peer, "row": arm.row, "status": arm.status}
    if arm.message:
        found["message"] = arm.message
    time = arm.estimate
    if time is not None:
        amount, unit = rate(result.case.problem, time.seconds)
        found |= {
            "seconds": time.seconds,
            "interval": time.interval,
            "rate": amount,
            "unit": unit,
            "calls": arm.calls,
            "prepare": arm.prepare,
            "launches": [asdict(launch) for launch in arm.launches],
        }
        if not arm.peer:
            found |= {"of_roof": of_roof(run, result, arm), "ratios": ratios(result, arm)}
    return found
