"""What a run's results depend on, in its first lines: seed, backends, instruction sets, threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import cnnkern
from choosing import cache_folder, races, table  # noqa: F401  (fixtures)
from cnnkern import config
from cnnkern.dispatch import backends
from matrix import ROWS, missing
from samples import SEED


def pytest_report_header() -> list[str]:
    loaded = [backend.reason or f"{backend.name} ({len(backend.kernels)} rows)" for backend in backends()]
    isas = {row.isa: missing(row) for row in ROWS if row.isa}
    absent = [f"{isa} is not built here" for isa in config.ISAS if isa not in isas]
    return [
        f"cnnkern {cnnkern.__version__} from {cnnkern.__file__}",
        f"CNNKERN_SEED={SEED}, {cnnkern.get_num_threads()} threads, strict {'on' if config.strict_backend else 'off'}",
        f"backends: {', '.join(loaded)}",
        f"instruction sets: {', '.join(reason or isa for isa, reason in isas.items())}; {', '.join(absent)}",
    ]


@pytest.fixture(autouse=True)
def settings_stay() -> Iterator[None]:
    """A test that leaves settings behind would change what the next one tests."""
    before = config.current(), config.get_num_threads()
    yield
    assert (config.current(), config.get_num_threads()) == before, "the test left other settings behind"


@pytest.fixture
def plain_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Settings as if the environment had chosen neither backend nor instruction set nor precision."""
    monkeypatch.setattr(config, "_base", config.Settings())
    config.sync()
    yield
    monkeypatch.undo()
    config.sync()
