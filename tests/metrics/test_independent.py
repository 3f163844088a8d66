from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import SimpleITK
import surface_distance
from scipy import ndimage
from skimage.measure import euler_number

from fedseg.metrics.masks import Spacing
from fedseg.metrics.overlap import dice, volume_similarity
from fedseg.metrics.surface import asd_mm, hausdorff_percentile, hd95, nsd, surfaces
from fedseg.metrics.topology import euler_characteristic, euler_difference
from fedseg.metrics.volumes import volume_ml
from tests.metrics.shapes import Mask

SPACING_CHOICES = ((0.5, 0.5, 0.5), (0.8, 0.8, 0.8), (0.5, 0.8, 3.3), (3.3, 1.125, 1.125), (1.0, 0.25, 2.0))
Shape = tuple[int, int, int]
Random = np.random.Generator


def _empty(shape: Shape, random: Random) -> Mask:
    return np.zeros(shape, dtype=np.bool_)


def _full(shape: Shape, random: Random) -> Mask:
    return np.ones(shape, dtype=np.bool_)


def _one_voxel(shape: Shape, random: Random) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(random.integers(shape))] = True
    return mask


def _corner_voxels(shape: Shape, random: Random) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    return mask


def _noise(shape: Shape, random: Random) -> Mask:
    return random.random(shape) < random.uniform(0.02, 0.98)


def _blobs(shape: Shape, random: Random) -> Mask:
    smooth = ndimage.gaussian_filter(random.normal(size=shape), 1.5)
    return np.asarray(smooth > np.quantile(smooth, random.uniform(0.3, 0.9)))


def _at_the_border(shape: Shape, random: Random) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[: (shape[0] + 1) // 2, :, -((shape[2] + 2) // 3) :] = True
    return mask


def _two_pieces(shape: Shape, random: Random) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[:2, :2, :2] = True
    mask[-2:, -3:, -2:] = True
    return mask


def _tunnel(shape: Shape, random: Random) -> Mask:
    mask = np.ones(shape, dtype=np.bool_)
    mask[1:-1, :, 1:-1] = False
    return mask


def _cavity(shape: Shape, random: Random) -> Mask:
    mask = np.ones(shape, dtype=np.bool_)
    mask[1:-1, 1:-1, 1:-1] = False
    return mask


KINDS: tuple[Callable[[Shape, Random], Mask], ...] = (
    _empty,
    _full,
    _one_voxel,
    _corner_voxels,
    _noise,
    _blobs,
    _at_the_border,
    _two_pieces,
    _tunnel,
    _cavity,
)


def _pairs() -> list[tuple[Mask, Mask, Spacing]]:
    """Every kind against every kind, twice, each on a grid and a spacing of its own."""
    random = np.random.default_rng(5)
    found = []
    for place, (first, second) in enumerate(list(product(KINDS, repeat=2)) * 2):
        sides = random.integers(1 if place < 100 else 4, 15, size=3)
        shape = (int(sides[0]), int(sides[1]), int(sides[2]))
        spacing = SPACING_CHOICES[random.integers(len(SPACING_CHOICES))]
        found.append((first(shape, random), second(shape, random), spacing))
    return found


PAIRS = _pairs()


@pytest.fixture
def deepmind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back the names that surface-distance 0.1 takes from numpy and scipy and that they have dropped since."""
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)
    monkeypatch.setattr(ndimage, "filters", ndimage)
    monkeypatch.setattr(ndimage, "morphology", ndimage)
    with np.errstate(invalid="ignore"):
        yield


def _same(found: float, expected: float) -> bool:
    return found == expected or math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9)


def test_the_pairs_have_the_edge_cases() -> None:
    assert len(PAIRS) == 200
    both = [(bool(pred.any()), bool(ref.any())) for pred, ref, _ in PAIRS]
    assert {(False, False), (False, True), (True, False), (True, True)} == set(both)
    assert any(pred.all() and ref.all() for pred, ref, _ in PAIRS)
    assert any(1 in pred.shape for pred, _, _ in PAIRS)
    assert sum(pred.any() and ref.any() and not np.array_equal(pred, ref) for pred, ref, _ in PAIRS) > 130


def test_distances_are_those_of_surface_distance(deepmind: None) -> None:
    apart = []
    for place, (pred, ref, spacing) in enumerate(PAIRS):
        if not (pred.any() and ref.any()):
            continue
        found = surfaces(pred, ref, spacing)
        theirs = surface_distance.compute_surface_distances(ref, pred, spacing)
        areas = theirs["surfel_areas_gt"].sum(), theirs["surfel_areas_pred"].sum()
        averages = surface_distance.compute_average_surface_distance(theirs)
        compared = [
            (hd95(found), surface_distance.compute_robust_hausdorff(theirs, 95)),
            (hausdorff_percentile(found, 50), surface_distance.compute_robust_hausdorff(theirs, 50)),
            (nsd(found), surface_distance.compute_surface_dice_at_tolerance(theirs, 1.0)),
            (nsd(found, 2.5), surface_distance.compute_surface_dice_at_tolerance(theirs, 2.5)),
            (asd_mm(found), np.average(averages, weights=areas)),
        ]
        apart += [(place, pair) for pair in compared if not _same(*pair)]
    assert apart == []


def test_empty_masks_are_those_of_surface_distance_but_for_two_empty_ones(deepmind: None) -> None:
    seen = set()
    for pred, ref, spacing in PAIRS:
        if pred.any() and ref.any():
            continue
        found = surfaces(pred, ref, spacing)
        theirs = surface_distance.compute_surface_distances(ref, pred, spacing)
        hausdorff = surface_distance.compute_robust_hausdorff(theirs, 95)
        overlap = surface_distance.compute_surface_dice_at_tolerance(theirs, 1.0)
        averages = surface_distance.compute_average_surface_distance(theirs)
        if pred.any() or ref.any():
            assert hd95(found) == hausdorff == math.inf
            assert asd_mm(found) == np.nanmax(averages) == math.inf
            assert nsd(found) == overlap == 0.0
        else:
            assert hausdorff == math.inf
            assert np.isnan(overlap)
            assert np.isnan(averages).all()
            assert (hd95(found), asd_mm(found), nsd(found)) == (0.0, 0.0, 1.0)
        seen.add((bool(pred.any()), bool(ref.any())))
    assert len(seen) == 3


def test_overlap_is_that_of_simpleitk() -> None:
    apart = []
    for place, (pred, ref, _) in enumerate(PAIRS):
        if not (pred.any() or ref.any()):
            continue
        measures = SimpleITK.LabelOverlapMeasuresImageFilter()
        measures.Execute(*(SimpleITK.GetImageFromArray(mask.astype(np.uint8)) for mask in (ref, pred)))
        # Theirs is signed, 2 (A - B) / (A + B): from -2 to 2, 0 where the sizes agree.
        similarity = 1 - abs(measures.GetVolumeSimilarity()) / 2
        compared = [(dice(pred, ref), measures.GetDiceCoefficient()), (volume_similarity(pred, ref), similarity)]
        apart += [(place, pair) for pair in compared if not _same(*pair)]
    assert apart == []


def test_the_farthest_distance_between_surfaces_is_that_of_simpleitk() -> None:
    apart = []
    for place, (pred, ref, spacing) in enumerate(PAIRS):
        if not (pred.any() and ref.any()):
            continue
        measures = SimpleITK.HausdorffDistanceImageFilter()
        measures.Execute(_corners(pred, spacing), _corners(ref, spacing))
        pair = hausdorff_percentile(surfaces(pred, ref, spacing), 100), measures.GetHausdorffDistance()
        # Single precision on their side.
        if not math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-5):
            apart.append((place, pair))
    assert apart == []


def _corners(mask: Mask, spacing: Spacing) -> SimpleITK.Image:
    """The corners between voxels that have both inside and outside around them."""
    around = ndimage.correlate(np.pad(mask, 1).astype(np.int64), np.ones((2, 2, 2), np.int64), mode="constant")
    inside = around[1:, 1:, 1:]
    image = SimpleITK.GetImageFromArray(((inside > 0) & (inside < 8)).astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    return image


def test_volumes_are_those_of_simpleitk() -> None:
    apart = []
    for place, (pred, _, spacing) in enumerate(PAIRS):
        if not pred.any():
            assert volume_ml(pred, math.prod(spacing)) == 0.0
            continue
        image = SimpleITK.GetImageFromArray(pred.astype(np.uint8))
        image.SetSpacing(spacing[::-1])
        statistics = SimpleITK.LabelShapeStatisticsImageFilter()
        statistics.Execute(image)
        pair = volume_ml(pred, math.prod(spacing)), statistics.GetPhysicalSize(1) / 1000
        if not _same(*pair):
            apart.append((place, pair))
    assert apart == []


def test_euler_characteristics_are_those_of_scikit_image() -> None:
    apart = []
    for place, (pred, ref, _) in enumerate(PAIRS):
        theirs = [int(euler_number(mask, connectivity=1)) for mask in (pred, ref)]
        compared = (euler_characteristic(pred), theirs[0]), (euler_difference(pred, ref), abs(theirs[0] - theirs[1]))
        apart += [(place, pair) for pair in compared if pair[0] != pair[1]]
    assert apart == []
