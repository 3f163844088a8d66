"""A scan's own grid and the network's: how one lies in the other, and what is refused for its own.

The network's grid is RAS, isotropic, and parallel to the scan's nearest axes: an oblique scan is turned to them and
keeps its obliqueness. Nothing is rotated, so nothing is blurred on the way back.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.imaging import resampling
from fedseg.imaging.nifti import Volume, same_grid
from fedseg.labels import BRAIN_MASK, LabelScheme

Scalar = TypeVar("Scalar", bound=np.generic)

_MAX_VOXELS = 1024
_STACK_RATIO = 2.0
_STACK_MM = 2.0


@dataclass(frozen=True)
class Geometry:
    """All that is needed to go back from the network's grid to the input's own.

    Args:
        source_shape: [i, j, k] of the input.
        axes: Where each RAS axis comes from in the input.
        flips: Whether that axis runs the other way.
        spacing_mm: Voxel size of the input along the RAS axes.
        target_mm: Voxel size of the network's grid, all axes.
        grid_shape: The whole field of view on the network's grid.
        crop_start: First voxel of the crop on that grid.
        crop_shape: [X, Y, Z], the shape of what `prepare` returned.
    """

    source_shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing_mm: tuple[float, float, float]
    target_mm: float
    grid_shape: tuple[int, int, int]
    crop_start: tuple[int, int, int]
    crop_shape: tuple[int, int, int]

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """The input's shape after reorientation."""
        first, second, third = (self.source_shape[axis] for axis in self.axes)
        return (first, second, third)

    @property
    def crop(self) -> tuple[slice, slice, slice]:
        """The crop on the network's grid."""
        ends = [slice(start, start + size) for start, size in zip(self.crop_start, self.crop_shape, strict=True)]
        return (ends[0], ends[1], ends[2])


def refuse_stack(image: Volume, scheme: LabelScheme) -> None:
    """DataError for a raw stack of thick slices under a tissue scheme; the brain mask may have them."""
    thickest, thinnest = max(image.spacing_mm), min(image.spacing_mm)
    if scheme != BRAIN_MASK and thickest > _STACK_MM and thickest / thinnest > _STACK_RATIO:
        sizes = " x ".join(f"{size:.3g}" for size in image.spacing_mm)
        raise DataError(
            f"this is a raw stack of thick slices ({sizes} mm), not a reconstructed volume",
            where=image.source,
            hint="tissues need a 3D reconstruction of all stacks: NeSVoR, SVRTK, NiftyMIC or MIAL SRTK make one",
        )


def refuse_other_grid(image: Volume, labels: Volume) -> None:
    """DataError where labels lie on another grid than the image: other shape, or a corner off by 0.1 voxels."""
    if image.data.shape != labels.data.shape:
        raise DataError(
            f"image and labels differ in shape: {image.source} is {_times(image.data.shape)}, "
            f"{labels.source} is {_times(labels.data.shape)}",
            where=labels.source,
            hint="resample the labels to the image's grid with nearest neighbour, or find the right pair",
        )
    if not same_grid(image.affine, labels.affine, image.data.shape, tolerance=0.1):
        raise DataError(
            f"image and labels differ in affine: {image.source} has axes {image.axes}, "
            f"{labels.source} has axes {labels.axes}, or they lie at different places",
            where=labels.source,
            hint="one of the two headers is wrong: look at both in a viewer before you copy a header over",
        )


def whole_view(image: Volume, target_mm: float) -> Geometry:
    """The geometry before any cropping.

    Args:
        image: The scan.
        target_mm: Voxel size of the network's grid.

    Raises:
        DataError: An impossible size: fewer than 4 voxels a side on the network's grid, or more than 1024.
    """
    axes, flips = nearest_axes(image.affine)
    shape = tuple(int(size) for size in image.data.shape)
    spacing = tuple(image.spacing_mm[axis] for axis in axes)
    grid = tuple(resampling.grid_size(shape[axis], size, target_mm) for axis, size in zip(axes, spacing, strict=True))
    if min(grid) < 4 or max(grid) > _MAX_VOXELS:
        raise DataError(
            f"at {target_mm:g} mm the scan would have {_times(grid)} voxels; "
            f"it has {_times(shape)} of {_times(image.spacing_mm)} mm",
            where=image.source,
            hint="the header's voxel size is wrong (metres or micrometres?), or this is not a brain scan",
        )
    return Geometry(shape, axes, flips, spacing, target_mm, grid, (0, 0, 0), grid)  # type: ignore[arg-type]  # tuples built of three


def nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which axis of the input is nearest to right, anterior and superior, and whether it runs the other way.

    The assignment with the largest sum of cosines. Unlike a greedy one (nibabel's `io_orientation`), it is the same for
    every axis order that an oblique scan is stored in; only at exactly 45 degrees does the order decide.
    """
    cosines = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[way, order[way]]) for way in range(3)))
    first, second, third = (bool(cosines[way, axes[way]] < 0) for way in range(3))
    return (axes[0], axes[1], axes[2]), (first, second, third)


def to_ras(data: NDArray[Scalar], geometry: Geometry) -> NDArray[Scalar]:
    """A volume on the input's grid turned to RAS, contiguous: what depends on axis order (ties) is done there."""
    turned = data.transpose(geometry.axes)
    return np.ascontiguousarray(turned[_steps(geometry)])


def from_ras(data: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """The way back from `to_ras`, contiguous."""
    return np.ascontiguousarray(data[_steps(geometry)].transpose(np.argsort(geometry.axes)))


def _steps(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1) if flip else slice(None) for flip in geometry.flips)


def matrices_down(geometry: Geometry) -> resampling.Matrices:
    """What resamples the input (RAS) to the whole field of view on the network's grid."""
    first, second, third = (
        resampling.weights(resampling.centres(to, geometry.target_mm / size, voxels), geometry.target_mm / size, voxels)
        for to, size, voxels in zip(geometry.grid_shape, geometry.spacing_mm, geometry.ras_shape, strict=True)
    )
    return (first, second, third)


def matrices_up(geometry: Geometry) -> tuple[resampling.Matrices, tuple[slice, slice, slice]]:
    """What resamples the crop to the input (RAS), and the box of input voxels that it covers."""
    matrices, region = [], []
    for axis in range(3):
        step = geometry.spacing_mm[axis] / geometry.target_mm
        positions = resampling.centres(geometry.ras_shape[axis], step, geometry.grid_shape[axis])
        positions = positions - geometry.crop_start[axis]
        covered = np.flatnonzero((positions >= -0.5) & (positions <= geometry.crop_shape[axis] - 0.5))
        covered = covered if covered.size else np.array([int(np.abs(positions).argmin())])
        region.append(slice(int(covered[0]), int(covered[-1]) + 1))
        matrices.append(resampling.weights(positions[region[-1]], step, geometry.crop_shape[axis]))
    return (matrices[0], matrices[1], matrices[2]), (region[0], region[1], region[2])


def _times(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)
