from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.rpc import transfer
from fedseg.rpc._pb import federation_pb2 as pb

VECTORS = hnp.arrays(np.uint32, st.integers(0, 40)) | hnp.arrays(np.float32, st.integers(0, 40))


def parts_of(pieces: list[bytes]) -> list[pb.DownloadPart]:
    return [pb.DownloadPart(chunk=piece) for piece in pieces]


@given(VECTORS, st.integers(1, 17))
def test_vectors_travel_in_pieces(vector: NDArray[np.uint32], piece: int) -> None:
    whole, told = vector.tobytes(), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "CHUNK_BYTES", piece)
        assert transfer.collect(parts_of(list(transfer.chunks(vector))), len(whole), told.append) == whole
    assert told == [*range(piece, len(whole), piece), *([len(whole)] if whole else [])]
    assert transfer.digest_of(vector) == hashlib.sha256(whole).digest()


def test_pieces_are_of_a_mebibyte_and_little_endian() -> None:
    vector = np.arange(600_000, dtype=np.uint32)
    pieces = list(transfer.chunks(vector))
    assert [len(piece) for piece in pieces] == [1 << 20, 1 << 20, 4 * 600_000 - (2 << 20)]
    swapped = vector.astype(">u4")
    assert list(transfer.chunks(swapped)) == pieces
    assert transfer.digest_of(swapped) == transfer.digest_of(vector)


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([], "a transfer was cut short: 0 of 10 bytes"),
        ([b"123456789"], "a piece of a transfer has 9 bytes instead of 10"),
        ([b"12345678901"], "a piece of a transfer has 11 bytes instead of 10"),
        ([b""], "a piece of a transfer has 0 bytes instead of 10"),
        ([b"1234567890", b""], "a transfer of 10 bytes brought more"),
        ([b"1234567890", b"1"], "a transfer of 10 bytes brought more"),
    ],
)
def test_transfers_of_a_wrong_size(pieces: list[bytes], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        transfer.collect(parts_of(pieces), 10, lambda _: None)


def test_only_the_last_piece_may_be_small() -> None:
    size = transfer.CHUNK_BYTES + 1
    whole = [bytes(transfer.CHUNK_BYTES), b"x"]
    assert transfer.collect(parts_of(whole), size, lambda _: None) == b"".join(whole)
    for pieces in (whole[::-1], [bytes(size)], [bytes(transfer.CHUNK_BYTES)]):
        with pytest.raises(ProtocolError):
            transfer.collect(parts_of(pieces), size, lambda _: None)
