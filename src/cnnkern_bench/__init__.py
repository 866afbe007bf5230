"""Checks kernels, times them, and says what the times mean. Built on cnnkern's public names only.

``cases`` says what is measured, ``runner`` measures, ``results`` holds what was found, ``report``, ``compare`` and
``jsonout`` tell it. The command line is ``cnnkern bench``.
"""

from .cases import Case, UsageError, expand, load_file, load_suite, pattern, select, suite_names
from .measure import Effort
from .results import RunResult
from .runner import Options, resolve_peers, run, usual_peers, validate

__all__ = [
    "Case",
    "Effort",
    "Options",
    "RunResult",
    "UsageError",
    "expand",
    "load_file",
    "load_suite",
    "pattern",
    "resolve_peers",
    "run",
    "select",
    "suite_names",
    "usual_peers",
    "validate",
]
