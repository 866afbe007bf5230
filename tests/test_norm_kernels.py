"""Native rows of normalisation and channel sums against the reference, on every instruction set.

Bounds on the error follow from the formulas: multiples of the unit roundoff and of the magnitudes that enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cnnkern.spec import OPS, ChannelGeometry, Kernel, Request
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
from reference_rows import make_request

pytestmark = needs_native

CHANNEL_OPS = (
    "channel_sum",
    "local_response_norm",
    "local_response_norm_grad",
    "batch_norm",
    "batch_norm_training",
    "batch_norm_grad",
)
CHANNEL_SHAPES = [
    (2, 5, (7, 9)),
    (1, 1, (3, 5)),
    (3, 16, (4, 4)),
    (2, 17, (1, 1)),
    (5, 33, ()),
    (1, 33, (13,)),
    (2, 3, (3, 4, 5)),
    (1, 1, (1, 1)),
    (2, 70, (9, 15)),
    (0, 4, (3, 3)),
    (2, 0, (3, 3)),
    (2, 3, (0, 4)),
]
LARGE_CHANNEL_SHAPES = [(1, 2, (40000,)), (3, 37, (61, 67)), (2, 300, (13, 13))]


def channel_options(op: str) -> list[dict[str, Any]]:
    if op.startswith("local_response_norm"):
        return [
            {"size": 5, "alpha": 2e-5, "beta": 0.75, "k": 1.0},
            {"size": 4, "alpha": 0.3, "beta": 0.5, "k": 2.0},
            {"size": 1, "alpha": 1.0, "beta": 1.0, "k": 0.5},
            {"size": 64, "alpha": 0.01, "beta": 0.6, "k": 1.5},
        ]
    if op == "batch_norm_grad":
        return [{"training": True}, {"training": False}]
    return [{}] if op == "channel_sum" else [{"eps": 1e-5}, {"eps": 0.5}]


def channel_inputs(op: str, g: ChannelGeometry, rng: np.random.Generator, affine: bool) -> tuple:
    """``affine``: give weight and bias."""
    x = rng.normal(1.5, 2.0, g.x_shape)
    weight, bias, mean = (rng.normal(0, 1, g.channels) for _ in range(3))
    positive = rng.uniform(0.5, 2.0, g.channels)
    given = (weight, bias) if affine else (None, None)
    return {
        "channel_sum": (x,),
        "local_response_norm": (x,),
        "local_response_norm_grad": (rng.normal(0, 1, g.x_shape), x),
        "batch_norm": (x, mean, positive, *given),
        "batch_norm_training": (x, *given),
        "batch_norm_grad": (rng.normal(0, 1, g.x_shape), x, given[0], mean, positive),
    }[op]


def channel_samples(op: str, dtype: str, shapes: list) -> Iterator[tuple[Request, tuple]]:
    for number, (batch, channels, spatial) in enumerate(shapes):
        g = ChannelGeometry(batch, channels, spatial)
        for layout in LAYOUTS:
            for choice, options in enumerate(channel_options(op)):
                inputs = channel_inputs(op, g, generator(op, number, choice), affine=(number + choice) % 2 == 0)
                request = make_request(op, g, inputs, dtype, layout, **options)
                yield request, as_arrays(request, inputs)


# ---- bounds: multiples of the unit roundoff and of the magnitudes that enter the formula


def spread(vector: np.ndarray, request: Request) -> np.ndarray:
    """(channels,) -> broadcastable against maps in the request's layout."""
    rank = request.geometry.rank
    return vector if request.layout == "NHWC" and rank else vector.reshape(-1, *(1,) * rank)


def map_axes(request: Request) -> tuple[int, ...]:
    """Axes of a map but the channel."""
    rank = request.geometry.rank
    return tuple(range(rank + 1)) if request.layout == "NHWC" and rank else (0, *range(2, rank + 2))


def bounds(request: Request, inputs: tuple, expected: tuple) -> list[Any]:
    """One bound per output."""
    u = unit(request)
    inputs = tuple(None if array is None else array.astype(np.float64) for array in inputs)
    count = max(1, prod(request.geometry.x_shape) // max(1, request.geometry.channels))
    summing = count * 2.0**-53  # relative to the sum of absolute values; sums are taken in double, here and there
    if request.op == "channel_sum":
        return [2 * u * abs(expected[0]) + 2 * summing * abs(inputs[0]).sum(map_axes(request))]
    if request.op == "local_response_norm":  # size + 2 roundings in S, 3 in its power, one more; libm's pow
        return [(request.option("size") + 8) * u * abs(expected[0])]
    if request.op == "local_response_norm_grad":
        gy, x = (abs(array) for array in inputs)
        forward = Request("local_response_norm", request.geometry, "f64", request.layout, options=request.options)
        first = gy * run_reference(forward, (x,))[0] / x
        terms = 2 * first - run_reference(request, (gy, x))[0]  # |first| + |second|
        return [2 * (request.option("size") + 8) * u * terms]
    if request.op == "batch_norm":
        x, mean, var, weight, bias = inputs
        weight = np.ones_like(mean) if weight is None else weight
        scale = abs(weight) / np.sqrt(var + request.option("eps"))
        offset = np.zeros_like(mean) if bias is None else abs(bias)
        return [4 * u * (abs(x - spread(mean, request)) * spread(scale, request) + spread(offset, request))]
    if request.op == "batch_norm_training":
        x, weight, bias = inputs
        _, mean, var, rstd = expected
        spans = abs(x).sum(map_axes(request)) / count
        weight = np.ones_like(mean) if weight is None else abs(weight)
        offset = np.zeros_like(mean) if bias is None else abs(bias)
        scale = weight * rstd
        moved = 2 * summing * spans  # of the mean
        y = abs(x - spread(mean, request)) * spread(scale, request) + spread(offset, request)
        return [
            (5 * u + 4 * summing) * y + spread(scale * (moved + 2 * u * u * abs(mean)), request),
            u * abs(mean) + moved,
            (u + 4 * summing) * var + moved**2,
            (2 * u + 4 * summing) * rstd + rstd**3 * moved**2,
        ]
    assert request.op == "batch_norm_grad"
    gy, x, weight, mean, rstd = inputs
    weight = np.ones_like(mean) if weight is None else abs(weight)
    normal = abs(x - spread(mean, request)) * spread(rstd, request)
    dots, sums = (abs(gy) * normal).sum(map_axes(request)), abs(gy).sum(map_axes(request))
    terms = abs(gy)
    if request.option("training"):
        terms = terms + spread(sums / count, request) + normal * spread(dots / count, request)
    return [
        8 * (u + summing) * spread(weight * rstd, request) * terms,
        2 * (u + summing) * dots,
        2 * (u + summing) * sums,
    ]


@rows_of(*CHANNEL_OPS)
@each_dtype
def test_channel_ops(row: Kernel, dtype: str) -> None:
    for order in ORDERS:
        for request, inputs in channel_samples(row.op, dtype, CHANNEL_SHAPES):
            expected = run_reference(request, inputs)
            actual = run_native(row, request, inputs, order)
            for got, want, bound in zip(actual, expected, bounds(request, inputs, expected), strict=True):
                close(got, want, bound)


@rows_of(*CHANNEL_OPS)
def test_large_maps_and_threads(row: Kernel) -> None:
    """Long sums keep their bound, and any number of threads gives the same bits."""
    for request, inputs in channel_samples(row.op, "f32", LARGE_CHANNEL_SHAPES):
        expected = run_reference(request, inputs)
        runs = [with_threads(threads, row, request, inputs) for threads in (1, 2, 5)]
        for got, want, bound in zip(runs[0], expected, bounds(request, inputs, expected), strict=True):
            close(got, want, bound)
        same_bits(runs)


@rows_of("channel_sum", "batch_norm_training", "batch_norm_grad")
@each_layout
def test_sums_of_integers_are_exact(row: Kernel, layout: str) -> None:
    """512 small integers a channel: every partial sum is exact in double, and so is the division by 512."""
    g = ChannelGeometry(4, 19, (8, 16))
    rng = generator("integers")
    x, gy = (rng.integers(-4, 5, g.x_shape).astype(np.float64) for _ in range(2))
    ones = np.ones(g.channels)
    inputs = {
        "channel_sum": (x,),
        "batch_norm_training": (x, None, None),
        "batch_norm_grad": (gy, x, None, 0 * ones, ones),
    }[row.op]
    request = make_request(row.op, g, inputs, "f32", layout)
    arrays = as_arrays(request, inputs)
    actual, expected = run_native(row, request, arrays), run_reference(request, arrays)
    exact = {"channel_sum": (0,), "batch_norm_training": (1, 2), "batch_norm_grad": (1, 2)}[row.op]
    for index in exact:
        np.testing.assert_array_equal(actual[index], expected[index].astype(np.float32))


@rows_of("batch_norm_training")
@each_layout
def test_statistics_of_values_far_from_zero(row: Kernel, layout: str) -> None:
    """A mean 10,000 times the deviation: one pass over squares in float32 would give no digit of the variance."""
    g = ChannelGeometry(2, 3, (50, 70))
    inputs = (generator("offset").normal(1e4, 1.0, g.x_shape), None, None)
    request = make_request(row.op, g, inputs, "f32", layout)
    arrays = as_arrays(request, inputs)
    actual, expected = run_native(row, request, arrays), run_reference(request, arrays)
    for got, want, bound in zip(actual, expected, bounds(request, arrays, expected), strict=True):
        close(got, want, bound)


@rows_of(*CHANNEL_OPS)
@each_dtype
def test_not_finite_in_channel_ops(row: Kernel, dtype: str) -> None:
    """NaN and infinities reach exactly the elements that the formula says, from every lane."""
    g = ChannelGeometry(1, 35, (1, 37))
    options = channel_options(row.op)[0]
    maps = [i for i, operand in enumerate(OPS[row.op].inputs) if operand.map]
    for layout in LAYOUTS:
        for value in (np.nan, np.inf, -np.inf):
            for number, at in enumerate(range(0, 35 * 37, 47)):
                inputs = channel_inputs(row.op, g, generator(at), affine=True)
                inputs[maps[number % len(maps)]].flat[at] = value
                request = make_request(row.op, g, inputs, dtype, layout, **options)
                arrays = as_arrays(request, inputs)
                for got, want in zip(run_native(row, request, arrays), run_reference(request, arrays), strict=True):
                    close(got, want, 1e-3 * (1 + np.nan_to_num(abs(want))))
