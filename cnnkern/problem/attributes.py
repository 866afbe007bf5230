"""The keys behind ``@`` in a case string: those that set an option of the op, and those that say how a case is run.

===========  =======================================================================================
dt           element type of the main operand: f32 (default) f64 f16 bf16 i8 u8 ...
layout       NCHW (default) NHWC
precision    strict f32 (default) fast bf16
bias act res fused into a convolution: ``bias=1`` ``act=relu`` ``res=1``
wdt          element type of the weights where it is another one
ceil pad     pooling: ``ceil=1`` rounds output sizes up, ``pad=exclude`` does not count padding
div p        pooling: divisor; norm type (dropout: probability)
plan         ``plan=1``: weights are packed once, outside the call
threads      number of threads
cold         ``wei`` or ``all``: evicted from the caches before each call
gate         the regression gate of this case, ``15%``
===========  =======================================================================================

The other options of an op go by their own names: indices size alpha beta k weight eps training seed label_smoothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

from ..errors import ArgumentError
from ..spec import DTYPES, OPS, PRECISIONS


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _natural(text: str) -> int:
    if not re.fullmatch("[0-9]+", text) or int(text) < 1:
        raise ValueError("an integer from 1")
    return int(text)


def _integer(text: str) -> int:
    if not re.fullmatch("-?[0-9]+", text):
        raise ValueError("an integer")
    return int(text)


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if isnan(value):
        raise ValueError("a number")
    return value


def _percent(text: str) -> float:
    if not text.endswith("%") or not 0 < _real(text[:-1]) < inf:
        raise ValueError("a percentage above 0, such as 15%")
    return _real(text[:-1])


def _word(*words: str) -> Callable[[str], str | None]:
    def convert(text: str) -> str | None:
        if text not in words:
            raise ValueError(" or ".join(words))
        return None if text == "none" else text

    return convert


def _include(text: str) -> bool:
    return _word("include", "exclude")(text) == "include"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


@dataclass(frozen=True)
class Attribute:
    """A key, the option of the op that it sets (None: it is about the problem itself), and its value's two forms."""

    key: str
    option: str | None
    convert: Callable[[str], Any]  # raises ValueError(rule)
    write: Callable[[Any], str] = _text


_ATTRIBUTES = (  # in canonical order
    Attribute("dt", None, _word(*DTYPES)),
    Attribute("layout", None, _word("NCHW", "NHWC")),
    Attribute("precision", None, _word(*PRECISIONS)),
    Attribute("bias", "bias", _flag),
    Attribute("act", "activation", _word("none", "relu")),
    Attribute("res", "residual", _flag),
    Attribute("wdt", "weight_dtype", _word("none", *DTYPES)),
    Attribute("ceil", None, _flag),
    Attribute("pad", "count_include_pad", _include, lambda include: "include" if include else "exclude"),
    Attribute("div", "divisor", _natural),
    Attribute("p", "norm_type", _real),
    Attribute("p", "p", _real),
    Attribute("indices", "indices", _word("none", "torch", "window")),
    Attribute("size", "size", _natural),
    Attribute("alpha", "alpha", _real),
    Attribute("beta", "beta", _real),
    Attribute("k", "k", _real),
    Attribute("weight", "weight", _flag),
    Attribute("eps", "eps", _real),
    Attribute("training", "training", _flag),
    Attribute("seed", "seed", _integer),
    Attribute("label_smoothing", "label_smoothing", _real),
    Attribute("plan", None, _flag),
    Attribute("threads", None, _natural),
    Attribute("cold", None, _word("none", "wei", "all")),
    Attribute("gate", None, _percent, lambda percent: f"{_text(percent)}%"),
)
_ONLY_FOR = {"ceil": ("max_pool", "avg_pool", "lp_pool"), "plan": ("conv",)}


@functools.cache
def attributes_of(op: str) -> dict[str, Attribute]:
    """The attributes that a table op takes, by key, in canonical order."""
    options = OPS[op].options
    found = {}
    for attribute in _ATTRIBUTES:
        if attribute.option is None:
            fits = op.removesuffix("_grad") in _ONLY_FOR.get(attribute.key, (op.removesuffix("_grad"),))
        else:
            fits = attribute.option in options
        if fits:
            found[attribute.key] = attribute
    return found


def read_attributes(op: str, parts: list[str], case: str) -> tuple[dict[str, Any], tuple[tuple[str, Any], ...]]:
    """Values about the problem by key, and the op's options that differ from their defaults, sorted by name.

    Raises:
        ArgumentError: an attribute that the op does not have, is given twice, or has a value that is not allowed.
    """
    known = attributes_of(op)
    values: dict[str, Any] = {}
    for part in parts:
        key, _, text = part.partition("=")
        if key not in known:
            raise ArgumentError(f"problem {case!r}: {op} has no attribute {key!r}. It has {', '.join(known)}.")
        if key in values:
            raise ArgumentError(f"problem {case!r}: {key} is given twice. Give it once.")
        try:
            values[key] = known[key].convert(text)
        except ValueError as rule:
            raise ArgumentError(f"problem {case!r}: {key} must be {rule}, got {text!r}.") from None
    own, options = {}, {}
    for key, value in values.items():
        name = known[key].option
        if name is None:
            own[key] = value
        elif value != OPS[op].options[name]:
            options[name] = value
    return own, tuple(sorted(options.items()))
