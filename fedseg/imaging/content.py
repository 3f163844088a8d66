"""What a scan is, whatever its file is called: a hash of its voxels."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.imaging.nifti import read_image

_DOMAIN = b"fedseg/scan/v1\0"


def voxel_hash(image: Path) -> bytes:
    """SHA-256 of a scan's grey values, sorted.

    Sorted, because their order in the file is a matter of its header: a file that was renamed, compressed anew,
    stripped of its description, given another orientation, turned or flipped has the hash that it had. Two scans with
    the same grey values in another order would have one hash too; no two acquisitions do. A scan that was resampled,
    cut, scaled or denoised has another: the ids and the subject_key have to tell whose it is.

    Args:
        image: A NIfTI volume; its values as float32, scaled as its header says.

    Raises:
        DataError: As `read_image`.
    """
    return hash_of(np.sort(np.asarray(read_image(image).data, dtype=np.float32), axis=None))


def hash_of(values: NDArray[np.floating]) -> bytes:
    """The `voxel_hash` of a scan whose values, float32, were sorted before."""
    # Adding 0 turns -0.0 into 0.0, which is the same grey.
    return hashlib.sha256(_DOMAIN + (values + np.float32(0)).astype("<f4").tobytes()).digest()
