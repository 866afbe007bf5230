"""The cost model of native convolutions: what it must say about any sizes, and where known borders lie."""

from __future__ import annotations

import re
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnkern import problem, roofline
from cnnkern.backends import cpp_cost
from cnnkern.spec import ConvGeometry, Request
from cnnkern.spec.shapes import conv_geometry
from strategies import convolutions

pytestmark = pytest.mark.usefixtures("default_ceilings")

OPS = ("conv", "conv_grad_input", "conv_grad_weight")
ROWS = [  # whatever may come to stand in the table; rows that exist are among them
    *(("direct", isa) for isa in ("scalar", "avx2", "avx512", "neon")),
    *(("rows", isa) for isa in ("scalar", "avx2", "avx512", "neon")),
    *(("gemm", isa) for isa in ("scalar", "avx2", "avx512", "neon")),
    *((name, isa) for name in ("winograd", "winograd_f2", "depthwise") for isa in ("avx2", "avx512", "neon")),
    ("direct", "avx512vnni"),
    *((name, "amx") for name in ("split6", "split3", "split1")),
]


@pytest.fixture
def default_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's caches and calibration must not decide a test."""
    set_ceilings(monkeypatch, roofline.DEFAULTS)
    monkeypatch.setattr(roofline, "second_level", lambda: 1 << 20)
    monkeypatch.setattr(roofline, "last_level", lambda: 32 << 20)


def set_ceilings(monkeypatch: pytest.MonkeyPatch, ceilings: roofline.Ceilings) -> None:
    monkeypatch.setattr(roofline, "current", lambda: ceilings)


def seconds(request: Request, algorithm: str, isa: str = "avx512") -> float | None:
    cost = cpp_cost.cost(request.op, algorithm, isa)
    return None if cost is None else cost(request)


def estimate(case: str, algorithm: str, isa: str = "avx512") -> float:
    found = seconds(problem.parse(case).request(), algorithm, isa)
    assert found is not None
    return found


def square(batch: int, channels: int, outputs: int, size: int, kernel: int, groups: int = 1) -> ConvGeometry:
    """A convolution that keeps the size of the image."""
    weight = (outputs * groups, channels, kernel, kernel)
    return conv_geometry("conv2d", (batch, channels * groups, size, size), weight, 1, kernel // 2, 1, groups)


@given(convolutions(), st.sampled_from(OPS), st.sampled_from(ROWS), st.booleans(), st.sampled_from(("NCHW", "NHWC")))
def test_a_cost_is_a_time_at_least_of_a_call(
    geometry: ConvGeometry, op: str, row: tuple[str, str], prepacked: bool, layout: str
) -> None:
    """Empty axes, groups, strides, any rank: a number, or None where the algorithm has no such form."""
    found = seconds(Request(op, geometry, "f32", layout, prepacked=prepacked), *row)
    assert found is None or roofline.DEFAULTS.call <= found < inf
    if row[0] in ("direct", "split6"):
        assert found is not None


SIZES = st.tuples(
    st.integers(1, 9), st.integers(1, 140), st.integers(1, 140), st.integers(1, 70), st.sampled_from((1, 3, 5))
)


@given(SIZES, st.integers(0, 3), st.integers(1, 40), st.sampled_from(OPS), st.sampled_from(ROWS))
def test_more_of_anything_is_never_cheaper(
    sizes: tuple[int, ...], axis: int, more: int, op: str, row: tuple[str, str]
) -> None:
    """More images, channels read or written, or pixels."""
    larger = tuple(size + more * (i == axis) for i, size in enumerate(sizes))
    small, large = (seconds(Request(op, square(*s), "f32"), *row) for s in (sizes, larger))
    if small is None:  # no such form
        assert large is None
    else:
        assert large is not None and large >= small * (1 - 1e-9)


@given(SIZES, st.sampled_from(OPS), st.sampled_from(ROWS), st.sampled_from(("f32", "f64")))
def test_a_machine_twice_as_fast_takes_half_the_time(
    sizes: tuple[int, ...], op: str, row: tuple[str, str], dtype: str
) -> None:
    request = Request(op, square(*sizes), dtype)
    slow = seconds(request, *row)
    d = roofline.DEFAULTS
    with pytest.MonkeyPatch.context() as patch:
        peaks = {name: 2 * peak for name, peak in d.peaks.items()}
        set_ceilings(patch, roofline.Ceilings(peaks, 2 * d.memory, 2 * d.cache, d.call))
        fast = seconds(request, *row)
    assert (slow is None) == (fast is None)
    if slow is not None and fast is not None:
        assert fast - d.call == pytest.approx((slow - d.call) / 2)


@given(SIZES, st.sampled_from(OPS), st.sampled_from(("memory", "cache", "avx512.f32")))
def test_a_better_ceiling_never_makes_a_row_slower(sizes: tuple[int, ...], op: str, which: str) -> None:
    request = Request(op, square(*sizes), "f32")
    before = seconds(request, "direct")
    d = roofline.DEFAULTS
    with pytest.MonkeyPatch.context() as patch:
        better = (
            {which: 2 * getattr(d, which)} if "." not in which else {"peaks": {**d.peaks, which: 2 * d.peaks[which]}}
        )
        set_ceilings(patch, replace(d, **better))
        after = seconds(request, "direct")
    assert before is not None and after is not None and after <= before


@given(SIZES, st.sampled_from(("direct", "winograd", "winograd_f2", "split6")))
def test_a_plan_saves_the_packing(sizes: tuple[int, ...], algorithm: str) -> None:
    batch, channels, outputs, size, kernel = sizes
    geometry = square(batch, channels, 32 * (1 + outputs // 32), size, kernel)  # full vectors: nothing padded to read
    eager, planned = (seconds(Request("conv", geometry, "f32", prepacked=p), algorithm) for p in (False, True))
    assert (eager is None) == (planned is None)
    if eager is not None and planned is not None:
        assert planned <= eager * (1 + 1e-9)  # equal: weights read once, by one walk or the other
        assert planned < eager or algorithm == "direct"


@given(SIZES, st.sampled_from(OPS), st.sampled_from(("f32", "f64")))
def test_wider_vectors_are_faster_where_channels_fill_them(sizes: tuple[int, ...], op: str, dtype: str) -> None:
    batch, channels, outputs, size, kernel = sizes
    geometry = square(batch, 32 * (1 + channels // 32), 32 * (1 + outputs // 32), size, kernel)
    costs = [seconds(Request(op, geometry, dtype), "direct", isa) for isa in ("avx512", "avx2", "scalar")]
    assert costs == sorted(costs, key=lambda cost: cost or inf)


# ---- known borders, far enough from them that the model's error does not matter


@pytest.mark.parametrize("op", ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"])
def test_winograd_and_split_pass_direct_on_large_3x3_layers(op: str) -> None:
    case = f"{op}:mb8ic128ih28oc128kh3ph1"
    direct = estimate(case, "direct")
    assert estimate(case, "winograd") < estimate(case, "winograd_f2") < 0.8 * direct
    assert estimate(case, "split1", "amx") < estimate(case, "split3", "amx") < estimate(case, "split6", "amx")
    assert estimate(case, "split6", "amx") < 0.8 * direct


def test_dot_products_of_bytes_pass_float32() -> None:
    """Of four with VNNI by far; of two, in two instructions, not on every layer."""
    for sizes in ("mb1ic64ih56oc64kh3ph1", "mb1ic256ih56oc64kh1", "mb8ic512ih7oc512kh3ph1"):
        wide, narrow = estimate(f"conv2d:{sizes}", "direct"), f"conv2d:{sizes}@dt=u8@wdt=i8"
        assert estimate(narrow, "direct", "avx512vnni") < 0.45 * wide
        assert estimate(narrow, "direct", "avx512vnni") < 0.6 * estimate(narrow, "direct")
        assert estimate(narrow, "direct") < estimate(narrow, "direct", "avx2") < estimate(narrow, "direct", "scalar")


def test_transformed_weights_weigh_on_one_small_image() -> None:
    """512 x 512 filters are 38 MB in F(4,3): eight 7x7 images at once cost far less than eight one by one. Measured on
    one core: 2.8 times less, against 1.4 times with direct, whose weights are 9 MB."""
    one, eight = (f"conv2d:mb{batch}ic512ih7oc512kh3ph1" for batch in (1, 8))
    saved = {name: 8 * estimate(one, name) / estimate(eight, name) for name in ("winograd", "direct")}
    assert saved["winograd"] > 2 and saved["direct"] < 1.6
    assert estimate(eight, "winograd") < 0.7 * estimate(eight, "direct")


def test_forms_follow_the_window() -> None:
    five = "conv2d:mb1ic64ih28oc64kh5ph2"
    assert estimate(five, "winograd") < estimate(five, "direct")
    assert seconds(problem.parse(five).request(), "winograd_f2") is None
    for case in ("conv2d:mb1ic8ih9oc8kh7ph3", "conv2d:mb1ic8ih9oc8kh3kw1ph1pw0", "conv1d:mb1ic8iw9oc8kw3pw1"):
        assert seconds(problem.parse(case).request(), "winograd") is None


def test_few_channels_want_lanes_of_pixels() -> None:
    for case in ("conv2d:mb1ic64ih56oc3kh3ph1", "conv2d_grad_input:mb1ic3ih224oc64kh7sh2ph3"):
        assert estimate(case, "rows") < 0.8 * estimate(case, "direct")
    depthwise = "conv2d:g64mb1ic64ih56oc64kh3ph1"
    assert estimate(depthwise, "depthwise") < 0.5 * estimate(depthwise, "direct")
    assert estimate(depthwise, "split6", "amx") > estimate(depthwise, "direct")  # 32 x 32 tiles for one channel


def test_few_channels_share_a_tile_step_among_taps() -> None:
    """A row of seven taps takes 4 steps with 16 channels and 7 with 32; with 3 channels one step, which is worth it."""
    cases = {channels: f"conv2d:mb1ic{channels}ih224oc64kh7sh2ph3" for channels in (3, 16, 32)}
    assert estimate(cases[16], "split6", "amx") < 0.7 * estimate(cases[32], "split6", "amx")
    assert estimate(cases[3], "split6", "amx") < 0.8 * estimate(cases[3], "direct")


def test_layers_that_move_more_than_they_compute_are_bound_by_bytes() -> None:
    """A depthwise layer of 103 MB takes at least the time that a copy of as many bytes does."""
    case = problem.parse("conv2d:g64mb64ic64ih56oc64kh3ph1")
    bound = case.bytes / roofline.DEFAULTS.memory
    assert bound <= estimate(str(case), "depthwise") <= 1.5 * bound


# ---- what it is attached to


def test_only_convolutions_and_known_algorithms_have_a_model() -> None:
    assert cpp_cost.cost("relu", "direct", "avx2") is None
    assert cpp_cost.cost("conv", "fft", "avx2") is None
    assert cpp_cost.cost("conv_grad_weight", "gemm", "avx2") is None


def test_vectors_and_tiles_are_those_of_the_targets() -> None:
    found = {}
    for path in (Path(__file__).parent.parent / "csrc" / "cpu").glob("target_*.cpp"):
        text = path.read_text()
        if tile := re.search(r"#define CK_TILE_PIXELS (\d+)", text):
            vector = re.search(r"#define CK_VECTOR_BYTES (\d+)", text)
            assert vector
            found[path.stem.removeprefix("target_")] = (int(vector[1]), int(tile[1]))
    wanted = {isa: (cpp_cost.VECTOR_BYTES[isa], cpp_cost.TILE_PIXELS[isa]) for isa in cpp_cost.TILE_PIXELS}
    assert {isa: sizes for isa, sizes in found.items() if isa in wanted} == wanted
