from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.errors import InviteError, StorageError
from fedseg.store.study_db import ClaimRow, InviteRow, RoundRow, SiteRow, StudyDb

INVITE = InviteRow("id-1", "leuven", b"certificate", expires_at=1000.0, used_at=None)
SITE = SiteRow("leuven", "f" * 64, b"k" * 32)
CLAIM = ClaimRow("leuven", 2, 20, "h" * 64, "p" * 64, 3, 1, bytes(range(64)))
ROUND = RoundRow(
    round=2, attempt=1, state="closed", model_hash="a" * 64, contributors=("a", "b"), lost={"c": "withdrew (budget)"},
    next_model="b" * 64, started_at=10.0, ended_at=20.5, bytes_received=2**40, session=bytes(range(32)),
    signature=bytes(range(64)), relative_error=1 / 3, score=0.1 + 0.2,
)  # fmt: skip


@pytest.fixture
def db(tmp_path: Path) -> StudyDb:
    return StudyDb(tmp_path / "study.sqlite")


def test_only_the_coordinator_may_read_it(db: StudyDb, tmp_path: Path) -> None:
    assert db.invites() == []
    assert stat.S_IMODE((tmp_path / "study.sqlite").stat().st_mode) == 0o600


def test_everything_is_there_after_a_restart(db: StudyDb, tmp_path: Path) -> None:
    db.add_invite(INVITE)
    db.enrol("id-1", SITE, now=900.0)
    db.save_round(ROUND)
    db.save_claim(CLAIM)
    again = StudyDb(tmp_path / "study.sqlite")
    assert again.invites() == [replace(INVITE, used_at=900.0)]
    assert again.sites() == [SITE]
    assert again.site_of("f" * 64) == "leuven"
    assert again.site_of("e" * 64) is None
    assert again.rounds() == [ROUND]
    assert again.claims() == {"leuven": CLAIM}


def test_how_a_study_ended_is_there_after_a_restart(db: StudyDb, tmp_path: Path) -> None:
    assert (db.finished("p1"), db.ended("p1")) == (set(), None)
    for site in ("a", "b", "a"):
        db.save_finished(site, "p1")
    db.save_end("p1", "the privacy budget is used up at a")
    again = StudyDb(tmp_path / "study.sqlite")
    assert (again.finished("p1"), again.ended("p1")) == ({"a", "b"}, "the privacy budget is used up at a")


def test_an_extended_study_has_neither_ended_nor_been_finished(db: StudyDb) -> None:
    db.save_finished("a", "p1")
    db.save_end("p1", "the privacy budget is used up at a")
    assert (db.finished("p2"), db.ended("p2")) == (set(), None)
    db.save_finished("a", "p2")
    assert (db.finished("p1"), db.finished("p2")) == ({"a"}, {"a"})


def test_rounds_come_in_order_and_are_rewritten(db: StudyDb) -> None:
    rows = [replace(ROUND, round=number, attempt=attempt) for number in (10, 2, 1) for attempt in (2, 1)]
    for row in rows:
        db.save_round(replace(row, state="open", next_model=None, ended_at=None))
    for row in rows:
        db.save_round(row)
    assert db.rounds() == sorted(rows, key=lambda row: (row.round, row.attempt))


def test_all_claims_are_kept_in_order_and_the_latest_of_a_site_counts(db: StudyDb) -> None:
    b1, b2, a = (
        replace(CLAIM, site=site, rounds=rounds, head=head)
        for site, rounds, head in [("b", 1, "h"), ("b", 2, "i"), ("a", 5, "h")]
    )
    for claim in (b1, b2, a, replace(b1, rounds=7)):
        db.save_claim(claim)
    assert db.all_claims() == [b1, b2, a]
    assert list(db.claims().items()) == [("a", a), ("b", b2)]


@pytest.mark.parametrize(
    ("invite", "now", "says"),
    [
        ("unknown", 900.0, "this invite is not known to the server"),
        ("id-1", 1000.5, "this invite has expired"),
        ("used", 900.0, "this invite has been used"),
        ("used", 2000.0, "this invite has been used"),
    ],
)
def test_invites_that_do_not_count(db: StudyDb, invite: str, now: float, says: str) -> None:
    other = replace(SITE, name="ghent", fingerprint="e" * 64)
    db.add_invite(INVITE)
    db.add_invite(replace(INVITE, id="used", site="ghent"))
    db.enrol("used", other, now=1.0)
    with pytest.raises(InviteError, match=says) as caught:
        db.enrol(invite, SITE, now=now)
    # It goes to the site: what to do there, that end says.
    assert caught.value.hint is None
    assert db.sites() == [other]


def test_an_invite_holds_to_its_last_second(db: StudyDb) -> None:
    db.add_invite(INVITE)
    db.enrol("id-1", SITE, now=1000.0)
    assert db.site_of(SITE.fingerprint) == "leuven"


def test_a_new_invite_ends_the_unused_one_of_its_site_only(db: StudyDb) -> None:
    db.add_invite(INVITE)
    db.add_invite(replace(INVITE, id="other", site="ghent"))
    db.add_invite(replace(INVITE, id="id-2"))
    assert [row.id for row in db.invites()] == ["id-2", "other"]
    db.enrol("id-2", SITE, now=1.0)
    db.add_invite(replace(INVITE, id="id-3"))
    assert [row.id for row in db.invites()] == ["id-2", "id-3", "other"]


def test_a_second_enrolment_replaces_the_first(db: StudyDb) -> None:
    for number, letter in enumerate("ef"):
        db.add_invite(replace(INVITE, id=str(number)))
        db.enrol(str(number), replace(SITE, fingerprint=letter * 64), now=1.0)
    assert db.site_of("e" * 64) is None
    assert db.site_of("f" * 64) == "leuven"
    assert len(db.sites()) == 1


def test_many_hands_use_one_invite_once(db: StudyDb) -> None:
    db.add_invite(INVITE)

    def enrol(number: int) -> bool:
        try:
            db.enrol("id-1", replace(SITE, fingerprint=f"{number:064x}"), now=1.0)
        except InviteError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enrol, range(16))) == 1
    assert len(db.sites()) == 1


def test_an_enrolment_that_fails_uses_nothing_up(db: StudyDb, tmp_path: Path) -> None:
    db.add_invite(INVITE)
    with sqlite3.connect(tmp_path / "study.sqlite") as raw:
        raw.execute("CREATE TRIGGER no BEFORE INSERT ON sites BEGIN SELECT RAISE(ABORT, 'no'); END")
    raw.close()
    with pytest.raises(StorageError, match="the study's book cannot be used: no"):
        db.enrol("id-1", SITE, now=1.0)
    assert db.invites() == [INVITE]


def test_files_that_are_no_book(tmp_path: Path) -> None:
    path = tmp_path / "study.sqlite"
    path.write_bytes(b"this is no database at all, not even a small one" * 100)
    with pytest.raises(StorageError, match=r"study.sqlite: the study's book cannot be used: file is not a database"):
        StudyDb(path)
    with pytest.raises(StorageError, match="none"):
        StudyDb(tmp_path / "none" / "study.sqlite")
