"""How far a Winograd row may be from the reference: computed from its interpolation points.

y = A^T [(G g G^T) * (B^T d B)] A, rounded n times on the way, differs from the exact y by at most gamma(n) times that
expression of absolute values (Barabasz et al., ACM TOMS 46, 2020). Its absolute values are bounded by the largest
element of each channel of d, the sum of |g| and one number of the matrices: one dimension's, squared.
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

from bounds import SMALLEST, UNIT, Arrays, gamma
from cnnkern.spec import Request

POINTS = {
    "winograd": (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2)),
    "winograd_f2": (Fraction(0), Fraction(1), Fraction(-1)),
}
TRANSFORMS = (
    64  # roundings in the transforms, those of the matrices' elements among them: a dozen per dimension and side
)


def matrices(outputs: int, taps: int, points: tuple[Fraction, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A^T, G and B^T of F(outputs, taps) at these points and infinity (Toom and Cook)."""
    n = outputs + taps - 1
    assert len(points) == n - 1

    def product(roots: list[Fraction]) -> list[Fraction]:
        coefficients = [Fraction(1)]
        for root in roots:
            shifted = [Fraction(0), *coefficients]
            coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)])]
        return coefficients

    at = [[p**i for p in points] + [Fraction(i == outputs - 1)] for i in range(outputs)]
    g, bt = [], []
    for i, p in enumerate(points):
        others = [*points[:i], *points[i + 1 :]]
        norm = prod((p - q for q in others), start=Fraction(1))
        g.append([p**j / norm for j in range(taps)])
        bt.append([*product(others), Fraction(0)])
    g.append([Fraction(j == taps - 1) for j in range(taps)])
    bt.append(product(list(points)))
    return np.array(at, float), np.array(g, float), np.array(bt, float)


def growth(outputs: int, taps: int, points: tuple[Fraction, ...]) -> float:
    """The most that the absolute values of one dimension grow: per unit of the sum of |g| and of the largest |d|."""
    at, g, bt = (abs(m) for m in matrices(outputs, taps, points))
    return float((at @ (g.max(axis=1) * bt.sum(axis=1))).max())


def winograd_bound(algorithm: str, request: Request, inputs: Arrays) -> np.ndarray | float:
    """The bound on |result - reference|, per output channel or per filter."""
    g = request.geometry
    points = POINTS[algorithm]
    n, taps = len(points) + 1, g.kernel[-1]
    nhwc = request.layout == "NHWC"
    if request.op == "conv_grad_weight":
        gy, x = (_finite(_first(a, nhwc)) for a in inputs)
        size = growth(taps, n - taps + 1, points) ** 2
        per_x = _largest(x).reshape(g.groups, 1, g.in_channels // g.groups)
        per_gy = gy.sum((0, *range(2, gy.ndim))).reshape(g.groups, g.out_channels // g.groups, 1)
        magnitude = (per_gy * per_x).reshape(g.weight_shape[:2])[(..., *(None,) * len(g.kernel))]
        products = gy.size // max(1, gy.shape[1])
        return _gamma(products) * size * magnitude + SMALLEST["f32"] * (products + 1) * size
    x, weight, bias, residual = inputs
    x, weight = _finite(_first(x, nhwc)), _finite(weight)
    size = growth(n - taps + 1, taps, points) ** 2
    per_x = _largest(x).reshape(g.groups, x.shape[1] // g.groups)
    by_group = weight.reshape(g.groups, g.out_channels // g.groups, g.in_channels // g.groups, prod(g.kernel))
    filters = by_group.sum(-1)  # group, out, in
    if request.op == "conv":
        magnitude = np.einsum("gkc,gc->gk", filters, per_x).reshape(-1)
        products = weight.shape[1]
    else:
        magnitude = np.einsum("gkc,gk->gc", filters, per_x).reshape(-1)
        products = g.out_channels // g.groups
    if bias is not None:
        magnitude = magnitude + _finite(bias)
    bound = magnitude if nhwc else magnitude.reshape(-1, *(1,) * len(g.kernel))
    extra = 0.0 if residual is None else _finite(residual)
    return _gamma(products) * (size * bound + extra) + SMALLEST["f32"] * (products + 1) * size


def _gamma(products: int) -> float:
    return gamma(products + TRANSFORMS, UNIT["f32"]) + gamma(products + TRANSFORMS, UNIT["f64"])


def _first(array: np.ndarray | None, nhwc: bool) -> np.ndarray:
    assert array is not None
    return np.moveaxis(array, -1, 1) if nhwc else array


def _finite(array: np.ndarray | None) -> np.ndarray:
    """Absolute values; what is not finite, or would overflow a transform, is computed by another row."""
    assert array is not None
    wide = abs(array.astype(np.float64))
    return np.where(wide < 1e37, wide, 0)


def _largest(maps: np.ndarray) -> np.ndarray:
    return maps.max(axis=(0, *range(2, maps.ndim)), initial=0)
