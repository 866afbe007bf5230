"""Problem strings: the canonical form is a fixed point, sizes follow, bad strings are refused with a reason."""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import prod

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cnnkern.errors import ArgumentError, ShapeError
from cnnkern.problem import Problem, from_benchdnn, from_request, parse
from cnnkern.problem.attributes import attributes_of
from cnnkern.spec import OPS, ConvGeometry, PointwiseGeometry, PoolGeometry, Request

CANONICAL = [
    'conv2d:mb1ic3ih224oc64oh112kh7sh2ph3n"resnet50:conv1"',
    'conv2d:mb1ic64ih56oc64oh56kh3ph1n"resnet50:conv2_x*3"@cpp.winograd.avx512.f32',
    "conv2d:g32mb1ic32ih112oc32oh112kh3ph1@layout=NHWC@act=relu",
    "conv2d:mb1ic16ih32oc16oh32kh3dh1ph2",
    "conv2d:mb1ic4ih4oc4oh2kh3sh2qh1",
    "conv1d:mb1ic40iw800oc64ow800kw9pw4",
    "conv2d_grad_weight:mb8ic64ih56oc64oh56kh3ph1@dt=f64@cpp",
    "max_pool2d:mb1ic64ih112oh56kh3sh2@ceil=1",
    "conv3d:mb1ic2id4ih5iw6oc3od2oh3ow4kd3",
    "conv2d:mb0ic0ih1iw9oc0oh1ow3kh1kw5sh1sw2",
    "avg_pool2d:mb1ic8ih7oh1kh7@pad=exclude@div=5@threads=2@cold=all@gate=12.5%@reference",
    "lp_pool2d:mb1ic8ih8oh4kh2sh2@p=inf",
    "adaptive_avg_pool2d:mb1ic512ih7iw5oh1",
    "local_response_norm:mb1ic96ih55@alpha=2e-05@k=2",
    "batch_norm:mb32ic10@bias=1@weight=1@eps=0.001",
    "softmax_cross_entropy:mb8ic10@label_smoothing=0.1",
    "relu:mb4096",
    "unfold2d:mb1ic3ih8oh6kh3",
    "fold1d:mb1ic3iw8ow3kw3sw2",
    "conv2d:mb1ic8ih8oc8oh8kh1@bias=1@act=relu@res=1@plan=1",
]


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_form_is_a_fixed_point(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("mb1_ic3_ih8_oc4_kh3_ph1", "conv2d:mb1ic3ih8oc4oh8kh3ph1"),  # no op, underscores, output size follows
        ("mb1ic3iw8kw2sw2", "max_pool1d:mb1ic3iw8ow4kw2sw2"),
        ("conv2d:kh3oc4ih8ic3mb1g1sh1dh0ph0", "conv2d:mb1ic3ih8oc4oh6kh3"),  # any order, defaults go
        ("conv2d:mb1ic3ih8iw8oc4kh3kw3ph1pw1", "conv2d:mb1ic3ih8oc4oh8kh3ph1"),  # squares are shortened
        ("conv2d:mb1ic3ih8oc4oh8kh3", "conv2d:mb1ic3ih8oc4oh8kh3qh2"),  # the stated size needs padding after
        ("conv2d:mb1ic3ih8oc4oh7kh3ph1", "conv2d:mb1ic3ih8oc4oh7kh3ph1qh0"),
        ("max_pool2d:mb1ic3ih8kh2sh2@ceil=1", "max_pool2d:mb1ic3ih8oh4kh2sh2"),  # rounding up changes nothing
        ("conv2d:mb1ic3ih8oc4kh3@dt=f32@layout=NCHW@act=none", "conv2d:mb1ic3ih8oc4oh6kh3"),
        ("conv2d:mb1ic3ih8oc4kh3@cpp.direct.avx2.f64", "conv2d:mb1ic3ih8oc4oh6kh3@cpp.direct.avx2.f64"),
        ("conv2d:mb1ic3ih8oc4kh3@dt=f64@cpp.direct", "conv2d:mb1ic3ih8oc4oh6kh3@cpp.direct.f64"),
        ('conv2d:mb1ic3ih8oc4kh3n"a:b*1"', 'conv2d:mb1ic3ih8oc4oh6kh3n"a:b"'),
    ],
)
def test_other_forms_become_canonical(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)


def test_fields() -> None:
    problem = parse('conv2d:g2mb1ic8ih9oc4kh3sh2dh1ph1n"net:layer*3"@bias=1@act=relu@threads=2@gate=15%@cpp.direct')
    assert problem.geometry == ConvGeometry(1, 2, 8, 4, (9, 9), (4, 4), (3, 3), (2, 2), (2, 2), (1, 1), (1, 1))
    assert (problem.name, problem.count, problem.threads, problem.gate, problem.row) == (
        "net:layer", 3, 2, 15.0, "cpp.direct",
    )  # fmt: skip
    assert problem.options == (("activation", "relu"), ("bias", True))
    assert problem.request() == Request("conv", problem.geometry, "f32", options=problem.options)
    assert problem.key == "conv2d:g2mb1ic8ih9oc4oh4kh3sh2dh1ph1@bias=1@act=relu@threads=2@cpp.direct.f32"


def test_counts_and_arrays() -> None:
    problem = parse("conv2d:mb2ic3ih8oc4kh3ph1@layout=NHWC@bias=1")
    assert problem.flops == 2 * 2 * 4 * 8 * 8 * 3 * 9
    assert [(a.name, a.shape) for a in problem.inputs] == [
        ("x", (2, 8, 8, 3)),
        ("weight", (4, 3, 3, 3)),
        ("bias", (4,)),
    ]
    assert [(a.name, a.shape) for a in problem.outputs] == [("out", (2, 8, 8, 4))]
    assert problem.bytes == 4 * (2 * 8 * 8 * 3 + 4 * 3 * 9 + 4 + 2 * 8 * 8 * 4)


def test_missing_batch_is_assumed_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="mb2 is assumed"):
        assert parse("conv2d:ic3ih8oc4kh3").geometry.batch == 2


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("", ArgumentError, "is not a case string"),
        ("conv2d", ArgumentError, "does not begin with a size"),
        ("conv2d:", ArgumentError, "is not a case string"),
        ("conv4d:mb1ic3ih8oc4kh3", ArgumentError, "op 'conv4d' is not known. Use one of conv{1,2,3}d, "),
        ("conv2d:mb1ic3ih8oc4kh3xx1", ArgumentError, "'xx1' does not begin with a size"),
        ("conv2d:mb1ic3ih8oc4kh3mb2", ArgumentError, "mb is given twice"),
        ("conv2d:mb1ic3ih8kh3", ArgumentError, "conv2d needs oc"),
        ("conv2d:mb1ic3iw8oc4kh3", ArgumentError, "conv2d needs ih"),
        ("conv2d:mb1ic3id8oc4kh3", ArgumentError, "conv2d has no size id. It has g mb ic ih iw"),
        ("unfold2d:mb1ic3ih8oc27kh3", ArgumentError, "unfold2d has no size oc"),
        ("mb1ic3oc4", ArgumentError, "no spatial axis is given"),
        ("max_pool2d:g2mb1ic3ih8kh3", ArgumentError, "max_pool2d has no size g"),
        ("conv2d:mb1ic3ih8oc4kh0", ArgumentError, "kh must be >= 1, got 0"),
        ("conv2d:g0mb1ic3ih8oc4kh3", ArgumentError, "g must be >= 1, got 0"),
        ("conv2d:g2mb1ic3ih8oc4kh3", ShapeError, "g2 must divide ic3"),
        ("conv2d:mb1ic3ih8oc4kh9", ShapeError, r"kernel covers 9 along h .* has 8 \(8 \+ 0 \+ 0\)"),
        ("conv2d:mb1ic3ih8oc4oh9kh3ph1qh1", ShapeError, r"oh9 .*\(8 \+ 1 \+ 1 - 1\*\(3 - 1\) - 1\) // 1 \+ 1 = 8"),
        ("conv2d:mb1ic3ih8oc4oh3kh3", ShapeError, "oh3 does not follow"),
        ("conv2d:mb1ic3ih8oc4oh0kh3", ShapeError, "oh0 does not follow"),
        ("conv2d:mb1ic3ih99999999999999999999oc4kh3", ShapeError, "does not fit 64 bits"),
        ("conv2d:mb4294967296ic4294967296ih8oc4kh3", ShapeError, "exceeds 64-bit offsets"),
        ("conv2d:mb1ic3ih8oc4kh3@foo=1", ArgumentError, "conv has no attribute 'foo'. It has dt, layout"),
        ("conv2d:mb1ic3ih8oc4kh3@ceil=1", ArgumentError, "conv has no attribute 'ceil'"),
        ("conv2d:mb1ic3ih8oc4kh3@dt=f31", ArgumentError, "dt must be f32 or f64"),
        ("conv2d:mb1ic3ih8oc4kh3@bias=2", ArgumentError, "bias must be 0 or 1, got '2'"),
        ("conv2d:mb1ic3ih8oc4kh3@threads=0", ArgumentError, "threads must be an integer from 1"),
        ("conv2d:mb1ic3ih8oc4kh3@gate=15", ArgumentError, "gate must be a percentage"),
        ("conv2d:mb1ic3ih8oc4kh3@bias=1@bias=1", ArgumentError, "bias is given twice"),
        ("lp_pool2d:mb1ic3ih8kh2@p=nan", ArgumentError, "p must be a number"),
        ("conv2d:mb1ic3ih8oc4kh3@cpp.direct.sse2", ArgumentError, "is not backend"),
        ("conv2d:mb1ic3ih8oc4kh3@cpp.direct@bias=1", ArgumentError, "has no attribute 'cpp.direct'"),
        ("conv2d:mb1ic3ih8oc4kh3@dt=f64@cpp.direct.avx2.f32", ArgumentError, "dt=f64 and the row's f32 disagree"),
        ('conv2d:mb1ic3ih8oc4kh3n"a*0"', ArgumentError, "the count after"),
        ('conv2d:mb1ic3ih8oc4kh3n"a', ArgumentError, "is not a case string"),
    ],
)
def test_refusals(text: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        parse(text)


# Random problems of every op

sizes = st.integers(0, 9)
names = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='"'), max_size=12)


@st.composite
def windowed(draw: st.DrawFn, rank: int, ceil: bool) -> dict:
    axes: dict[str, list[int]] = {k: [] for k in ("input", "output", "kernel", "stride", "dilation", "before", "after")}
    for _ in range(rank):
        kernel, stride, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
        before, after = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        span = dilation * (kernel - 1) + 1
        size = draw(st.integers(max(0, span - before - after), 20))
        room = size + before + after - span
        out = room // stride + 1
        if ceil:
            out = -(-room // stride) + 1
            out -= (out - 1) * stride >= size + before
        assume(out >= 1)
        values = (size, out, kernel, stride, dilation, before, after)
        for store, value in zip(axes.values(), values):
            store.append(value)
    axes["pad_before"], axes["pad_after"] = axes.pop("before"), axes.pop("after")
    return {name: tuple(values) for name, values in axes.items()}


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    op = draw(st.sampled_from([o for o in OPS if OPS[o].geometry in ("ConvGeometry", "PoolGeometry")]))
    rank = draw(st.integers(1, 3))
    pool = OPS[op].geometry == "PoolGeometry"
    fields = draw(windowed(rank, ceil=pool and draw(st.booleans())))
    batch, groups = draw(sizes), draw(st.integers(1, 3))
    if pool:
        geometry = PoolGeometry(batch, draw(sizes), **fields)
    elif op in ("unfold", "fold"):
        channels = draw(sizes)
        geometry = ConvGeometry(batch, 1, channels, channels * prod(fields["kernel"]), **fields)
    else:
        geometry = ConvGeometry(batch, groups, groups * draw(sizes), groups * draw(sizes), **fields)
    values = {
        "bias": [True], "residual": [True], "activation": ["relu"], "weight_dtype": ["i8"], "norm_type": [1.0, 3.5],
        "count_include_pad": [False], "divisor": [1, 7], "indices": ["torch", "window"],
    }  # fmt: skip
    options = []
    for name, default in sorted(OPS[op].options.items()):
        value = draw(st.sampled_from(values[name]))
        if draw(st.booleans()) and value != default:
            options.append((name, value))
    return Problem(
        op,
        geometry,
        draw(st.sampled_from(["f32", "f64", "bf16"])),
        draw(st.sampled_from(["NCHW", "NHWC"])),
        draw(st.sampled_from(["strict", "f32", "fast"])),
        tuple(options),
        name=draw(names.filter(lambda n: not n.rpartition("*")[2].isdecimal() or "*" not in n)),
        count=draw(st.integers(1, 50)),
        plan=draw(st.booleans()) if "plan" in attributes_of(op) else False,
        threads=draw(st.none() | st.integers(1, 64)),
        cold=draw(st.sampled_from([None, "wei", "all"])),
        gate=draw(st.none() | st.floats(0.01, 100)),
        row=draw(st.sampled_from([None, "cpp", "cpp.direct", "reference.numpy", "cpp.gemm.avx512"])),
    )


@settings(max_examples=400, deadline=None)
@given(problems())
def test_round_trip(problem: Problem) -> None:
    text = str(problem)
    again = parse(text)
    assert str(again) == text
    assert again == problem
    assert again.key == replace(again, name="", count=1, gate=None).key
    assert from_request(again.request()).request() == again.request()


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='mbicohkwsdpqgn"0123456789@=:_.*%conv2dxrelu', max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem = parse(text)
        except (ArgumentError, ShapeError):
            return
        assert parse(str(problem)) == problem


def test_transposed_convolution_may_leave_input_rows_unreached() -> None:
    text = "conv2d_grad_input:mb1ic4ih9oc4oh4kh2dh2"  # dilation 3, output_padding 2: floor would give 6
    assert parse(text).geometry.output == (4, 4)
    assert str(parse(text)) == text
    with pytest.raises(ShapeError, match="oh4 does not follow"):
        parse(text.replace("_grad_input", ""))


def test_from_request_spells_every_elementwise_shape() -> None:
    for shape, sizes_text in [((), "mb1"), ((5,), "mb5"), ((2, 3), "mb2ic3"), ((1, 2, 3, 4, 5, 6), "mb720")]:
        problem = from_request(Request("relu", PointwiseGeometry(shape), "f32"))
        assert str(problem) == f"relu:{sizes_text}"
        assert parse(str(problem)) == problem


@pytest.mark.parametrize(
    ("line", "case"),
    [
        ('mb1ic3ih224oc64oh112kh7sh2ph3n"conv1"', 'conv2d:mb1ic3ih224oc64oh112kh7sh2ph3n"conv1"@bias=1'),
        ("--dir=FWD_D ic16ih10oc16kh3ph1", "conv2d:mb2ic16ih10oc16oh10kh3ph1"),
        ("--conv --dir=BWD_W --dt=f64 mb8ic16ih10oc16kh3ph1", "conv2d_grad_weight:mb8ic16ih10oc16oh10kh3ph1@dt=f64"),
        ("--dir=BWD_D --stag=axb --mb=4 ic16ih10oc16kh3", "conv2d_grad_input:mb4ic16ih10oc16oh8kh3@layout=NHWC"),
        ("--dir=FWD_D mb1ic4ih10iw9oc4kh3kw3sh2", "conv2d:mb1ic4ih10iw9oc4oh4ow7kh3sh2sw1"),  # sw stays 1
        ("--dir=FWD_D mb1ic4ih4oc4oh4kh3", "conv2d:mb1ic4ih4oc4oh4kh3ph1"),  # padding follows from the output size
        ("--pool --alg=avg_np mb1ic4ih10kh3sh2", "avg_pool2d:mb1ic4ih10oh4kh3sh2@pad=exclude"),
        ("--pool --alg=avg_p mb1ic4ih10kh3sh2", "avg_pool2d:mb1ic4ih10oh4kh3sh2"),
        (
            "--pool --dir=BWD_D ic35_iw30ih20_ow14oh17_kw3kh4_sw2sh1",
            "max_pool2d_grad:mb2ic35ih20iw30oh17ow14kh4kw3sh1sw2",
        ),
        ("--pool mb4ic16_ih10oh10_kh2ph1", "max_pool2d:mb4ic16ih10oh10kh2ph1qh0"),
        ("mb1ic16oc16_ih10kh5_kh5ph7sh1", "conv2d:mb1ic16ih10oc16oh20kh5ph7@bias=1"),
        ("--pool mb1ic8_id4kd2sd2", "max_pool3d:mb1ic8id4od2kd2sd2"),
    ],
)
def test_benchdnn_lines(line: str, case: str) -> None:
    assert str(from_benchdnn(line)) == case


def test_benchdnn_refusals() -> None:
    for line, sentence in [
        ("", "gives no sizes"),
        ("--deconv mb1ic3ih8oc4kh3", "deconv"),
        ("--dir=UP mb1ic3ih8kh3", "dir"),
    ]:
        with pytest.raises(ArgumentError, match=sentence):
            from_benchdnn(line)
