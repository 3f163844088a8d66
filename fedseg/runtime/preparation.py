"""From a site's folder to what its trainer needs: scans found, checked, prepared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedseg.errors import DataError, PlanError, StorageError
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Layout
from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import PreparedCache, prepare_case
from fedseg.imaging.dataset import Case, Dataset
from fedseg.imaging.nifti import read_header
from fedseg.imaging.transforms import Prepared
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import StudyPlan
from fedseg.runtime.resolution import FirstModel
from fedseg.store.files import storage_errors

if TYPE_CHECKING:
    from fedseg.training.local import LocalTrainer

OnCase = Callable[[int, int], None]
"""Called with (scans done, scans in all)."""

MOST_SCORED = 8
"""Validation subjects that are scored each round: a scan takes about as long as a training step."""


def training_data(data: Path, plan: StudyPlan, labels: str | None) -> Dataset:
    """The site's data set, with at least one subject to train on.

    Raises:
        DataError: for anything that would make it train on nonsense, or on nothing.
    """
    dataset = load_dataset(data, labels=labels, scheme=scheme(plan.task))
    if not dataset.subjects("train"):
        raise DataError(
            "no subject is in the split train",
            where=str(data),
            hint="see the column split of participants.tsv; without that column all subjects train",
        )
    return dataset


def scored_cases(dataset: Dataset, plan: StudyPlan) -> dict[str, tuple[Case, ...]]:
    """The first scan of each of at most `MOST_SCORED` validation subjects, the same ones in every round.

    Evenly spaced among their sorted ids; none where the plan does not roll back, as then nothing is scored.
    """
    subjects = dataset.subjects("validation") if plan.aggregation.rollback else {}
    names = sorted(subjects)
    count = min(len(names), MOST_SCORED)
    return {names[i * len(names) // count]: subjects[names[i * len(names) // count]][:1] for i in range(count)}


def bytes_needed(dataset: Dataset, manifest: Manifest) -> int:
    """Room on disk that the study will take at this site: prepared scans, models, updates, about."""
    voxels = 0.0
    for cases in (*dataset.subjects("train").values(), *scored_cases(dataset, manifest.plan).values()):
        for case in cases:
            header = read_header(case.image)
            size_mm3 = 1.0
            for count, spacing in zip(header.shape[:3], header.spacing_mm, strict=True):
                size_mm3 *= count * spacing
            voxels += size_mm3 / manifest.plan.image.spacing_mm**3
    vectors = 8 * manifest.parameters + 2 * Strategy.of(manifest).size
    return int(5 * voxels) + 4 * vectors + 10_000_000


def require_room(folder: Path, needed: int) -> None:
    """Refuse to start where the disk has less room than the work needs.

    Raises:
        StorageError: saying how much is free and how much is needed.
    """
    with storage_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"the disk has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed",
            where=str(folder),
            hint="free some space, or use a folder on another disk; nothing was started",
        )


def prepare_training(dataset: Dataset, plan: StudyPlan, cache: Path, on_case: OnCase) -> dict[str, list[Prepared]]:
    """Prepared volumes of every unit of privacy that trains, through the site's cache."""
    return _prepare(dataset, dataset.units("train"), plan, cache, on_case)


def prepare_validation(dataset: Dataset, plan: StudyPlan, cache: Path, on_case: OnCase) -> dict[str, list[Prepared]]:
    """Prepared volumes of the validation subjects that are scored (`scored_cases`), through the site's cache."""
    return _prepare(dataset, scored_cases(dataset, plan), plan, cache, on_case)


def _prepare(
    dataset: Dataset, subjects: Mapping[str, tuple[Case, ...]], plan: StudyPlan, cache: Path, on_case: OnCase
) -> dict[str, list[Prepared]]:
    total, done = sum(map(len, subjects.values())), 0
    kept = PreparedCache(cache)
    prepared: dict[str, list[Prepared]] = {}
    for subject, cases in subjects.items():
        for case in cases:
            ready = prepare_case(dataset, case, spacing_mm=plan.image.spacing_mm, cache=kept, n4=plan.image.n4)
            prepared.setdefault(subject, []).append(ready)
            done += 1
            on_case(done, total)
    return prepared


def make_trainer(
    manifest: Manifest,
    site: str,
    subjects: Mapping[str, list[Prepared]],
    validation: Mapping[str, list[Prepared]] | None = None,
) -> LocalTrainer:
    """The torch trainer of a site."""
    from fedseg.training.local import LocalTrainer

    return LocalTrainer(
        manifest.plan,
        site,
        subjects,
        architecture=manifest.architecture,
        noise_multiplier=manifest.noise_multiplier,
        validation=validation,
    )


def trained_ranges(plan: StudyPlan, layout: Layout) -> tuple[tuple[int, int], ...]:
    """Where the layers that a plan trains together lie in the flat vector: under FedBN all but the normalisation."""
    from fedseg.training.network import norm_names, trained_names

    preset, classes = plan.network.preset, scheme(plan.task).classes
    at_home = norm_names(preset, classes) if plan.strategy.name == "fedbn" else ()
    return layout.ranges(set(trained_names(preset, classes, plan.training.layers)).difference(at_home))


def first_model(plan: StudyPlan) -> FirstModel:
    """The weights that a plan's seed gives, the architecture that they belong to, and what of them trains."""
    from fedseg.training.network import architecture, arrays, build_network

    classes = scheme(plan.task).classes
    named = arrays(build_network(plan.network.preset, classes, plan.seed))
    layout = Layout.of(named)
    described = architecture(plan.network.preset, classes)
    return FirstModel(layout.flatten(named), described, trained_ranges(plan, layout))


def require_network(manifest: Manifest) -> Layout:
    """The layout of a study's network, which must be the plan's and of the size that the manifest says.

    Raises:
        PlanError: if the server's manifest contradicts itself.
    """
    from fedseg.training.network import architecture

    plan, layout = manifest.plan, layout_of(manifest)
    expected = architecture(plan.network.preset, scheme(plan.task).classes)
    fits = layout.size == manifest.parameters and trained_ranges(plan, layout) == manifest.trained
    if dict(manifest.architecture) != expected or not fits:
        raise PlanError("the study's network is not the one that its plan names", hint="talk to the coordinator")
    return layout


def layout_of(manifest: Manifest) -> Layout:
    """The layout of a study's network."""
    from fedseg.training.network import arrays, from_architecture

    return Layout.of(arrays(from_architecture(manifest.architecture)))
