"""What tests of choices share: requests, rows that compute nothing, fixtures (``conftest.py`` makes them known)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnkern import config, dispatch, problem, roofline, tuning, usercache
from cnnkern.backends import Backend
from cnnkern.spec import Kernel, Request

CASE = "conv2d:mb1ic16ih9oc32kh3ph1"
THIRTY = 30  # seconds that no thread of these tests needs


def request(case: str = CASE) -> Request:
    return problem.parse(case).request()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def forget() -> None:
    dispatch._choose.cache_clear()
    roofline.current.cache_clear()
    usercache._said.clear()
    tuning.forget()


def fake(algorithm: str, isa: str, cost: Callable[[Request], float | None] | None, **columns: Any) -> Kernel:
    """A row that computes nothing."""
    defaults: dict[str, Any] = dict(
        dtypes=("f32",), layouts=("NCHW",), ranks=(2,), precisions=("strict", "f32", "fast", "bf16")
    )
    return Kernel(
        op="conv",
        backend="reference",
        algorithm=algorithm,
        isa=isa,
        run=lambda state, inputs, outputs: None,
        prepare=lambda request, weights: None,
        cost=cost,
        **{**defaults, **columns},
    )


def file_of(content: Any, owner: Any = None) -> bytes:
    """The bytes of a cache file, of this machine unless an owner is given."""
    return json.dumps({"owner": owner or usercache.fingerprint(), "content": content}).encode()


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the user's, and nothing remembered from it, before or after."""
    folder = tmp_path / "cache"
    monkeypatch.setitem(config._cache_home, "CNNKERN_CACHE_DIR", str(folder))
    monkeypatch.setattr(tuning, "BUDGET", 0.01)
    monkeypatch.setattr(tuning, "SAMPLE", 1e-5)
    forget()
    yield folder
    forget()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(*rows: Kernel) -> None:
        monkeypatch.setattr(dispatch, "load_all", lambda: (Backend("reference", rows),))
        monkeypatch.setattr(config, "strict_backend", False)  # these rows stand where CNNKERN_STRICT=1 refuses all
        forget()

    return install


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Request, list[str]]]:
    """Every race that is run: the request, and the names of the rows in it."""
    seen: list[tuple[Request, list[str]]] = []
    real = tuning._race

    def race(request: Request, rows: list[Kernel]) -> dict[str, float]:
        seen.append((request, [row.name for row in rows]))
        return real(request, rows)

    monkeypatch.setattr(tuning, "_race", race)
    return seen
