"""Install the project in every way that users do, each in a clean environment, and use it from another folder.

    python tools/check_install.py                     all ways
    python tools/check_install.py wheel no-compiler   some of them

Works on a copy of the files that git knows, so that nothing built here earlier can hide a mistake. An install is
judged by tools/check_installed.py, which runs in the new environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST_MUST_HAVE = (
    "LICENSE", "README.md", "csrc/bind.cpp", "csrc/kernels.inc", "csrc/cpu/target.inl", "csrc/cpu/vec.h",
    "cnnkern/py.typed", "src/cnnkern_bench/suites/quick.txt", "setup.py", "tests/test_rules.py",
)  # fmt: skip
SDIST_MUST_NOT_HAVE = (".so", "_build_info.json", ".pyc")


def run(*command: str | Path, cwd: Path, **env: str) -> None:
    subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **env}, check=True)


def project_copy(folder: Path) -> Path:
    """A clean checkout: tracked files, and untracked ones that git does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def new_environment(folder: Path) -> Path:
    """A virtual environment without packages; returns its Python."""
    run(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


def pip_install(python: Path, *what: str | Path, cwd: Path, **env: str) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what, cwd=cwd, **env)


def use(python: Path, work: Path, expect: str, home: Path) -> None:
    """Run the check from an empty folder: the project's root would shadow what was installed."""
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    strict = "0" if expect == "no-extension" else "1"
    run(python, ROOT / "tools" / "check_installed.py", expect, home, cwd=elsewhere, CNNKERN_STRICT=strict)


def sdist_and_wheel(work: Path) -> None:
    """The wheel is built from the source distribution, so both are tried."""
    project, python = project_copy(work / "project"), new_environment(work / "env")
    pip_install(python, "build", cwd=work)
    run(python, "-m", "build", "--outdir", work / "dist", project, cwd=work, CNNKERN_REQUIRE_EXT="1")
    (sdist,), (wheel,) = (work / "dist").glob("*.tar.gz"), (work / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in SDIST_MUST_HAVE if name not in names]
    surplus = [name for name in names if name.endswith(SDIST_MUST_NOT_HAVE)]
    if missing or surplus:
        sys.exit(f"{sdist.name} lacks {missing} and has {surplus}")
    pip_install(python, wheel, cwd=work)
    use(python, work, "extension", work / "env")


def pip_install_folder(work: Path) -> None:
    """pip install ."""
    project, python = project_copy(work / "project"), new_environment(work / "env")
    pip_install(python, project, cwd=work, CNNKERN_REQUIRE_EXT="1")
    use(python, work, "extension", work / "env")


def pip_install_editable(work: Path) -> None:
    """pip install -e ."""
    project, python = project_copy(work / "project"), new_environment(work / "env")
    pip_install(python, "-e", project, cwd=work, CNNKERN_REQUIRE_EXT="1")
    use(python, work, "extension", project)


def pip_install_no_compiler(work: Path) -> None:
    """pip install . where no compiler works. Without pip's cache, which may hold a wheel that was built with one."""
    project, python = project_copy(work / "project"), new_environment(work / "env")
    hidden = {"CC": "false", "CXX": "false", "CNNKERN_REQUIRE_EXT": "0", "PIP_NO_CACHE_DIR": "1"}
    pip_install(python, project, cwd=work, **hidden)
    use(python, work, "no-extension", work / "env")


WAYS: dict[str, Callable[[Path], None]] = {
    "wheel": sdist_and_wheel,
    "folder": pip_install_folder,
    "editable": pip_install_editable,
    "no-compiler": pip_install_no_compiler,
}


def main(wanted: list[str]) -> None:
    unknown = set(wanted) - set(WAYS)
    if unknown:
        sys.exit(f"no such way to install: {', '.join(unknown)}; use {', '.join(WAYS)}")
    for name in wanted or WAYS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"cnnkern-{name}-") as folder:
            (Path(folder) / "project").mkdir()
            WAYS[name](Path(folder).resolve())
        print(f"install {name}: ok, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"exit code {error.returncode} of: {' '.join(error.cmd)}")
