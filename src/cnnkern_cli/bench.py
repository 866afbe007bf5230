"""``cnnkern bench``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import cnnkern as ck
import cnnkern_bench as cb
from cnnkern_bench import jsonout, machine, report
from cnnkern_bench.cases import PASSES

from .progress import KINDS, progress
from .values import INTERRUPTED, NOTHING, WRONG, Many, Seconds, integers

QUICK_LAUNCHES, QUICK_BUDGET = 3, 45.0  # a bare "cnnkern bench" ends within a minute
DTYPES = ("f32", "f64", "f16", "bf16", "i8", "u8")


@click.command()
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option("--suite", "suites", type=Many(), default=(), help="Suites; see: cnnkern list suites.")
@click.option("--file", type=click.Path(), help="A file of cases, one a line.")
@click.option("--match", metavar="RE", help="Only cases whose string this regular expression finds.")
@click.option("--skip", metavar="RE", help="Not the cases that this finds.")
@click.option("--mb", type=Many(), default=(), help="Batch sizes; lists multiply.")
@click.option("--dt", type=Many(DTYPES), default=(), help="Element types.")
@click.option("--layout", type=Many(("NCHW", "NHWC")), default=(), help="Memory layouts.")
@click.option("--precision", type=Many(("strict", "f32", "fast", "bf16")), default=(), help="Precisions.")
@click.option("--pass", "passes", type=Many(PASSES), default=(), help="Turn forward cases into these passes.")
@click.option("--threads", type=Many(), default=(), metavar="N,max", help="Numbers of threads, the same for all arms.")
@click.option("--backend", help="Force a backend.")
@click.option("--kernel", metavar="RE", help="One line for each kernel row that this finds, such as cpp.direct.")
@click.option("--isa", help="The highest instruction set that our kernels may use.")
@click.option("--vs", type=Many(), metavar="PEERS", help="Beside these: torch,ort,openvino,jax, an arm, or none.")
@click.option("--launches", "--repeat", type=click.IntRange(1, 100), help="Fresh processes per arm [5].")
@click.option("--budget", type=Seconds(), help="About how long the run may take, such as 30s or 5min.")
@click.option("--check", type=click.Choice(["sampled", "full", "off"]), default="sampled", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of data, order and memory offsets.")
@click.option("--sort", type=click.Choice(report.SORTS), default="case", show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write everything measured here.")
@click.option("--progress", "progress_kind", type=click.Choice(KINDS), default="auto", show_default=True)
@click.pass_context
def bench(ctx: click.Context, cases: tuple[str, ...], **given: Any) -> None:
    """Check kernels, then time them, over cases, suites or a file.

    Alone it runs the suite "quick" within a minute, beside PyTorch if that is installed. A ratio is the peer's time
    divided by ours: above 1 we are faster.
    """
    bare = not (cases or given["suites"] or given["file"])
    try:
        selected = _selected(cases, bare, given)
        options = _options(bare, given)
    except (cb.UsageError, ck.ArgumentError) as error:
        raise click.UsageError(str(error)) from None
    if not selected:
        click.echo("no case is left: nothing to measure. See: cnnkern list cases", err=True)
        ctx.exit(NOTHING)
    click.echo(_title(selected, options), err=True)
    if most := _too_many_threads(selected):
        click.echo(most, err=True)
    with progress(given["progress_kind"]) as show:
        result = cb.run(selected, options, show)
    result.command, result.fingerprint = sys.argv, machine.fingerprint()
    if sys.stdout.isatty():
        report.write_terminal(result, given["sort"])
    else:
        report.write_plain(result, sys.stdout, given["sort"])
    if given["json_file"]:
        jsonout.write(result, given["json_file"])
    ctx.exit(_exit_code(result))


def _selected(cases: tuple[str, ...], bare: bool, given: dict[str, Any]) -> list[cb.Case]:
    suites = ("quick",) if bare else given["suites"]
    found = cb.select(cases, suites, given["file"] and Path(given["file"]), given["match"], given["skip"])
    most = len(machine.available_cpus())
    threads = integers("--threads", tuple(str(most) if n == "max" else n for n in given["threads"]))
    mb = integers("--mb", given["mb"])
    return cb.expand(found, mb, given["dt"], given["layout"], given["precision"], given["passes"], threads)


def _options(bare: bool, given: dict[str, Any]) -> cb.Options:
    if given["vs"] is None:
        peers = cb.usual_peers() if bare else ()
    else:
        peers = cb.resolve_peers([name for name in given["vs"] if name != "none"])
    options = cb.Options(
        backend=given["backend"],
        kernel=given["kernel"],
        isa=given["isa"],
        peers=peers,
        effort=cb.Effort(launches=given["launches"] or (QUICK_LAUNCHES if bare else cb.Effort.launches)),
        check=given["check"],
        budget=given["budget"] or (QUICK_BUDGET if bare else None),
        seed=given["seed"],
    )
    cb.validate(options)
    return options


def _title(cases: list[cb.Case], options: cb.Options) -> str:
    facts = machine.cpu_facts()
    threads = sorted({case.problem.threads or ck.get_num_threads() for case in cases})
    arms = f" beside {', '.join(options.peers)}" if options.peers else ""
    return (
        f"{len(cases)} cases{arms}, {options.effort.launches} launches,"
        f" {'/'.join(map(str, threads))} threads on {facts['name']} (hardware {machine.hardware_id()})"
    )


def _too_many_threads(cases: list[cb.Case]) -> str | None:
    threads = max(case.problem.threads or ck.get_num_threads() for case in cases)
    cpus = len(machine.available_cpus())
    return f"warning: {threads} threads on {cpus} CPUs take turns" if threads > cpus else None


def _exit_code(result: cb.RunResult) -> int:
    if result.failures:
        return WRONG
    if not result.complete:
        return INTERRUPTED
    return 0 if result.timed else NOTHING
