"""One hospital's privacy ledger and its secret, on disk, outside any study's state folder.

`ledger.jsonl` holds the charges, `ledger.key` the secret that turns subjects' ids and scans into keyed hashes. Each
without the other is refused, as is a key that the ledger was not opened with: a new key would give every subject a new
name and so a clean history.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedseg.errors import LedgerError
from fedseg.privacy.chain import Record
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.identity import Link, Subject, spelling
from fedseg.privacy.ledger import Budget, Countersigned, Ledger, check_budget
from fedseg.store.files import fsync_folder, storage_errors, write_atomic
from fedseg.store.journal import Entry, Journal, utc_now

LEDGER, KEY, UNFINISHED = "ledger.jsonl", "ledger.key", ".unfinished"
Told = Callable[[str], None]
"""Called with the head after a charge, once it is durable and while the ledger is locked."""

_KEY_BYTES = 32
_HINT = "restore both files from the same backup; training goes on only with the whole history"


class HospitalLedger:
    """The ledger of one hospital; several processes may hold it open. Open it with `HospitalLedger.open`."""

    def __init__(self, journal: Journal, secret: bytes, tell: Told = lambda _: None) -> None:
        """Use `open`, which checks that the two belong together."""
        self._journal, self._secret, self._tell = journal, secret, tell

    @classmethod
    def open(cls, folder: Path) -> HospitalLedger:
        """Open the ledger in `folder`; it is never made here, so that a lost one is not taken for a first use.

        Raises:
            LedgerError: A file is missing, the two don't belong together, or the ledger is broken.
            StorageError: The folder cannot be read or written.
        """
        path, key = folder / LEDGER, folder / KEY
        if (folder / UNFINISHED).exists():
            raise LedgerError("the ledger was never finished", where=str(folder), hint="join again to begin it anew")
        _refuse_half(path, key)
        with storage_errors(key):
            secret = key.read_bytes()
        ledger = cls(Journal.open(path), secret)
        ledger._check_key(key)
        return ledger

    @classmethod
    def create(cls, folder: Path) -> HospitalLedger:
        """Begin a hospital's ledger, or open the one that is there.

        Only for a hospital that has none. A creation that was cut off before anything could be charged begins anew.

        Raises:
            LedgerError: As `open`.
            StorageError: The folder cannot be made or written.
        """
        path, key, unfinished = folder / LEDGER, folder / KEY, folder / UNFINISHED
        with storage_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _folder_lock(folder):
            if unfinished.exists():
                path.unlink(missing_ok=True)
                key.unlink(missing_ok=True)
            if not path.exists() and not key.exists():
                write_atomic(unfinished, b"")
                _begin(path, key)
                unfinished.unlink()
                fsync_folder(folder)
        return cls.open(folder)

    def told(self, tell: Told) -> HospitalLedger:
        """The same ledger, which tells its head after each charge; where `tell` fails, so does `charge`."""
        return HospitalLedger(self._journal, self._secret, tell)

    @property
    def folder(self) -> Path:
        """Where the two files are."""
        return self._journal.path.parent

    @property
    def ledger(self) -> Ledger:
        """All records, as they stand on disk, verified."""
        return Ledger.from_records(self._journal.refresh(), str(self._journal.path))

    def keys_of(self, subject: Subject) -> Link:
        """Keyed hashes of all that names a subject: HMAC-SHA256 under this hospital's secret, 64 hex digits each.

        The first is the one it is charged under: of its subject_key, else of its id. Then those of its ids (spelled as
        `identity.spelling` has them) and of its scans.
        """
        names = [self._key(b"unit", spelling(subject.key).encode())] if subject.key is not None else []
        names += [self._key(b"subject", spelling(name).encode()) for name in subject.ids]
        return tuple(dict.fromkeys([*names, *(self._key(b"scan", scan) for scan in subject.scans)]))

    def knows(self, subjects: Iterable[Subject]) -> bool:
        """Whether a scan of one of them was ever charged here, under whatever name."""
        known = self.ledger.groups
        return any(self._key(b"scan", scan) in known for subject in subjects for scan in subject.scans)

    def charge(
        self,
        charge: RoundCharge,
        *,
        study_budget: Budget,
        lifetime_budget: Budget | None,
        links: Iterable[Link] = (),
    ) -> str:
        """Charge a round, durably, before its first gradient.

        Args:
            charge: The whole round.
            study_budget: (epsilon, delta) of the plan.
            lifetime_budget: (epsilon, delta) of the site's policy, or None.
            links: Of each subject that the charge names, all its keys (`keys_of`). What the ledger does not know of
                them is made durable first, and stays there even where the charge is then refused.

        Returns:
            The ledger's head after it.

        Raises:
            BudgetError: It would pass a budget; nothing is charged.
            LedgerError: The ledger is broken, this attempt is charged already, or its plan was replaced.
            StorageError: It could not be made durable, or its head not be told; the round must not start.
        """
        with self._journal.locked() as entry:
            told = _read(entry).identity_record(links, utc_now())
            if told is not None:
                entry.write(told)
            ledger = _read(entry)
            record = ledger.charge_record(charge, utc_now())
            check_budget(ledger, charge, study_budget=study_budget, lifetime_budget=lifetime_budget)
            self._tell(entry.write(record).hash)
            return record.hash

    def commit(self, study: str, round_number: int, attempt: int) -> str:
        """Note that a charged round was handed over; it frees nothing. Returns the head.

        Raises:
            LedgerError: The ledger is broken, or the round was not charged or is committed already.
            StorageError: It could not be written.
        """
        return self._note(lambda ledger: ledger.commit_record(study, round_number, attempt, utc_now()))

    def countersign(self, study: str, site: str, head: str, signature: bytes) -> str:
        """Note that a study's server has signed a head of this ledger for this site. Returns the head after it.

        Raises:
            LedgerError: The ledger is broken, never stood at that head, or that is no Ed25519 signature.
            StorageError: It could not be written.
        """
        note = Countersigned(study, site, head, signature.hex())
        return self._note(lambda ledger: ledger.countersigned_record(note, utc_now()))

    def require_head(self, head: str) -> None:
        """Check that the ledger still has a record that somebody else remembers.

        Raises:
            LedgerError: It is broken, or was rolled back.
        """
        self.ledger.require_head(head, str(self._journal.path))

    def spent(self, study: str | None, delta: float) -> float:
        """The largest epsilon of any subject over one study's charges, or over all (None)."""
        return self.ledger.epsilon(study, delta)

    def verify(self, head: str | None = None) -> bool:
        """Read and check everything again.

        Args:
            head: A head that this ledger once had, as somebody else remembers it.

        Returns:
            True.

        Raises:
            LedgerError: Something is broken or missing, or `head` is not in the chain (rolled back).
        """
        path, key = self.folder / LEDGER, self.folder / KEY
        _refuse_half(path, key)
        ledger = self.ledger
        self._check_key(key)
        if head is not None:
            ledger.require_head(head, str(path))
        return True

    def _note(self, record: Callable[[Ledger], Record]) -> str:
        with self._journal.locked() as entry:
            return entry.write(record(_read(entry))).hash

    def _key(self, purpose: bytes, message: bytes) -> str:
        return _keyed(self._secret, purpose, message)

    def _check_key(self, key: Path) -> None:
        opening = self.ledger.records[0].body
        with storage_errors(key):
            on_disk = key.read_bytes()
        if len(on_disk) != _KEY_BYTES or opening.get("key_id") != _key_id(on_disk):
            raise LedgerError("this is not the key that the ledger was opened with", where=str(key), hint=_HINT)


def _read(entry: Entry) -> Ledger:
    return Ledger.from_records(entry.records, str(entry.path))


def _begin(path: Path, key: Path) -> None:
    secret = secrets.token_bytes(_KEY_BYTES)
    write_atomic(key, secret)
    Journal.create(path, "open", {"format": "fedseg privacy ledger 2", "key_id": _key_id(secret)})


def _refuse_half(path: Path, key: Path) -> None:
    for present, missing in ((path, key), (key, path)):
        if present.exists() and not missing.exists():
            raise LedgerError(f"{missing.name} is missing beside {present.name}", where=str(path.parent), hint=_HINT)
    if not path.parent.is_dir():
        what = "the privacy ledger is missing: there is no such folder"
        raise LedgerError(what, where=str(path.parent), hint=f"check the path; if it is right, {_HINT}")
    if not path.exists():
        raise LedgerError("the privacy ledger is missing", where=str(path), hint=_HINT)


def _key_id(secret: bytes) -> str:
    return _keyed(secret, b"key id", b"")


def _keyed(secret: bytes, purpose: bytes, message: bytes) -> str:
    return hmac.new(secret, b"fedseg/ledger/" + purpose + b"/v1\0" + message, hashlib.sha256).hexdigest()


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    with storage_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
