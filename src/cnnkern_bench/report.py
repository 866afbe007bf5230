"""The result as text: a table on a terminal, plain lines elsewhere; then what failed, and a closing table."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TextIO

from .compare import FASTEST, Summary, of_roof, ratios, summarize
from .results import OUT_OF_TIME, Arm, CaseResult, RunResult
from .roofs import rate

SORTS = ("case", "time", "rate", "peak", "ratio")
ABOVE_ROOF = 1.05  # beyond it the roof or the time was measured wrongly
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))

Row = tuple[str, ...]


def format_time(seconds: float, interval: float | None) -> str:
    """``312.4 us ± 1.2``: digits end where the interval's second digit does."""
    scale, unit = next(((s, u) for s, u in _UNITS if seconds >= s), _UNITS[-1])
    value = seconds / scale
    if not interval:
        return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"
    spread = interval / scale
    digits = min(3, max(0, 1 - math.floor(math.log10(spread))))
    return f"{value:.{digits}f} {unit} ± {spread:.{digits}f}"


def headings(run: RunResult) -> Row:
    peers = [f"vs {name}" for name in run.peers]
    return ("case", "kernel", "time", "rate", "% peak", *peers, *(["vs fastest"] if len(peers) > 1 else []))


def rows(run: RunResult, sort: str = "case") -> list[Row]:
    """A row of text for each of our arms that has a time."""
    timed = [(result, arm) for result in run.cases for arm in result.ours if arm.estimate]
    keys = {
        "time": lambda pair: -pair[1].estimate.seconds,
        "rate": lambda pair: rate(pair[0].case.problem, pair[1].estimate.seconds)[0],
        "peak": lambda pair: of_roof(run, *pair) or 0.0,
        "ratio": lambda pair: ratios(*pair).get(FASTEST, math.inf),
    }
    if sort in keys:
        timed.sort(key=keys[sort])
    return [_row(run, result, arm) for result, arm in timed]


def _row(run: RunResult, result: CaseResult, arm: Arm) -> Row:
    time = arm.estimate
    assert time is not None
    amount, unit = rate(result.case.problem, time.seconds)
    part = of_roof(run, result, arm)
    to_peers = ratios(result, arm)
    columns = [*run.peers, *([FASTEST] if len(run.peers) > 1 else [])]
    return (
        result.case.id,
        arm.row.partition(".")[2] or arm.row,
        format_time(time.seconds, time.interval) + (" ~" if result.disturbed else ""),
        f"{amount:.{1 if amount < 100 else 0}f} {unit}",
        "-" if part is None else f"{part:.0%}" + (" !" if part > ABOVE_ROOF else ""),
        *(_ratio(to_peers.get(name)) for name in columns),
    )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def notes(run: RunResult) -> list[str]:
    """Everything that is no time: wrong results, crashes, refusals, disturbances."""
    lines = []
    for result, arm in run.failures:
        row = f" [{arm.row or arm.name}]"
        lines.append(f"{arm.status.upper()}  {result.case.id}{row}: {arm.message}")
    lines += _declined(run)
    disturbed = [result for result in run.cases if result.disturbed]
    if disturbed:
        causes = [cause for r in disturbed for arm in r.arms for launch in arm.launches for cause in launch.causes]
        lines.append(f"~ {len(disturbed)} disturbed, so take their times as upper bounds: {'; '.join(_worst(causes))}")
    above = [r.case.id for r in run.cases for arm in r.ours if (of_roof(run, r, arm) or 0) > ABOVE_ROOF]
    if above:
        lines.append(f"! {len(above)} above the measured roof: that roof or time is wrong ({above[0]})")
    if not run.complete:
        lines.append("interrupted: what follows is what was measured until then")
    return lines


def _declined(run: RunResult) -> list[str]:
    """Arms without a time that are no failures of ours, those with the same reason in one line."""
    verbs = {"cannot": "declines", "wrong": "computes something else in", "crashed": "crashed in"}
    found: dict[tuple[str, str, str], list[str]] = {}
    for result in run.cases:
        for arm in result.arms:
            if arm.status in verbs and (arm.message != OUT_OF_TIME if arm.peer else arm.status == "cannot"):
                found.setdefault((arm.name, arm.status, arm.message), []).append(result.case.id)
    return [
        f"{name} {verbs[status]} {cases[0] if len(cases) == 1 else f'{len(cases)} cases'}: {message}"
        for (name, status, message), cases in found.items()
    ]


def _worst(causes: list[str]) -> list[str]:
    """Causes that differ by a percentage only become one, with the highest."""
    worst: dict[str, str] = {}
    for cause in causes:
        kind = re.sub(r"\d+%", "", cause)
        worst[kind] = max(worst.get(kind, ""), cause, key=lambda text: (len(text), text))
    return list(worst.values())


def summary_headings(run: RunResult) -> Row:
    names = [*run.peers, *([FASTEST] if len(run.peers) > 1 else [])]
    columns = (column for name in names for column in (f"vs {name}", "min"))
    return ("suite", "pass", "kernel", "cases", "all layers", "% peak", *columns)


def summary_rows(run: RunResult) -> list[Row]:
    """A row of text for each suite, pass and arm: count, weighted time, geometric means and minima of the ratios."""
    names = [*run.peers, *([FASTEST] if len(run.peers) > 1 else [])]
    found = []
    for s in summarize(run):
        cells = []
        for name in names:
            cells += [_ratio(s.means.get(name)), _ratio(s.minima.get(name))]
        count = f"{s.count}" + (f" ({s.failed} failed)" if s.failed else "")
        roof = "-" if s.of_roof is None else f"{s.of_roof:.0%}"
        seconds = format_time(s.seconds, None) if s.count else "-"
        found.append((s.suite, s.pass_name, s.arm, count, seconds, roof, *cells))
    return found


def verdict(run: RunResult) -> str:
    """One sentence for a person."""
    results = [(result, arm) for result in run.cases for arm in result.ours if arm.estimate]
    text = f"{len(results)} of {sum(len(r.ours) for r in run.cases)} checked and timed in {run.seconds:.0f} s"
    compared = [s for s in summarize(run) if FASTEST in s.means]
    if compared:
        values = [ratios(result, arm)[FASTEST] for result, arm in results if ratios(result, arm)]
        mean = math.exp(sum(map(math.log, values)) / len(values))
        worst = min(compared, key=lambda s: s.minima[FASTEST])
        others = run.peers[0] if len(run.peers) == 1 else f"the fastest of {', '.join(run.peers)}"
        text += f"; {_times(mean)} {others} (geometric mean of {len(values)} cases)"
        text += f"; lowest {_ratio(worst.minima[FASTEST])} in {worst.worst}"
    if run.failures:
        text += f"; {len(run.failures)} WRONG OR CRASHED"
    return text + "."


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times as slow as"


def write_plain(run: RunResult, out: TextIO, sort: str = "case") -> None:
    """Aligned columns without colour or boxes: for logs and pipes."""
    for line in _aligned(headings(run), rows(run, sort)):
        print(line, file=out)
    for note in notes(run):
        print(note, file=out)
    print(file=out)
    for line in _aligned(summary_headings(run), summary_rows(run)):
        print(line, file=out)
    print(verdict(run), file=out)


def _aligned(head: Row, body: list[Row]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
    for row in (head, *body):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def write_terminal(run: RunResult, sort: str = "case") -> None:
    """Tables in colour: green where we are faster than a peer, red where slower."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for head, body, title in (
        (headings(run), rows(run, sort), None),
        (summary_headings(run), summary_rows(run), "geometric means and minima"),
    ):
        table = Table(title=title, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
        for name in head:
            words = name in ("case", "kernel", "suite", "pass")
            table.add_column(
                name if words else name.replace("_", "_\n"),  # peers' names are longer than their ratios
                justify="left" if words else "right",
                overflow="fold",
                no_wrap=not words,
                min_width=32 if name == "case" else None,
            )
        ratio_columns = [i for i, name in enumerate(head) if name.startswith("vs ") or name == "min"]
        for row in body:
            table.add_row(*(_coloured(cell) if i in ratio_columns else _escaped(cell) for i, cell in enumerate(row)))
        console.print(table)
        console.print()
        if title is None:
            for note in notes(run):
                console.print(
                    note, style="bold red" if note.startswith(("WRONG", "CRASHED")) else "yellow", markup=False
                )
    console.print(verdict(run), style="bold", markup=False)


def _escaped(cell: str) -> str:
    return cell.replace("[", r"\[")


def _coloured(cell: str) -> str:
    try:
        ratio = float(cell)
    except ValueError:
        return cell
    return f"[green]{cell}[/]" if ratio >= 1 else f"[red]{cell}[/]" if ratio < 0.8 else f"[yellow]{cell}[/]"


__all__ = ["SORTS", "Summary", "format_time", "verdict", "write_plain", "write_terminal"]
