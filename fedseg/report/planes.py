"""Where to look at a brain: upright whatever the scan's axes, through its middle and through the largest error."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

AXIAL, CORONAL, SAGITTAL = 2, 1, 0

_MARGIN_MM = 5.0
_NEAR_MM = 9.0  # edge of the cube in which differing voxels are counted: about the width of the cortex and its CSF
_EQUAL = 1e-4  # shares of the cube that differ by float32's rounding only

Box = tuple[slice, slice, slice]
Place = tuple[int, int, int]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Upright:
    """How a scan's axes become right, anterior, superior: which axis comes first, and which are reversed."""

    axes: tuple[int, ...]
    steps: tuple[int, ...]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, affine: NDArray[np.floating[Any]]) -> Upright:
        """The nearest turn by right angles."""
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        cosines = affine[:3, :3] / edges
        axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[way, order[way]]) for way in range(3)))
        steps = tuple(1 if cosines[way, axes[way]] > 0 else -1 for way in range(3))
        first, second, third = (float(edges[axis]) for axis in axes)
        return cls(axes, steps, (first, second, third))

    def turn(self, volume: NDArray[Any]) -> NDArray[Any]:
        """The volume with axes right, anterior, superior: a view."""
        return volume.transpose(self.axes)[tuple(slice(None, None, step) for step in self.steps)]

    def stored(self, place: Place, shape: tuple[int, ...]) -> Place:
        """The voxel of the scan as stored, of the given shape, that lies at `place` once turned."""
        found = [0, 0, 0]
        for at, axis, step in zip(place, self.axes, self.steps, strict=True):
            found[axis] = at if step > 0 else shape[axis] - 1 - at
        return found[0], found[1], found[2]


def grown_box(found: _Mask, spacing_mm: tuple[float, float, float]) -> Box:
    """The box around what was found with a margin of 5 mm; everything where nothing was."""
    boxes = ndimage.find_objects(found.view(np.uint8))
    if not boxes:
        return slice(None), slice(None), slice(None)
    margins = [round(_MARGIN_MM / edge) for edge in spacing_mm]
    first, second, third = (
        slice(max(0, side.start - margin), side.stop + margin) for side, margin in zip(boxes[0], margins, strict=True)
    )
    return first, second, third


def middle(found: _Mask) -> Place:
    """The voxel in the middle of what was found; of the volume where nothing was."""
    if not found.any():
        return found.shape[0] // 2, found.shape[1] // 2, found.shape[2] // 2
    sums = (found.sum(axis=(1, 2)), found.sum(axis=(0, 2)), found.sum(axis=(0, 1)))
    first, second, third = (round(float(np.average(np.arange(len(each)), weights=each))) for each in sums)
    return first, second, third


def worst_place(wrong: _Mask, spacing_mm: tuple[float, float, float]) -> Place | None:
    """The differing voxel with the most differing voxels within a cube of 9 mm around it; None where none differs.

    A count, and not the largest connected part: thin errors along the whole cortex are connected, and harmless. Of
    several such voxels, the one nearest to the middle of them all.
    """
    if not wrong.any():
        return None
    sizes = [2 * round(_NEAR_MM / edge / 2) + 1 for edge in spacing_mm]
    near = ndimage.uniform_filter(wrong.astype(np.float32), sizes, mode="constant")
    near[~wrong] = 0
    most = np.argwhere(near >= near.max() - _EQUAL)
    away = ((most - most.mean(axis=0)) * spacing_mm) ** 2
    first, second, third = most[int(away.sum(axis=1).argmin())]
    return int(first), int(second), int(third)


def seen(volume: NDArray[Any], axis: int, place: Place) -> NDArray[Any]:
    """One plane as it is looked at: up is superior (axial: anterior), left is right (sagittal: anterior)."""
    plane: NDArray[Any] = np.take(volume, place[axis], axis=axis).T[::-1, ::-1]
    return plane


def position(shape: tuple[int, ...], axis: int, place: Place) -> tuple[float, float]:
    """Where a voxel lies in the plane as `seen`, as shares of its width and height, from the top left."""
    across, up = (each for each in range(3) if each != axis)
    return 1 - (place[across] + 0.5) / shape[across], 1 - (place[up] + 0.5) / shape[up]
