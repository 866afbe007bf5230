"""Dropout, whose mask is a function of seed and position alone: a counter-based generator, not a stream.

Element e of the array (C order) is kept if u / 2**32 >= p, where u is word e % 4 of Philox4x32-10 with counter
(e // 4) mod 2**64 in its two low words and 0 in its two high words, and the 64-bit seed as key, low word first.
Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

from math import prod

import numpy as np

from ...spec import PointwiseGeometry, Request
from .common import geometry, row, store, wide

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 2**32 - 1


def philox4x32(counter: tuple[np.ndarray, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Ten rounds on four counter words; words are uint64 arrays of values below 2**32, so a product is exact."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1 = (second >> np.uint64(32)) ^ c1 ^ np.uint64(k0), second & np.uint64(_WORD)
        c2, c3 = (first >> np.uint64(32)) ^ c3 ^ np.uint64(k1), first & np.uint64(_WORD)
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def random_words(count: int, seed: int) -> np.ndarray:
    """The first ``count`` words for this seed, as uint64 below 2**32."""
    block = np.arange(-(-count // 4), dtype=np.uint64)
    zero = np.zeros_like(block)
    counter = (block & np.uint64(_WORD), block >> np.uint64(32), zero, zero)
    words = philox4x32(counter, (seed & _WORD, seed >> 32 & _WORD))
    return np.stack(words, axis=-1).ravel()[:count]


def dropout(request: Request, inputs: tuple, outputs: tuple) -> None:
    shape = geometry(request, PointwiseGeometry).shape
    words = random_words(prod(shape), request.option("seed"))
    mask = (words * 2.0**-32 >= request.option("p")).reshape(shape)
    store(outputs[0], _keep(request, inputs[0], mask))
    store(outputs[1], mask)


def dropout_grad(request: Request, inputs: tuple, outputs: tuple) -> None:
    store(outputs[0], _keep(request, *inputs))


def _keep(request: Request, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """x / (1 - p) where kept, 0 elsewhere whatever x holds; p = 1 keeps nothing."""
    p = request.option("p")
    return np.where(mask, wide(x) / (1 - p), 0) if p < 1 else np.zeros(x.shape)


ROWS = (row("dropout", dropout), row("dropout_grad", dropout_grad))
