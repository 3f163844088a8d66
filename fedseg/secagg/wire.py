"""The canonical bytes of messages: one spelling a value, sizes capped before anything is read, no leftovers.

Integers are big-endian; text is UTF-8 with two bytes of length; maps are sorted by name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from itertools import pairwise

from fedseg.errors import ProtocolError

MAX_NAME = 64
MAX_BYTES = 1 << 20


def check_name(name: str, what: str = "site name", cap: int = MAX_NAME) -> None:
    """Refuse a name that is empty, over `cap` bytes of UTF-8, or not printable.

    Raises:
        ProtocolError: With what is wrong.
    """
    if not name or not name.isprintable():
        raise ProtocolError(f"a {what} is empty or not printable")
    if len(name.encode()) > cap:
        raise ProtocolError(f"a {what} is longer than {cap} bytes")


class Writer:
    """Collects the fields of one message."""

    def __init__(self, tag: bytes) -> None:
        """Begin with the tag that names the kind and version of the message."""
        self._parts = [tag]

    def uint(self, value: int, size: int) -> Writer:
        """An unsigned integer of `size` bytes."""
        return self.raw(value.to_bytes(size, "big"))

    def double(self, value: float) -> Writer:
        """An IEEE 754 double."""
        return self.raw(struct.pack(">d", value))

    def raw(self, data: bytes) -> Writer:
        """Bytes whose length both ends know."""
        self._parts.append(data)
        return self

    def text(self, value: str) -> Writer:
        """UTF-8 behind two bytes of length."""
        data = value.encode()
        return self.uint(len(data), 2).raw(data)

    def table(self, entries: Mapping[str, bytes]) -> Writer:
        """A count and, sorted by name, each name with bytes whose length both ends know."""
        self.uint(len(entries), 2)
        for name in sorted(entries):
            self.text(name).raw(entries[name])
        return self

    def names(self, listed: Iterable[str]) -> Writer:
        """A count and the names, sorted."""
        return self.table(dict.fromkeys(listed, b""))

    def blob(self, data: bytes) -> Writer:
        """Bytes behind four bytes of length."""
        return self.uint(len(data), 4).raw(data)

    def done(self) -> bytes:
        """The message."""
        return b"".join(self._parts)


class Reader:
    """Takes the fields of one message apart; whatever is odd is a `ProtocolError`."""

    def __init__(self, data: bytes, tag: bytes, what: str, cap: int = MAX_BYTES) -> None:
        """Check size and tag before anything else is looked at."""
        self._data = data
        self._at = 0
        self._what = what
        if len(data) > cap:
            raise self._error(f"longer than {cap} bytes")
        if self.raw(len(tag)) != tag:
            raise self._error("of another kind or version")

    def _error(self, problem: str) -> ProtocolError:
        return ProtocolError(f"this {self._what} is {problem}")

    def raw(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._at + size
        if end > len(self._data):
            raise self._error("cut short")
        data = self._data[self._at : end]
        self._at = end
        return bytes(data)

    def uint(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        return int.from_bytes(self.raw(size), "big")

    def flag(self) -> bool:
        """One byte, 0 or 1."""
        value = self.uint(1)
        if value > 1:
            raise self._error("holding a flag that is neither 0 nor 1")
        return value == 1

    def blob(self) -> bytes:
        """Bytes behind four bytes of length: no more than there are."""
        return self.raw(self.uint(4))

    def double(self) -> float:
        """An IEEE 754 double; NaN and infinity are the caller's to refuse."""
        return float(struct.unpack(">d", self.raw(8))[0])

    def text(self, what: str = "site name", cap: int = MAX_NAME) -> str:
        """UTF-8 behind two bytes of length, checked like any name."""
        size = self.uint(2)
        if size > cap:
            raise self._error(f"holding a {what} longer than {cap} bytes")
        try:
            value = self.raw(size).decode()
        except UnicodeDecodeError:
            raise self._error("not UTF-8 where it should be") from None
        check_name(value, what, cap)
        return value

    def count(self, cap: int) -> int:
        """How many entries follow, at most `cap`."""
        value = self.uint(2)
        if value > cap:
            raise self._error(f"holding more than {cap} entries")
        return value

    def names(self, cap: int) -> tuple[str, ...]:
        """Names in strictly ascending order, so that none comes twice."""
        names = tuple(self.text() for _ in range(self.count(cap)))
        self._check_order(names)
        return names

    def table(self, size: int, cap: int) -> dict[str, bytes]:
        """Names in strictly ascending order, each with `size` bytes."""
        entries = [(self.text(), self.raw(size)) for _ in range(self.count(cap))]
        self._check_order(tuple(name for name, _ in entries))
        return dict(entries)

    def _check_order(self, names: tuple[str, ...]) -> None:
        if any(first >= second for first, second in pairwise(names)):
            raise self._error("not sorted, or names a site twice")

    def done(self) -> None:
        """Refuse leftovers."""
        if self._at != len(self._data):
            raise self._error("followed by bytes that don't belong to it")
