"""From request to kernel: one table, one function that says why a row cannot serve, choice, explanation."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from . import config
from .backends import Backend, load, load_all
from .config import BACKENDS, Settings
from .errors import ArgumentError, NoKernelError, show
from .spec import ISA_LEVELS, OPS, ClassGeometry, Kernel, PointwiseGeometry, Request, op_name

log = logging.getLogger("cnnkern")


@dataclass(frozen=True)
class Verdict:
    """One line of an explanation: a row, or a whole backend that did not load, and why it was (not) chosen."""

    name: str
    kernel: Kernel | None
    sentence: str
    seconds: float | None = None  # the cost model's estimate for one core, where the row has one
    measured: float | None = None  # what tuning measured, under using(tune=True)


@dataclass(frozen=True)
class Explanation:
    """Every row considered for one request. ``str()`` gives the table; ``chosen`` is the row that would run."""

    request: Request
    chosen: Kernel | None
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        title = f"{op_name(self.request.op, self.request.geometry.rank)} {self.request.dtype} {self.request.layout}"
        title += ", weights packed before" * self.request.prepacked
        width = max((len(v.name) for v in self.verdicts), default=0)
        return "\n".join([title, *(f"  {v.name:<{width}}  {v.sentence}" for v in self.verdicts)])


def kernels(op: str | None = None, backend: str | None = None) -> list[Kernel]:
    """The table of kernels: every row of every backend that loads here, in the order of preference.

    Args:
        op: a table op ("conv", "max_pool_grad") or its name with a rank ("conv2d"); None: all.
        backend: "cpp" or "reference"; None: all.

    Returns:
        Kernel rows; ``op backend algorithm isa dtypes layouts ranks precisions`` are their columns.

    Raises:
        ArgumentError: no such op or backend.
    """
    if op is not None:
        known = {name: table_op for table_op, spec in OPS.items() for name in (table_op, *_names(table_op))}
        if not isinstance(op, str) or op not in known:
            raise ArgumentError(f"kernels: op {show(op)} is not known. Use one of {', '.join(OPS)}.")
        op = known[op]
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(f"kernels: backend must be one of {', '.join(BACKENDS)}, got {show(backend)}.")
    return [row for b in load_all() if backend in (None, b.name) for row in b.kernels if op in (None, row.op)]


def _names(op: str) -> list[str]:
    return [op_name(op, rank) for rank in OPS[op].ranks]


def matches(kernel: Kernel, wanted: str) -> bool:
    """Whether ``backend[.algorithm[.isa]]`` names this row; parts left out at the end are free."""
    parts = wanted.split(".")
    return kernel.name.split(".")[: len(parts)] == parts


def why_not(kernel: Kernel, request: Request, settings: Settings) -> str | None:
    """The sentence that says what the row needs and what came, or None if it can serve. The only judge of rows."""
    if settings.backend is not None and kernel.backend != settings.backend:
        return f"backend {settings.backend} was asked for"
    if settings.kernel is not None and not matches(kernel, _forced_for(request.op, settings.kernel)):
        return f"kernel {settings.kernel} was asked for"
    if settings.isa is not None and kernel.isa is not None:
        if settings.isa not in ISA_LEVELS or kernel.isa not in ISA_LEVELS:
            if kernel.isa not in (settings.isa, "scalar"):
                return f"isa {settings.isa} was asked for"
        elif ISA_LEVELS.index(kernel.isa) > ISA_LEVELS.index(settings.isa):
            return f"needs isa {kernel.isa}, the ceiling is {settings.isa}"
    if request.device != "cpu":
        return f"the arrays are on device {request.device}"
    if request.dtype not in kernel.dtypes:
        return f"needs dtype {' or '.join(kernel.dtypes)}, got {request.dtype}"
    if request.layout not in kernel.layouts:
        return f"needs layout {' or '.join(kernel.layouts)}, got {request.layout}"
    if request.geometry.rank not in kernel.ranks:
        return f"needs {' or '.join(map(str, kernel.ranks))} spatial axes, got {request.geometry.rank}"
    if request.precision not in kernel.precisions:
        return f"serves precision {' or '.join(kernel.precisions)}, got {request.precision}"
    return kernel.why_not(request)


def _forced_for(op: str, wanted: str) -> str:
    """The part of a forced row name that concerns this op.

    An op without a row of the forced algorithm (the bias gradient beside a forced convolution) keeps backend and ISA.
    """
    backend, *rest = wanted.split(".")
    if not rest or any(row.op == op and row.algorithm == rest[0] for row in load(backend).kernels):
        return wanted
    rows = [row for row in load(backend).kernels if row.op == op and (len(rest) < 2 or row.isa == rest[1])]
    for row in sorted(rows, key=lambda row: row.algorithm != "direct"):  # direct serves everything
        return ".".join([backend, row.algorithm, *rest[1:]])
    return wanted


def _check_forced(settings: Settings) -> None:
    """A forced choice that does not exist at all is an error before any request is looked at."""
    if settings.kernel is not None:
        backend = settings.kernel.split(".")[0]
        if backend not in BACKENDS:
            raise ArgumentError(
                f"kernel {settings.kernel!r} names no backend. Begin with one of {', '.join(BACKENDS)}."
            )
        if load(backend).reason is None and not any(matches(row, settings.kernel) for row in load(backend).kernels):
            names = sorted({row.name for row in load(backend).kernels})
            raise ArgumentError(f"kernel {settings.kernel!r} names no row. Rows of {backend}: {', '.join(names)}.")
    if settings.isa is not None:
        cpp = load("cpp")
        if cpp.reason is None and settings.isa not in cpp.isas:
            raise ArgumentError(
                f"isa {settings.isa!r} is not available: this CPU and build offer {', '.join(cpp.isas)}."
            )


def _verdicts(request: Request, settings: Settings, measure: bool) -> Iterator[Verdict]:
    """Rows in the order of preference: backends as listed; inside one as ``_ranked``, then what cannot serve."""
    tune = settings.tune
    for backend in load_all():
        if backend.reason is not None:
            yield Verdict(backend.name, None, backend.reason)
            continue
        rows = [(row, why_not(row, request, settings)) for row in backend.kernels if row.op == request.op]
        able = [row for row, sentence in rows if sentence is None]
        estimates = _estimates(able, request)
        ranked = _ranked(able, estimates)
        times: dict[str, float] = {}
        if tune and able:
            from . import tuning  # on use: most processes never tune

            times = (tuning.measure if measure else tuning.known)(_for_costs(request), ranked, estimates)
            ranked = _by_time(ranked, times)
            tune = False  # slower backends are no competitors
        for row in ranked:
            yield Verdict(
                row.full_name(request.geometry.rank, request.dtype), row, "", estimates[row.name], times.get(row.name)
            )
        for row, sentence in rows:
            if sentence is not None:
                yield Verdict(row.full_name(request.geometry.rank, request.dtype), row, sentence)


def _for_costs(request: Request) -> Request:
    """What estimates and measurements see: under "strict" one image, whose bits must be the same in any batch."""
    geometry = request.geometry
    if request.precision == "strict" and not isinstance(geometry, (PointwiseGeometry, ClassGeometry)):
        return replace(request, geometry=replace(geometry, batch=min(geometry.batch, 1)))
    return request


def _estimates(rows: list[Kernel], request: Request) -> dict[str, float | None]:
    """Seconds on one core by row name; None where the row has no model."""
    request = _for_costs(request)
    return {row.name: row.cost(request) if row.cost else None for row in rows}


def _ranked(rows: list[Kernel], estimates: dict[str, float | None]) -> list[Kernel]:
    """Lowest estimate first; table order if any row has none, since an estimate cannot be compared with nothing.

    The best instruction set of each algorithm stands before the others, whatever their estimates: those differ by
    tails there, which a model knows less well than that wider vectors are not slower.
    """
    costs = {name: cost for name, cost in estimates.items() if cost is not None}
    if len(costs) < len(estimates):
        return rows
    best = {row.algorithm: row.name for row in reversed(rows)}
    return sorted(rows, key=lambda row: (row.name != best[row.algorithm], costs[row.name]))


WORTH = 0.97  # a measured row displaces the estimate's choice below this part of its time: less is noise


def _by_time(ranked: list[Kernel], times: dict[str, float]) -> list[Kernel]:
    """Measured rows by time, then the others as they were."""
    first = ranked[0].name
    times = {name: time * (WORTH if name == first else 1.0) for name, time in times.items()}
    return sorted(ranked, key=lambda row: times.get(row.name, float("inf")))


def explain_request(request: Request, settings: Settings | None = None, measure: bool = False) -> Explanation:
    """Every row for this request with its sentence, the chosen one first among those that can serve.

    measure: under ``tune``, time the rows if no earlier call did; else only what is known counts.
    """
    settings = settings or config.current()
    _check_forced(settings)
    chosen: Kernel | None = None
    lines = []
    for verdict in _verdicts(request, settings, measure):
        sentence = verdict.sentence
        if verdict.kernel is not None and not sentence:
            sentence = "can serve"
            if chosen is None:
                chosen, sentence = verdict.kernel, "chosen"
            if verdict.measured is not None:
                sentence += f", tuned: {_duration(verdict.measured)} measured"
            elif verdict.seconds is not None:
                sentence += f", estimated {_duration(verdict.seconds)} on one core"
        lines.append(replace(verdict, sentence=sentence))
    return Explanation(request, chosen, tuple(lines))


def _duration(seconds: float) -> str:
    """1.23 ms, 45.6 us, 7.89 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds * 1e6:.3g} us"


@functools.lru_cache(maxsize=4096)
def _choose(request: Request, settings: Settings) -> Kernel:
    explanation = explain_request(request, settings, measure=True)
    if explanation.chosen is None:
        raise NoKernelError(f"no kernel can serve this request:\n{explanation}")
    if settings.backend is None and settings.kernel is None:
        _note_fallback(explanation)
    return explanation.chosen


def choose(request: Request) -> Kernel:
    """The row that serves ``request`` under this thread's settings.

    Raises:
        NoKernelError: no row can serve; the message lists every row's sentence.
        ArgumentError: a forced row or ISA does not exist here.
    """
    return _choose(_without_values(request), replace(config.current(), num_threads=None))


def _without_values(request: Request) -> Request:
    """Without options that no choice depends on: a new seed in each call would fill the memory of choices."""
    values = OPS[request.op].values
    if not values:
        return request
    return replace(request, options=tuple(option for option in request.options if option[0] not in values))


_noted: set[str] = set()


def _note_fallback(explanation: Explanation) -> None:
    """Falling from cpp to a slower backend is logged once per reason; CNNKERN_STRICT=1 makes it an error."""
    chosen = explanation.chosen
    assert chosen is not None
    if chosen.backend == BACKENDS[0]:
        return
    native = [v for v in explanation.verdicts if v.name == "cpp" or (v.kernel and v.kernel.backend == "cpp")]
    general = [v for v in native if v.kernel and v.kernel.algorithm == "direct"] or native  # what serves most
    reason = general[-1].sentence if general else "backend cpp has no row for this op"  # first: rows of bytes alone
    name = op_name(explanation.request.op, explanation.request.geometry.rank)
    text = f"{name} {explanation.request.dtype} runs on the slower backend {chosen.backend}: {reason}"
    if config.strict_backend:
        raise NoKernelError(f"{text} (CNNKERN_STRICT=1 makes this an error)\n{explanation}")
    if reason not in _noted:
        _noted.add(reason)
        log.warning(text)


def backends() -> tuple[Backend, ...]:
    """Every backend with its rows, or with the reason why it did not load."""
    return load_all()
