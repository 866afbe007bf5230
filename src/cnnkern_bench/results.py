"""What a run found: plain data, from which report, comparison and JSON are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .cases import Case
from .measure import Estimate, estimate
from .roofs import Roofs

OUT_OF_TIME = "the time budget was used up before"


@dataclass
class Launch:
    """The slots of one arm in one launch: for each slot its samples, seconds per call."""

    number: int
    slots: list[list[float]] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)  # why blocks of it were disturbed

    @property
    def clean(self) -> bool:
        return not self.causes


@dataclass
class Arm:
    """One way of computing a case: a kernel of ours, or a peer.

    Attributes:
        name: "cnnkern" (free choice), a row such as "cpp.direct.avx2", or a peer's arm.
        row: the row that ran, as ``op.backend.algorithm.isa.dtype``; a peer's own name.
        status: "ok", "cannot" (refused, with the reason), "wrong", "crashed"; only "ok" has times.
        message: the reason or what is wrong.
        calls: calls per sample.
        prepare: seconds of preparing (packing, compiling) and the first call.
    """

    name: str
    peer: bool = False
    row: str = ""
    status: str = "ok"
    message: str = ""
    calls: int = 1
    prepare: float | None = None
    launches: list[Launch] = field(default_factory=list)

    @property
    def estimate(self) -> Estimate | None:
        """From the undisturbed launches, or from all where every launch was disturbed."""
        if self.status != "ok":
            return None
        used = [launch for launch in self.launches if launch.clean] or self.launches
        return estimate([[min(samples) for samples in launch.slots] for launch in used])

    @property
    def disturbed(self) -> bool:
        """Whether fewer than half of the launches were undisturbed."""
        return 2 * sum(launch.clean for launch in self.launches) < len(self.launches)


@dataclass
class CaseResult:
    """A case with all its arms, ours first."""

    case: Case
    threads: int
    arms: list[Arm]

    @property
    def ours(self) -> list[Arm]:
        return [arm for arm in self.arms if not arm.peer]

    @property
    def peers(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.peer]

    @property
    def disturbed(self) -> bool:
        return any(arm.disturbed for arm in self.arms)


@dataclass
class RunResult:
    """Everything that one run found. ``complete`` is False after an interruption."""

    cases: list[CaseResult]
    peers: tuple[str, ...] = ()
    roofs: dict[int, Roofs] = field(default_factory=dict)  # by threads
    fingerprint: dict[str, Any] = field(default_factory=dict)
    command: Sequence[str] = ()
    seed: int = 0
    launches: int = 0
    seconds: float = 0.0
    complete: bool = True

    @property
    def failures(self) -> list[tuple[CaseResult, Arm]]:
        """Our arms that computed something wrong or crashed."""
        return [(c, arm) for c in self.cases for arm in c.ours if arm.status in ("wrong", "crashed")]

    @property
    def timed(self) -> bool:
        """Whether any of our arms has a time."""
        return any(arm.estimate for c in self.cases for arm in c.ours)
