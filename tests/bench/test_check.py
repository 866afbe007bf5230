"""The check before timing: right results pass, and every kind of wrong one is seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import backends, dispatch
from cnnkern.problem import parse
from cnnkern.spec import OPS
from cnnkern_bench import cases, check, data, definition, own
from cnnkern_bench.calls import public_call

CONV = parse("conv2d:mb2ic5ih13iw11oc7kh3sh2dh1ph2@bias=1")
SEEDS = 100


def computed(problem, seed: int = 0):
    """Inputs, and right outputs that may be changed."""
    inputs = data.inputs(problem, "check", seed)
    call = public_call(problem, inputs)
    with ck.using(backend="reference"):
        return inputs, tuple(np.array(output) for output in call.pick(call.bind()()))


@pytest.mark.parametrize("case", [c for c in cases.load_suite("ci") if c.flops < 5e7], ids=str)
def test_every_op_of_the_library_can_be_called_and_checked(case) -> None:
    small = dataclasses.replace(case, threads=None)
    with ck.using(backend="reference"):
        row, wrong = own.verify(small, "sampled", seed=1)
    assert row.startswith(f"{case.op_name}.reference.")
    assert wrong is None


def test_the_suite_ci_has_every_op() -> None:
    assert {case.op for case in cases.load_suite("ci")} == set(OPS)


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:mb2ic6ih9iw8oc4kh3sh2ph1@bias=1@act=relu@res=1",
        "conv1d:g2mb1ic4iw12oc6kw3dw1pw2@layout=NHWC",
        "conv3d:mb1ic2id5oc3kd3pd1",
        "conv2d_grad_input:g2mb2ic6ih9iw8oc4kh3sh2ph1@layout=NHWC",
        "conv2d_grad_input:mb1ic4ih9oc4oh4kh2dh2@bias=1",
        "conv2d_grad_weight:g2mb2ic6ih9iw8oc4kh3dh1ph1@layout=NHWC",
        "max_pool2d:mb1ic3ih12kh3sh2@ceil=1@layout=NHWC",
        "max_pool2d_grad:mb2ic3ih12kh3sh2@ceil=1",
        "max_pool2d_grad:mb1ic3ih11kh3sh2ph1@indices=window@layout=NHWC",
        "avg_pool2d:mb1ic3ih12kh3sh2ph1@ceil=1",
        "avg_pool2d:mb1ic3ih12kh3sh2ph1@ceil=1@pad=exclude",
        "avg_pool3d_grad:mb1ic3id6kd2sd2@div=3@layout=NHWC",
        "avg_pool2d_grad:mb1ic3ih12kh3sh2ph1@pad=exclude",
    ],
)
def test_definitions_agree_with_the_reference_everywhere(text: str) -> None:
    """The pointwise definitions are written on their own; every point of a small problem, not a sample."""
    problem = parse(text)
    inputs, outputs = computed(problem)
    assert check.compare(problem, inputs, outputs, "full") is None
    last = problem.layout == "NHWC"
    logical = {
        name: np.moveaxis(a, -1, 1) if last and name not in ("weight", "bias") else a for name, a in inputs.items()
    }
    result = np.moveaxis(outputs[0], -1, 1) if last and problem.op != "conv_grad_weight" else outputs[0]
    for point in np.ndindex(*result.shape):
        want = definition.DEFINITIONS[problem.op](problem, logical, point)
        assert result[point] == pytest.approx(want, rel=1e-5, abs=1e-6), point


def test_full_sees_any_single_wrong_element() -> None:
    inputs, outputs = computed(CONV)
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        wrong = outputs[0].copy()
        place = tuple(rng.integers(size) for size in wrong.shape)
        wrong[place] += 1
        sentence = check.compare(CONV, inputs, (wrong,), "full")
        assert sentence is not None and f"out{list(map(int, place))} is" in sentence


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda y: y[:, :, :, ::-1], id="mirrored rows"),
        pytest.param(lambda y: np.roll(y, 1, axis=1), id="channels off by one"),
        pytest.param(lambda y: y * 2, id="counted twice"),
        pytest.param(lambda y: np.where(np.arange(y.shape[-1]) >= y.shape[-1] - 2, 0, y), id="missed tail tile"),
        pytest.param(lambda y: np.where(np.arange(y.shape[1])[:, None, None] == 6, y - 1, y), id="last channel"),
    ],
)
def test_sampled_sees_wrong_kernels(damage) -> None:
    for seed in range(SEEDS // 4):
        inputs, outputs = computed(CONV, seed)
        assert check.compare(CONV, inputs, (np.ascontiguousarray(damage(outputs[0])),), "sampled") is not None


def test_unwritten_elements_are_seen_wherever_they_are() -> None:
    inputs, outputs = computed(CONV)
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        partial = outputs[0].copy()
        partial[tuple(rng.integers(size) for size in partial.shape)] = np.nan
        assert "was not written (1 of" in check.compare(CONV, inputs, (partial,), "sampled")


def test_integer_outputs_are_poisoned_too() -> None:
    problem = parse("max_pool2d:mb1ic2ih6kh2sh2@indices=torch")
    inputs, (out, indices) = computed(problem)
    indices[0, 1, 2, 2] = np.iinfo(np.int64).min
    assert "indices[0, 1, 2, 2] was not written" in check.compare(problem, inputs, (out, indices), "sampled")


def test_wrong_shapes_are_sentences() -> None:
    inputs, outputs = computed(CONV)
    assert "has shape" in check.compare(CONV, inputs, (outputs[0][:1],), "sampled")


@pytest.mark.parametrize(
    ("text", "products"),
    [
        ("conv2d:g2mb3ic6ih9oc4kh3ph1", 3 * 9),
        ("conv2d_grad_input:g2mb3ic6ih9oc4kh3ph1", 2 * 9),
        ("conv2d_grad_input:mb1ic3ih9iw10oc5kh3sh2ph1", 5 * 2 * 2),
        ("conv2d_grad_input:mb1ic3ih9iw10oc5kh2sh3", 5),
        ("conv2d_grad_weight:mb3ic6ih9oc4kh3ph1", 3 * 81),
        ("max_pool2d:mb1ic3ih8kh2", 4),
    ],
)
def test_products_of_a_point(text: str, products: int) -> None:
    """Every factor one: an output of a convolution is the number of its products."""
    problem = parse(text)
    assert definition.products_per_point(problem) == products
    if problem.op.startswith("conv"):
        arrays = {name: np.ones_like(a) for name, a in data.inputs(problem, "check", 0).items()}
        with ck.using(backend="reference", kernel="reference"):
            call = public_call(problem, arrays)
            (got, *_) = call.pick(call.bind()())
        assert got.max() == products


def test_winograd_may_round_but_not_err() -> None:
    inputs, outputs = computed(CONV)
    row = "conv2d.cpp.winograd.avx2.f32"
    rounded = outputs[0] * np.float32(1 + 2e-7)
    assert check.compare(CONV, inputs, (rounded,), "sampled", row) is None
    assert check.compare(CONV, inputs, (rounded,), "sampled", "conv2d.cpp.direct.avx2.f32") is not None
    assert check.compare(CONV, inputs, (outputs[0] + np.float32(0.5),), "sampled", row) is not None


@pytest.fixture
def corrupt(monkeypatch):
    """Replace the reference backend's convolution by one whose ``run`` is wrapped; dispatch sees nothing else."""

    def install(wrap) -> None:
        loaded = backends.load("reference")
        rows = tuple(dataclasses.replace(row, run=wrap(row.run)) if row.op == "conv" else row for row in loaded.kernels)
        monkeypatch.setitem(backends._loaded, "reference", dataclasses.replace(loaded, kernels=rows))
        dispatch._choose.cache_clear()

    yield install
    dispatch._choose.cache_clear()


def test_a_corrupt_kernel_is_caught(corrupt) -> None:
    def off_by_one(run):
        def wrong(state, inputs, outputs):
            run(state, inputs, outputs)
            outputs[0][...] += 1

        return wrong

    corrupt(off_by_one)
    with ck.using(backend="reference"):
        row, sentence = own.verify(CONV, "sampled", seed=0)
    assert row == "conv2d.reference.direct.f32"
    assert "must be" in sentence


def test_a_kernel_that_leaves_the_last_element_is_caught(corrupt) -> None:
    def short(run):
        def wrong(state, inputs, outputs):
            last = outputs[0].flat[-1]
            run(state, inputs, outputs)
            outputs[0].flat[-1] = last

        return wrong

    corrupt(short)
    with ck.using(backend="reference"):
        _, sentence = own.verify(CONV, "sampled", seed=0)
    assert sentence is not None


def test_a_kernel_that_writes_beside_its_output_is_caught(corrupt) -> None:
    def wide(run):
        def wrong(state, inputs, outputs):
            run(state, inputs, outputs)
            beside = np.lib.stride_tricks.as_strided(outputs[0], (outputs[0].size + 1,), (outputs[0].itemsize,))
            if isinstance(outputs[0].base, np.ndarray):  # the guarded run: its neighbours are guard words
                beside[-1] = 7

        return wrong

    corrupt(wide)
    with ck.using(backend="reference"):
        _, sentence = own.verify(CONV, "sampled", seed=0)
    assert sentence == "wrote after the output (4 bytes)"


@pytest.mark.parametrize("text", ["relu:mb1ic32ih8", "max_pool2d_grad:mb1ic3ih9kh3sh2"])
def test_a_forced_row_is_compared_with_the_reference_and_fed_by_it(text: str) -> None:
    chosen = ck.explain(text)[0].chosen
    with ck.using(kernel=chosen.name):
        row, sentence = own.verify(parse(text), "sampled", seed=0)
    assert chosen.name in row
    assert sentence is None


def test_guards_and_offsets() -> None:
    array = data.buffer((3, 5), np.dtype(np.float32), offset=3)
    assert (array.ctypes.data % 4096, array.flags.c_contiguous) == (192, True)
    guarded = data.Guarded.like(CONV.outputs[0])
    assert np.isnan(guarded.array).all() and guarded.damage() is None
    guarded.raw[0] = 0
    assert guarded.damage() == "wrote before the output (1 bytes)"


def test_every_process_makes_the_same_inputs() -> None:
    first, second = (data.inputs(CONV, "time", 3, offset) for offset in (0, 5))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = data.inputs(CONV, "time", 4)
    assert not np.array_equal(first["x"], other["x"])
    small = data.inputs(CONV, "check", 3)
    assert set(np.unique(small["x"])) == set(range(-4, 5))
