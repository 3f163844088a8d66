"""Flat vectors that a study keeps: models (float32) and ring sums (uint32), as `.npy` without pickle."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedseg.errors import StorageError
from fedseg.store.files import storage_errors, write_parts

MAX_BYTES = 1 << 31
DTYPES = (np.dtype("<f4"), np.dtype("<u4"))
_VERSION = (1, 0)
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, TokenError)
"""What numpy raises on the header of a file that it did not write."""


def save_vector(path: Path, vector: NDArray[np.float32] | NDArray[np.uint32]) -> None:
    """Write a flat float32 or uint32 vector, whole or not at all, fsynced; a contiguous one is not copied.

    Raises:
        StorageError: Another shape or type; the disk is full, or the folder missing or not writable.
    """
    _require_flat(vector.shape, vector.dtype, path)
    flat, head = np.ascontiguousarray(vector), BytesIO()
    npy.write_array_header_1_0(head, npy.header_data_from_array_1_0(flat))
    write_parts(path, [head.getvalue(), flat.data])


def load_model_vector(path: Path) -> NDArray[np.float32]:
    """A float32 vector in memory of its own.

    Raises:
        StorageError: The file is missing, cut short or something else.
    """
    vector: NDArray[np.float32] = _load(path, np.dtype("<f4"))
    return vector


def load_ring_vector(path: Path) -> NDArray[np.uint32]:
    """A uint32 vector in memory of its own.

    Raises:
        StorageError: The file is missing, cut short or something else.
    """
    vector: NDArray[np.uint32] = _load(path, np.dtype("<u4"))
    return vector


def _load(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    with storage_errors(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise StorageError("the file is larger than any model", where=str(path))
        count = _read_header(file, path, dtype)
        end = file.tell() + count * dtype.itemsize
        if size > end:
            raise StorageError("something follows the vector in its file", where=str(path))
        # Read, not mapped: a map of a file that another program cuts short would end this process.
        if size < end or (vector := np.fromfile(file, dtype, count)).size < count:
            raise StorageError("the file is cut short, or no vector", where=str(path))
        return vector


def _read_header(file: BinaryIO, path: Path, dtype: np.dtype[Any]) -> int:
    """How many numbers of type `dtype` follow."""
    try:
        if npy.read_magic(file) != _VERSION:
            raise ValueError("another version")
        shape, _, found = npy.read_array_header_1_0(file)
    except _UNREADABLE as error:
        raise StorageError("the file is cut short, or no vector", where=str(path)) from error
    _require_flat(shape, found, path)
    if found != dtype:
        raise StorageError(f"the file holds {found}, not {dtype}", where=str(path))
    return int(shape[0])


def _require_flat(shape: tuple[int, ...], dtype: np.dtype[Any], path: Path) -> None:
    if len(shape) != 1 or dtype not in DTYPES:
        raise StorageError(f"not a flat vector of float32 or uint32: {dtype} {shape}", where=str(path))
