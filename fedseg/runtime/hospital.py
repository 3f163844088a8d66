"""Where a hospital's privacy ledger is: one for all its studies, found again by its data folder.

A data folder is bound to its ledger by an id file in it: a new state folder, a new study or another account goes on
with the same ledger. Where the data folder is read-only the operator must name the ledger, and the binding in the
operator's home folder is a second net only. Scans that another ledger of this operator knows, because their folder was
copied or renamed or lost its id file, are refused until that ledger is named; so are all scans while a ledger that the
home folder has noted is not there.

Each of these files also notes the ledger's newest charge: a ledger that lacks one that was noted was set back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from fedseg.errors import LedgerError, StorageError
from fedseg.privacy.identity import Subject
from fedseg.store.files import storage_errors, write_atomic
from fedseg.store.privacy_ledger import KEY, LEDGER, UNFINISHED, HospitalLedger

ID_FILE = ".fedseg-ledger"


@dataclass(frozen=True)
class Note:
    """A small file that says where a ledger is, and below it where its chain stood when that was written.

    Attributes:
        file: The file.
        place: The ledger's folder.
        head: A record that the ledger has; None where somebody wrote the place by hand.
    """

    file: Path
    place: Path
    head: str | None

    @classmethod
    def read(cls, file: Path) -> Note | None:
        """What a file says; None where there is none.

        Raises:
            LedgerError: It is empty.
            StorageError: It cannot be read.
        """
        with storage_errors(file):
            if not file.exists():
                return None
            lines = file.read_text(errors="replace").split("\n")
        place, head = lines[0].strip(), lines[1].strip() if len(lines) > 1 else ""
        if not place:
            hint = "write the ledger's folder into its first line"
            raise LedgerError("this file does not say where the privacy ledger is", where=str(file), hint=hint)
        return cls(file, Path(place), head or None)


@dataclass(frozen=True)
class Hospital:
    """A data folder and the home of whoever runs the client there.

    Args:
        data: The BIDS folder, or a CSV of pairs.
        home: Holds ledgers that nobody named a place for.
    """

    data: Path
    home: Path

    @property
    def base(self) -> Path:
        """The folder that is bound to a ledger."""
        return (self.data.parent if self.data.is_file() else self.data).resolve()

    def ledger_folder(self, asked: Path | None) -> Path:
        """The folder of this hospital's ledger.

        Args:
            asked: What the operator named with --ledger, if anything.

        Raises:
            LedgerError: if the data folder is bound to another ledger than `asked`, or its ledger is gone.
        """
        bound = self._bound()
        if bound is None:
            return asked.resolve() if asked else self._usual
        if asked is not None and asked.resolve() != bound.place:
            raise LedgerError(
                f"this data folder's privacy ledger is {bound.place}, not {asked}",
                where=str(bound.file),
                hint="leave --ledger out; a ledger that moved needs its new place written in the first line there",
            )
        if not _is_there(bound.place):
            raise LedgerError(
                "the privacy ledger of this data folder is missing: what its subjects have spent is unknown",
                where=str(bound.place),
                hint=f"restore it from a backup, or write its new place into the first line of {bound.file}",
            )
        return bound.place

    def kept_ledger(self, folder: Path) -> Path:
        """The folder of the ledger that the data folder is bound to; `folder` where it is bound to none."""
        return self.ledger_folder(None if self._bound() else folder)

    def begun_ledger(self, folder: Path) -> HospitalLedger | None:
        """The ledger as `open_ledger` finds it; None where the hospital has begun none yet. Nothing is written.

        Raises:
            LedgerError: as `kept_ledger` and `open_ledger`.
        """
        place = self.kept_ledger(folder)
        return self.open_ledger(place) if _is_there(place) and not (place / UNFINISHED).exists() else None

    def require_findable(self, folder: Path) -> None:
        """Refuse to begin a ledger that nobody but this account would find again.

        Args:
            folder: Of `ledger_folder`.

        Raises:
            LedgerError: The data folder is bound to no ledger and cannot be, and the operator has named none.
        """
        if folder != self._usual or self._bound() is not None or self._can_be_bound():
            return
        raise LedgerError(
            "this data folder cannot be written to, so nothing in it can say where its privacy ledger is: another "
            "account, or a new container, would begin a second ledger for the same scans, and forget what their "
            "subjects have spent",
            where=str(self.base),
            hint="name this hospital's one ledger, a folder that lasts, here and wherever these scans train: "
            "fedseg client join --state DIR --ledger DIR",
        )

    def first_ledger(self, folder: Path, frame: Collection[Subject]) -> HospitalLedger:
        """The ledger of a hospital that joins a study: begun where the data folder is bound to none, and bound.

        Args:
            folder: Of `ledger_folder`.
            frame: The subjects that are to be charged (`charging.sampling_frame`).

        Raises:
            LedgerError: as `ledger_folder`, `require_findable` and `open_ledger`; or if another ledger of this
                operator knows one of these subjects' scans, or is not there or cannot be read to tell.
            StorageError: if the binding can be written nowhere.
        """
        self.ledger_folder(folder)
        self.require_findable(folder)
        self._refuse_elsewhere(folder, frame)
        if self._bound() is None:
            HospitalLedger.create(folder)
        return self._noting(self.open_ledger(folder))

    def known_ledger(self, folder: Path, frame: Collection[Subject]) -> HospitalLedger:
        """The ledger of a study that this hospital has joined, wherever it has moved: it must be there.

        Raises:
            LedgerError: as `open_ledger`; or as `first_ledger` of other ledgers.
            StorageError: as `first_ledger`.
        """
        ledger = self.open_ledger(folder)
        self._refuse_elsewhere(ledger.folder, frame)
        return self._noting(ledger)

    def open_ledger(self, folder: Path) -> HospitalLedger:
        """The ledger that the data folder is bound to, else the one in `folder`; nothing is written.

        Raises:
            LedgerError: It is missing or broken, or was set back: it lacks a record that was noted beside the data or
                in this home.
        """
        ledger = open_noted(self.kept_ledger(folder), self.home)
        _require(ledger, filter(None, (Note.read(self._beside), Note.read(self._elsewhere))))
        return ledger

    def _refuse_elsewhere(self, folder: Path, frame: Collection[Subject]) -> None:
        for other in self._others(folder):
            if other.knows(frame):
                raise LedgerError(
                    f"some of these scans were charged to another privacy ledger, {other.folder}: a second one would "
                    "forget what their subjects have spent",
                    where=str(self.data),
                    hint=f"name it with --ledger {quote(str(other.folder))}; scans of two ledgers cannot train "
                    "together",
                )

    def _others(self, folder: Path) -> Iterator[HospitalLedger]:
        """Every other ledger of this operator."""
        own, seen = _noted_as(folder), {folder.resolve()}
        for note in _known(self.home):
            if note.file.name != own:
                yield _noted(note)
                seen.add(note.place)
        for place in sorted(path.resolve() for path in self._ledgers.glob("*")):
            if place not in seen and _was_begun(place):
                yield HospitalLedger.open(place)

    def _noting(self, ledger: HospitalLedger) -> HospitalLedger:
        """The same ledger, whose newest charge is noted beside the data and in this home, from here on."""
        opened = ledger.ledger
        noting = ledger.told(lambda head: self._note(ledger.folder, opened.identity, head))
        self._note(ledger.folder, opened.identity, opened.head)
        return noting

    def _note(self, folder: Path, identity: str, head: str) -> None:
        content = f"{folder}\n{head}\n".encode()
        # A home that cannot be written is well where the data folder can.
        with suppress(StorageError):
            _write(_note_of(self.home, identity), content)
        try:
            # Other accounts must be able to read it.
            write_atomic(self._beside, content, 0o644)
        except StorageError:
            _write(self._elsewhere, content)

    def _can_be_bound(self) -> bool:
        trial = self.base / f"{ID_FILE}.trial"
        try:
            write_atomic(trial, b"")
        except StorageError:
            return False
        with suppress(OSError):
            trial.unlink()
        return True

    def _bound(self) -> Note | None:
        """Where the ledger is, as the file says that binds it."""
        return Note.read(self._beside) or Note.read(self._elsewhere)

    @property
    def _beside(self) -> Path:
        return self.base / ID_FILE

    @property
    def _elsewhere(self) -> Path:
        return self.home / ".fedseg" / "bindings" / self._name

    @property
    def _ledgers(self) -> Path:
        return self.home / ".fedseg" / "ledgers"

    @property
    def _usual(self) -> Path:
        return (self._ledgers / self._name).resolve()

    @property
    def _name(self) -> str:
        return hashlib.sha256(str(self.base).encode()).hexdigest()[:16]


def open_noted(folder: Path, home: Path) -> HospitalLedger:
    """The ledger in a folder, held against what a home folder has noted of it.

    Raises:
        LedgerError: It is missing or broken, or was set back.
    """
    ledger = HospitalLedger.open(folder)
    note = Note.read(_note_of(home, ledger.ledger.identity))
    _require(ledger, [note] if note else [])
    return ledger


def _require(ledger: HospitalLedger, notes: Iterable[Note]) -> None:
    opened = ledger.ledger
    for note in notes:
        if note.head is not None:
            opened.require_head(note.head, f"{ledger.folder / LEDGER}, of which {note.file} tells")


def _noted(note: Note) -> HospitalLedger:
    """The ledger of a note, which must be there as it was."""
    if not _is_there(note.place):
        raise LedgerError(
            "a privacy ledger of this account is not there, so whether these scans were charged to it is unknown",
            where=str(note.place),
            hint="mount or restore it; if it has moved, name its new place with --ledger where it is the ledger of "
            f"these scans, or else write it into the first line of {note.file}; remove that file only if the ledger "
            "is gone for good and held other scans",
        )
    ledger = HospitalLedger.open(note.place)
    _require(ledger, [note])
    return ledger


def _known(home: Path) -> list[Note]:
    """Of every ledger that this home has met; what a crash has left half-written has a name with a dot."""
    files = sorted((home / ".fedseg" / "known").glob("[!.]*"))
    return [note for file in files if (note := Note.read(file)) is not None]


def _note_of(home: Path, identity: str) -> Path:
    """The note of a ledger, wherever it moves."""
    return home / ".fedseg" / "known" / identity[:16]


def _noted_as(folder: Path) -> str | None:
    """The name of the note of the ledger in a folder; None where there is no ledger yet."""
    there = _is_there(folder) and not (folder / UNFINISHED).exists()
    return _note_of(folder, HospitalLedger.open(folder).ledger.identity).name if there else None


def _is_there(folder: Path) -> bool:
    with storage_errors(folder):
        return (folder / LEDGER).is_file()


def _was_begun(folder: Path) -> bool:
    return not (folder / UNFINISHED).exists() and any((folder / name).exists() for name in (LEDGER, KEY))


def _write(path: Path, content: bytes) -> None:
    with storage_errors(path.parent):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, content)
