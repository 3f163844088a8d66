from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fedseg.errors import DataError
from fedseg.imaging.label_tables import TABLES, class_map
from fedseg.imaging.nifti import Volume
from fedseg.imaging.transforms import CODE_VERSION, map_labels, prepare, restore, restore_labels
from fedseg.labels import BRAIN_MASK, FETA
from tests.conftest import tiny_head

FIDON = class_map(TABLES["fidon"], FETA, "fidon")
ORDERS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def volume(data: Any, spacing: tuple[float, float, float] = (0.8, 0.8, 0.8), source: str = "scan.nii") -> Volume:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-7, 5, 3)
    return Volume(data, affine, spacing, source, data.shape, 1, 1, str(data.dtype))


def turned(scan: Volume, axes: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same scan in space, stored in another axis order: axis n of the result is axis axes[n], perhaps backwards."""
    data, affine = scan.data, scan.affine.copy()
    for axis in range(3):
        if flips[axis]:
            data = np.flip(data, axis)
            affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
            affine[:3, axis] *= -1
    affine[:, :3] = affine[:, list(axes)]
    first, second, third = (scan.spacing_mm[axis] for axis in axes)
    return replace(scan, data=data.transpose(axes), affine=affine, spacing_mm=(first, second, third))


def dice(first: Any, second: Any) -> float:
    scores = [
        2 * ((first == c) & (second == c)).sum() / ((first == c).sum() + (second == c).sum()) for c in range(1, 8)
    ]
    return float(np.mean(scores))


@pytest.fixture(scope="module")
def head() -> tuple[Volume, Volume]:
    image, labels = tiny_head((22, 26, 20))
    spacing = (0.8, 0.7, 0.9)
    return volume(image, spacing), volume(labels.astype(np.int32), spacing, "labels.nii")


def test_all_48_axis_orders_give_one_result_and_come_back(head: tuple[Volume, Volume]) -> None:
    image, labels = head
    expected = prepare(image, labels, FIDON, spacing_mm=1.1, scheme=FETA)
    assert expected.labels is not None
    home = restore_labels(expected.labels, expected.geometry, FETA.classes)
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(8, *expected.image.shape)).astype(np.float32)
    noise_home = restore(noise, expected.geometry)
    assert len(set(ORDERS)) == 48
    codes = set()
    for axes, flips in ORDERS:
        one, two = turned(image, axes, flips), turned(labels, axes, flips)
        codes.add(one.axes)
        got = prepare(one, two, FIDON, spacing_mm=1.1, scheme=FETA)
        assert np.array_equal(got.image, expected.image)
        assert got.labels is not None
        assert np.array_equal(got.labels, expected.labels)
        back = restore_labels(got.labels, got.geometry, FETA.classes)
        assert back.shape == one.data.shape
        assert np.array_equal(back, turned(replace(image, data=home), axes, flips).data)
        noise_back = restore(noise, got.geometry)
        assert np.array_equal(noise_back, turned(replace(image, data=noise_home), axes, flips).data)
    assert len(codes) == 48


def test_at_its_own_spacing_labels_come_back_exactly(head: tuple[Volume, Volume]) -> None:
    data = head[1].data
    image, labels = volume(head[0].data), volume(data, source="labels.nii")
    done = prepare(image, labels, FIDON, spacing_mm=0.8, scheme=FETA)
    assert done.labels is not None
    assert np.array_equal(restore_labels(done.labels, done.geometry, 8), map_labels(labels, FIDON))


@pytest.mark.parametrize("spacing_mm", [0.5, 1.0, 1.3])
def test_round_trip_of_smooth_scores_is_close(head: tuple[Volume, Volume], spacing_mm: float) -> None:
    done = prepare(*head, FIDON, spacing_mm=spacing_mm, scheme=FETA)
    assert done.labels is not None
    back = restore_labels(done.labels, done.geometry, 8)
    assert dice(back, map_labels(head[1], FIDON)) > {0.5: 0.97, 1.0: 0.8, 1.3: 0.75}[spacing_mm]


def test_image_is_normalised_float32_with_background_lowest(head: tuple[Volume, Volume]) -> None:
    done = prepare(volume(head[0].data), volume(head[1].data), FIDON, spacing_mm=0.8, scheme=FETA)
    assert done.image.dtype == np.float32
    assert done.labels is not None
    assert done.labels.dtype == np.uint8
    assert done.image.shape == done.labels.shape == done.geometry.crop_shape
    inside = done.image[done.labels > 0]
    assert inside.mean() == pytest.approx(0, abs=0.01)
    assert inside.std() == pytest.approx(1, abs=0.01)
    assert done.image[done.labels == 0].min() == done.image.min() < inside.min() + 1e-6


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("background", [0.0, 1e-8])
def test_scale_and_tiny_background_change_nothing(head: tuple[Volume, Volume], scale: float, background: float) -> None:
    image = head[0]
    grey = np.where(
        image.data == 0, np.float32(background), np.asarray(image.data, np.float32) * np.float32(scale)
    ).astype(np.float32)
    expected = prepare(image, None, None, spacing_mm=1.2, scheme=FETA)
    got = prepare(replace(image, data=grey), None, None, spacing_mm=1.2, scheme=FETA)
    assert got.geometry == expected.geometry
    assert np.allclose(got.image, expected.image, atol=1e-3)


def test_crop_ignores_noise_around_the_head() -> None:
    small, labels = tiny_head((20, 20, 20))
    rng = np.random.default_rng(0)
    shape = (60, 50, 40)
    image = np.abs(rng.normal(0, 15, shape)).astype(np.float32)
    wide = np.zeros(shape, np.int32)
    image[30:50, 5:25, 10:30] += small
    wide[30:50, 5:25, 10:30] = labels
    done = prepare(volume(image), volume(wide, source="l"), FIDON, spacing_mm=0.8, scheme=FETA)
    assert done.labels is not None
    assert max(done.image.shape) < 20 + 2 * 9
    assert np.array_equal(restore_labels(done.labels, done.geometry, 8), map_labels(volume(wide), FIDON))


def test_outside_the_crop_is_background_and_memory_of_classes_is_not_needed() -> None:
    small, _ = tiny_head((20, 20, 20))
    image = np.zeros((60, 60, 60), np.float32)
    image[:20, 20:40, 30:50] = small
    done = prepare(volume(image), None, None, spacing_mm=1.6, scheme=FETA)
    scores = np.zeros((8, *done.image.shape), np.float32)
    scores[5] = 1
    back = restore(scores, done.geometry)
    assert back.shape == (60, 60, 60)
    assert back[25, 30, 40] == 5
    assert back[45:].max() == back[:, :8].max() == back[:, 52:].max() == 0


def test_restore_refuses_another_shape(head: tuple[Volume, Volume]) -> None:
    done = prepare(head[0], None, None, spacing_mm=1.2, scheme=FETA)
    with pytest.raises(ValueError, match="for a crop of"):
        restore(np.zeros((8, 3, 3, 3), np.float32), done.geometry)


def test_other_shape_names_both(head: tuple[Volume, Volume]) -> None:
    labels = replace(head[1], data=head[1].data[:, :, :-1])
    with pytest.raises(DataError) as caught:
        prepare(head[0], labels, FIDON, spacing_mm=1.2, scheme=FETA)
    assert "differ in shape: scan.nii is 22 x 26 x 20, labels.nii is 22 x 26 x 19" in str(caught.value)


def test_other_affine_names_both(head: tuple[Volume, Volume]) -> None:
    affine = head[1].affine.copy()
    affine[0] *= -1
    with pytest.raises(DataError, match=r"differ in affine: scan.nii has axes RAS, labels.nii has axes LAS"):
        prepare(head[0], replace(head[1], affine=affine), FIDON, spacing_mm=1.2, scheme=FETA)


def test_index_missing_from_the_table_names_file_and_index(head: tuple[Volume, Volume]) -> None:
    data = head[1].data.copy()
    data[10, 10, 10] = 42
    data[10, 10, 11] = 70_000
    with pytest.raises(DataError) as caught:
        map_labels(replace(head[1], data=data), FIDON)
    assert str(caught.value).startswith("labels.nii: label index 42, 70000 is not in the label table")
    assert "dseg.tsv" in str(caught.value)


@pytest.mark.parametrize("table", [FIDON, None])
def test_empty_label(head: tuple[Volume, Volume], table: dict[int, int] | None) -> None:
    with pytest.raises(DataError, match=r"labels.nii: the label map is empty"):
        map_labels(replace(head[1], data=np.zeros_like(head[1].data)), table)


def test_mask_without_a_table_is_nonzero(head: tuple[Volume, Volume]) -> None:
    done = prepare(*head, None, spacing_mm=0.8, scheme=BRAIN_MASK)
    assert done.labels is not None
    assert set(np.unique(done.labels)) == {0, 1}


def test_thick_slices_are_refused_for_tissues_only() -> None:
    rng = np.random.default_rng(0)
    stack = volume(rng.normal(200, 30, (40, 40, 12)).astype(np.float32), (1.125, 1.125, 3.3), "stack.nii")
    with pytest.raises(DataError) as caught:
        prepare(stack, None, None, spacing_mm=1.6, scheme=FETA)
    message = str(caught.value)
    assert message.startswith("stack.nii: this is a raw stack of thick slices (1.12 x 1.12 x 3.3 mm)")
    assert all(tool in message for tool in ("NeSVoR", "SVRTK", "NiftyMIC", "MIAL SRTK"))
    assert prepare(stack, None, None, spacing_mm=1.6, scheme=BRAIN_MASK).image.shape[2] >= 24


def test_impossible_size_is_refused(head: tuple[Volume, Volume]) -> None:
    metres = replace(head[0], spacing_mm=(0.0008, 0.0007, 0.0009))
    with pytest.raises(DataError, match=r"would have 1 x 1 x 1 voxels.*metres or micrometres"):
        prepare(metres, None, None, spacing_mm=1.6, scheme=FETA)


# Where this fails, `prepare` puts out other numbers: raise CODE_VERSION, and write the numbers down under it.
# The scan is turned so far that a greedy choice of its axes would be another.
def test_a_code_version_stands_for_its_numbers(head: tuple[Volume, Volume]) -> None:
    image, labels = head
    affine = image.affine.copy()
    affine[:3, :3] = Rotation.from_euler("xyz", [10, 30, 50], degrees=True).as_matrix() @ affine[:3, :3]
    scan, truth = replace(image, affine=affine), replace(labels, affine=affine)
    ready = prepare(scan, truth, FIDON, spacing_mm=1.1, scheme=FETA)
    assert ready.labels is not None
    axes = np.indices(ready.image.shape).reshape(3, -1)
    moments = (axes * ready.image.reshape(-1)).mean(axis=1)
    assert CODE_VERSION == 3
    assert (ready.image.shape, ready.geometry.axes) == ((17, 16, 17), (1, 0, 2))
    assert moments == pytest.approx([-11.21, -10.51, -11.25], abs=0.01)


def test_a_background_far_below_the_tissue_is_as_good_as_zero(head: tuple[Volume, Volume]) -> None:
    image, labels = head
    below = replace(image, data=np.where(np.not_equal(labels.data, 0), image.data, np.float32(-1000)))
    ready, usual = (prepare(each, labels, FIDON, spacing_mm=1.1, scheme=FETA) for each in (below, image))
    inside = usual.labels
    assert inside is not None and ready.image.shape == usual.image.shape
    assert np.abs(ready.image - usual.image)[inside > 0].mean() < 0.2
