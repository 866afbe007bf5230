"""Which problems a run measures: suites, case strings and files, filtered, then multiplied by the axes asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from cnnkern import ArgumentError, ShapeError
from cnnkern.problem import Problem, parse

PASSES = ("fwd", "grad_input", "grad_weight")
_GRADIENTS = {  # forward table op -> pass -> table op
    "conv": {"grad_input": "conv_grad_input", "grad_weight": "conv_grad_weight"},
    **{
        name: {"grad_input": f"{name}_grad"}
        for name in (
            *("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool", "max_unpool"),
            *("local_response_norm", "relu", "tanh", "sigmoid"),
        )
    },
}
_PASS_OF = {op: name for passes in _GRADIENTS.values() for name, op in passes.items()}
_KEPT_OPTIONS = ("count_include_pad", "divisor", "norm_type", "size", "alpha", "beta", "k")  # also the gradient's


class UsageError(ValueError):
    """What was asked for cannot be run: an unknown suite, an unreadable case."""


@dataclass(frozen=True)
class Case:
    """A problem to measure and the suites it belongs to."""

    problem: Problem
    suites: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return str(self.problem)

    @property
    def pass_name(self) -> str:
        """The pass for which results are summed up: "fwd", "grad_input", "grad_weight"."""
        return _PASS_OF.get(self.problem.op, "fwd")


def suite_names() -> list[str]:
    """The suites that come with the package."""
    folder = resources.files(__package__) / "suites"
    return sorted(entry.name.removesuffix(".txt") for entry in folder.iterdir() if entry.name.endswith(".txt"))


def load_suite(name: str) -> list[Problem]:
    """The problems of a suite, in the order of its file.

    Raises:
        UsageError: no such suite, or a line that is no case.
    """
    if name not in suite_names():
        raise UsageError(f"suite {name!r} does not exist. Suites: {', '.join(suite_names())}.")
    text = (resources.files(__package__) / "suites" / f"{name}.txt").read_text(encoding="utf-8")
    return list(_read(text, f"suite {name}"))


def load_file(path: str | Path) -> list[Problem]:
    """The problems of a file in the format of the suites: a case per line, ``#`` comments, ``include SUITE``."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    return list(_read(text, str(path)))


def _read(text: str, where: str) -> Iterator[Problem]:
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if line.startswith("include "):
            yield from load_suite(line.removeprefix("include ").strip())
        elif line:
            try:
                yield parse(line)
            except (ArgumentError, ShapeError) as error:
                raise UsageError(f"{where}, line {number}: {error}") from None


def select(
    texts: Sequence[str] = (),
    suites: Sequence[str] = (),
    file: str | Path | None = None,
    match: str | None = None,
    skip: str | None = None,
) -> list[Case]:
    """Cases from strings, suites and a file, without repetitions, filtered by regular expressions on their strings.

    A problem that occurs in several suites is measured once and counts in each of them.

    Raises:
        UsageError: an unreadable case, an unknown suite, a bad regular expression.
    """
    found: dict[str, Case] = {}
    sources = [("", list(_read("\n".join(texts), "case")))]
    sources += [(suite, load_suite(suite)) for suite in suites]
    sources += [(Path(file).stem, load_file(file))] if file else []
    for suite, problems in sources:
        for problem in problems:
            case = found.setdefault(problem.key, Case(problem))
            if suite and suite not in case.suites:
                found[problem.key] = replace(case, suites=(*case.suites, suite))
    wanted, unwanted = pattern(match), pattern(skip)
    return [
        case
        for case in found.values()
        if (wanted is None or wanted.search(case.id)) and not (unwanted is not None and unwanted.search(case.id))
    ]


def pattern(text: str | None) -> re.Pattern[str] | None:
    """The regular expression, or None for None.

    Raises:
        UsageError: it is not one.
    """
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"{text!r} is not a regular expression: {error}.") from None


def expand(
    cases: Iterable[Case],
    mb: Sequence[int] = (),
    dt: Sequence[str] = (),
    layout: Sequence[str] = (),
    precision: Sequence[str] = (),
    passes: Sequence[str] = (),
    threads: Sequence[int] = (),
) -> list[Case]:
    """Every case with every combination of the values given; an empty list keeps what the case says.

    ``passes`` turns a forward case into the gradients named (those its op has) and drops gradients that are not named.
    """
    expanded: dict[str, Case] = {}
    for case in cases:
        axes: list[Sequence[Any]] = [axis or (None,) for axis in (mb, dt, layout, precision, threads)]
        for values in product(*axes):
            changed = _with(case.problem, *values)
            for problem in _passes(changed, passes):
                expanded.setdefault(problem.key, replace(case, problem=problem))
    return list(expanded.values())


def _with(
    problem: Problem, mb: int | None, dt: str | None, layout: str | None, precision: str | None, threads: int | None
) -> Problem:
    """The problem with the values given; None keeps what it says."""
    geometry = problem.geometry
    if mb is not None:
        if hasattr(geometry, "shape"):
            geometry = replace(geometry, shape=(mb, *geometry.shape[1:]))
        else:
            geometry = replace(geometry, **{"batch" if hasattr(geometry, "batch") else "rows": mb})
    return replace(
        problem,
        geometry=geometry,
        dtype=dt or problem.dtype,
        layout=layout or problem.layout,
        precision=precision or problem.precision,
        threads=threads or problem.threads,
    )


def _passes(problem: Problem, passes: Sequence[str]) -> Iterator[Problem]:
    if not passes:
        yield problem
        return
    if problem.op in _PASS_OF:
        if _PASS_OF[problem.op] in passes:
            yield problem
        return
    for name in passes:
        if name == "fwd":
            yield problem
        elif name in _GRADIENTS.get(problem.op, {}):
            options = tuple((key, value) for key, value in problem.options if key in _KEPT_OPTIONS)
            yield replace(problem, op=_GRADIENTS[problem.op][name], options=options, plan=False)
