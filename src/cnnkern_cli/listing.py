"""``cnnkern list``."""

from __future__ import annotations

import click

import cnnkern as ck
import cnnkern_bench as cb

from .values import NOTHING, Many


@click.command("list")
@click.argument("what", type=click.Choice(["cases", "suites", "kernels"]))
@click.option("--suite", "suites", type=Many(), default=(), help="Only cases of these suites.")
@click.option("--match", metavar="RE", help="Only what this regular expression finds.")
@click.pass_context
def list_(ctx: click.Context, what: str, suites: tuple[str, ...], match: str | None) -> None:
    """List cases, suites or kernels, one a line."""
    try:
        lines = {"cases": _cases, "suites": _suites, "kernels": _kernels}[what](suites, match)
    except cb.UsageError as error:
        raise click.UsageError(str(error)) from None
    for line in lines:
        click.echo(line)
    if not lines:
        click.echo(f"no {what} found", err=True)
        ctx.exit(NOTHING)


def _cases(suites: tuple[str, ...], match: str | None) -> list[str]:
    return [case.id for case in cb.select(suites=suites or cb.suite_names(), match=match)]


def _suites(suites: tuple[str, ...], match: str | None) -> list[str]:
    names = [name for name in cb.suite_names() if not suites or name in suites]
    counts = {name: len(cb.select(suites=[name], match=match)) for name in names}
    return [f"{name:<24}{count:>4} cases" for name, count in counts.items() if count]


def _kernels(suites: tuple[str, ...], match: str | None) -> list[str]:
    pattern = cb.pattern(match)
    lines = []
    for row in ck.kernels():
        name = f"{row.op}.{row.name}"
        if pattern is None or pattern.search(name):
            ranks = "/".join(f"{rank}d" for rank in row.ranks)
            columns = (",".join(row.dtypes), ",".join(row.layouts), ranks, ",".join(row.precisions))
            lines.append(f"{name:<44}{columns[0]:<14} {columns[1]:<10} {columns[2]:<9} {columns[3]}")
    return lines
