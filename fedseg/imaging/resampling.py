"""Separable resampling between two axis-parallel grids that share their centre.

Each axis is a matrix product, so that a volume costs three BLAS calls a channel. The kernel is a triangle that is as
wide as the coarser of the two voxels: linear interpolation upwards, an anti-aliased one downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrices = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def grid_size(voxels: int, spacing_mm: float, target_mm: float) -> int:
    """Voxels of `target_mm` that cover `voxels` of `spacing_mm`; at least one."""
    return max(1, math.ceil(voxels * spacing_mm / target_mm - 1e-3))


def centres(voxels: int, step: float, other_voxels: int) -> NDArray[np.float64]:
    """Where the centres of one grid's voxels lie on the other one.

    Args:
        voxels: Voxels of the grid asked about.
        step: Its voxel size over the other grid's.
        other_voxels: Voxels of the other grid; the two share their centre.

    Returns:
        [voxels] positions in the other grid's voxel indices (0 is its first centre).
    """
    offsets: NDArray[np.float64] = np.arange(voxels, dtype=np.float64) - (voxels - 1) / 2
    return offsets * step + (other_voxels - 1) / 2


def weights(positions: NDArray[np.float64], step: float, voxels: int) -> NDArray[np.float32]:
    """Rows that interpolate at `positions`; each sums to one, and positions beyond the ends take the nearest voxels.

    Args:
        positions: [n] in voxel indices of the grid that is read.
        step: Distance of two positions, in voxels of that grid; wider than one means downsampling.
        voxels: Voxels of that grid.

    Returns:
        float32 [n, voxels].
    """
    width = max(1.0, step)
    inside = np.clip(positions, 0.0, voxels - 1.0)
    distance = np.abs(inside[:, None] - np.arange(voxels)[None, :])
    triangle = np.maximum(0.0, 1.0 - distance / width)
    return np.asarray(triangle / triangle.sum(axis=1, keepdims=True), dtype=np.float32)


def apply(matrices: Matrices, volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Resample a volume: float32 [x, y, z] to [rows of each matrix].

    The axis that shrinks the most goes first, so that the others have less to do.
    """
    order = sorted(range(3), key=lambda axis: matrices[axis].shape[0] / matrices[axis].shape[1])
    for axis in order:
        volume = _along(axis, matrices[axis], volume)
    return volume


def _along(axis: int, matrix: NDArray[np.float32], volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """One matrix product along one axis; the result is contiguous."""
    volume = np.ascontiguousarray(volume)
    x, y, z = volume.shape
    if axis == 0:
        return np.asarray((matrix @ volume.reshape(x, y * z)).reshape(-1, y, z))
    if axis == 1:
        return np.asarray(np.matmul(matrix, volume))
    return np.asarray((volume.reshape(x * y, z) @ matrix.T).reshape(x, y, -1))


def box(mask: NDArray[np.bool_], margin: Sequence[int]) -> tuple[slice, slice, slice]:
    """The bounding box of a mask, widened by `margin` voxels along each axis and kept inside; all where it is empty."""
    if not mask.any():
        return (slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2]))
    bounds = [
        _extent(np.any(mask, axis=others), by) for others, by in zip(((1, 2), (0, 2), (0, 1)), margin, strict=True)
    ]
    return (bounds[0], bounds[1], bounds[2])


def _extent(occupied: NDArray[np.bool_], margin: int) -> slice:
    hits = np.flatnonzero(occupied)
    return slice(max(0, int(hits[0]) - margin), min(occupied.size, int(hits[-1]) + 1 + margin))
