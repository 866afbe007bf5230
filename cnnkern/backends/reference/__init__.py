"""The reference: every op in plain NumPy, for every dtype, layout and option.

It is the oracle of the tests and the last fallback of dispatch, so it is written to be read beside the formulas:
floating point is summed in float64 whatever the type of the arrays and rounded once, integers are exact, and padding is
never looked at because the loops over a window's taps are clipped to real elements.
"""

from __future__ import annotations

from ...spec import Kernel
from . import average_pool, conv, dropout, loss, lp_pool, max_pool, norm, pointwise, unfold, unpool

_MODULES = (conv, max_pool, average_pool, lp_pool, unpool, norm, pointwise, dropout, unfold, loss)


def kernels() -> list[Kernel]:
    """The rows of this backend: one per table op, all of algorithm ``direct``."""
    return [kernel for module in _MODULES for kernel in module.ROWS]
