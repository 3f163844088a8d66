from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fedseg.errors import LedgerError
from fedseg.federation.exchange import Countersigned
from fedseg.federation.outgoing import leaving
from fedseg.federation.vector import Layout
from fedseg.plan.manifest import Init, Manifest
from fedseg.plan.study import parse_plan
from fedseg.policy import PRIVACY_KEYS, SitePolicy
from fedseg.privacy.accounting import attacker_curve, epsilon, site_epsilon
from fedseg.privacy.events import Event
from fedseg.privacy.identity import Subject
from fedseg.report.facts import PrivacyReport
from fedseg.runtime import charging
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.evidence import countersigned_entry
from fedseg.runtime.extension import extend
from fedseg.runtime.model_file import privacy_claim, write_model
from fedseg.runtime.preparation import first_model
from fedseg.runtime.privacy_facts import site_facts, study_facts
from fedseg.runtime.privacy_history import RATES, at_deltas, at_one_percent, attack_rates, prefixes
from fedseg.runtime.privacy_own import own_figures
from fedseg.runtime.privacy_trust import TWO
from fedseg.runtime.privacy_words import CLAIMED, DISTRIBUTED_SITES, OFF, SEVERAL_IDS, TWO_SITES, UNPROTECTED_START
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.audit_log import AuditLog
from fedseg.store.privacy_ledger import KEY, LEDGER
from fedseg.store.study_db import ClaimRow, RoundRow
from tests.runtime import toy
from tests.runtime.private import PLAN, ledger_at, private_manifest, private_plan

PRIVATE = private_manifest(rounds=2, reserve=1)
POOLED = (
    PLAN.replace("mode: local", "mode: distributed")
    .replace("sampling_rate: 0.5", "sampling_rate: 1.0")
    .replace("OPTIMISER", "sgd, steps: 1")
    .replace("DELTA", "1e-5")
    .replace("RESERVE", "1")
    .replace("CLIP", "64")
    .replace("ROUNDS", "3")
)
FRAME = tuple(Subject((name,), None, ()) for name in ("01", "02", "patient-three"))


def spent(manifest: Manifest, steps: int) -> float:
    assert manifest.noise_multiplier is not None
    return epsilon([Event(manifest.noise_multiplier, 0.5, steps)], 1e-5)


def member(root: Path, manifest: Manifest, policy: str | None = None, name: str = "state") -> SiteFolder:
    """The state of a site that accepted a study."""
    folder = SiteFolder(root / name)
    folder.root.mkdir()
    (root / "data").mkdir(exist_ok=True)
    membership = Membership("localhost:1", "b", str(root / "data"), None, str(root / "ledger"), policy)
    (folder.root / "site.json").write_text(json.dumps(asdict(membership)))
    folder.accept(manifest)
    return folder


def purse(root: Path, manifest: Manifest, frame: tuple[Subject, ...] = FRAME) -> StudyCharger:
    ledger = ledger_at(root / "ledger")
    return StudyCharger(ledger, manifest, "b", policy=SitePolicy(), frame=frame, notify=lambda _: None)


def pooled() -> Manifest:
    first = FirstModel(np.zeros(1000, np.float32), {"preset": "toy"})
    return resolve(parse_plan(POOLED, "pooled.yaml"), first, study="ab" * 16)


@pytest.fixture
def charged(tmp_path: Path) -> SiteFolder:
    """A site after two charges of its study and one of another."""
    folder = member(tmp_path, PRIVATE)
    for number in (1, 2):
        purse(tmp_path, PRIVATE).charge(number, 1, "f" * 64)
    purse(tmp_path, PRIVATE.model_copy(update={"study": "cd" * 16})).charge(1, 1, "f" * 64)
    return folder


def test_a_site_recomputes_its_epsilon_from_its_own_ledger(charged: SiteFolder, tmp_path: Path) -> None:
    report = site_facts(charged)
    (row,) = report.sites
    assert (row.site, row.unit, row.rounds, row.steps) == ("b", "subject", 2, 20)
    assert row.epsilon == report.epsilon == spent(PRIVATE, 20)
    assert (row.delta, row.budget_epsilon, row.accountant, row.ledger_intact) == (1e-5, 8.0, "PLD", True)
    assert (row.noise_multiplier, row.sampling_rate, row.max_grad_norm) == (PRIVATE.noise_multiplier, 0.5, 1.0)
    assert (row.public_subjects, row.expected_failures) == (10, 10 * 1e-5)
    newest = [record for record in ledger_at(tmp_path / "ledger").ledger.records if record.kind == "charge"][-1]
    assert row.ledger_head == newest.hash
    assert row.cross_check is not None
    assert row.cross_check > spent(PRIVATE, 20)
    assert "what site b sent in this study" in report.statement
    assert "any one subject, known there under one id, took part at most as well as epsilon" in report.statement
    assert report.notes == (TWO_SITES, SEVERAL_IDS)
    assert (report.perspective, report.ledger_error, report.plan_hash) == ("site", None, PRIVATE.plan_hash)
    assert report.leaves_the_site == tuple(leaving(PRIVATE.plan))


def test_the_facts_are_the_same_however_many_subjects_there_are(tmp_path: Path) -> None:
    said = []
    for name, count in (("few", 3), ("many", 400)):
        (tmp_path / name).mkdir()
        folder = member(tmp_path / name, PRIVATE)
        frame = tuple(Subject((f"patient-{number}",), None, ()) for number in range(count))
        purse(tmp_path / name, PRIVATE, frame).charge(1, 1, "f" * 64)
        report = site_facts(folder)
        said.append(replace(report, sites=(replace(report.sites[0], ledger_head=None),)).to_json())
        assert "patient-" not in json.dumps(said)
        own = own_figures(folder)
        assert own is not None
        assert own.subjects == count
    assert said[0] == said[1]


def exported(folder: SiteFolder) -> str:
    """A report as it is handed on, without the ledger's head: a hash, declared as such."""
    report = site_facts(folder)
    return json.dumps(replace(report, sites=(replace(report.sites[0], ledger_head=None),)).to_json())


LONG = private_manifest(rounds=60)


def hospital(root: Path, name: str, *frames: tuple[Subject, ...]) -> SiteFolder:
    """A site that was charged for another study, with the first frame, then for this one."""
    (root / name).mkdir()
    folder = member(root / name, LONG)
    for study, frame in zip(("cd" * 16, LONG.study), frames, strict=True):
        purse(root / name, LONG.model_copy(update={"study": study}), frame).charge(1, 1, "f" * 64)
    return folder


def test_a_report_that_is_handed_on_does_not_tell_whether_one_subject_is_in_two_studies(tmp_path: Path) -> None:
    a, b, c = FRAME
    without, with_b = hospital(tmp_path, "without", (b,), (a, c)), hospital(tmp_path, "with", (b,), (a, b, c))
    assert exported(without) == exported(with_b)
    few, many = own_figures(without), own_figures(with_b)
    assert few is not None
    assert many is not None
    assert (few.lifetime[0].epsilon, many.lifetime[0].epsilon) == (spent(LONG, 10), spent(LONG, 20))
    assert (few.other_studies, few.epsilon) == (many.other_studies, many.epsilon) == (1, spent(LONG, 10))


def test_a_report_that_is_handed_on_does_not_tell_whether_a_subject_has_two_ids(tmp_path: Path) -> None:
    scan, old, new = (b"s" * 32,), Subject(("old",), None, (b"s" * 32,)), Subject(("new",), None, (b"s" * 32,))
    lone, twice = (FRAME[0], Subject(("new",), None, ())), (FRAME[0], Subject(("new",), None, scan))
    assert exported(hospital(tmp_path, "lone", (old,), lone)) == exported(hospital(tmp_path, "twice", (old,), twice))
    one = (FRAME[0], new)
    assert exported(hospital(tmp_path, "one", (FRAME[1],), one)) == exported(
        hospital(tmp_path, "both", (FRAME[1],), (*one, old))
    )
    both, found = SiteFolder.open(tmp_path / "both" / "state"), site_facts(SiteFolder.open(tmp_path / "both" / "state"))
    own = own_figures(both)
    assert own is not None
    assert found.epsilon == found.rounds[-1].epsilon_after == spent(LONG, 10) < own.epsilon


def test_a_lifetime_is_measured_at_the_policys_delta_too(tmp_path: Path) -> None:
    folder = member(tmp_path, PRIVATE, "lifetime_epsilon: 20\nlifetime_delta: 1e-6\n")
    purse(tmp_path, PRIVATE).charge(1, 1, "f" * 64)
    own = own_figures(folder)
    assert own is not None
    found = [(each.source, each.delta, each.budget) for each in own.lifetime]
    assert found == [("plan", 1e-5, None), ("policy", 1e-6, 20.0)]


def test_the_ledger_is_found_where_it_has_moved(charged: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "ledger").rename(tmp_path / "moved")
    (tmp_path / "data" / ".fedseg-ledger").write_text(f"{tmp_path / 'moved'}\n")
    assert site_facts(charged).epsilon == spent(PRIVATE, 20)


def test_a_ledger_with_one_digit_changed_promises_nothing(charged: SiteFolder, tmp_path: Path) -> None:
    path = tmp_path / "ledger" / LEDGER
    text = path.read_text()
    assert text.count('"steps":10') == 3
    path.write_text(text.replace('"steps":10', '"steps":11', 1))
    report = site_facts(charged)
    assert (report.sites[0].ledger_intact, report.sites[0].epsilon, report.epsilon) == (False, None, None)
    assert (report.guarantee, report.accounting, own_figures(charged)) == (None, None, None)
    assert LEDGER in (report.ledger_error or "")
    assert "Nothing is promised until it is restored." in report.statement


def test_an_older_ledger_without_a_head_of_the_sites_own_log_promises_nothing(tmp_path: Path) -> None:
    folder, path = member(tmp_path, PRIVATE), tmp_path / "ledger" / LEDGER
    purse(tmp_path, PRIVATE).charge(1, 1, "f" * 64)
    older = path.read_bytes()
    purse(tmp_path, PRIVATE).charge(2, 1, "f" * 64)
    head = ledger_at(tmp_path / "ledger").ledger.head
    signed = Countersigned(PRIVATE.plan_hash, 2, 20, head, 2, 1, b"s" * 64)
    with AuditLog.create(folder.audit, b"k" * 32, "site", "b", PRIVATE.study) as log:
        log.append("countersigned", countersigned_entry("b", signed))
        assert site_facts(folder).epsilon == spent(PRIVATE, 20)
        path.write_bytes(older)
        report = site_facts(folder)
    assert (report.sites[0].ledger_intact, report.epsilon, own_figures(folder)) == (False, None, None)
    assert f"the ledger was rolled back: it lacks the record {head[:12]}" in (report.ledger_error or "")
    folder.audit.unlink()
    assert site_facts(folder).epsilon == spent(PRIVATE, 10)


@pytest.mark.parametrize("lost", [LEDGER, KEY])
def test_half_a_ledger_promises_nothing(charged: SiteFolder, tmp_path: Path, lost: str) -> None:
    (tmp_path / "ledger" / lost).unlink()
    report = site_facts(charged)
    assert (report.sites[0].ledger_intact, report.epsilon) == (False, None)
    assert f"{lost} is missing beside" in (report.ledger_error or "")


def test_a_ledger_that_is_gone_is_not_begun_anew(charged: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "ledger").rename(tmp_path / "moved")
    report = site_facts(charged)
    assert (report.sites[0].ledger_intact, report.epsilon) == (False, None)
    assert "the privacy ledger is missing: there is no such folder (check the path; if it is right, restore" in (
        report.ledger_error or ""
    )
    assert not (tmp_path / "ledger").exists()


def test_nothing_charged_is_epsilon_zero(tmp_path: Path) -> None:
    ledger_at(tmp_path / "ledger")
    folder = member(tmp_path, PRIVATE)
    report = site_facts(folder)
    assert (report.epsilon, report.sites[0].rounds, report.sites[0].ledger_intact, report.rounds) == (0.0, 0, True, ())
    own = own_figures(folder)
    assert own is not None
    assert (own.subjects, own.epsilon, own.attacker_at_1_percent, own.other_studies) == (0, 0.0, 0.01, 0)
    assert report.accounting is not None
    assert report.accounting.composition.startswith("all 0 charged steps")
    assert report.guarantee is not None
    assert all(each.true_positive == each.false_positive for each in report.guarantee.attacker)


def test_without_privacy_it_says_so(tmp_path: Path) -> None:
    folder = member(tmp_path, toy.manifest(toy.plan()))
    report = site_facts(folder)
    assert own_figures(folder) is None
    assert (report.privacy, report.statement, report.epsilon) == ("off", OFF, None)
    assert (report.guarantee, report.mechanism, report.accounting, report.randomness) == (None, None, None, ())
    (row,) = report.sites
    assert (row.epsilon, row.delta, row.accountant, row.ledger_intact) == (None, None, None, None)
    assert "Secure aggregation hides updates from the server" in report.residual_risk[0]


def test_a_site_that_accepted_nothing_has_no_facts(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="this site has not accepted a study yet"):
        site_facts(SiteFolder(tmp_path))


# It adds up.


def steps_of(report: PrivacyReport) -> list[tuple[int, int | None, str]]:
    return [(row.round, row.attempt, row.state) for row in report.rounds]


def test_a_study_that_was_killed_resumed_and_run_again_in_another_folder_adds_up(tmp_path: Path) -> None:
    folder = member(tmp_path, PRIVATE)
    purse(tmp_path, PRIVATE).charge(1, 1, "f" * 64)
    purse(tmp_path, PRIVATE).commit(1, 1)
    purse(tmp_path, PRIVATE).charge(2, 1, "f" * 64)
    assert not purse(tmp_path, PRIVATE).charge(2, 1, "f" * 64)
    again = member(tmp_path, PRIVATE, name="another")
    purse(tmp_path, PRIVATE).charge(2, 2, "f" * 64)
    first, second = site_facts(folder), site_facts(again)
    assert first.to_json() == second.to_json()
    assert steps_of(first) == [(1, 1, "handed over"), (2, 1, "charged only"), (2, 2, "charged only")]
    assert first.epsilon == spent(PRIVATE, 30) == first.rounds[-1].epsilon_after
    assert [row.epsilon_after for row in first.rounds] == [spent(PRIVATE, steps) for steps in (10, 20, 30)]
    charges = ledger_at(tmp_path / "ledger").ledger.charges(PRIVATE.study)
    assert first.epsilon == epsilon(charges, 1e-5)


def test_an_extended_study_adds_up(tmp_path: Path) -> None:
    study = StudyFolder.create(
        tmp_path / "study", private_plan(rounds=2, reserve=1), toy.FIRST, address="localhost:1", now=1e9
    )
    old = study.manifest
    folder = member(tmp_path, old)
    for number in (1, 2):
        purse(tmp_path, old).charge(number, 1, "f" * 64)
        book(study, number, ("a", "b", "c"))
    ledger = ledger_at(tmp_path / "ledger")
    study.db.save_claim(ClaimRow("b", 2, 20, ledger.ledger.head, old.plan_hash, 2, 1, b"s"))
    new = study.extend(5, epsilon=9.0)
    folder.extend([new])
    purse(tmp_path, new).charge(3, 1, "f" * 64)
    study.db.save_claim(ClaimRow("b", 3, 30, ledger.ledger.head, new.plan_hash, 3, 1, b"s"))
    book(study, 3, ("a", "b"))
    assert old.noise_multiplier is not None
    assert new.noise_multiplier is not None
    assert old.noise_multiplier != new.noise_multiplier
    expected = epsilon([Event(old.noise_multiplier, 0.5, 20), Event(new.noise_multiplier, 0.5, 10)], 1e-5)
    site, whole = site_facts(folder), study_facts(study)
    rows = {row.site: row for row in whole.sites}
    assert site.epsilon == expected == rows["b"].epsilon == rows["a"].epsilon == whole.epsilon
    assert rows["c"].epsilon == spent(old, 20)
    assert [row.noise_multiplier for row in site.rounds] == [row.noise_multiplier for row in whole.rounds]
    assert [row.plan_hash for row in site.rounds] == [old.plan_hash, old.plan_hash, new.plan_hash]
    assert site.rounds[-1].epsilon_after == expected == whole.rounds[-1].epsilon_after
    assert (site.versions.parent, site.versions.last_round) == (old.plan_hash, 2)
    assert site.versions.epsilon_before == spent(old, 20)
    assert site.versions.epsilon_allowed is not None
    assert expected < site.versions.epsilon_allowed <= 9.0


def test_the_rounds_of_a_study_end_at_its_epsilon_after_abandoned_attempts_and_an_extension(tmp_path: Path) -> None:
    study = StudyFolder.create(
        tmp_path / "study", private_plan(rounds=2, reserve=1), toy.FIRST, address="localhost:1", now=1e9
    )
    old = study.manifest
    book(study, 1, ("a", "b", "c"))
    book(study, 2, (), "abandoned")
    book(study, 2, ("a", "c"), attempt=2)
    for rounds, attempt in ((1, (1, 1)), (2, (2, 1))):
        study.db.save_claim(ClaimRow("b", rounds, 10 * rounds, f"b{rounds}" * 32, old.plan_hash, *attempt, b"s"))
    for rounds, attempt in ((1, (1, 1)), (2, (2, 1)), (3, (2, 2))):
        study.db.save_claim(ClaimRow("a", rounds, 10 * rounds, f"a{rounds}" * 32, old.plan_hash, *attempt, b"s"))
    before = study_facts(study)
    assert [row.epsilon_after for row in before.rounds] == [spent(old, steps) for steps in (10, 20, 30)]
    assert before.epsilon == before.rounds[-1].epsilon_after
    new = study.extend(5, epsilon=12.0)
    book(study, 3, ("a", "b", "c"))
    book(study, 4, (), "abandoned")
    # Of these three charges the book explains one: the others were claimed late.
    study.db.save_claim(ClaimRow("a", 6, 60, "ef" * 32, new.plan_hash, 3, 1, b"s"))
    report = study_facts(study)
    after = [row.epsilon_after for row in report.rounds]
    assert (old.noise_multiplier is None, new.noise_multiplier is None) == (False, False)
    events = [Event(old.noise_multiplier or 0, 0.5, 30), Event(new.noise_multiplier or 0, 0.5, 10)]
    assert after[:-1] == [*(spent(old, steps) for steps in (10, 20, 30)), epsilon(events, 1e-5)]
    assert after[-1] == report.epsilon == max(row.epsilon or 0 for row in report.sites)
    assert report.epsilon == epsilon([events[0], events[1]._replace(steps=30)], 1e-5)


def test_a_newest_attempt_that_cost_nothing_shows_the_studys_epsilon(study: StudyFolder) -> None:
    book(study, 3, (), "abandoned")
    report = study_facts(study)
    assert report.rounds[0].epsilon_after is None
    assert report.rounds[-1].epsilon_after == report.epsilon == spent(study.manifest, 20)


def test_a_subject_of_two_names_in_one_frame_is_the_worst_on_the_sites_own_screen(tmp_path: Path) -> None:
    manifest, scan = private_manifest(rounds=60), b"s" * 32
    folder = member(tmp_path, manifest)
    one = (Subject(("01",), None, (scan,)), Subject(("02",), None, (scan,)))
    purse(tmp_path, manifest, one).charge(1, 1, "f" * 64)
    report, own = site_facts(folder), own_figures(folder)
    ledger = ledger_at(tmp_path / "ledger").ledger
    assert report.guarantee is not None
    assert own is not None
    assert own.epsilon == site_epsilon(ledger.charged, 1e-5, ledger.groups) > spent(manifest, 10) == report.epsilon
    assert own.attacker_at_1_percent > report.guarantee.attacker_at_1_percent
    assert own.subjects == 1


# What is not promised.


def test_what_is_decided_after_models_were_seen_is_a_reading_and_no_theorem(charged: SiteFolder) -> None:
    report = site_facts(charged)
    assert report.accounting is not None
    composition = report.accounting.composition
    assert "their noise, rate and number as if fixed in advance" in composition
    assert "a reading (an odometer); the firm figure is the plan's budget" in composition
    assert "adaptively" not in composition
    assert any(each.startswith("Figures before the end: what was spent so far") for each in report.residual_risk)


def test_a_patient_under_another_pseudonym_is_not_covered(charged: SiteFolder) -> None:
    guarantee = site_facts(charged).guarantee
    assert guarantee is not None
    (found,) = [each for each in guarantee.not_covered if "pseudonym" in each]
    assert "reconstructed anew" in found
    assert "one stable subject_key" in found


def test_delta_is_the_total_failure_of_as_many_subjects_as_the_plan_says(charged: SiteFolder) -> None:
    (found,) = [each for each in site_facts(charged).residual_risk if each.startswith("Failure of the bound")]
    assert "as much as if, with chance delta, a subject had no protection at all" in found
    assert "over more, where a site has more than N0, more" in found


def test_a_model_file_names_the_plans_budget_as_such() -> None:
    found = privacy_claim(PRIVATE)
    assert (found["epsilon"], found["epsilon_is"]) == (
        8.0,
        "the plan's budget; what was spent stands in the sites' ledgers",
    )


# Curves.


def test_where_the_curves_of_two_subjects_cross_each_counts_where_it_is_the_worse() -> None:
    few, many = (Event(1.0, 0.2, 10),), (Event(4.0, 0.2, 450),)
    assert epsilon(few, 1e-5) > epsilon(many, 1e-5)
    rates = attack_rates([few, many])
    assert at_one_percent(rates) == at_one_percent(attack_rates([many])) > at_one_percent(attack_rates([few]))
    curves = zip(attacker_curve(few, RATES), attacker_curve(many, RATES), strict=True)
    assert [each.true_positive for each in rates] == [max(pair) for pair in curves]
    found = {each.delta: each.epsilon for each in at_deltas(1e-5, [few, many])}
    assert found == {delta: max(epsilon(few, delta), epsilon(many, delta)) for delta in found}
    assert found[1e-5] == epsilon(few, 1e-5)
    assert found[1e-4] == epsilon(many, 1e-4)
    assert [each.true_positive for each in attack_rates([])] == list(RATES)


def test_the_attackers_curve_rises_from_chance(charged: SiteFolder) -> None:
    guarantee = site_facts(charged).guarantee
    assert guarantee is not None
    curve = [(each.false_positive, each.true_positive) for each in guarantee.attacker]
    assert curve == sorted(curve)
    assert all(false < true <= 1 for false, true in curve[:-1])
    assert dict(curve)[0.01] == guarantee.attacker_at_1_percent
    assert guarantee.attacker_at_1_percent <= 0.01 * math.exp(spent(PRIVATE, 20)) + 1e-5
    deltas = [each.delta for each in guarantee.epsilon_at]
    assert deltas == sorted(deltas, reverse=True)
    assert {each.delta: each.epsilon for each in guarantee.epsilon_at}[1e-5] == spent(PRIVATE, 20)
    assert guarantee.epsilon_at_two_sites == spent(PRIVATE, 40)


def test_of_a_long_history_the_last_epsilon_is_its_own_and_no_other_is_too_small() -> None:
    asked: list[int] = []

    def root(many: int) -> float:
        asked.append(many)
        return math.sqrt(many)

    found = prefixes(1000, root)
    assert len(asked) <= 40
    assert found[-1] == (math.sqrt(1000), True)
    assert all(after >= math.sqrt(many) for many, (after, _) in enumerate(found, 1))
    assert all(exact == (after == math.sqrt(many)) for many, (after, exact) in enumerate(found, 1))
    assert prefixes(3, root) == [(1.0, True), (math.sqrt(2), True), (math.sqrt(3), True)]
    assert prefixes(0, root) == []


# Distributed noise.


def test_distributed_noise_says_whom_it_trusts(tmp_path: Path) -> None:
    manifest = pooled()
    folder = member(tmp_path, manifest)
    for number in (1, 2):
        purse(tmp_path, manifest).charge(number, 1, "f" * 64)
    report = site_facts(folder)
    found, share = report.mechanism, report.aggregation
    assert found is not None
    assert (found.honest_others, found.colluders, found.steps) == (2, 0, 1)
    assert found.integer_sensitivity == found.scale
    assert report.epsilon is not None
    assert found.epsilon_alone is not None
    assert found.epsilon_alone > report.epsilon
    assert found.tolerated == 1
    assert found.epsilon_one_more == found.epsilon_alone
    condition = (
        "as long as at most 1 of the other contributors of a sum pools what it knows or leaves out its noise, and no "
        "site helps the server"
    )
    assert f"allows, {condition}; the plan's budget is epsilon 8." in report.statement
    assert condition in (share.trust_with_masks or "")
    assert condition in report.residual_risk[0]
    assert "not this epsilon" in (share.trust_without_masks or "")
    assert report.notes[1:] == (DISTRIBUTED_SITES, SEVERAL_IDS)
    assert report.sites[0].accountant == "RDP"
    assert report.sites[0].cross_check == report.epsilon
    assert report.guarantee is not None
    assert report.guarantee.epsilon_at_two_sites > report.epsilon
    assert "Skellam" in " ".join(report.randomness)


def test_local_noise_trusts_nobody(charged: SiteFolder) -> None:
    report = site_facts(charged)
    assert "as long as" not in report.statement
    assert "no other party has to be trusted" in (report.aggregation.trust_without_masks or "")
    assert report.mechanism is not None
    assert report.mechanism.honest_others is None


def test_a_first_model_and_an_average_are_named(tmp_path: Path) -> None:
    text = PLAN.replace("OPTIMISER", "sgd, average: 0.5").replace("DELTA", "1e-5").replace("RESERVE", "0")
    plan = parse_plan(text.replace("CLIP", "64").replace("ROUNDS", "1"), "averaged.yaml")
    init = {"model_hash": "ee" * 32, "trained_on": "made-up brains", "protection": "public"}
    manifest = resolve(plan, toy.FIRST, study="ab" * 16)
    named = Manifest.from_json(
        json.dumps({**json.loads(manifest.to_json()), "init": init}, sort_keys=True, separators=(",", ":")).encode()
    )
    ledger_at(tmp_path / "ledger")
    report = site_facts(member(tmp_path, named))
    assert (report.pretraining.model_hash, report.pretraining.trained_on) == ("ee" * 32, "made-up brains")
    assert (report.pretraining.protection, report.notes[0]) == ("public", TWO_SITES)
    assert "no site can check them" in (report.pretraining.source or "")
    assert "the moving average of the models is released" in report.validation
    assert "public seed" in site_facts(member(tmp_path, manifest, name="seed")).pretraining.trained_on


def test_a_first_model_that_nothing_protects_is_said_first_and_stays_a_risk(tmp_path: Path) -> None:
    init = Init(model_hash="ee" * 32, trained_on="patients, WITHOUT differential privacy")
    manifest = PRIVATE.model_copy(update={"init": init})
    ledger_at(tmp_path / "ledger")
    report = site_facts(member(tmp_path, manifest))
    assert report.notes[0] == UNPROTECTED_START
    assert report.residual_risk[0].startswith("First model: the released models contain what")
    claim = privacy_claim(manifest)
    assert claim["unprotected_start"] == init.trained_on
    assert "unprotected_start" not in privacy_claim(PRIVATE)
    open_study = toy.manifest(toy.plan()).model_copy(update={"init": init})
    assert site_facts(member(tmp_path, open_study, name="open")).notes == ()


def test_the_versions_that_trained_are_those_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = PRIVATE.model_copy(update={"code_version": "0.0.1-of-the-coordinator"})
    folder = member(tmp_path, manifest)
    for number, version in ((1, "7.1.0"), (2, "7.2.0")):
        monkeypatch.setattr(charging, "__version__", version)
        purse(tmp_path, manifest).charge(number, 1, "f" * 64)
    report = site_facts(folder)
    assert report.sites[0].code_versions == ("7.1.0", "7.2.0")
    assert report.code_version == "0.0.1-of-the-coordinator"
    ledger = tmp_path / "ledger" / LEDGER
    ledger.write_text(ledger.read_text().replace('"7.1.0"', '"7.2.0"'))
    assert site_facts(folder).sites[0].ledger_intact is False


def test_what_was_promised_first_and_the_hospitals_limits_stay_in_the_report(tmp_path: Path) -> None:
    new = extend(PRIVATE, toy.INITIAL, rounds=2, epsilon=14.0, book=[], claims=[])
    folder = member(tmp_path, PRIVATE, "max_epsilon: 15\nlifetime_epsilon: 21.5\n")
    ledger_at(tmp_path / "ledger")
    folder.extend([new])
    agreed = {PRIVATE.plan_hash: "2026-01-02T03:04:05Z", new.plan_hash: "2026-02-03T04:05:06Z"}
    folder.remember(replace(folder.membership, agreed=agreed))
    report = site_facts(folder)
    assert [
        (each.budget_epsilon, each.rounds, each.reserve_rounds, each.agreed) for each in report.versions.agreed
    ] == [
        (8.0, 2, 1, "2026-01-02"),
        (14.0, 4, 1, "2026-02-03"),
    ]
    assert report.notes[0].startswith("The budget was changed by extensions: epsilon 8 was agreed to first, then 14,")
    assert report.policy is not None
    assert set(report.policy.limits) == set(PRIVACY_KEYS)
    assert (report.policy.limits["lifetime_epsilon"], report.policy.limits["max_epsilon"]) == (21.5, 15.0)
    assert report.policy.written
    by_default = site_facts(member(tmp_path, PRIVATE, name="default")).policy
    assert by_default is not None
    assert (by_default.written, by_default.limits["lifetime_delta"]) == (False, 1e-5)


def test_under_fedbn_more_is_noised_than_is_sent_and_the_report_says_what_stays(tmp_path: Path) -> None:
    text = """
name: x
network: {preset: base}
training: {steps: 4, layers: norms, optimiser: sgd, learning_rate: 0.1}
privacy: {mode: local, epsilon: 8}
strategy: {name: fedbn}
schedule: {rounds: 4}
sites: {a: {public_subjects: 80}, b: {public_subjects: 80}, c: {public_subjects: 80}}
"""
    plan = parse_plan(text, "fedbn.yaml")
    manifest = resolve(plan, first_model(plan.content), study="ab" * 16)
    ledger_at(tmp_path / "ledger")
    report = site_facts(member(tmp_path, manifest))
    assert report.mechanism is not None
    assert (report.mechanism.noised, report.mechanism.dimension) == (2520, 72)
    assert "stay at each site in a personal model that is never sent" in report.strategy
    names = [each.name for each in report.stays]
    assert {"cache/", "kept-*.npy", "model-personal.safetensors", "baseline/"} <= set(names)
    plain = site_facts(member(tmp_path, PRIVATE, name="plain"))
    assert "model-personal.safetensors" not in [each.name for each in plain.stays]
    assert plain.mechanism is not None
    assert plain.mechanism.noised == plain.mechanism.dimension


# Rounds.


def test_closed_rounds_name_who_is_missing(charged: SiteFolder) -> None:
    layout = Layout((("weight", (1000,)),))
    history = ((1, ("a", "b", "c")), (2, ("a", "b")), (3, ("a", "c")))
    write_model(charged.model, PRIVATE, layout, np.zeros(1000, np.float32), history)
    report = site_facts(charged)
    assert [(row.round, row.state, row.charged, dict(row.lost or {})) for row in report.rounds] == [
        (1, "closed", True, {}),
        (2, "closed", True, {"c": "its update is not in the sum"}),
        (3, "closed", False, {"b": "its update is not in the sum"}),
    ]
    assert report.model_hash is not None


def book(study: StudyFolder, number: int, sites: tuple[str, ...], state: str = "closed", attempt: int = 1) -> None:
    lost = {site: "no sign of life in ShareKeys" for site in "abc" if site not in sites}
    row = RoundRow(number, attempt, "closed", "0" * 64, sites, lost, None, 0.0, 1.0, 0)
    study.db.save_round(replace(row, state=state))  # type: ignore[arg-type]  # a state


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """A private study after a void attempt and two rounds, the second without c."""
    folder = StudyFolder.create(
        tmp_path / "study", private_plan(rounds=2, reserve=1), toy.FIRST, address="localhost:1", now=1e9
    )
    book(folder, 1, (), "abandoned")
    book(folder, 1, ("a", "b", "c"), attempt=2)
    book(folder, 2, ("a", "b"))
    return folder


def test_a_study_reports_the_larger_of_what_was_claimed_and_what_was_seen(study: StudyFolder) -> None:
    plan = study.manifest.plan_hash
    study.db.save_claim(ClaimRow("a", 3, 30, "ab" * 32, plan, 3, 1, b"s"))
    study.db.save_claim(ClaimRow("b", 1, 10, "cd" * 32, plan, 1, 1, b"s"))
    report, manifest = study_facts(study), study.manifest
    rows = {row.site: row for row in report.sites}
    assert {site: (row.rounds, row.steps) for site, row in rows.items()} == {"a": (3, 30), "b": (2, 20), "c": (1, 10)}
    assert {site: row.epsilon for site, row in rows.items()} == {
        "a": spent(manifest, 30), "b": spent(manifest, 20), "c": spent(manifest, 10),
    }  # fmt: skip
    assert report.epsilon == spent(manifest, 30) <= 8
    assert all(row.ledger_intact is None for row in rows.values())
    assert [(row.countersigned, row.countersigned_head) for row in rows.values()] == [
        (1, "ab" * 32), (1, "cd" * 32), (0, None),
    ]  # fmt: skip
    assert [(row.state, row.epsilon_after) for row in report.rounds] == [
        ("abandoned", None), ("closed", spent(manifest, 10)), ("closed", spent(manifest, 30)),
    ]  # fmt: skip
    assert report.rounds[2].lost == {"c": "no sign of life in ShareKeys"}
    assert report.perspective == "study"
    assert report.statement.startswith("Whoever sees what a site sent in this study")
    assert {CLAIMED, SEVERAL_IDS} <= set(report.notes)
    assert report.accounting is not None
    assert report.accounting.composition.startswith("all 30 charged steps")


def test_what_the_server_sees_is_said(study: StudyFolder, tmp_path: Path) -> None:
    secure = study_facts(study).aggregation
    assert (secure.quorum, secure.collusion, secure.threshold, secure.two_contributors) == (3, 0, 2, None)
    sees = "Secure aggregation: a server, even one that breaks the protocol, sees only sums over at least"
    assert secure.statement == f"{sees} 3 of 3 sites, as long as no site helps it."
    sentence = "the hospitals already share these scans"
    for name, plan in {
        "plain": toy.plan(mode="plain"),
        "five": toy.plan(("a", "b", "c", "d", "e")),
        "two": toy.plan(more=f'quorum: 2, accept_two_contributors: "{sentence}"'),
    }.items():
        StudyFolder.create(tmp_path / name, plan, toy.FIRST, address="localhost:1", now=1e9)
    five = study_facts(StudyFolder.open(tmp_path / "five")).aggregation
    assert five.statement == f"{sees} 4 of 5 sites, as long as at most 1 of the sites help it."
    plain = study_facts(StudyFolder.open(tmp_path / "plain")).aggregation
    assert plain.statement == "Plain aggregation: the server sees every site's own update."
    assert (plain.collusion, plain.threshold, plain.trust_with_masks) == (None, None, None)
    two = study_facts(StudyFolder.open(tmp_path / "two")).aggregation
    assert (two.quorum, two.two_contributors, two.accepted_because) == (2, TWO, sentence)
