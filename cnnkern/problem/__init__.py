"""Problem strings: one line of text that says what is computed, and the request it stands for.

``conv2d:mb1ic64ih56oc64oh56kh3ph1n"resnet50:conv2_x*3"@act=relu@cpp.direct.avx2.f32`` is a test id, a benchmark id, a
line of a log and a filter. Grammar::

    case = [ op ":" ] size+ [ name ] { "@" key "=" value } [ "@" row ]
    size = key integer [ "_" ]    keys: g mb ic id ih iw oc od oh ow kd kh kw sd sh sw dd dh dw pd ph pw qd qh qw
    name = 'n"' text [ "*" count ] '"'
    row  = backend [ "." algorithm [ "." isa ] [ "." dtype ] ]

``str(parse(text))`` is the canonical form: equal problems, equal strings. ``sizes`` says what the size keys mean,
``attributes`` what the keys behind ``@`` mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..spec import DTYPES, ISA_LEVELS, OPS, PointwiseGeometry, Request, op_name
from .attributes import attributes_of, read_attributes
from .sizes import LIMIT, ceil_mode, read_geometry, read_sizes, write_sizes

__all__ = ["Array", "Problem", "from_benchdnn", "from_request", "parse"]

_CASE = re.compile(
    r"(?:(?P<op>[A-Za-z]\w*):)?(?P<sizes>[a-z0-9_]*?)"
    r'(?:n"(?P<name>[^"\n]*?)(?:\*(?P<count>\d+))?")?(?P<tail>(?:@[^@]*)*)'
)
_OP_OF_NAME = {  # "conv2d" -> ("conv", 2), "relu" -> ("relu", None)
    op_name(op, rank): (op, rank if "{n}" in spec.name else None) for op, spec in OPS.items() for rank in spec.ranks
}


class Array(NamedTuple):
    """An operand of a problem: its name, the shape of the array (axes in the problem's layout) and its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Problem:
    """A request with what a case string says besides: a name, how often it occurs, how it is to be run.

    Attributes:
        op: the table op without rank ("conv_grad_input"); ``op_name`` has the rank.
        geometry: sizes, as in ``Request``.
        dtype, layout, precision, options: as in ``Request``.
        name, count: the layer's name and how often the layer occurs in its network.
        plan: run from a plan with prepacked weights instead of an eager call.
        threads, cold: number of threads; what is evicted from the caches before each call ("wei", "all").
        gate: the regression gate of this case in percent.
        row: ``backend[.algorithm[.isa]]``, the kernel that must run; None: free choice.
    """

    op: str
    geometry: Any  # the op's geometry class: a union would make every use a case distinction
    dtype: str = "f32"
    layout: str = "NCHW"
    precision: str = "f32"
    options: tuple[tuple[str, Any], ...] = ()
    name: str = ""
    count: int = 1
    plan: bool = False
    threads: int | None = None
    cold: str | None = None
    gate: float | None = None
    row: str | None = None

    def request(self) -> Request:
        """The request, without name, count and the ways of running that no choice of a kernel may see."""
        return Request(
            self.op,
            self.geometry,
            self.dtype,
            self.layout,
            self.precision,
            options=self.options,
            prepacked=self.plan,
        )

    @property
    def op_name(self) -> str:
        """The op with its rank: "conv2d_grad_input"."""
        return op_name(self.op, self.geometry.rank)

    @property
    def key(self) -> str:
        """What results are stored under: the canonical string without name, count and gate."""
        return str(replace(self, name="", count=1, gate=None))

    def option(self, name: str) -> Any:
        """The value of an option of the op, its default if nothing is said."""
        return self.request().option(name)

    @property
    def flops(self) -> int:
        """Floating point operations; a fused multiply-add counts as two."""
        return OPS[self.op].flops(self.request())

    @property
    def bytes(self) -> int:
        """Bytes read and written if every operand moves once."""
        return OPS[self.op].bytes(self.request())

    @property
    def inputs(self) -> tuple[Array, ...]:
        """The operands that are there, in the table op's order."""
        return self._arrays(OPS[self.op].inputs)

    @property
    def outputs(self) -> tuple[Array, ...]:
        """The results, in the table op's order."""
        return self._arrays(OPS[self.op].outputs)

    def _arrays(self, operands: tuple) -> tuple[Array, ...]:
        request = self.request()
        present = [operand for operand in operands if operand.present(request)]
        return tuple(Array(o.name, o.array_shape(request), o.array_dtype(request)) for o in present)

    def arrange(self, arrays: Mapping[str, np.ndarray]) -> tuple[tuple, tuple]:
        """Arrays by operand name as a kernel's ``run`` takes them: inputs and outputs, None where one is absent."""
        spec = OPS[self.op]
        return tuple(arrays.get(o.name) for o in spec.inputs), tuple(arrays.get(o.name) for o in spec.outputs)

    @property
    def ceil_mode(self) -> bool:
        """Pooling: whether the output size follows from rounding up and not from rounding down."""
        return ceil_mode(self.geometry)

    def __str__(self) -> str:
        text = f"{self.op_name}:{''.join(write_sizes(self.op, self.geometry))}"
        if self.name or self.count != 1:
            text += f'n"{self.name}{f"*{self.count}" if self.count != 1 else ""}"'
        values = self._attribute_values()
        row = self.row
        if row and "." in row:  # a row that names an algorithm carries the dtype
            row = f"{row}.{values.pop('dt', 'f32')}"
        text += "".join(f"@{key}={value}" for key, value in values.items())
        return f"{text}@{row}" if row else text

    def _attribute_values(self) -> dict[str, str]:
        """Attributes that differ from their defaults, in canonical order."""
        values = dict(self.options)
        own = {
            "dt": (self.dtype, "f32"),
            "layout": (self.layout, "NCHW"),
            "precision": (self.precision, "f32"),
            "ceil": (self.ceil_mode, False),
            "plan": (self.plan, False),
            "threads": (self.threads, None),
            "cold": (self.cold, None),
            "gate": (self.gate, None),
        }
        written = {}
        for key, attribute in attributes_of(self.op).items():
            value, default = own[key] if attribute.option is None else (values.get(attribute.option), None)
            if value != default or (attribute.option in values):
                written[key] = attribute.write(value)
        return written


def from_request(request: Request) -> Problem:
    """The problem of a request. An element-wise shape that the size keys cannot spell becomes one axis of its size."""
    geometry = request.geometry
    if isinstance(geometry, PointwiseGeometry) and not 1 <= len(geometry.shape) <= 5:
        geometry = PointwiseGeometry((prod(geometry.shape),))
    plan = request.prepacked
    return Problem(request.op, geometry, request.dtype, request.layout, request.precision, request.options, plan=plan)


def parse(text: str) -> Problem:
    """Read a case string.

    Args:
        text: as in this module's grammar: ``'conv2d:mb1ic3ih224oc64oh112kh7sh2ph3n"resnet50:conv1"'``. Without an op,
            ``oc`` means convolution, else max pooling; without ``mb`` a batch of 2 is assumed, with a warning.

    Returns:
        The problem. ``str()`` of it is the canonical form, and reading that gives an equal problem.

    Raises:
        ArgumentError: the text does not follow the grammar; an op, size or attribute is not known or is missing.
        ShapeError: sizes that do not fit together (the message shows the arithmetic) or do not fit 64 bits.
    """
    case = text.strip()
    match = _CASE.fullmatch(case)
    if match is None or not match["sizes"]:
        raise ArgumentError(f"problem {case!r} is not a case string, such as conv2d:mb1ic3ih224oc64kh7sh2ph3@bias=1.")
    sizes = read_sizes(match["sizes"], case)
    op, rank = _operation(match["op"], sizes, case)
    parts = match["tail"].split("@")[1:]
    row, row_dtype = _row(parts.pop(), case) if parts and "=" not in parts[-1] else (None, None)
    own, options = read_attributes(op, parts, case)
    dtype = own.get("dt", row_dtype or "f32")
    if row_dtype not in (None, dtype):
        raise ArgumentError(f"problem {case!r}: dt={dtype} and the row's {row_dtype} disagree. Give the dtype once.")
    count = int(match["count"] or 1)
    if count < 1:
        raise ArgumentError(f"problem {case!r}: the count after * must be >= 1, got {count}.")
    problem = Problem(
        op,
        read_geometry(op, rank, sizes, case, own.get("ceil", False)),
        dtype,
        own.get("layout", "NCHW"),
        own.get("precision", "f32"),
        options,
        match["name"] or "",
        count,
        own.get("plan", False),
        own.get("threads"),
        own.get("cold"),
        own.get("gate"),
        row,
    )
    for array in (*problem.inputs, *problem.outputs):
        if prod(array.shape) * array.dtype.itemsize > LIMIT:
            raise ShapeError(f"problem {case!r}: {array.name} {array.shape} exceeds 64-bit offsets. Use smaller sizes.")
    return problem


def _operation(name: str | None, sizes: dict[str, int], case: str) -> tuple[str, int | None]:
    """Table op and rank; None: the axes say the rank."""
    if name is None:
        return ("conv" if "oc" in sizes else "max_pool"), None
    if name not in _OP_OF_NAME:
        names = ", ".join(spec.name.format(n="{1,2,3}") for spec in OPS.values())
        raise ArgumentError(f"problem {case!r}: op {name!r} is not known. Use one of {names}.")
    return _OP_OF_NAME[name]


def _row(text: str, case: str) -> tuple[str, str | None]:
    """A row without its dtype, and the dtype if it names one."""
    parts = text.split(".")
    dtype = parts.pop() if len(parts) > 2 and parts[-1] in DTYPES else None
    named = all(re.fullmatch(r"[a-z][a-z0-9_]*", part) for part in parts)
    if not named or len(parts) > 3 or (len(parts) == 3 and parts[2] not in (*ISA_LEVELS, "neon")):
        raise ArgumentError(
            f"problem {case!r}: row {text!r} is not backend[.algorithm[.isa][.dtype]], such as cpp.direct.avx2.f32."
        )
    return ".".join(parts), dtype


from .benchdnn import from_benchdnn  # noqa: E402  (it needs parse)
