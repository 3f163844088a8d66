"""A party's audit log as evidence: read from disk, and each line held to be that party's own.

A log comes from elsewhere: whatever is wrong with it is a `Finding`, never an error. What a line says is judged in
`audit_history`, what several logs say together in `audit_compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import LedgerError, UsageError
from fedseg.store.audit_log import LOG, LogReader, check_signature, opening, statement
from fedseg.store.audit_records import Begin, Body


@dataclass(frozen=True)
class Finding:
    """Something that is wrong.

    Attributes:
        party: Whom it is about: "server", "site NAME"; empty where it can't be told which of several.
        where: A file and line, or a round.
        what: One sentence.
        proves: What follows from it, and what does not.
    """

    party: str
    where: str
    what: str
    proves: str


@dataclass(frozen=True)
class Entry:
    """One line that its party signed, and what it says."""

    line: int
    body: Body


@dataclass(frozen=True)
class Log:
    """One party's log, as far as it is whole.

    Attributes:
        path: The file.
        begin: Whose it is.
        hashes: Of every record that was read.
        entries: Those that say something well-formed.
        until: When the last of them was written, by the party's own clock.
        unfinished: Bytes of a last line without its end: being written, or cut short by a crash.
        broken: Whether something stands in it that its party did not write: what follows was left out.
        findings: What is wrong with the file.
    """

    path: str
    begin: Begin
    hashes: tuple[str, ...]
    entries: tuple[Entry, ...]
    until: str
    unfinished: int
    broken: bool
    findings: tuple[Finding, ...]

    @property
    def party(self) -> str:
        """Whose log it is."""
        return label(self.begin)


def label(begin: Begin) -> str:
    """What findings call a party."""
    return "server" if begin.role == "server" else f"site {begin.party}"


def load(path: Path) -> Log:
    """Read a log: chain, signatures and the form of each record. What stands after broken chain or signature is left.

    Args:
        path: The file, or the folder (a study's, or a site's state) that holds it.

    Raises:
        UsageError: There is no log.
        LedgerError: The file doesn't begin as a log does, so that nobody knows whose it would be.
        StorageError: It cannot be read.
    """
    file = path / LOG if path.is_dir() else path
    if not file.is_file():
        hint = f"name a study's folder, a site's state folder, or the {LOG} that another party has sent"
        raise UsageError("there is no audit log", where=str(path), hint=hint)
    return _collect(LogReader(file), opening(next(iter(LogReader(file)), None), str(file)))


def _collect(reader: LogReader, begin: Begin) -> Log:
    path, party = str(reader.path), label(begin)
    hashes: list[str] = []
    entries: list[Entry] = []
    findings: list[Finding] = []
    until, broken = "", False
    try:
        for line, record in enumerate(reader, 1):
            check_signature(record, begin, f"{path}, line {line}")
            hashes.append(record.hash)
            until = record.time if _is_time(record.time) else until
            try:
                entries.append(Entry(line, statement(record)))
            except LedgerError as error:
                proves = f"{party} signed a record that its software would not write; it is left out"
                findings.append(Finding(party, f"{path}, line {line}", error.what, proves))
    except LedgerError as error:
        broken = True
        proves = f"what stands from here on is no evidence: it was changed, or is not written by {party}"
        findings.append(Finding(party, error.where or path, error.what, proves))
    return Log(path, begin, tuple(hashes), tuple(entries), until, reader.unfinished, broken, tuple(findings))


def _is_time(text: str) -> bool:
    """Whether this is a time as logs write it: it will be printed."""
    return len(text) == len("2025-01-02T03:04:05Z") and set(text) <= set("0123456789-:TZ")
