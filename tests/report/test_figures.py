from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.errors import DataError
from fedseg.labels import FETA, color
from fedseg.report.figures import ERRORS, MAX_BYTES, Panel, Picture, overlay
from tests.report.brains import AFFINE, SHAPE, brain, decode

WHITE = "#FFFFFF"


def places(png: bytes, colour: str) -> NDArray[np.intp]:
    """Rows and columns of the pixels of one colour."""
    wanted = (*bytes.fromhex(colour.removeprefix("#")), 255)
    found: NDArray[np.intp] = np.argwhere((decode(png) == wanted).all(axis=2))
    return found


def middle(panel: Panel, tissue: str) -> tuple[float, float]:
    row, column = places(panel.outlines, color(tissue)).mean(axis=0)
    return float(row), float(column)


def shown(truth: NDArray[np.uint8] | None, predicted: NDArray[np.uint8]) -> Picture:
    return overlay(brain()[0], truth, predicted, AFFINE, FETA.tissues)


def test_right_is_left_front_is_up_and_the_sides_are_named() -> None:
    _, labels = brain()
    axial, coronal, sagittal = shown(None, labels).views[0].panels
    assert [panel.name for panel in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert [panel.sides for panel in (axial, coronal, sagittal)] == [("R", "L"), ("R", "L"), ("A", "P")]
    assert middle(axial, "external_csf")[1] < middle(axial, "white_matter")[1], "the patient's right is on the left"
    assert middle(axial, "cortical_grey_matter")[0] < middle(axial, "white_matter")[0], "anterior is up"
    assert middle(coronal, "ventricles")[0] < middle(coronal, "white_matter")[0], "superior is up"
    assert middle(sagittal, "cortical_grey_matter")[1] < middle(sagittal, "white_matter")[1], "anterior is on the left"


def test_millimetres_are_isotropic_whatever_the_voxels() -> None:
    _, labels = brain()
    axial, coronal, sagittal = shown(None, labels).views[0].panels
    across, along, up = 24 + 2 * 5, 34 + 2 * 5, (20 + 2 * 3) * 1.5
    assert axial.extent_mm == (across, along)
    assert coronal.extent_mm == (across, up)
    assert sagittal.extent_mm == (along, up)
    pixels = decode(coronal.outlines).shape
    assert pixels[1] / pixels[0] == pytest.approx(across / up, rel=0.02), "lines are equally wide in all directions"
    assert decode(coronal.grey).shape == (26, 34), "grey keeps the scan's voxels"


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_the_picture_does_not_depend_on_how_the_scan_is_stored(axes: tuple[int, int, int]) -> None:
    image, truth = brain()
    predicted = truth.copy()
    predicted[10:16, 12:20, 8:14] = 6
    expected = overlay(image, truth, predicted, AFFINE, FETA.tissues)
    for steps in product((1, -1), repeat=3):
        turn = tuple(slice(None, None, step) for step in steps)
        affine = AFFINE.copy()
        affine[:3, :3] = AFFINE[:3, :3][:, axes] * steps
        for axis, step in zip(axes, steps, strict=True):
            affine[:3, 3] += 0 if step > 0 else AFFINE[:3, axis] * (SHAPE[axis] - 1)
        labels = [each.transpose(axes)[turn] for each in (truth, predicted)]
        assert overlay(image.transpose(axes)[turn], labels[0], labels[1], affine, FETA.tissues) == expected


def test_the_reference_is_seen_only_where_the_prediction_leaves_it() -> None:
    _, labels = brain()
    view = shown(labels, labels).views[0]
    assert not any(len(places(panel.outlines, WHITE)) for panel in view.panels)
    assert not any(decode(panel.errors or b"")[..., 3].any() for panel in view.panels)
    moved = np.roll(labels, 2, axis=0)
    axial = shown(labels, moved).views[0].panels[0]
    assert len(places(axial.outlines, WHITE))
    assert len(places(axial.outlines, color("external_csf")))


def test_an_outline_has_the_colour_of_the_inner_tissue() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:32, 8:42, 5:25] = 2
    labels[14:26, 14:36, 8:22] = 3
    axial = shown(None, labels).views[0].panels[0]
    outer, inner = (places(axial.outlines, color(tissue)) for tissue in ("cortical_grey_matter", "white_matter"))
    assert (inner.min(axis=0) > outer.min(axis=0)).all()
    assert (inner.max(axis=0) < outer.max(axis=0)).all()
    assert (decode(axial.outlines)[..., 3] > 0).mean() < 0.1, "lines are thin"


def test_errors_are_told_apart_and_measured() -> None:
    _, truth = brain()
    predicted = truth.copy()
    predicted[8:12, 8:42, 5:25] = 0
    predicted[4:8, 8:42, 5:25] = 5
    predicted[14:16, 8:42, 5:25] = 6
    picture = shown(truth, predicted)
    found = picture.errors_ml or {}
    assert found == pytest.approx(
        {
            "missed": 4 * 34 * 20 * 1.5 / 1000,
            "extra": 4 * 34 * 20 * 1.5 / 1000,
            "other tissue": 2 * 34 * 20 * 1.5 / 1000,
        }
    )
    errors = picture.views[0].panels[0].errors or b""
    extra, missed, other = (places(errors, ERRORS[kind])[:, 1].mean() for kind in ("extra", "missed", "other tissue"))
    assert extra > missed > other, "from the patient's left, on the right of the picture, inwards"


def test_the_second_view_goes_through_the_thickest_error_and_not_the_longest() -> None:
    _, truth = brain()
    predicted = truth.copy()
    predicted[8, 8:42, 5:25] = 0
    predicted[27:32, 10:16, 6:10] = 0
    first, second = shown(truth, predicted).views
    assert (first.name, second.name) == ("Through the middle", "Through the largest error")
    right, anterior, superior = second.place_mm
    assert 27 - 20 <= right <= 31 - 20
    assert 10 - 10 <= anterior <= 15 - 10
    assert 6 * 1.5 + 30 <= superior <= 9 * 1.5 + 30
    axial = second.panels[0]
    assert axial.cross[0] < 0.5 < axial.cross[1], "right and behind are on the left and below"


def test_where_all_is_wrong_the_second_view_is_no_corner() -> None:
    _, truth = brain()
    (_, second) = shown(truth, np.zeros_like(truth)).views
    assert second.place_mm == pytest.approx((19.5 - 20, 24.5 - 10, 14.5 * 1.5 + 30), abs=1.5)


def test_no_error_has_no_view_and_no_reference_no_errors() -> None:
    _, labels = brain()
    assert [view.name for view in shown(labels, labels).views] == ["Through the middle"]
    without = shown(None, labels)
    assert without.errors_ml is None
    assert [panel.errors for panel in without.views[0].panels] == [None] * 3


def test_a_fine_noisy_scan_still_makes_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    shape = (170, 210, 170)
    labels = np.zeros(shape, np.uint8)
    labels[4:-4, 4:-4, 4:-4] = 1 + rng.integers(0, 7, 50, dtype=np.uint8)[np.arange(shape[2] - 8) // 4]
    predicted = ndimage.shift(labels, 3, order=0)
    image = rng.random(shape, dtype=np.float32)
    picture = overlay(image, labels, predicted, np.diag([0.5, 0.5, 0.5, 1]), FETA.tissues)
    assert MAX_BYTES / 2 < picture.size <= MAX_BYTES


def test_labels_of_noise_still_make_a_small_picture() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 8, (2, 90, 90, 90), dtype=np.uint8)
    image = rng.random((90, 90, 90), dtype=np.float32)
    assert overlay(image, truth, predicted, np.eye(4), FETA.tissues).size <= MAX_BYTES


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan])
def test_a_scan_with_nothing_in_it_makes_a_picture_too(value: float) -> None:
    image = np.full((6, 5, 4), value, np.float32)
    empty = np.zeros((6, 5, 4), np.uint8)
    (view,) = overlay(image, empty, empty, np.eye(4), FETA.tissues).views
    assert [decode(panel.grey).shape for panel in view.panels] == [(5, 6), (4, 6), (4, 5)]


def test_shapes_that_differ_are_refused() -> None:
    image, labels = brain()
    wrong: Any = labels[1:]
    with pytest.raises(DataError, match="not volumes of one shape"):
        overlay(image, labels, wrong, AFFINE, FETA.tissues)
