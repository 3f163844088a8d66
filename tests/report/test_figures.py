from __future__ import annotations

from io import BytesIO
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.image import imread
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.labels import FETA, color
from fedseg.report.figures import MAX_BYTES, overlay_png
from fedseg.report.png import encode_rgb

SHAPE = (40, 50, 30)
AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])


def _decode(png: bytes) -> NDArray[np.uint8]:
    decoded: NDArray[np.uint8] = np.round(imread(BytesIO(png), format="png")[..., :3] * 255).astype(np.uint8)
    return decoded


def _brain() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A box with a tissue on the right, another at the front, a third on top."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:32, 8:42, 5:25] = 3
    labels[26:32, 8:42, 5:25] = 1
    labels[8:26, 34:42, 5:25] = 2
    labels[8:26, 8:34, 20:25] = 4
    return (labels > 0).astype(np.float32) * 100 + np.arange(SHAPE[1], dtype=np.float32)[None, :, None], labels


def _places(picture: NDArray[np.uint8], tissue: str) -> tuple[float, float]:
    """Middle row and column of a tissue's colour in a row of panels."""
    wanted = np.array([int(color(tissue)[at : at + 2], 16) for at in (1, 3, 5)], dtype=float)
    pixels = picture.astype(float)
    pixels = pixels - pixels.min(axis=2, keepdims=True)
    wanted = wanted - wanted.min()
    scaled = pixels / np.maximum(pixels.max(axis=2, keepdims=True), 1)
    close = (np.abs(scaled - wanted / wanted.max()).max(axis=2) < 0.12) & (pixels.max(axis=2) > 30)
    rows, columns = np.nonzero(close)
    return float(rows.mean()), float(columns.mean())


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3))))
def test_png_as_others_read_it(picture: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(_decode(encode_rgb(picture)), picture)


def test_right_is_left_and_front_is_up() -> None:
    image, labels = _brain()
    picture = _decode(overlay_png(image, None, labels, AFFINE, FETA.tissues))
    height, width = picture.shape[:2]
    axial = picture[height // 2 :, : width // 3]
    right, front = _places(axial, "external_csf"), _places(axial, "cortical_grey_matter")
    middle = _places(axial, "white_matter")
    assert right[1] < middle[1], "the patient's right is on the left"
    assert front[0] < middle[0], "anterior is up"
    coronal = picture[height // 2 :, width // 3 : 2 * width // 3]
    assert _places(coronal, "ventricles")[0] < _places(coronal, "white_matter")[0], "superior is up"


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_the_picture_does_not_depend_on_how_the_scan_is_stored(axes: tuple[int, int, int]) -> None:
    image, labels = _brain()
    expected = overlay_png(image, labels, labels, AFFINE, FETA.tissues)
    for steps in product((1, -1), repeat=3):
        flip = tuple(slice(None, None, step) for step in steps)
        affine = np.eye(4)
        affine[:3, :3] = AFFINE[:3, :3][:, axes] * steps
        stored = image.transpose(axes)[flip], labels.transpose(axes)[flip]
        assert overlay_png(stored[0], stored[1], stored[1], affine, FETA.tissues) == expected


def test_truth_makes_a_row_of_its_own() -> None:
    image, labels = _brain()
    with_truth = _decode(overlay_png(image, labels, np.zeros_like(labels), AFFINE, FETA.tissues))
    without = _decode(overlay_png(image, None, labels, AFFINE, FETA.tissues))
    third = with_truth.shape[0] // 3
    grey, truth, prediction = (with_truth[third * row : third * (row + 1)].astype(int) for row in range(3))
    assert with_truth.shape[0] / without.shape[0] == pytest.approx(3 / 2, abs=0.02)
    assert (grey.max(axis=2) == grey.min(axis=2)).all()
    assert (prediction.max(axis=2) == prediction.min(axis=2)).all(), "an empty prediction has no colour"
    assert (truth.max(axis=2) - truth.min(axis=2)).max() > 80


def test_a_noisy_scan_still_makes_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 8, (90, 90, 90), dtype=np.uint8)
    image = rng.random((90, 90, 90), dtype=np.float32)
    assert len(overlay_png(image, labels, labels, np.eye(4), FETA.tissues)) < MAX_BYTES


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_scan_with_nothing_in_it_makes_a_picture_too(value: float) -> None:
    image = np.full((6, 5, 4), value, np.float32)
    empty = np.zeros((6, 5, 4), np.uint8)
    assert _decode(overlay_png(image, empty, empty, np.eye(4), FETA.tissues)).size


def test_shapes_that_differ_are_refused() -> None:
    image, labels = _brain()
    wrong: Any = labels[1:]
    with pytest.raises(DataError, match="not volumes of one shape"):
        overlay_png(image, labels, wrong, AFFINE, FETA.tissues)
