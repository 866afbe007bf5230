"""Choosing cases: suites, files, filters, and the axes that multiply them."""

from __future__ import annotations

import pytest

from cnnkern_bench.cases import UsageError, expand, load_file, select

CONV = "conv2d:mb1ic3ih8oc4oh8kh3ph1"
POOL = "max_pool2d:mb1ic3ih8oh4kh2sh2"


def ids(cases) -> list[str]:
    return [case.id for case in cases]


def test_cases_are_filtered_and_not_repeated() -> None:
    assert ids(select([CONV, POOL, CONV.replace("oh8", "")])) == [CONV, POOL]
    assert ids(select([CONV, POOL], match="pool")) == [POOL]
    assert ids(select([CONV, POOL], skip="pool")) == [CONV]
    assert select([CONV], match="nothing") == []


def test_a_case_of_two_suites_is_measured_once() -> None:
    both = select(suites=["quick", "resnet50"], match="resnet50:conv1")
    assert [case.suites for case in both] == [("quick", "resnet50")]


def test_files_have_comments_and_includes(tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(f"# mine\n{CONV}  # the first\n\ninclude lenet\n")
    assert len(load_file(path)) == 6
    assert {case.suites for case in select(file=path)} == {("mine",)}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"suites": ["nets"]}, "suite 'nets' does not exist. Suites: alexnet, "),
        ({"texts": ["conv2d:mb1"]}, "case, line 1: .*conv2d needs ic"),
        ({"texts": ["conv2d:mb1ic3ih8oc4kh9"]}, "kernel covers 9"),
        ({"file": "/nowhere/cases.txt"}, "cases.txt cannot be read: No such file"),
        ({"texts": [CONV], "match": "("}, "is not a regular expression"),
    ],
)
def test_refusals(arguments: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        select(**arguments)


def test_axes_multiply() -> None:
    cases = select([CONV])
    found = ids(expand(cases, mb=[1, 8], layout=["NCHW", "NHWC"], threads=[2]))
    assert found == [
        "conv2d:mb1ic3ih8oc4oh8kh3ph1@threads=2",
        "conv2d:mb1ic3ih8oc4oh8kh3ph1@layout=NHWC@threads=2",
        "conv2d:mb8ic3ih8oc4oh8kh3ph1@threads=2",
        "conv2d:mb8ic3ih8oc4oh8kh3ph1@layout=NHWC@threads=2",
    ]
    assert ids(expand(cases)) == [CONV]
    assert ids(expand(cases, dt=["f64"], precision=["strict"])) == [f"{CONV}@dt=f64@precision=strict"]


def test_batch_of_every_geometry() -> None:
    texts = [
        "relu:mb1ic3ih8",
        "softmax_cross_entropy:mb4ic10",
        "batch_norm:mb1ic3ih8",
        "adaptive_avg_pool2d:mb1ic3ih8oh1",
    ]
    assert all("mb5" in text for text in ids(expand(select(texts), mb=[5])))


def test_passes() -> None:
    fused = f"{CONV}@bias=1@act=relu@plan=1"
    every = ids(expand(select([fused, f"{POOL}@indices=torch"]), passes=["fwd", "grad_input", "grad_weight"]))
    assert every == [
        fused,
        CONV.replace("conv2d", "conv2d_grad_input"),
        CONV.replace("conv2d", "conv2d_grad_weight"),
        f"{POOL}@indices=torch",
        POOL.replace("max_pool2d", "max_pool2d_grad"),
    ]
    average = "avg_pool2d:mb1ic3ih8oh4kh2sh2@pad=exclude"
    assert ids(expand(select([average]), passes=["grad_input"])) == [average.replace("pool2d", "pool2d_grad")]
    gradient = CONV.replace("conv2d", "conv2d_grad_weight")
    assert ids(expand(select([gradient]), passes=["grad_weight"])) == [gradient]
    assert expand(select([gradient]), passes=["fwd"]) == []
    assert [case.pass_name for case in select([CONV, gradient, POOL.replace("2d", "2d_grad")])] == [
        "fwd",
        "grad_weight",
        "grad_input",
    ]
