"""Arrays for a problem. Two fills, because one cannot serve both ends:

check: small integers, so that every sum of products is exact and a kernel is right or wrong without a tolerance.
time: normal values, so that no multiplication by zero and no subnormal makes a kernel look faster or slower than it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

import cnnkern as ck
from cnnkern.problem import Array, Problem

from .calls import pool_arguments

ALIGNMENT = 64
GUARD = 0xA5  # byte value of the guard words
GUARD_BYTES = 256


def buffer(shape: tuple[int, ...], dtype: np.dtype, offset: int = 0) -> np.ndarray:
    """A C-contiguous array that starts ``offset`` times 64 bytes after a page's beginning."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + 4096 + offset * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % 4096 + offset * ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Guarded:
    """An output filled with NaN (integers: their smallest value) between two guard zones."""

    array: np.ndarray
    raw: np.ndarray

    @classmethod
    def like(cls, spec: Array) -> Guarded:
        size = prod(spec.shape) * spec.dtype.itemsize
        raw = np.full(size + 2 * GUARD_BYTES, GUARD, np.uint8)
        array = raw[GUARD_BYTES : GUARD_BYTES + size].view(spec.dtype).reshape(spec.shape)
        array[...] = poison(spec.dtype)
        return cls(array, raw)

    def damage(self) -> str | None:
        """What a kernel did outside its output, or None."""
        for where, zone in (("before", self.raw[:GUARD_BYTES]), ("after", self.raw[-GUARD_BYTES:])):
            if (zone != GUARD).any():
                return f"wrote {where} the output ({int((zone != GUARD).sum())} bytes)"
        return None


def poison(dtype: np.dtype) -> object:
    """The value of an element that no kernel has written."""
    if dtype == np.bool_:
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else np.nan


def inputs(problem: Problem, fill: str, seed: int, offset: int = 0) -> dict[str, np.ndarray]:
    """Input arrays by operand name; the same problem, fill and seed give the same values in every process.

    Besides the operands, a max pooling gradient has "x", the input its indices came from: peers need it.
    """
    rng = np.random.default_rng([seed, *problem.key.encode()])
    draw: Callable[..., np.ndarray] = _small_integers if fill == "check" else _normal
    arrays: dict[str, np.ndarray] = {}
    for spec in problem.inputs:
        special = _SPECIAL.get(spec.name) if spec.name != "labels" else _labels
        if spec.name == "indices":
            continue
        values = special(problem, rng, spec) if special else draw(rng, spec.shape, spec.dtype)
        arrays[spec.name] = buffer(spec.shape, spec.dtype, offset)
        arrays[spec.name][...] = values
    for spec in problem.inputs:
        if spec.name == "indices":
            _add_indices(problem, arrays, rng, draw, spec)
    return arrays


def _small_integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    low = 0 if dtype.kind in "ub" else -4
    high = 2 if dtype.kind == "b" else 5
    return rng.integers(low, high, shape, dtype=np.int8).astype(dtype)


def _normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if dtype.kind in "biu":
        return _small_integers(rng, shape, dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def _positive(problem: Problem, rng: np.random.Generator, spec: Array) -> np.ndarray:
    return rng.integers(1, 5, spec.shape).astype(spec.dtype)


def _labels(problem: Problem, rng: np.random.Generator, spec: Array) -> np.ndarray:
    return rng.integers(0, problem.geometry.classes, spec.shape)


_SPECIAL = {"var": _positive, "rstd": _positive}


def _add_indices(
    problem: Problem,
    arrays: dict[str, np.ndarray],
    rng: np.random.Generator,
    draw: Callable[..., np.ndarray],
    spec: Array,
) -> None:
    """Valid indices: of a real pooling for its gradient, distinct places for unpooling."""
    if problem.op in ("max_unpool", "max_unpool_grad"):
        g = problem.geometry
        places = np.argsort(rng.random((g.batch, g.channels, prod(g.output))), axis=-1)[..., : prod(g.input)]
        logical = places.reshape(g.x_shape)
        arrays["indices"] = np.moveaxis(logical, 1, -1) if problem.layout == "NHWC" else logical
        return
    x = problem.outputs[0]
    arrays["x"] = draw(rng, x.shape, x.dtype)
    name, arguments, keywords = pool_arguments(problem)
    kind = "window" if dict(problem.options).get("indices") == "window" else True
    with ck.using(backend="reference", kernel="reference"):  # whatever is forced around
        _, arrays["indices"] = getattr(ck, name)(arrays["x"], *arguments, return_indices=kind, **keywords)
