"""pytest-benchmark's runs carry our fingerprint, and are compared with runs of the same hardware and cases only."""

from __future__ import annotations

from typing import Any

import pytest

from cnnkern_bench import machine

NOT_COMPARABLE = 5  # as the exit code of cnnkern's own commands


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite", default="quick", help="suites of cnnkern_bench to run, with commas (default: quick)")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    facts = machine.fingerprint()
    machine_info["cnnkern"] = {
        name: facts[name] for name in ("hw_id", "cpu", "software")
    }  # what does not change by itself


def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    here = machine_info["cnnkern"]["hw_id"]
    there = compared_benchmark["machine_info"].get("cnnkern", {}).get("hw_id", "an unknown machine")
    if here != there:
        raise pytest.UsageError(f"the compared run is from hardware {there}, this is {here}: times say nothing")


def _lost(config: pytest.Config) -> list[str]:
    """Cases of the compared runs that did not run now."""
    session = config._benchmarksession
    ran = {benchmark.fullname for benchmark in session.benchmarks}
    return sorted({name for compared in session.compared_mapping.values() for name in compared} - ran)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _lost(session.config) and session.exitstatus == 0:
        session.exitstatus = NOT_COMPARABLE


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name in _lost(config):
        terminalreporter.write_line(f"not comparable: {name} is in the compared run and did not run now", red=True)
