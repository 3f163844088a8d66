"""Hash-chained records: each one carries its number and its predecessor's hash.

No line can be changed, removed or moved unseen, except lines cut off at the end: for those somebody else must
remember the head.

One record is one line of canonical JSON: sorted keys, no spaces, ASCII, no NaN.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedseg.errors import LedgerError

GENESIS = "0" * 64
_FIELDS = {"body", "hash", "kind", "previous", "sequence", "time"}


@dataclass(frozen=True)
class Record:
    """One line.

    Args:
        sequence: Its number, from 0.
        previous: Hash of the record before; `GENESIS` for the first.
        kind: What it says.
        time: When it was written (UTC, ISO 8601), or empty; nothing is derived from it.
        body: JSON values.
        hash: SHA-256 of all the others, as hex.
    """

    sequence: int
    previous: str
    kind: str
    time: str
    body: Mapping[str, object]
    hash: str

    def line(self) -> bytes:
        """The record as stored, with its line end."""
        return _canonical({**_content(self), "hash": self.hash}) + b"\n"


def seal(previous: Record | None, kind: str, body: Mapping[str, object], time: str = "") -> Record:
    """The record that follows `previous` (None: the first one).

    Raises:
        LedgerError: `body` is not JSON.
    """
    sequence, link = (previous.sequence + 1, previous.hash) if previous else (0, GENESIS)
    unsealed = Record(sequence, link, kind, time, body, "")
    try:
        digest = _digest(unsealed)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"a {kind} record cannot be written as JSON: {error}") from error
    return Record(sequence, link, kind, time, body, digest)


def parse(line: bytes, where: str) -> Record:
    """The record in one stored line, without its line end.

    Raises:
        LedgerError: The line is anything but what `Record.line` writes; says `where`.
    """
    try:
        values = json.loads(line)
        record = Record(**values) if isinstance(values, dict) and set(values) == _FIELDS else None
        if record is None or not _typed(record) or record.line() != line + b"\n":
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError("this line is not a record", where=where, hint=_HINT) from error
    return record


def verify(records: Iterable[Record], where: str = "ledger") -> None:
    """Check that records are numbered from 0, unchanged and chained.

    Raises:
        LedgerError: They are not; says `where` and the line, from 1.
    """
    link = GENESIS
    for number, record in enumerate(records):
        place = f"{where}, line {number + 1}"
        if record.sequence != number:
            raise LedgerError(f"record {number} is missing: here stands {record.sequence}", where=place, hint=_HINT)
        if record.previous != link:
            raise LedgerError("this record does not follow the one before it", where=place, hint=_HINT)
        if record.hash != _digest(record):
            raise LedgerError("this record was changed after it was written", where=place, hint=_HINT)
        link = record.hash


_HINT = "restore the whole file from a backup; never edit it"


def _content(record: Record) -> dict[str, object]:
    return {
        "sequence": record.sequence,
        "previous": record.previous,
        "kind": record.kind,
        "time": record.time,
        "body": dict(record.body),
    }


def _typed(record: Record) -> bool:
    texts = (record.previous, record.kind, record.time, record.hash)
    return type(record.sequence) is int and isinstance(record.body, dict) and all(isinstance(x, str) for x in texts)


def _digest(record: Record) -> str:
    return hashlib.sha256(b"fedseg/record/v1\n" + _canonical(_content(record))).hexdigest()


def _canonical(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
