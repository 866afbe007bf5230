"""Single output values straight from the definition of an op, in float64: slow, short, independent of every backend.

All arrays are in logical order (batch, channels, spatial axes). ``points`` are tuples of ints.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Any

import numpy as np

from cnnkern.problem import Problem

Arrays = dict[str, np.ndarray]
Point = tuple[int, ...]


def _taps(g: Any, axis: int, position: int) -> tuple[list[int], list[int]]:
    """Input places under the window at output ``position``, and the kernel cells over them."""
    start = position * g.stride[axis] - g.pad_before[axis]
    cells = [r for r in range(g.kernel[axis]) if 0 <= start + r * g.dilation[axis] < g.input[axis]]
    return [start + r * g.dilation[axis] for r in cells], cells


def _covering(g: Any, axis: int, place: int) -> tuple[list[int], list[int]]:
    """Output positions whose window covers input ``place``, and the kernel cell that does."""
    positions, cells = [], []
    for r in range(g.kernel[axis]):
        position, rest = divmod(place + g.pad_before[axis] - r * g.dilation[axis], g.stride[axis])
        if rest == 0 and 0 <= position < g.output[axis]:
            positions.append(position)
            cells.append(r)
    return positions, cells


def _pairs(of: Callable[..., tuple[list[int], list[int]]], g: Any, point: Point) -> tuple[list, list]:
    found = [of(g, axis, place) for axis, place in enumerate(point)]
    return [places for places, _ in found], [cells for _, cells in found]


def _epilogue(problem: Problem, arrays: Arrays, point: Point, value: float) -> float:
    if "bias" in arrays:
        value += float(arrays["bias"][point[1]])
    if "residual" in arrays:
        value += float(arrays["residual"][point])
    return max(value, 0.0) if problem.option("activation") == "relu" else value


def _conv(problem: Problem, arrays: Arrays, point: Point) -> float:
    g = problem.geometry
    n, o, *position = point
    per_group = g.in_channels // g.groups
    first = o // (g.out_channels // g.groups) * per_group
    places, cells = _pairs(_taps, g, tuple(position))
    channels = range(per_group)
    x = arrays["x"][n, first : first + per_group][np.ix_(channels, *places)].astype(np.float64)
    weight = arrays["weight"][o][np.ix_(channels, *cells)].astype(np.float64)
    return _epilogue(problem, arrays, point, float((x * weight).sum()))


def _conv_grad_input(problem: Problem, arrays: Arrays, point: Point) -> float:
    g = problem.geometry
    n, c, *place = point
    filters, per_group = g.out_channels // g.groups, g.in_channels // g.groups
    first = c // per_group * filters
    positions, cells = _pairs(_covering, g, tuple(place))
    group = range(filters)
    grad = arrays["grad_output"][n, first : first + filters][np.ix_(group, *positions)].astype(np.float64)
    weight = arrays["weight"][first : first + filters, c % per_group][np.ix_(group, *cells)].astype(np.float64)
    return _epilogue(problem, arrays, point, float((grad * weight).sum()))


def _conv_grad_weight(problem: Problem, arrays: Arrays, point: Point) -> float:
    g = problem.geometry
    o, c, *cell = point
    channel = o // (g.out_channels // g.groups) * (g.in_channels // g.groups) + c
    places, positions = [], []
    for axis, r in enumerate(cell):
        start = r * g.dilation[axis] - g.pad_before[axis]
        inside = [p for p in range(g.output[axis]) if 0 <= p * g.stride[axis] + start < g.input[axis]]
        positions.append(inside)
        places.append([p * g.stride[axis] + start for p in inside])
    images = range(g.batch)
    x = arrays["x"][:, channel][np.ix_(images, *places)].astype(np.float64)
    grad = arrays["grad_output"][:, o][np.ix_(images, *positions)].astype(np.float64)
    return float((x * grad).sum())


def _max_pool(problem: Problem, arrays: Arrays, point: Point) -> float:
    n, c, *position = point
    places, _ = _pairs(_taps, problem.geometry, tuple(position))
    return float(arrays["x"][n, c][np.ix_(*places)].max())


def _max_pool_grad(problem: Problem, arrays: Arrays, point: Point) -> float:
    g = problem.geometry
    n, c, *place = point
    positions, cells = _pairs(_covering, g, tuple(place))
    grad = arrays["grad_output"][n, c][np.ix_(*positions)].astype(np.float64)
    indices = arrays["indices"][n, c][np.ix_(*positions)]
    if problem.option("indices") == "window":
        mine = np.array([np.ravel_multi_index(cell, g.kernel) for cell in product(*cells)]).reshape(indices.shape)
    else:
        mine = np.full(indices.shape, np.ravel_multi_index(tuple(place), g.input))
    return float(grad[indices == mine].sum())


def _divisor(problem: Problem, position: Point) -> int:
    g = problem.geometry
    if problem.option("divisor"):
        return problem.option("divisor")
    counted = real = 1
    for axis, p in enumerate(position):
        start = p * g.stride[axis] - g.pad_before[axis]
        end = min(start + g.kernel[axis], g.input[axis] + g.pad_after[axis])
        counted *= end - start
        real *= min(end, g.input[axis]) - max(start, 0)
    return counted if problem.option("count_include_pad") else real


def _avg_pool(problem: Problem, arrays: Arrays, point: Point) -> float:
    n, c, *position = point
    places, _ = _pairs(_taps, problem.geometry, tuple(position))
    return float(arrays["x"][n, c][np.ix_(*places)].sum(dtype=np.float64)) / _divisor(problem, tuple(position))


def _avg_pool_grad(problem: Problem, arrays: Arrays, point: Point) -> float:
    n, c, *place = point
    positions, _ = _pairs(_covering, problem.geometry, tuple(place))
    grad = arrays["grad_output"][n, c]
    return sum(float(grad[p]) / _divisor(problem, p) for p in product(*positions))


DEFINITIONS: dict[str, Callable[[Problem, Arrays, Point], float]] = {
    "conv": _conv,
    "conv_grad_input": _conv_grad_input,
    "conv_grad_weight": _conv_grad_weight,
    "max_pool": _max_pool,
    "max_pool_grad": _max_pool_grad,
    "avg_pool": _avg_pool,
    "avg_pool_grad": _avg_pool_grad,
}


def products_per_point(problem: Problem) -> int:
    """How much work one point is, at most: products of a convolution, cells of a window."""
    g = problem.geometry
    if problem.op == "conv_grad_weight":
        return g.batch * prod(g.output)
    if problem.op == "conv_grad_input":
        taps = (max((len(_covering(g, a, i)[0]) for i in range(g.input[a])), default=0) for a in range(g.rank))
        return g.out_channels // g.groups * prod(taps)
    return g.reduction if problem.op == "conv" else prod(g.kernel)


def sample_points(shape: tuple[int, ...], count: int, rng: np.random.Generator) -> list[Point]:
    """Distinct points: every corner, then as many near tile edges (multiples of 4) as anywhere."""
    if prod(shape) <= count:
        return list(np.ndindex(*shape))
    points: dict[Point, None] = dict.fromkeys(product(*({0, size - 1} for size in shape)))
    edges = [[i for i in range(size) if i % 4 in (0, 3) or i == size - 1] for size in shape]
    for turn in range(50 * count):
        near_edge = turn % 2
        point = (int(rng.choice(e)) if near_edge else int(rng.integers(s)) for e, s in zip(edges, shape))
        points[tuple(point)] = None
        if len(points) >= count:
            break
    return list(points)[:count]
