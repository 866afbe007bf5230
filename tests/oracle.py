"""Running one row of the table between guards, and comparing what it gave with what the reference says.

Every array is a slice of a larger one: around inputs lies NaN (or a value far outside), around outputs guard words, and
outputs are filled with NaN before. A comparison returns None or the text of the difference, so that a test can say in
one line which problem, on which row, under which seed and with how many threads.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from math import prod

import numpy as np

from bounds import EXACT_ON_INTEGERS, FLOATS, NARROW, SPLIT, Arrays, Bound, bounds, reference, split_bound, stored
from cnnkern import plan, problem
from cnnkern.config import get_num_threads, using
from cnnkern.spec import OPS, Kernel, Request
from samples import INTEGERS, SEED, sample_inputs
from winograd_bound import winograd_bound

MEMORY = ("dense", "strided", "reversed", "swapped")  # how an array lies in memory
ORDERS = (*MEMORY, "mixed")  # of a call; mixed: each of its arrays another one
GUARD = 64  # elements before and after


# ---- arrays between guards


def _strange(dtype: np.dtype) -> object:
    """A value that shows in every result it enters: not a number, far outside, or simply the other one."""
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max - 7 if dtype.kind in "iu" else np.nan


def _view(buffer: np.ndarray, shape: tuple[int, ...], order: str) -> np.ndarray:
    """The view of ``shape`` inside a buffer that ``_room`` elements make."""
    if order == "strided":  # every second element of every axis
        wide = buffer[GUARD : GUARD + prod(2 * extent + 3 for extent in shape)].reshape([2 * n + 3 for n in shape])
        return wide[(..., *(slice(1, 1 + 2 * extent, 2) for extent in shape))]
    inside = buffer[GUARD : GUARD + prod(shape)]
    if order == "reversed":
        return inside.reshape(shape)[(..., *(slice(None, None, -1),) * len(shape))]
    if order == "swapped" and len(shape) >= 2:  # channels last in memory if they are first in the array, or conversely
        return np.moveaxis(inside.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return inside.reshape(shape)


def _room(shape: tuple[int, ...], order: str) -> int:
    return (prod(2 * extent + 3 for extent in shape) if order == "strided" else prod(shape)) + 2 * GUARD


def place(values: np.ndarray, order: str = "dense") -> np.ndarray:
    """A read-only array with these values, between NaN. Axes of stride 0 keep it."""
    stored = values[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in values.strides)]
    buffer = np.full(_room(stored.shape, order), _strange(values.dtype), values.dtype)
    view = _view(buffer, stored.shape, order)
    view[...] = stored
    view.flags.writeable = False
    return np.broadcast_to(view, values.shape) if stored.shape != values.shape else view


class Target:
    """An output between guard words, filled with NaN. ``array`` is what a kernel may write."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, order: str = "dense") -> None:
        self.bytes = np.full(_room(shape, order) * dtype.itemsize, 0x5A, np.uint8)
        self.array = _view(self.bytes.view(dtype), shape, order)
        inside = np.zeros(_room(shape, order), bool)
        _view(inside, shape, order)[...] = True
        self.outside = np.repeat(~inside, dtype.itemsize)
        if dtype.kind == "b":
            self.array.view(np.uint8)[...] = 0x5A  # neither True nor False
        else:
            self.array[...] = _strange(dtype)

    def damage(self) -> str | None:
        """What was written outside the array, if anything was."""
        wrong = np.flatnonzero(self.bytes[self.outside] != 0x5A)
        return f"{wrong.size} bytes outside the output were written" if wrong.size else None


# ---- one row on one problem


def run_row(row: Kernel, request: Request, inputs: Arrays, order: str = "dense") -> Arrays:
    """Outputs of exactly this row, run through dispatch and plan, copied out of guarded arrays.

    Raises:
        AssertionError: another row ran, something outside an output was written, or a bool is neither 0 nor 1.
    """
    spec = OPS[request.op]
    orders = itertools.cycle(MEMORY if order == "mixed" else (order,))
    placed = [None if a is None else place(a, next(orders)) for a in inputs]
    targets = [
        Target(o.array_shape(request), o.array_dtype(request), next(orders)) for o in spec.outputs if o.present(request)
    ]
    run_on(row, request, placed, [target.array for target in targets])
    for target in targets:
        assert target.damage() is None, target.damage()
        if target.array.dtype.kind == "b":
            assert (target.array.view(np.uint8) <= 1).all(), "a bool is neither 0 nor 1"
    arrays = iter(targets)
    return tuple(next(arrays).array.copy() if o.present(request) else None for o in spec.outputs)


def run_on(row: Kernel, request: Request, inputs: list, outputs: list[np.ndarray]) -> None:
    """Run exactly this row on these arrays; absent inputs are None, absent outputs left out."""
    spec = OPS[request.op]
    arrays = [*(a for a in inputs if a is not None), *outputs]
    slots = iter(range(len(arrays)))
    read = tuple(None if a is None else next(slots) for a in inputs)
    results = tuple(plan.Output(a.shape, a.dtype, into=next(slots)) for a in outputs)
    numbers = iter(range(len(arrays), len(arrays) + len(outputs)))
    written = tuple(next(numbers) if o.present(request) else None for o in spec.outputs)
    call = plan.Call((plan.Step(request, read, written),), len(arrays), results, ())
    with using(backend=row.backend, kernel=row.name, isa=row.isa):
        plan.execute(call, tuple(arrays))
    ran = plan.last_rows()
    assert ran == (f"{request.op}.{row.name}.{request.dtype}",), f"{ran} ran instead of {row.name}"


def serves(row: Kernel, request: Request) -> bool:
    """Whether the row's own conditions and its table columns admit the request."""
    fits = request.dtype in row.dtypes and request.layout in row.layouts and request.geometry.rank in row.ranks
    return fits and request.precision in row.precisions and row.why_not(request) is None


# ---- comparison


def differs(got: np.ndarray | None, want: np.ndarray | None, bound: Bound = 0.0) -> str | None:
    """None if |got - want| <= bound where want is finite and both have the same NaN and infinities elsewhere."""
    if got is None or want is None:
        return None if got is want else "an output is missing" if got is None else "an output that nobody asked for"
    if got.shape != want.shape:
        return f"shape {got.shape} instead of {want.shape}"
    if got.dtype.kind in "iub" and want.dtype.kind in "iub":
        wrong, excess = got != want, None
    else:
        got, want = got.astype(np.float64), want.astype(np.float64)
        finite = np.isfinite(want)
        with np.errstate(invalid="ignore"):
            excess = abs(got - want) - bound
        wrong = np.where(finite, ~(excess <= 0), ~((got == want) | (np.isnan(got) & np.isnan(want))))
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    text = f"{np.count_nonzero(wrong)} of {wrong.size} elements differ, first at {first}:"
    text += f" {got[first]!s} instead of {want[first]!s}"
    if excess is None or not np.any(bound):
        return text
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(wrong & finite, abs(got - want) / bound, 0).max()
    return f"{text} (up to {ratio:.3g} times the bound)"


def exceeds_rms(got: np.ndarray, want: np.ndarray, limit: float) -> str | None:
    """None if the root mean square of the error is at most ``limit``."""
    error = rms(got.astype(np.float64) - want)
    return None if error <= limit else f"rms error {error:.3g} is more than {limit:.3g}"


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64))))) if values.size else 0.0


def same_bits(one: Arrays, other: Arrays) -> str | None:
    """None if all outputs are equal bit by bit, NaN and the sign of zero included."""
    for a, b in zip(one, other, strict=True):
        if (a is None) != (b is None):
            return "an output is missing in one of them"
        if a is not None and b is not None and a.tobytes() != b.tobytes():
            differing = np.flatnonzero(_words(a) != _words(b))
            first = tuple(int(i) for i in np.unravel_index(differing[0], a.shape))
            return f"{differing.size} of {a.size} elements have other bits, first at {first}"
    return None


def _words(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


# ---- expectations of the samples


def says(row: Kernel | str, request: Request, text: str) -> str:
    """One line for a failure: what to type, and what is wrong."""
    name = row if isinstance(row, str) else row.name
    case = replace(problem.from_request(request), row=name, threads=get_num_threads())
    return f"{case} with CNNKERN_SEED={SEED}: {text}"


@functools.lru_cache(maxsize=512)
def expectation(request: Request, kind: str) -> tuple[Arrays, Arrays, tuple[Bound, ...]]:
    """Inputs of a sample, what the reference gives for them, and how far from that a result may be.

    Sums that are exact in float32 must come out as these, rounded once to the type of the result.
    """
    inputs = sample_inputs(request, kind)
    expected = reference(request, inputs)
    if kind == INTEGERS and request.op in EXACT_ON_INTEGERS and request.dtype in FLOATS:
        return inputs, rounded(request, expected), (0.0,) * len(expected)
    return inputs, expected, bounds(request, inputs, expected)


def rounded(request: Request, expected: Arrays) -> Arrays:
    """Results of the reference as arrays of the request's types."""
    outputs = OPS[request.op].outputs
    with np.errstate(over="ignore"):  # float16 ends at 65504
        return tuple(None if a is None else a.astype(o.array_dtype(request)) for o, a in zip(outputs, expected))


def allowed_of(
    row: Kernel, request: Request, inputs: Arrays, expected: Arrays, exact: tuple[Bound, ...]
) -> tuple[Bound, ...]:
    """What this row may be off: ``exact`` for plain sums of products, more where its algorithm rounds on the way."""
    if row.algorithm in SPLIT:  # parts hold small whole numbers exactly
        return (exact[0] + split_bound(row.algorithm, request, inputs),) if np.any(exact[0]) else exact
    if not row.algorithm.startswith("winograd"):
        return exact
    bound, (want,) = winograd_bound(row.algorithm, request, inputs), expected
    if request.dtype not in NARROW or want is None:
        return (bound,)
    return (2 * stored(request, want.astype(np.float64), bound),)  # twice, because ``expected`` may be rounded too


def check_sample(row: Kernel, request: Request, kind: str, order: str) -> str | None:
    """Run a row on a sample. None, or the line that says what is wrong."""
    inputs, expected, allowed = expectation(_as_computed(request), kind)
    allowed = allowed_of(row, request, inputs, expected, allowed)
    try:
        got = run_row(row, request, inputs, order)
    except AssertionError as error:
        return says(row, request, f"{order} arrays of {kind}: {error}")
    for operand, a, b, bound in zip(OPS[request.op].outputs, got, expected, allowed, strict=True):
        difference = differs(a, b, bound)
        if difference is not None:
            return says(row, request, f"{operand.name} of {order} arrays of {kind}: {difference}")
    return None


def _as_computed(request: Request) -> Request:
    """One expectation for all precisions."""
    return replace(request, precision="f32")
