"""``cnnkern explain``."""

from __future__ import annotations

import click

import cnnkern as ck


@click.command()
@click.argument("case")
@click.option("--backend", help="As if this backend were forced.")
@click.option("--kernel", help="As if this row were forced.")
@click.option("--isa", help="As if this were the highest instruction set.")
@click.option("--tune", is_flag=True, default=None, help="As if kernels were tuned: by the times that tuning has kept.")
def explain(case: str, backend: str | None, kernel: str | None, isa: str | None, tune: bool | None) -> None:
    """Say which kernel would compute CASE, how long each one should take, and why every other one cannot serve."""
    try:
        problem = ck.problem.parse(case)
        with ck.using(backend=backend, kernel=kernel or problem.row, isa=isa, tune=tune):
            text = str(ck.explain(str(problem)))
    except (ck.ArgumentError, ck.ShapeError, ck.DTypeError) as error:
        raise click.UsageError(str(error)) from None
    click.echo(str(problem))
    for role, arrays in (("reads", problem.inputs), ("writes", problem.outputs)):
        for array in arrays:
            click.echo(f"  {role:<7}{array.name} {array.shape} {array.dtype}")
    intensity = problem.flops / problem.bytes if problem.bytes else 0.0
    click.echo(f"  {problem.flops:,} operations, {problem.bytes:,} bytes, {intensity:.1f} operations per byte")
    click.echo(text)
