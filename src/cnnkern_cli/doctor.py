"""``cnnkern doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import click

import cnnkern as ck
from cnnkern_bench import machine, peers


@click.command()
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write it here.")
def doctor(json_file: str | None) -> None:
    """Print this machine, what spoils timing on it, and which kernels it cannot run, with the reasons."""
    facts = machine.fingerprint()
    cpu = facts["cpu"]
    click.echo(f"cnnkern {facts['software']['cnnkern']}, hardware {facts['hw_id']}")
    click.echo(f"  CPU        {cpu['name']} ({cpu['vendor']} family {cpu['family']} model {cpu['model']})")
    click.echo(
        f"  cores      {cpu['cores']} cores, {cpu['cpus']} CPUs, {len(machine.available_cpus())} for this process"
    )
    click.echo(f"  sets       {' '.join(cpu['flags']) or 'none that kernels are chosen by'}")
    click.echo(f"  caches     {', '.join(f'{name} {size}' for name, size in cpu['caches'].items()) or 'unknown'}")
    click.echo(f"  threads    {ck.get_num_threads()} per call")
    for name, value in facts["software"].items():
        if name not in ("cnnkern", "build") and value:
            click.echo(f"  {name:<10} {value}")
    click.echo(
        f"  {'estimates':<10} {ck.ceilings()['file'] or 'from defaults; cnnkern calibrate measures this machine'}"
    )
    click.echo("build")
    for name, value in ck.build_info().items():
        click.echo(f"  {name:<10} {value}")
    click.echo("kernels that cannot run here")
    missing = machine.missing_kernels()
    for sentence in missing or ["  none: every kernel of this build runs on this machine"]:
        click.echo(f"  {sentence.strip()}")
    click.echo("peers")
    for peer in peers.PEERS.values():
        state = "installed" if peers.installed(peer.library) else f"missing: pip install '{peer.install}'"
        click.echo(f"  {peer.arm:<20} {peer.about:<48} {state}")
    click.echo("what spoils timing")
    spoilers = machine.spoilers()
    for sentence in spoilers or ["nothing that can be seen from here"]:
        click.echo(f"  {sentence}")
    if json_file:
        facts["missing_kernels"], facts["spoilers"] = missing, spoilers
        Path(json_file).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
