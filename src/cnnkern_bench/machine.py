"""What machine and what software a result comes from, and what about them spoils timing."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import cnnkern as ck

from .config import thread_variables

# The instruction sets that kernels are chosen by
_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_bf16"),
    *("avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "sve"),
)
_PACKAGES = ("numpy", "ml_dtypes", "torch", "onnxruntime", "openvino", "jax", "jaxlib")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def available_cpus() -> list[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pick_cpus(count: int) -> list[int]:
    """``count`` CPUs for the measuring processes, on distinct physical cores where there are enough; else all."""
    cpus = available_cpus()
    if count >= len(cpus):
        return cpus
    first_of_core: dict[str, int] = {}
    for cpu in cpus:
        siblings = _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)
        first_of_core.setdefault(siblings, cpu)
    chosen = list(first_of_core.values())
    return sorted((chosen + [cpu for cpu in cpus if cpu not in chosen])[:count])


def cpu_facts() -> dict[str, Any]:
    """Vendor, family, model, stepping, instruction sets, caches, cores: what decides how fast a kernel runs."""
    info: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if not key.strip():
            break
        info[key.strip()] = value.strip()
    flags = set(info.get("flags", info.get("Features", "")).split())
    topology = {_read(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")}
    return {
        "vendor": info.get("vendor_id", info.get("CPU implementer", platform.machine())),
        "family": info.get("cpu family", ""),
        "model": info.get("model", info.get("CPU part", "")),
        "stepping": info.get("stepping", info.get("CPU revision", "")),
        "name": info.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "caches": _caches(),
        "cpus": os.cpu_count() or 1,
        "cores": len(topology - {""}) or (os.cpu_count() or 1),
        "hypervisor": "hypervisor" in flags,
    }


def _caches() -> dict[str, str]:
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(folder / "type"), "")
        caches[f"L{_read(folder / 'level')}{kind}"] = _read(folder / "size")
    return caches


def hardware_id() -> str:
    """Twelve hex digits that are equal for machines whose times may be compared."""
    facts = {key: value for key, value in cpu_facts().items() if key != "name"}  # brand strings say little
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fingerprint() -> dict[str, Any]:
    """Everything that a result is stored with: hardware, software, environment."""
    return {
        "hw_id": hardware_id(),
        "cpu": cpu_facts(),
        "software": {
            "python": sys.version.split()[0],
            "system": f"{platform.system()} {platform.release()}",
            "libc": " ".join(platform.libc_ver()),
            "cnnkern": ck.__version__,
            "build": ck.build_info(),
            **{package: version for package in _PACKAGES if (version := _version(package))},
        },
        "environment": {
            "host": hashlib.sha256(platform.node().encode()).hexdigest()[:12],
            "affinity": available_cpus(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
            "load": list(os.getloadavg()),
            "variables": thread_variables(),
            "numpy_simd": _numpy_simd(),
        },
    }


def _numpy_simd() -> list[str]:
    return list(np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", []))


def spoilers() -> list[str]:
    """What about this machine, now, makes times unsteady or incomparable: one sentence each."""
    found = []
    cpus, facts = available_cpus(), cpu_facts()
    load = os.getloadavg()[0]
    if load > 0.5:
        found.append(f"load average {load:.2f}: other processes are running; stop them or expect rows to be repeated")
    if facts["hypervisor"]:
        found.append("virtual machine: neighbours share caches and memory bandwidth, and may take CPU time")
    governor = _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        found.append(f"frequency governor {governor}: clocks change; set it to performance")
    folder = Path("/sys/devices/system/cpu")
    if _read(folder / "intel_pstate/no_turbo") == "0" or _read(folder / "cpufreq/boost") == "1":
        found.append("turbo is on: clocks depend on temperature and on how many cores work")
    if facts["cores"] < facts["cpus"]:
        found.append(f"simultaneous multithreading: {facts['cpus']} CPUs are {facts['cores']} cores")
    if len(cpus) < facts["cpus"]:
        found.append(f"this process may use {len(cpus)} of {facts['cpus']} CPUs")
    threads = ck.get_num_threads()
    if threads > len(cpus):
        found.append(f"{threads} threads on {len(cpus)} CPUs: they take turns")
    for name, value in thread_variables().items():
        found.append(f"{name}={value} is set: it changes threads or kernels")
    return found


def missing_kernels() -> list[str]:
    """What of the native kernels this machine or this build lacks, a sentence each."""
    info = ck.build_info()
    if not info["loads"]:
        return [info["load_error"]]
    lacking = [isa for isa in info.get("isas", ()) if isa not in info["available"]]
    return [f"{isa}: compiled, but this CPU does not have it" for isa in lacking]
