from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from fedseg.errors import BudgetError, LedgerError
from fedseg.imaging.bids import load_dataset
from fedseg.labels import FETA
from fedseg.plan.manifest import Manifest
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.distributed import NoiseShare
from fedseg.privacy.events import Event
from fedseg.privacy.identity import Subject
from fedseg.runtime import events
from fedseg.runtime.charging import StudyCharger, sampling_frame
from fedseg.store.privacy_ledger import LEDGER
from tests.runtime import toy
from tests.runtime.private import ledger_at, private_manifest
from tests.runtime.threads import run

FRAME = [Subject((name,)) for name in ("01", "02", "03")]


def charger(
    folder: Path,
    manifest: Manifest,
    site: str = "a",
    *,
    policy: SitePolicy | None = None,
    frame: Collection[Subject] = FRAME,
    told: list[events.Event] | None = None,
) -> StudyCharger:
    notify = (lambda _: None) if told is None else told.append
    ledger = ledger_at(folder)
    return StudyCharger(ledger, manifest, site, policy=policy or SitePolicy(), frame=frame, notify=notify)


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
    assert charge.subjects == tuple(sorted(ledger.keys_of(subject)[0] for subject in FRAME))
    spent = epsilon([Event(charge.noise_multiplier, charge.sampling_rate, charge.steps)], plan.privacy.delta)
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


def test_a_restarted_round_takes_from_the_reserve_to_the_last_step(tmp_path: Path) -> None:
    manifest = private_manifest(rounds=2, reserve=2)
    purse = charger(tmp_path, manifest)
    for number, attempt in ((1, 1), (1, 2), (2, 1), (2, 2)):
        assert purse.charge(number, attempt, "f" * 64)
    spent = ledger_at(tmp_path).spent(manifest.study, manifest.plan.privacy.delta)
    assert 7.9 < spent <= 8
    with pytest.raises(BudgetError, match="does not cover round 2"):
        purse.charge(2, 3, "f" * 64)


def test_a_second_study_on_renamed_scans_adds_up(tmp_path: Path) -> None:
    first, second = private_manifest(rounds=1), private_manifest(rounds=1).model_copy(update={"study": "cd" * 16})
    policy = SitePolicy(lifetime_epsilon=7.9)
    here = [Subject(("01",), None, (b"scan",)), Subject(("02",), None, (b"another",))]
    there = [Subject(("77",), None, (b"a third",)), Subject(("78",), None, (b"another",))]
    charger(tmp_path, first, policy=policy, frame=here).charge(1, 1, "f" * 64)
    once = ledger_at(tmp_path).spent(None, 1e-5)
    with pytest.raises(BudgetError, match=r"lifetime .*; it would cover it if some subjects were not charged under"):
        charger(tmp_path, second, policy=policy, frame=there).charge(1, 1, "f" * 64)
    assert charger(tmp_path, second, policy=policy, frame=there[:1]).charge(1, 1, "f" * 64)
    assert ledger_at(tmp_path).spent(None, 1e-5) == once
    assert charger(tmp_path, second, frame=there).charge(1, 2, "f" * 64)
    assert ledger_at(tmp_path).spent(None, 1e-5) > once


def test_an_extended_plan_goes_on_from_what_was_spent(tmp_path: Path) -> None:
    old = private_manifest(rounds=2, reserve=0)
    new = old.model_copy(update={"plan": old.plan.model_copy(update={"name": "extended"})})
    assert new.plan_hash != old.plan_hash
    assert charger(tmp_path, old).charge(1, 1, "f" * 64)
    assert charger(tmp_path, new).charge(2, 1, "f" * 64)
    charges = ledger_at(tmp_path).ledger.charges(old.study)
    assert charger(tmp_path, new).claim().rounds == 2
    assert ledger_at(tmp_path).spent(old.study, 1e-5) == epsilon(charges, 1e-5)
    with pytest.raises(LedgerError, match="the study has gone on under plan"):
        charger(tmp_path, old).charge(3, 1, "f" * 64)
    assert charger(tmp_path, old).claim().rounds == 2


def test_a_charge_of_distributed_noise_says_what_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = private_manifest(rounds=1).model_copy(update={"noise_multiplier": 20.0})
    share = NoiseShare(20.0, 1.0, honest=2, dimension=1000, scale=2.0**10)
    monkeypatch.setattr("fedseg.runtime.charging.noise_share", lambda asked: share if asked is manifest else None)
    assert charger(tmp_path, manifest).charge(1, 1, "f" * 64)
    (charge,) = ledger_at(tmp_path).ledger.charges(manifest.study)
    assert (charge.mechanism, charge.sensitivity, charge.dimension) == ("skellam", 1024.0, 1000)
    assert charge.noise_multiplier == manifest.noise_multiplier
    assert charge.event.skellam == share.noise


def test_a_countersigned_head_must_be_in_the_ledger(tmp_path: Path) -> None:
    manifest = private_manifest()
    purse = charger(tmp_path, manifest)
    purse.check_countersigned(None)
    purse.charge(1, 1, "f" * 64)
    head = purse.claim().head
    kept = (tmp_path / LEDGER).read_bytes()
    purse.note_countersigned(head, bytes(64))
    assert ledger_at(tmp_path).ledger.head != head == purse.claim().head
    (note,) = ledger_at(tmp_path).ledger.countersigned
    assert (note.study, note.site, note.head, note.signature) == (manifest.study, "a", head, "00" * 64)
    newest = ledger_at(tmp_path).ledger.head
    for known in (None, head, newest):
        purse.check_countersigned(known)
    (tmp_path / LEDGER).write_bytes(kept)
    with pytest.raises(LedgerError, match=f"the ledger was rolled back: it lacks the record {newest[:12]}") as caught:
        charger(tmp_path, manifest).check_countersigned(newest)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("restore the newest copy of both its files")


def test_a_frame_holds_every_unit_that_trains(make_bids: Callable[..., Path]) -> None:
    table = "participant_id\tsubject_key\tsplit\nsub-01\tP1\t\nsub-02\tP1\t\nsub-03\t\ttest\n"
    dataset = load_dataset(make_bids(4, participants=table), scheme=FETA)
    seen: list[tuple[int, int]] = []
    single, twins = sampling_frame(dataset, lambda done, of: seen.append((done, of)))
    assert (single.ids, single.key, len(single.scans)) == (("04",), None, 1)
    assert (twins.ids, twins.key, len(set(twins.scans))) == (("01", "02"), "P1", 2)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_frame_knows_a_scan_that_was_renamed(make_bids: Callable[..., Path]) -> None:
    root = make_bids(2)
    before = sampling_frame(load_dataset(root, scheme=FETA), lambda *_: None)
    for old in sorted(root.rglob("*sub-01*"), key=lambda path: -len(path.parts)):
        old.rename(old.with_name(old.name.replace("sub-01", "sub-99")))
    after = sampling_frame(load_dataset(root, scheme=FETA), lambda *_: None)
    assert [subject.ids for subject in after] == [("02",), ("99",)]
    assert [subject.scans for subject in after] == [before[1].scans, before[0].scans]


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
