"""`fedseg study status`: what the coordinator's folder says of a study, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.runtime.status import Status, status_of
from fedseg.runtime.study import StudyFolder
from fedseg.store.files import exclusive
from fedseg.store.study_db import RoundRow
from tests.cli.conftest import Command, enrol

DAY = 86_400.0


def row(number: int, state: str = "closed", attempt: int = 1) -> RoundRow:
    there = ("a", "b", "c") if state == "closed" else ()
    return RoundRow(number, attempt, state, "f" * 64, there, {}, "e" * 64, 0.0, DAY * number, 0)  # type: ignore[arg-type]


@pytest.fixture
def told(study: StudyFolder) -> Callable[[], Status]:
    return lambda: status_of(study)


def test_before_anyone_has_enrolled(fedseg: Command, study: StudyFolder, invite: Callable[..., str]) -> None:
    line = invite("b")
    answer = fedseg("study", "status", study.root)
    assert answer.code == 0, answer.err
    text = " ".join(answer.out.split())
    assert "Study 'small': 0 of 2 rounds closed; its server does not run." in text
    assert "not invited yet" in text
    assert "invited, until" in text
    assert "Waits for: a, b, c to enrol" in text
    assert answer.out.endswith(f"Next:\n  fedseg server start {study.root}\n")
    assert line not in answer.out


def test_what_is_waited_for_from_step_to_step(study: StudyFolder, told: Callable[[], Status]) -> None:
    enrol(study, "b")
    assert told().waits_for == "a, c to enrol"
    enrol(study, "a", "c")
    assert str(told().waits_for).startswith("every site to confirm the roster and join; the server's log says whom")
    study.db.save_round(row(1))
    study.db.save_round(replace(row(2, "abandoned"), lost={"c": "no sign of life in ShareKeys"}))
    assert told().waits_for == "the next round; round 2 was abandoned"
    study.db.save_round(row(2, "open", attempt=2))
    assert told().waits_for == "round 2, attempt 2, to end"
    by_site = {each.site: each for each in told().sites}
    assert [each.contributed for each in told().sites] == [1, 1, 1]
    assert by_site["a"].contributed_at == "1970-01-02 00:00 UTC"
    assert (by_site["c"].lost, by_site["a"].lost) == (2, None)
    assert told().closed == 1


def test_a_complete_study_waits_for_those_who_lack_its_model(
    fedseg: Command, study: StudyFolder, told: Callable[[], Status]
) -> None:
    enrol(study, "a", "b", "c")
    for number in (1, 2):
        study.db.save_round(row(number))
    study.db.save_round(replace(row(3), released="d" * 64))
    study.model.write_text("the model")
    study.db.save_finished("a", study.manifest.plan_hash)
    assert told().waits_for == "b, c to fetch the model"
    assert (told().closed, told().evaluations) == (2, 1)
    for site in "bc":
        study.db.save_finished(site, study.manifest.plan_hash)
    assert told().waits_for is None
    answer = fedseg("study", "status", study.root)
    assert "It is complete.\n" in answer.out
    assert "Its model was evaluated once.\n" in answer.out
    assert answer.out.endswith(f"Next:\n  fedseg privacy-report {study.root}\n")
    study.db.save_round(replace(row(4, "open"), released="d" * 64))
    assert told().waits_for == "the evaluation, attempt 1, to end"


def test_beside_a_running_server_it_says_what_the_log_said_last(fedseg: Command, study: StudyFolder) -> None:
    study.log.write_text("2026-01-01 10:00:00,000 listening\n2026-01-01 10:00:01,000 waiting: a to enrol\n")
    with exclusive(study.root):
        answer = fedseg("study", "status", study.root)
    assert answer.code == 0, answer.err
    assert "its server runs." in answer.out
    assert "Last line of the server's log: 2026-01-01 10:00:01,000 waiting: a to enrol\n" in answer.out
    assert "Next:" not in answer.out


def test_the_document_holds_no_secret(fedseg: Command, study: StudyFolder, invite: Callable[..., str]) -> None:
    line = invite("b")
    enrol(study, "a")
    answer = fedseg("study", "status", study.root, "--json")
    facts = json.loads(answer.out)
    assert (facts["name"], facts["rounds"], facts["server_runs"], facts["complete"]) == ("small", 2, False, False)
    assert [each["site"] for each in facts["sites"]] == ["a", "b", "c"]
    assert facts["sites"][0]["enrolled"].endswith(" UTC")
    for secret in (
        line,
        *(each.id for each in study.db.invites()),
        *(key.hex() for key in study.enrolled().keys.values()),
    ):
        assert secret not in answer.out


def test_a_folder_that_is_none(fedseg: Command, tmp_path: Path) -> None:
    fedseg("study", "status", tmp_path / "none").says(
        2, "there is no such folder", "make one: fedseg study create DIR --plan PLAN --address HOST:PORT"
    )
