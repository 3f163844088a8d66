"""Distance between two surfaces in mm, as DeepMind's surface-distance measures it (Nikolov et al. 2018).

A surface element ("surfel") sits at every corner between voxels whose eight neighbours are neither all inside nor all
outside. Its position is that corner; its area comes from the marching-cubes triangles of the eight neighbours.
Percentiles of the distances are weighted by area, so that they do not depend on how finely a slope is stepped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fedseg.metrics.masks import Mask, Spacing, bounding_box, checked_spacing, same_grid

_Floats = npt.NDArray[np.float64]

NSD_TOLERANCE_MM = 1.0
"""Tolerance of `nsd`: about one voxel of a reconstructed fetal scan (0.5 to 1.2 mm)."""

_BITS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], dtype=np.uint8)
_INSIDE = 255

_TRIANGLES: dict[int, tuple[tuple[int, int, int], ...]] = {
    0b00000000: (),
    0b00000001: ((1, 1, 1),),
    0b00000011: ((2, 2, 0), (2, 2, 0)),
    0b00000110: ((1, 1, 1), (1, 1, 1)),
    0b00000111: ((1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00001111: ((4, 0, 0), (4, 0, 0)),
    0b00010110: ((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    0b00010111: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    0b00011000: ((1, 1, 1), (1, 1, 1)),
    0b00011001: ((0, 2, 2), (0, 2, 2), (1, 1, 1)),
    0b00011011: ((0, 2, 2), (1, 1, 1), (2, 0, 2), (3, 3, 3)),
    0b00011110: ((1, 1, 1), (1, 1, 1), (2, 2, 2), (4, 0, 0)),
    0b00111100: ((2, 2, 0), (2, 2, 0), (2, 2, 0), (2, 2, 0)),
    0b01101001: ((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
}
"""The triangles of surface-distance's table for one neighbourhood of each symmetry class: the size of each normal's
components, in eighths. Its 256 entries are these under the cube's 48 symmetries and inside-outside exchange."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """The distances between two masks' surfaces, from each to the other; what the metrics below read.

    Args:
        pred_mm: Distance in mm of each surfel of the prediction to the nearest of the reference, (n,); inf where the
            reference is empty; no entry where the prediction is.
        pred_areas: Area in mm^2 of the same surfels, (n,).
        ref_mm: Distance of each surfel of the reference to the nearest of the prediction, (m,), likewise.
        ref_areas: Area of those, (m,).
    """

    pred_mm: _Floats
    pred_areas: _Floats
    ref_mm: _Floats
    ref_areas: _Floats

    @property
    def both_empty(self) -> bool:
        """Neither mask has a voxel."""
        return not (self.pred_mm.size or self.ref_mm.size)

    @property
    def one_empty(self) -> bool:
        """Exactly one mask has no voxel."""
        return bool(self.pred_mm.size) != bool(self.ref_mm.size)


def surfaces(pred: Mask, ref: Mask, spacing_mm: Spacing) -> Surfaces:
    """Measure the distances between two masks' surfaces, once for every metric.

    Args:
        pred: Predicted voxels, (i, j, k), bool; what lies beyond the volume is outside.
        ref: Reference voxels, same shape.
        spacing_mm: Voxel edges along the three axes, in their order.

    Raises:
        DataError: Not two volumes of one shape, or a spacing that is not positive.
    """
    same_grid(pred, ref)
    spacing = checked_spacing(spacing_mm)
    box = bounding_box(pred | ref) or (slice(0, 0),) * 3
    codes = _neighbour_codes(pred[box]), _neighbour_codes(ref[box])
    on = _is_surface(codes[0]), _is_surface(codes[1])
    areas = _surfel_areas(spacing)
    return Surfaces(
        pred_mm=_distances(on[0], on[1], spacing),
        pred_areas=areas[codes[0][on[0]]],
        ref_mm=_distances(on[1], on[0], spacing),
        ref_areas=areas[codes[1][on[1]]],
    )


def hd95(found: Surfaces) -> float:
    """95th percentile Hausdorff distance in mm (Huttenlocher 1993; percentile as in FeTA).

    The larger of the two directed, area-weighted 95th percentiles; symmetric in its masks.

    Returns:
        Millimetres; inf where exactly one mask is empty, 0 where both are (surface-distance itself: inf for both).
    """
    return hausdorff_percentile(found, 95.0)


def hausdorff_percentile(found: Surfaces, percent: float) -> float:
    """The Hausdorff distance of `hd95` at any percentile; 100 is the classical one."""
    if found.both_empty:
        return 0.0
    if found.one_empty:
        return math.inf
    return max(
        _weighted_percentile(found.pred_mm, found.pred_areas, percent),
        _weighted_percentile(found.ref_mm, found.ref_areas, percent),
    )


def asd_mm(found: Surfaces) -> float:
    """Average symmetric surface distance in mm (Heimann et al. 2009).

    The mean over both surfaces together, every surfel weighted by its area: the two directed averages of
    surface-distance's `compute_average_surface_distance`, weighted by the two surfaces' areas. MedPy's `assd` is
    another number: it averages over boundary voxels, whatever area they stand for.

    Returns:
        Millimetres; inf where exactly one mask is empty, 0 where both are.
    """
    if found.both_empty:
        return 0.0
    if found.one_empty:
        return math.inf
    total = float(found.pred_mm @ found.pred_areas) + float(found.ref_mm @ found.ref_areas)
    return total / float(found.pred_areas.sum() + found.ref_areas.sum())


def nsd(found: Surfaces, tolerance_mm: float = NSD_TOLERANCE_MM) -> float:
    """Normalised surface Dice (Nikolov et al. 2018): the share of both surfaces' area within a tolerance of the other.

    A surfel exactly at the tolerance counts as within it.

    Returns:
        From 0 to 1; 1 where both masks are empty (surface-distance itself: NaN), 0 where exactly one is.
    """
    if found.both_empty:
        return 1.0
    within = found.pred_areas[found.pred_mm <= tolerance_mm].sum() + found.ref_areas[found.ref_mm <= tolerance_mm].sum()
    return float(within / (found.pred_areas.sum() + found.ref_areas.sum()))


def _distances(start: Mask, end: Mask, spacing: Spacing) -> _Floats:
    """Distance in mm of each corner of `start` to the nearest of `end`, in `start`'s order."""
    if not end.any():
        return np.full(int(np.count_nonzero(start)), math.inf)
    distances = np.zeros(start.shape)
    apart = start & ~end
    edges = np.asarray(spacing)
    places, ends = np.argwhere(apart), np.argwhere(end)
    nearest = cKDTree(ends * edges).query(places * edges)[1]
    # From whole voxels, so that a distance does not depend on where in the volume it lies: a tolerance is exact.
    distances[apart] = np.sqrt((((ends[nearest] - places) * edges) ** 2).sum(axis=1))
    found: _Floats = distances[start]
    return found


def _weighted_percentile(values: _Floats, weights: _Floats, percent: float) -> float:
    """The smallest value at or below which lies that share of the weight."""
    order = np.lexsort((weights, values))
    share = np.cumsum(weights[order]) / np.sum(weights[order])
    place = int(np.searchsorted(share, percent / 100.0))
    return float(values[order[min(place, len(values) - 1)]])


def _neighbour_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """One bit for each of the eight voxels around every corner, outer corners included: shape + 1."""
    padded = np.pad(mask, 1).view(np.uint8)
    shape = tuple(size + 1 for size in mask.shape)
    codes = np.zeros(shape, dtype=np.uint8)
    for corner in product((0, 1), repeat=3):
        window = tuple(slice(first, first + size) for first, size in zip(corner, shape, strict=True))
        codes |= padded[window] * _BITS[corner]
    return codes


def _is_surface(codes: npt.NDArray[np.uint8]) -> Mask:
    surface: Mask = (codes != 0) & (codes != _INSIDE)
    return surface


@lru_cache(maxsize=64)
def _surfel_areas(spacing: Spacing) -> _Floats:
    """Area in mm^2 of the surface element of each of the 256 neighbourhoods."""
    first, second, third = spacing
    faces = np.array([second * third, first * third, first * second]) / 8.0
    areas = np.zeros(256)
    for code, normals in _triangles_by_code().items():
        areas[code] = sum(float(np.linalg.norm(np.array(normal) * faces)) for normal in normals)
    return areas


@lru_cache(maxsize=1)
def _triangles_by_code() -> dict[int, tuple[tuple[int, int, int], ...]]:
    """`_TRIANGLES` spread over all 256 codes by the symmetries of the cube."""
    table: dict[int, tuple[tuple[int, int, int], ...]] = {}
    for code, normals in _TRIANGLES.items():
        inside = (code & _BITS) > 0
        for axes in permutations(range(3)):
            turned = inside.transpose(axes)
            turned_normals = tuple((n[axes[0]], n[axes[1]], n[axes[2]]) for n in normals)
            for flips in product((1, -1), repeat=3):
                image = turned[:: flips[0], :: flips[1], :: flips[2]]
                table[int(_BITS[image].sum())] = turned_normals
                table[int(_BITS[~image].sum())] = turned_normals
    return table
