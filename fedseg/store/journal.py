"""An append-only file of hash-chained JSON Lines that several processes may share.

A record is durable (file and folder fsynced) when `write` or `append` returns. The lock is held only inside `locked`,
which first reads what others have added. A last line without its line end was never durable: it is dropped, and a
`repair` record says so. Any other damage, and any record seen before that is gone, is refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedseg.errors import LedgerError, StorageError
from fedseg.privacy.chain import GENESIS, Record, parse, seal, verify
from fedseg.store.files import fsync_folder, storage_errors, write_atomic

Complete = Callable[[str, str, str, Mapping[str, object]], Mapping[str, object]]
"""Given the hash of the record before, a kind, a time and a body: the body to write, which may add a signature."""


def utc_now() -> str:
    """The time as ISO 8601, to the second, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _as_given(_previous: str, _kind: str, _time: str, body: Mapping[str, object]) -> Mapping[str, object]:
    return body


@dataclass
class Entry:
    """A journal while this process holds its lock: an append costs its own length, however long the journal is.

    Attributes:
        records: All records, this process's own appends included.
    """

    path: Path
    descriptor: int
    records: list[Record]
    clock: Callable[[], str]
    complete: Complete = field(default=_as_given)

    def append(self, kind: str, body: Mapping[str, object]) -> Record:
        """Seal a record onto the chain and make it durable.

        Raises:
            StorageError: The disk is full or failing; the journal is as before.
            LedgerError: `body` is not JSON.
        """
        last, time = self.records[-1] if self.records else None, self.clock()
        return self.write(seal(last, kind, self.complete(last.hash if last else GENESIS, kind, time, body), time))

    def write(self, record: Record) -> Record:
        """Make a record durable that was sealed onto this journal's last one.

        Raises:
            StorageError: The disk is full or failing; the journal is as before.
            LedgerError: The record does not follow the last one.
        """
        if record != seal(self.records[-1] if self.records else None, record.kind, record.body, record.time):
            raise LedgerError("this record does not follow the last one", where=str(self.path))
        end = os.fstat(self.descriptor).st_size
        try:
            with storage_errors(self.path):
                _write_all(self.descriptor, record.line())
                os.fsync(self.descriptor)
                fsync_folder(self.path.parent)
        except StorageError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, end)
            raise
        self.records.append(record)
        return record


class Journal:
    """One journal file; see the module's docstring. Open it with `Journal.open` or `Journal.create`."""

    def __init__(self, path: Path, *, clock: Callable[[], str] = utc_now, complete: Complete = _as_given) -> None:
        """Nothing is read yet; use `open`."""
        self.path = path
        self.records: tuple[Record, ...] = ()
        self._clock, self._complete = clock, complete

    @classmethod
    def open(cls, path: Path, *, create: bool = False, clock: Callable[[], str] = utc_now) -> Journal:
        """Replay a journal; repair its end if a write was cut short.

        Args:
            path: The file.
            create: Begin an empty journal where there is none.
            clock: Gives each record its time.

        Raises:
            LedgerError: It is missing (and not to be created) or broken; names the file and the line.
            StorageError: It cannot be read or written.
        """
        if create and not path.exists():
            with storage_errors(path):
                os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
                fsync_folder(path.parent)
        journal = cls(path, clock=clock)
        journal.refresh()
        return journal

    @classmethod
    def create(
        cls,
        path: Path,
        kind: str,
        body: Mapping[str, object],
        *,
        clock: Callable[[], str] = utc_now,
        complete: Complete = _as_given,
    ) -> Journal:
        """Begin a journal with its first record; the file is never seen without it.

        Raises:
            LedgerError: There is one already.
            StorageError: The disk is full or the folder not writable.
        """
        if path.exists():
            raise LedgerError("there is a journal already", where=str(path))
        time = clock()
        write_atomic(path, seal(None, kind, complete(GENESIS, kind, time, body), time).line())
        journal = cls(path, clock=clock, complete=complete)
        journal.refresh()
        return journal

    def refresh(self) -> tuple[Record, ...]:
        """Read what was added, by whomever; the same errors as `open`."""
        with self.locked() as entry:
            return tuple(entry.records)

    def append(self, kind: str, body: Mapping[str, object]) -> Record:
        """Lock, read what others added, and make one record durable; the errors of `open` and `Entry.append`."""
        with self.locked() as entry:
            return entry.append(kind, body)

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[Entry]:
        """Hold the journal's lock; what is decided inside is decided on all records there are.

        Args:
            wait: Until another process lets go of it; otherwise that is a `LedgerError`.
        """
        descriptor = self._open()
        try:
            self._lock(descriptor, wait)
            entry = self._replay(descriptor)
            try:
                yield entry
            finally:
                self.records = tuple(entry.records)
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, wait: bool) -> None:
        with storage_errors(self.path):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                hint = "let that one go on, or stop it first"
                raise LedgerError("another process is writing it", where=str(self.path), hint=hint) from None

    def _open(self) -> int:
        try:
            with storage_errors(self.path):
                return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise LedgerError("the journal is missing", where=str(self.path), hint="restore it") from error
            raise

    def _replay(self, descriptor: int) -> Entry:
        where = str(self.path)
        if not self.path.exists() or self.path.stat().st_ino != os.fstat(descriptor).st_ino:
            raise LedgerError("the journal was replaced while waiting for it", where=where, hint="start again")
        content = _read_all(descriptor, self.path)
        *lines, rest = content.split(b"\n")
        records = tuple(parse(line, f"{where}, line {number}") for number, line in enumerate(lines, 1))
        verify(records, where)
        self._refuse_rollback(records)
        entry = Entry(self.path, descriptor, list(records), self._clock, self._complete)
        if rest:
            with storage_errors(self.path):
                os.ftruncate(descriptor, len(content) - len(rest))
            entry.append("repair", {"discarded_bytes": len(rest)})
        return entry

    def _refuse_rollback(self, records: tuple[Record, ...]) -> None:
        known = len(self.records)
        if len(records) < known or (known and records[known - 1].hash != self.records[-1].hash):
            raise LedgerError(
                f"the journal was rolled back: {known} records were here before",
                where=str(self.path),
                hint="restore the newest copy",
            )


def _read_all(descriptor: int, path: Path) -> bytes:
    with storage_errors(path):
        parts, offset = [], 0
        while part := os.pread(descriptor, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
