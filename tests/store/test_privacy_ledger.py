from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.errors import BudgetError, LedgerError
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.events import RoundCharge
from fedseg.store.privacy_ledger import HospitalLedger
from tests.privacy.charges import charge


def charge_round(book: HospitalLedger, number: int, **changes: object) -> RoundCharge:
    made = replace(charge(number), **{"subjects": tuple(map(book.subject_key, ("01", "02"))), **changes})  # type: ignore[arg-type]
    book.charge(made, study_budget=(50.0, 1e-5), lifetime_budget=(60.0, 1e-5))
    return made


@pytest.fixture
def book(tmp_path: Path) -> HospitalLedger:
    return HospitalLedger.create(tmp_path / "privacy")


def test_first_use_begins_a_ledger_that_only_its_owner_reads(book: HospitalLedger) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in book.folder.iterdir()}
    assert modes == {"ledger.jsonl": 0o600, "ledger.key": 0o600}
    assert len((book.folder / "ledger.key").read_bytes()) == 32
    assert book.spent(None, 1e-5) == 0
    assert book.verify()


def test_charges_last_and_are_composed(book: HospitalLedger) -> None:
    rounds = [charge_round(book, number) for number in (1, 2, 3)]
    other = charge_round(book, 1, study="other")
    book.commit("atlas", 1, 0)
    again = HospitalLedger.open(book.folder)
    assert again.ledger == book.ledger
    assert again.ledger.committed == {("atlas", 1, 0)}
    assert again.spent("atlas", 1e-5) == epsilon(rounds, 1e-5)
    assert again.spent(None, 1e-5) == epsilon([*rounds, other], 1e-5)


def test_a_refused_round_is_not_written(book: HospitalLedger) -> None:
    first = charge_round(book, 1)
    before = (book.folder / "ledger.jsonl").read_bytes()
    with pytest.raises(BudgetError, match=r"epsilon \S+ of \S+ spent; 0 left; this round needs"):
        book.charge(replace(first, round=2), study_budget=(epsilon([first], 1e-5), 1e-5), lifetime_budget=None)
    with pytest.raises(LedgerError, match="round 1, attempt 0 of study atlas is charged already"):
        charge_round(book, 1)
    assert (book.folder / "ledger.jsonl").read_bytes() == before


def test_subject_keys_are_pseudonyms_of_one_hospital(book: HospitalLedger, tmp_path: Path) -> None:
    mine = book.subject_key("01")
    assert mine == HospitalLedger.open(book.folder).subject_key("01") != book.subject_key("02")
    assert mine != HospitalLedger.create(tmp_path / "elsewhere").subject_key("01")
    charge_round(book, 1, subjects=(book.subject_key("Very Particular Name"),))
    assert b"Particular" not in (book.folder / "ledger.jsonl").read_bytes()
    assert (book.folder / "ledger.key").read_bytes().hex() not in repr(vars(book)["_journal"]) + repr(book)


@pytest.mark.parametrize("missing", ["ledger.jsonl", "ledger.key"])
def test_half_a_ledger_is_refused(book: HospitalLedger, missing: str) -> None:
    charge_round(book, 1)
    (book.folder / missing).unlink()
    with pytest.raises(LedgerError, match=f"privacy: {missing} is missing beside .* from the same backup"):
        HospitalLedger.open(book.folder)
    with pytest.raises(LedgerError, match=f"{missing} is missing beside"):
        book.verify()
    assert not (book.folder / missing).exists()


def test_both_gone_under_a_running_process(book: HospitalLedger) -> None:
    charge_round(book, 1)
    for path in book.folder.iterdir():
        path.unlink()
    with pytest.raises(LedgerError, match="the journal is missing"):
        charge_round(book, 2)
    with pytest.raises(LedgerError, match="the privacy ledger is missing"):
        book.verify()


def test_another_key_would_reset_every_subject(book: HospitalLedger) -> None:
    (book.folder / "ledger.key").write_bytes(bytes(32))
    with pytest.raises(LedgerError, match=r"ledger\.key: this is not the key that the ledger was opened with"):
        HospitalLedger.open(book.folder)


def test_an_emptied_ledger_is_refused(book: HospitalLedger) -> None:
    (book.folder / "ledger.jsonl").write_bytes(b"")
    with pytest.raises(LedgerError, match="the ledger does not begin with its opening record"):
        HospitalLedger.open(book.folder)


def test_edited_and_rolled_back_ledgers_are_refused(book: HospitalLedger) -> None:
    charge_round(book, 1)
    path, first = book.folder / "ledger.jsonl", book.ledger.head
    kept = path.read_bytes()
    charge_round(book, 2)
    newest = book.ledger.head
    assert book.verify(first)

    path.write_bytes(kept)
    with pytest.raises(LedgerError, match="the journal was rolled back: 3 records were here before"):
        charge_round(book, 2)
    with pytest.raises(LedgerError, match=f"the ledger was rolled back: it lacks the record {newest[:12]}"):
        HospitalLedger.open(book.folder).verify(newest)

    path.write_bytes(kept.replace(b'"steps":5', b'"steps":1'))
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 2: this record was changed after it was written"):
        HospitalLedger.open(book.folder)


def test_a_charge_cut_short_is_repaired_and_epsilon_never_falls(book: HospitalLedger) -> None:
    path = book.folder / "ledger.jsonl"
    charge_round(book, 1)
    spent, before = book.spent(None, 1e-5), len(path.read_bytes())
    charge_round(book, 2)
    line = path.read_bytes()[before:]
    for length in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(path.read_bytes()[:before] + line[:length])
        opened = HospitalLedger.open(book.folder)
        assert opened.spent(None, 1e-5) == spent
        assert json.loads(path.read_bytes().splitlines()[-1])["kind"] == "repair"
        charge_round(opened, 2)
        assert opened.spent(None, 1e-5) > spent


def test_two_processes_share_one_ledger_and_one_budget(book: HospitalLedger) -> None:
    rounds = [charge(number, subjects="A") for number in range(6)]
    budget = epsilon(rounds, 1e-5)
    program = (
        "import sys; from pathlib import Path\n"
        "from fedseg.errors import BudgetError\n"
        "from fedseg.store.privacy_ledger import HospitalLedger\n"
        "from tests.privacy.charges import charge\n"
        "book, done = HospitalLedger.open(Path(sys.argv[1])), 0\n"
        "for number in range(6):\n"
        "    made = charge(number, subjects='A', attempt=int(sys.argv[2]))\n"
        "    try: book.charge(made, study_budget=(float(sys.argv[3]), 1e-5), lifetime_budget=None)\n"
        "    except BudgetError: break\n"
        "    done += 1\n"
        "print(done)"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(book.folder), str(attempt), repr(budget)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for attempt in (0, 1)
    ]
    done = [int(child.communicate()[0]) for child in children]
    assert sum(done) == 6 == len(book.ledger.charges())
    assert book.spent("atlas", 1e-5) == budget
    assert book.verify()
