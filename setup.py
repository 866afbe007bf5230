"""How csrc/ becomes ``cnnkern._cnnkern_core``, and where the packages lie. Metadata and tool settings: pyproject.toml.

* Two roots: ``cnnkern/`` here, everything built with it under ``src/`` (docs/decisions/0001-two-roots.md).
* One flag set per source file, chosen by the suffix of its name: ``target_avx2.cpp`` alone sees ``-mavx2``.
* The extension is optional. Where it cannot be built, the reason goes to ``cnnkern/_build_info.json``, which
  ``cnnkern doctor`` quotes, and numba becomes a requirement. ``CNNKERN_REQUIRE_EXT=1`` makes the failure an error.
* Objects are kept under build/ and compiled again only if their sources, headers, flags or compiler changed.
  ``CNNKERN_BUILD_JOBS`` sets the number of compilers at once (default: one per core, 8 at most).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext, has_flag
from setuptools import find_packages, setup  # also provides distutils from Python 3.12 on
from setuptools.errors import BaseError, CCompilerError, CompileError

from distutils.ccompiler import new_compiler  # isort: skip
from distutils.sysconfig import customize_compiler  # isort: skip

MODULE = "cnnkern._cnnkern_core"
REQUIRE_EXT = os.environ.get("CNNKERN_REQUIRE_EXT") == "1"
OPTIMIZE = os.environ.get("CNNKERN_OPTIMIZE", "").split()

# No fast-math: at link time its start-up code flushes subnormals for the whole process. No link-time optimisation:
# it could inline code of one instruction set into another.
BASE_FLAGS = ["-O2", "-fno-lto", "-pthread"]
KERNEL_FLAGS = ["-O3", "-fno-math-errno", "-ffp-contract=fast", "-fno-trapping-math", "-fvisibility=hidden"]
X86 = ("x86_64", "AMD64")
ARM = ("aarch64", "arm64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c", "-mprefer-vector-width=512"]
ISAS: dict[str, tuple[tuple[str, ...], list[str]]] = {  # suffix of the file name: machines, flags
    "avx2": (X86, ["-mavx2", "-mfma", "-mf16c"]),
    "avx512": (X86, AVX512),
    "avx512vnni": (X86, [*AVX512, "-mavx512vnni"]),
    "amx": (X86, [*AVX512, "-mamx-tile", "-mamx-bf16"]),
    # GCC's scheduling before registers are given out loads the pixels of a tile so early that sums go to the stack.
    "neon": (ARM, ["-fno-schedule-insns"]),
}

PROBE = """
#include <Python.h>
#include <memory>
typedef float v4 __attribute__((vector_size(16)));
v4 probe(v4 a) { auto p = std::make_unique<v4>(a + a); if constexpr (sizeof(v4) == 16) return *p; else return a; }
"""


def isa_of(source: str) -> str | None:
    """csrc/cpu/target_avx2.cpp -> "avx2"; None for a file of the platform's baseline."""
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in ISAS else None


def flags_of(source: str) -> list[str]:
    """What this file is compiled with beyond BASE_FLAGS."""
    isa = isa_of(source)
    kernel = [*KERNEL_FLAGS, *OPTIMIZE] if Path(source).parent.name == "cpu" else []
    return [*kernel, *(ISAS[isa][1] if isa else [])]


def compiler_problem() -> str:
    """Why nothing compiles here, or "". Asked before setup(): pip reads the requirements before it builds."""
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        return f"Python.h is not in {include}; install Python's headers (Debian: python3-dev)"
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE, encoding="utf-8")
        try:
            objects = compiler.compile(
                [str(source)], output_dir=folder, include_dirs=[include], extra_postargs=["-std=c++17", *BASE_FLAGS]
            )
            compiler.link_shared_object(objects, str(Path(folder, "probe.so")), target_lang="c++")
        except (CCompilerError, BaseError, OSError):
            program = compiler.compiler_so_cxx[0]
            found = "does not build a C++17 program" if shutil.which(program) else "is not on PATH"
            return f"the C++ compiler {program!r} {found}; install g++ or clang, or name another one in CC and CXX"
    return ""


class BuildExt(build_ext):
    """Flags per file, objects reused, a failure recorded instead of raised."""

    def run(self) -> None:
        self.info: dict[str, object] = {"built": False, "reason": "", "compiler": "", "isas": [], "flags": {}}
        if self.editable_mode:  # setuptools would compile in a temporary folder and lose the objects
            self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"
        super().run()
        for folder in [Path(self.build_lib, "cnnkern"), *([Path("cnnkern")] if self.inplace else [])]:
            folder.mkdir(parents=True, exist_ok=True)
            Path(folder, "_build_info.json").write_text(json.dumps(self.info, indent=1) + "\n", encoding="utf-8")
            if not self.info["built"]:  # a module of an earlier build no longer fits the sources
                Path(folder, Path(self.get_ext_filename(MODULE)).name).unlink(missing_ok=True)
        if not self.info["built"]:
            self.extensions = []  # a strict editable install would look for the missing file

    def build_extension(self, ext: Pybind11Extension) -> None:
        try:
            if COMPILER_PROBLEM:
                raise CompileError(COMPILER_PROBLEM)
            self.choose_isas(ext)
            self.compile_by_file()
            self.force = self.compiler.force = True  # link always; what is compiled is decided file by file
            super().build_extension(ext)
        except (CCompilerError, BaseError, OSError) as error:
            if REQUIRE_EXT:
                raise
            self.info["reason"] = str(error)
            self.warn(f"{ext.name} was not built, slower kernels will be used: {error}")
        else:
            program, *inherited = self.compiler.compiler_so_cxx
            flags = {"all": [*inherited, *ext.extra_compile_args], "kernels": [*KERNEL_FLAGS, *OPTIMIZE]}
            flags |= {isa: ISAS[isa][1] for isa in map(isa_of, ext.sources) if isa}
            self.info |= {"built": True, "compiler": compiler_version(program)}
            self.info["flags"] = {name: " ".join(words) for name, words in flags.items()}

    def choose_isas(self, ext: Pybind11Extension) -> None:
        """Leave out the files that this compiler cannot build, and tell isa.cpp which remain."""
        built = [
            isa
            for isa, (machines, flags) in ISAS.items()
            if platform.machine() in machines and all(has_flag(self.compiler, flag) for flag in flags)
        ]
        ext.define_macros += [(f"CNNKERN_HAVE_{isa.upper()}", "1") for isa in built]
        ext.sources = [s for s in ext.sources if isa_of(s) is None or isa_of(s) in built]
        self.info["isas"] = ["scalar", *built]

    def compile_by_file(self) -> None:
        """Give each file its own flags, and skip it if the object of the same command is newer than what it read."""
        compiler = self.compiler
        compile_one, link = compiler._compile, compiler.link_shared_object

        def compile_if_changed(obj, src, ext, cc_args, extra_postargs, pp_opts) -> None:  # type: ignore[no-untyped-def]
            flags = [*extra_postargs, *flags_of(src), "-MMD"]  # writes the names of all files read to obj's .d
            command, record = repr([compiler.compiler_so_cxx, cc_args, flags]), Path(obj).with_suffix(".command")
            if not (record.is_file() and record.read_text() == command and newer_than_sources(Path(obj))):
                record.unlink(missing_ok=True)
                compile_one(obj, src, ext, cc_args, flags, pp_opts)
                record.write_text(command)

        def link_baseline_first(objects, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
            # If a weak symbol leaked out of a flagged object after all, the baseline's copy is taken.
            link(sorted(objects, key=lambda obj: isa_of(obj) is not None), *args, **kwargs)

        compiler._compile, compiler.link_shared_object = compile_if_changed, link_baseline_first


def newer_than_sources(obj: Path) -> bool:
    try:
        rule = obj.with_suffix(".d").read_text().replace("\\\n", " ")
        return all(os.path.getmtime(name) < obj.stat().st_mtime for name in rule.partition(": ")[2].split())
    except OSError:  # something is missing, or has a blank in its name
        return False


def compiler_version(program: str) -> str:
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (answer.stdout.splitlines() or [program])[0]


COMPILER_PROBLEM = compiler_problem()
ParallelCompile("CNNKERN_BUILD_JOBS", default=0, max=8).install()

setup(
    packages=find_packages(".", include=["cnnkern", "cnnkern.*"]) + find_packages("src"),
    package_dir={"": "src", "cnnkern": "cnnkern"},
    include_package_data=False,  # only what is named here
    package_data={
        "": ["py.typed"],
        "cnnkern": ["*.pyi", "_build_info.json"],
        "cnnkern_bench": ["suites/*.txt"],
    },
    ext_modules=[
        Pybind11Extension(
            MODULE,
            sorted(map(str, Path("csrc").rglob("*.cpp"))),
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=BASE_FLAGS,
            extra_link_args=["-pthread"],
            optional=not REQUIRE_EXT,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    install_requires=["numpy>=1.26", "ml_dtypes", "click", "rich", *(["numba"] if COMPILER_PROBLEM else [])],
)
