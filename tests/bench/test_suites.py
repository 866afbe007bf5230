"""The suites against their networks: totals known from the papers and from torchvision, shapes that chain."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest

from cnnkern.problem import Problem, parse
from cnnkern_bench.cases import load_suite, suite_names

# Multiply-adds of all convolutions of the network at batch 1, and how many convolutions there are. The sums with dense
# layers are torchvision's own metadata (alexnet, vgg16, resnet) or counted from the papers' tables.
TOTALS = {
    "alexnet": (714_188_480 - (9216 * 4096 + 4096 * 4096 + 4096 * 1000), 5),
    "alexnet_two_pipelines": (724_406_816 - (9216 * 4096 + 4096 * 4096 + 4096 * 1000), 5),
    "zfnet": (1_168_032_896 - (9216 * 4096 + 4096 * 4096 + 4096 * 1000), 5),
    "googlenet": (1_582_671_872 - 1024 * 1000, 57),
    "vgg16": (15_470_264_320 - (25088 * 4096 + 4096 * 4096 + 4096 * 1000), 13),
    "resnet18": (1_814_073_344 - 512 * 1000, 20),
    "resnet50": (4_089_184_256 - 2048 * 1000, 53),
}
# Weights of all convolutions, without biases
WEIGHTS = {
    "alexnet": 61_100_840 - (9217 * 4096 + 4097 * 4096 + 4097 * 1000) - (64 + 192 + 384 + 256 + 256),
    "alexnet_two_pipelines": 60_965_224 - (9217 * 4096 + 4097 * 4096 + 4097 * 1000) - (96 + 256 + 384 + 384 + 256),
    "zfnet": 62_357_608 - (9217 * 4096 + 4097 * 4096 + 4097 * 1000) - (96 + 256 + 384 + 384 + 256),
    "vgg16": 138_357_544 - (25089 * 4096 + 4097 * 4096 + 4097 * 1000) - 4224,
    "resnet18": 11_689_512 - 513 * 1000 - 2 * 4800,  # batch norm: two for each of 4,800 channels
    "resnet50": 25_557_032 - 2049 * 1000 - 2 * 26_560,
}
REQUIRED = {*TOTALS, "quick", "lenet", "depthwise", "pools", "ci"}


def macs(problem: Problem) -> int:
    return problem.flops // 2 * problem.count


def test_the_suites_are_there() -> None:
    assert set(suite_names()) >= REQUIRED


@pytest.mark.parametrize("suite", sorted(REQUIRED))
def test_lines_are_canonical_named_and_distinct(suite: str) -> None:
    from importlib import resources

    text = (resources.files("cnnkern_bench") / "suites" / f"{suite}.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == [str(parse(line)) for line in lines]
    keys = Counter((parse(line).key, parse(line).name.partition(":")[0]) for line in lines)
    assert max(keys.values()) == 1
    if suite != "ci":
        assert all(":" in parse(line).name for line in lines)


@pytest.mark.parametrize("suite", sorted(TOTALS))
def test_totals_are_the_networks(suite: str) -> None:
    cases = load_suite(suite)
    assert {case.op for case in cases} == {"conv"}
    assert (sum(map(macs, cases)), sum(case.count for case in cases)) == TOTALS[suite]
    if suite in WEIGHTS:
        assert sum(prod(case.geometry.weight_shape) * case.count for case in cases) == WEIGHTS[suite]


def test_lenet_is_both_networks() -> None:
    by_network = Counter()
    for case in load_suite("lenet"):
        by_network[case.name.partition(":")[0]] += macs(case)
    assert by_network == {"lenet": 288_000 + 1_600_000, "lenet5": 117_600 + 240_000 + 48_000}


def test_depthwise_is_depthwise() -> None:
    cases = load_suite("depthwise")
    assert all(case.geometry.groups == case.geometry.in_channels == case.geometry.out_channels for case in cases)
    first = [case for case in cases if case.name.startswith("mobilenet_v1")]
    assert (sum(map(macs, first)), sum(case.count for case in first)) == (17_385_984, 13)
    assert {case.geometry.kernel for case in cases} == {(3, 3), (5, 5), (7, 7)}


def test_the_pools_join_the_convolutions() -> None:
    """Each pool takes what some convolution of its network gives, and gives what one takes (or the dense layers)."""
    pools = load_suite("pools")
    for network, dense in (("alexnet", (256, 6)), ("zfnet", (256, 6)), ("vgg16", (512, 7)), ("lenet", (50, 4))):
        convs = [case.geometry for case in load_suite(network) if case.name.startswith(f"{network}:")]
        given = {(g.out_channels, g.output) for g in convs}
        taken = {(g.in_channels, g.input) for g in convs} | {(dense[0], (dense[1], dense[1]))}
        mine = [case.geometry for case in pools if case.name.startswith(f"{network}:")]
        assert mine
        for g in mine:
            assert (g.channels, g.input) in given
            assert (g.channels, g.output) in taken


def test_googlenet_concatenates() -> None:
    """The branch outputs of each inception module add up to the next module's input channels."""
    published = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
    pools = {c.name.partition(":")[2]: c.geometry for c in load_suite("pools") if c.name.startswith("googlenet:")}
    assert [pools[f"pool{i}"].output[0] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]  # needs ceil mode
    assert (pools["pool3"].channels, pools["pool4"].channels, pools["pool5"].channels) == (480, 832, 1024)
    inputs = {c.geometry.in_channels for c in load_suite("googlenet") if c.name.endswith("1x1")}
    assert inputs == {192, 256, 480, 512, 528, 832}
    assert set(published.values()) - {1024} <= inputs | {256}


def test_quick_has_every_pass_and_stays_small() -> None:
    cases = load_suite("quick")
    assert {"conv", "conv_grad_input", "conv_grad_weight", "max_pool", "max_pool_grad"} <= {case.op for case in cases}
    assert max(case.flops for case in cases) < 1e9


def test_ci_names_every_op_once_and_one_thread() -> None:
    import cnnkern as ck

    cases = load_suite("ci")
    assert {row.op for row in ck.kernels()} <= {case.op for case in cases}
    assert {case.threads for case in cases} == {1}
    assert max(case.flops for case in cases) < 0.2e9
