"""How far a result may be from the reference: computed from the sizes and the magnitudes that enter, never picked.

A sum of n products rounded in any order differs from the exact one by at most gamma(n) times the sum of the products'
absolute values (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), with gamma(n) = n u / (1 - n u)
and u the unit roundoff of the type summed in. That sum of absolute values is the op itself on absolute values, which
the reference computes. The reference's own error in float64 is added, and the rounding of 16-bit results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, isinf, prod

import numpy as np

from cnnkern.backends.reference import kernels
from cnnkern.spec import OPS, Request

REFERENCE = {row.op: row for row in kernels()}
UNIT = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}  # of rounding a result to the type
FLOATS = tuple(UNIT)
NARROW = ("f16", "bf16")  # stored; summed in float32
SMALLEST = {"f64": 2.0**-1074, "f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}  # subnormals

Arrays = tuple[np.ndarray | None, ...]
Bound = np.ndarray | float

# Of the products of parts that a row on bfloat16 tiles leaves out, to the products: two parts of 8 bits and rounding
# leave 2^-24 of a factor to the third, one part and rounding 2^-9.
SPLIT = {"split6": 2.0**-22, "split3": 2.0**-15, "split1": 2.0**-7}

# Results that are copies, choices or whole numbers: no rounding whatever the input.
EXACT = ("max_pool", "adaptive_max_pool", "max_unpool", "max_unpool_grad", "relu", "relu_grad", "unfold")
# On small whole numbers every partial sum is exact too.
EXACT_ON_INTEGERS = (
    *EXACT,
    *("conv", "conv_grad_input", "conv_grad_weight", "channel_sum", "fold", "max_pool_grad", "adaptive_max_pool_grad"),
)


def reference(request: Request, inputs: Arrays) -> Arrays:
    """The reference's outputs; of floating-point problems computed and kept in float64."""
    if request.dtype in FLOATS:
        request = replace(request, dtype="f64")
        inputs = tuple(a.astype(np.float64) if a is not None and a.dtype.kind not in "iub" else a for a in inputs)
    spec = OPS[request.op]
    outputs = tuple(
        np.empty(o.array_shape(request), o.array_dtype(request)) if o.present(request) else None for o in spec.outputs
    )
    row = REFERENCE[request.op]
    sentence = row.why_not(request)
    assert sentence is None, sentence
    row.run(row.prepare(request, None), inputs, outputs)
    return outputs


def gamma(n: int, unit: float) -> float:
    assert n * unit < 0.1
    return n * unit / (1 - n * unit)


def bounds(request: Request, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """One bound per output on |result - expected|, element by element or for all elements."""
    if request.dtype not in FLOATS:
        return (0.0,) * len(expected)
    exact = request.op in EXACT
    if exact and request.dtype in ("f32", "f64"):
        return (0.0,) * len(expected)
    wide = tuple(a.astype(np.float64) if a is not None and a.dtype.kind not in "iub" else a for a in inputs)
    found = (0.0,) * len(expected) if exact else _BOUNDS[request.op](_Sum(request), wide, expected)
    return tuple(
        bound if want is None or want.dtype.kind in "iub" else stored(request, want, bound)
        for bound, want in zip(found, expected, strict=True)
    )


def stored(request: Request, want: np.ndarray, bound: Bound) -> Bound:
    """``bound`` after rounding to the type of the result, where that is narrower than the type summed in; underflow."""
    rounding = UNIT[request.dtype] * (abs(want) + bound) if request.dtype in NARROW else 0.0
    return bound + rounding + SMALLEST[request.dtype]


def split_bound(algorithm: str, request: Request, inputs: Arrays) -> np.ndarray:
    """How much further from the reference a row on bfloat16 tiles may be than a float32 sum."""
    wide = tuple(None if a is None else a.astype(np.float64) for a in inputs)
    return SPLIT[algorithm] * _Sum(request).absolute(wide)


class _Sum:
    """A request with the arithmetic of its sums."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.unit = UNIT["f64"] if request.dtype == "f64" else UNIT["f32"]

    def gamma(self, n: int) -> float:
        """Of n roundings in the request's type, and as many in the reference's."""
        return gamma(n, self.unit) + gamma(n, UNIT["f64"])

    def absolute(self, inputs: Arrays, **options: object) -> np.ndarray:
        """The op on absolute values: first output of the reference."""
        request = replace(self.request, options=tuple(sorted({**dict(self.request.options), **options}.items())))
        positive = tuple(a if a is None or a.dtype.kind in "iub" else abs(a) for a in inputs)
        first = reference(request, positive)[0]
        assert first is not None
        return first

    def spread(self, vector: np.ndarray) -> np.ndarray:
        """(channels,) so that it broadcasts against maps of the request."""
        rank = self.request.geometry.rank
        return vector if self.request.layout == "NHWC" and rank else vector.reshape(-1, *(1,) * rank)

    def per_channel(self, maps: np.ndarray) -> np.ndarray:
        """Sums over batch and space."""
        rank = self.request.geometry.rank
        return maps.sum(tuple(range(rank + 1)) if self.request.layout == "NHWC" and rank else (0, *range(2, rank + 2)))


def _products(s: _Sum) -> int:
    g = s.request.geometry
    if s.request.op == "conv_grad_input":
        return g.out_channels // g.groups * prod(g.kernel)
    return g.batch * prod(g.output) if s.request.op == "conv_grad_weight" else g.reduction


def _conv(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """Two roundings more than products: bias and residual."""
    return (s.gamma(_products(s) + 2) * s.absolute(inputs),)


def _channel_sum(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    return (s.gamma(_values_per_channel(s)) * s.absolute(inputs),)


def _fold(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    return (s.gamma(prod(s.request.geometry.kernel)) * s.absolute(inputs),)


def _scattered(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """An element receives at most one gradient per output of its plane, and per cell of the kernel."""
    g = s.request.geometry
    cells = prod(getattr(g, "kernel", g.output))
    return (s.gamma(max(1, min(cells, prod(g.output)))) * s.absolute(inputs),)


def _average(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """The sum, the divisor's reciprocal and the product with it."""
    return (s.gamma(prod(s.request.geometry.kernel) + 2) * s.absolute(inputs),)


def _adaptive_average(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    g = s.request.geometry
    cells = prod(size // max(1, out) + 2 for size, out in zip(g.input, g.output))
    windows = prod(ceil(out / max(1, size)) + 2 for size, out in zip(g.input, g.output))
    return (s.gamma(max(cells, windows) + 2) * s.absolute(inputs),)


def _power_roundings(s: _Sum) -> float:
    """Of a norm, in units: the sum of powers, powers good to a unit in the last place, and the root, which divides the
    error of the sum by p; at p = infinity none but the last."""
    p = float(s.request.option("norm_type"))
    cells = prod(s.request.geometry.kernel)
    return 4 if isinf(p) else (cells + 4) / p + 4


def _lp(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    return (s.gamma(ceil(_power_roundings(s))) * abs(expected[0]),)


def _lp_grad(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """gy sign(x) |x|^(p-1) y^(1-p) summed over the windows that hold x."""
    p = float(s.request.option("norm_type"))
    power = 0 if isinf(p) else abs(p - 1) * _power_roundings(s)
    return (s.gamma(ceil(prod(s.request.geometry.kernel) + power + 8)) * s.absolute(inputs),)


def _lrn(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """size + 2 roundings in S, whose power beta <= 1 only shrinks them, the power's own and one product."""
    assert s.request.option("beta") <= 1
    return (s.gamma(s.request.option("size") + 8) * abs(expected[0]),)


def _lrn_grad(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """The two terms are subtracted, so their sum counts: twice the first less the difference."""
    gy, x = (abs(a) for a in inputs)
    forward = replace(s.request, op="local_response_norm", dtype="f64")
    first = gy * reference(forward, (np.where(x == 0, 1e-30, x),))[0] / np.where(x == 0, 1e-30, x)
    terms = 2 * first - s.absolute(inputs)
    return (2 * s.gamma(s.request.option("size") + 8) * terms,)


def _values_per_channel(s: _Sum) -> int:
    g = s.request.geometry
    return max(1, g.batch * prod(g.spatial))


def _affine(mean: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return np.ones_like(mean) if weight is None else abs(weight), np.zeros_like(mean) if bias is None else abs(bias)


def _batch_norm(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """weight / sqrt(var + eps) takes four roundings; whether x or a shift carries the mean is the kernel's business."""
    x, mean, var, weight, bias = inputs
    weight, bias = _affine(mean, weight, bias)
    scale = weight / np.sqrt(var + s.request.option("eps"))
    return (s.gamma(8) * ((abs(x) + s.spread(abs(mean))) * s.spread(scale) + s.spread(bias)),)


def _batch_norm_training(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """Sums of any length in float32 would not hold these: statistics are taken in float64."""
    x, weight, bias = inputs
    _, mean, var, rstd = expected
    count = _values_per_channel(s)
    summing = 2 * gamma(count + 4, UNIT["f64"])
    spans = s.per_channel(abs(x)) / count
    weight, bias = _affine(mean, weight, bias)
    moved = summing * spans  # of the mean
    last = s.gamma(1)
    y = abs(x - s.spread(mean)) * s.spread(weight * rstd) + s.spread(bias)
    return (
        (s.gamma(8) + 2 * summing) * y + s.spread(weight * rstd * (moved + last * abs(mean))),
        last * abs(mean) + moved,
        (last + 2 * summing) * var + moved**2,
        (s.gamma(4) + 2 * summing) * rstd + rstd**3 * moved**2,
    )


def _batch_norm_grad(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    gy, x, weight, mean, rstd = inputs
    count = _values_per_channel(s)
    summing = 2 * gamma(count + 4, UNIT["f64"])
    weight, _ = _affine(mean, weight, None)
    normal = (abs(x) + s.spread(abs(mean))) * s.spread(rstd)
    dots, sums = s.per_channel(abs(gy) * normal), s.per_channel(abs(gy))
    terms = abs(gy)
    if s.request.option("training"):
        terms = terms + s.spread(sums / count) + normal * s.spread(dots / count)
    return (
        (s.gamma(12) + 4 * summing) * s.spread(weight * rstd) * terms,
        (s.gamma(4) + summing) * dots,
        (s.gamma(2) + summing) * sums,
    )


def _function(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """tanh and the sigmoid, good to three units in the last place, each two roundings wide."""
    return (s.gamma(6) * abs(expected[0]),)


def _function_grad(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """gy (1 - y)(1 + y), gy y (1 - y): four roundings. 1 - y^2 would lose digits near |y| = 1 and is not allowed."""
    return (s.gamma(4) * abs(expected[0]),)


def _dropout(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """1 - p, its reciprocal, the product; the mask is exact."""
    return (s.gamma(3) * abs(expected[0]), *(0.0,) * (len(expected) - 1))


def _cross_entropy(s: _Sum, inputs: Arrays, expected: Arrays) -> tuple[Bound, ...]:
    """Rounding z = x - max costs exp(z) |z| units. The target is subtracted: its magnitude counts beside the result."""
    logits, labels = inputs
    loss, grad = expected
    rows, classes = logits.shape
    depth = abs(logits - logits.max(axis=1, keepdims=True)) if logits.size else logits
    target = np.full_like(logits, s.request.option("label_smoothing") / classes)
    target[np.arange(rows), labels] += 1
    summing = gamma(classes + rows, s.unit)
    relative = s.gamma(8) + depth * s.unit + summing
    return (
        (s.gamma(8) + summing) * (1 + abs(loss) + (depth.mean() if depth.size else 0)),
        relative * (abs(grad) + 2 * target / max(1, rows)),
    )


_BOUNDS: dict[str, Callable[[_Sum, Arrays, Arrays], tuple[Bound, ...]]] = {
    "conv": _conv,
    "conv_grad_input": _conv,
    "conv_grad_weight": _conv,
    "channel_sum": _channel_sum,
    "fold": _fold,
    "max_pool_grad": _scattered,
    "adaptive_max_pool_grad": _scattered,
    "avg_pool": _average,
    "avg_pool_grad": _average,
    "adaptive_avg_pool": _adaptive_average,
    "adaptive_avg_pool_grad": _adaptive_average,
    "lp_pool": _lp,
    "lp_pool_grad": _lp_grad,
    "local_response_norm": _lrn,
    "local_response_norm_grad": _lrn_grad,
    "batch_norm": _batch_norm,
    "batch_norm_training": _batch_norm_training,
    "batch_norm_grad": _batch_norm_grad,
    "tanh": _function,
    "sigmoid": _function,
    "tanh_grad": _function_grad,
    "sigmoid_grad": _function_grad,
    "dropout": _dropout,
    "dropout_grad": _dropout,
    "softmax_cross_entropy": _cross_entropy,
}
