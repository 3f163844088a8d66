"""The study's final model file: the server and every site write the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fedseg.federation.vector import Layout, Weights
from fedseg.imaging.made_up_fingerprint import T2_MADE_UP
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan
from fedseg.privacy.accounting import accountant_name
from fedseg.runtime.resolution import events_of
from fedseg.store.checkpoints import ModelCard, save_model

_METHOD = "robust percentiles of the foreground, then zero mean and unit variance"

History = tuple[tuple[int, tuple[str, ...]], ...]


def write_model(path: Path, manifest: Manifest, layout: Layout, weights: Weights, history: History) -> ModelCard:
    """Write a study's model with its description, whole or not at all.

    Its fingerprint is that of made-up brains as T2-weighted scans show them: of the sites' scans nothing is taken.

    Args:
        path: The file.
        manifest: The study.
        layout: Order of the network's arrays in the flat vector.
        weights: The final model.
        history: (round, contributors) of every closed round.

    Raises:
        ModelError: if the weights do not fit the layout, or are not finite.
        StorageError: if the file cannot be written.
    """
    return save_model(path, layout.unflatten(weights), _card(manifest, history))


def write_own(
    path: Path, manifest: Manifest, layout: Layout, weights: Weights, history: History, whose: str, never: str = ""
) -> Path:
    """Write a site's own model as `write_model` does, but readable for its owner alone; returns the file.

    Args:
        path: The file.
        manifest: The study.
        layout: Order of the network's arrays in the flat vector.
        weights: float32[P].
        history: (round, contributors) of every closed round.
        whose: Whose it is: it stands behind the study's name.
        never: Why it must not be handed on; empty where the study's claim of privacy holds of it too.

    Raises:
        ModelError: if the weights do not fit the layout, or are not finite.
        StorageError: if the file cannot be written.
    """
    card = _card(manifest, history)
    privacy = {**card.privacy, "never_hand_on": never} if never else card.privacy
    named = replace(card, study=f"{card.study}: {whose}", privacy=privacy)
    save_model(path, layout.unflatten(weights), named, mode=0o600)
    return path


def _card(manifest: Manifest, history: History) -> ModelCard:
    plan = manifest.plan
    architecture: dict[str, Any] = {**manifest.architecture}
    return ModelCard(
        architecture=architecture,
        task=plan.task,
        tissues=scheme(plan.task).tissues,
        spacing_mm=plan.image.spacing_mm,
        patch=plan.image.patch,
        normalisation=normalisation(plan),
        study=plan.name,
        plan_hash=manifest.plan_hash,
        rounds=len(history),
        contributors=history,
        privacy=privacy_claim(manifest),
        code_version=manifest.code_version,
        fingerprint=T2_MADE_UP,
    )


def normalisation(plan: StudyPlan) -> dict[str, Any]:
    """How a plan brings intensities to a common scale, as a model file says it; `n4` is the plan's own switch."""
    return {"method": _METHOD, "per": "volume", "n4": plan.image.n4}


def privacy_claim(manifest: Manifest) -> dict[str, Any]:
    """The plan's budget, as it stands before anyone trains.

    Sites refuse a round that would pass it by what they know then: a subject that turns out later to have several ids
    may have spent more. It bounds nothing of whom an unprotected first model was trained on: `unprotected_start`.
    """
    privacy = manifest.plan.privacy
    if not manifest.plan.private:
        return {"mode": "off", "epsilon": None}
    start = manifest.init.trained_on if manifest.init is not None and manifest.unprotected_start else None
    return {
        "mode": privacy.mode,
        "unit": "subject",
        "epsilon": privacy.epsilon,
        "epsilon_is": "the plan's budget; what was spent stands in the sites' ledgers",
        "delta": privacy.delta,
        "noise_multiplier": manifest.noise_multiplier,
        "max_grad_norm": privacy.max_grad_norm,
        "sampling_rate": privacy.sampling_rate,
        "accountant": accountant_name(events_of(manifest)),
        **({} if start is None else {"unprotected_start": start}),
    }
