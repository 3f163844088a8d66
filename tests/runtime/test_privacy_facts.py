from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fedseg.errors import LedgerError
from fedseg.plan import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.privacy_facts import OFF, TWO, printed, site_facts, study_facts
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.privacy_ledger import KEY, LEDGER
from fedseg.store.study_db import ClaimRow, RoundRow
from tests.runtime import toy
from tests.runtime.private import ledger_at, private_manifest, private_plan

PRIVATE = private_manifest(rounds=2, reserve=1)


def spent(manifest: Manifest, steps: int) -> float:
    assert manifest.noise_multiplier is not None
    return epsilon([(manifest.noise_multiplier, 0.5, steps)], 1e-5)


def member(root: Path, manifest: Manifest) -> SiteFolder:
    """The state of a site that accepted a study."""
    folder = SiteFolder(root / "state")
    folder.root.mkdir()
    membership = Membership("localhost:1", "b", str(root / "data"), None, str(root / "ledger"), None)
    (folder.root / "site.json").write_text(json.dumps(asdict(membership)))
    folder.accept(manifest)
    return folder


def purse(root: Path, manifest: Manifest) -> StudyCharger:
    ledger = ledger_at(root / "ledger")
    subjects = ["01", "02", "patient-three"]
    return StudyCharger(ledger, manifest, "b", policy=SitePolicy(), subjects=subjects, notify=lambda _: None)


@pytest.fixture
def charged(tmp_path: Path) -> SiteFolder:
    """A site after two charges of its study and one of another."""
    folder = member(tmp_path, PRIVATE)
    for number in (1, 2):
        purse(tmp_path, PRIVATE).charge(number, 1, "f" * 64)
    purse(tmp_path, PRIVATE.model_copy(update={"study": "cd" * 16})).charge(1, 1, "f" * 64)
    return folder


def test_a_site_recomputes_its_epsilon_from_its_own_ledger(charged: SiteFolder) -> None:
    facts = site_facts(charged)
    (row,) = facts["sites"]
    assert (row["site"], row["unit"], row["rounds"], row["steps"]) == ("b", "subject", 2, 20)
    assert row["epsilon"] == facts["epsilon"] == spent(PRIVATE, 20)
    assert row["lifetime_epsilon"] == spent(PRIVATE, 30)
    assert (row["delta"], row["budget_epsilon"], row["accountant"], row["ledger_intact"]) == (1e-5, 8.0, "PLD", True)
    assert (row["noise_multiplier"], row["sampling_rate"], row["max_grad_norm"]) == (PRIVATE.noise_multiplier, 0.5, 1.0)
    assert f"at most as well as epsilon {printed(spent(PRIVATE, 20))} at delta 1e-05 allows" in facts["statement"]
    assert facts["perspective"] == "site"
    assert facts["ledger_error"] is None
    assert facts["plan_hash"] == PRIVATE.plan_hash
    text = json.dumps(facts)
    assert "patient-three" not in text
    assert '"subjects"' not in text


def test_a_ledger_with_one_digit_changed_promises_nothing(charged: SiteFolder, tmp_path: Path) -> None:
    path = tmp_path / "ledger" / LEDGER
    text = path.read_text()
    assert text.count('"steps":10') == 3
    path.write_text(text.replace('"steps":10', '"steps":11', 1))
    facts = site_facts(charged)
    (row,) = facts["sites"]
    assert (row["ledger_intact"], row["epsilon"], facts["epsilon"]) == (False, None, None)
    assert LEDGER in facts["ledger_error"]
    assert "Nothing is promised until it is restored." in facts["statement"]


@pytest.mark.parametrize("lost", [LEDGER, KEY])
def test_half_a_ledger_promises_nothing(charged: SiteFolder, tmp_path: Path, lost: str) -> None:
    (tmp_path / "ledger" / lost).unlink()
    facts = site_facts(charged)
    assert (facts["sites"][0]["ledger_intact"], facts["epsilon"]) == (False, None)
    assert f"{lost} is missing beside" in facts["ledger_error"]


def test_a_ledger_that_is_gone_is_not_begun_anew(charged: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "ledger").rename(tmp_path / "moved")
    facts = site_facts(charged)
    assert (facts["sites"][0]["ledger_intact"], facts["epsilon"]) == (False, None)
    assert "the privacy ledger is missing (restore" in facts["ledger_error"]
    assert not (tmp_path / "ledger").exists()


def test_nothing_charged_is_epsilon_zero(tmp_path: Path) -> None:
    ledger_at(tmp_path / "ledger")
    facts = site_facts(member(tmp_path, PRIVATE))
    assert (facts["epsilon"], facts["sites"][0]["rounds"], facts["sites"][0]["ledger_intact"]) == (0.0, 0, True)


def test_without_privacy_it_says_so(tmp_path: Path) -> None:
    facts = site_facts(member(tmp_path, toy.manifest(toy.plan())))
    assert (facts["privacy"], facts["statement"], facts["epsilon"]) == ("off", OFF, None)
    (row,) = facts["sites"]
    assert (row["epsilon"], row["delta"], row["accountant"], row["ledger_intact"]) == (None, None, None, None)


def test_a_site_that_accepted_nothing_has_no_facts(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="this site has not accepted a study yet"):
        site_facts(SiteFolder(tmp_path))


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """A private study after a void attempt and two rounds, the second without c."""
    plan = private_plan(rounds=2, reserve=1)
    folder = StudyFolder.create(
        tmp_path / "study", plan, toy.INITIAL, {"preset": "toy"}, address="localhost:1", now=1e9
    )
    for attempt, state, there in ((1, "abandoned", ()), (2, "closed", ("a", "b", "c"))):
        folder.db.save_round(RoundRow(1, attempt, state, "0" * 64, there, {}, None, 0.0, 1.0, 0))  # type: ignore[arg-type]
    lost = {"c": "no sign of life in ShareKeys"}
    folder.db.save_round(RoundRow(2, 1, "closed", "1" * 64, ("a", "b"), lost, "2" * 64, 1.0, 2.0, 0))
    return folder


def test_a_study_reports_the_larger_of_what_was_claimed_and_what_was_seen(study: StudyFolder) -> None:
    study.db.save_claim(ClaimRow("a", 3, 30, "ab" * 32))
    study.db.save_claim(ClaimRow("b", 0, 0, "ab" * 32))
    facts, manifest = study_facts(study), study.manifest
    rows = {row["site"]: row for row in facts["sites"]}
    assert {site: (row["rounds"], row["steps"]) for site, row in rows.items()} == {
        "a": (3, 30),
        "b": (2, 20),
        "c": (1, 10),
    }
    assert {site: row["epsilon"] for site, row in rows.items()} == {
        "a": spent(manifest, 30), "b": spent(manifest, 20), "c": spent(manifest, 10),
    }  # fmt: skip
    assert facts["epsilon"] == spent(manifest, 30) <= 8
    assert all(row["ledger_intact"] is None for row in rows.values())
    assert facts["rounds"][2] == {
        "round": 2, "attempt": 1, "state": "closed", "contributors": ["a", "b"],
        "lost": {"c": "no sign of life in ShareKeys"},
    }  # fmt: skip
    assert [row["state"] for row in facts["rounds"]] == ["abandoned", "closed", "closed"]
    assert facts["perspective"] == "study"


def test_what_the_server_sees_is_said(study: StudyFolder, tmp_path: Path) -> None:
    secure = study_facts(study)["aggregation"]
    assert (secure["quorum"], secure["collusion"], secure["threshold"], secure["two_contributors"]) == (3, 0, 2, None)
    sees = "Secure aggregation: a server, even one that breaks the protocol, sees only sums over at least"
    assert secure["statement"] == f"{sees} 3 of 3 sites, as long as no site helps it."
    sentence = "the hospitals already share these scans"
    for name, plan in {
        "plain": toy.plan(mode="plain"),
        "five": toy.plan(("a", "b", "c", "d", "e")),
        "two": toy.plan(more=f'quorum: 2, accept_two_contributors: "{sentence}"'),
    }.items():
        StudyFolder.create(tmp_path / name, plan, toy.INITIAL, {"preset": "toy"}, address="localhost:1", now=1e9)
    five = study_facts(StudyFolder.open(tmp_path / "five"))["aggregation"]
    assert five["statement"] == f"{sees} 4 of 5 sites, as long as at most 1 of the sites help it."
    plain = study_facts(StudyFolder.open(tmp_path / "plain"))["aggregation"]
    assert plain["statement"] == "Plain aggregation: the server sees every site's own update."
    assert (plain["collusion"], plain["threshold"]) == (None, None)
    two = study_facts(StudyFolder.open(tmp_path / "two"))["aggregation"]
    assert (two["quorum"], two["two_contributors"], two["accepted_because"]) == (2, TWO, sentence)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (1.0, "1.000"), (1.0001, "1.001"), (7.9999, "8.000"), (0.0004, "0.001")]
)
def test_a_promise_is_never_printed_smaller_than_it_is(value: float, text: str) -> None:
    assert printed(value) == text
    assert float(text) >= value
