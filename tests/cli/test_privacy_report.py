"""`fedseg privacy-report`: its JSON, its words, and what it says of a broken ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from fedseg.federation.vector import Layout
from fedseg.plan import parse_plan
from fedseg.policy import SitePolicy
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.model_file import write_model
from fedseg.runtime.privacy_facts import TWO
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.study_db import RoundRow
from tests.cli.conftest import Command
from tests.runtime.toy import INITIAL
from tests.system import world

KEYS = {
    *("site", "unit", "epsilon", "delta", "noise_multiplier", "max_grad_norm", "sampling_rate", "steps", "rounds"),
    *("budget_epsilon", "accountant", "ledger_intact"),
}


def _study(folder: Path, *, privacy: str, aggregation: str = world.SECURE) -> StudyFolder:
    text = world.PLAN.replace("PRIVACY", privacy).replace("AGGREGATION", aggregation)
    return StudyFolder.create(
        folder, parse_plan(text, "toy.yaml"), INITIAL, {"preset": "toy"}, address="localhost:8443", now=time.time()
    )


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A private study in which rounds 1 and 2 were closed, round 2 without c."""
    study = _study(tmp_path_factory.mktemp("private") / "study", privacy=world.LOCAL, aggregation=world.TWO)
    lost = {"c": "no sign of life in MaskedInputCollection"}
    study.db.save_round(RoundRow(1, 1, "closed", "0" * 64, ("a", "b", "c"), {}, "1" * 64, 0.0, 1.0, 0))
    study.db.save_round(RoundRow(2, 1, "closed", "1" * 64, ("a", "b"), lost, "2" * 64, 1.0, 2.0, 0))
    return study


@pytest.fixture
def site(private: StudyFolder, tmp_path: Path) -> SiteFolder:
    """The state of site a after two charged rounds."""
    folder = SiteFolder(tmp_path / "state")
    (tmp_path / "data").mkdir()
    folder.root.mkdir()
    member = Membership("localhost:8443", "a", str(tmp_path / "data"), None, str(tmp_path / "ledger"), None)
    (folder.root / "site.json").write_text(json.dumps(vars(member)))
    folder.accept(private.manifest)
    ledger = Hospital(tmp_path / "data", tmp_path).first_ledger(tmp_path / "ledger")
    charger = StudyCharger(
        ledger, private.manifest, "a", policy=SitePolicy(), subjects=["01", "02"], notify=lambda _: None
    )
    for number in (1, 2):
        assert charger.charge(number, 1, "0" * 64)
        charger.commit(number, 1)
    return folder


def test_of_a_site(fedseg: Command, site: SiteFolder, private: StudyFolder) -> None:
    answer = fedseg("privacy-report", site.root, "--json")
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    (row,) = facts["sites"]
    assert set(row) >= KEYS
    plan, steps = private.manifest.plan, private.manifest.plan.training.steps
    assert (row["site"], row["unit"], row["accountant"], row["ledger_intact"]) == ("a", "subject", "PLD", True)
    assert (row["rounds"], row["steps"], row["budget_epsilon"], row["delta"]) == (2, 2 * steps, 8, plan.privacy.delta)
    assert row["noise_multiplier"] == private.manifest.noise_multiplier
    assert 0 < row["epsilon"] < 8
    assert facts["epsilon"] == row["epsilon"]
    assert "02" not in [str(value) for value in row.values()]
    assert "number_of_subjects" not in row


def test_of_a_site_names_who_is_missing_from_a_round(fedseg: Command, site: SiteFolder, private: StudyFolder) -> None:
    layout = Layout((("weight", (3,)),))
    history = ((1, ("a", "b", "c")), (3, ("a", "b")))
    write_model(site.model, private.manifest, layout, np.zeros(3, np.float32), history)
    shown = fedseg("privacy-report", site.root)
    assert shown.code == 0, shown.err
    assert "Round 3 (closed): lost c: its update is not in the sum" in shown.out
    assert "Round 1" not in shown.out


def test_of_a_study_names_round_site_phase_and_what_two_contributors_mean(
    fedseg: Command, private: StudyFolder, tmp_path: Path
) -> None:
    facts = json.loads(fedseg("privacy-report", private.root, "--json").out)
    assert [row["site"] for row in facts["sites"]] == ["a", "b", "c"]
    assert all(set(row) >= KEYS for row in facts["sites"])
    assert {row["site"]: row["rounds"] for row in facts["sites"]} == {"a": 2, "b": 2, "c": 1}
    assert facts["epsilon"] == max(row["epsilon"] for row in facts["sites"])
    shown = fedseg("privacy-report", private.root, "--html", tmp_path / "page.html")
    assert shown.code == 0
    assert TWO in shown.out
    assert "the three hospitals already share these scans" in shown.out
    assert "Round 2, attempt 1 (closed): lost c: no sign of life in MaskedInputCollection" in shown.out
    assert "<html" in (tmp_path / "page.html").read_text()


def test_of_a_study_without_privacy_says_so_in_words(fedseg: Command, tmp_path: Path) -> None:
    study = _study(tmp_path / "study", privacy=world.OFF)
    facts = json.loads(fedseg("privacy-report", study.root, "--json").out)
    assert facts["epsilon"] is None
    assert all(row["epsilon"] is None for row in facts["sites"])
    assert facts["statement"].startswith("Privacy is off")
    assert "Privacy is off" in fedseg("privacy-report", study.root).out


def test_a_changed_ledger_fails_the_report(fedseg: Command, site: SiteFolder) -> None:
    path = Path(site.membership.ledger) / "ledger.jsonl"
    path.write_text(path.read_text().replace('"round":2', '"round":9'))
    answer = fedseg("privacy-report", site.root, "--json")
    assert answer.code == 1
    facts = json.loads(answer.out)
    assert facts["sites"][0]["ledger_intact"] is False
    assert facts["sites"][0]["epsilon"] is None
    assert facts["epsilon"] is None
    shown = fedseg("privacy-report", site.root)
    assert shown.code == 1
    assert "LEDGER: " in shown.out
    assert str(path) in shown.out


def test_a_ledger_that_is_gone_fails_the_report(fedseg: Command, site: SiteFolder) -> None:
    for path in Path(site.membership.ledger).iterdir():
        path.unlink()
    Path(site.membership.ledger).rmdir()
    answer = fedseg("privacy-report", site.root)
    assert answer.code == 1
    assert "the privacy ledger is missing" in answer.out


def test_a_folder_of_neither(fedseg: Command, tmp_path: Path) -> None:
    fedseg("privacy-report", tmp_path).says(2, "neither a site's state nor a study", str(tmp_path))
    fedseg("privacy-report", tmp_path / "none").says(2, str(tmp_path / "none"))
