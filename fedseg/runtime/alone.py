"""Training without the others: a site's own model, which joining is measured against, and a first model.

A site's own model is never sent; a first model is trained on public scans only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from fedseg.document import Document
from fedseg.federation.vector import Weights
from fedseg.imaging.transforms import Prepared
from fedseg.plan import Manifest, StudyPlan
from fedseg.runtime.model_file import write_model
from fedseg.runtime.preparation import first_weights, layout_of, make_trainer, prepare_training, training_data
from fedseg.runtime.resolution import resolve
from fedseg.runtime.study import DiskArchive, StudyFolder

OnRound = Callable[[int, int], None]
"""Called with (rounds done, rounds in all)."""


def train_alone(
    manifest: Manifest, site: str, subjects: Mapping[str, list[Prepared]], initial: Weights, on_round: OnRound
) -> Weights:
    """As many rounds as the study takes, at one site: same network, steps and privacy noise.

    Args:
        manifest: The study.
        site: The site's name.
        subjects: Prepared volumes of its training subjects.
        initial: Where round 1 starts.
        on_round: Told of progress.
    """
    trainer, layout, rounds = make_trainer(manifest, site, subjects), layout_of(manifest), manifest.plan.schedule.rounds
    weights = initial
    for number in range(1, rounds + 1):
        update = trainer.update(
            layout.unflatten(weights),
            number,
            entropy=secrets.token_bytes,
            on_step=lambda _done, _of: None,
            should_stop=lambda: False,
        )
        weights = weights + layout.flatten(update)
        on_round(number, rounds)
    return weights


def write_own_model(study: StudyFolder, site: str, data: Path, out: Path, on_round: OnRound) -> Path:
    """Train one site's own model from the study's first weights, and write it to `out`; returns the file."""
    manifest = study.manifest
    out.mkdir(parents=True, exist_ok=True)
    subjects = prepare_training(training_data(data, manifest.plan, None), manifest.plan, out / "cache", _silent)
    weights = train_alone(manifest, site, subjects, DiskArchive(study).load_model(0), on_round)
    return _write(out / "model.safetensors", manifest, site, weights)


def write_first_model(document: Document[StudyPlan], data: list[Path], out: Path, on_round: OnRound) -> Path:
    """Train a model on public scans only, and write it to `out`; returns the file.

    Args:
        document: A plan with one site, privacy off and plain aggregation.
        data: Data sets whose scans are made up, or public by their owner's word.
        out: Folder for the model.
        on_round: Told of progress.
    """
    plan = document.content
    weights, architecture = first_weights(plan)
    manifest = resolve(document, weights, architecture, study=secrets.token_hex(16))
    out.mkdir(parents=True, exist_ok=True)
    subjects = {
        f"{number}-{subject}": volumes
        for number, folder in enumerate(data)
        for subject, volumes in prepare_training(
            training_data(folder, plan, None), plan, out / "cache", _silent
        ).items()
    }
    site = plan.site_names[0]
    return _write(out / "model.safetensors", manifest, site, train_alone(manifest, site, subjects, weights, on_round))


def _write(path: Path, manifest: Manifest, site: str, weights: Weights) -> Path:
    history = tuple((number, (site,)) for number in range(1, manifest.plan.schedule.rounds + 1))
    write_model(path, manifest, layout_of(manifest), weights, history)
    return path


def _silent(_done: int, _of: int) -> None:
    pass
