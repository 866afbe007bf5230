"""Who may import whom, and other rules of structure, read from the syntax trees. The table is ``RULES``.

``src`` and ``interop`` use the library through its public names; a backend never sees dispatch or another backend;
csrc/ knows nothing of Python but in the binding; each package reads the environment in its config.py alone.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {home.name: home for home in (ROOT / "cnnkern", *ROOT.glob("src/*")) if (home / "__init__.py").is_file()}
PYTHON_FILES = sorted(path for home in PACKAGES.values() for path in home.rglob("*.py"))
PUBLIC = ("cnnkern", "cnnkern.problem", "cnnkern.interop.*")
SPEC = ("cnnkern.errors", "cnnkern.config", "cnnkern.spec", "cnnkern.spec.*")
FOUNDATION = (*SPEC, "cnnkern.problem", "cnnkern.problem.*", "cnnkern.arrays")
CLI = ("click", "rich")
PEERS = ("torch", "onnxruntime", "openvino", "jax", "onnx")


@dataclass(frozen=True)
class Rule:
    """What the files matching ``where`` may import beside the standard library: modules of ours, other packages, and
    what they may import inside functions only."""

    where: str
    ours: tuple[str, ...]
    packages: tuple[str, ...] = ()
    lazily: tuple[str, ...] = ()


RULES = (  # the first match holds
    Rule("cnnkern/errors.py", ()),
    Rule("cnnkern/config.py", ("cnnkern.errors",)),
    Rule("cnnkern/usercache.py", ("cnnkern.config",)),
    Rule("cnnkern/roofline.py", ("cnnkern.usercache",)),
    Rule("cnnkern/spec/*", SPEC, ("numpy",), ("ml_dtypes",)),
    Rule("cnnkern/problem/*", (*SPEC, "cnnkern.problem", "cnnkern.problem.*"), ("numpy",)),
    Rule("cnnkern/arrays.py", FOUNDATION, ("numpy",), ("ml_dtypes",)),
    Rule("cnnkern/backends/__init__.py", FOUNDATION),
    Rule("cnnkern/backends/reference/*", (*FOUNDATION, "cnnkern.backends.reference.*"), ("numpy",), ("ml_dtypes",)),
    Rule("cnnkern/backends/cpp_cost.py", (*SPEC, "cnnkern.roofline")),
    Rule("cnnkern/backends/cpp*", (*FOUNDATION, "cnnkern._cnnkern_core", "cnnkern.backends.cpp_*"), ("numpy",)),
    Rule("cnnkern/dispatch.py", (*FOUNDATION, "cnnkern.backends"), (), ("cnnkern.tuning",)),
    Rule("cnnkern/tuning.py", (*FOUNDATION, "cnnkern.usercache", "cnnkern.plan"), ("numpy",)),
    Rule("cnnkern/plan.py", (*FOUNDATION, "cnnkern.backends", "cnnkern.dispatch"), ("numpy",), ("cnnkern.backends.*",)),
    Rule("cnnkern/ops/*", (*FOUNDATION, "cnnkern.dispatch", "cnnkern.plan", "cnnkern.ops.*"), ("numpy",)),
    Rule("cnnkern/explain.py", (*FOUNDATION, "cnnkern.dispatch", "cnnkern.plan", "cnnkern.ops", "cnnkern.ops.*")),
    Rule("cnnkern/interop/__init__.py", ()),
    Rule("cnnkern/interop/threadpoolctl.py", ("cnnkern",), ("threadpoolctl",)),
    Rule(
        "cnnkern/machine.py",
        (*FOUNDATION, "cnnkern.backends"),
        ("numpy",),
        ("cnnkern._cnnkern_core", "cnnkern.roofline"),
    ),
    Rule("cnnkern/__init__.py", ("cnnkern.[!bi]*",)),  # neither backends nor interop
    Rule("src/cnnkern_bench/peers/*_peer.py", (*PUBLIC, "cnnkern_bench.*"), ("numpy", *PEERS)),  # loaded by name
    Rule("src/cnnkern_bench/*", (*PUBLIC, "cnnkern_bench", "cnnkern_bench.*"), ("numpy",), ("rich", "matplotlib")),
    Rule("src/cnnkern_cli/*", (*PUBLIC, "cnnkern_bench", "cnnkern_bench.*", "cnnkern_cli", "cnnkern_cli.*"), CLI),
)


@dataclass(frozen=True)
class Import:
    module: str  # absolute; a submodule where one is named
    line: int
    lazy: bool


def name_of(path: Path) -> str:
    """The path as the rules write it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "src" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    package, *rest = name.split(".")
    if package not in PACKAGES:
        return False
    path = PACKAGES[package].joinpath(*rest)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() or name == "cnnkern._cnnkern_core"


def imports(path: Path) -> Iterator[Import]:
    """Imports that can run: those under ``if TYPE_CHECKING`` are left out."""
    here = module_of(path)
    package = here if path.name == "__init__.py" else here.rpartition(".")[0]

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, lazy)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                yield Import(submodule if is_module(submodule) else base, node.lineno, lazy)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text()), lazy=False)


def violations(path: Path, rule: Rule) -> list[str]:
    found = []
    for item in imports(path):
        top = item.module.partition(".")[0]
        if top in PACKAGES:
            name, allowed = item.module, rule.ours
        else:
            name, allowed = top, (*rule.packages, *sys.stdlib_module_names)
        allowed = (*allowed, *(rule.lazily if item.lazy else ()))
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
            found.append(f"{name_of(path)}:{item.line} imports {item.module}{'' if item.lazy else ' at the top'}")
    return found


def test_the_walk_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setitem(PACKAGES, "cnnkern", tmp_path / "cnnkern")
    path = tmp_path / "cnnkern" / "ops" / "conv.py"
    path.parent.mkdir(parents=True)
    (tmp_path / "cnnkern" / "plan.py").touch()
    path.write_text(
        "from __future__ import annotations\nfrom .. import plan\nfrom ..errors import ShapeError\n"
        "import torch.nn\nif TYPE_CHECKING:\n    import jax\ndef f():\n    import numba\n"
    )
    seen = [(item.module, item.lazy) for item in imports(path)]
    assert seen == [
        ("__future__", False), ("cnnkern.plan", False), ("cnnkern.errors", False), ("torch.nn", False), ("numba", True),
    ]  # fmt: skip
    assert len(violations(path, Rule("", ("cnnkern.errors",), (), ("numba",)))) == 2


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_imports_follow_the_table(path):
    rule = next((rule for rule in RULES if fnmatch.fnmatchcase(name_of(path), rule.where)), None)
    assert rule is not None, f"{name_of(path)} has no line in RULES: say what it may import"
    assert violations(path, rule) == []


def test_every_rule_is_used():
    names = [name_of(path) for path in PYTHON_FILES]
    used = {next((rule for rule in RULES if fnmatch.fnmatchcase(name, rule.where)), None) for name in names}
    assert [rule.where for rule in RULES if rule not in used] == []


def test_packages_above_the_library_use_its_public_names_only():
    import cnnkern

    found = []
    for path in PYTHON_FILES:
        if path.is_relative_to(ROOT / "cnnkern"):
            continue
        tree = ast.parse(path.read_text())
        aliases = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "cnnkern"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and node.module == "cnnkern":
                names = [alias.name for alias in node.names]
            else:
                continue
            public = {*cnnkern.__all__, "__version__"}
            found += [f"{name_of(path)}:{node.lineno} cnnkern.{name}" for name in names if name not in public]
    assert found == []


def test_import_loads_no_optional_package():
    heavy = (*PEERS, "numba", "cupy", "ml_dtypes", "rich", "click", "matplotlib")
    code = f"import sys, cnnkern; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in caught)


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_no_handler_catches_everything(path):
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    assert [f"line {handler.lineno}" for handler in handlers if catches_everything(handler)] == []


def test_catching_everything_is_recognised():
    source = "try: pass\nexcept {}: pass"
    for kind, bad in (("", True), ("Exception", True), ("(OSError, Exception)", True), ("(OSError, KeyError)", False)):
        (handler,) = ast.parse(source.format(kind)).body[0].handlers
        assert catches_everything(handler) == bad


@pytest.mark.parametrize("path", [path for path in PYTHON_FILES if path.name != "config.py"], ids=name_of)
def test_only_config_reads_the_environment(path):
    readers = {"environ", "environb", "getenv"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            read = ast.unparse(node.value) == "os" and node.attr in readers
        else:
            read = isinstance(node, ast.ImportFrom) and node.module == "os" and readers & {a.name for a in node.names}
        assert not read, f"{name_of(path)}:{node.lineno} reads the environment; config.py does that"


# --- csrc/ ---

NATIVE = (".cpp", ".h", ".inl", ".inc", ".cu", ".cuh")
CPP_FILES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in NATIVE)
BINDING = [path for path in CPP_FILES if path.parent.name == "csrc" and path.stem.split("_")[0] == "bind"]
INCLUDE = re.compile(r'^\s*#\s*include\s+(?:<([^>]+)>|"([^"]+)")', re.M)


def includes(path: Path) -> tuple[set[str], set[Path]]:
    """Names in angle brackets, and own files."""
    system, own = set(), set()
    for angle, quoted in INCLUDE.findall(path.read_text()):
        if angle:
            system.add(angle)
        else:
            near = (path.parent / quoted).resolve()
            own.add(near if near.is_file() else ROOT / "csrc" / quoted)
    return system, own


def everything_included(path: Path) -> tuple[set[str], set[Path]]:
    system, seen, todo = set(), {path}, [path]
    while todo:
        angle, own = includes(todo.pop())
        system |= angle
        todo += own - seen
        seen |= own
    return system, seen


@pytest.mark.parametrize("path", [path for path in CPP_FILES if path not in BINDING], ids=name_of)
def test_native_code_knows_nothing_of_python(path):
    system, files = everything_included(path)
    assert not [name for name in system if name == "Python.h" or name.startswith(("pybind11", "numpy/"))]
    assert not files & set(BINDING)


TARGETS = sorted((ROOT / "csrc" / "cpu").glob("target_*.cpp"))


@pytest.mark.parametrize("path", TARGETS, ids=name_of)
def test_target_files_include_c_headers_only(path):
    # A weak symbol of a C++ header, compiled with wide instructions, could be linked into baseline code.
    system, _ = everything_included(path)
    assert {"math.h", "stdint.h"} <= system, "the walk over the includes is broken"
    assert [name for name in system if not name.endswith(".h")] == []


def in_setup(name):
    """The expression that setup.py assigns to a name."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        if name in map(ast.unparse, targets):
            return node.value
    raise AssertionError(f"setup.py has no {name}")


def test_there_is_a_target_file_for_each_instruction_set_of_setup():
    isas = [key.value for key in in_setup("ISAS").keys]
    assert sorted([*isas, "scalar"]) == [path.stem.removeprefix("target_") for path in TARGETS]


def test_make_compiles_for_arm_with_the_flags_of_setup():
    made = dict(re.findall(r"^(KERNEL_FLAGS|NEON_FLAGS) := (.*)$", (ROOT / "Makefile").read_text(), re.M))
    isas = in_setup("ISAS")
    (neon,) = (value for key, value in zip(isas.keys, isas.values, strict=True) if key.value == "neon")
    assert made["NEON_FLAGS"].split() == ast.literal_eval(neon.elts[1])
    assert made["KERNEL_FLAGS"].split() == ast.literal_eval(in_setup("KERNEL_FLAGS"))
