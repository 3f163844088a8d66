from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.errors import BudgetError, LedgerError
from fedseg.plan import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.runtime import events
from fedseg.runtime.charging import StudyCharger
from tests.runtime import toy
from tests.runtime.private import ledger_at, private_manifest
from tests.runtime.threads import run

SUBJECTS = ["01", "02", "03"]


def charger(
    folder: Path,
    manifest: Manifest,
    site: str = "a",
    *,
    policy: SitePolicy | None = None,
    told: list[events.Event] | None = None,
) -> StudyCharger:
    notify = (lambda _: None) if told is None else told.append
    ledger = ledger_at(folder)
    return StudyCharger(ledger, manifest, site, policy=policy or SitePolicy(), subjects=SUBJECTS, notify=notify)


def test_a_charge_is_what_the_plan_says(tmp_path: Path) -> None:
    manifest, told = private_manifest(), list[events.Event]()
    purse = charger(tmp_path, manifest, told=told)
    assert purse.charge(1, 1, "f" * 64)
    ledger = ledger_at(tmp_path)
    (charge,) = ledger.ledger.charges(manifest.study)
    plan = manifest.plan
    assert (charge.site, charge.round, charge.attempt, charge.model_hash) == ("a", 1, 1, "f" * 64)
    assert (charge.plan_hash, charge.steps, charge.public_subjects) == (manifest.plan_hash, plan.training.steps, 10)
    assert (charge.noise_multiplier, charge.sampling_rate) == (manifest.noise_multiplier, plan.privacy.sampling_rate)
    assert charge.subjects == tuple(sorted(ledger.subject_key(subject) for subject in SUBJECTS))
    spent = epsilon([(charge.noise_multiplier, charge.sampling_rate, charge.steps)], plan.privacy.delta)
    assert told == [events.Charged(1, spent, 8.0)]


def test_an_attempt_is_charged_once_however_often_the_site_starts(tmp_path: Path) -> None:
    manifest = private_manifest()
    assert charger(tmp_path, manifest).charge(1, 1, "f" * 64)
    head = charger(tmp_path, manifest).claim()
    assert not charger(tmp_path, manifest).charge(1, 1, "f" * 64)
    assert charger(tmp_path, manifest).claim() == head
    assert (head.rounds, head.steps) == (1, 10)
    assert charger(tmp_path, manifest).charge(1, 2, "f" * 64)
    assert charger(tmp_path, manifest).claim().rounds == 2


def test_a_commit_frees_nothing(tmp_path: Path) -> None:
    manifest = private_manifest()
    purse = charger(tmp_path, manifest)
    purse.charge(1, 1, "f" * 64)
    purse.commit(1, 1)
    assert not purse.charge(1, 1, "f" * 64)
    with pytest.raises(LedgerError, match="was never charged"):
        purse.commit(2, 1)


def test_past_the_budget_nothing_is_charged(tmp_path: Path) -> None:
    manifest = private_manifest(rounds=2, reserve=1)
    purse = charger(tmp_path, manifest)
    for number in (1, 2, 3):
        assert purse.charge(number, 1, "f" * 64)
    before = purse.claim()
    with pytest.raises(BudgetError, match=r"this study's privacy budget does not cover round 4: epsilon .* of 8 spent"):
        purse.charge(4, 1, "f" * 64)
    assert purse.claim() == before


def test_the_hospitals_own_limit_counts_over_all_studies(tmp_path: Path) -> None:
    policy = SitePolicy(lifetime_epsilon=7.9)
    first, second = private_manifest(rounds=1), private_manifest(rounds=1).model_copy(update={"study": "cd" * 16})
    assert charger(tmp_path, first, policy=policy).charge(1, 1, "f" * 64)
    with pytest.raises(BudgetError, match="this hospital's lifetime privacy budget does not cover round 1"):
        charger(tmp_path, second, policy=policy).charge(1, 1, "f" * 64)
    assert charger(tmp_path, second).charge(1, 1, "f" * 64)
    assert charger(tmp_path, second).claim().rounds == 1


def test_without_noise_nothing_can_be_charged(tmp_path: Path) -> None:
    purse = charger(tmp_path, toy.manifest(toy.plan()))
    with pytest.raises(LedgerError, match="without a noise multiplier cannot be charged"):
        purse.charge(1, 1, "f" * 64)


def test_in_a_whole_study_every_charge_comes_before_its_first_gradient(tmp_path: Path) -> None:
    manifest = private_manifest(rounds=2, reserve=1)
    ledgers = {site: ledger_at(tmp_path / site) for site in "abc"}
    seen: list[tuple[str, int, bool]] = []

    def trainer(site: str) -> toy.PullTrainer:
        def look(number: int) -> None:
            charged = ledger_at(tmp_path / site).ledger.is_charged(manifest.study, number, 1)
            seen.append((site, number, charged))

        return toy.PullTrainer(1.0, before=look)

    outcome = run(
        manifest,
        {site: trainer(site) for site in "abc"},
        ("c", "share", 1, 1),
        charger=lambda site: charger(tmp_path / site, manifest, site),
    )
    assert sorted(seen) == [(site, number, True) for site in "abc" for number in (1, 2)]
    # Round 1 took two attempts over one update: it is charged once.
    assert [row.attempt for row in outcome.archive.rounds()] == [1, 2, 1]
    for site, ledger in ledgers.items():
        assert [(charge.round, charge.attempt) for charge in ledger.ledger.charges()] == [(1, 1), (2, 1)]
        assert outcome.archive.claims[site].rounds == 2
        assert len(ledger.ledger.committed) == 2
