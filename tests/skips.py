"""A plugin that pyproject.toml loads: under CNNKERN_STRICT=1, which CI sets, an unexpected skip is a failure.

A test that skips wherever it runs is not a test. Each pattern below is a reason that CI machines may have.
"""

from __future__ import annotations

import os
import re

import pytest

ALLOWED = (
    r"CNNKERN_DATA is not set",  # the data sets are not part of the repository
    r"this CPU lacks (avx2|avx512|avx512vnni|amx)\b",
    r"(avx2|avx512|avx512vnni|amx|neon) is not built (here|by this compiler)",
)

unexpected: list[str] = []


def is_allowed(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in ALLOWED)


def _note(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not is_allowed(reason):
            unexpected.append(f"{report.nodeid}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if unexpected and os.environ.get("CNNKERN_STRICT") == "1":
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if unexpected and os.environ.get("CNNKERN_STRICT") == "1":
        terminalreporter.section("unexpected skips", red=True)
        terminalreporter.write_line("\n".join(unexpected))
        terminalreporter.write_line("Allow a reason in tests/skips.py, or make the test run.")
