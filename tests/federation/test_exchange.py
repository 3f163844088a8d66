from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from fedseg.federation.exchange import Published, Submit, Unmask, closing_statement

TOTAL = np.array([1, 2**32 - 1, 7], dtype=np.uint32)
PUBLISHED = Published(3, ("a", "b"), TOTAL, bytes(32), "ab" * 32, bytes(64))


def test_what_is_long_or_sealed_stays_out_of_logs() -> None:
    assert "secret" not in repr(Submit(bytes(32), ("a", "b"), {"b": b"secret"}))
    assert "signed" not in repr(Unmask(bytes(32), {"b": b"signed"}))
    assert "array" not in repr(PUBLISHED)


def test_a_sum_is_known_by_its_little_endian_bytes() -> None:
    digest = hashlib.sha256(bytes.fromhex("01000000 ffffffff 07000000")).digest()
    assert PUBLISHED.digest == digest
    assert replace(PUBLISHED, total=TOTAL.astype(">u4")).digest == digest
    assert replace(PUBLISHED, total=np.repeat(TOTAL, 2)[::2]).digest == digest


def test_the_server_s_statement_is_spelled_out() -> None:
    said = b"fedseg/federation/v1/closed\0" + bytes.fromhex("00000003 0002 0001 61 0001 62")
    assert PUBLISHED.statement == said + PUBLISHED.digest + bytes.fromhex("ab" * 32)
    assert closing_statement(3, ("a", "b"), PUBLISHED.digest, "ab" * 32) == PUBLISHED.statement


@pytest.mark.parametrize(
    "other",
    [
        replace(PUBLISHED, round=4),
        replace(PUBLISHED, contributors=("a",)),
        replace(PUBLISHED, contributors=("a", "b", "c")),
        replace(PUBLISHED, contributors=("ab",)),
        replace(PUBLISHED, total=TOTAL + np.uint32(1)),
        replace(PUBLISHED, next_model="cd" * 32),
    ],
)
def test_the_server_s_statement_says_all_that_closes_a_round(other: Published) -> None:
    assert other.statement != PUBLISHED.statement
