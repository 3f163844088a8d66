"""One party's audit log: what it was asked, what it answered and under which roster, chained and signed.

JSON Lines of `privacy.chain`. Beside what it says (`audit_records`), each record's body has `signed`: the party's
Ed25519 signature over kind, time and body, bound to the hash of the record before. So nobody without the party's key
can write a line, and the party itself can't change one that somebody else has seen. No patient data is in it.

A log is held open and locked by the process that writes it; anybody may read it meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedseg.errors import LedgerError, ProtocolError
from fedseg.privacy.chain import Record, parse, seal
from fedseg.secagg import signing
from fedseg.store.audit_records import Begin, Body, Role, parse_body
from fedseg.store.files import storage_errors
from fedseg.store.journal import Complete, Journal, utc_now

LOG = "audit.jsonl"
SIGNED = "signed"
STEP = "audit"
MAX_LINE = 1 << 22
MAX_LOG = 1 << 27
_HINT = (
    "sent by another party: ask for the whole file again; this machine's own: no older copy will do, as others hold "
    "what it lacks; begin a new state folder with a new invite, and every site approves the changed roster"
)


class AuditLog:
    """A party's log while this process writes it. Use `create` or `open`, and close it: it is a context manager."""

    def __init__(self, journal: Journal) -> None:
        """Lock the journal for as long as this log is open; see `open`."""
        self._path, self._held = journal.path, ExitStack()
        self._entry = self._held.enter_context(journal.locked(wait=False))
        self._end = self._identity()
        self._open = True

    @classmethod
    def create(
        cls, path: Path, key: bytes, role: Role, party: str, study: str, *, clock: Callable[[], str] = utc_now
    ) -> AuditLog:
        """Begin a party's log.

        Args:
            path: The file; its folder must exist.
            key: The party's Ed25519 key, 32 bytes.
            role: What the party is.
            party: Its name; "server" for the server.
            study: The study's identifier.
            clock: Gives each record its time.

        Raises:
            LedgerError: There is one already, or a name that cannot be.
            StorageError: The disk is full or the folder not writable.
        """
        begin = {"role": role, "party": party, "key": signing.public_half(key).hex(), "study": study}
        parse_body("begin", begin)
        Journal.create(path, "begin", begin, clock=clock, complete=_signer(key, party))
        return cls.open(path, key, clock=clock)

    @classmethod
    def open(cls, path: Path, key: bytes, *, clock: Callable[[], str] = utc_now) -> AuditLog:
        """Go on with a party's log. The end of a record that a crash had cut short is dropped, and a record says so.

        Raises:
            LedgerError: It is missing, broken, begun with another key, not all signed with this one, or being
                written by another process.
            StorageError: It cannot be read or written.
        """
        records = read(path)
        begin = opening(records[0] if records else None, str(path))
        if begin.key != signing.public_half(key).hex():
            hint = "restore the key that it was begun with: what another key adds would prove nothing"
            raise LedgerError(f"this is not the key that {begin.party} began this log with", where=str(path), hint=hint)
        for number, record in enumerate(records, 1):
            check_signature(record, begin, f"{path}, line {number}")
        return cls(Journal(path, clock=clock, complete=_signer(key, begin.party)))

    def append(self, kind: str, body: Mapping[str, object]) -> Record:
        """Sign a record and make it durable; what this costs does not grow with the log.

        Args:
            kind: One of `audit_records.KINDS`.
            body: Exactly its fields.

        Raises:
            LedgerError: An audit would refuse such a record, the log is closed, or somebody else has changed it.
            StorageError: The disk is full or failing. The log is as before, and what the record says must not happen.
        """
        parse_body(kind, body)
        if not self._open or self._identity() != self._end:
            hint = "start again; if that is refused, restore the newest copy"
            what = "the log was changed or replaced under the process that writes it" if self._open else "it is closed"
            raise LedgerError(what, where=str(self._path), hint=hint)
        record = self._entry.append(kind, body)
        self._end = self._identity()
        return record

    def entries(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Kind and body of every record, without the log's own signatures."""
        return tuple((record.kind, _unsigned(record.body)) for record in self._entry.records)

    def close(self) -> None:
        """Let go of the log."""
        self._open = False
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _identity(self) -> tuple[int, ...]:
        """Which file this process writes, which one stands at the path, and where they end."""
        with storage_errors(self._path):
            held, named = os.fstat(self._entry.descriptor), self._path.stat()
        return held.st_dev, held.st_ino, held.st_size, named.st_dev, named.st_ino, named.st_size


class LogReader:
    """Iterates once over the records of a log, each checked to follow the one before; signatures are not checked.

    Args:
        path: The file. It may be written meanwhile, and may come from elsewhere: what is read is bounded.

    Attributes:
        unfinished: After the last record: bytes of a line that has no end yet. It is being written, or was cut short
            by a crash; either way it never counted.

    Raises:
        LedgerError: From the iteration: the file is missing, too large, or broken at the line that is named.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self.unfinished = 0

    def __iter__(self) -> Iterator[Record]:
        last = None
        for number, line in enumerate(self._lines(), 1):
            where = f"{self.path}, line {number}"
            record = parse(line, where)
            if not _follows(record, last):
                what = "this record was changed after it was written, or does not follow the one before it"
                raise LedgerError(what, where=where, hint=_HINT)
            last = record
            yield record

    def _lines(self) -> Iterator[bytes]:
        """Whole lines, without their ends, of what is there now."""
        if not self.path.is_file():
            raise LedgerError("there is no audit log", where=str(self.path))
        with storage_errors(self.path), self.path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            if left > MAX_LOG:
                raise LedgerError(f"no audit log has {left} bytes; the most is {MAX_LOG}", where=str(self.path))
            while left > 0:
                line = file.readline(min(left, MAX_LINE))
                left -= len(line)
                if not line.endswith(b"\n"):
                    self._unended(line, left)
                    return
                yield line[:-1]

    def _unended(self, line: bytes, left: int) -> None:
        if left > 0 and line:
            raise LedgerError(f"a line is longer than {MAX_LINE} bytes", where=str(self.path), hint=_HINT)
        self.unfinished = len(line)


def read(path: Path) -> tuple[Record, ...]:
    """All whole records of a log, checked to follow one another; see `LogReader` for the errors."""
    return tuple(LogReader(path))


def opening(record: Record | None, where: str) -> Begin:
    """Whose log this is, by its first record.

    Raises:
        LedgerError: It is no opening record.
    """
    body = statement(record) if record is not None and record.kind == "begin" else None
    if not isinstance(body, Begin):
        raise LedgerError("the log does not begin with its opening record", where=where, hint=_HINT)
    return body


def statement(record: Record) -> Body:
    """What a record says, without the log's own signature.

    Raises:
        LedgerError: No such kind, or not exactly its fields.
    """
    return parse_body(record.kind, _unsigned(record.body))


def check_signature(record: Record, begin: Begin, where: str) -> None:
    """Refuse a record that the key of the log's opening record did not sign in this very place.

    Raises:
        LedgerError: It didn't; says `where`.
    """
    signature = record.body.get(SIGNED)
    try:
        signing.verify(
            bytes.fromhex(begin.key),
            STEP,
            bytes.fromhex(record.previous),
            begin.party,
            _content(record.kind, record.time, _unsigned(record.body)),
            bytes.fromhex(signature) if isinstance(signature, str) else b"",
        )
    except (ProtocolError, ValueError, RecursionError):
        what = f"this record is not signed by the key that {begin.party} began the log with"
        raise LedgerError(what, where=where, hint=_HINT) from None


def _follows(record: Record, last: Record | None) -> bool:
    try:
        return record == seal(last, record.kind, record.body, record.time)
    except RecursionError:
        return False


def _signer(key: bytes, party: str) -> Complete:
    def complete(previous: str, kind: str, time: str, body: Mapping[str, object]) -> Mapping[str, object]:
        signature = signing.sign(key, STEP, bytes.fromhex(previous), party, _content(kind, time, body))
        return {**body, SIGNED: signature.hex()}

    return complete


def _unsigned(body: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if name != SIGNED}


def _content(kind: str, time: str, body: Mapping[str, object]) -> bytes:
    fields = {"kind": kind, "time": time, "body": body}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
