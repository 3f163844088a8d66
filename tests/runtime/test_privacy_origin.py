from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from fedseg import __version__
from fedseg.privacy.chain import Record, seal
from fedseg.privacy.ledger import Ledger
from fedseg.report.privacy_course import Dates
from fedseg.runtime.privacy_origin import file_hash, site_dates, software, study_dates
from fedseg.store.study_db import RoundRow
from tests.privacy.charges import charge
from tests.runtime.private import private_manifest

STUDY = private_manifest()
LONGER = private_manifest(rounds=3)
MADE = date(2026, 7, 8)


def ledger(*times: str) -> Ledger:
    """Charges of the study at these times, then one of another."""
    chain: list[Record] = [seal(None, "open", {"key_id": "k"})]
    for number, time in enumerate(times, 1):
        chain.append(seal(chain[-1], "charge", charge(number, study=STUDY.study).to_json(), time))
    chain.append(seal(chain[-1], "charge", charge(1, study="other").to_json(), "2026-12-31T00:00:00Z"))
    return Ledger.from_records(chain)


def test_a_site_dates_both_agreements_and_its_own_charges_of_this_study() -> None:
    agreed = {STUDY.plan_hash: "2026-01-02T23:59:59Z", LONGER.plan_hash: "2026-03-04T00:00:00Z"}
    book = ledger("2026-01-03T10:00:00Z", "2026-03-05T10:00:00Z", "2026-02-05T10:00:00Z")
    both = site_dates([STUDY, LONGER], agreed, book, MADE)
    assert both == Dates("2026-01-02", "2026-03-04", "2026-01-03", "2026-03-05", "2026-07-08")
    assert site_dates([STUDY], agreed, None, None) == Dates(agreed="2026-01-02")


def test_what_was_not_written_down_is_not_dated() -> None:
    assert site_dates([STUDY], {}, ledger("", ""), None) == Dates()
    assert study_dates([], None) == Dates()


def test_a_study_dates_the_attempts_of_its_book_in_utc() -> None:
    at = datetime(2026, 1, 2, 23, 59, tzinfo=UTC).timestamp()
    row = RoundRow(1, 1, "closed", "f" * 64, (), {}, None, at, None, 0)
    rows = [row, replace(row, round=2, started_at=at + 3600)]
    expected = Dates(first_attempt="2026-01-02", last_attempt="2026-01-03", made="2026-07-08")
    assert study_dates(rows, MADE) == expected


def test_a_file_is_hashed_as_it_lies_there(tmp_path: Path) -> None:
    assert file_hash(tmp_path / "none") is None
    (tmp_path / "file").write_bytes(b"model")
    assert file_hash(tmp_path / "file") == hashlib.sha256(b"model").hexdigest()


def test_software_names_what_trains_and_accounts() -> None:
    found = software()
    assert list(found) == ["fedseg", "python", "torch", "opacus", "dp-accounting"]
    assert found["fedseg"] == __version__
    assert all(each[0].isdigit() for each in found.values())
