"""Progress on standard error: a bar on a terminal, a line for each launch elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

KINDS = ("auto", "bar", "plain", "none")
Report = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress(kind: str) -> Iterator[Report]:
    """A function ``report(done, total, text)`` for the time of the block."""
    if kind == "auto":
        kind = "bar" if sys.stderr.isatty() else "plain"
    if kind == "bar":
        with _bar() as report:
            yield report
    elif kind == "plain":
        yield _plain
    else:
        yield lambda done, total, text: None


@contextlib.contextmanager
def _bar() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _plain(done: int, total: int, text: str) -> None:
    if text.endswith("done"):
        print(f"{text}: {done} of {total}", file=sys.stderr, flush=True)
