"""Vectors on the wire: little-endian, in pieces of 1 MiB, each transfer exactly as long as was said ahead of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc.codec import sized

CHUNK_BYTES = 1 << 20


def digest_of(vector: NDArray[np.uint32] | NDArray[np.float32]) -> bytes:
    """SHA-256 of a vector's little-endian bytes."""
    return hashlib.sha256(_little_endian(vector)).digest()


def chunks(vector: NDArray[np.uint32] | NDArray[np.float32]) -> Iterator[bytes]:
    """A vector's little-endian bytes, 1 MiB at a time."""
    view = _little_endian(vector)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def pieces(parts: Iterable[pb.UploadPart] | Iterable[pb.DownloadPart], size: int) -> Iterator[bytes]:
    """The chunks of a transfer of `size` bytes, which the caller has bounded.

    Each chunk but the last has 1 MiB, so that the other end cannot make a transfer of endless small ones.

    Raises:
        ProtocolError: if there are more or fewer bytes, a chunk of another size, or a second header.
    """
    left = size
    for part in parts:
        if not left:
            raise ProtocolError(f"a transfer of {size} bytes brought more")
        expected = min(CHUNK_BYTES, left)
        yield sized(part.chunk, expected, "a piece of a transfer")
        left -= expected
    if left:
        raise ProtocolError(f"a transfer was cut short: {size - left} of {size} bytes")


def collect(
    parts: Iterable[pb.UploadPart] | Iterable[pb.DownloadPart], size: int, on_bytes: Callable[[int], None]
) -> bytearray:
    """Join the chunks of a transfer into one buffer of `size` bytes, which the caller has bounded.

    Args:
        parts: What follows the header.
        size: Bytes to expect.
        on_bytes: Told how many are there.

    Raises:
        ProtocolError: see `pieces`.
    """
    buffer, filled = bytearray(size), 0
    for piece in pieces(parts, size):
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
        on_bytes(filled)
    return buffer


def _little_endian(vector: NDArray[np.uint32] | NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(vector, dtype=vector.dtype.newbyteorder("<")).view(np.uint8).data
