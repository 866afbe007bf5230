"""Write tests/data/lenet.npz and tests/data/digits.npz from a folder with MNIST and a trained LeNet.

    python tools/make_lenet_fixture.py DATA

DATA holds ``mnist/t10k-{images-idx3,labels-idx1}-ubyte.gz`` and ``weights/lenet_seed/`` with
``lenet_seed_mnist.safetensors``, ``test_logits_first200.safetensors`` (what PyTorch computed) and ``expected.json``.
The same input gives the same bytes. Needs safetensors: pip install 'cnnkern[nn]'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from mnist import read_test_split  # noqa: E402

FIXTURES = ROOT / "tests" / "data"
RECORDED = 200  # the first test images, those with logits
MISREAD = 24  # of the images that the network gets wrong, for the picture that examples/lenet_digits.py draws


def byte_planes(weight: np.ndarray) -> np.ndarray:
    """(...) float32 -> (4, ...) uint8, low bytes first: exponents side by side compress (1.47 instead of 1.60 MB)."""
    octets = np.ascontiguousarray(weight, "<f4").view(np.uint8).reshape(*weight.shape, 4)
    return np.ascontiguousarray(np.moveaxis(octets, -1, 0))


def main(data: Path) -> None:
    network = data / "weights" / "lenet_seed"
    images, labels = read_test_split(data)
    logits = load_file(network / "test_logits_first200.safetensors")["logits"]
    weights = load_file(network / "lenet_seed_mnist.safetensors")
    misread = json.loads((network / "expected.json").read_text())["wrong_indices"][:MISREAD]
    assert logits.shape == (RECORDED, 10), logits.shape
    FIXTURES.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES / "lenet.npz", **{name: byte_planes(weight) for name, weight in weights.items()})
    np.savez_compressed(
        FIXTURES / "digits.npz",
        images=images[:RECORDED],
        labels=labels[:RECORDED],
        logits=logits,
        misread_images=images[misread],
        misread_labels=labels[misread],
    )
    for path in sorted(FIXTURES.glob("*.npz")):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
