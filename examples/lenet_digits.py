"""Read handwritten digits with a trained LeNet, by cnnkern's ops alone, and draw them: right in green, wrong in red.

    python examples/lenet_digits.py
    python examples/lenet_digits.py --out digits.png

The picture shows the first test digits of MNIST, all of which the network reads, and 24 that it gets wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import cnnkern as ck

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "data"
COLUMNS = 16
RIGHT, WRONG, INK = "#2da44e", "#cf222e", "#1f2328"


def load_weights(path: Path = FIXTURES / "lenet.npz") -> dict[str, np.ndarray]:
    """The trained weights, name -> float32. The file holds their bytes in four planes, which compress better."""
    with np.load(path) as planes:
        return {name: np.stack(list(planes[name]), axis=-1).view("<f4")[..., 0] for name in planes}


def normalise(images: np.ndarray) -> np.ndarray:
    """(N, 28, 28) grey values 0 to 255 -> (N, 1, 28, 28) float32 from -1 to 1, as in training."""
    x = (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    return x[:, np.newaxis]


def logits(weights: dict[str, np.ndarray], x: np.ndarray, layout: str = "NCHW") -> np.ndarray:
    """Scores of the ten digits, (N, 10), for normalised images in ``layout``."""
    conv1, conv2, fc1, fc2 = (weights[f"{name}.weight"] for name in ("conv1", "conv2", "fc1", "fc2"))
    bias = [weights[f"{name}.bias"] for name in ("conv1", "conv2", "fc1", "fc2")]
    x = ck.conv2d(x, conv1, bias[0], activation="relu", layout=layout)  # 28x28 -> 20 maps of 24x24
    x = ck.max_pool2d(x, 2, layout=layout)  # 12x12
    x = ck.conv2d(x, conv2, bias[1], activation="relu", layout=layout)  # 50 maps of 8x8
    x = ck.max_pool2d(x, 2, layout=layout)  # 4x4
    # A dense layer is a convolution whose kernel covers the whole map; its 800 columns are 50 channels of 4x4.
    x = ck.conv2d(x, fc1.reshape(500, 50, 4, 4), bias[2], activation="relu", layout=layout)
    x = ck.conv2d(x, fc2.reshape(10, 500, 1, 1), bias[3], layout=layout)
    return x.reshape(len(x), 10)


def draw(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, title: str, path: Path) -> None:
    """Write a grid of digits, each framed and captioned with what was read (and, if wrong, what it is)."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError:
        sys.exit("the picture needs matplotlib: pip install 'cnnkern[nn]'")
    rows = -(-len(images) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * 0.75, rows + 0.6), dpi=100)
    axes = figure.add_axes((0, 0, 1, rows / (rows + 0.6)))
    for i, (image, label, digit) in enumerate(zip(images, labels, predicted)):
        x, y, colour = i % COLUMNS, i // COLUMNS, RIGHT if digit == label else WRONG
        axes.imshow(image, cmap="gray_r", extent=(x + 0.08, x + 0.92, y + 0.68, y + 0.05), interpolation="nearest")
        axes.add_patch(Rectangle((x + 0.08, y + 0.05), 0.84, 0.63, fill=False, edgecolor=colour, linewidth=2))
        caption = f"{digit}" if digit == label else f"{digit}, is {label}"
        axes.text(x + 0.5, y + 0.81, caption, color=colour, ha="center", va="center", fontsize=11, weight="bold")
    axes.set(xlim=(0, COLUMNS), ylim=(rows, 0), aspect="auto")
    axes.axis("off")
    figure.text(0.5, 1 - 0.3 / (rows + 0.6), title, ha="center", va="center", fontsize=13, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/lenet_digits.png"), help="the picture to write")
    out: Path = parser.parse_args(arguments).out
    with np.load(FIXTURES / "digits.npz") as digits:
        images = np.concatenate([digits["images"], digits["misread_images"]])
        labels = np.concatenate([digits["labels"], digits["misread_labels"]])
        recorded, misread = len(digits["images"]), len(digits["misread_images"])
    predicted = logits(load_weights(), normalise(images)).argmax(axis=1)
    right = predicted == labels
    first, others = right[:recorded].sum(), right[recorded:].sum()
    print(f"right: {first} of the first {recorded} digits, {others} of {misread} others")
    shown = [*range(7 * COLUMNS - misread), *range(recorded, recorded + misread)]
    title = f"LeNet by cnnkern: the first digits of MNIST's test set, and {misread} that it gets wrong"
    draw(images[shown], labels[shown], predicted[shown], title, out)
    print(f"drawn in {out}")


if __name__ == "__main__":
    main()
