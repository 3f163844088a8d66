from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedseg.errors import LedgerError, StorageError
from fedseg.privacy.chain import seal
from fedseg.store.files import write_atomic
from fedseg.store.journal import Journal


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal.open(tmp_path / "j.jsonl", create=True)
    for number in range(3):
        made.append("note", {"number": number})
    return made


def test_what_was_appended_is_replayed(journal: Journal) -> None:
    assert Journal.open(journal.path).records == journal.records
    assert [record.body["number"] for record in journal.records] == [0, 1, 2]
    assert journal.path.stat().st_mode & 0o777 == 0o600


def test_appends_of_another_opener_are_seen_and_chained(journal: Journal) -> None:
    other = Journal.open(journal.path)
    other.append("note", {"number": 3})
    assert journal.append("note", {"number": 4}).sequence == 4
    assert len(other.refresh()) == 5


def test_a_write_cut_short_at_any_byte_is_dropped_and_the_repair_logged(journal: Journal) -> None:
    whole, line = journal.path.read_bytes(), journal.append("note", {"number": 3}).line()
    for length in range(1, len(line)):
        journal.path.write_bytes(whole + line[:length])
        opened = Journal.open(journal.path)
        assert [record.kind for record in opened.records] == ["note", "note", "note", "repair"]
        assert opened.records[3].body == {"discarded_bytes": length}
    assert Journal.open(journal.path).records == opened.records


def test_damage_before_the_end_is_refused_with_file_and_line(journal: Journal) -> None:
    content = journal.path.read_bytes()
    for damaged, message in (
        (
            content.replace(b'"number":1', b'"number":7'),
            "j.jsonl, line 2: this record was changed after it was written",
        ),
        (content[:40] + b"\n" + content[40:], "j.jsonl, line 1: this line is not a record"),
        (content[content.index(b"\n") + 1 :], "j.jsonl, line 1: record 0 is missing: here stands 1"),
        (content + b"\n", "j.jsonl, line 4: this line is not a record"),
        (bytes(len(content)) + b"\n", "j.jsonl, line 1: this line is not a record"),
    ):
        journal.path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=message):
            Journal.open(journal.path)
        assert journal.path.read_bytes() == damaged


def test_a_rollback_under_a_running_process_is_refused(journal: Journal) -> None:
    kept = journal.path.read_bytes()
    journal.append("note", {"number": 3})
    journal.path.write_bytes(kept)
    with pytest.raises(LedgerError, match=r"the journal was rolled back: 4 records were here before \(restore"):
        journal.append("note", {"number": 4})


def test_a_missing_journal_is_not_begun_unasked(tmp_path: Path, journal: Journal) -> None:
    with pytest.raises(LedgerError, match=r"none\.jsonl: the journal is missing"):
        Journal.open(tmp_path / "none.jsonl")
    journal.path.unlink()
    with pytest.raises(LedgerError, match=r"j\.jsonl: the journal is missing"):
        journal.append("note", {})
    assert list(tmp_path.iterdir()) == []


def test_create_begins_once(tmp_path: Path) -> None:
    made = Journal.create(tmp_path / "j.jsonl", "open", {"a": 1})
    assert made.records[0].body == {"a": 1}
    with pytest.raises(LedgerError, match="there is a journal already"):
        Journal.create(tmp_path / "j.jsonl", "open", {"a": 2})


def test_a_record_sealed_elsewhere_is_refused(journal: Journal) -> None:
    with journal.locked() as entry, pytest.raises(LedgerError, match="this record does not follow the last one"):
        entry.write(seal(journal.records[0], "note", {}))


def test_a_full_disk_leaves_the_journal_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = journal.path.read_bytes(), os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched, pytest.raises(StorageError, match=r"j\.jsonl: no room is left on the disk"):
        patched.setattr(os, "write", half)
        journal.append("note", {"number": 3})
    assert journal.path.read_bytes() == before
    assert journal.append("note", {"number": 3}).sequence == 3


def test_a_failing_fsync_is_no_success(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="Input/output error"):
        patched.setattr(os, "fsync", failing)
        journal.append("note", {})
    assert len(journal.refresh()) == 3


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    program = (
        "import sys; from pathlib import Path; from fedseg.store.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1]), create=True)\n"
        "while True: print(journal.append('note', {'x': 'y' * 20000}).sequence, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [int(next(child.stdout)) for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout]
    assert len([record for record in Journal.open(path).records if record.kind == "note"]) > seen[-1]


def test_write_atomic_replaces_whole_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_atomic(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomic(path, b"newer", mode=0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"newer", 0o644)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="no room is left on the disk"):
        patched.setattr(os, "fsync", full)
        write_atomic(path, b"newest")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/f: there is no such file or folder"):
        write_atomic(tmp_path / "none" / "f", b"")
