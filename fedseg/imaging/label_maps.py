"""Label maps to make images of: those of made-up brains, and those that somebody has published.

No scan is read: a folder of label maps alone will do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import DataError
from fedseg.imaging.folders import entities, is_own
from fedseg.imaging.label_tables import TABLES, class_map, given_table, table_for
from fedseg.imaging.nifti import SUFFIXES, read_labels
from fedseg.imaging.participants import read_participants
from fedseg.imaging.synthesis_anatomy import build_anatomy, growth
from fedseg.imaging.transforms import map_labels, prepare
from fedseg.labels import FETA

Labels = NDArray[np.uint8]

YOUNGEST, OLDEST = 20.0, 38.0
VENTRICULOMEGALY_SHARE = 0.3

_GOLDEN = 0.6180339887498949


def made_up_labels(seed: int, index: int, spacing_mm: float) -> Labels:
    """The label map of a made-up brain, uint8 [X, Y, Z] in RAS, FeTA's tissues.

    Ages by additive recurrence, so that any few brains spread over 20 to 38 weeks.

    Args:
        seed: With the index it determines the brain.
        index: From 0.
        spacing_mm: Edge of a voxel.
    """
    rng = np.random.default_rng([seed, index])
    start = np.random.default_rng(seed).random()
    weeks = YOUNGEST + (OLDEST - YOUNGEST) * float((start + index * _GOLDEN) % 1.0)
    ill = bool(rng.random() < VENTRICULOMEGALY_SHARE)
    return build_anatomy(rng, growth(rng, weeks, ventriculomegaly=ill), spacing_mm).labels


def find_labels(root: Path) -> list[Path]:
    """All `_dseg.nii[.gz]` of a BIDS folder's subjects, but for our own results and subjects that are kept back.

    Raises:
        DataError: There is no such folder, or none of them in it.
    """
    if not root.is_dir():
        raise DataError("there is no such folder", where=str(root), hint="check the path")
    people = read_participants(root / "participants.tsv")
    kept_back = {subject for subject, person in people.subjects.items() if person.split != "train"}
    found = sorted(path for path in root.rglob("sub-*_dseg.nii*") if path.name.endswith(SUFFIXES))
    chosen = [path for path in found if not is_own(path, root) and entities(path).get("sub") not in kept_back]
    if not chosen:
        raise DataError(
            "no label map to train on in this folder",
            where=str(root),
            hint="expected sub-X_dseg.nii.gz in it or below; subjects that participants.tsv keeps back don't count",
        )
    return chosen


def public_labels(
    root: Path, *, labels: str | None, spacing_mm: float, on_map: Callable[[int, int], None]
) -> list[Labels]:
    """The label maps of a BIDS folder as the network sees them: RAS, at `spacing_mm`, cut to the head, FeTA's tissues.

    Args:
        root: A BIDS folder; it needs no scan. Subjects that participants.tsv keeps for validation or test are left out.
        labels: A known table or a table file instead of the folder's dseg.tsv.
        spacing_mm: Edge of a voxel.
        on_map: Called with (maps read, maps in all).

    Raises:
        DataError: No label map, one that cannot be read, or no table that says what its numbers mean.
    """
    paths, maps = find_labels(root), []
    for done, path in enumerate(paths, 1):
        maps.append(_read(path, root, labels, spacing_mm))
        on_map(done, len(paths))
    return maps


def _read(path: Path, root: Path, labels: str | None, spacing_mm: float) -> Labels:
    table = table_for(path, root, given_table(labels))
    if table is None:
        raise DataError(
            "no dseg.tsv says what the label numbers mean",
            where=str(path),
            hint=f"put one beside the labels or at the data set's root, or give --table {'|'.join(TABLES)}|FILE",
        )
    volume, classes = read_labels(path), class_map(table.names, FETA, table.source)
    head = replace(volume, data=(map_labels(volume, classes) > 0).astype(np.float32))
    prepared = prepare(head, volume, classes, spacing_mm=spacing_mm, scheme=FETA)
    if prepared.labels is None:
        raise DataError("the label map is empty", where=str(path))
    return prepared.labels
