"""Mask streams: AES-256-CTR (SP 800-38A) added in place to a vector of the ring Z/2^32.

Every stream has a key of its own, derived by HKDF-SHA256 (RFC 5869) from a fresh secret, the session and the names
of those who share it; so the counter block starts at zero and no key and counter ever meet twice.
A stream is never held whole: 256 KiB at a time, which stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedseg.errors import ProtocolError

PIECE = 65_536
_ZEROS = memoryview(bytes(4 * PIECE))
_DOMAIN = b"fedseg/secagg/v1/"


def derive(secret: bytes, sid: bytes, purpose: bytes, *names: str, length: int = 32) -> bytes:
    """A key for one purpose, one session and one ordered list of sites (HKDF-SHA256, salt = sid).

    Names are length-prefixed, so that no two lists give one `info`.
    """
    info = _DOMAIN + purpose + b"\0"
    for name in names:
        text = name.encode()
        info += len(text).to_bytes(2, "big") + text
    return HKDF(SHA256(), length, salt=sid, info=info).derive(secret)


def self_mask_key(seed: bytes, sid: bytes, site: str) -> bytes:
    """The key of the mask that `site` alone knows."""
    return derive(seed, sid, b"self-mask", site)


def pair_mask_key(agreed: bytes, sid: bytes, site: str, peer: str) -> bytes:
    """The key of the mask that two sites share, the same seen from either.

    Args:
        agreed: The X25519 output of one's mask key and the other's.
        sid: The session.
        site: One of the two.
        peer: The other.
    """
    return derive(agreed, sid, b"pair-mask", *sorted((site, peer)))


def pair_sign(site: str, peer: str) -> int:
    """+1 for the first of the two by name, -1 for the second, so that their shared mask cancels in the sum."""
    return 1 if site < peer else -1


def keystream(key: bytes, length: int) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    """The AES-256-CTR stream of `key` as `length` little-endian words, piece by piece.

    Yields:
        Where the piece belongs, and the piece: a view that the next one overwrites.
    """
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(4 * PIECE + 15)
    words = np.frombuffer(buffer, dtype="<u4", count=PIECE)
    for start in range(0, length, PIECE):
        count = min(PIECE, length - start)
        encryptor.update_into(_ZEROS[: 4 * count], buffer)
        yield slice(start, start + count), words[:count]


def add_mask(vector: NDArray[np.uint32], key: bytes, sign: int) -> None:
    """Add (`sign` 1) or subtract (`sign` -1) the stream of `key` to `vector`, in place, modulo 2^32.

    Raises:
        ProtocolError: `sign` is neither, or `vector` is not one row of uint32.
    """
    if sign not in (1, -1) or vector.dtype != np.uint32 or vector.ndim != 1:
        raise ProtocolError(f"cannot mask a {vector.dtype} array of {vector.ndim} axes with sign {sign}")
    combine = np.add if sign == 1 else np.subtract
    for where, words in keystream(key, vector.size):
        piece = vector[where]
        combine(piece, words, out=piece)
