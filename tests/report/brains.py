"""Small brains for the tests of pictures."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from matplotlib.image import imread
from numpy.typing import NDArray

SHAPE = (40, 50, 30)
AFFINE = np.array([[1.0, 0, 0, -20], [0, 1.0, 0, -10], [0, 0, 1.5, 30], [0, 0, 0, 1]])


def brain() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A box of white matter with one tissue on the right, another at the front, a third on top."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:32, 8:42, 5:25] = 3
    labels[26:32, 8:42, 5:25] = 1
    labels[8:26, 34:42, 5:25] = 2
    labels[8:26, 8:34, 20:25] = 4
    return (labels > 0).astype(np.float32) * 100 + np.arange(SHAPE[1], dtype=np.float32)[None, :, None], labels


def decode(png: bytes) -> NDArray[np.uint8]:
    """Pixels as another reader sees them: (rows, columns) grey, or (rows, columns, 3 or 4)."""
    decoded: NDArray[np.uint8] = np.round(imread(BytesIO(png), format="png") * 255).astype(np.uint8)
    return decoded
