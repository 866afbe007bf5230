"""Write cnnkern/_cnnkern_core.pyi from the compiled module; ``--check`` compares instead and fails if it is stale."""

from __future__ import annotations

import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = "cnnkern._cnnkern_core"
STUB = Path(__file__).resolve().parent.parent / "cnnkern" / "_cnnkern_core.pyi"
HEAD = "# Written by tools/make_stubs.py (make stubs). Do not edit.\n"


def generate() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pybind11_stubgen", MODULE, "--output-dir", folder, "--exit-code"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        text = (Path(folder) / (MODULE.replace(".", "/") + ".pyi")).read_text()
    text = re.sub(r"<(\w+) object at 0x[0-9a-f]+>", r"<\1 object>", text)  # an address is new in every process
    return HEAD + text


def main(check: bool) -> int:
    text = generate()
    if not check:
        STUB.write_text(text)
        return 0
    old = STUB.read_text() if STUB.is_file() else ""
    difference = list(difflib.unified_diff(old.splitlines(), text.splitlines(), "committed", "generated", lineterm=""))
    print("\n".join(difference) or "the committed stub is up to date")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
