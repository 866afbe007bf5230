"""Write the support table of README.md from the table of kernels; with ``--check`` compare, and fail if it is stale.

Needs the compiled module, but neither a certain CPU nor a certain compiler: every C++ row exists in each instruction
set that a build has, so the table leaves those out. Rows of avx512vnni are among those of the others; AMX has rows of
its own, which a build may lack, and README.md names them beside the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cnnkern
from cnnkern.spec import OPS, Kernel

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN = "<!-- support table: written by tools/make_support_table.py -->\n"
END = "<!-- end of support table -->\n"
HEAD = ("ops", "spatial axes", "C++ kernels", "C++ dtypes", "reference dtypes")
GROUPS = {  # how dtypes are written where all of a group are there
    "all floats": ("f32", "f64", "f16", "bf16"),
    "all integers": ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"),
    "bool": ("bool",),
}


def described(rows: list[Kernel]) -> str:
    """The dtypes that these rows serve."""
    served = {dtype for row in rows for dtype in row.dtypes}
    words: list[str] = []
    for name, group in GROUPS.items():
        words += [name] if served >= set(group) else [dtype for dtype in group if dtype in served]
    return ", ".join(words) or "–"


def native_rows(op: str | None = None) -> list[Kernel]:
    return [row for row in cnnkern.kernels(op, "cpp") if row.isa not in ("avx512vnni", "amx")]


def cells(op: str) -> tuple[str, ...]:
    native, reference = native_rows(op), cnnkern.kernels(op, "reference")
    ranks = sorted({rank for row in (*native, *reference) for rank in row.ranks})
    algorithms = dict.fromkeys(row.algorithm for row in native)
    return f"{ranks[0]} to {ranks[-1]}", ", ".join(algorithms) or "–", described(native), described(reference)


def table() -> str:
    """Ops that have the same cells share a line."""
    for isa in {row.isa for row in native_rows()}:
        rows = {(row.op, row.algorithm) for row in native_rows() if row.isa == isa}
        assert rows == {(row.op, row.algorithm) for row in native_rows()}, f"{isa} lacks rows"
    lines: dict[tuple[str, ...], list[str]] = {}
    for op in OPS:
        lines.setdefault(cells(op), []).append(f"`{op}`")
    body = [(", ".join(ops), *line) for line, ops in lines.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in (HEAD, ("---",) * len(HEAD), *body))


def with_table(readme: str, table: str) -> str:
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"README.md needs the line {BEGIN!r} and after it the line {END!r}")
    return head + begin + "\n" + table + "\n" + end + tail


def main(check: bool) -> int:
    if not cnnkern.kernels(backend="cpp"):
        sys.exit(f"the table lists the compiled module's rows, and {cnnkern.build_info()['load_error']}")
    old = README.read_text(encoding="utf-8")
    new = with_table(old, table())
    if check:
        print("the support table is up to date" if old == new else "README.md is stale: tools/make_support_table.py")
        return int(old != new)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
