"""Does the installed cnnkern work? Runs in the environment to judge: check_installed.py extension|no-extension HOME

``extension``: the compiled kernels are there and run. ``no-extension``: no compiled kernel is listed, the ops work all
the same, and ``cnnkern doctor`` tells why. In both cases the packages must come from under HOME.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import cnnkern


def command(*words: str) -> str:
    """Output of the console script that was installed beside this Python."""
    script = Path(sys.executable).parent / "cnnkern"
    result = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"cnnkern {' '.join(words)} ended with {result.returncode}:\n{result.stderr}"
    return result.stdout


def check_ops() -> None:
    """A convolution and a pooling that fit on a napkin, forward and backward."""
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    weight = np.ones((1, 1, 3, 3), np.float32)
    y = cnnkern.conv2d(x, weight)
    assert y.tolist() == [[[[45, 54], [81, 90]]]], y
    grad_x, grad_weight, _ = cnnkern.conv2d_backward(np.ones_like(y), x, weight)
    assert grad_x.tolist() == [[[[1, 2, 2, 1], [2, 4, 4, 2], [2, 4, 4, 2], [1, 2, 2, 1]]]], grad_x
    assert grad_weight.tolist() == [[[[10, 14, 18], [26, 30, 34], [42, 46, 50]]]], grad_weight
    assert cnnkern.max_pool2d(x, 2).tolist() == [[[[5, 7], [13, 15]]]]


def main(expect: str, home: str) -> None:
    for package in ("cnnkern", "cnnkern_bench", "cnnkern_cli"):
        folder = Path(__import__(package).__file__).resolve().parent
        assert folder.is_relative_to(Path(home).resolve()), f"{package} comes from {folder}, not from under {home}"
        assert (folder / "py.typed").is_file(), f"{package} has no py.typed"
    check_ops()

    info = json.loads((Path(cnnkern.__file__).parent / "_build_info.json").read_text())
    compiled = cnnkern.kernels(backend="cpp")
    report = command("doctor")
    requires = importlib.metadata.requires("cnnkern") or []
    needs_numba = any(line.startswith("numba") and "extra" not in line for line in requires)
    if expect == "extension":
        assert info["built"] and compiled, info
        assert not needs_numba, requires
        print(f"cnnkern {importlib.metadata.version('cnnkern')}: {len(compiled)} compiled kernels, {info['isas']}")
    else:
        assert not info["built"] and not compiled, info
        assert needs_numba, requires
        squeezed = "".join(report.split())  # the report may wrap its lines
        assert "".join(info["reason"].split()) in squeezed, f"doctor does not quote {info['reason']!r}:\n{report}"
        strict = {**os.environ, "CNNKERN_STRICT": "1"}
        call = "import cnnkern, numpy; cnnkern.relu(numpy.ones((1, 1, 1, 1), 'f4'))"
        result = subprocess.run([sys.executable, "-c", call], env=strict, capture_output=True, text=True, check=False)
        assert result.returncode and "NoKernelError" in result.stderr, "CNNKERN_STRICT=1 let a slower backend run"
        print(f"without a compiler: {info['reason']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
