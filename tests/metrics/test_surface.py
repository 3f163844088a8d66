from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given

from fedseg.errors import DataError
from fedseg.metrics import surface
from fedseg.metrics.surface import asd_mm, hausdorff_percentile, hd95, nsd, surfaces
from tests.metrics.shapes import SPACINGS, Mask, cube, ellipsoid, pairs

SHAPE = (24, 30, 18)
ELLIPSOID = ellipsoid(SHAPE, (11, 14, 8), (7, 10, 5))
PAIRS = {
    "ellipsoids": (ELLIPSOID, ellipsoid(SHAPE, (12, 15, 8), (6, 10, 7))),
    "island": (ELLIPSOID, ELLIPSOID | ellipsoid(SHAPE, (21, 27, 15), (2, 2, 2))),
    "slab": (np.indices(SHAPE)[2] < 5, ELLIPSOID),
}

# compute_robust_hausdorff(compute_surface_distances(first, second, spacing), percent) for percent 50, 95 and 100, of
# the PyPI package surface-distance 0.1 (numpy 2.4.6, scipy 1.17.1, with np.Inf and ndimage.filters put back).
FROZEN = [
    ("ellipsoids", (1.0, 1.0, 1.0), (1.0, 2.0, 2.449489742783178)),
    ("ellipsoids", (0.5, 0.8, 3.3), (0.5, 3.5397740040855714, 6.6670833203133135)),
    ("ellipsoids", (3.3, 0.8, 0.5), (0.5, 3.3, 6.648308055437864)),
    ("island", (0.8, 0.8, 0.8), (0.0, 6.499230723708768, 9.260669522232181)),
    ("island", (0.5, 0.8, 3.3), (0.0, 9.535197952848174, 17.532826355154494)),
    ("island", (3.3, 0.8, 0.5), (0.0, 10.554619841567009, 19.815650380444243)),
    ("slab", (1.0, 1.0, 1.0), (5.830951894845301, 10.04987562112089, 12.806248474865697)),
    ("slab", (0.5, 0.8, 3.3), (13.2, 26.4, 29.7)),
    ("slab", (3.3, 0.8, 0.5), (4.47213595499958, 16.36092906897405, 20.79062288629179)),
]


@pytest.mark.parametrize(("name", "spacing", "expected"), FROZEN)
def test_as_surface_distance(
    name: str, spacing: tuple[float, float, float], expected: tuple[float, float, float]
) -> None:
    first, second = PAIRS[name]
    found = surfaces(first, second, spacing)
    assert [hausdorff_percentile(found, percent) for percent in (50, 95, 100)] == pytest.approx(expected, abs=1e-9)
    assert hd95(surfaces(second, first, spacing)) == pytest.approx(expected[1], abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 3])
def test_a_cube_moved_along_an_axis_is_that_far_away(axis: int, voxels: int) -> None:
    spacing = (0.5, 0.8, 3.3)
    moved = [4, 4, 4]
    moved[axis] += voxels
    shape = (20, 20, 20)
    pred, ref = cube(shape, (moved[0], moved[1], moved[2]), 8), cube(shape, (4, 4, 4), 8)
    assert hd95(surfaces(pred, ref, spacing)) == pytest.approx(voxels * spacing[axis])


def _corners(mask: Mask) -> list[tuple[int, ...]]:
    """Corners between voxels of which some, not all, are inside; voxels beyond the volume are outside."""

    def inside(corner: tuple[int, ...], step: tuple[int, ...]) -> bool:
        place = tuple(at - back for at, back in zip(corner, step, strict=True))
        return all(0 <= at < size for at, size in zip(place, mask.shape, strict=True)) and bool(mask[place])

    around = list(product((0, 1), repeat=3))
    corners = product(*(range(size + 1) for size in mask.shape))
    return [corner for corner in corners if len({inside(corner, step) for step in around}) == 2]


@given(pairs(), SPACINGS)
def test_the_farthest_corner_is_found_by_brute_force_too(
    masks: tuple[Mask, Mask], spacing: tuple[float, float, float]
) -> None:
    assume(masks[0].any() and masks[1].any())
    pred, ref = (np.array(_corners(mask)) * spacing for mask in masks)
    distances = np.linalg.norm(pred[:, None] - ref[None], axis=2)
    expected = max(distances.min(axis=1).max(), distances.min(axis=0).max())
    found = surfaces(*masks, spacing)
    assert hausdorff_percentile(found, 100) == pytest.approx(expected)
    assert hd95(found) <= expected + 1e-9
    assert asd_mm(found) <= expected + 1e-9


@given(pairs(), SPACINGS)
def test_axes_may_be_swapped_with_their_spacing(masks: tuple[Mask, Mask], spacing: tuple[float, float, float]) -> None:
    assume(masks[0].any() and masks[1].any())
    found = surfaces(*masks, spacing)
    turned = surfaces(masks[0].transpose(2, 0, 1), masks[1].transpose(2, 0, 1), (spacing[2], spacing[0], spacing[1]))
    assert hausdorff_percentile(turned, 60) == pytest.approx(hausdorff_percentile(found, 60))
    assert asd_mm(turned) == pytest.approx(asd_mm(found))
    assert nsd(turned) == pytest.approx(nsd(found))


def test_surfels_of_a_box_sum_to_its_faces_less_the_bevelled_edges() -> None:
    areas = surface._surfel_areas((0.5, 0.8, 3.3))
    flat = areas[0b00001111], areas[0b00110011], areas[0b01010101]
    assert flat == pytest.approx((0.8 * 3.3, 0.5 * 3.3, 0.5 * 0.8))
    assert np.array_equal(areas, areas[::-1]), "inside and outside have the same surface"
    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()


@pytest.mark.parametrize("first_is_empty", [True, False])
def test_one_empty_mask_has_no_distance_and_no_surface_in_common(first_is_empty: bool) -> None:
    empty = np.zeros(SHAPE, dtype=np.bool_)
    pred, ref = (empty, ELLIPSOID) if first_is_empty else (ELLIPSOID, empty)
    found = surfaces(pred, ref, (1.0, 1.0, 1.0))
    assert hd95(found) == asd_mm(found) == math.inf
    assert nsd(found) == 0.0


@pytest.mark.parametrize("mask", [np.zeros(SHAPE, dtype=np.bool_), ELLIPSOID, np.ones(SHAPE, dtype=np.bool_)])
def test_a_mask_agrees_with_itself_be_it_empty_or_full(mask: Mask) -> None:
    found = surfaces(mask, mask, (1.0, 1.0, 1.0))
    assert hd95(found) == asd_mm(found) == 0.0
    assert nsd(found) == 1.0


def test_two_plates_are_their_distance_apart_on_average_and_within_a_tolerance_of_just_that() -> None:
    spacing = (0.1, 0.7, 0.7)
    first, second = (np.zeros((40, 30, 30), dtype=np.bool_) for _ in range(2))
    first[4:14], second[14:24] = True, True
    found = surfaces(first, second, spacing)
    assert hausdorff_percentile(found, 100) == pytest.approx(1.0)
    assert nsd(found) == nsd(found, 1.0) == 1.0, "whole voxels of 0.1 mm add up to 1 mm, wherever they lie"
    assert nsd(found, 0.99) < 1.0
    flat = 0.5 * (1.0 + 0.0)
    assert asd_mm(found) == pytest.approx(flat, abs=0.03), "one face of each touches the other, one is 1 mm away"


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0)])
def test_a_broken_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="a voxel cannot measure"):
        surfaces(ELLIPSOID, ELLIPSOID, spacing)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="not volumes of one shape"):
        surfaces(ELLIPSOID, ELLIPSOID[1:], (1.0, 1.0, 1.0))
