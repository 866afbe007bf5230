"""The examples run with one command and leave a picture that shows something."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
GREEN, RED = (45, 164, 78), (207, 34, 46)  # of lenet_digits.py
EXAMPLE_FILES = ("feature_maps.py", "lenet_digits.py")


def run(
    name: str, folder: Path, *arguments: str | Path, hidden: str | None = None, data: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """An example, started in ``folder`` as a user would.

    hidden: a package that it must not find.
    data: what CNNKERN_DATA names.
    """
    hide = "" if hidden is None else f"sys.modules[{hidden!r}] = None; "
    start = f"import runpy, sys; {hide}del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "CNNKERN_DATA"}
    environment["PYTHONPATH"] = str(EXAMPLES.parent)  # the checkout that is tested
    if data is not None:
        environment["CNNKERN_DATA"] = str(data)
    return subprocess.run(
        [sys.executable, "-c", start, EXAMPLES / name, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def shows_something(part: np.ndarray) -> bool:
    """Not one colour, nor a few lines on a ground."""
    return len(np.unique(part.reshape(-1, 3), axis=0)) > 16 and part.std() > 8


def near(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((abs(image.astype(int) - colour).max(axis=-1) <= 2).sum())


def test_every_example_is_tested():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(EXAMPLE_FILES)


def test_feature_maps_of_the_carried_picture(tmp_path):
    done = run("feature_maps.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\(300, 451, 3\) -> feature maps \(145, 220, 11\)", done.stdout), done.stdout
    image = picture(tmp_path / "out" / "feature_maps.png")
    assert image.shape == (688, 1200, 3)
    panels = [panel for row in np.array_split(image, 3) for panel in np.array_split(row, 4, axis=1)]
    assert [i for i, panel in enumerate(panels) if not shows_something(panel)] == []
    differing = {panel[60:160, 80:280].tobytes() for panel in (np.ascontiguousarray(panel) for panel in panels)}
    assert len(differing) == len(panels), "two filters saw the same"


def write_board(path: Path) -> None:
    """A chess board, 80 x 60 pixels."""
    y, x = np.mgrid[:60, :80]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where((x // 8 + y // 8) % 2, 230, 20).astype(np.uint8)).save(path)


def test_feature_maps_of_a_given_picture(tmp_path):
    write_board(tmp_path / "board.png")
    done = run("feature_maps.py", tmp_path, "board.png", "--out", "board_maps.png")
    assert done.returncode == 0, done.stderr
    assert "board.png (60, 80, 3) -> feature maps (25, 35, 11)" in done.stdout
    assert shows_something(picture(tmp_path / "board_maps.png"))


def test_feature_maps_of_the_data_folder_s_picture(tmp_path):
    write_board(tmp_path / "data" / "pictures" / "china.jpg")
    done = run("feature_maps.py", tmp_path, data=tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "china.jpg (60, 80, 3) -> feature maps (25, 35, 11)" in done.stdout


def test_lenet_digits(tmp_path):
    done = run("lenet_digits.py", tmp_path, "--out", tmp_path / "digits.png")
    assert done.returncode == 0, done.stderr
    assert "right: 200 of the first 200 digits, 0 of 24 others" in done.stdout
    image = picture(tmp_path / "digits.png")
    assert image.shape == (760, 1200, 3)
    # 88 digits in green frames, then 24 in red ones: 8 at the end of the last row but one, and the last row.
    rows = np.array_split(image[60:], 7)
    assert [near(row, GREEN) > 2000 for row in rows] == [True] * 6 + [False]
    assert [near(row, RED) > 2000 for row in rows] == [False] * 5 + [True] * 2
    assert all(shows_something(row) for row in rows)


@pytest.mark.parametrize("name", EXAMPLE_FILES)
def test_a_missing_package_is_named_with_its_extra(name, tmp_path):
    done = run(name, tmp_path, hidden="matplotlib")
    assert done.returncode == 1
    assert re.search(r"needs matplotlib.*: pip install 'cnnkern\[nn\]'", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
