"""Docstrings of the public functions: one order of sections, every argument named, examples that run."""

from __future__ import annotations

import doctest
import inspect
import re

import numpy as np
import pytest

import cnnkern as ck

DESCRIBED = [
    name for name in ck.__all__ if inspect.isfunction(getattr(ck, name)) and getattr(ck, name).__module__ == "cnnkern"
]
ORDER = ["Args", "Returns", "Raises", "Notes", "Example"]


@pytest.mark.parametrize("name", DESCRIBED)
def test_sections_come_in_order_and_name_every_argument(name):
    function = getattr(ck, name)
    text = inspect.getdoc(function)
    assert function.__name__ == name
    assert text and not re.search(r"[{}]", text.replace("**{", ""))
    sections = re.findall(r"^(Args|Returns|Raises|Notes|Example):$", text, re.MULTILINE)
    assert sections == [section for section in ORDER if section in sections]
    assert {"Args", "Returns", "Raises", "Example"} <= set(sections)
    described = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +([\w, ]+, )?{parameter}(, [\w, ]+)?:", described, re.MULTILINE), parameter


@pytest.mark.parametrize("name", DESCRIBED)
def test_example_runs_and_prints_what_it_says(name):
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(getattr(ck, name)), {"np": np, "ck": ck}, name, None, 0
    )
    results = doctest.DocTestRunner(verbose=False).run(example)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("name", [name for name in DESCRIBED if "2d" in name])
def test_the_three_ranks_have_one_signature(name):
    two = inspect.signature(getattr(ck, name))
    assert two == inspect.signature(getattr(ck, name.replace("2d", "1d")))
    assert two == inspect.signature(getattr(ck, name.replace("2d", "3d")))


def test_every_op_is_described():
    assert len(DESCRIBED) == 80
