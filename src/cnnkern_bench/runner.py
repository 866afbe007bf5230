"""A run: launches of fresh processes, in each of them every case in shuffled order, in each case the arms in turn."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import cnnkern as ck

from . import machine, peers
from .cases import Case, UsageError, pattern
from .load import Counters, too_many_switches
from .measure import Effort, block_order
from .own import Forced
from .process import Local, Worker, WorkerDied
from .results import OUT_OF_TIME, Arm, CaseResult, Launch, RunResult
from .roofs import Roofs, bound_by_arithmetic, copy_size, peak_key

OWN = "cnnkern"
REPEATS = 2  # launches that are tried again for disturbed cases
CALM_SECONDS, CALM_WINDOW = 10.0, 0.5  # how long such a launch waits for the other load to end, looking this often
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Options:
    """What a run does beside its cases.

    Attributes:
        backend, isa: forced on our arms; None: free choice.
        kernel: a regular expression: one arm for each row it finds.
        peers: arms of other libraries.
        threads: for cases that name no number; None: what the library would use.
        check: "sampled", "full" or "off".
        budget: seconds for the whole run; fewer launches and blocks then.
        isolated: fresh processes for every launch; False runs everything in this process.
    """

    backend: str | None = None
    kernel: str | None = None
    isa: str | None = None
    peers: tuple[str, ...] = ()
    threads: int | None = None
    effort: Effort = field(default_factory=Effort)
    check: str = "sampled"
    budget: float | None = None
    seed: int = 0
    isolated: bool = True


def resolve_peers(names: Sequence[str]) -> tuple[str, ...]:
    """Arms from what ``--vs`` names: a library stands for its usual arms.

    Raises:
        UsageError: no such peer, or its library is not installed (the text names the extra).
    """
    arms: dict[str, None] = {}
    for name in names:
        for arm in peers.GROUPS.get(name, (name,)):
            if arm not in peers.PEERS:
                known = dict.fromkeys([*peers.GROUPS, *peers.PEERS])
                raise UsageError(f"peer {name!r} does not exist. Peers: {', '.join(known)}.")
            peer = peers.PEERS[arm]
            if not peers.installed(peer.library):
                raise UsageError(f"peer {arm} needs {peer.library}. Install it: pip install '{peer.install}'")
            arms[arm] = None
    return tuple(arms)


def usual_peers() -> tuple[str, ...]:
    """The peers of a run that names none: PyTorch where it is installed."""
    return peers.GROUPS["torch"] if peers.installed("torch") else ()


def validate(options: Options) -> None:
    """Refuse what no case could run with.

    Raises:
        ArgumentError: no such backend or instruction set here.
        UsageError: ``kernel`` is no regular expression, or finds no row.
    """
    with Forced(options.backend, None, options.isa, options.threads).using():
        ck.relu(np.zeros(1, np.float32))
    wanted = pattern(options.kernel)
    rows = sorted({row.name for row in ck.kernels(backend=options.backend)})
    if wanted and not any(wanted.search(row) for row in rows):
        raise UsageError(f"--kernel {options.kernel!r} finds no row. Rows: {', '.join(rows)}.")


def _own_arms(case: Case, options: Options) -> list[Arm]:
    """Our arms of a case: the row it names, each row that ``--kernel`` finds, or the library's own choice."""
    if case.problem.row:
        return [Arm(case.problem.row)]
    if options.kernel is None:
        return [Arm(OWN)]
    wanted = re.compile(options.kernel)
    rows = [row.name for row in ck.kernels(case.problem.op, options.backend)]
    found = [Arm(row) for row in dict.fromkeys(rows) if wanted.search(row)]
    nothing = f"it has no kernel that {options.kernel!r} finds: {', '.join(rows)}"
    return found or [Arm(OWN, status="cannot", message=nothing)]


def run(cases: Sequence[Case], options: Options, progress: Progress = lambda done, total, text: None) -> RunResult:
    """Check and time cases.

    Args:
        cases: what to measure.
        options: how.
        progress: called as ``progress(done, total, text)`` before each case of each launch.

    Returns:
        The result; after Ctrl-C what was found so far, with ``complete`` False.
    """
    return _Run(cases, options, progress).run()


class _Run:
    def __init__(self, cases: Sequence[Case], options: Options, progress: Progress) -> None:
        default = options.threads or ck.get_num_threads()
        self.options, self.progress = options, progress
        self.results = []
        for case in cases:
            arms = [*_own_arms(case, options), *(Arm(name, peer=True) for name in options.peers)]
            self.results.append(CaseResult(case, case.problem.threads or default, arms))
        self.effort = options.effort
        if options.budget is not None and cases:
            share = options.budget / (len(cases) * options.effort.launches)
            self.effort = replace(options.effort, case_seconds=min(options.effort.case_seconds, share))
        self.rng = random.Random(options.seed)
        self.roofs: dict[int, Roofs] = {}
        self.done, self.total = 0, len(cases) * options.effort.launches

    def run(self) -> RunResult:
        found = RunResult(self.results, self.options.peers, self.roofs, seed=self.options.seed)
        self.start = began = time.monotonic()
        longest = 0.0  # what a further launch would take
        try:
            for number in range(self.effort.launches):
                if number and self._over(longest):
                    break
                self._launch(number, self.results)
                found.launches = number + 1
                longest, began = max(longest, time.monotonic() - began), time.monotonic()
            for number in range(found.launches, found.launches + REPEATS):
                disturbed = [result for result in self.results if result.disturbed]
                if not disturbed or self._over(longest + CALM_SECONDS) or not _calm():
                    break
                self.total += len(disturbed)
                self._launch(number, disturbed)
        except KeyboardInterrupt:
            found.complete = False
        found.seconds = time.monotonic() - self.start
        return found

    def _over(self, more: float = 0.0) -> bool:
        """Whether the budget is used up, or would be after ``more`` seconds."""
        return self.options.budget is not None and time.monotonic() - self.start + more > self.options.budget

    def _launch(self, number: int, results: Sequence[CaseResult]) -> None:
        for threads in sorted({result.threads for result in results}):
            group = [result for result in results if result.threads == threads]
            self.rng.shuffle(group)
            with self._workers(threads) as workers:
                for result in group:
                    if self._over():
                        _leave_out(result)
                        continue
                    self.progress(self.done, self.total, f"launch {number + 1}  {result.case.id}")
                    _CaseInLaunch(result, number, workers, self.options, self.effort, self.rng).measure()
                    self.done += 1
                if threads not in self.roofs:
                    self.roofs[threads] = roofs = Roofs()
                    with contextlib.suppress(WorkerDied):  # times without a roof beside them are still times
                        _measure_roofs(roofs, workers, group, threads)
        self.progress(self.done, self.total, f"launch {number + 1} done")

    @contextlib.contextmanager
    def _workers(self, threads: int) -> Iterator[_Workers]:
        workers = _Workers(threads, self.options.isolated, self.rng)
        try:
            yield workers
        finally:
            workers.close()


def _leave_out(result: CaseResult) -> None:
    """Say so where a case was not measured at all."""
    for arm in result.arms:
        if arm.status == "ok" and not arm.launches:
            arm.status, arm.message = "cannot", OUT_OF_TIME


class _Workers:
    """The processes of one launch, started when first needed: one for us, one for each library beside."""

    def __init__(self, threads: int, isolated: bool, rng: random.Random) -> None:
        self._isolated = isolated
        self._cpus = machine.pick_cpus(threads)
        # The environment lies above the stack: its size moves every stack address, equally in all arms
        self._environment = {"CNNKERN_BENCH_PADDING": "x" * rng.randrange(4096)}
        self._running: dict[str, Worker | Local] = {}

    def of(self, arm: Arm) -> Worker | Local:
        peer = peers.PEERS[arm.name] if arm.peer else None
        name = peer.worker if peer else OWN
        if name not in self._running:
            variables = {**self._environment, **dict(peer.environment if peer else ())}
            self._running[name] = Worker(self._cpus, variables) if self._isolated else Local()
        return self._running[name]

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._running.values()] if self._isolated else []

    def drop(self, worker: Worker | Local) -> None:
        """Forget a dead worker: the next case starts a new one."""
        worker.close()
        self._running = {name: w for name, w in self._running.items() if w is not worker}

    def close_arms(self) -> None:
        for worker in list(self._running.values()):
            try:
                worker.ask(do="close")
            except WorkerDied:
                self.drop(worker)

    def close(self) -> None:
        for worker in self._running.values():
            worker.close()
        self._running.clear()


class _CaseInLaunch:
    """One case in one launch: open the arms, calibrate, measure blocks."""

    def __init__(
        self,
        result: CaseResult,
        number: int,
        workers: _Workers,
        options: Options,
        effort: Effort,
        rng: random.Random,
    ) -> None:
        self.result, self.number, self.workers = result, number, workers
        self.options, self.effort = options, effort
        self.offset = rng.randrange(64)  # of every buffer, in cache lines; the same in all arms
        self.first = rng.randrange(2)  # whether the first block goes there and back or back and there
        self.slots: dict[str, list[list[float]]] = {}

    def measure(self) -> None:
        arms = [arm for arm in self.result.arms if arm.status == "ok" and self._open(arm)]
        seconds = [self._calibrate(arm) for arm in arms if arm.status == "ok"]
        arms = [arm for arm in arms if arm.status == "ok"]
        if any(not arm.peer for arm in arms):
            self._blocks(arms, *self.effort.plan(seconds))
        self.workers.close_arms()

    def _ask(self, arm: Arm, **message: object) -> dict | None:
        """The worker's answer; None if it died, which is then the arm's fault."""
        worker = self.workers.of(arm)
        try:
            return worker.ask(arm=arm.name, **message)
        except WorkerDied as death:
            arm.status, arm.message = "crashed", str(death)
            self.workers.drop(worker)
            return None

    def _open(self, arm: Arm) -> bool:
        forced = {"backend": self.options.backend, "isa": self.options.isa, "kernel": None}
        if not arm.peer and arm.name != OWN:
            forced.update(kernel=arm.name, backend=None)
        answer = self._ask(
            arm,
            do="open",
            case=self.result.case.id,
            threads=self.result.threads,
            check=self.options.check,
            seed=self.options.seed,
            offset=self.offset,
            **forced,
        )
        if answer is None:
            return False
        arm.row = answer.get("row", arm.row)
        for status in ("cannot", "wrong"):
            if status in answer:
                arm.status, arm.message = status, answer[status]
                return False
        arm.prepare = answer["prepare"]
        return True

    def _calibrate(self, arm: Arm) -> float:
        answer = self._ask(arm, do="calibrate", min_sample=self.effort.min_sample)
        if answer is None:
            return 0.0
        arm.calls = answer["calls"]
        return answer["seconds"]

    def _blocks(self, arms: list[Arm], blocks: int, samples: int) -> None:
        """Measure ``blocks`` undisturbed blocks; as many more are tried at most, while there is time for them.

        Blocks that are missing then are made up for by disturbed ones.
        """
        launches = {arm.name: Launch(self.number) for arm in arms}
        disturbed: list[tuple[dict[str, list[list[float]]], list[str]]] = []
        clean = tries = 0
        began = Counters.now(self.workers.pids)
        deadline = began.at + self.effort.case_seconds
        while clean < blocks and (tries < blocks or (tries < 2 * blocks and time.monotonic() < deadline)):
            slots, causes = self._block(arms, tries + self.first, samples)
            tries += 1
            if slots is None:
                return
            if causes:
                disturbed.append((slots, causes))
                continue
            clean += 1
            for name, values in slots.items():
                launches[name].slots += values
        load = began.causes_until(Counters.now(self.workers.pids))
        for slots, causes in disturbed[: blocks - clean]:
            load += causes
            for name, values in slots.items():
                launches[name].slots += values
        for arm in arms:
            launches[arm.name].causes = list(dict.fromkeys(load))
            arm.launches.append(launches[arm.name])

    def _block(
        self, arms: list[Arm], number: int, samples: int
    ) -> tuple[dict[str, list[list[float]]] | None, list[str]]:
        """Each arm twice: its two slots, and what disturbed the block. None if a worker died."""
        by_name = {arm.name: arm for arm in arms}
        slots: dict[str, list[list[float]]] = {name: [] for name in by_name}
        causes = []
        before = Counters.now()
        for name in block_order(list(by_name), number):
            arm = by_name[name]
            answer = self._ask(arm, do="slot", calls=arm.calls, samples=samples)
            if answer is None:
                return None, []
            slots[name].append(answer["seconds"])
            if too_many_switches(answer["switches"], answer["lasted"]):
                causes.append("other processes took the CPU")
        after = Counters.now()
        if after.throttled > before.throttled:
            causes.append("the CPU quota throttled")
        return slots, causes


def _measure_roofs(roofs: Roofs, workers: _Workers, results: Sequence[CaseResult], threads: int) -> None:
    """Fill in the roofs that the cases of this launch need, measured in our worker."""
    worker = workers.of(Arm(OWN))
    for result in results:
        problem = result.case.problem
        for arm in result.ours:
            if arm.status != "ok" or not arm.launches:
                continue
            if bound_by_arithmetic(problem):
                _fill(roofs.peaks, peak_key(arm.row), "peak", worker, threads)
            else:
                _fill(roofs.copies, copy_size(problem.bytes), "copy", worker, threads)


def _fill(store: dict[Any, float | None], what: str | int, kind: str, worker: Worker | Local, threads: int) -> None:
    if what not in store:
        store[what] = worker.ask(do="roof", kind=kind, what=str(what), threads=threads)["roof"]


def _calm() -> bool:
    """Wait for other processes to leave the CPUs alone; False if they do not within a few seconds."""
    deadline = time.monotonic() + CALM_SECONDS
    while time.monotonic() < deadline:
        before = Counters.now()
        time.sleep(CALM_WINDOW)
        if not before.causes_until(Counters.now()):
            return True
    return False
