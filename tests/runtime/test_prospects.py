from __future__ import annotations

from pathlib import Path

import pytest

from fedseg.errors import BudgetError
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.identity import Subject
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.prospects import Prospects, prospects
from fedseg.runtime.resolution import events_of
from fedseg.store.privacy_ledger import UNFINISHED, HospitalLedger
from tests.runtime.pooled import resolved
from tests.runtime.private import ledger_at, private_manifest

FRAME = (Subject(("01",)), Subject(("02",)))
STUDY = private_manifest(rounds=2, reserve=1)
OTHER = STUDY.model_copy(update={"study": "cd" * 16})
WHOLE = epsilon(events_of(STUDY), 1e-5)


def ahead(ledger: HospitalLedger | None, frame: tuple[Subject, ...] = FRAME, **policy: float) -> Prospects:
    return prospects(STUDY, "a", frame, ledger, SitePolicy(**policy))  # type: ignore[arg-type]  # numbers alone


def charged(ledger: HospitalLedger, manifest: object = STUDY, *rounds: int, frame: tuple[Subject, ...] = FRAME) -> None:
    purse = StudyCharger(ledger, manifest, "a", policy=SitePolicy(), frame=frame, notify=lambda _: None)  # type: ignore[arg-type]
    for number in rounds:
        assert purse.charge(number, 1, "f" * 64)


def test_before_there_is_a_ledger_a_study_costs_its_promise() -> None:
    found = ahead(None, lifetime_epsilon=WHOLE)
    assert (found.lifetime.spent, found.lifetime.after, found.study.after) == (0.0, WHOLE, WHOLE)
    assert (found.fits, found.under_way) == (True, False)
    found.require()


def test_what_other_studies_have_spent_counts_for_whom_they_share(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    charged(ledger, OTHER, 1, frame=FRAME[:1])
    found = ahead(ledger, lifetime_epsilon=WHOLE)
    assert (found.study.fits, found.study.spent) == (True, 0.0)
    assert found.lifetime.spent > 0
    assert found.lifetime.after > WHOLE
    with pytest.raises(
        BudgetError, match="the whole study does not fit this hospital's lifetime privacy budget"
    ) as caught:
        found.require()
    assert "raise lifetime_epsilon" in (caught.value.hint or "")
    assert ahead(ledger, FRAME[1:], lifetime_epsilon=WHOLE).lifetime.after == WHOLE


def test_what_this_study_has_charged_is_not_counted_twice(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    for done in (1, 2, 3):
        charged(ledger, STUDY, done)
        found = ahead(ledger, lifetime_epsilon=WHOLE)
        assert (found.lifetime.after, found.study.after) == (WHOLE, WHOLE)
        assert found.under_way
        found.require()
    assert found.lifetime.spent == WHOLE


def test_a_subject_under_two_ids_is_refused_before_the_studys_budget_ends_in_its_middle() -> None:
    scan = (b"s" * 32,)
    found = ahead(None, (Subject(("01",), None, scan), Subject(("02",), None, scan)))
    assert found.study.several_ids
    with pytest.raises(BudgetError, match=r"does not fit this study's privacy budget.* under several ids"):
        found.require()


def test_pooled_steps_are_reckoned_by_their_own_noise(tmp_path: Path) -> None:
    manifest, ledger = resolved(), ledger_at(tmp_path)
    charged(ledger, manifest, 1)
    found = prospects(manifest, "a", FRAME, ledger, SitePolicy())
    assert found.study.after == epsilon(events_of(manifest), manifest.plan.privacy.delta) <= 8
    assert (found.lifetime.limit, found.fits) == (None, True)


def test_a_policys_delta_above_the_cap_is_refused_at_once() -> None:
    ahead(None, lifetime_delta=1e-3).require()
    wide = STUDY.model_copy(deep=True)
    wide.plan.sites["a"] = wide.plan.sites["a"].model_copy(update={"public_subjects": 1000})
    found = prospects(wide, "a", FRAME, None, SitePolicy(lifetime_epsilon=20, lifetime_delta=1e-3))
    with pytest.raises(BudgetError, match=r"lifetime delta 0\.001 must lie above 0 and be at most 0\.0001"):
        found.require()


def test_a_ledger_that_was_never_finished_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    hospital = Hospital(tmp_path / "data", tmp_path / "home")
    assert hospital.begun_ledger(tmp_path / "ledger") is None
    ledger_at(tmp_path / "ledger")
    assert hospital.begun_ledger(tmp_path / "ledger") is not None
    (tmp_path / "ledger" / UNFINISHED).touch()
    assert hospital.begun_ledger(tmp_path / "ledger") is None
