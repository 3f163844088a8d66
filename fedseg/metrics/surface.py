"""Distance between two surfaces in mm, as DeepMind's surface-distance measures it (Nikolov et al. 2018).

A surface element ("surfel") sits at every corner between voxels whose eight neighbours are neither all inside nor all
outside. Its position is that corner; its area comes from the marching-cubes triangles of the eight neighbours.
Percentiles of the distances are weighted by area, so that they do not depend on how finely a slope is stepped.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import permutations, product

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from fedseg.metrics.masks import Mask, Spacing, bounding_box, checked_spacing, same_grid

_Floats = npt.NDArray[np.float64]

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


def hd95(pred: Mask, ref: Mask, spacing_mm: Spacing) -> float:
    """95th percentile Hausdorff distance in mm (Huttenlocher 1993; percentile as in FeTA).

    The larger of the two directed, area-weighted 95th percentiles; symmetric in its masks.

    Args:
        pred: Predicted voxels, (i, j, k), bool.
        ref: Reference voxels, same shape.
        spacing_mm: Voxel edges along the three axes, in their order.

    Returns:
        Millimetres; inf where exactly one mask is empty, 0 where both are (surface-distance itself: inf for both).

    Raises:
        DataError: Not two volumes of one shape, or a spacing that is not positive.
    """
    return hausdorff_percentile(pred, ref, spacing_mm, 95.0)


def hausdorff_percentile(pred: Mask, ref: Mask, spacing_mm: Spacing, percent: float) -> float:
    """The Hausdorff distance of `hd95` at any percentile; 100 is the classical one."""
    same_grid(pred, ref)
    spacing = checked_spacing(spacing_mm)
    box = bounding_box(pred | ref)
    if box is None:
        return 0.0
    if not (pred[box].any() and ref[box].any()):
        return math.inf
    codes = _neighbour_codes(pred[box]), _neighbour_codes(ref[box])
    areas = _surfel_areas(spacing)
    return max(
        _directed(codes[0], codes[1], areas, spacing, percent), _directed(codes[1], codes[0], areas, spacing, percent)
    )


def _directed(
    from_codes: npt.NDArray[np.uint8],
    to_codes: npt.NDArray[np.uint8],
    areas: _Floats,
    spacing: Spacing,
    percent: float,
) -> float:
    """Area-weighted percentile of the distances from one surface to the other."""
    start, end = _is_surface(from_codes), _is_surface(to_codes)
    distances = np.zeros(start.shape)
    apart = start & ~end
    edges = np.asarray(spacing)
    distances[apart] = cKDTree(np.argwhere(end) * edges).query(np.argwhere(apart) * edges)[0]
    return _weighted_percentile(distances[start], areas[from_codes[start]], percent)


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
