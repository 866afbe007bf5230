"""Errors are part of the contract: type and whole sentence, before anything is computed. And junk of every kind.

``errors.txt`` holds the calls and what they raise. The fuzz throws arguments of wrong values, types and sizes at every
public function and takes nothing but success or an exception of ours, soon and without a large allocation.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cnnkern as ck
from cnnkern import plan

OURS = (ck.ArgumentError, ck.ShapeError, ck.DTypeError, ck.NoKernelError)


# --- sentences


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def readonly(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


NAMES = {
    "ck": ck,
    "np": np,
    "ones": ones,
    "readonly": readonly,
    "X": ones(2, 3, 8, 8),
    "W": ones(4, 3, 3, 3),
    "Y": ones(2, 4, 6, 6),  # of conv2d(X, W)
    "V": ones(3),
}


def calls() -> list[tuple[str, str]]:
    """(call, "Type: sentence") pairs of errors.txt."""
    lines = (Path(__file__).parent / "errors.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    assert all(call.startswith("ck.") and error.startswith("    ") for call, error in pairs)
    return [(call, error.strip()) for call, error in pairs]


CALLS = calls()


def raised(call: str) -> str:
    try:
        eval(call, dict(NAMES))
    except OURS as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize(("call", "error"), CALLS, ids=[call for call, _ in CALLS])
def test_sentence(call: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*_: Any) -> None:
        pytest.fail(f"{call} was computed before it was refused")

    monkeypatch.setattr(plan, "execute", computed)
    assert raised(call) == error


def test_sentences_name_op_and_argument() -> None:
    """Each begins with the public name of the op, and no internal name, source line or bare value leaks out."""
    assert len(CALLS) > 140
    for call, error in CALLS:
        op = re.match(r"ck\.(\w+)\(", call)
        assert op is not None
        assert re.match(rf"\w+Error: {op[1]}: \w+ ", error), error
        assert error.endswith(".") and "Traceback" not in error and "numpy.ndarray" not in error, error


@pytest.mark.parametrize(
    ("base", "error"), [(ValueError, ck.ArgumentError), (ValueError, ck.ShapeError), (TypeError, ck.DTypeError)]
)
def test_errors_are_what_python_would_raise(base: type, error: type) -> None:
    assert issubclass(error, base)
    assert issubclass(ck.NoKernelError, RuntimeError)


BAD_DATA = [
    ("ck.softmax_cross_entropy(ones(2, 4), np.array([0, 4]))", "softmax_cross_entropy.*label.*4.*4 classes"),
    ("ck.softmax_cross_entropy(ones(2, 4), np.array([-1, 0]))", "softmax_cross_entropy.*label.*-1.*4 classes"),
    ("ck.softmax_cross_entropy(ones(1, 4), np.array([2**64 - 1], 'u8'))", "softmax_cross_entropy.*label.*4 classes"),
    (
        "ck.max_pool2d_backward(ones(1, 1, 1, 1), np.full((1, 1, 1, 1), 4), (1, 1, 2, 2), 2)",
        "max_pool2d_backward.*is 4.*4 elements",
    ),
    (
        "ck.max_pool2d_backward(ones(1, 1, 1, 1), np.full((1, 1, 1, 1), 4, 'u1'), (1, 1, 2, 2), 2)",
        "max_pool2d_backward.*is 4, but",
    ),
    ("ck.max_pool1d_backward(ones(1, 1, 1), np.zeros((1, 1, 1), 'u1'), (1, 1, 1), 2, padding=((1, 0),))", "max_pool1d"),
    ("ck.adaptive_max_pool1d_backward(ones(1, 1, 1), np.full((1, 1, 1), -1), (1, 1, 4))", "adaptive_max_pool1d.*-1"),
    ("ck.max_unpool2d(ones(1, 1, 1, 1), np.full((1, 1, 1, 1), 4), 2)", "max_unpool2d.*4.*4 elements"),
    ("ck.max_unpool2d_backward(ones(1, 1, 2, 2), np.full((1, 1, 1, 1), 4, np.int32))", "max_unpool2d.*4.*4 elements"),
]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("call", "sentence"), BAD_DATA, ids=[call for call, _ in BAD_DATA])
def test_values_out_of_range_are_refused(call: str, sentence: str, backend: str | None) -> None:
    """Labels and indices are checked where they are used; twice, so that the remembered call is checked too."""
    with ck.using(backend=backend):
        for _ in range(2):
            with pytest.raises(ck.ArgumentError, match=sentence):
                eval(call, dict(NAMES))


def test_a_result_larger_than_the_machine_is_refused() -> None:
    with pytest.raises(ck.ShapeError, match=r"conv2d: the result .* needs 7036\d{10} bytes, and this machine has"):
        ck.conv2d(ones(1, 1, 4, 4), ones(1, 1, 1, 1), padding=2**21)


def test_a_refusal_is_not_remembered() -> None:
    """A bad call after a good one of the same shapes, and the other way round: the fast path knows the difference."""
    x, weight, out = ones(1, 3, 8, 8), ones(4, 3, 3, 3), ones(1, 4, 6, 6)
    for _ in range(2):
        assert ck.conv2d(x, weight, stride=1, out=out) is out
        for bad in ({"stride": True}, {"stride": 1.0}, {"groups": 3}, {"out": readonly(out.copy())}, {"bias": x}):
            with pytest.raises(OURS):
                ck.conv2d(x, weight, **{"stride": 1, "out": out, **bad})
    memory = np.zeros(1000, np.float32)
    first, second = memory[:16].reshape(1, 1, 4, 4), memory[500:516].reshape(1, 1, 4, 4)
    ck.relu(first, out=second)
    with pytest.raises(ck.ArgumentError, match="overlap"):
        ck.relu(first, out=memory[8:24].reshape(1, 1, 4, 4))


# --- zero sizes are no errors


def test_an_empty_batch_gives_an_empty_result_and_zero_weight_gradients() -> None:
    x, weight = ones(0, 3, 8, 8), ones(4, 3, 3, 3)
    y = ck.conv2d(x, weight)
    assert y.shape == (0, 4, 6, 6)
    grad_x, grad_weight, grad_bias = ck.conv2d_backward(y, x, weight)
    assert grad_x.shape == x.shape
    assert not grad_weight.any() and not grad_bias.any()
    assert ck.max_pool2d(x, 2).shape == (0, 3, 4, 4)
    assert ck.batch_norm(x, ones(3), ones(3)).shape == x.shape
    mean, var = ones(3), ones(3)
    ck.batch_norm(x, mean, var, training=True)
    assert mean.tolist() == var.tolist() == [1, 1, 1]
    loss, grad = ck.softmax_cross_entropy(ones(0, 4), np.zeros(0, np.int64))
    assert np.isnan(loss) and grad.shape == (0, 4)


def test_no_channels() -> None:
    bias = np.float32([1, 2])
    y = ck.conv2d(ones(1, 0, 4, 4), ones(2, 0, 3, 3), bias)
    assert np.array_equal(y, np.broadcast_to(bias[:, None, None], (1, 2, 2, 2)))
    assert ck.conv2d(ones(1, 3, 4, 4), ones(0, 3, 3, 3)).shape == (1, 0, 2, 2)
    assert ck.max_pool2d(ones(1, 0, 4, 4), 2).shape == (1, 0, 2, 2)


def test_an_input_of_padding_alone() -> None:
    y = ck.conv2d(ones(1, 3, 0, 4), ones(2, 3, 3, 3), np.float32([1, 2]), padding=((2, 1), (1, 1)))
    assert np.array_equal(y, np.broadcast_to(np.float32([1, 2])[:, None, None], (1, 2, 1, 4)))
    assert ck.adaptive_avg_pool2d(ones(1, 3, 4, 4), 0).shape == (1, 3, 0, 0)


def test_strides_and_access_that_are_no_errors() -> None:
    x = np.arange(2 * 3 * 6 * 6, dtype=np.float32).reshape(2, 3, 6, 6)
    weight = ones(4, 3, 3, 3)
    expected = ck.conv2d(x, weight)
    assert np.array_equal(ck.conv2d(x[:, :, ::-1, ::-1], weight), expected[:, :, ::-1, ::-1])
    assert np.array_equal(ck.conv2d(readonly(x.copy()), weight), expected)
    assert np.array_equal(ck.conv2d(np.broadcast_to(x[:1], x.shape), weight)[1], expected[0])
    shifted = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)  # no element is aligned
    shifted[...] = x
    assert np.array_equal(ck.conv2d(shifted, weight), expected)
    records = np.zeros(x.shape, np.dtype([("flag", "u1"), ("value", "<f4")]))  # strides are no multiple of 4
    records["value"] = x
    assert np.array_equal(ck.conv2d(records["value"], weight), expected)
    target = np.zeros(expected.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(expected.shape)
    assert ck.conv2d(x, weight, out=target) is target
    assert np.array_equal(target, expected)


# --- junk

HUGE = [2**31, 2**62, 2**63, 2**64, 10**30, -(2**63), 10**5000]
FUNCTIONS = [  # every public function with arguments, but those that set something or measure the machine
    name
    for name in ck.__all__
    if inspect.isfunction(getattr(ck, name))
    and inspect.signature(getattr(ck, name)).parameters
    and not name.startswith(("set_", "measure_"))
]
ARRAYS = ("x", "grad_output", "logits", "y", "weight", "bias", "residual", "out", "mean", "var", "rstd", "mask")
LAYOUTS = ["NCHW", "NHWC", "NCW", "NDHWC", "NC", ""]


def some_array(rank: int) -> st.SearchStrategy[np.ndarray]:
    shapes = st.one_of(
        st.just((1, 2, *[4] * rank)),
        st.just((2, 2, *[2] * rank)),
        st.just((2, *[4] * rank)),
        st.just((2,)),
        st.lists(st.integers(0, 4), max_size=6).map(tuple),
    )
    dtypes = st.sampled_from(["f4", "f4", "f4", "f8", "f2", "i8", "u1", "i1", "?", ">f4", "c8", "O", "U3"])
    return st.builds(lambda shape, dtype: np.ones(shape).astype(dtype), shapes, dtypes)


def number() -> st.SearchStrategy[Any]:
    return st.one_of(st.integers(-1, 4), st.integers(1, 2), st.sampled_from(HUGE), st.sampled_from([np.int8(2), 1.5]))


def junk() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        number(),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=5),
        st.lists(number(), max_size=6),
        st.lists(number(), max_size=6).map(tuple),
        st.just(((1, 0), (0, 1))),
        st.builds(object),
        st.just({}),
        some_array(2),
    )


def plausible(name: str, rank: int) -> st.SearchStrategy[Any]:
    """Values that this parameter could have, right or nearly so, which is what reaches the later checks."""
    if name in ARRAYS:
        return some_array(rank)
    if name in ("indices", "labels"):
        shapes = st.sampled_from([(2,), (1, 2, *[2] * rank), (2, 2, *[2] * rank)])
        values, dtypes = st.sampled_from([0, 1, 3, -1, 100]), st.sampled_from([np.int64, np.uint8, np.int32])
        return st.builds(lambda shape, value, dtype: np.full(shape, value).astype(dtype), shapes, values, dtypes)
    if name.endswith("_shape"):
        return st.one_of(st.just((1, 2, *[4] * rank)), st.just((2, 2, *[2] * rank)), st.lists(number(), max_size=6))
    if name == "layout":
        return st.sampled_from(LAYOUTS)
    if name == "padding":
        return st.one_of(number(), st.sampled_from(["same", "same_lower", "causal", "valid", ((1, 0),) * rank]))
    if name in ("ceil_mode", "count_include_pad", "return_indices", "training", "return_stats"):
        return st.booleans()
    if name in ("precision", "activation", "alpha_scaling"):
        return st.sampled_from([None, "strict", "relu", "mean", "sum"])
    if name in ("p", "alpha", "beta", "k", "eps", "momentum", "label_smoothing", "norm_type"):
        return st.one_of(st.floats(0, 1), st.floats())
    return st.one_of(number(), st.tuples(*[st.integers(1, 3)] * rank))


@contextlib.contextmanager
def address_space(extra: int) -> Iterator[None]:
    """Let the process grow by ``extra`` bytes only: whoever asks for a terabyte gets a MemoryError."""
    resource = pytest.importorskip("resource", reason="limits of memory need a Unix")
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def good_call(name: str) -> dict[str, Any]:
    """Arguments with which this function succeeds."""
    digit = re.search(r"([123])d", name)
    rank = int(digit[1]) if digit else 2
    small, large = [2] * rank, [4] * rank
    x, y, vector = ones(2, 2, *large), ones(2, 2, *small), ones(2)
    indices = np.zeros(y.shape, np.int64)
    family = name.replace(f"{rank}d", "", 1) if digit else name
    if family == "plan_conv":
        return {"weight": ones(3, 2, *small), "x_shape": x.shape}
    if family.endswith("_output_shape"):
        shapes = {"weight_shape": (2, 2, *small), "output_size": 4, "kernel_size": 2, "x_shape": x.shape}
        if family == "fold_output_shape":
            shapes["x_shape"] = (2, 8, 9)
        return {key: value for key, value in shapes.items() if key in REQUIRED[name]}
    calls: dict[str, dict[str, Any]] = {
        "conv": {"x": x, "weight": ones(3, 2, *small)},
        "conv_backward": {"grad_output": ones(2, 3, *[3] * rank), "x": x, "weight": ones(3, 2, *small)},
        "conv_transpose": {"x": x, "weight": ones(2, 3, *small)},
        "conv_transpose_backward": {"grad_output": ones(2, 3, *[5] * rank), "x": x, "weight": ones(2, 3, *small)},
        "max_pool_backward": {"grad_output": y, "indices": indices, "x_shape": x.shape, "kernel_size": 2},
        "avg_pool_backward": {"grad_output": y, "x_shape": x.shape, "kernel_size": 2},
        "lp_pool": {"x": x, "norm_type": 2, "kernel_size": 2},
        "lp_pool_backward": {"grad_output": y, "x": x, "norm_type": 2, "kernel_size": 2},
        "adaptive_avg_pool_backward": {"grad_output": y, "x_shape": x.shape},
        "adaptive_max_pool_backward": {"grad_output": y, "indices": indices, "x_shape": x.shape},
        "max_unpool": {"x": y, "indices": indices, "kernel_size": 2},
        "max_unpool_backward": {"grad_output": x, "indices": indices},
        "local_response_norm": {"x": x, "size": 3},
        "local_response_norm_backward": {"grad_output": x, "x": x, "size": 3},
        "batch_norm": {"x": x, "mean": vector, "var": vector},
        "batch_norm_backward": {
            "grad_output": x, "x": x, "weight": vector, "mean": vector, "rstd": vector, "training": True,
        },
        "dropout": {"x": x, "seed": 1},
        "dropout_backward": {"grad_output": x, "mask": np.ones(x.shape, bool), "p": 0.5},
        "softmax_cross_entropy": {"logits": ones(2, 4), "labels": np.zeros(2, np.int64)},
        "unfold": {"x": x, "kernel_size": 2},
        "fold": {"x": ones(2, 8, 9), "output_size": 4, "kernel_size": 2},
        "explain": {"op": "conv2d:mb1ic2ih4oc2kh2"},
        "kernels": {"op": "conv2d"},
    }  # fmt: skip
    return calls.get(family) or {
        key: {"x": x, "grad_output": x, "y": x, "kernel_size": 2, "output_size": 2}[key] for key in REQUIRED[name]
    }


REQUIRED = {
    name: [p.name for p in inspect.signature(getattr(ck, name)).parameters.values() if p.default is p.empty]
    for name in FUNCTIONS
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_junk_gets_an_answer_or_an_error_of_ours(name: str) -> None:
    """From a good call, up to three arguments are replaced by something else."""
    function = getattr(ck, name)
    signature = inspect.signature(function).parameters.values()
    parameters = [p.name for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    digit = re.search(r"([123])d", name)
    rank = int(digit[1]) if digit else 2
    function(**good_call(name))
    outcomes = {"served": 0, "refused": 0}

    @settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def throw(data: st.DataObject) -> None:
        arguments = good_call(name)
        for parameter in data.draw(st.lists(st.sampled_from(parameters), min_size=1, max_size=3)):
            good = data.draw(st.integers(0, 3))
            arguments[parameter] = data.draw(plausible(parameter, rank) if good else junk())
        start = time.monotonic()
        try:
            function(**arguments)
            outcomes["served"] += 1
        except OURS as error:
            outcomes["refused"] += 1
            assert str(error)
        assert time.monotonic() - start < 20

    with address_space(2**31):
        throw()
    assert outcomes["refused"] > 10
