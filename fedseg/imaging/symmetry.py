"""Left against right, in whatever orientation the brain lies.

The mid-sagittal plane is found from the label map alone: of all planes through the brain, the one about which the most
voxels mirror onto their own tissue. Cortex, white matter and external fluid count as one there, because sulci differ
between the sides of a normal brain: what is left is the outline and the deep structures. Directions over the half
sphere (Fibonacci lattice) are tried through the centroid, and the best few refined by Nelder and Mead's simplex in
angle and offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

_DIRECTIONS = 120
_REFINED = 3
_POINTS = 4000
_FEWEST_VOXELS = 500

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Symmetry:
    """How alike the two sides of the best plane are.

    Args:
        agreement: Share of the brain's voxels whose mirror image has the same label, the joined ones being one; 0 to 1.
        likeness: The same of all labels, sulci and all.
        imbalance: (left - right) / (left + right) of each class's volume, index 0 for background (always 0); which
            side is called left is arbitrary.
    """

    agreement: float
    likeness: float
    imbalance: tuple[float, ...]


def symmetry(
    labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], classes: int, joined: Sequence[int]
) -> Symmetry | None:
    """Find the mid-sagittal plane and compare its sides; None where there are too few voxels to say.

    Args:
        labels: uint8 [i, j, k] in any axis order.
        spacing_mm: Voxel size along i, j, k.
        classes: C + 1.
        joined: Classes that count as one while the plane is sought.
    """
    voxels = np.argwhere(labels > 0)
    if len(voxels) < _FEWEST_VOXELS:
        return None
    places = voxels * np.array(spacing_mm)
    some = places[:: max(1, len(places) // _POINTS)]
    merged = np.arange(256, dtype=np.uint8)
    merged[list(joined)] = min(joined)
    search = _Search(merged[labels], np.array(spacing_mm), some, places.mean(axis=0))
    agreement, normal, offset = search.best()
    likeness = replace(search, grid=labels).agreement(normal, offset)
    left = places @ normal < offset
    tissue = labels[labels > 0]
    volumes = [np.bincount(tissue[side], minlength=classes)[:classes].astype(float) for side in (left, ~left)]
    imbalance = (volumes[0] - volumes[1]) / np.maximum(volumes[0] + volumes[1], 1.0)
    return Symmetry(agreement, likeness, tuple(float(value) for value in imbalance))


@dataclass(frozen=True, eq=False)
class _Search:
    """Planes about which `points` (mm, on voxels of `grid`) are mirrored."""

    grid: NDArray[np.uint8]
    spacing: Vector
    points: Vector
    centre: Vector

    def best(self) -> tuple[float, Vector, float]:
        """Agreement, unit normal and offset of the best plane."""
        directions = _half_sphere(_DIRECTIONS)
        first = [self.agreement(normal, float(normal @ self.centre)) for normal in directions]
        chosen = [directions[index] for index in np.argsort(first)[-_REFINED:]]
        return max((self._refine(normal) for normal in chosen), key=lambda found: found[0])

    def agreement(self, normal: Vector, offset: float) -> float:
        """Share of the points whose mirror image has the same label."""
        distance = self.points @ normal - offset
        mirrored = np.rint((self.points - 2 * distance[:, None] * normal) / self.spacing).astype(np.intp)
        inside = ((mirrored >= 0) & (mirrored < self.grid.shape)).all(axis=1)
        here, there = np.rint(self.points[inside] / self.spacing).astype(np.intp), mirrored[inside]
        return float(np.count_nonzero(self.grid[tuple(here.T)] == self.grid[tuple(there.T)]) / len(self.points))

    def _refine(self, start: Vector) -> tuple[float, Vector, float]:
        """The best plane near one through the centroid."""
        across = np.linalg.svd(start[None])[2][1:]

        def plane(change: Vector) -> tuple[Vector, float]:
            normal = start + change[:2] @ across
            normal /= np.linalg.norm(normal)
            return normal, float(normal @ self.centre + change[2])

        def miss(change: Vector) -> float:
            return -self.agreement(*plane(change))

        simplex = np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.0, 0.15, 0.0], [0.0, 0.0, 4.0]])
        options: Any = {"initial_simplex": simplex, "maxfev": 120, "xatol": 5e-3, "fatol": 1e-4}
        found = optimize.minimize(miss, np.zeros(3), method="Nelder-Mead", options=options)
        return (-float(found.fun), *plane(found.x))


def _half_sphere(count: int) -> Vector:
    """Unit vectors [count, 3], evenly over half of the directions."""
    index = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - index / count), np.pi * (1 + 5**0.5) * index
    return np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], axis=1)
