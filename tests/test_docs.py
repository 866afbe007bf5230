"""What the documents say holds: code runs, links lead somewhere, the table is fresh, the walk-through compiles."""

from __future__ import annotations

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnkern as ck
from matrix import needs_native

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "csrc/*.md", "src/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALK_THROUGH = (ROOT / "docs" / "adding-a-kernel.md").read_text(encoding="utf-8")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# ---- README.md


def test_the_readme_s_lines_run_and_give_the_shapes_that_they_claim(capsys):
    (code,) = blocks(README, "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    claimed = re.findall(r"^(\w+)(?:, \w+)? = .*# (\(.*\))$", code, re.MULTILINE)
    assert [name for name, _ in claimed] == ["y", "pooled"]
    for name, shape in claimed:
        assert str(names[name].shape) == shape
    assert names["grad_x"].shape == names["x"].shape and names["grad_weight"].shape == names["weight"].shape
    printed = capsys.readouterr().out
    assert printed.startswith("conv2d f32 NCHW\n") and printed.count("chosen") == 1


def test_the_readme_s_code_is_short():
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 10


def test_the_readme_s_errors_are_raised_word_for_word():
    errors = dict(re.findall(r"^(ShapeError|DTypeError): (.*)$", README, re.MULTILINE))
    x, weight = np.ones((1, 5, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
    for kind, given in (("ShapeError", (x, weight)), ("DTypeError", (x[:, :3], weight.astype(np.float64)))):
        with pytest.raises(getattr(ck, kind)) as error:
            ck.conv2d(*given)
        assert str(error.value) == errors[kind]


@needs_native
def test_the_readme_s_explanation_is_what_the_library_says():
    shown = re.search(r"^\$ cnnkern explain (\S+)\n\.\.\.\n(.*?)^  \.\.\.$", README, re.DOTALL | re.MULTILINE)
    assert shown
    request = ck.problem.parse(shown[1]).request()
    rows = {row.full_name(2, "f32"): row for row in ck.kernels("conv2d", "cpp")}
    lines = dict(line.split(None, 1) for line in shown[2].splitlines()[1:])
    assert len(lines) == 4
    for name, sentence in lines.items():
        if name in rows:  # which instruction sets there are depends on the build
            serves = sentence.startswith(("chosen, estimated", "can serve, estimated"))
            assert rows[name].why_not(request) == (None if serves else sentence)
    assert set(lines) & set(rows)


@needs_native
def test_the_support_table_is_fresh():
    command = [sys.executable, ROOT / "tools" / "make_support_table.py", "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- all documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [t for t in targets if t and not t.startswith(("http:", "https:")) and not (path.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.parent.name != "decisions"], ids=name_of)
def test_files_that_are_named_exist(path):
    """Words in backticks that look like a path from the root. (Decisions also name what was rejected.)"""
    roots = "|".join(re.escape(entry.name) for entry in ROOT.iterdir() if not entry.name.startswith("."))
    named = re.findall(rf"`((?:{roots})/[\w./*-]+)`", path.read_text(encoding="utf-8"))
    invented = {"csrc/cpu/relu_lines.inl"}  # by the walk-through
    made = ("build/", "out/")
    assert [n for n in named if n not in invented and not n.startswith(made) and not list(ROOT.glob(n))] == []


def test_the_version_is_the_same_everywhere():
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version and version[1] == ck.__version__
    released = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[:2] == ["Unreleased", version[1]]


# ---- docstrings of what test_docstrings.py leaves out: classes, settings, plans, problem strings

OTHERS = {
    **{name: getattr(ck, name) for name in ck.__all__ if getattr(getattr(ck, name), "__module__", "") != "cnnkern"},
    **{f"problem.{name}": getattr(ck.problem, name) for name in ck.problem.__all__},
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_public_name_is_described(name):
    text = inspect.getdoc(OTHERS[name])
    assert text
    if inspect.isfunction(OTHERS[name]):
        parameters = inspect.signature(OTHERS[name]).parameters
        named = [p.name for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        assert [parameter for parameter in named if not re.search(rf"\b{parameter}\b", text)] == []
    example = doctest.DocTestParser().get_doctest(text, {"np": np, "ck": ck}, name, None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def test_the_example_of_plans_runs():
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(ck.plan_conv2d) or "", {"np": np, "ck": ck}, "plan_conv2d", None, 0
    )
    assert doctest.DocTestRunner(verbose=False).run(example).attempted == 2


# ---- docs/adding-a-kernel.md


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the walk-through with")
def test_the_walk_through_compiles(tmp_path):
    """Its steps, done to a copy of csrc/: the file, its line in target.inl, its row."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (loops,) = blocks(WALK_THROUGH, "cpp")
    name = re.search(r"## 1\. The loops: `(csrc/cpu/\w+\.inl)`", WALK_THROUGH)
    rows = re.search(r"^CK_KERNEL\(.*\)\nCK_KERNEL\(.*\)\n", WALK_THROUGH, re.MULTILINE)
    assert name and rows
    (tmp_path / name[1]).write_text(loops, encoding="utf-8")
    target, table = tmp_path / "csrc" / "cpu" / "target.inl", tmp_path / "csrc" / "kernels.inc"
    existing = rows[0].splitlines()[1] + "\n"
    assert existing in table.read_text(encoding="utf-8")
    table.write_text(table.read_text(encoding="utf-8").replace(existing, rows[0]), encoding="utf-8")
    last = re.findall(r'^#include "\w+\.inl"\n', target.read_text(encoding="utf-8"), re.MULTILINE)[-1]
    included = f'{last}#include "{Path(name[1]).name}"\n'
    target.write_text(target.read_text(encoding="utf-8").replace(last, included), encoding="utf-8")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror=unused", "-fsyntax-only", "-Icsrc"]
    done = subprocess.run(
        [*command, "csrc/cpu/target_scalar.cpp"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
