"""Python programs in a process of their own: for what ends, forks, fills or interrupts a process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_script(
    source: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``source``, which sees the tests' modules and the same cnnkern as this process.

    environment: variables that differ from this process's; settings of cnnkern are never inherited.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CNNKERN_")}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source), *arguments],
        env={**inherited, "PYTHONPATH": path, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(source: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None) -> str:
    """What the program prints; the test fails with all it said if it does not end well."""
    done = run_script(source, *arguments, timeout=timeout, environment=environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
