"""Our times beside the peers': ratios for each case, and their geometric mean and minimum for each suite and pass."""

from __future__ import annotations

from dataclasses import dataclass

from .measure import geometric_mean
from .results import Arm, CaseResult, RunResult

FASTEST = "fastest"


def ratios(result: CaseResult, arm: Arm) -> dict[str, float]:
    """Peer time / our time by peer: above 1 we are faster. "fastest" is the ratio to the fastest peer."""
    ours = arm.estimate
    if ours is None:
        return {}
    found = {peer.name: peer.estimate.seconds / ours.seconds for peer in result.peers if peer.estimate}
    return {**found, FASTEST: min(found.values())} if found else {}


@dataclass(frozen=True)
class Summary:
    """One line of the closing table.

    Attributes:
        suite, pass_name, arm: what it is about; ``suite`` is "cases" for cases outside every suite.
        count, failed: distinct cases with a time; wrong or crashed ones.
        seconds: time of all layers, each case as often as it occurs in its network.
        means, minima: geometric mean and minimum of the ratios by peer.
        worst: the case with the lowest ratio to the fastest peer.
        of_roof: geometric mean of the part of the roof reached, None where roofs were not measured.
    """

    suite: str
    pass_name: str
    arm: str
    count: int
    failed: int
    seconds: float
    means: dict[str, float]
    minima: dict[str, float]
    worst: str
    of_roof: float | None


def summarize(run: RunResult) -> list[Summary]:
    """A summary for each suite, pass and arm of ours, in the order in which they occur."""
    groups: dict[tuple[str, str, str], list[tuple[CaseResult, Arm]]] = {}
    for result in run.cases:
        for suite in result.case.suites or ("cases",):
            for arm in result.ours:
                groups.setdefault((suite, result.case.pass_name, arm.name), []).append((result, arm))
    return [_summary(run, *key, members) for key, members in groups.items()]


def _summary(
    run: RunResult, suite: str, pass_name: str, arm_name: str, members: list[tuple[CaseResult, Arm]]
) -> Summary:
    timed = [(result, arm) for result, arm in members if arm.estimate]
    by_peer: dict[str, list[tuple[float, str]]] = {}
    for result, arm in timed:
        for peer, ratio in ratios(result, arm).items():
            by_peer.setdefault(peer, []).append((ratio, result.case.id))
    parts = [part for result, arm in timed if (part := of_roof(run, result, arm)) is not None]
    return Summary(
        suite,
        pass_name,
        arm_name,
        count=len(timed),
        failed=sum(arm.status in ("wrong", "crashed") for _, arm in members),
        seconds=sum(arm.estimate.seconds * result.case.problem.count for result, arm in timed if arm.estimate),
        means={peer: geometric_mean([ratio for ratio, _ in values]) for peer, values in by_peer.items()},
        minima={peer: min(values)[0] for peer, values in by_peer.items()},
        worst=min(by_peer[FASTEST])[1] if FASTEST in by_peer else "",
        of_roof=geometric_mean(parts) if parts else None,
    )


def of_roof(run: RunResult, result: CaseResult, arm: Arm) -> float | None:
    """What part of its roof (multiply-add peak or copy bandwidth) an arm of ours reaches."""
    roofs, time = run.roofs.get(result.threads), arm.estimate
    if roofs is None or time is None:
        return None
    return roofs.fraction(result.case.problem, arm.row, time.seconds)
