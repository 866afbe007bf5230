"""The ``cnnkern`` command: arguments and printing only; what it does is in cnnkern and cnnkern_bench."""

from __future__ import annotations

import click

from .bench import bench
from .calibrate import calibrate
from .doctor import doctor
from .explain import explain
from .listing import list_

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="cnnkern")
def main() -> None:
    """Kernels for convolutional networks: measure them, see which one is chosen and why, see what this machine offers.

    Exit codes: 0 done, 2 wrong usage, 4 a kernel computed something wrong or crashed, 5 nothing was measured, 130
    interrupted.
    """


for command in (bench, list_, explain, calibrate, doctor):
    main.add_command(command)
