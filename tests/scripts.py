"""Python programs in a process of their own: for what ends, forks, fills or interrupts a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap


def run_script(
    source: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Run ``source``, which sees the tests' modules and the same cnnkern as this process.

    Args:
        source: the program.
        arguments: ``sys.argv[1:]``.
        timeout: seconds, after which the program and all it started are killed and the test fails.
        environment: variables to set; settings of cnnkern in this process are not inherited.

    Returns:
        Exit status, standard output, standard error.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CNNKERN_")}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source), *arguments],
        env={**inherited, "PYTHONPATH": path, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        raise AssertionError(f"no end after {timeout} seconds\n{output}\n{errors}") from None
    return process.returncode, output, errors


def output_of(source: str, *arguments: str, timeout: float = 120, environment: dict[str, str] | None = None) -> str:
    """What the program prints; the test fails with all it said if it does not end well."""
    status, output, errors = run_script(source, *arguments, timeout=timeout, environment=environment)
    assert status == 0, f"exit status {status}\n{output}\n{errors}"
    return output
