"""Run ``cnnkern bench`` as on a terminal and keep what it shows as docs/bench.svg.

    python tools/make_bench_picture.py                        a bare "cnnkern bench", which takes about a minute
    python tools/make_bench_picture.py --suite alexnet --vs torch

Arguments go to ``cnnkern bench``. Nothing is drawn if it fails; run it on a quiet machine, as for any number.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "bench.svg"
COLUMNS = 172  # of the terminal: the longest case of suite quick fits


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Exit code and all that the command writes to standard output, which it takes for a terminal, and error."""
    master, slave = pty.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        except OSError:  # Linux's way of saying that the other end is closed
            pass

    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdout=slave, stderr=subprocess.PIPE, env=environment, text=True) as process:
        os.close(slave)
        reader = threading.Thread(target=read)
        reader.start()
        assert process.stderr is not None
        head = process.stderr.read()
        code = process.wait()
        reader.join()
    os.close(master)
    return code, head + b"".join(chunks).decode().replace("\r\n", "\n")


def picture(shown: str, title: str) -> str:
    """Text with ANSI colours as an SVG that loads nothing from elsewhere."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(shown), soft_wrap=False)
    svg = console.export_svg(title=title, theme=MONOKAI)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("font-family: Fira Code,", "font-family: ui-monospace, Consolas, DejaVu Sans Mono,")


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "cnnkern_cli", "bench", *arguments, "--progress", "none"]
    code, shown = on_a_terminal(command)
    if code != 0:
        print(shown, file=sys.stderr)
        return code
    PICTURE.write_text(picture(shown, shlex.join(["cnnkern", "bench", *arguments])), encoding="utf-8")
    print(f"wrote {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
