"""Convolutions on matrix tiles, over the portable model of the tile unit: exact on whole numbers, errors of each
precision, magnitudes at the ends of the range, special values, the same bits for any cut.

The library that these tests build holds the rows' own text; only the tile product is a model, and tested here too. On
some problems the rows also run as machine code of AMX, on the CPU's own tiles or trapped instruction by instruction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
import pytest

import cnnkern as ck
import tile_model
from bounds import bounds, reference, split_bound
from cnnkern.spec import Request
from matrix import AVAILABLE, COMPLETE, FUSED, NATIVE, missing, needs_native
from oracle import MEMORY, ORDERS, differs, exceeds_rms, rms, run_row, same_bits
from samples import INTEGERS, NORMAL, generator, label, large_requests, parse, sample_inputs, sample_requests
from test_precision import PROBLEMS, bell, drawn, limits, offset, rectified
from tile_model import ModelRow, needs_compiler

pytestmark = [needs_native, needs_compiler]

OPERATIONS = ("conv", "conv_grad_input", "conv_grad_weight")
ALGORITHMS = {"split6": "f32", "split3": "fast", "split1": "bf16"}
CACHES = (1 << 16, 1 << 20, 1 << 23)  # second-level caches: many strips, the usual, few

each_layout = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


def some_rows(*ops: str) -> pytest.MarkDecorator:
    """Parametrize by ``row``: the rows of these table ops, which the fixture then finds."""
    names = list(itertools.product(ops, ALGORITHMS))
    return pytest.mark.parametrize("row", names, indirect=True, ids=[".".join(name) for name in names])


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Iterator[ModelRow]:
    (found,) = [row for row in tile_model.rows() if (row.op, row.algorithm) == request.param]
    yield found
    tile_model.set_cache_bytes(1 << 20)


each_row = some_rows(*OPERATIONS)
each_map_row = some_rows(*OPERATIONS[:2])  # those whose result is a map, image by image


def test_each_row_keeps_its_precision() -> None:
    assert {(row.op, row.algorithm): row.precision for row in tile_model.rows()} == {
        (op, algorithm): ALGORITHMS[algorithm] for op in OPERATIONS for algorithm in ALGORITHMS
    }


def test_a_cpu_without_tiles_says_so() -> None:
    rows = [row for row in NATIVE if row.isa == "amx"]
    if not rows:
        pytest.skip("the compiler did not build amx")
    assert {row.precisions for row in rows} == {("f32", "fast", "bf16"), ("fast", "bf16"), ("bf16",)}
    request = parse("conv", "mb1ic64ih8oc64kh3ph1")
    for row in rows:
        if row.op == "conv" and missing(row):
            sentence = row.why_not(request)
            assert sentence is not None and ("amx" in sentence or "avx512" in sentence)


# ---- the tile product


def flush(values: np.ndarray) -> np.ndarray:
    return np.where(abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values)


def tile_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The rule of csrc/cpu/tile_unit.h. A product of bfloat16 has 16 bits, so float64 rounds its sums only once."""
    a, b, c = flush(a), flush(b), flush(c)
    chains = [np.zeros_like(c), np.zeros_like(c)]
    for k in range(32):
        exact = a[:, k : k + 1].astype(np.float64) * b[k] + chains[k % 2]
        chains[k % 2] = flush(exact.astype(np.float32))
    return flush(c + flush(chains[0] + chains[1]))


def model_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The same on the model: b's rows interleaved in pairs."""
    left = np.ascontiguousarray(a.view(np.uint32) >> 16).astype(np.uint16)
    right = (np.ascontiguousarray(b).view(np.uint32) >> 16).astype(np.uint16).reshape(16, 2, 16)
    right = np.ascontiguousarray(right.transpose(0, 2, 1))
    result = c.copy()
    tile_model.library().tile_product(*(array.ctypes.data_as(tile_model.POINTER) for array in (left, right, result)))
    return result


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Values cut to bfloat16, in float32."""
    return (np.asarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("spread", [0, 20, 60])
def test_the_model_rounds_as_the_rule_says(spread: int) -> None:
    """Values of one magnitude, of many, and at both ends of the range, where sums vanish or overflow."""
    rng = generator("tile product", spread)
    for centre in (0, -50, 50):
        shapes = ((16, 16), (16, 32), (32, 16))
        c, a, b = (rng.standard_normal(s) * 2.0 ** rng.integers(-spread, spread + 1, s) for s in shapes)
        with np.errstate(over="ignore", invalid="ignore"):
            operands = np.ldexp(c, 2 * centre).astype(np.float32), *(bfloat16(np.ldexp(m, centre)) for m in (a, b))
            expected = tile_product(*operands)
        np.testing.assert_array_equal(model_product(*operands), expected)


def test_the_model_follows_what_was_measured() -> None:
    """Even and odd chains, C last, ties to even, subnormal operands and results, infinities."""
    small, ulp = 2.0**-25, 2.0**-23
    chain = [1.0, *[0.0, small] * 15, 0.0]
    cases = (
        (1.0, [small] * 32, [1.0] * 32, 1 + 32 * small),
        (0.0, chain, [1.0] * 32, 1.0),
        (0.0, [1.0, small, *[0.0, small] * 15], [1.0] * 32, 1 + 16 * small),
        (1.0, [2.0**-24], [1.0], 1.0),
        (1 + ulp, [2.0**-24], [1.0], 1 + 2 * ulp),
        (0.0, [2.0**-127], [2.0**30], 0.0),
        (2.0**-130, [0.0], [0.0], 0.0),
        (0.0, [2.0**-100], [2.0**-30], 0.0),
        (0.0, [np.inf], [0.0], np.nan),
        (0.0, [2.0**127, -(2.0**127)], [2.0, 2.0], np.nan),
    )
    for start, left, right, expected in cases:
        c, a, b = (np.zeros(shape, np.float32) for shape in ((16, 16), (16, 32), (32, 16)))
        c[0, 0], a[0, : len(left)], b[: len(right), 0] = start, left, right
        np.testing.assert_array_equal(model_product(c, a, b)[0, 0], np.float32(expected), str((start, left, right)))


# ---- the instructions

# One and two tiles of pixels and of channels; several chunks; steps enough for the stores between them.
CODE = (
    "mb1ic16ih4oc16kh1",
    "mb2ic40ih5iw6oc17kh3ph1",
    "mb1ic64ih7oc48kh3sh2ph1",
    "mb1ic130ih4iw5oc33kh3ph1",
    "mb1ic3ih9oc32kh7sh2ph3",
)


@each_row
def test_instructions_compute_what_the_model_computes(row: ModelRow) -> None:
    if "avx512" not in AVAILABLE:
        pytest.skip("this CPU lacks avx512")
    if isinstance(tile_model.build(code=True), str):
        pytest.skip("amx is not built by this compiler")
    (code,) = [other for other in tile_model.rows(code=True) if str(other) == str(row)]
    for number, text in enumerate(CODE):
        request = parse(row.op, text)
        inputs = sample_inputs(request, NORMAL)
        with tile_model.executed():
            got = code.run(request, inputs, threads=1 + number % 2)
        assert same_bits((row.run(request, inputs),), (got,)) is None, label(request)


# ---- whole numbers


@each_row
@each_layout
def test_whole_numbers_are_exact(row: ModelRow, layout: str) -> None:
    """Every sample, served or not: all memory orders, one to three threads, weights packed before or in the call."""
    for number, sample in enumerate(sample_requests(row.op)):
        request = replace(sample, layout=layout)
        inputs = sample_inputs(request, INTEGERS)
        expected = reference(request, inputs)[0]
        got = row.run(request, inputs, ORDERS[number % len(ORDERS)], 1 + number % 3, packed=number % 2 == 1)
        difference = differs(got, expected)
        assert difference is None, f"{label(request)}: {difference}"


# Several strips of rows, of columns, of images; 32 and 64 steps and more, which are summed in chunks; a last block of
# one vector; phases of rows and columns; taps stored as channels, in one and in two groups.
CUTS = (
    "mb5ic64ih14oc48kh3ph1@bias=1@act=relu@res=1",
    "mb1ic32ih40iw41oc33kh3ph1",
    "mb1ic96ih3iw700oc17kh1",
    "mb3ic257ih9iw10oc40kh3ph1@bias=1",
    "mb2ic130ih8oc64kh3sh2ph1",
    "mb1ic20ih30iw31oc70kh3sh3ph1",
    "mb2ic3ih57oc64kh7sh2ph3",
    "mb1ic12ih29oc32kh5sh4dh1ph4",
    "g3mb2ic96ih13oc96kh3ph1",
    "mb9ic512ih7oc40kh1",
    "mb1ic40id5ih6iw7oc48kd3kh3sd2pd1",
    "mb1ic64iw900oc32kw9sw2pw4",
)


def cuts(op: str) -> list[Request]:
    texts = (text.partition("@")[0] for text in CUTS) if op == "conv_grad_weight" else CUTS
    return [*(parse(op, text) for text in texts), *large_requests(op)]


@each_row
@each_layout
def test_whole_numbers_are_exact_in_any_cut(row: ModelRow, layout: str) -> None:
    """The rows differ in parts, not in cuts: those with fewer parts take half of the problems in each layout."""
    every = slice(None) if row.algorithm == "split6" else slice(layout == "NHWC", None, 2)
    for number, problem in enumerate(cuts(row.op)[every]):
        request = replace(problem, layout=layout)
        inputs = sample_inputs(request, INTEGERS)
        expected = reference(request, inputs)[0]
        tile_model.set_cache_bytes(CACHES[number % len(CACHES)])
        got = row.run(request, inputs, MEMORY[number % len(MEMORY)], 1 + number % 4, packed=number % 2 == 1)
        difference = differs(got, expected)
        assert difference is None, f"{label(request)}: {difference}"


# ---- errors


@each_row
@pytest.mark.parametrize("data", [bell, rectified, offset], ids=lambda data: data.__name__)
def test_errors_stay_within_what_the_precision_promises(row: ModelRow, data) -> None:
    for text in (*PROBLEMS, "mb1ic512ih5iw6oc33kh3ph1"):
        request = parse(row.op, text)
        inputs = drawn(request, data)
        exact = reference(request, inputs)[0]
        limit = limits(request, inputs, exact)[row.precision]
        failure = exceeds_rms(row.run(request, inputs), exact, limit)
        assert failure is None, f"{label(request)}: {failure}"
        if data is bell:  # no better than such parts can be: it was not computed again
            assert row.run(request, inputs).tobytes() != direct(request, inputs).tobytes(), label(request)
            assert row.precision == "f32" or rms(row.run(request, inputs) - exact) > limit / 100, label(request)


def direct(request: Request, inputs: tuple) -> np.ndarray:
    """What the direct convolution of the best instruction set gives."""
    rows = (row for row in NATIVE if (row.op, row.algorithm) == (request.op, "direct") and row.isa in COMPLETE)
    found = next(row for row in rows if request.dtype in row.dtypes)
    return run_row(found, request, inputs)[0]


def within(row: ModelRow, request: Request, inputs: tuple) -> tuple[np.ndarray, np.ndarray]:
    """The exact result, and how far the row's elements may be from it."""
    exact = reference(request, inputs)
    return exact[0], bounds(request, inputs, exact)[0] + split_bound(row.algorithm, request, inputs)


def scaled(request: Request, x_exponents, w_exponents) -> tuple:
    """A bell curve times powers of two; exponents as (least, most)."""
    x, weight, *rest = sample_inputs(request, NORMAL)
    rng = generator(label(request), x_exponents, w_exponents)
    powers = (
        2.0 ** rng.integers(least, most + 1, a.shape) for a, (least, most) in ((x, x_exponents), (weight, w_exponents))
    )
    factors = tuple(power.astype(np.float32) for power in powers)
    return x * factors[0], weight * factors[1], *rest


@each_row
@pytest.mark.parametrize("exponents", [((-20, 20), (-20, 20)), ((-59, -59), (-10, 10)), ((60, 60), (40, 60))], ids=str)
def test_wide_and_shifted_magnitudes_keep_the_bound_of_each_element(row: ModelRow, exponents: tuple) -> None:
    for text in PROBLEMS[:5]:
        request = parse(row.op, text)
        inputs = scaled(request, *exponents)
        exact, bound = within(row, request, inputs)
        difference = differs(row.run(request, inputs), exact, bound)
        assert difference is None, f"{label(request)}: {difference}"


@each_row
@pytest.mark.parametrize("exponent", [-62, -90, -108, -116, -124, -140])
def test_tiny_inputs_and_tiny_weights_keep_the_bound_of_each_element(row: ModelRow, exponent: int) -> None:
    """Images below 2^-60 are direct sums; weights are scaled while they are packed, their smallest bits apart."""
    request = parse(row.op, "mb2ic40ih6iw7oc35kh3ph1")
    for x_exponent, w_exponent in ((exponent, 0), (0, exponent), (exponent, exponent // 2)):
        x, weight, *rest = sample_inputs(request, NORMAL)
        inputs = np.ldexp(x, x_exponent), np.ldexp(weight, w_exponent), *rest
        exact, bound = within(row, request, inputs)
        underflow = 9 * 40 * 2.0**-149  # of each product
        difference = differs(row.run(request, inputs), exact, bound + underflow)
        assert difference is None, f"x 2^{x_exponent}, weights 2^{w_exponent}: {difference}"


@each_row
def test_tiny_receptive_fields_beside_large_values_are_good_to_1e_38(row: ModelRow) -> None:
    request = parse(row.op, "mb1ic64ih9iw10oc40kh3ph1")
    x, weight, *rest = sample_inputs(request, NORMAL)
    x = np.ldexp(x, -110)
    x[..., 0, 0] = 1.0
    exact, bound = within(row, request, (x, weight, *rest))
    difference = differs(row.run(request, (x, weight, *rest)), exact, bound + 576 * 1e-38)
    assert difference is None, difference


# ---- special values

QUIET = np.array([0x7FFFFFFF, 0xFFFF8000, 0x7FC00000], np.uint32).view(np.float32)  # NaN that rounding would carry away
LARGEST = np.float32(3.4e38)
SPECIAL = (np.inf, -np.inf, *QUIET, LARGEST, -LARGEST)
STRANGE = "mb4ic33ih5iw6oc35kh3ph1"


@each_map_row
@each_layout
@pytest.mark.parametrize("epilogue", ["", "@bias=1@act=relu@res=1"])
def test_special_inputs_give_what_strict_gives(row: ModelRow, layout: str, epilogue: str) -> None:
    """In corners and inside of one image; the bits of the other images do not change."""
    request = replace(parse(row.op, STRANGE + epilogue), layout=layout)
    clean = sample_inputs(request, INTEGERS)
    before = row.run(request, clean)
    for number, value in enumerate(SPECIAL):
        x = clean[0].copy()
        place = ((0, 0, 0), (-1, -1, -1), (2, 3, 20))[number % 3]
        x[2][place if layout == "NHWC" else place[::-1]] = value
        inputs = (x, np.sign(clean[1]), *clean[2:]) if abs(value) == LARGEST else (x, *clean[1:])
        expected = reference(request, inputs)[0]
        got = row.run(request, inputs)
        difference = differs(got, expected, bounds(request, inputs, (expected,))[0])
        assert difference is None, f"{value}: {difference}"
        if abs(value) != LARGEST:
            assert got[[0, 1, 3]].tobytes() == before[[0, 1, 3]].tobytes()


@some_rows("conv_grad_weight")
@each_layout
def test_a_gradient_of_special_values_is_what_strict_gives(row: ModelRow, layout: str) -> None:
    """In gy or in x, beside padding: only the weights that met the value see it."""
    request = replace(parse(row.op, STRANGE), layout=layout)
    clean = sample_inputs(request, INTEGERS)
    for number, (value, operand) in enumerate(itertools.product(SPECIAL, (0, 1))):
        inputs = [array.copy() for array in clean]
        inputs[operand].flat[(0, -1, 1234)[number % 3]] = value
        if abs(value) == LARGEST:
            inputs[1 - operand] = np.sign(inputs[1 - operand])
        expected = reference(request, tuple(inputs))[0]
        got = row.run(request, tuple(inputs))
        difference = differs(got, expected, bounds(request, tuple(inputs), (expected,))[0])
        assert difference is None, f"{value} in operand {operand}: {difference}"


@each_row
def test_what_is_computed_again_has_the_bits_of_direct(row: ModelRow) -> None:
    """One image, or the whole gradient."""
    if not FUSED:
        pytest.skip("this CPU lacks avx2")
    request = parse(row.op, STRANGE)
    image = slice(2, 3) if row.op != "conv_grad_weight" else slice(None)
    clean = sample_inputs(request, NORMAL)
    assert same_bits((row.run(request, clean)[image],), (direct(request, clean)[image],)) is not None
    for value in (*SPECIAL, None):
        changed = clean[0].copy()
        if value is None:
            changed[image] *= np.float32(2.0**-100)
        else:
            changed[2, 3, 1, 4] = value
        inputs = (changed, *clean[1:])
        difference = same_bits((row.run(request, inputs)[image],), (direct(request, inputs)[image],))
        assert difference is None, f"{value}: {difference}"


@each_map_row
@pytest.mark.parametrize("value", [np.inf, -np.inf, *QUIET])
def test_padding_contributes_nothing_under_a_weight_that_is_not_finite(row: ModelRow, value: float) -> None:
    request = parse(row.op, "mb3ic20ih5iw6oc20kh3ph2")
    inputs = sample_inputs(request, INTEGERS)
    inputs[1][3, 4, 0, 2] = value
    expected = reference(request, inputs)[0]
    for packed in (False, True):
        difference = differs(row.run(request, inputs, packed=packed), expected)
        assert difference is None, difference


@each_map_row
def test_sums_that_overflow_are_computed_again(row: ModelRow) -> None:
    """Weights whose scaling alone lets sums overflow: the results are far inside the range."""
    request = parse(row.op, "mb3ic32ih4iw5oc32kh1")
    x, weight, *rest = sample_inputs(request, INTEGERS)
    x[1], weight[...] = 2.0**126, 2.0**-100
    expected = reference(request, (x, weight, *rest))[0]
    assert differs(row.run(request, (x, weight, *rest)), expected) is None


@some_rows("conv_grad_weight")
def test_products_of_rounded_parts_that_overflow_are_computed_again(row: ModelRow) -> None:
    """x rounds up to a power of two in bfloat16; its product with gy is the smallest number that is infinite."""
    request = parse(row.op, "mb2ic32ih6iw7oc32kh1")
    gy, x = sample_inputs(request, INTEGERS)
    gy[...], x[...] = 0.0, 2.0**64 * (1 - 2.0**-21)
    gy[1, :, 3, 4] = 2.0**64
    expected = reference(request, (gy, x))[0]
    assert differs(row.run(request, (gy, x)), expected) is None


@each_map_row
def test_special_values_of_bias_and_residual_pass(row: ModelRow) -> None:
    request = parse(row.op, "mb1ic16ih3iw4oc33kh1@bias=1@act=relu@res=1")
    x, weight, bias, residual = sample_inputs(request, INTEGERS)
    bias[: len(SPECIAL)] = SPECIAL
    residual[0, -len(SPECIAL) :, 1, 2] = SPECIAL
    inputs = (x, weight, bias, residual)
    expected = reference(request, inputs)[0]
    difference = differs(row.run(request, inputs), expected, bounds(request, inputs, (expected,))[0])
    assert difference is None, difference


# ---- bits, memory, refusals


@each_row
def test_bits_depend_on_neither_threads_nor_cut_nor_batch(row: ModelRow) -> None:
    for text in (
        "mb3ic64ih15iw14oc40kh3ph1",
        "mb3ic272ih6iw7oc70kh3ph1",
        "mb3ic40ih23oc33kh3sh2ph1",
        "mb4ic48ih7oc96kh1",
    ):
        request = parse(row.op, text)
        inputs = sample_inputs(request, NORMAL)
        if row.op != "conv_grad_weight":
            inputs[0][1, 5, 2, 3] = np.inf  # one image is computed again
        tile_model.set_cache_bytes(CACHES[0])
        first = row.run(request, inputs)
        for cache, threads in itertools.product(CACHES, (2, 5)):
            tile_model.set_cache_bytes(cache)
            other = same_bits((first,), (row.run(request, inputs, threads=threads, packed=threads == 5),))
            assert other is None, f"{label(request)}, {threads} threads, cache {cache}: {other}"
        if row.op == "conv_grad_weight":
            continue
        alone = replace(request, geometry=replace(request.geometry, batch=1))
        for image in range(3):
            one = row.run(alone, (inputs[0][image : image + 1], *inputs[1:]))
            assert same_bits((first[image : image + 1],), (one,)) is None


BIG = (
    "mb1ic64ih224oc64kh3ph1",
    "mb8ic512ih7oc512kh3ph1",
    "mb8ic2048ih7oc512kh1",
    "mb1ic3ih224oc64kh7sh2ph3",
    "mb32ic256ih56oc512kh1sh2",
    "mb1ic512ih14oc1000kh3ph1",
)


@each_row
def test_memory_stays_within_what_is_documented(row: ModelRow) -> None:
    """At most 4 times the weights packed, copies of a gradient as the direct kernel has, and 8 MB for each thread."""
    for text in BIG:
        request = parse(row.op, text)
        if row.why_not(request) is None:
            packed, weights = row.packed_size(request), 4 * prod(request.geometry.weight_shape)
            assert packed <= 4 * weights
            copies = 2 * max(weights, 4 << 18) if row.op == "conv_grad_weight" else 0
            for threads in (1, 4):
                assert row.workspace(request, threads) - packed - copies <= threads * 8e6, label(request)


@each_row
@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("mb1ic64ih8oc64kh3ph1", True),
        ("mb1ic16ih8oc16kh3ph1", True),
        ("mb1ic5ih8oc64kh1", False),
        ("mb1ic64ih8oc3kh1", False),
        ("g64mb1ic64ih8oc64kh3ph1", False),
        ("g2mb1ic64ih8oc64kh3ph1", True),
    ],
)
def test_channels_have_to_fill_the_tiles(row: ModelRow, text: str, served: bool) -> None:
    sentence = row.why_not(parse(row.op, text))
    assert (sentence is None) == served
    assert served or "fill two fifths of the tiles, got {in_per_group} to {out_per_group} per group" in str(sentence)


def test_the_sentence_names_sizes_that_dispatch_knows() -> None:
    from cnnkern.backends.cpp import _sizes

    assert {"in_per_group", "out_per_group"} <= set(_sizes(parse("conv", BIG[0]).geometry))
    assert ck.kernels(op="conv")
