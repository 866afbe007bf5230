"""The fast path: a repeated call is answered by the native cache, with what the slow path would have given.

``slow`` counts calls that reach Python's slow path, so that a test knows which way each call took.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import cnnkern as ck
from cnnkern import plan
from matrix import COMPLETE, needs_native
from oracle import same_bits

pytestmark = [needs_native, pytest.mark.usefixtures("plain_settings")]

RNG = np.random.default_rng(8)


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RNG.integers(-4, 5, shape).astype(dtype)


def fresh() -> int:
    """An even extent that no call has had yet, so that a test starts with an unknown shape."""
    fresh.number += 2  # type: ignore[attr-defined]
    return fresh.number  # type: ignore[attr-defined]


fresh.number = 70  # type: ignore[attr-defined]


class Slow:
    """Calls of ``plan.execute``."""

    def __init__(self) -> None:
        self.calls = 0

    def during(self, call: Callable[[], object]) -> int:
        before = self.calls
        call()
        return self.calls - before


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    counter, execute = Slow(), plan.execute

    def counted(*arguments: object, **named: object) -> object:
        counter.calls += 1
        return execute(*arguments, **named)

    monkeypatch.setattr(plan, "execute", counted)
    yield counter


def calls(width: int) -> dict[str, Callable[[], object]]:
    """Public calls on arrays of this width."""
    x, w, gy = array(2, 4, 6, width), array(8, 4, 3, 3), array(2, 8, 6, width)
    with ck.using(backend="reference"):
        pooled, indices = ck.max_pool2d(x, 2, return_indices=True)
    statistics = array(4) + 5.0, abs(array(4)) + 1.0
    mean, variance = (s.astype(np.float32) for s in statistics)
    return {
        "conv2d": lambda: ck.conv2d(x, w, None, 1, 1),
        "conv2d named": lambda: ck.conv2d(x, w, padding=((1, 1), (2, 0)), activation="relu", layout="NCHW"),
        "conv2d_backward": lambda: ck.conv2d_backward(gy, x, w, 1, 1),
        "conv_transpose2d": lambda: ck.conv_transpose2d(gy, w, None, (2, 1), 1),
        "conv_transpose2d_backward": lambda: ck.conv_transpose2d_backward(x, gy, w, 1, 1),
        "max_pool2d": lambda: ck.max_pool2d(x, 2, return_indices=True),
        "max_pool2d_backward": lambda: ck.max_pool2d_backward(pooled, indices, x.shape, 2),
        "avg_pool2d": lambda: ck.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        "avg_pool2d_backward": lambda: ck.avg_pool2d_backward(x, x.shape, 1),
        "lp_pool2d": lambda: ck.lp_pool2d(x, 3.0, 2),
        "adaptive_avg_pool2d": lambda: ck.adaptive_avg_pool2d(x, (2, 3)),
        "adaptive_max_pool2d": lambda: ck.adaptive_max_pool2d(x, 2, True),
        "max_unpool2d": lambda: ck.max_unpool2d(pooled, indices, 2),
        "local_response_norm": lambda: ck.local_response_norm(x, 5),
        "batch_norm": lambda: ck.batch_norm(x, mean, variance),
        "relu": lambda: ck.relu(x),
        "tanh_backward": lambda: ck.tanh_backward(x, x),
        "dropout": lambda: ck.dropout(x, 0.5, seed=3),
        "unfold": lambda: ck.unfold(x, 3),
        "softmax_cross_entropy": lambda: ck.softmax_cross_entropy(x[0, 0], np.zeros(6, np.int64)),
    }


# tanh_backward has one array twice here, which might be two the next time; a seed of dropout is used once.
NEVER_REMEMBERED = ("tanh_backward", "dropout")


@pytest.mark.parametrize("name", calls(70))
def test_the_second_call_is_fast_and_equal(name: str, slow: Slow) -> None:
    call = calls(fresh())[name]
    results = []
    ways = [slow.during(lambda: results.append(call())) for _ in range(3)]
    assert ways == ([1, 1, 1] if name in NEVER_REMEMBERED else [1, 0, 0])
    first, *others = (r if isinstance(r, tuple) else (r,) for r in results)
    for other in others:
        assert same_bits(first, other) is None
        assert not any(np.shares_memory(a, b) for a, b in zip(first, other)), "two results share their memory"


def test_new_values_in_known_arrays_are_computed(slow: Slow) -> None:
    """Only shapes are remembered: neither inputs nor weights, which are packed anew at each call."""
    x, w = array(1, 4, 5, fresh()), array(8, 4, 1, 1)
    first = ck.conv2d(x, w)
    w *= 2
    assert slow.during(lambda: np.testing.assert_array_equal(ck.conv2d(x, w), 2 * first)) == 0
    x += 1
    assert slow.during(lambda: np.testing.assert_array_equal(ck.conv2d(x, w), 2 * ck.conv2d(x, w / 2))) == 0


def test_other_arrays_of_known_shapes_do_not_meet_a_wrong_program(slow: Slow) -> None:
    """After each change of type, strides or shape the answer is that of contiguous float64 copies."""
    width = fresh()
    base, w = array(2, 4, 6, width), array(8, 4, 3, 3)
    wide = array(4, 4, 6, width)
    variants = [
        (base, w),
        (base[:, :, :, ::-1], w),
        (wide[::2], w),
        (np.asfortranarray(base), w),
        (np.broadcast_to(base[:1], base.shape), w),
        (base[:, :, ::-1], w[:, :, ::-1]),
        (base.astype(np.float64), w.astype(np.float64)),
        (base[:1], w),
        (base, w[:, :, :1]),
        (base, w.transpose(0, 1, 3, 2)),
        (base, np.broadcast_to(w[:1], w.shape)),
    ]
    for _ in range(3):
        for x, weight in variants:
            want = ck.conv2d(x.astype(np.float64), weight.astype(np.float64), None, 1, 1)
            got = ck.conv2d(x, weight, None, 1, 1)
            assert got.dtype == x.dtype
            np.testing.assert_array_equal(got, want)
    assert slow.during(lambda: [ck.conv2d(x, weight, None, 1, 1) for x, weight in variants]) == 0


def test_a_square_image_of_the_other_layout_is_another_call() -> None:
    size = fresh()
    x, w = array(1, size, size, size), array(3, size, 1, 1)
    for _ in range(2):
        nchw, nhwc = ck.conv2d(x, w), ck.conv2d(x, w, layout="NHWC")
        np.testing.assert_array_equal(nchw, np.einsum("nchw,oc->nohw", x, w[:, :, 0, 0]))
        np.testing.assert_array_equal(nhwc, np.einsum("nhwc,oc->nhwo", x, w[:, :, 0, 0]))


def test_arguments_that_only_look_equal_are_checked_again(slow: Slow) -> None:
    """1, True and 1.0 are equal and hash alike, and so do 0 and False: none of them may pass for the other."""
    x, w = array(1, 4, 6, fresh()), array(8, 4, 3, 3)
    for _ in range(2):
        ck.conv2d(x, w, None, 1, 0, 1, 1)
        ck.avg_pool2d(x, 2, 2, 0, False, True)
    for wrong in (True, 1.0, "1", [1.0], (True, True)):
        with pytest.raises(ck.ArgumentError, match="stride"):
            ck.conv2d(x, w, None, wrong)
    for wrong in (False, 0.0, None):
        with pytest.raises(ck.ArgumentError, match="padding"):
            ck.conv2d(x, w, None, 1, wrong)
    for wrong in (0, 0.0, None):
        with pytest.raises(ck.ArgumentError, match="ceil_mode"):
            ck.avg_pool2d(x, 2, 2, 0, wrong, True)
    for wrong in (1, 1.0, "True"):
        with pytest.raises(ck.ArgumentError, match="count_include_pad"):
            ck.avg_pool2d(x, 2, 2, 0, False, wrong)


def test_every_argument_is_part_of_the_key(slow: Slow) -> None:
    """Each call differs in one argument from the first, after all of them are known."""
    width = fresh()
    x, w, b, r = array(2, 4, 6, width), array(8, 2, 3, 3), array(8), array(2, 8, 6, width)
    changes: list[dict] = [
        {},
        {"bias": b},
        {"stride": 2},
        {"stride": (1, 2)},
        {"padding": 0},
        {"padding": (1, 0)},
        {"padding": ((1, 0), (0, 1))},
        {"padding": "same"},
        {"dilation": 2},
        {"activation": "relu"},
        {"residual": r},
        {"precision": "strict"},
        {"groups": 2},
    ]

    def run(change: dict) -> np.ndarray:
        how = {"padding": 1, "groups": 2, **change}
        return ck.conv2d(x, w, **how)

    with ck.using(backend="reference"):
        expected = [run(change) for change in changes]
    for _ in range(2):
        for change, want in zip(changes, expected):
            np.testing.assert_array_equal(run(change), want, str(change))
    assert slow.during(lambda: [run(change) for change in changes]) == 0


def test_one_array_in_two_places_is_not_taken_for_two() -> None:
    """x as its own residual, then another residual of the same shape."""
    x, w, other = array(1, 4, 5, fresh()), array(4, 4, 1, 1), array(1, 4, 5, fresh.number)  # type: ignore[attr-defined]
    plain = ck.conv2d(x, w)
    for _ in range(2):
        np.testing.assert_array_equal(ck.conv2d(x, w, residual=x), plain + x)
        np.testing.assert_array_equal(ck.conv2d(x, w, residual=other), plain + other)


def test_settings_are_part_of_the_key(slow: Slow) -> None:
    """A known call runs what the block around it asks for, and again what it ran before after the block."""
    x, w = array(1, 4, 6, fresh()), array(8, 4, 3, 3)

    def ran() -> str:
        ck.conv2d(x, w)
        return plan.last_rows()[0]

    free = ran()
    for _ in range(2):
        for isa in COMPLETE:
            with ck.using(isa=isa):
                assert f".{isa}." in ran()
        with ck.using(backend="reference"):
            assert ran() == "conv.reference.direct.f32"
            assert slow.during(ran) == 1
        with ck.using(num_threads=3):
            assert ran() == free
        assert ran() == free
    assert slow.during(ran) == 0
    with ck.using(kernel="cpp.magic"), pytest.raises(ck.ArgumentError, match="names no row"):
        ran()
    with ck.using(precision="strict"):
        assert slow.during(ran) == 1
        assert slow.during(ran) == 0


def test_out_is_part_of_the_key_and_checked_each_time(slow: Slow) -> None:
    width = fresh()
    x, w = array(1, 4, 6, width), array(8, 4, 3, 3)
    want = ck.conv2d(x, w, None, 1, 1)
    out, other = np.zeros_like(want), np.zeros((1, 8, 6, 2 * width), np.float32)[..., ::2]
    for _ in range(2):
        for target in (out, other):
            target[...] = np.nan
            assert ck.conv2d(x, w, None, 1, 1, out=target) is target
            np.testing.assert_array_equal(target, want)
    assert slow.during(lambda: ck.conv2d(x, w, None, 1, 1, out=out)) == 0
    out.flags.writeable = False
    with pytest.raises(ck.ArgumentError, match="read-only"):
        ck.conv2d(x, w, None, 1, 1, out=out)


def test_a_failing_call_fails_again_and_a_right_one_after_it_works() -> None:
    """A label out of range is found by the kernel, on the slow path and on the fast one."""
    logits = array(6, fresh())
    right, wrong = np.zeros(6, np.int64), np.full(6, 10_000)
    for labels in (wrong, wrong, right, wrong, right):
        if labels is wrong:
            with pytest.raises(ck.ArgumentError, match="10000"):
                ck.softmax_cross_entropy(logits, labels)
        else:
            loss, _ = ck.softmax_cross_entropy(logits, labels)
            assert np.isfinite(loss)


def test_a_plan_gives_the_bits_of_the_plain_call() -> None:
    """With and without residual and out, for several strides of x, in any order and again."""
    width = fresh()
    x, w, b, r = array(2, 4, 6, width), array(8, 4, 3, 3), array(8), array(2, 8, 6, width)
    made = ck.plan_conv2d(w, b, x_shape=x.shape, padding=1, activation="relu")
    flipped = np.flip(np.flip(x, 3).copy(), 3)
    out = np.empty_like(r)
    for _ in range(2):
        for image in (x, flipped, np.asfortranarray(x)):
            for residual in (None, r, r[::-1]):
                want = ck.conv2d(image, w, b, 1, 1, activation="relu", residual=residual)
                assert same_bits((made(image, residual),), (want,)) is None
                assert made(image, residual, out) is out
                assert same_bits((out,), (want,)) is None
    with pytest.raises(ck.ArgumentError, match="out may not overlap"):
        made(x, r, r)
    with pytest.raises(ck.ShapeError):
        made(x[:1])
    with pytest.raises(ck.DTypeError):
        made(x.astype(np.float64))


def test_a_plan_keeps_its_weights() -> None:
    x, w = array(1, 4, 6, fresh()), array(8, 4, 3, 3)
    made = ck.plan_conv2d(w, x_shape=x.shape)
    want = ck.conv2d(x, w)
    w[...] = 0
    for _ in range(2):
        np.testing.assert_array_equal(made(x), want)
