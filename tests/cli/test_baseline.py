"""`fedseg client baseline`: a site's own model, without a server; what it says, keeps and refuses."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedseg.runtime.site_folder import SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.checkpoints import load_model
from fedseg.training.local import LocalTrainer
from tests.cli.conftest import Command, enrol_at_desk
from tests.conftest import Save, tiny_head

MakeBids = Callable[..., Path]
SPLIT = "participant_id\tsplit\nsub-01\ttrain\nsub-02\ttrain\nsub-03\ttest\n"
PLAN = """
name: small
privacy: {mode: 'off'}
image: {spacing_mm: 0.8, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 1, threads: 1}
schedule: {rounds: 3}
sites: {a: {}, b: {}, c: {}}
"""


@pytest.fixture(scope="session")
def plain_study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study without privacy; nothing in it changes but its enrolments."""
    from fedseg.plan.study import parse_plan
    from fedseg.runtime.preparation import first_model

    plan = parse_plan(PLAN, "plan")
    folder = tmp_path_factory.mktemp("plain") / "study"
    return StudyFolder.create(folder, plan, first_model(plan.content), address="localhost:1", now=time.time())


@pytest.fixture
def site(plain_study: StudyFolder, make_bids: MakeBids, tmp_path: Path) -> SiteFolder:
    """A site that has agreed to it, whose server is not there."""
    return _joined(plain_study, make_bids(3, participants=SPLIT), tmp_path)


def _joined(study: StudyFolder, data: Path, tmp_path: Path) -> SiteFolder:
    folder = SiteFolder(tmp_path / "state")
    enrol_at_desk(study, "a", folder, data=data, ledger=tmp_path / "ledger")
    folder.accept(study.manifest)
    return folder


def test_a_baseline_is_trained_and_says_that_it_must_stay(fedseg: Command, site: SiteFolder) -> None:
    answer = fedseg("client", "baseline", "--state", site.root)
    assert answer.code == 0, answer.err
    model = site.root / "baseline" / "baseline.safetensors"
    assert f"Trained on this site's scans alone, 3 steps: {model}" in answer.out
    assert "It is NOT private" in answer.out
    assert "hand it to nobody" in answer.out
    assert "Next, once the study is complete, did joining help?" in answer.out
    assert f"fedseg evaluate {site.model} {model} --data {site.membership.data} --out DIR" in answer.out
    assert "keeps no test subject back" not in answer.out
    assert stat.S_IMODE(model.stat().st_mode) == 0o600
    assert stat.S_IMODE(model.parent.stat().st_mode) == 0o700
    assert {path.name for path in model.parent.iterdir()} == {model.name, ".lock"}
    _, card = load_model(model)
    assert card.study == "small: a alone"
    assert card.contributors == ((1, ("a",)), (2, ("a",)), (3, ("a",)))
    assert "never hand it on" in str(card.privacy["never_hand_on"])


def test_a_baseline_that_is_there_is_not_trained_again(
    fedseg: Command, site: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(fedseg("client", "baseline", "--state", site.root, "--json").out)
    assert (first["trained"], first["steps"]) == (True, 3)
    assert "not private" in first["privacy"]
    monkeypatch.setattr(LocalTrainer, "update", lambda *_, **__: pytest.fail("trained again"))
    site.model.write_bytes(b"the study's")
    shown = fedseg("client", "baseline", "--state", site.root).out
    assert f"The baseline is there already; to train it anew, remove it: {first['model']}" in shown
    assert "Next, did joining help?" in shown
    again = json.loads(fedseg("client", "baseline", "--state", site.root, "--json").out)
    assert again == first | {"trained": False}


def test_once_the_study_is_complete_a_baseline_leaves_no_prepared_scan(fedseg: Command, site: SiteFolder) -> None:
    words = ("client", "baseline", "--state", site.root, "--json")
    assert fedseg(*words).code == 0
    assert [*site.cache.iterdir()]
    site.model.write_bytes(b"the study's")
    (site.root / "baseline" / "baseline.safetensors").unlink()
    assert fedseg(*words).code == 0
    assert not site.cache.exists()


def test_ctrl_c_keeps_whole_rounds_and_the_same_command_ends_with_the_same_model(
    fedseg: Command, site: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(fedseg("client", "baseline", "--state", site.root, "--out", tmp_path / "whole", "--json").out)
    rounds: list[int] = []
    update = LocalTrainer.update

    def interrupted(trainer: LocalTrainer, weights: object, number: int, **named: object) -> object:
        rounds.append(number)
        if rounds == [1, 2]:
            os.kill(os.getpid(), signal.SIGINT)
        return update(trainer, weights, number, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTrainer, "update", interrupted)
    words = ("client", "baseline", "--state", site.root, "--json")
    fedseg(*words).says(130, "stopped; 1 of 3 rounds are trained and kept", "the same command goes on from there")
    kept = site.root / "baseline" / "baseline-training.npz"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    ended = json.loads(fedseg(*words).out)
    assert rounds == [1, 2, 2, 3]
    assert ended["model_hash"] == whole["model_hash"]
    assert not kept.exists()


def test_what_is_unfinished_is_bound_to_its_scans(
    fedseg: Command, site: SiteFolder, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("client", "baseline", "--state", site.root)
    update = LocalTrainer.update

    def once(trainer: LocalTrainer, weights: object, number: int, **named: object) -> object:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(trainer, weights, number, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalTrainer, "update", once)
    assert fedseg(*words).code == 130
    kept = site.root / "baseline" / "baseline-training.npz"
    scan = Path(site.membership.data) / "sub-01/anat/sub-01_rec-srr_T2w.nii.gz"
    good = scan.read_bytes()
    save(scan, tiny_head(seed=9)[0])
    fedseg(*words).says(2, "unfinished baseline of other scans", str(kept), "remove that file to start anew")
    scan.write_bytes(good)
    kept.write_bytes(b"PK nothing")
    fedseg(*words).says(1, "the state of training is damaged", str(kept), "remove it: training starts anew")


def test_without_kept_back_subjects_it_says_that_the_answer_means_little(
    fedseg: Command, plain_study: StudyFolder, make_bids: MakeBids, tmp_path: Path
) -> None:
    folder = _joined(plain_study, make_bids(1), tmp_path)
    answer = fedseg("client", "baseline", "--state", folder.root)
    assert "This site keeps no test subject back" in answer.out


def test_a_study_that_is_private_has_a_baseline_without_noise_and_without_a_charge(
    fedseg: Command, study: StudyFolder, make_bids: MakeBids, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedseg.training import dpsgd

    monkeypatch.setattr(dpsgd, "private_steps", lambda *_, **__: pytest.fail("noise was added"))
    folder = _joined(study, make_bids(1), tmp_path)
    answer = fedseg("client", "baseline", "--state", folder.root, "--json")
    assert answer.code == 0, answer.err
    # 2 rounds of 1 step that draws half of 10 public subjects.
    assert json.loads(answer.out)["steps"] == 10
    assert not (tmp_path / "ledger").exists()


def test_a_site_that_has_agreed_to_nothing_has_no_plan_to_train_with(
    fedseg: Command, plain_study: StudyFolder, make_bids: MakeBids, tmp_path: Path
) -> None:
    folder = SiteFolder(tmp_path / "state")
    fedseg("client", "baseline", "--state", folder.root).says(2, "this folder holds no site's state")
    enrol_at_desk(plain_study, "a", folder, data=make_bids(1), ledger=tmp_path / "ledger")
    fedseg("client", "baseline", "--state", folder.root).says(
        2, "this site has agreed to no plan yet", f"join first: fedseg client join --state {folder.root}"
    )


def test_a_model_file_is_refused_where_the_study_started_from_its_seed(fedseg: Command, site: SiteFolder) -> None:
    fedseg("client", "baseline", "--state", site.root, "--init", "model.safetensors").says(
        2, "the study started from its plan's seed, not from a model file", "leave --init out"
    )


def test_an_unusable_folder_is_named(fedseg: Command, site: SiteFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    fedseg("client", "baseline", "--state", site.root, "--out", tmp_path / "file").says(
        1, "something else is in the way", str(tmp_path / "file")
    )
