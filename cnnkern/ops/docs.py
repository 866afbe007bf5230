"""Functions that exist in 1d, 2d and 3d from one definition, with docstrings from one text and shared paragraphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_PARAGRAPHS = {
    "STRIDE": """stride: one int, or one per axis, from 1: the distance between windows.""",
    "POOL_STRIDE": """stride: one int, or one per axis, from 1: the distance between windows. None: the kernel size.""",
    "PADDING": """padding: an int; one int per axis; one (before, after) pair per axis; "valid" (none); "same" (as many
            windows as ceil(size / stride), the odd element after the input), "same_lower" (before it){causal}.""",
    "DILATION": """dilation: one int, or one per axis: the distance between the elements of a window; 1 is dense.""",
    "CEIL": """ceil_mode: also count a last window that sticks out after the padding, if it starts before it.""",
    "LAYOUT": """layout: "NCHW" (or "{first}") or "NHWC" (or "{last}"): the order of the axes of maps.""",
    "PRECISION": """precision: "strict", "f32", "fast" or "bf16"; None: ``using(precision=)``, else
            ``CNNKERN_PRECISION``, else "f32". float64 is always computed in float64.""",
    "OUT": """out: where to write the result: any writable view of its shape and dtype that overlaps no input.""",
    "UNBATCHED": """The batch axis may be left out, and is then left out of the results. Results are new arrays of the
        library that ``{main}`` comes from, C-contiguous.""",
    "ERRORS": """ArgumentError: an argument is wrong by itself.
        ShapeError: arguments do not fit together, or a size overflows.
        DTypeError: a dtype is not served, or dtypes do not go together.
        NoKernelError: an array is not in host memory, or no row of the table can serve the call.""",
    "SUMS": """The same call gives the same bits for any number of threads.""",
}
_LETTERS = {0: "", 1: "W", 2: "HW", 3: "DHW"}


def _words(rank: int) -> dict[str, str]:
    letters = _LETTERS[rank]
    words = {
        "n": str(rank),
        "sp": ", ".join(letters),
        "osp": ", ".join(f"{letter}out" for letter in letters),
        "k": ", ".join(f"k{letter}" for letter in letters),
        "first": {0: "NCHW", 1: "NCW", 2: "NCHW", 3: "NCDHW"}[rank],
        "last": {0: "NHWC", 1: "NWC", 2: "NHWC", 3: "NDHWC"}[rank],
        "causal": ', "causal" (all of it before the input)' if rank == 1 else "",
    }
    for size in (2, 3, 4, 5, 6, 7, 8, 16):  # {s8}: "8, 8" for the shapes of examples
        words[f"s{size}"] = ", ".join([str(size)] * rank)
    return words


def described(function: F, op: str, text: str, rank: int = 0, main: str = "x") -> F:
    """Give a public function its name and its docstring.

    Args:
        function: a function defined once for several ops.
        op: its public name.
        text: the docstring, with the words of a rank and the names of shared paragraphs in braces.
        rank: 1, 2 or 3; 0 for ops that have no rank in their name.
        main: the argument whose library receives the results.
    """
    words = {"op": op, "main": main, **_words(rank)}
    paragraphs = {name: paragraph.format(**words) for name, paragraph in _PARAGRAPHS.items()}
    function.__name__ = function.__qualname__ = op
    function.__module__ = "cnnkern"  # where users find it, and where pickle looks for it
    function.__doc__ = inspect.cleandoc(text.format(**words, **paragraphs))
    return function


def each_rank(make: Callable[[int], F]) -> tuple[F, F, F]:
    """The 1d, 2d and 3d function of a family: ``make(n)`` gives the one of rank n."""
    return make(1), make(2), make(3)
