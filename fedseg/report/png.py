"""PNG from numpy: enough of ISO 15948 for small pictures, the same bytes everywhere."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _INDEXED = 0, 2, 3
_PAETH = 4


def encode_rgb(picture: NDArray[np.uint8]) -> bytes:
    """A PNG of a picture of shape (rows, columns, 3)."""
    rows, columns, _ = picture.shape
    filtered = np.empty((rows, 1 + 3 * columns), dtype=np.uint8)
    filtered[:, 0] = _PAETH
    filtered[:, 1:] = (picture - _predicted(picture)).reshape(rows, -1)
    return _file(picture.shape, 8, _RGB, zlib.compress(filtered.tobytes(), 9))


def encode_grey(picture: NDArray[np.uint8]) -> bytes:
    """A PNG of a picture of shape (rows, columns), filtered or not, whichever is smaller."""
    filtered = [(0, picture), (_PAETH, picture - _predicted(picture[..., None])[..., 0])]
    bodies = [zlib.compress(_lines(kind, values), 9) for kind, values in filtered]
    return _file(picture.shape, 8, _GREY, min(bodies, key=len))


def encode_indexed(picture: NDArray[np.uint8], palette: Sequence[tuple[int, int, int]]) -> bytes:
    """A PNG of classes of shape (rows, columns): 0 is transparent, 1..N have the palette's colours; N at most 255.

    One, two, four or eight bits a pixel, as few as the palette allows.
    """
    bits = next(bits for bits in (1, 2, 4, 8) if len(palette) < 2**bits)
    each = 8 // bits
    padded = np.pad(picture, ((0, 0), (0, -picture.shape[1] % each)))
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * np.uint8(bits)
    packed = np.bitwise_or.reduce(padded.reshape(len(picture), -1, each) << shifts, axis=2)
    colours = bytes(value for colour in ((0, 0, 0), *palette) for value in colour)
    chunks = _chunk(b"PLTE", colours) + _chunk(b"tRNS", b"\0")
    return _file(picture.shape, bits, _INDEXED, zlib.compress(_lines(0, packed), 9), chunks)


def _lines(kind: int, values: NDArray[np.uint8]) -> bytes:
    """Each row after the number of its filter."""
    return np.pad(values, ((0, 0), (1, 0)), constant_values=kind).tobytes()


def _file(shape: tuple[int, ...], bits: int, colour: int, body: bytes, chunks: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", shape[1], shape[0], bits, colour, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + chunks + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _predicted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Paeth's guess of each value from its neighbours left, above and above left (ISO 15948, 9.4)."""
    padded = np.pad(picture, ((1, 0), (1, 0), (0, 0))).astype(np.int16)
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    guess = left + above - corner
    to_left, to_above, to_corner = (np.abs(guess - each) for each in (left, above, corner))
    best = np.where(to_above <= to_corner, above, corner)
    best = np.where((to_left <= to_above) & (to_left <= to_corner), left, best)
    return best.astype(np.uint8)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
