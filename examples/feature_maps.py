"""Run filters set by hand over a photograph, as the first layer of a network does, and draw what each of them sees.

    python examples/feature_maps.py                     a cat; with CNNKERN_DATA set, a temple from its pictures
    python examples/feature_maps.py PICTURE --out maps.png

Eleven filters are one convolution: weights (11, 3, 11, 11), fused with relu, then max pooling.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

import cnnkern as ck

SIZE = 11  # of every filter, smaller ones padded with zeros
LUMA = np.array([0.299, 0.587, 0.114])  # how bright red, green and blue look (ITU-R BT.601)
COLUMNS, ROWS = 4, 3


def centred(kernel: np.ndarray) -> np.ndarray:
    """A small odd kernel in the middle of SIZE x SIZE zeros."""
    return np.pad(kernel, (SIZE - len(kernel)) // 2)


def gaussian(sigma: float) -> np.ndarray:
    r = np.arange(SIZE) - SIZE // 2
    bell = np.exp(-(r**2) / (2 * sigma**2))
    kernel = np.outer(bell, bell)
    return kernel / kernel.sum()


def bar(degrees: float, wavelength: float = 6.0, sigma: float = 2.4) -> np.ndarray:
    """A Gabor filter, a wave under a bell: answers to bright bars in this direction (90: upright). Its sum is 0."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    across = x * np.sin(np.radians(degrees)) + y * np.cos(np.radians(degrees))
    bell = gaussian(sigma)
    wave = np.cos(2 * np.pi * across / wavelength)
    kernel = bell * (wave - (bell * wave).sum())
    return kernel / np.abs(kernel).sum()


def filters() -> dict[str, np.ndarray]:
    """Name -> (SIZE, SIZE)."""
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    impulse = centred(np.ones((1, 1)))
    return {
        "blur": gaussian(2.5),
        "sharpen": 3 * impulse - 2 * gaussian(1.5),
        "dark to bright, left to right": centred(sobel),
        "dark to bright, top to bottom": centred(sobel.T),
        "bright spots": gaussian(1.2) - gaussian(2.4),
        **{f"bright bars at {degrees}°": bar(degrees) for degrees in range(0, 180, 30)},
    }


def feature_maps(picture: np.ndarray, kernels: list[np.ndarray]) -> np.ndarray:
    """(H, W, 3) uint8 -> ((H - 10) // 2, (W - 10) // 2, number of kernels) float32: convolution, relu, max pooling."""
    x = picture.astype(np.float32) / 255
    weight = np.array([[kernel * colour for colour in LUMA] for kernel in kernels], np.float32)
    x = ck.conv2d(x, weight, activation="relu", layout="NHWC")  # no padding: its zeros would look like a dark frame
    return ck.max_pool2d(x, 2, layout="NHWC")


def draw(picture: np.ndarray, maps: np.ndarray, named: dict[str, np.ndarray], path: Path) -> None:
    """Write the photograph and, beside it, each feature map with its filter in the corner."""
    from matplotlib.figure import Figure

    height = 3.0 * picture.shape[0] / picture.shape[1]
    figure = Figure(figsize=(COLUMNS * 3.0, ROWS * (height + 0.3)), dpi=100, layout="constrained")
    panels = figure.subplots(ROWS, COLUMNS).ravel()
    panels[0].imshow(picture)
    panels[0].set_title("photograph", fontsize=10, weight="bold")
    for panel, (name, kernel), answer in zip(panels[1:], named.items(), np.moveaxis(maps, -1, 0)):
        panel.imshow(answer, cmap="gray", vmin=0, vmax=np.quantile(answer, 0.99))
        panel.set_title(name, fontsize=10)
        inset = panel.inset_axes((0.0, 0.0, 0.22, 0.22 * picture.shape[1] / picture.shape[0]))
        shown = np.sign(kernel) * np.sqrt(np.abs(kernel))  # so that small weights can be seen beside a large one
        reach = np.abs(shown).max()
        inset.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach)  # red: positive weights, blue: negative
        inset.set(xticks=[], yticks=[])
    for panel in panels:
        panel.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def usual_picture() -> Path:
    data = os.environ.get("CNNKERN_DATA")
    return Path(data, "pictures", "china.jpg") if data else Path(__file__).resolve().parent / "data" / "cat.jpg"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, nargs="?", default=usual_picture(), help="any photograph")
    parser.add_argument("--out", type=Path, default=Path("out/feature_maps.png"), help="the picture to write")
    given = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
        from PIL import Image
    except ImportError:
        sys.exit("this example needs matplotlib and Pillow: pip install 'cnnkern[nn]'")
    with Image.open(given.picture) as image:
        picture = np.asarray(image.convert("RGB"))
    named = filters()
    maps = feature_maps(picture, list(named.values()))
    draw(picture, maps, named, given.out)
    print(f"{given.picture.name} {picture.shape} -> feature maps {maps.shape}, drawn in {given.out}")


if __name__ == "__main__":
    main()
