"""What a site's own model is trained with, and what it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedseg.errors import ModelError, PlanError, UsageError
from fedseg.plan.manifest import Init, Manifest
from fedseg.plan.study import parse_plan
from fedseg.runtime.alone import first_weights, own_manifest
from fedseg.runtime.preparation import first_model
from fedseg.runtime.resolution import FirstModel, resolve
from fedseg.store.checkpoints import ModelCard, save_model

SITES = {"a": {"public_subjects": 20}, "b": {"public_subjects": 40}, "c": {"public_subjects": 20}}
PLAN: dict[str, Any] = {
    "name": "small",
    "privacy": {"mode": "off"},
    "image": {"spacing_mm": 2.0, "patch": [16, 16, 16]},
    "network": {"preset": "small"},
    "training": {"steps": 7, "learning_rate": 2e-3, "optimiser": "sgd", "average": 0.5, "threads": 1},
    "schedule": {"rounds": 9},
    "sites": SITES,
}
DISTRIBUTED: dict[str, Any] = {
    "privacy": {"mode": "distributed", "epsilon": 8},
    "training": {"steps": 1, "optimiser": "sgd", "learning_rate": 0.1, "layers": "norms", "threads": 1},
    "schedule": {"rounds": 10},
}


def _manifest(**changed: Any) -> tuple[Manifest, FirstModel]:
    document = parse_plan(json.dumps(PLAN | changed), "plan")
    first = first_model(document.content)
    return resolve(document, first, study="00" * 16), first


def test_without_privacy_a_site_alone_has_the_plans_own_recipe() -> None:
    manifest, _ = _manifest(strategy={"name": "fedadam"})
    own = own_manifest(manifest, ["a"])
    assert own.plan.training == manifest.plan.training
    assert own.plan.schedule == manifest.plan.schedule
    assert own.plan.site_names == ("a",)
    assert own.plan.strategy.name == "fedavg"
    assert (own.parameters, own.trained) == (manifest.parameters, manifest.trained)


@pytest.mark.parametrize(
    ("site", "steps"),
    [("a", 10 * 20), ("b", 10 * 40)],
)
def test_a_private_plan_becomes_usual_training_of_as_many_subjects(site: str, steps: int) -> None:
    manifest, _ = _manifest(**DISTRIBUTED)
    own = own_manifest(manifest, [site])
    assert (own.plan.private, own.noise_multiplier) == (False, None)
    assert own.plan.schedule.rounds * own.plan.training.steps == steps
    assert own.plan.training.steps >= 25
    assert (own.plan.training.optimiser, own.plan.training.layers) == ("adam", "all")
    assert own.trained == ((0, manifest.parameters),)
    assert own.plan.image == manifest.plan.image


def test_a_long_private_study_stays_within_what_a_plan_may_ask_for() -> None:
    manifest, _ = _manifest(
        **DISTRIBUTED | {"schedule": {"rounds": 5000}, "privacy": {**DISTRIBUTED["privacy"], "epsilon": 100}}
    )
    plan = own_manifest(manifest, ["b"]).plan
    assert plan.schedule.rounds * plan.training.steps == 200_000


def test_first_weights_are_those_of_the_studys_seed() -> None:
    manifest, first = _manifest()
    assert (first_weights(manifest, None) == first.weights).all()
    other = manifest.model_copy(update={"initial_model": "0" * 64})
    with pytest.raises(PlanError, match="another first model") as caught:
        first_weights(other, None)
    assert manifest.code_version in str(caught.value)


def test_a_study_that_started_from_a_file_needs_that_file(tmp_path: Path) -> None:
    manifest, first = _manifest()
    from fedseg.runtime.preparation import layout_of

    layout = layout_of(manifest)
    architecture: dict[str, Any] = {**manifest.architecture}
    card = ModelCard(
        architecture=architecture, task="feta", tissues=("a",), spacing_mm=2.0, patch=(16, 16, 16),
        normalisation={}, study="pretraining", plan_hash="", rounds=0, contributors=(), privacy={"mode": "public"},
        code_version="0",
    )  # fmt: skip
    right, wrong = tmp_path / "right.safetensors", tmp_path / "wrong.safetensors"
    hashed = save_model(right, layout.unflatten(first.weights), card).model_hash
    save_model(wrong, layout.unflatten(first.weights + 1), card)
    started = manifest.model_copy(update={"init": Init(model_hash=hashed, trained_on="made-up brains")})
    assert (first_weights(started, right) == first.weights).all()
    with pytest.raises(UsageError, match="started from a model trained on made-up brains") as missing:
        first_weights(started, None)
    assert hashed[:16] in str(missing.value)
    with pytest.raises(ModelError, match="not the model that the study started from") as other:
        first_weights(started, wrong)
    assert hashed in str(other.value)
