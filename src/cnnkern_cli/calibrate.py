"""``cnnkern calibrate``."""

from __future__ import annotations

import click

import cnnkern as ck

from .values import NOTHING


@click.command()
@click.option("--show", is_flag=True, help="Measure nothing: print what estimates are made from now.")
@click.pass_context
def calibrate(ctx: click.Context, show: bool) -> None:
    """Measure what one core of this machine can do, and keep it: kernels are chosen by estimates made from it.

    Some seconds on a quiet machine. Without it, estimates use defaults for each instruction set.
    """
    try:
        found = ck.ceilings() if show else ck.calibrate()
    except ck.NoKernelError as error:
        click.echo(str(error), err=True)
        ctx.exit(NOTHING)
    for name, peak in found["peaks"].items():
        click.echo(f"  {name:<14}{peak:10.1f} GFLOP/s of multiply-adds")
    click.echo(f"  {'memory':<14}{found['memory']:10.1f} GB/s copied, read plus written")
    click.echo(f"  {'cache':<14}{found['cache']:10.1f} GB/s read from the last-level cache")
    click.echo(f"  {'call':<14}{found['call'] * 1e6:10.2f} us for the smallest call")
    if found["file"]:
        click.echo(f"kept in {found['file']}; later processes use it")
    else:
        click.echo("defaults, not measured" if show else "there is no place to keep it: see the log, CNNKERN_CACHE_DIR")
