"""Where a hospital's privacy ledger is: one for all its studies, found again by its data folder.

An id file in the data folder names the ledger, so that a new state folder, or a new study, goes on with the same one.
Where the data folder is read-only, the folder's own path leads to the ledger.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from fedseg.errors import LedgerError, StorageError
from fedseg.store.files import write_atomic
from fedseg.store.privacy_ledger import LEDGER, HospitalLedger

ID_FILE = ".fedseg-ledger"


def ledger_folder(data: Path, asked: Path | None, home: Path) -> Path:
    """The folder of the ledger that belongs to a data folder.

    Args:
        data: The BIDS folder, or a CSV of pairs.
        asked: What the operator named with --ledger, if anything.
        home: The operator's home folder, which holds ledgers that nobody named a place for.

    Raises:
        LedgerError: if the data folder is bound to another ledger than `asked`, or its ledger is gone: fail closed.
    """
    base = (data.parent if data.is_file() else data).resolve()
    bound = _bound(base)
    if bound is None:
        return (asked or home / ".fedseg" / "ledgers" / _name(base)).resolve()
    if asked is not None and asked.resolve() != bound:
        raise LedgerError(
            f"this data folder's privacy ledger is {bound}, not {asked}",
            where=str(base / ID_FILE),
            hint="leave --ledger out; a ledger that moved needs its new place written in that file",
        )
    if not (bound / LEDGER).is_file():
        raise LedgerError(
            "the privacy ledger of this data folder is missing: what its subjects have spent is unknown",
            where=str(bound),
            hint=f"restore it from a backup, or write its new place into {base / ID_FILE}",
        )
    return bound


def open_ledger(data: Path, folder: Path) -> HospitalLedger:
    """Open the ledger and bind the data folder to it, where that folder can be written."""
    ledger = HospitalLedger.open(folder)
    base = (data.parent if data.is_file() else data).resolve()
    if _bound(base) is None:
        with suppress(StorageError):
            write_atomic(base / ID_FILE, f"{folder}\n".encode())
    return ledger


def _bound(base: Path) -> Path | None:
    path = base / ID_FILE
    return Path(path.read_text().strip()) if path.is_file() else None


def _name(base: Path) -> str:
    return hashlib.sha256(str(base).encode()).hexdigest()[:16]
