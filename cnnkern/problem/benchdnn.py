"""Reads the problem lines of oneDNN's benchdnn, whose grammar ours grew from."""

from __future__ import annotations

from ..errors import ArgumentError
from . import Problem, parse
from .sizes import AXES, DEFAULT_BATCH, read_sizes

_DIRECTIONS = {  # --dir: what follows the op's name, and whether there is a bias
    "FWD_D": ("", False),
    "FWD_I": ("", False),
    "FWD_B": ("", True),
    "BWD_D": ("grad_input", False),
    "BWD_W": ("grad_weight", False),
    "BWD_WB": ("grad_weight", False),
}
_CHANNELS_LAST = ("axb", "nhwc", "nwc", "ndhwc")
_DTYPES = {"s8": "i8", "s32": "i32"}


def from_benchdnn(line: str) -> Problem:
    """Read a line of benchdnn: ``--conv --dir=BWD_W --dt=f32 mb1ic16ih10oc16kh3ph1n"name"``.

    Read are the drivers ``--conv`` (default where ``oc`` is given) and ``--pool``, and ``--dir``, ``--alg``, ``--dt``
    or ``--cfg``, ``--stag`` or ``--tag``, ``--mb``; other flags say how to run and are passed over. Where the output
    size is stated and the padding is not, half of the padding needed goes before, as in benchdnn.

    Args:
        line: flags, then one problem.

    Raises:
        ArgumentError, ShapeError: as ``parse``; also for another driver, or a problem that needs negative padding.
    """
    *flags, descriptor = line.split() or [""]
    given = dict(flag.lstrip("-").partition("=")[::2] for flag in flags)
    for driver in ("deconv", "rnn", "ip", "matmul"):
        if driver in given:
            raise ArgumentError(f"benchdnn {line!r}: driver {driver} is not read. Only conv and pool are.")
    sizes_text, _, name = descriptor.partition("n")
    sizes = read_sizes(sizes_text, line, last_wins=True)
    if given.get("mb", "0") != "0":
        sizes["mb"] = int(given["mb"])
    sizes.setdefault("mb", DEFAULT_BATCH)
    rank = _spread(sizes)
    if rank == 0:
        raise ArgumentError(f"benchdnn {line!r} gives no sizes such as mb1ic16ih10oc16kh3ph1.")
    _pad(sizes, AXES[rank])

    pool = "pool" in given or "oc" not in sizes
    direction = given.get("dir", "FWD_D" if pool else "FWD_B")
    if direction not in _DIRECTIONS:
        raise ArgumentError(f"benchdnn {line!r}: dir must be one of {', '.join(_DIRECTIONS)}, got {direction!r}.")
    part, bias = _DIRECTIONS[direction]
    attributes = []
    dtype = given.get("dt", given.get("cfg", "f32"))
    if dtype != "f32":
        attributes.append(f"@dt={_DTYPES.get(dtype, dtype)}")
    if given.get("stag", given.get("tag", "abx")) in _CHANNELS_LAST:
        attributes.append("@layout=NHWC")
    if pool:
        algorithm = given.get("alg", "max").lower()
        average = "avg" in algorithm
        op = f"{'avg' if average else 'max'}_pool{rank}d{'_grad' if part else ''}"
        if average and not algorithm.endswith(("avg_p", "include_padding")):
            attributes.append("@pad=exclude")
    else:
        op = f"conv{rank}d_{part}".rstrip("_")
        attributes += ["@bias=1"] if bias else []
    body = "".join(f"{key}{value}" for key, value in sizes.items())
    title = name.strip('"')
    quoted = f'n"{title}"' if title else ""
    return parse(f"{op}:{body}{quoted}{''.join(attributes)}")


def _spread(sizes: dict[str, int]) -> int:
    """Give axes that are not mentioned the values of the first mentioned one; return the rank.

    benchdnn does so for whole axes, we for each letter: its ``iw8sh2`` has stride 1 along w.
    """
    unset = {"i": 0, "o": 0, "k": 0, "s": 1, "d": 0, "p": 0}
    for axis in "dhw":
        if all(sizes.get(letter + axis, value) == value for letter, value in unset.items()):
            for letter in unset:
                sizes.pop(letter + axis, None)
    mentioned = [axis for axis in "dhw" if f"i{axis}" in sizes]
    if not mentioned:
        return 0
    rank = {"d": 3, "h": 2, "w": 1}[mentioned[0]]
    for axis in AXES[rank]:
        if axis not in mentioned:
            for letter in unset:
                if letter + mentioned[0] in sizes:
                    sizes[letter + axis] = sizes[letter + mentioned[0]]
        sizes.setdefault(f"s{axis}", 1)
        sizes.setdefault(f"d{axis}", 0)
    return rank


def _pad(sizes: dict[str, int], axes: str) -> None:
    """Padding before, where it is not stated: half of what the stated output size needs, else 0."""
    for axis in axes:
        needed = 0
        if sizes.get(f"o{axis}"):
            span = (sizes.get(f"k{axis}", 1) - 1) * (sizes[f"d{axis}"] + 1) + 1
            needed = (sizes[f"o{axis}"] - 1) * sizes[f"s{axis}"] + span - sizes[f"i{axis}"]
        sizes.setdefault(f"p{axis}", max(0, needed) // 2)
