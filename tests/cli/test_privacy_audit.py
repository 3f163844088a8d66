"""`fedseg privacy-audit`: its words, its exit codes, its files, and what must not be in them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedseg.cli.files import load_plan
from fedseg.imaging.bids import load_dataset
from fedseg.labels import FETA
from fedseg.privacy import auditing
from fedseg.runtime import path_probes, privacy_audit
from fedseg.runtime.preparation import first_model
from fedseg.runtime.site_folder import Membership, SiteFolder
from fedseg.runtime.study import StudyFolder
from fedseg.store.checkpoints import ModelCard, load_model, save_model
from fedseg.training.dpsgd import SubjectOptimizer
from fedseg.training.inversion import demonstrate
from fedseg.training.local import LocalTrainer
from fedseg.training.network import architecture, arrays, build_network
from tests.cli.conftest import Command

PLAN = """
name: audited
image: {spacing_mm: 4.0, patch: [16, 16, 16]}
network: {preset: small}
training: {steps: 2, learning_rate: 1e-3, threads: 1}
privacy: {mode: local, epsilon: 8, max_grad_norm: 0.5, sampling_rate: 1.0}
aggregation: {clip: 1000}
schedule: {rounds: 2}
sites: {a: {}, b: {}, c: {}}
"""
SHARED = PLAN.replace("mode: local", "mode: distributed").replace("steps: 2", "steps: 1, optimiser: sgd")
SUBJECTS = ("alice", "bella", "carla", "dora", "emma")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations of each inversion, few draws of the trainer, rough bounds."""
    monkeypatch.setattr(auditing, "_CLOSE", 1.0)
    monkeypatch.setattr(privacy_audit, "demonstrate", partial(demonstrate, iterations=2))
    monkeypatch.setattr(path_probes, "_DRAWN", 8)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    card = ModelCard(
        architecture=architecture("small", 8),
        task=FETA.name,
        tissues=FETA.tissues,
        spacing_mm=1.6,
        patch=(16, 16, 16),
        normalisation={"method": "as the test says", "n4": False},
        study="small",
        plan_hash="0" * 64,
        rounds=0,
        contributors=(),
        privacy={"mode": "off", "epsilon": None},
        code_version="0.1.0",
    )
    save_model(tmp_path / "model.safetensors", arrays(build_network("small", 8, 0)), card)
    return tmp_path / "model.safetensors"


@pytest.fixture
def people(make_bids: Callable[..., Path]) -> Callable[..., Path]:
    """Real subjects, by their names, of the splits that are asked for."""

    def make(*splits: str, keys: str = "12345") -> Path:
        rows = [f"sub-{number:02d}\t{split}\tkey-{keys[number - 1]}" for number, split in enumerate(splits, 1)]
        root = make_bids(len(splits), participants="\n".join(["participant_id\tsplit\tsubject_key", *rows]) + "\n")
        for number, name in zip(range(1, len(splits) + 1), SUBJECTS, strict=False):
            for path in sorted(root.rglob(f"*sub-{number:02d}*"), reverse=True):
                path.rename(path.with_name(path.name.replace(f"sub-{number:02d}", f"sub-{name}")))
        table = root / "participants.tsv"
        for number, name in enumerate(SUBJECTS, 1):
            table.write_text(table.read_text().replace(f"sub-{number:02d}", f"sub-{name}"))
        return root

    return make


def test_an_honest_engine_and_real_subjects_that_stay_here(
    fedseg: Command, plan: Path, model: Path, people: Callable[..., Path], tmp_path: Path
) -> None:
    data, out = people("train", "train", "train", "test", "validation"), tmp_path / "audit"
    answer = fedseg("privacy-audit", "--plan", plan, "--trials", "100", "--model", model, "--data", data, "--out", out)
    assert answer.code == 0, answer.err
    for words in (
        "Consistent: nothing contradicts what is claimed.",
        "an audit can refute a claim and never prove one",
        "Proven with 95% confidence: epsilon is at least",
        "With 100 canaries no more than",
        "The claim is larger than that, so the first bound could not have refuted it: raise --trials.",
        "Clipping alone hides nothing",
        "Stays here: computed on this site's own subjects, written to no file.",
        "3 units of privacy (subjects, or all subjects with one subject_key) of the split train",
        "against 2 of the others",
        "too few never-seen subjects to measure",
        "only a test if the model was trained on exactly these units",
    ):
        assert words in answer.out, answer.out
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "inversion.png"]
    written = b"".join(path.read_bytes() for path in out.iterdir())
    for secret in (*SUBJECTS, "membership", "auc", "advantage", str(data), str(tmp_path)):
        assert secret.encode() not in written
    document = json.loads((out / "audit.json").read_text())
    assert {name: document[name] for name in ("kind", "mode", "verdict", "trials", "max_grad_norm", "honest")} == {
        "kind": "fedseg privacy audit 1",
        "mode": "local",
        "verdict": "consistent",
        "trials": 100,
        "max_grad_norm": 0.5,
        "honest": None,
    }
    assert 0 <= document["lower_bound"] <= document["largest_provable"] < document["claimed_epsilon"]
    assert all(set(probe) == {"name", "passed", "detail"} and probe["passed"] for probe in document["probes"])
    assert (out / "inversion.png").read_bytes().startswith(b"\x89PNG")


def test_a_lying_engine_is_caught_with_exit_code_1(
    fedseg: Command, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SubjectOptimizer.add_noise

    def add_noise(self: Any) -> None:
        self.noise_multiplier /= 2
        honest(self)
        self.noise_multiplier *= 2

    monkeypatch.setattr(SubjectOptimizer, "add_noise", add_noise)
    answer = fedseg("privacy-audit", "--plan", plan, "--trials", "100", "--json", "--out", tmp_path / "audit")
    assert answer.code == 1
    document = json.loads(answer.out)
    assert document == json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert (document["verdict"], document["plan_hash"]) == ("CAUGHT", None)
    wrong = {probe["name"] for probe in document["probes"] if not probe["passed"]}
    assert {"noise as charged", "trainer's noise as charged"} <= wrong


def test_a_trainer_that_lies_to_an_honest_engine_is_caught(
    fedseg: Command, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LocalTrainer.__init__

    def made(self: LocalTrainer, *words: Any, **names: Any) -> None:
        honest(self, *words, **names)
        assert self._noise_multiplier is not None
        self._noise_multiplier /= 10

    monkeypatch.setattr(LocalTrainer, "__init__", made)
    answer = fedseg("privacy-audit", "--plan", plan, "--trials", "100")
    assert answer.code == 1
    assert "CAUGHT: this engine does not do what it claims. Do not train with it" in answer.out
    assert answer.out.count("CAUGHT") == 2
    assert re.search(r"standard deviation 0\.(09|10)", answer.out)
    assert "Consistent" not in answer.out


def test_a_study_and_a_sites_state_are_audited_under_their_plan_hash(
    fedseg: Command, plan: Path, tmp_path: Path
) -> None:
    document = load_plan(plan)
    study = StudyFolder.create(tmp_path / "study", document, first_model(document.content), address="x:1", now=0.0)
    hashes = []
    for folder in (study.root, state_of(study, tmp_path / "state").root):
        out = tmp_path / "audit" / folder.name
        answer = fedseg("privacy-audit", "--study", folder, "--trials", "100", "--out", out)
        assert answer.code == 0, answer.err or answer.out
        hashes.append(json.loads((out / "audit.json").read_text())["plan_hash"])
        report = fedseg("privacy-report", study.root, "--audit", out / "audit.json")
        assert report.code == 0, report.err
        assert "every probe passed" in report.out
    assert hashes == [study.manifest.plan_hash] * 2


def state_of(study: StudyFolder, root: Path) -> SiteFolder:
    """The state of site b, which accepted a study."""
    folder = SiteFolder(root)
    root.mkdir()
    member = Membership("x:1", "b", str(root / "data"), None, str(root / "ledger"), None)
    (root / "site.json").write_text(json.dumps(asdict(member)))
    folder.accept(study.manifest)
    return folder


def test_a_site_is_audited_at_its_own_place(plan: Path, tmp_path: Path) -> None:
    document = load_plan(plan)
    study = StudyFolder.create(tmp_path / "study", document, first_model(document.content), address="x:1", now=0.0)
    assert privacy_audit.of_folder(study.root).site == "a"
    assert privacy_audit.of_folder(state_of(study, tmp_path / "state").root).site == "b"
    assert privacy_audit.of_plan(document).plan_hash is None


def test_a_site_without_a_study(fedseg: Command, tmp_path: Path) -> None:
    (tmp_path / "site.json").write_text("{}")
    fedseg("privacy-audit", "--state", tmp_path).says(2, "has not accepted a study yet", "fedseg client join --state")


def test_the_usual_constants_are_not_silent() -> None:
    claim, delta = privacy_audit.claim_of(privacy_audit.of_usual().manifest)
    assert (claim.sampling_rate, claim.max_grad_norm, claim.honest, delta) == (0.5, 1.0, None, 1e-5)
    assert 2 < claim.noise_multiplier < 3


def test_the_json_of_a_membership_test_says_that_it_stays_here(
    fedseg: Command, model: Path, people: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run_without_engine(
        fedseg, monkeypatch, "--model", model, "--data", people("train", "train", "test", "test")
    )
    found = json.loads(answer.out)["membership"]
    assert found["stays_here"].startswith("Stays here")
    assert (found["members"], found["others"], found["told_apart"]) == (2, 2, False)
    assert not any(name in answer.out for name in SUBJECTS)


def test_twins_are_one_unit(
    fedseg: Command, model: Path, people: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = people("train", "train", "train", "test", "validation", keys="11345")
    found = json.loads(run_without_engine(fedseg, monkeypatch, "--model", model, "--data", twins).out)["membership"]
    assert (found["members"], found["others"]) == (2, 2)


def run_without_engine(fedseg: Command, patch: pytest.MonkeyPatch, *words: Any) -> Any:
    """The command, with an engine's audit that takes no time."""

    class Passed:
        caught = False

        def to_json(self) -> dict[str, Any]:
            return {}

    patch.setattr(privacy_audit, "audit_engine", lambda *_: Passed())
    return fedseg("privacy-audit", "--json", *words)


def test_a_membership_test_needs_two_of_each(
    fedseg: Command, model: Path, people: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run_without_engine(fedseg, monkeypatch, "--model", model, "--data", people("train", "train", "test"))
    answer.says(1, "too few subjects for a membership test", "see the column split of participants.tsv")


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"patch": (33, 32, 32)}, "must be a multiple of 8"), ({"tissues": ("a", "b")}, "are not those of the task feta")],
)
def test_a_model_that_could_not_segment_is_not_tested_either(
    changed: dict[str, Any],
    what: str,
    fedseg: Command,
    model: Path,
    people: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named, card = load_model(model)
    save_model(model, named, replace(card, **changed))
    data = people("train", "train", "test", "test")
    run_without_engine(fedseg, monkeypatch, "--model", model, "--data", data).says(1, what, str(model))


def test_wrong_use(fedseg: Command, plan: Path, model: Path, tmp_path: Path) -> None:
    fedseg("privacy-audit", "--model", model).says(2, "a membership test needs a model and a data set", "--data")
    fedseg("privacy-audit", "--plan", plan, "--study", tmp_path).says(2, "give one of --plan and --study")
    fedseg("privacy-audit", "--state", tmp_path).says(2, "neither a site's state nor a study", str(tmp_path))
    fedseg("privacy-audit", "--plan", tmp_path / "none").says(2, "no such plan")
    for trials in ("99", "50001"):
        fedseg("privacy-audit", "--trials", trials).says(2, f"{trials} canaries", "choose 100 to 50000")


def test_a_plan_without_privacy_promises_nothing(fedseg: Command, plan: Path) -> None:
    plan.write_text(PLAN.replace("{mode: local, epsilon: 8, max_grad_norm: 0.5, sampling_rate: 1.0}", "{mode: off}"))
    fedseg("privacy-audit", "--plan", plan).says(2, "it promises nothing that an audit could refute", "audited")


def test_claims_are_those_of_the_plan(plan: Path) -> None:
    claim, delta = privacy_audit.claim_of(privacy_audit.of_plan(load_plan(plan)).manifest)
    assert (claim.sampling_rate, claim.max_grad_norm, claim.honest, delta) == (1.0, 0.5, None, 1e-5)
    assert 0.5 < claim.noise_multiplier < 5
    plan.write_text(SHARED)
    assert privacy_audit.claim_of(privacy_audit.of_plan(load_plan(plan)).manifest)[0].honest == 2


def test_help_has_an_example(fedseg: Command) -> None:
    answer = fedseg("privacy-audit", "--help")
    assert answer.code == 0
    assert "fedseg privacy-audit --plan plan.yaml --out audit" in answer.out


def test_the_people_of_these_tests_are_found(people: Callable[..., Path]) -> None:
    dataset = load_dataset(people("train", "test"), scheme=FETA)
    assert list(dataset.subjects("train")) == ["alice"]
    assert list(dataset.subjects("test")) == ["bella"]
