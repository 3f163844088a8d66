"""A site's own model, under the study's plan but without the others: what joining is measured against. Never sent."""

from __future__ import annotations

import secrets
from pathlib import Path

from fedseg.federation.vector import Weights
from fedseg.plan import Manifest
from fedseg.runtime.model_file import write_model
from fedseg.runtime.preparation import layout_of, make_trainer, prepare_training, training_data
from fedseg.runtime.study import DiskArchive, StudyFolder


def write_own_model(study: StudyFolder, site: str, data: Path, out: Path, labels: str | None = None) -> Path:
    """Train one site's own model from the study's first weights, and write it to `out`; returns the file."""
    manifest = study.manifest
    out.mkdir(parents=True, exist_ok=True)
    initial = DiskArchive(study).load_model(0)
    weights = train_alone(manifest, site, data, labels, out / "cache", initial)
    history = tuple((number, (site,)) for number in range(1, manifest.plan.schedule.rounds + 1))
    write_model(out / "model.safetensors", manifest, layout_of(manifest), weights, history)
    return out / "model.safetensors"


def train_alone(
    manifest: Manifest, site: str, data: Path, labels: str | None, cache: Path, initial: Weights
) -> Weights:
    """As many steps as the study takes, at one site.

    Args:
        manifest: The study: same network, steps and privacy noise.
        site: The site's name.
        data: Its scans.
        labels: How its label numbers are read.
        cache: Folder for prepared scans.
        initial: Where round 1 starts.
    """
    subjects = prepare_training(
        training_data(data, manifest.plan, labels), manifest.plan, cache, lambda _done, _of: None
    )
    trainer, layout = make_trainer(manifest, site, subjects), layout_of(manifest)
    weights = initial
    for number in range(1, manifest.plan.schedule.rounds + 1):
        update = trainer.update(
            layout.unflatten(weights),
            number,
            entropy=secrets.token_bytes,
            on_step=lambda _done, _of: None,
            should_stop=lambda: False,
        )
        weights = weights + layout.flatten(update)
    return weights
