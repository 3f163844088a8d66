"""Maps of fractions (probabilities, uncertainty) on a scan's own grid, and their files."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging import resampling
from fedseg.imaging.nifti import _GEOMETRY_FIELDS, _open, nib, write_whole
from fedseg.imaging.transforms import Geometry, _matrices_up, from_ras

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
    up, region = _matrices_up(geometry)
    ras = np.full(geometry.ras_shape, round(STEPS * outside), np.uint8)
    ras[region] = np.rint(np.clip(resampling.apply(up, values), 0, 1) * STEPS)
    return from_ras(ras, geometry)


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
    scan = _open(source)
    data = each[0].reshape(scan.shape) if len(each) == 1 else np.stack(each, axis=3)
    header = nib.Nifti1Header()
    for name in _GEOMETRY_FIELDS:
        header[name] = scan.header[name]
    header.set_data_dtype(np.uint8)
    header.set_data_shape(data.shape)
    header.set_slope_inter(1 / STEPS, 0)
    header["cal_max"] = 1
    header["vox_offset"] = _VOXELS_START
    # nibabel would choose a slope of its own, and the same fraction would not be the same number in two files.
    content = header.binaryblock.ljust(_VOXELS_START, b"\0") + data.tobytes(order="F")
    write_whole(out, gzip.compress(content, 4, mtime=0), mode=0o644)
