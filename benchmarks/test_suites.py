"""The suites of ``cnnkern bench`` under pytest-benchmark: checked, then timed in this one process.

pytest benchmarks --suite resnet50,vgg16 -k layer1 --benchmark-save=mine
"""

from __future__ import annotations

import pytest

from cnnkern_bench import data, own, select


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    suites = metafunc.config.getoption("--suite").split(",")
    metafunc.parametrize("case", select(suites=suites), ids=lambda case: case.id)


def test_case(case, benchmark) -> None:
    problem = case.problem
    with own.Forced(kernel=problem.row, threads=problem.threads).using():
        row, wrong = own.verify(problem, "sampled", seed=0)
        assert wrong is None, f"{row}: {wrong}"
        prepared = own.prepare(problem, data.inputs(problem, "time", seed=0))
        benchmark.group = case.pass_name
        benchmark.extra_info.update(row=row, flops=problem.flops, bytes=problem.bytes, weight=problem.count)
        benchmark(prepared.call)
