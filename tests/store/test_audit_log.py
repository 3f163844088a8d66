from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import LedgerError, StorageError
from fedseg.privacy.chain import Record, seal
from fedseg.secagg.signing import public_half
from fedseg.store import audit_log
from fedseg.store.audit_log import AuditLog, LogReader, check_signature, opening, read, statement
from fedseg.store.audit_records import Aborted, Repair, parse_body
from fedseg.store.journal import Journal

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
ABORTED = {"session": "ab" * 32, "why": "the link broke"}
CLOSED: dict[str, Any] = {
    "round": 3,
    "session": "ab" * 32,
    "contributors": ["a", "b"],
    "base_model": "01" * 32,
    "next_model": "02" * 32,
    "weight": 2,
    "sum": "03" * 32,
    "relative_error": 1e-5,
    "score": None,
    "rolled_back": False,
    "signature": "04" * 64,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    with AuditLog.create(path, KEY, "site", "a", "study-1", clock=lambda: "2025-01-02T03:04:05Z") as made:
        made.append("aborted", ABORTED)
        made.append("closed", CLOSED)
        yield made


def _check(path: Path) -> list[str]:
    records = read(path)
    begin = opening(records[0], str(path))
    for number, record in enumerate(records, 1):
        check_signature(record, begin, f"line {number}")
    return [record.kind for record in records]


def _forge(path: Path, records: list[tuple[str, str, Mapping[str, object]]]) -> None:
    """A log whose chain is whole, of (kind, time, body), with whatever signatures the bodies hold."""
    last: Record | None = None
    with path.open("wb") as file:
        for kind, time, body in records:
            last = seal(last, kind, body, time)
            file.write(last.line())


def _parts(path: Path) -> list[tuple[str, str, Mapping[str, object]]]:
    return [(record.kind, record.time, record.body) for record in read(path)]


def test_what_is_appended_is_chained_signed_and_read_while_it_is_written(log: AuditLog, path: Path) -> None:
    assert _check(path) == ["begin", "aborted", "closed"]
    first, aborted, closed = read(path)
    begin = opening(first, "")
    assert (begin.role, begin.party, begin.study, begin.key) == ("site", "a", "study-1", public_half(KEY).hex())
    assert statement(aborted) == Aborted(**ABORTED)
    assert statement(closed).model_dump(mode="json") == CLOSED
    assert path.stat().st_mode & 0o777 == 0o600
    assert log.entries()[1:] == (("aborted", ABORTED), ("closed", CLOSED))


def test_an_append_returns_the_record_and_reads_nothing(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pread", "read"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("an append reads the file"))
    record = log.append("aborted", ABORTED)
    monkeypatch.undo()
    assert read(path)[-1] == record


def test_a_log_goes_on_after_it_was_closed(log: AuditLog, path: Path) -> None:
    log.close()
    with pytest.raises(LedgerError, match=r"audit\.jsonl: it is closed"):
        log.append("aborted", ABORTED)
    with AuditLog.open(path, KEY) as again:
        again.append("aborted", ABORTED)
    assert _check(path) == ["begin", "aborted", "closed", "aborted"]


def test_there_is_one_log_and_one_writer(log: AuditLog, path: Path) -> None:
    with pytest.raises(LedgerError, match="there is a journal already"):
        AuditLog.create(path, KEY, "site", "a", "study-1")
    with pytest.raises(LedgerError, match=r"audit\.jsonl: another process is writing it \(let that one go on"):
        AuditLog.open(path, KEY)


def test_another_key_is_refused_and_changes_nothing(log: AuditLog, path: Path) -> None:
    log.close()
    with path.open("ab") as file:
        file.write(b'{"body":')
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"this is not the key that a began this log with \(restore the key"):
        AuditLog.open(path, OTHER)
    assert path.read_bytes() == before


def test_a_record_cut_short_at_any_byte_is_no_record_and_the_repair_is_signed(log: AuditLog, path: Path) -> None:
    whole, line = path.read_bytes(), log.append("aborted", ABORTED).line()
    log.close()
    for length in range(1, len(line)):
        path.write_bytes(whole + line[:length])
        reader = LogReader(path)
        assert [record.kind for record in reader] == ["begin", "aborted", "closed"]
        assert reader.unfinished == length
        AuditLog.open(path, KEY).close()
        assert _check(path) == ["begin", "aborted", "closed", "repair"]
        assert statement(read(path)[-1]) == Repair(discarded_bytes=length)


def test_a_record_that_another_wrote_is_refused(log: AuditLog, path: Path) -> None:
    log.close()
    whole = path.read_bytes()
    message = r"audit\.jsonl, line 4: this record is not signed by the key that a began the log with"
    unsigned, copied = dict(ABORTED), dict(read(path)[1].body)
    other = AuditLog.create(path.with_name("other"), OTHER, "site", "a", "study-1")
    others = dict(other.append("aborted", ABORTED).body)
    other.close()
    for body in (unsigned, copied, others, unsigned | {"signed": 7}, unsigned | {"signed": "zz"}):
        Journal.open(path).append("aborted", body)
        with pytest.raises(LedgerError, match=message):
            AuditLog.open(path, KEY)
        path.write_bytes(whole)


@pytest.mark.parametrize("part", ["kind", "time", "body", "order"])
def test_a_log_rewritten_without_the_key_is_refused(log: AuditLog, path: Path, part: str) -> None:
    log.close()
    records = _parts(path)
    kind, time, body = records[1]
    match part:
        case "kind":
            records[1] = "closed", time, body
        case "time":
            records[1] = kind, "2025-01-02T03:04:06Z", body
        case "body":
            records[1] = kind, time, {**body, "why": "another"}
        case _:
            records[1:] = records[:0:-1]
    _forge(path, records)
    with pytest.raises(LedgerError, match="line 2: this record is not signed by the key"):
        AuditLog.open(path, KEY)


def test_damage_is_named_with_its_line(log: AuditLog, path: Path) -> None:
    log.close()
    content = path.read_bytes()
    first, second, third = content.splitlines(keepends=True)
    changed = r"line 2: this record was changed after it was written, or does not follow the one before it \(sent by"
    for damaged, message in (
        (content.replace(b"the link broke", b"the link breaks"), changed),
        (first + third, changed),
        (second + third, changed.replace("2", "1")),
        (content + b"\n", "line 4: this line is not a record"),
        (first + b"[]\n", "line 2: this line is not a record"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match=message):
            AuditLog.open(path, KEY)
        assert path.read_bytes() == damaged


def test_what_is_no_log_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"audit\.jsonl: there is no audit log"):
        AuditLog.open(path, KEY)
    with pytest.raises(LedgerError, match="there is no audit log"):
        read(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="the log does not begin with its opening record"):
        AuditLog.open(path, KEY)
    _forge(path, [("aborted", "", ABORTED)])
    with pytest.raises(LedgerError, match="the log does not begin with its opening record"):
        AuditLog.open(path, KEY)


def test_a_log_from_elsewhere_is_bounded(log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = path.stat().st_size
    with monkeypatch.context() as patched, pytest.raises(LedgerError, match=f"no audit log has {size} bytes"):
        patched.setattr(audit_log, "MAX_LOG", size - 1)
        read(path)
    with monkeypatch.context() as patched, pytest.raises(LedgerError, match="a line is longer than 100 bytes"):
        patched.setattr(audit_log, "MAX_LINE", 100)
        read(path)


@given(st.binary(max_size=300))
def test_no_bytes_make_reading_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "audit.jsonl"
    path.write_bytes(data + b"\n")
    with pytest.raises(LedgerError):
        AuditLog.open(path, KEY)


def test_a_record_of_any_depth_is_refused_and_no_crash(path: Path) -> None:
    deepest, nested = 0, [0]
    with contextlib.suppress(RecursionError):
        for depth in range(1100):
            nested = [nested]  # type: ignore[list-item]
            if depth > 700:
                path.write_bytes(seal(None, "begin", {"signed": 0, "x": nested}).line())
                deepest = depth
                with pytest.raises(LedgerError):
                    AuditLog.open(path, KEY)
    assert 700 < deepest < 1100


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("note", {}, "there is no kind of record 'note'"),
        ("\x1b[2J", {}, r"there is no kind of record '\x1b[2J'"),
        ("aborted", {"session": "ab" * 32}, "this aborted record is wrong at 'why': Field required"),
        ("aborted", ABORTED | {"more": 1}, "this aborted record is wrong at 'more': Extra inputs are not permitted"),
        ("aborted", ABORTED | {"session": "AB" * 32}, "this aborted record is wrong at 'session': String should match"),
        ("aborted", ABORTED | {"why": b"x"}, "this aborted record cannot be written as JSON"),
        ("aborted", ABORTED | {"why": "\ud800"}, "this aborted record is wrong at ''"),
        ("closed", CLOSED | {"contributors": ["b", "a"]}, "wrong at 'contributors': Value error, not sorted, or names"),
        ("closed", CLOSED | {"contributors": ["a", "a"]}, "wrong at 'contributors': Value error, not sorted, or names"),
        ("closed", CLOSED | {"contributors": ["a\n"]}, "wrong at 'contributors.0': Value error, a site name is empty"),
        ("closed", CLOSED | {"round": True}, "this closed record is wrong at 'round'"),
        ("closed", CLOSED | {"round": 2**32}, "this closed record is wrong at 'round'"),
        ("closed", CLOSED | {"relative_error": float("nan")}, "this closed record cannot be written as JSON"),
        ("closed", CLOSED | {"signature": "04" * 63}, "this closed record is wrong at 'signature'"),
        ("session", {"header": "abc", "session": "ab" * 32}, "this session record is wrong at 'header'"),
    ],
)
def test_what_an_audit_would_refuse_is_not_written(
    log: AuditLog, path: Path, kind: str, body: dict[str, Any], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=re.escape(message)):
        log.append(kind, body)
    assert path.read_bytes() == before
    log.append("aborted", ABORTED)


def test_a_name_that_cannot_be_is_refused_before_the_log_exists(path: Path) -> None:
    with pytest.raises(LedgerError, match="this begin record is wrong at 'party'"):
        AuditLog.create(path, KEY, "site", "", "study-1")
    assert not path.exists()


@given(st.sampled_from(["begin", "roster", "session", "closed", "unmask", "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.dictionaries(st.text(max_size=5) | st.sampled_from(["keys", "u2", "key"]), inner, max_size=4),
))  # fmt: skip
def test_no_body_makes_parsing_fail_otherwise(kind: str, body: Any) -> None:
    with pytest.raises(LedgerError):
        parse_body(kind, body)


def test_a_full_disk_leaves_the_log_as_it_was(log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = path.read_bytes(), os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2])

    with monkeypatch.context() as patched, pytest.raises(StorageError, match=r"audit\.jsonl: no room is left on the d"):
        patched.setattr(os, "write", half)
        log.append("aborted", ABORTED)
    assert path.read_bytes() == before
    log.append("aborted", ABORTED)
    assert _check(path)[-1] == "aborted"


def test_a_log_changed_or_replaced_under_its_writer_is_not_gone_on_with(log: AuditLog, path: Path) -> None:
    content = path.read_bytes()
    message = r"audit\.jsonl: the log was changed or replaced under the process that writes it \(start again"
    path.write_bytes(content[: content.index(b"\n") + 1])
    with pytest.raises(LedgerError, match=message):
        log.append("aborted", ABORTED)
    path.unlink()
    with pytest.raises(StorageError, match=r"audit\.jsonl: there is no such file"):
        log.append("aborted", ABORTED)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        log.append("aborted", ABORTED)
    assert path.read_bytes() == content


def test_kill_9_loses_nothing_that_was_acknowledged(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fedseg.store.audit_log import AuditLog\n"
        "log = AuditLog.create(Path(sys.argv[1]), bytes(range(32)), 'site', 'a', 'study-1')\n"
        "while True: print(log.append('aborted', {'session': 'ab' * 32, 'why': 'x' * 3000}).sequence, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [int(next(child.stdout)) for _ in range(20)]
        child.send_signal(signal.SIGKILL)
        seen += [int(line) for line in child.stdout]
    AuditLog.open(path, KEY).close()
    assert _check(path).count("aborted") >= seen[-1] >= 20
