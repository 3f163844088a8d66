"""What is written on a scan's own grid: label maps, and maps of fractions (probabilities, uncertainty)."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.imaging import resampling
from fedseg.imaging.grids import Geometry, from_ras, matrices_up
from fedseg.imaging.nifti import SUFFIXES, header_like, nib, write_whole

STEPS = 255
"""A fraction is stored as uint8 with the slope 1/255, which every reader of NIfTI applies."""

_VOXELS_START = 352


def restore_map(values: NDArray[np.float32], geometry: Geometry, *, outside: float = 0.0) -> NDArray[np.uint8]:
    """Bring fractions to the input's grid by linear interpolation, as `transforms.restore` does each class.

    Args:
        values: float32 [X, Y, Z] on the network's grid, 0 to 1.
        geometry: From `prepare`.
        outside: The fraction where the network did not look.

    Returns:
        uint8 [i, j, k], in steps of 1/255.
    """
    up, region = matrices_up(geometry)
    ras = np.full(geometry.ras_shape, round(STEPS * outside), np.uint8)
    ras[region] = np.rint(np.clip(resampling.apply(up, values), 0, 1) * STEPS)
    return from_ras(ras, geometry)


def write_labels_like(labels: NDArray[np.uint8], source: Path, out: Path) -> None:
    """Write a label map on the grid of `source`: same shape, affine, form codes and units; uint8; nothing else copied.

    The file appears whole or not at all.

    Args:
        labels: uint8 [i, j, k] in the source's axis order.
        source: The scan that was segmented.
        out: Where to write; ends in .nii or .nii.gz.

    Raises:
        DataError: The shape isn't the source's, or `out` isn't named as NIfTI.
        StorageError: The folder can't be written.
    """
    if not out.name.endswith(SUFFIXES):
        raise DataError("a label map is written as .nii or .nii.gz", where=str(out))
    header = header_like(source)
    shape = header.get_data_shape()
    if labels.shape != shape[:3] or math.prod(shape[3:]) != 1 or labels.dtype != np.uint8:
        raise DataError(f"labels {labels.shape} {labels.dtype} don't lie on the grid {shape}", where=str(source))
    header.set_intent("label")
    content = nib.Nifti1Image(labels.reshape(shape), None, header).to_bytes()
    write_whole(out, gzip.compress(content, 6, mtime=0) if out.name.endswith(".gz") else content)


def write_maps_like(maps: Iterable[NDArray[np.uint8]], source: Path, out: Path) -> None:
    """Write fractions on the grid of `source`; several along a fourth axis. The file appears whole or not at all.

    Args:
        maps: uint8 [i, j, k] each, in steps of 1/255.
        source: The scan that they were made from.
        out: A .nii.gz.

    Raises:
        DataError: The scan cannot be read.
        StorageError: The folder can't be written.
    """
    each = list(maps)
    header = header_like(source)
    data = each[0].reshape(header.get_data_shape()) if len(each) == 1 else np.stack(each, axis=3)
    header.set_data_shape(data.shape)
    header.set_slope_inter(1 / STEPS, 0)
    header["cal_max"] = 1
    header["vox_offset"] = _VOXELS_START
    # nibabel would choose a slope of its own, and the same fraction would not be the same number in two files.
    content = header.binaryblock.ljust(_VOXELS_START, b"\0") + data.tobytes(order="F")
    write_whole(out, gzip.compress(content, 4, mtime=0))
