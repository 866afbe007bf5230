"""The plugin that turns an unexpected skip into a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ALLOWED = "'CNNKERN_DATA is not set: no data sets here'"
UNKNOWN = "'today is not the day'"


def exit_code(folder: Path, source: str, strict: str) -> int:
    """Of pytest with the plugin, on this test file and one test that passes."""
    (folder / "test_one.py").write_text(f"import pytest\n{source}\ndef test_passes(): pass\n")
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "CNNKERN_STRICT": strict}
    command = [sys.executable, "-m", "pytest", "-p", "skips", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"def test_it(): pytest.skip({ALLOWED})", 0),
        (f"def test_it(): pytest.skip({UNKNOWN})", 1),
        (f"pytest.skip({ALLOWED}, allow_module_level=True)", 0),
        (f"pytest.skip({UNKNOWN}, allow_module_level=True)", 1),
        (f"@pytest.mark.skipif(True, reason={UNKNOWN})\ndef test_it(): pass", 1),
        ("def test_it(): pytest.importorskip('no_such_package')", 1),
        ("def test_it(): pytest.xfail('known')", 0),
    ],
)
def test_strict_mode_knows_the_skips_it_expects(tmp_path, source, expected):
    (tmp_path / "test_two.py").write_text("def test_passes_too(): pass\n")  # a skipped module leaves no other test
    assert exit_code(tmp_path, source, strict="1") == expected


def test_outside_of_strict_mode_a_skip_is_a_skip(tmp_path):
    assert exit_code(tmp_path, f"def test_it(): pytest.skip({UNKNOWN})", strict="0") == 0
