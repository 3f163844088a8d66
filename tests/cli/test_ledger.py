"""`fedseg client ledger`: what it shows, verifies and exports, and what it keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli import screen
from fedseg.plan.manifest import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.identity import Subject
from fedseg.report.numbers import printed
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.store import privacy_ledger
from fedseg.store.privacy_ledger import HospitalLedger
from tests.cli.conftest import Command
from tests.privacy.charges import charge
from tests.runtime.private import private_manifest

FRAME = tuple(Subject((f"patient-{number}",), None, (bytes([number]),)) for number in range(17))
MANIFEST = private_manifest(rounds=2, reserve=1)
DAY = "2026-05-04"


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HospitalLedger:
    """A ledger after two charges of a study on 17 subjects, one handed over, and one of another study."""
    monkeypatch.setattr(privacy_ledger, "utc_now", lambda: f"{DAY}T23:59:58Z")
    (tmp_path / "data").mkdir()
    made = Hospital(tmp_path / "data", tmp_path / "home").first_ledger(tmp_path / "ledger", FRAME)
    purse = charger(made, MANIFEST)
    for number in (1, 2):
        purse.charge(number, 1, "f" * 64)
    purse.commit(1, 1)
    purse.note_countersigned(purse.claim().head, bytes(64))
    other = replace(charge(1, study="other"), subjects=(made.keys_of(FRAME[0])[0],))
    made.charge(other, study_budget=(9.0, 1e-5), lifetime_budget=None)
    return made


@pytest.fixture
def state(tmp_path: Path, ledger: HospitalLedger) -> Path:
    """The state of the site that was charged."""
    folder = SiteFolder(tmp_path / "state")
    folder.root.mkdir()
    policy = "lifetime_delta: 1e-6\n"
    member = Membership("localhost:1", "a", str(tmp_path / "data"), None, str(ledger.folder), policy)
    (folder.root / "site.json").write_text(json.dumps(asdict(member)))
    folder.accept(MANIFEST)
    return folder.root


def charger(ledger: HospitalLedger, manifest: Manifest, frame: Collection[Subject] = FRAME) -> StudyCharger:
    return StudyCharger(ledger, manifest, "a", policy=SitePolicy(), frame=frame, notify=lambda _: None)


def test_show(fedseg: Command, state: Path, ledger: HospitalLedger) -> None:
    answer = fedseg("client", "ledger", "show", "--state", state)
    assert answer.code == 0, answer.err
    spent, lifetime = ledger.spent(MANIFEST.study, 1e-5), ledger.spent(None, 1e-6)
    assert f"Study {MANIFEST.study}, plan {MANIFEST.plan_hash[:12]}" in answer.out
    said = f"epsilon {printed(spent)} at delta 1e-05 (PLD), the largest of any subject: 2 rounds, 2 charges, 20 steps"
    assert said in " ".join(answer.out.split())
    assert f"Over all studies: epsilon {printed(lifetime)} at delta 1e-06" in answer.out
    rows = [line for line in answer.out.splitlines() if DAY in line]
    assert [[" 17 " in row, " yes " in row] for row in rows] == [[True, True], [True, False], [False, False]]
    assert "patient" not in answer.out
    newest = [record for record in ledger.ledger.records if record.kind == "charge"][-1]
    assert f"head, its newest charge, as reports and exports have it:\n    {newest.hash}" in answer.out
    assert f"its last record, which stays here:\n    {ledger.ledger.head}" in answer.out
    assert "the largest of any subject; the policy sets no lifetime_epsilon." in answer.out
    assert "A subject is a pregnancy, under however many ids." in answer.out
    assert "neither --json nor export has them" in " ".join(answer.out.split())


def test_show_fits_eighty_columns_and_says_what_the_policy_allows(
    fedseg: Command, state: Path, ledger: HospitalLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SiteFolder(state)
    folder.remember(replace(folder.membership, policy="lifetime_epsilon: 20\n"))
    again = charge(9, study=MANIFEST.study, plan_hash="e" * 64, subjects=(ledger.keys_of(FRAME[0])[0],))
    ledger.charge(again, study_budget=(99.0, 1e-5), lifetime_budget=None)
    monkeypatch.setattr(screen.out, "width", 80)
    shown = fedseg("client", "ledger", "show", "--state", state).out
    table = [line for line in shown.splitlines() if DAY in line]
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert max(len(line.rstrip()) for line in table) <= 80
    assert "the largest of any subject; lifetime_epsilon is 20." in shown
    assert [MANIFEST.plan_hash[:6] in line for line in table] == [True, True, False, False]
    assert ["eeeeee" in line for line in table] == [False, False, True, False]


def test_show_as_json_has_no_subjects(fedseg: Command, state: Path, ledger: HospitalLedger) -> None:
    facts = json.loads(fedseg("client", "ledger", "show", "--state", state, "--json").out)
    assert (facts["ledger"], facts["head"]) == (ledger.ledger.identity, ledger.ledger.records[-1].hash)
    assert set(facts) == {"ledger", "head", "studies", "countersigned"}
    study, other = facts["studies"]
    assert (study["study"], study["rounds"], study["steps"], study["delta"]) == (MANIFEST.study, 2, 20, 1e-5)
    assert study["epsilon"] == ledger.spent(MANIFEST.study, 1e-5)
    assert [each["committed"] for each in study["charges"]] == [True, False]
    assert (other["study"], other["delta"], other["epsilon"]) == ("other", 1e-6, ledger.spent("other", 1e-6))
    assert len(facts["countersigned"]) == 1
    require_no_subjects(facts, ledger)


def test_by_its_own_folder_all_is_at_the_usual_delta(fedseg: Command, ledger: HospitalLedger) -> None:
    facts = json.loads(fedseg("client", "ledger", "show", "--ledger", ledger.folder, "--json").out)
    assert {study["delta"] for study in facts["studies"]} == {1e-5}


def test_an_empty_ledger(fedseg: Command, tmp_path: Path) -> None:
    HospitalLedger.create(tmp_path / "empty")
    answer = fedseg("client", "ledger", "show", "--ledger", tmp_path / "empty")
    assert answer.code == 0
    assert "Over all studies: epsilon 0.000 at delta 1e-05" in answer.out


def test_export_is_for_strangers(fedseg: Command, state: Path, ledger: HospitalLedger, tmp_path: Path) -> None:
    answer = fedseg("client", "ledger", "export", tmp_path / "out.json", "--state", state)
    assert answer.code == 0, answer.err
    assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600
    document = json.loads((tmp_path / "out.json").read_text())
    require_no_subjects(document, ledger)
    assert set(document) == {"format", "ledger", "head", "studies", "countersigned", "left_out"}
    assert document["format"] == "fedseg privacy ledger export 4"
    said = " ".join(document["left_out"])
    for what in ("keyed hashes", "number of subjects", "the largest epsilon of any one subject", "all records between"):
        assert what in said
    for line in document["left_out"]:
        assert line in answer.out
    charges = [each for study in document["studies"] for each in study["charges"]]
    assert [each["steps"] for each in charges] == [10, 10, 5]
    assert [each["committed"] for each in charges] == [True, False, False]
    assert {each["noise_multiplier"] for each in charges[:2]} == {MANIFEST.noise_multiplier}
    assert {each["day"] for each in charges} == {DAY}
    assert "23:59" not in json.dumps(document)
    chain = ledger.ledger.records
    assert [each["record"] for each in charges] == [record.hash for record in chain if record.kind == "charge"]
    assert document["head"] == charges[-1]["record"]
    # Whoever holds the export can have its head looked for.
    assert fedseg("client", "ledger", "verify", "--state", state, "--head", document["head"]).code == 0


def test_neighbouring_hospitals_export_the_same(fedseg: Command, tmp_path: Path) -> None:
    here, there = (
        (*FRAME, Subject(("more",), None, (b"scan",))),
        (Subject(("x",)), Subject(("alias",), None, (b"scan",))),
    )
    other = private_manifest(rounds=2, reserve=1).model_copy(update={"study": "cd" * 16})
    documents, epsilons, kinds = [], [], []
    for name, first, second in (("without", here[:-1], there[:-1]), ("with", here, there)):
        book = HospitalLedger.create(tmp_path / name)
        for manifest, number, frame in ((MANIFEST, 1, first), (MANIFEST, 2, first), (other, 1, second)):
            purse = charger(book, manifest, frame)
            assert purse.charge(number, 1, "f" * 64)
            purse.note_countersigned(purse.claim().head, bytes(64))
        assert fedseg("client", "ledger", "export", tmp_path / f"{name}.json", "--ledger", book.folder).code == 0
        documents.append(json.loads((tmp_path / f"{name}.json").read_text()))
        epsilons.append(book.spent(None, 1e-5))
        kinds.append([record.kind for record in book.ledger.records])
        shown = fedseg("client", "ledger", "show", "--ledger", book.folder)
        assert f"Over all studies: epsilon {printed(epsilons[-1])} " in shown.out
        facts = json.loads(fedseg("client", "ledger", "show", "--ledger", book.folder, "--json").out)
        assert facts.items() <= documents[-1].items()
    # The added subject is in both studies, under two ids: the ledger knows, and the export must not tell.
    assert epsilons[0] < epsilons[1]
    assert len(kinds[0]) < len(kinds[1])
    assert without_hashes(documents[0]) == without_hashes(documents[1])


def test_no_hash_in_an_export_tells_the_number_of_records(fedseg: Command, state: Path, ledger: HospitalLedger) -> None:
    """What follows a charge can be guessed but for its number, so its hash would confirm the guess."""
    shown = json.loads(fedseg("client", "ledger", "show", "--state", state, "--json").out)
    open_to_guesses = {record.hash for record in ledger.ledger.records if record.kind in ("commit", "countersigned")}
    assert len(open_to_guesses) == 2
    assert not open_to_guesses & set(map(str, leaves(shown)))


def test_a_lost_line_is_not_exported(fedseg: Command, ledger: HospitalLedger, tmp_path: Path) -> None:
    with (ledger.folder / "ledger.jsonl").open("ab") as file:
        file.write(b"x" * 4321)
    assert fedseg("client", "ledger", "export", tmp_path / "out.json", "--ledger", ledger.folder).code == 0
    assert ledger.ledger.records[-1].kind == "repair"
    assert "4321" not in (tmp_path / "out.json").read_text()


def test_an_export_that_cannot_be_written(fedseg: Command, state: Path, tmp_path: Path) -> None:
    answer = fedseg("client", "ledger", "export", tmp_path / "none" / "out.json", "--state", state)
    answer.says(1, "there is no such file or folder", str(tmp_path / "none" / "out.json"))


def test_verify(fedseg: Command, state: Path, ledger: HospitalLedger) -> None:
    answer = fedseg("client", "ledger", "verify", "--state", state)
    assert answer.code == 0, answer.err
    assert f"is whole: {len(ledger.ledger.records)} records, 3 charges" in answer.out
    assert ledger.ledger.head in answer.out
    assert "Against a head that others remember: --head HEX" in answer.out
    earlier = ledger.ledger.records[2].hash
    assert (
        f"It goes on from {earlier[:12]}"
        in fedseg("client", "ledger", "verify", "--state", state, "--head", earlier).out
    )


def test_a_ledger_set_back_is_found_by_a_remembered_head(fedseg: Command, ledger: HospitalLedger) -> None:
    ledger.commit("other", 1, 0)
    path, head = ledger.folder / "ledger.jsonl", ledger.ledger.head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert fedseg("client", "ledger", "verify", "--ledger", ledger.folder).code == 0
    answer = fedseg("client", "ledger", "verify", "--ledger", ledger.folder, "--head", head)
    answer.says(1, f"the ledger was rolled back: it lacks the record {head[:12]}", "restore the newest copy")


@pytest.mark.parametrize("named", ["--state", "--ledger"])
def test_a_charge_that_is_gone_is_found_by_what_was_noted(
    fedseg: Command, state: Path, ledger: HospitalLedger, tmp_path: Path, named: str
) -> None:
    words = (named, state if named == "--state" else ledger.folder)
    assert "It holds what was noted here after its charges." in fedseg("client", "ledger", "verify", *words).out
    path, head = ledger.folder / "ledger.jsonl", ledger.ledger.head
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    for command in (["verify"], ["show"], ["export", tmp_path / "out.json"]):
        answer = fedseg("client", "ledger", *command, *words)
        answer.says(1, f"the ledger was rolled back: it lacks the record {head[:12]}", "of which", "tells")
    # Beside the data alone, and for who asks by a study's state.
    (note,) = (tmp_path / "home" / ".fedseg" / "known").iterdir()
    note.unlink()
    assert fedseg("client", "ledger", "verify", *words).code == (1 if named == "--state" else 0)


@pytest.mark.parametrize("command", ["show", "verify", "export"])
def test_a_broken_ledger(fedseg: Command, ledger: HospitalLedger, tmp_path: Path, command: str) -> None:
    path = ledger.folder / "ledger.jsonl"
    path.write_text(path.read_text().replace('"steps":10', '"steps":1'))
    file = [tmp_path / "out.json"] if command == "export" else []
    answer = fedseg("client", "ledger", command, *file, "--ledger", ledger.folder)
    answer.says(1, "this record was changed after it was written", "ledger.jsonl, line 3")
    assert not (tmp_path / "out.json").exists()


def test_another_key(fedseg: Command, ledger: HospitalLedger) -> None:
    (ledger.folder / "ledger.key").write_bytes(bytes(32))
    answer = fedseg("client", "ledger", "verify", "--ledger", ledger.folder)
    answer.says(1, "this is not the key that the ledger was opened with")


def test_wrong_use(fedseg: Command, state: Path, ledger: HospitalLedger, tmp_path: Path) -> None:
    fedseg("client", "ledger", "show").says(2, "name one ledger", "--state DIR", "--ledger DIR")
    fedseg("client", "ledger", "show", "--state", state, "--ledger", ledger.folder).says(2, "name one ledger")
    fedseg("client", "ledger", "show", "--state", tmp_path).says(2, "this folder holds no site's state")
    fedseg("client", "ledger", "show", "--ledger", tmp_path).says(1, "the privacy ledger is missing", str(tmp_path))
    fedseg("client", "ledger", "verify", "--ledger", tmp_path / "nope").says(
        1,
        "the privacy ledger is missing: there is no such folder",
        f"where: {tmp_path / 'nope'}\n",
        "check the path; if",
    )
    fedseg("client", "ledger", "verify", "--state", state, "--head", "3f09").says(2, "--head is not a ledger's head")


def require_no_subjects(document: Any, ledger: HospitalLedger) -> None:
    """No keyed hash of the ledger, no number of subjects anywhere in a document."""
    text = json.dumps(document)
    hashes = {key for subject in FRAME for key in ledger.keys_of(subject)}
    assert len(hashes) == 34
    assert not [key for key in hashes if key in text]
    assert not [value for value in leaves(document) if value in (17, 34)]
    assert not [value for value in lengths(document) if value in (17, 34)]


def leaves(value: Any) -> list[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if parts is None else [leaf for part in parts for leaf in leaves(part)]


def lengths(value: Any) -> list[int]:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = [len(value)] if isinstance(value, list) else []
    return own + [length for part in parts for length in lengths(part)]


def without_hashes(value: Any) -> Any:
    """A document without what stands for chance: hashes."""
    if isinstance(value, dict):
        chance = {"ledger", "head", "record"}
        return {name: without_hashes(part) for name, part in value.items() if name not in chance}
    return [without_hashes(part) for part in value] if isinstance(value, list) else value
