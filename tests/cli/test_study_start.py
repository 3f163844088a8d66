"""`fedseg study create --init`: what a study may start from, and what it says of that model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Init, Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime.alone import NEVER, own_manifest
from fedseg.runtime.model_file import write_model, write_own
from fedseg.runtime.preparation import first_model, layout_of
from fedseg.runtime.resolution import resolve
from tests.cli.conftest import PLAN, Command

OPEN = PLAN.replace("mode: local, epsilon: 8, delta: 1e-5, reserve_rounds: 1", "mode: 'off'")
HISTORY = ((1, ("a", "b", "c")),)


def _study(text: str, **changes: Any) -> tuple[Manifest, Weights]:
    document = parse_plan(text, "plan")
    first = first_model(document.content)
    return resolve(document, first, study="0" * 32).model_copy(update=changes), first.weights


def _model(path: Path, text: str, **changes: Any) -> Path:
    manifest, weights = _study(text, **changes)
    write_model(path, manifest, layout_of(manifest), weights, HISTORY)
    return path


@pytest.fixture
def words(tmp_path: Path) -> tuple[Any, ...]:
    (tmp_path / "plan.yaml").write_text(PLAN)
    return ("study", "create", tmp_path / "study", "--plan", tmp_path / "plan.yaml", "--address", "x:1", "--json")


def test_a_model_that_must_stay_at_its_site_starts_no_study(
    fedseg: Command, words: tuple[Any, ...], tmp_path: Path
) -> None:
    manifest, weights = _study(PLAN)
    own = own_manifest(manifest, ["a"])
    stays = write_own(tmp_path / "baseline.safetensors", own, layout_of(own), weights, HISTORY, "a alone", NEVER)
    fedseg(*words, "--init", stays).says(
        1, "this model must never be handed on", "every site of the study would get it", str(stays), "fedseg pretrain"
    )
    assert not (tmp_path / "study").exists()


def test_what_protects_the_first_models_patients_is_in_the_manifest(
    fedseg: Command, words: tuple[Any, ...], tmp_path: Path
) -> None:
    start = Init(model_hash="0" * 64, trained_on="patients")
    for name, text, changes, protection, says in (
        ("open", OPEN, {}, "none", "WITHOUT differential privacy: its subjects are protected by nothing"),
        ("private", PLAN, {}, "privacy", "under a budget of epsilon 8.0 at delta 1e-05 for its subjects"),
        ("after-open", PLAN, {"init": start}, "none", "from a model of patients WITHOUT differential privacy"),
    ):
        model = _model(tmp_path / f"{name}.safetensors", text, **changes)
        created = fedseg(*words[:2], tmp_path / name, *words[3:], "--init", model)
        assert created.code == 0, created.err
        found = json.loads(created.out)["init"]
        assert (found["protection"], says in found["trained_on"]) == (protection, True), name
