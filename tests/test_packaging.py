"""What the installed distribution says of itself and carries with it."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cnnkern", "cnnkern_bench", "cnnkern_cli")


def requirements() -> list[str]:
    return importlib.metadata.requires("cnnkern") or []


def extras_of(package: str) -> set[str]:
    """The extras that bring a package: {"nn", "test"} for Pillow."""
    lines = [line for line in requirements() if re.match(rf"{re.escape(package)}\b(?!-)", line)]
    return {match for line in lines for match in re.findall(r"extra == ['\"]([\w-]+)['\"]", line)}


def test_metadata():
    metadata = importlib.metadata.metadata("cnnkern")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "LICENSE" in metadata.get_all("License-File")
    assert metadata["Summary"] and metadata["Description-Content-Type"] == "text/markdown"


def test_what_every_install_needs():
    always = {re.split(r"[<>=;\s]", line)[0] for line in requirements() if "extra ==" not in line}
    info = json.loads((importlib.resources.files("cnnkern") / "_build_info.json").read_text())
    assert always == {"numpy", "ml_dtypes", "click", "rich"} | (set() if info["built"] else {"numba"})


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("numba", ["numba"]),
        ("cuda12", ["cupy-cuda12x"]),
        ("cuda13", ["cupy-cuda13x"]),
        ("nn", ["safetensors", "Pillow", "matplotlib"]),
        ("torch", ["torch"]),
        ("jax", ["jax"]),
        ("onnx", ["onnx"]),
        ("mpi", ["mpi4py", "mpich"]),
        ("bench", ["pytest-benchmark", "matplotlib"]),
        ("test", ["pytest", "hypothesis"]),
        ("dev", ["ruff", "mypy", "build", "pybind11-stubgen"]),
    ],
)
def test_extras(extra, packages):
    assert extra in importlib.metadata.metadata("cnnkern").get_all("Provides-Extra")
    assert [package for package in packages if extra not in extras_of(package)] == []


def test_plain_cupy_is_never_required():
    # It is a source build that needs the CUDA toolkit.
    assert not [line for line in requirements() if re.match(r"cupy\b(?!-)", line)]


def test_console_script_starts_the_command_line():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="cnnkern")
    assert script.value == "cnnkern_cli:main"
    assert callable(script.load())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_marked_as_typed(package):
    assert (importlib.resources.files(package) / "py.typed").is_file()


def test_stub_of_the_compiled_module_is_there():
    assert (importlib.resources.files("cnnkern") / "_cnnkern_core.pyi").is_file()


def test_suites_are_installed():
    suites = {file.name for file in (importlib.resources.files("cnnkern_bench") / "suites").iterdir()}
    assert {"quick.txt", "lenet.txt", "alexnet.txt", "vgg16.txt", "resnet50.txt", "ci.txt"} <= suites


def test_build_info_says_how_the_module_was_built():
    info = json.loads((importlib.resources.files("cnnkern") / "_build_info.json").read_text())
    if info["built"]:
        assert info["reason"] == "" and info["compiler"] and "scalar" in info["isas"]
        assert set(info["flags"]) - {"all", "kernels"} == set(info["isas"]) - {"scalar"}
        assert "fast-math" not in " ".join(info["flags"].values())
    else:
        assert info["reason"]


def test_makefile_installs_the_build_requirements_of_pyproject():
    # make installs without build isolation, so it has to name them itself.
    declared = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    named = re.search(r"^BUILD_TOOLS := ([^#\n]*)", (ROOT / "Makefile").read_text(), re.M)
    assert declared and named
    assert re.findall(r'"([^"]+)"', declared[1]) == re.findall(r"'([^']+)'", named[1])
