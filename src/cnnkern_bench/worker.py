"""The process that computes: it prepares arms of one library, checks and times them as told, a JSON line at a time.

Messages and answers::

    {"do": "open", "arm", "case", "threads", ...} -> {"ok": true, "row", "prepare": seconds} | {"cannot"} | {"wrong"}
    {"do": "calibrate", "arm", "min_sample"}      -> {"calls", "seconds"}
    {"do": "slot", "arm", "calls", "samples"}     -> {"seconds": [...], "switches", "lasted"}
    {"do": "roof", "kind", "what", "threads"}     -> {"roof"}
    {"do": "close"}                               -> {}
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cnnkern import ArgumentError, DTypeError, NoKernelError, ShapeError
from cnnkern.problem import Problem, parse

from . import check, data, measure, own, peers, roofs
from .peers import Cannot, Prepared

Message = dict[str, Any]


class Session:
    """The arms that are open in this process. ``handle`` answers one message."""

    def __init__(self) -> None:
        self._arms: dict[str, tuple[Prepared, own.Forced | None]] = {}

    def handle(self, message: Message) -> Message:
        return getattr(self, f"_{message['do']}")(message)

    def _open(self, m: Message) -> Message:
        problem = parse(m["case"])
        if problem.cold:
            return {"cannot": f"cold={problem.cold}: only times with warm caches are measured"}
        try:
            if m["arm"] in peers.PEERS:
                return self._open_peer(m, problem)
            return self._open_own(m, problem)
        except (Cannot, ArgumentError, DTypeError, ShapeError) as refusal:
            return {"cannot": str(refusal)}
        except NoKernelError as refusal:
            return {"cannot": _own_sentence(str(refusal), m["kernel"])}

    def _open_peer(self, m: Message, problem: Problem) -> Message:
        prepare = peers.load(m["arm"])
        inputs = data.inputs(problem, "time", m["seed"], m["offset"])
        start = time.perf_counter()
        prepared = prepare(problem, inputs, m["arm"], m["threads"])
        outputs = prepared.outputs(prepared.call())
        seconds = time.perf_counter() - start
        if m["check"] != "off":
            sentence = check.compare(problem, inputs, outputs[:1], "sampled", tolerance=check.PEER_TOLERANCE)
            if sentence:
                return {"wrong": sentence}
        self._arms[m["arm"]] = (prepared, None)
        return {"ok": True, "row": m["arm"], "prepare": seconds}

    def _open_own(self, m: Message, problem: Problem) -> Message:
        forced = own.Forced(m["backend"], m["kernel"], m["isa"], m["threads"])
        with forced.using():
            row, sentence = own.verify(problem, m["check"], m["seed"])
            if sentence:
                return {"wrong": sentence, "row": row}
            inputs = data.inputs(problem, "time", m["seed"], m["offset"])
            start = time.perf_counter()
            prepared = own.prepare(problem, inputs)
            prepared.call()
        self._arms[m["arm"]] = (prepared, forced)
        return {"ok": True, "row": row, "prepare": time.perf_counter() - start}

    @contextlib.contextmanager
    def _running(self, arm: str) -> Iterator[Callable[[], Any]]:
        prepared, forced = self._arms[arm]
        with forced.using() if forced else contextlib.nullcontext():
            yield prepared.call

    def _calibrate(self, m: Message) -> Message:
        with self._running(m["arm"]) as call:
            calls, seconds = measure.calibrate(call, m["min_sample"])
        return {"calls": calls, "seconds": seconds}

    def _slot(self, m: Message) -> Message:
        before, start = _involuntary_switches(), time.perf_counter()
        with self._running(m["arm"]) as call:
            seconds = measure.slot(call, m["calls"], m["samples"])
        lasted = time.perf_counter() - start
        return {"seconds": seconds, "switches": _involuntary_switches() - before, "lasted": lasted}

    def _roof(self, m: Message) -> Message:
        return {"roof": roofs.measure_roof(m["kind"], m["what"], m["threads"])}

    def _close(self, m: Message) -> Message:
        self._arms.clear()
        return {}


def _own_sentence(message: str, kernel: str | None) -> str:
    """The sentence about the forced row from a message that lists every row."""
    for line in message.splitlines():
        name, _, sentence = line.strip().partition(" ")
        if kernel and f".{kernel}." in f"{name}.":
            return sentence.strip()
    return message


def _involuntary_switches() -> int:
    """How often the threads of this process were preempted."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _die_with_parent() -> None:
    """A stopped worker would outlive a parent that was killed; Linux ends it instead."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Answer messages from standard input until it ends. What libraries print goes to standard error."""
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(session.handle(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
