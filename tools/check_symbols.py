"""Fail if an object compiled for one instruction set defines anything but its table: check_symbols.py FOLDER

A weak symbol (an inline function, a template of the standard library) that was compiled with wide instructions could
be the copy that the linker keeps for baseline code, which then dies on an older CPU. So the objects of
``target_<isa>.cpp`` export ``ck_table_<isa>`` and nothing else, and hold no weak symbol at all.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def leaks(obj: Path) -> list[str]:
    """The symbols of this object that another object could be linked to, but for its table."""
    listing = subprocess.run(["nm", "--defined-only", "-C", obj], check=True, capture_output=True, text=True).stdout
    table = obj.stem.replace("target_", "ck_table_")
    found = []
    for line in listing.splitlines():
        _, kind, name = line.split(maxsplit=2)
        visible = kind.isupper() or kind in "uvw"  # unique and weak ones, in lower case too
        if visible and name != table:
            found.append(f"{obj}: {kind} {name}")
    return found


def main(folder: str) -> int:
    objects = sorted(Path(folder).rglob("target_*.o"))
    if not objects:
        print(f"no target_*.o under {folder}: build first", file=sys.stderr)
        return 2
    found = [leak for obj in objects for leak in leaks(obj)]
    print("\n".join(found) or f"only their tables are exported by {', '.join(obj.stem for obj in objects)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
