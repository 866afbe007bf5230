"""Native rows of pooling and unpooling against the reference, on every instruction set.

Values and indices of max pooling are compared exactly, with ties, NaN, infinities and both zeros among them. Sums are
compared exactly on small integers where all roundings are exact, otherwise within a multiple of the unit roundoff and
of the sum of absolute values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from math import inf, prod
from typing import Any

import numpy as np
import pytest

from cnnkern.errors import ArgumentError
from cnnkern.spec import Kernel, PoolGeometry, Request, ResizeGeometry
from native_rows import (
    LAYOUTS,
    ORDERS,
    as_arrays,
    close,
    each_dtype,
    each_layout,
    generator,
    needs_native,
    rows_of,
    run_native,
    run_reference,
    same_bits,
    unit,
    with_threads,
)
from reference_rows import integers, pool_geometry

pytestmark = needs_native

Geometry = PoolGeometry | ResizeGeometry
Data = Callable[[Request, np.random.Generator], tuple]

# ---- problems


def is_legal(g: PoolGeometry) -> bool:
    """Is there a window, and a real element in every window?"""
    for axis, out in enumerate(g.output):
        starts = np.arange(out) * g.stride[axis] - g.pad_before[axis]
        at = starts[:, None] + np.arange(g.kernel[axis]) * g.dilation[axis]
        if out < 1 or not ((at >= 0) & (at < g.input[axis])).any(axis=1).all():
            return False
    return True


@cache
def random_windows(count: int) -> list[PoolGeometry]:
    """1d to 3d, kernels to 5, strides to 4, padding to k - 1 on each side, dilation to 3 in half of them, ceil mode."""
    rng, found = generator("windows"), []
    while len(found) < count:
        rank = int(rng.integers(1, 4))
        size = tuple(int(n) for n in (*rng.integers(1, 7, rank - 1), rng.integers(1, 41)))
        kernel = tuple(int(n) for n in rng.integers(1, 6, rank))
        stride = tuple(int(n) for n in rng.integers(1, 5, rank))
        padding = tuple((int(rng.integers(0, k)), int(rng.integers(0, k))) for k in kernel)
        dilation = tuple(int(n) for n in rng.integers(1, 4, rank)) if len(found) % 2 else 1
        shape = (int(rng.integers(1, 3)), int(rng.choice([1, 2, 3, 5, 19])), *size)
        g = pool_geometry(shape, kernel, stride, padding, dilation, bool(rng.integers(2)))
        if is_legal(g):
            found.append(g)
    return found


@cache
def width_sweep() -> list[PoolGeometry]:
    """Sizes around every vector width and unrolling: 1 to 40 and 60 to 70 columns, and channels."""
    found = []
    for n in (*range(1, 41), *range(60, 71)):
        for kernel, stride, padding in ((2, 2, 0), (3, 1, 1), (3, 2, 1), (5, 3, 2)):
            for shape in ((1, 2, 3, n), (1, n, 2, 3)):
                g = pool_geometry(shape, kernel, stride, padding, 1, n % 2 == 1)
                if is_legal(g):
                    found.append(g)
    return found


LARGE = [
    pool_geometry((2, 24, 61, 67), 3, 2, 1),
    pool_geometry((1, 300, 31, 33), 2, 2),
    pool_geometry((2, 6, 5, 40, 70), 3, 1, 1),
]
BIG_WINDOWS = [
    pool_geometry((2, 3, 30, 41), (17, 16), (3, 5), ((8, 7), (3, 4))),  # more cells than a byte numbers
    pool_geometry((1, 2, 7, 150), (7, 70), 1),
    pool_geometry((3, 18, 7, 7), 7),
    pool_geometry((1, 5, 4, 200), (1, 9), (1, 64), ((0, 0), (4, 5))),
    pool_geometry((1, 3, 2, 33), (2, 2), (1, 40)),
]
EMPTY = [pool_geometry((0, 3, 4, 6), 2), pool_geometry((2, 0, 4, 6), 2)]


@cache
def resizes() -> list[ResizeGeometry]:
    sizes = [((7,), (3,)), ((37,), (1,)), ((70,), (2,)), ((5, 40), (1, 1)), ((3, 9, 17), (1, 1, 1)), ((8, 48), (4, 12))]
    sizes += [((6, 35), (4, 7)), ((13, 13), (6, 6)), ((2, 3), (5, 8)), ((4, 5, 66), (2, 1, 1)), ((3, 4, 5), (2, 3, 2))]
    sizes += [((5, 6), (0, 3)), ((9, 64), (2, 4)), ((4, 140), (1, 4)), ((4, 6), (1, 6))]
    found = [
        ResizeGeometry(2, channels, size, output)
        for number, (size, output) in enumerate(sizes)
        for channels in (1, 3 + 16 * (number % 3))
    ]
    return [*found, ResizeGeometry(0, 3, (4, 6), (2, 2)), ResizeGeometry(2, 0, (4, 6), (2, 2))]


def requests(op: str, dtype: str, geometries: list, **options: Any) -> Iterator[tuple[Request, str]]:
    """Each problem in both layouts, memory orders by turns."""
    for number, g in enumerate(geometries):
        for layout in LAYOUTS:
            order = ORDERS[number // 2 % len(ORDERS)] if number % 2 else "dense"
            changed = tuple(sorted(options.items()))
            yield Request(op, g, dtype, layout, options=changed), order


# ---- comparing


@cache
def expected_of(request: Request, data: Data) -> tuple[tuple, tuple]:
    """(arrays, the reference's outputs) for data(request, generator); cached, because every instruction set asks."""
    arrays = as_arrays(request, data(request, generator(request.geometry, data.__name__)))
    return arrays, run_reference(request, arrays)


def check_exact(row: Kernel, request: Request, data: Data, order: str = "dense") -> None:
    arrays, expected = expected_of(request, data)
    actual = run_native(row, request, arrays, order)
    assert len(actual) == len(expected)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(got, want.astype(got.dtype))


@cache
def magnitudes(request: Request, data: Data) -> np.ndarray:
    """The output of a linear op for the absolute values of its input."""
    arrays, _ = expected_of(request, data)
    return run_reference(request, tuple(abs(array) for array in arrays))[0]


def check_sums(row: Kernel, request: Request, data: Data, terms: int, order: str = "dense") -> None:
    """Within ``terms`` + 6 roundings of the sum of absolute values: 6 for weights, division and the last store."""
    arrays, expected = expected_of(request, data)
    (actual,) = run_native(row, request, arrays, order)
    close(actual, expected[0], (terms + 6) * unit(request) * magnitudes(request, data))


def input_shape(request: Request) -> tuple[int, ...]:
    g = request.geometry
    return g.y_shape if request.op.endswith("_grad") else g.x_shape


def normal(request: Request, rng: np.random.Generator) -> tuple:
    return (rng.normal(0.3, 1, input_shape(request)),)


def few_values(request: Request, rng: np.random.Generator) -> tuple:
    """Ties everywhere; planes without, with few and with many NaN and infinities; windows of -inf alone."""
    shape = request.geometry.x_shape
    x = rng.integers(-1, 3, shape) * rng.choice([1.0, -1.0], shape)  # -0.0 too
    special = rng.choice([np.nan, inf, -inf], shape, p=[0.3, 0.2, 0.5])
    share = rng.choice([0.0, 0.1, 0.95], (*shape[:2], *(1,) * (len(shape) - 2)))  # of each plane
    return (np.where(rng.random(shape) < share, special, x),)


# ---- max pooling


def max_options(op: str) -> list[dict]:
    return [{}, {"indices": "torch"}] + ([{"indices": "window"}] if op == "max_pool" else [])


@rows_of("max_pool")
@each_dtype
def test_max_pool(row: Kernel, dtype: str) -> None:
    for options in max_options(row.op):
        for geometries in (random_windows(80), BIG_WINDOWS, EMPTY):
            for request, order in requests(row.op, dtype, geometries, **options):
                check_exact(row, request, few_values, order)


@rows_of("max_pool")
def test_max_pool_around_vector_widths(row: Kernel) -> None:
    for options in max_options(row.op):
        for request, _ in requests(row.op, "f32", width_sweep(), **options):
            check_exact(row, request, few_values)


@rows_of("max_pool")
@each_layout
@each_dtype
def test_one_nan_in_every_place(row: Kernel, dtype: str, layout: str) -> None:
    """From every lane and border a NaN reaches exactly the windows that hold it, with its own index."""
    g = pool_geometry((1, 2, 5, 37), 3, 2, 1)
    for at in range(prod(g.x_shape)):
        x = generator(at).integers(-3, 4, g.x_shape).astype(np.float64)
        x.flat[at] = np.nan
        request = Request(row.op, g, dtype, layout, options=(("indices", "window"),))
        arrays = as_arrays(request, (x,))
        for got, want in zip(run_native(row, request, arrays), run_reference(request, arrays), strict=True):
            np.testing.assert_array_equal(got, want)


@rows_of("adaptive_max_pool")
@each_dtype
def test_adaptive_max_pool(row: Kernel, dtype: str) -> None:
    for options in max_options(row.op):
        for request, order in requests(row.op, dtype, resizes(), **options):
            check_exact(row, request, few_values, order)


# ---- gradients along indices


def indices_of(request: Request, rng: np.random.Generator) -> np.ndarray:
    """What the forward op gives for a random x, channels first."""
    op = request.op.removesuffix("_grad")
    kind = "torch" if op == "adaptive_max_pool" else request.option("indices")
    forward = Request(op, request.geometry, "f64", options=(("indices", kind),))
    return run_reference(forward, (rng.normal(0, 1, request.geometry.x_shape),))[1]


def integer_gradient(request: Request, rng: np.random.Generator) -> tuple:
    return integers(rng, request.geometry.y_shape), indices_of(request, rng)


def gradient_with_infinities(request: Request, rng: np.random.Generator) -> tuple:
    """A gradient that is not taken must leave no trace: 0 times infinity would."""
    grad = rng.choice([1.0, inf, np.nan], request.geometry.y_shape, p=[0.8, 0.1, 0.1])
    return grad, indices_of(request, rng)


@rows_of("max_pool_grad")
@each_dtype
@pytest.mark.parametrize("kind", ["window", "torch"])
def test_max_pool_grad(row: Kernel, dtype: str, kind: str) -> None:
    options = {"indices": kind} if kind == "window" else {}
    for geometries in (random_windows(80), BIG_WINDOWS, EMPTY):
        for request, order in requests(row.op, dtype, geometries, **options):
            check_exact(row, request, integer_gradient, order)


@rows_of("max_pool_grad")
def test_max_pool_grad_around_vector_widths(row: Kernel) -> None:
    for request, _ in requests(row.op, "f32", width_sweep(), indices="window"):
        check_exact(row, request, integer_gradient)
        check_exact(row, request, gradient_with_infinities)


@rows_of("adaptive_max_pool_grad")
@each_dtype
def test_adaptive_max_pool_grad(row: Kernel, dtype: str) -> None:
    for request, order in requests(row.op, dtype, resizes()):
        check_exact(row, request, integer_gradient, order)


def check_refused(row: Kernel, request: Request, arrays: tuple, part: str) -> None:
    """With the reference's sentence, which names the value and the place."""
    with pytest.raises(ArgumentError, match=part) as expected:
        run_reference(request, arrays)
    with pytest.raises(ArgumentError, match=re.escape(str(expected.value))):
        run_native(row, request, arrays)


@rows_of("max_pool_grad", "adaptive_max_pool_grad", "max_unpool", "max_unpool_grad")
@each_layout
def test_bad_indices_are_refused(row: Kernel, layout: str) -> None:
    """Anything outside the plane; of window indices, cells beyond the window and cells on padding too."""
    g = pool_geometry((2, 3, 6, 20), 3, 2, 1) if row.op == "max_pool_grad" else ResizeGeometry(2, 3, (6, 20), (3, 10))
    kinds = ("window", "torch") if row.op == "max_pool_grad" else ("torch",)
    for kind in kinds:
        options = (("indices", kind),) if kind == "window" else ()
        request = Request(row.op, g, "f32", layout, options=options)
        plane = prod(g.output if row.op.startswith("max_unpool") else g.input)
        index_shape = g.x_shape if row.op.startswith("max_unpool") else g.y_shape
        value_shape = g.y_shape if row.op == "max_unpool_grad" else index_shape
        good = 4 if kind == "window" else 0
        for bad in (9, 255) if kind == "window" else (-1, plane, 2**62, -(2**63)):
            for at in (0, prod(index_shape) // 2, prod(index_shape) - 1):
                index = np.full(index_shape, good)
                index.flat[at] = bad
                arrays = as_arrays(request, (np.ones(value_shape), index))
                check_refused(row, request, arrays, f" is {bad}, but ")
    if row.op == "max_pool_grad":
        request = Request(row.op, g, "f32", layout, options=(("indices", "window"),))
        index = np.full(g.y_shape, 4)
        index[1, 2, 1, 0] = 3  # the left column of the leftmost window is padding
        check_refused(row, request, as_arrays(request, (np.ones(g.y_shape), index)), " is 3, but ")


# ---- averages


def average_options() -> list[dict]:
    return [{}, {"count_include_pad": False}, {"divisor": 3}]


@rows_of("avg_pool", "avg_pool_grad")
@each_dtype
def test_avg_pool(row: Kernel, dtype: str) -> None:
    for options in average_options():
        for geometries in (random_windows(80), BIG_WINDOWS, EMPTY):
            for request, order in requests(row.op, dtype, geometries, **options):
                check_sums(row, request, normal, prod(request.geometry.kernel), order)


@rows_of("avg_pool", "avg_pool_grad")
def test_avg_pool_around_vector_widths(row: Kernel) -> None:
    for request, _ in requests(row.op, "f32", width_sweep()):
        check_sums(row, request, normal, prod(request.geometry.kernel))


def integer_values(request: Request, rng: np.random.Generator) -> tuple:
    return (integers(rng, input_shape(request)),)


@rows_of("avg_pool")
@each_dtype
def test_averages_of_integers_are_rounded_once(row: Kernel, dtype: str) -> None:
    for request, order in requests(row.op, dtype, random_windows(80)):
        check_exact(row, request, integer_values, order)


@rows_of("avg_pool")
@each_layout
def test_infinities_stay_in_their_windows(row: Kernel, layout: str) -> None:
    """A running sum would carry them along the row."""
    g = pool_geometry((1, 3, 4, 37), 3, 1, 1)
    for at in range(0, prod(g.x_shape), 5):
        x = np.ones(g.x_shape)
        x.flat[at] = generator(at).choice([np.nan, inf, -inf])
        request = Request(row.op, g, "f32", layout)
        arrays = as_arrays(request, (x,))
        np.testing.assert_array_equal(
            run_native(row, request, arrays)[0], run_reference(request, arrays)[0].astype(np.float32)
        )


@rows_of("adaptive_avg_pool", "adaptive_avg_pool_grad")
@each_dtype
def test_adaptive_avg_pool(row: Kernel, dtype: str) -> None:
    for request, order in requests(row.op, dtype, resizes()):
        g = request.geometry
        overlaps = [n // m + 2 if row.op == "adaptive_avg_pool" else m // n + 2 for n, m in zip(g.input, g.output) if m]
        check_sums(row, request, normal, prod(overlaps), order)


@rows_of("adaptive_avg_pool")
@each_layout
def test_global_average_of_a_large_plane(row: Kernel, layout: str) -> None:
    """Sums in chunks: 200 times 210 equal values would drift by thousands of roundings in one chain."""
    g = ResizeGeometry(1, 20, (200, 210), (1, 1))
    request = Request(row.op, g, "f32", layout)
    arrays = as_arrays(request, (np.full(g.x_shape, 0.1),))
    close(run_native(row, request, arrays)[0], run_reference(request, arrays)[0], 60 * unit(request) * 0.1)


# ---- norms

POWERS = (1.0, 2.0, 3.0, 0.5, 7.5, inf)


def norm_inputs(request: Request, rng: np.random.Generator) -> tuple:
    """x with zeros among it, and windows of zeros alone; the gradient before it where there is one."""
    g = request.geometry
    x = rng.normal(0, 1, g.x_shape) * (rng.random(g.x_shape) < 0.7)
    x[:, :1] = 0
    return (x,) if request.op == "lp_pool" else (rng.normal(0, 1, g.y_shape), x)


def check_norms(row: Kernel, request: Request, data: Data, order: str = "dense") -> None:
    """Sums are taken in double: one rounding of the result, and in float64 those of pow() and of the sums."""
    arrays, expected = expected_of(request, data)
    (actual,) = run_native(row, request, arrays, order)
    p = request.option("norm_type")
    power = p if p != inf else 1.0
    roundings = 2 + (power + 1 / power) * (prod(request.geometry.kernel) + 8) * (1 if request.dtype == "f64" else 1e-8)
    if row.op == "lp_pool":
        scale = abs(expected[0])
    else:
        scale = run_reference(request, tuple(abs(array) for array in arrays))[0]
    close(actual, expected[0], roundings * unit(request) * scale)


@rows_of("lp_pool", "lp_pool_grad")
@each_dtype
def test_lp_pool(row: Kernel, dtype: str) -> None:
    for p in POWERS:
        options = {} if p == 2 else {"norm_type": p}
        for geometries in (random_windows(24), BIG_WINDOWS[1:3], EMPTY):
            for request, order in requests(row.op, dtype, geometries, **options):
                check_norms(row, request, norm_inputs, order)


@rows_of("lp_pool", "lp_pool_grad")
def test_lp_pool_around_vector_widths(row: Kernel) -> None:
    for request, _ in requests(row.op, "f32", width_sweep()[::3]):
        check_norms(row, request, norm_inputs)


@rows_of("lp_pool", "lp_pool_grad")
@each_layout
@pytest.mark.parametrize("dtype, scales", [("f32", (1e-38, 1e36)), ("f64", (1e-290, 1e290))])
def test_norms_near_the_ends_of_the_range(row: Kernel, layout: str, dtype: str, scales: tuple) -> None:
    """No power may over- or underflow if the norm does not."""
    g = pool_geometry((2, 5, 6, 20), 3, 2, 1)
    for scale in scales:
        for p in POWERS:
            request = Request(row.op, g, dtype, layout, options=(("norm_type", p),) if p != 2 else ())
            rng = generator(scale, p)
            x = rng.uniform(1, 2, g.x_shape) * scale
            arrays = as_arrays(request, (x,) if row.op == "lp_pool" else (rng.normal(0, 1, g.y_shape), x))
            scale_of_terms = run_reference(request, tuple(abs(array) for array in arrays))[0]
            actual, expected = run_native(row, request, arrays)[0], run_reference(request, arrays)[0]
            close(actual, expected, 200 * unit(request) * scale_of_terms)


@rows_of("lp_pool", "lp_pool_grad")
@each_dtype
def test_not_finite_in_norms(row: Kernel, dtype: str) -> None:
    g = pool_geometry((1, 3, 4, 21), 3, 2, 1)
    for p in POWERS:
        for layout in LAYOUTS:
            for number, at in enumerate(range(0, prod(g.x_shape), 11)):
                rng = generator(at)
                x = rng.normal(0, 1, g.x_shape)
                x.flat[at] = (np.nan, inf, -inf)[number % 3]
                inputs = (x,) if row.op == "lp_pool" else (rng.normal(0, 1, g.y_shape), x)
                request = Request(row.op, g, dtype, layout, options=(("norm_type", p),) if p != 2 else ())
                arrays = as_arrays(request, inputs)
                with np.errstate(all="ignore"):
                    expected = run_reference(request, arrays)[0]
                close(run_native(row, request, arrays)[0], expected, 1e-5 * (1 + np.nan_to_num(abs(expected))))


# ---- unpooling


def unpool_inputs(request: Request, rng: np.random.Generator) -> tuple:
    """Random places, so that many are named more than once."""
    g = request.geometry
    values = g.x_shape if request.op == "max_unpool" else g.y_shape
    return rng.normal(0, 1, values).astype(np.float32), rng.integers(0, max(1, prod(g.output)), g.x_shape)


@rows_of("max_unpool", "max_unpool_grad")
@each_dtype
def test_max_unpool(row: Kernel, dtype: str) -> None:
    geometries = [
        ResizeGeometry(2, channels, size, output)
        for channels in (1, 3, 16, 35)
        for size, output in (
            ((5,), (11,)),
            ((4, 6), (8, 12)),
            ((3, 7), (5, 9)),
            ((2, 3, 4), (4, 6, 9)),
            ((9, 9), (2, 2)),
        )
    ]
    geometries += [ResizeGeometry(0, 3, (2, 2), (4, 4)), ResizeGeometry(2, 0, (2, 2), (4, 4))]
    for request, order in requests(row.op, dtype, geometries):
        check_exact(row, request, unpool_inputs, order)


# ---- threads


@rows_of("max_pool", "max_pool_grad", "avg_pool", "avg_pool_grad", "lp_pool", "lp_pool_grad")
def test_bits_do_not_depend_on_threads(row: Kernel) -> None:
    choices = {"max_pool": max_options("max_pool"), "max_pool_grad": [{}, {"indices": "window"}]}
    data = {"max_pool": few_values, "max_pool_grad": real_gradient, "avg_pool": normal, "avg_pool_grad": normal}
    for options in choices.get(row.op, [{}]):
        for request, _ in requests(row.op, "f32", LARGE, **options):
            rng = generator(request.geometry)
            arrays = as_arrays(request, data.get(row.op, norm_inputs)(request, rng))
            same_bits([with_threads(threads, row, request, arrays) for threads in (1, 2, 5)])


def real_gradient(request: Request, rng: np.random.Generator) -> tuple:
    return rng.normal(0, 1, request.geometry.y_shape), indices_of(request, rng)


@rows_of("adaptive_avg_pool", "adaptive_avg_pool_grad", "adaptive_max_pool", "adaptive_max_pool_grad")
def test_bits_of_adaptive_pooling_do_not_depend_on_threads(row: Kernel) -> None:
    geometries = [ResizeGeometry(2, 37, (41, 53), (5, 7)), ResizeGeometry(3, 50, (28, 30), (1, 1))]
    data = {"adaptive_max_pool": few_values, "adaptive_max_pool_grad": real_gradient}
    options = {"indices": "torch"} if row.op == "adaptive_max_pool" else {}
    for request, _ in requests(row.op, "f32", geometries, **options):
        arrays = as_arrays(request, data.get(row.op, normal)(request, generator(request.geometry)))
        same_bits([with_threads(threads, row, request, arrays) for threads in (1, 2, 5)])


# ---- refusals


@rows_of("max_pool")
def test_refusals_are_sentences(row: Kernel) -> None:
    def why_not(g: PoolGeometry, dtype: str, kind: Any) -> str | None:
        return row.why_not(Request(row.op, g, dtype, options=(("indices", kind),) if kind else ()))

    huge = pool_geometry((1, 1, 1 << 16, 1 << 16), 2)
    assert "2^31" in why_not(huge, "f32", "torch")
    assert why_not(huge, "f64", "torch") is why_not(huge, "f32", "window") is why_not(huge, "f32", None) is None
    assert "65536 cells" in why_not(pool_geometry((1, 1, 300, 300), (256, 257)), "f32", "window")
    assert "padding alone" in why_not(PoolGeometry(1, 1, (1,), (1,), (2,), (1,), (2,), (1,), (1,)), "f32", None)
