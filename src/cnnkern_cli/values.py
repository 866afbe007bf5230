"""Values of options that several commands share."""

from __future__ import annotations

import re
from typing import Any

import click

WRONG, NOTHING, INTERRUPTED = 4, 5, 130  # exit codes, beside click's 2 for wrong usage


class Many(click.ParamType):
    """Values with commas between them; each must be one of ``allowed`` if that is given."""

    name = "list"

    def __init__(self, allowed: tuple[str, ...] | None = None) -> None:
        self.allowed = allowed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Split and check; a tuple comes back as it is (click converts defaults too)."""
        if isinstance(value, tuple):
            return value
        parts = tuple(part.strip() for part in str(value).split(",") if part.strip())
        for part in parts:
            if self.allowed and part not in self.allowed:
                self.fail(f"{part!r} is not one of {', '.join(self.allowed)}.", param, ctx)
        return parts

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "A,B,..." if not self.allowed else ",".join(self.allowed)


class Seconds(click.ParamType):
    """A time such as 30, 30s, 0.5ms or 2min, in seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds from text."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min)?", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is not a time above 0 such as 30s, 0.5ms or 2min.", param, ctx)
        return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}[match[2] or "s"]


def integers(name: str, values: tuple[str, ...]) -> tuple[int, ...]:
    """Positive ints from text.

    Raises:
        click.BadParameter: something else.
    """
    for value in values:
        if not value.isdecimal() or int(value) < 1:
            raise click.BadParameter(f"{value!r} is not an integer from 1.", param_hint=name)
    return tuple(int(value) for value in values)
