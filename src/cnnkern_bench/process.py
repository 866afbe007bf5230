"""The parent's end of a worker process. One worker works at a time; the others are stopped, threads and all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cnnkern.problem

from .config import worker_environment
from .worker import Session


def _import_roots() -> list[str]:
    """Where this process found cnnkern and cnnkern_bench: a worker must find the same."""
    return [str(Path(cnnkern.problem.__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


class WorkerDied(RuntimeError):
    """A worker ended before it answered; the text says how."""


class Local:
    """A worker inside this process: for tests and for callers that need no isolation."""

    def __init__(self) -> None:
        self._session = Session()
        self.pid = os.getpid()

    def ask(self, **message: Any) -> dict[str, Any]:
        return self._session.handle(message)

    def close(self) -> None:
        self._session.handle({"do": "close"})


class Worker:
    """A worker process, pinned to CPUs, stopped while it is not asked.

    Args:
        cpus: the CPUs it may use; libraries that size their thread pools by them see these.
        environment: variables besides the parent's.
    """

    def __init__(self, cpus: list[int], environment: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is the parent's to answer
            env=worker_environment(environment, _import_roots()),
        )
        self.pid = self._process.pid
        ready = False
        try:
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(self.pid, cpus)
            ready = self._read()["ready"]
        finally:
            if not ready:  # it died, or Ctrl-C came while it was starting
                self.close()

    def ask(self, **message: Any) -> dict[str, Any]:
        """Wake the worker, send a message, wait for the answer, stop it again.

        Raises:
            WorkerDied: it ended instead of answering.
        """
        assert self._process.stdin is not None
        try:
            self._process.send_signal(signal.SIGCONT)
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._death()) from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDied(self._death())
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def _death(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process ended ({how}): {last}"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()
