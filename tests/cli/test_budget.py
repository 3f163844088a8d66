"""A hospital whose privacy budget is used up, in a study that the other two can go on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.errors import BudgetError
from fedseg.federation.vector import model_hash
from fedseg.policy import SitePolicy
from fedseg.privacy.identity import Subject
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.hospital import Hospital
from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.study_db import RoundRow
from tests.cli.conftest import PLAN, Answer, Command, enrol, enrol_at_desk
from tests.system.world import TWO, free_port

FRAME = (Subject(("01",)), Subject(("02",)))
POLICY = "allow_two_contributors: true\n"


@pytest.fixture
def study(fedseg: Command, tmp_path: Path, data: Path) -> StudyFolder:
    """A study with a quorum of two, under way, so that one site alone is asked to train; all three have enrolled."""
    plan, root = tmp_path / "plan.yaml", tmp_path / "study"
    plan.write_text(f"{PLAN}aggregation: {TWO}\n")
    answer = fedseg("study", "create", root, "--plan", plan, "--address", f"localhost:{free_port()}")
    assert answer.code == 0, answer.err
    made = StudyFolder.open(root)
    first = model_hash(made.archive.load_model(0))
    made.db.save_round(RoundRow(1, 1, "abandoned", first, (), {"*": "server stopped"}, None, 0.0, 1.0, 0))
    enrol(made, "b", "c")
    state = enrol_at_desk(made, "a", SiteFolder(tmp_path / "state"), data=data, ledger=tmp_path / "ledger")
    state.approve(made.roster().fingerprint)
    return made


@pytest.fixture
def join_alone(fedseg: Command, tmp_path: Path) -> Callable[[str], Answer]:
    """Join under a policy."""

    def call(policy: str) -> Answer:
        (tmp_path / "policy.yaml").write_text(policy)
        return fedseg("client", "join", "--state", tmp_path / "state", "--yes", "--policy", tmp_path / "policy.yaml")

    return call


def _spend_all(study: StudyFolder, data: Path, ledger: Path) -> int:
    """Charge the study's rounds until its budget is used up; how many were possible."""
    charger = StudyCharger(
        Hospital(data, data.parent).first_ledger(ledger, FRAME),
        study.manifest,
        "a",
        policy=SitePolicy(),
        frame=FRAME,
        notify=lambda _: None,
    )
    for number in range(100, 200):
        try:
            charger.charge(number, 1, "0" * 64)
        except BudgetError:
            return number - 100
    raise AssertionError("the budget has no end")


@pytest.mark.usefixtures("server")
def test_of_the_study(join_alone: Callable[[str], Answer], study: StudyFolder, data: Path, tmp_path: Path) -> None:
    assert _spend_all(study, data, tmp_path / "ledger") == 3
    answer = join_alone(POLICY)
    answer.says(1, "this study's privacy budget does not cover round 1", "of 8 spent", "left", "nothing was trained")
    assert not list((tmp_path / "state").glob("contribution-*"))
    assert not (tmp_path / "state" / "model.safetensors").exists()


@pytest.mark.usefixtures("server")
def test_of_a_lifetime(join_alone: Callable[[str], Answer], tmp_path: Path) -> None:
    answer = join_alone(f"{POLICY}lifetime_epsilon: 0.5\n")
    answer.says(1, "the whole study does not fit this hospital's lifetime privacy budget", "of 0.5 allowed")
    answer.says(1, "nothing was charged, computed or sent", "lifetime_epsilon 0.5 allowed. Shown here alone")
    assert SiteFolder(tmp_path / "state").manifest is None
    assert not (tmp_path / "ledger").exists()
    assert not list((tmp_path / "state").glob("contribution-*"))
