"""``explain``: which kernels were considered for a call or a problem string, and why one was chosen."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any

from . import plan
from .dispatch import Explanation, explain_request
from .errors import ArgumentError, show


class Explanations(tuple[Explanation, ...]):
    """One explanation per table op of a call. ``str()`` gives all their tables."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self))


def explain(op: str, *args: Any, **kwargs: Any) -> Explanations:
    """Every kernel considered for a call, the one chosen, and the sentence why each other one was not. Runs nothing.

    Kernels that can serve show their estimated time on one core where there is a model, or what tuning measured.

    Args:
        op: the name of a public op ("conv2d", "max_pool2d_backward") with that op's own arguments, or a problem string
            ("conv2d:mb1ic64ih56oc64oh56kh3ph1") without any.

    Returns:
        One ``Explanation`` per table op the call consists of; each has ``chosen`` (a Kernel or None), ``verdicts``
        and ``request``; ``print`` shows the table.

    Raises:
        ArgumentError: no such op. Whatever the op itself raises for bad arguments.

    Example:
        >>> print(ck.explain("conv2d:mb1ic64ih56oc64oh56kh3ph1"))  # doctest: +SKIP
        conv2d f32 NCHW
          conv2d.cpp.winograd.avx512.f32     chosen, estimated 553 us on one core
          conv2d.cpp.winograd_f2.avx512.f32  can serve, estimated 746 us on one core
          ...
    """
    if isinstance(op, str) and ":" in op and not args and not kwargs:
        from . import problem  # on use: it costs a millisecond of import

        return Explanations((explain_request(problem.parse(op).request()),))
    package = sys.modules[__package__]
    function = getattr(package, op) if isinstance(op, str) and op in package.__all__ else None
    if not isinstance(function, FunctionType):
        raise ArgumentError(
            f"explain: op must name a public op such as 'conv2d', or be a problem string, got {show(op)}."
        )
    with plan.explaining() as found:
        function(*args, **kwargs)
    if not found:
        raise ArgumentError(f"explain: {op} runs no kernel with these arguments.")
    return Explanations(found)
