"""The canonical bytes: each reader takes exactly what its writer writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedseg.errors import ProtocolError
from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.wire import Reader, Writer, check_name

from .helpers import session

TAG = b"test\0"


def reader(data: bytes) -> Reader:
    return Reader(TAG + data, TAG, "letter")


def test_what_is_written_is_read_back() -> None:
    writer = Writer(TAG).uint(258, 2).double(-0.5).text("é").names(["b", "a"]).table({"d": b"4", "c": b"3"})
    data = writer.blob(b"blob").raw(b"raw").done()
    assert data == (b"test\0\1\2\xbf\xe0\0\0\0\0\0\0\0\2\xc3\xa9\0\2\0\1a\0\1b\0\2\0\1c3\0\1d4\0\0\0\4blobraw"), (
        "integers big-endian, text and blobs behind their length, maps sorted"
    )
    again = Reader(data, TAG, "letter")
    assert (again.uint(2), again.double(), again.text(), again.names(2)) == (258, -0.5, "é", ("a", "b"))
    assert (again.table(1, 2), again.blob(), again.raw(3)) == ({"c": b"3", "d": b"4"}, b"blob", b"raw")
    again.done()


@pytest.mark.parametrize(
    ("data", "read", "message"),
    [
        (b"", lambda each: each.uint(1), "cut short"),
        (b"\0\3ab", lambda each: each.text(), "cut short"),
        (b"\0\0\0\3ab", lambda each: each.blob(), "cut short"),
        (b"\xff\xff\xff\xff", lambda each: each.blob(), "cut short"),
        (b"\2", lambda each: each.flag(), "holding a flag that is neither 0 nor 1"),
        (b"\xff", lambda each: each.flag(), "holding a flag that is neither 0 nor 1"),
        (b"\0\x41", lambda each: each.text(), "holding a site name longer than 64 bytes"),
        (b"\0\x41" + b"a" * 65, lambda each: each.text(), "holding a site name longer than 64 bytes"),
        (b"\0\4abcd", lambda each: each.text("kind", 3), "holding a kind longer than 3 bytes"),
        (b"\0\1\xff", lambda each: each.text(), "not UTF-8 where it should be"),
        (b"\0\3\xed\xa0\x80", lambda each: each.text(), "not UTF-8 where it should be"),
        (b"\0\2\xc1\x81", lambda each: each.text(), "not UTF-8 where it should be"),
        (b"\0\3", lambda each: each.count(2), "holding more than 2 entries"),
        (b"\0\2\0\1b\0\1a", lambda each: each.names(2), "not sorted, or names a site twice"),
        (b"\0\2\0\1a\0\1a", lambda each: each.names(2), "not sorted, or names a site twice"),
        (b"\0\2\0\1b-\0\1a-", lambda each: each.table(1, 2), "not sorted, or names a site twice"),
        (b"\0\2\0\1a-\0\1a-", lambda each: each.table(1, 2), "not sorted, or names a site twice"),
        (b"\0", lambda each: each.done(), "followed by bytes that don't belong to it"),
    ],
)
def test_what_cannot_have_been_written(data: bytes, read: Callable[[Reader], Any], message: str) -> None:
    with pytest.raises(ProtocolError, match=f"this letter is {message}"):
        read(reader(data))


@pytest.mark.parametrize("data", [b"\0\0", b"\0\1\n", b"\0\3\xe2\x80\x8b", b"\0\1\x7f"])
def test_names_that_nobody_could_read_are_refused_on_the_way_in(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="a site name is empty or not printable"):
        reader(data).text()


def test_lengths_of_names_are_of_their_bytes() -> None:
    check_name("é" * 32)
    with pytest.raises(ProtocolError, match="a site name is longer than 64 bytes"):
        check_name("é" * 32 + "a")


def test_a_header_s_kind_of_code_is_0_to_3() -> None:
    plain = session().to_bytes()
    scored = session(encoding=Encoding(3, 2.0, 10, 5, scored=True)).to_bytes()
    places = [place for place, (one, two) in enumerate(zip(plain, scored, strict=True)) if one != two]
    assert [(plain[place], scored[place]) for place in places] == [(0, 1)]
    with pytest.raises(ProtocolError, match="a code of kind 4 is unknown"):
        SessionHeader.from_bytes(plain[: places[0]] + b"\4" + plain[places[0] + 1 :])
