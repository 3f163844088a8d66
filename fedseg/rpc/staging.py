"""An upload on disk until it is whole, so that the server's memory does not grow with the number of uploads.

A vector that has been added to a sum cannot be taken out again, so none is added before all of it is there and its
digest fits. It waits in a file without a name: nobody else can open or change it, and none is left after a crash.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError, StorageError
from fedseg.rpc.transfer import CHUNK_BYTES

MAX_BYTES = 1 << 31
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Raw(Protocol):
    def write(self, data: memoryview, /) -> int: ...


def stage(folder: Path, parts: Iterable[bytes], size: int) -> NDArray[np.uint32]:
    """Write the pieces of an upload to an unlinked file as they come, and map it.

    Args:
        folder: Where the file lies (mode 0600); on a disk with room for one upload a site.
        parts: Pieces of at most 1 MiB.
        size: Bytes of all together: whole 32-bit words, at most 2 GiB.

    Returns:
        uint32[size / 4], read-only: a view of the file, whose room is free again when the view is.

    Raises:
        ProtocolError: More or fewer bytes, an empty piece or one larger than 1 MiB; a size that no vector has, before
            anything is written.
        StorageError: The disk is full, or the folder missing or not writable.
    """
    if not 0 < size <= MAX_BYTES or size % 4:
        raise ProtocolError(f"no vector has {size} bytes")
    with ExitStack() as stack:
        with _storage_errors(folder):
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
        for part in _whole(parts, size):
            with _storage_errors(folder):
                _write(file, part)
        with _storage_errors(folder):
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, dtype="<u4").astype(np.uint32, copy=False)


def _whole(parts: Iterable[bytes], size: int) -> Iterator[bytes]:
    left = size
    for part in parts:
        if not 0 < len(part) <= min(CHUNK_BYTES, left):
            raise ProtocolError(f"a piece of {len(part)} bytes where {left} of {size} were left to come")
        yield part
        left -= len(part)
    if left:
        raise ProtocolError(f"a transfer was cut short: {size - left} of {size} bytes")


def _write(file: _Raw, part: bytes) -> None:
    """All of `part`: without a buffer a write may stop short, and says why when it is tried again."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        what = "no room is left on the disk for an upload" if full else f"an upload cannot be kept: {error.strerror}"
        hint = "free some space: a site sends its upload again" if full else "use a folder that can be written to"
        raise StorageError(what, where=str(folder), hint=hint) from error
