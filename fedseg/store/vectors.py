"""Flat vectors that a study keeps: models (float32) and ring sums (uint32), as `.npy` without pickle."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import StorageError
from fedseg.store.files import storage_errors, write_atomic

MAX_BYTES = 1 << 31
DTYPES = (np.dtype("<f4"), np.dtype("<u4"))


def save_vector(path: Path, vector: NDArray[np.float32] | NDArray[np.uint32]) -> None:
    """Write a flat float32 or uint32 vector, whole or not at all, fsynced.

    Raises:
        StorageError: Another shape or type; the disk is full, or the folder missing or not writable.
    """
    _require_flat(vector, path)
    buffer = BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(vector), version=(1, 0), allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def load_model_vector(path: Path) -> NDArray[np.float32]:
    """A float32 vector; `StorageError` where the file is missing, cut short or something else."""
    vector: NDArray[np.float32] = _load(path, np.dtype("<f4"))
    return vector


def load_ring_vector(path: Path) -> NDArray[np.uint32]:
    """A uint32 vector; `StorageError` where the file is missing, cut short or something else."""
    vector: NDArray[np.uint32] = _load(path, np.dtype("<u4"))
    return vector


def _load(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    with storage_errors(path):
        if path.stat().st_size > MAX_BYTES:
            raise StorageError("the file is larger than any model", where=str(path))
        file = BytesIO(path.read_bytes())
    try:
        vector: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        raise StorageError("the file is cut short, or no vector", where=str(path)) from error
    if file.read(1):
        raise StorageError("something follows the vector in its file", where=str(path))
    _require_flat(vector, path)
    if vector.dtype != dtype:
        raise StorageError(f"the file holds {vector.dtype}, not {dtype}", where=str(path))
    return vector


def _require_flat(vector: NDArray[Any], path: Path) -> None:
    if vector.ndim != 1 or vector.dtype not in DTYPES:
        raise StorageError(f"not a flat vector of float32 or uint32: {vector.dtype} {vector.shape}", where=str(path))
