"""The files that segmentations become: a BIDS derivative, each file whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedseg import __version__
from fedseg.imaging.maps import restore_map, write_maps_like
from fedseg.imaging.nifti import write_labels_like
from fedseg.labels import BRAIN_MASK, LabelScheme, dseg_tsv
from fedseg.runtime.prediction import Segmentation
from fedseg.runtime.scans import MASK, SEG, Scan
from fedseg.store.checkpoints import ModelCard
from fedseg.store.files import storage_errors, write_atomic
from fedseg.training.inference import uncertainty

RESEARCH = "For research use only."
_READABLE = 0o644
_NOT_IN_BIDS = "*_uncertainty.*\n"


@dataclass(frozen=True)
class Outputs:
    """What is written beside the segmentation.

    Args:
        probseg: Probabilities of every class, background first.
        uncertainty: Entropy of the probabilities, 0 to 1.
        brain_mask: All tissues together; of the brain mask task it is the segmentation anyway.
    """

    probseg: bool = False
    uncertainty: bool = False
    brain_mask: bool = False


class Derivatives:
    """A folder of results.

    Args:
        out: Made where it is missing.
        cards: Of the models.
        scans: All that will be segmented.
        outputs: What is wanted beside the segmentations.

    Raises:
        StorageError: if the folder cannot be made.
    """

    def __init__(self, out: Path, cards: Sequence[ModelCard], scans: Sequence[Scan], outputs: Outputs) -> None:
        self._out = out
        self._cards = cards
        self._scheme = LabelScheme(cards[0].task, cards[0].tissues)
        self._outputs = outputs
        roots = sorted({scan.root for scan in scans if scan.root is not None})
        self._links = {root: f"raw{number or ''}" for number, root in enumerate(roots)}
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)

    def describe(self) -> None:
        """Write what all results share: dataset_description.json, and dseg.tsv."""
        self._text("dataset_description.json", json.dumps(self._description(), indent=2))
        if self._scheme != BRAIN_MASK:
            self._text("dseg.tsv", dseg_tsv(self._scheme))
        if self._outputs.uncertainty:
            self._text(".bidsignore", _NOT_IN_BIDS)

    def write(self, scan: Scan, found: Segmentation, facts: dict[str, Any]) -> dict[str, Path]:
        """Write a scan's results, each with its sidecar; what is there is replaced.

        Args:
            scan: The scan.
            found: Its segmentation.
            facts: What else the segmentation's sidecar says.

        Returns:
            The files by kind; `segmentation` is always there.

        Raises:
            DataError: if the scan cannot be read again.
            StorageError: if a file cannot be written.
        """
        files = {}
        for kind, (name, save) in self._kinds(scan, found).items():
            files[kind] = self._out / f"{scan.name}_{name}.nii.gz"
            with storage_errors(files[kind].parent):
                files[kind].parent.mkdir(parents=True, exist_ok=True)
            save(files[kind])
            about = self._about(kind, scan) | (facts if kind == "segmentation" else {})
            self._text(f"{scan.name}_{name}.json", json.dumps(about, indent=2))
        return files

    def _kinds(self, scan: Scan, found: Segmentation) -> dict[str, tuple[str, Callable[[Path], None]]]:
        """What is written: the end of the file's name, and how."""

        def labels(out: Path) -> None:
            write_labels_like(found.labels, scan.image, out)

        def mask(out: Path) -> None:
            write_labels_like((found.labels > 0).astype(np.uint8), scan.image, out)

        def probabilities(out: Path) -> None:
            chances = enumerate(found.probabilities)
            maps = (restore_map(chance, found.geometry, outside=float(index == 0)) for index, chance in chances)
            write_maps_like(maps, scan.image, out)

        def doubt(out: Path) -> None:
            write_maps_like([restore_map(uncertainty(found.probabilities), found.geometry)], scan.image, out)

        mask_task = self._scheme == BRAIN_MASK
        kinds: dict[str, tuple[str, Callable[[Path], None]]]
        kinds = {"segmentation": (MASK if mask_task else f"{SEG}_dseg", labels)}
        if self._outputs.brain_mask and not mask_task:
            kinds["brain_mask"] = (MASK, mask)
        if self._outputs.probseg:
            kinds["probseg"] = (f"{SEG}_probseg", probabilities)
        if self._outputs.uncertainty:
            kinds["uncertainty"] = (f"{SEG}_uncertainty", doubt)
        return kinds

    def _about(self, kind: str, scan: Scan) -> dict[str, Any]:
        """A sidecar. Local folders are not named in it: results travel."""
        source = scan.image.name
        if scan.root is not None:
            source = f"bids:{self._links[scan.root]}:{scan.image.relative_to(scan.root).as_posix()}"
        about: dict[str, Any] = {"Sources": [source]}
        if kind == "probseg":
            rows = [row.split("\t") for row in dseg_tsv(self._scheme).splitlines()]
            about["LabelMap"] = [row[rows[0].index("abbreviation")] for row in rows[1:]]
        if kind == "uncertainty":
            about["Description"] = f"Entropy of the class probabilities over its largest value, 0 to 1. {RESEARCH}"
            return about
        brain = kind == "brain_mask" or (kind == "segmentation" and self._scheme == BRAIN_MASK)
        return about | ({"Type": "Brain"} if brain else {"Manual": False}) | {"Description": RESEARCH}

    def _description(self) -> dict[str, Any]:
        models = "; ".join(f"study {card.study}, model {card.model_hash}" for card in self._cards)
        links = {name: os.path.relpath(root.resolve(), self._out.resolve()) for root, name in self._links.items()}
        return {
            "Name": "fedseg segmentations (for research use only)",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "fedseg", "Version": __version__, "Description": models}],
        } | ({"DatasetLinks": links} if links else {})

    def _text(self, name: str, text: str) -> None:
        write_atomic(self._out / name, text.encode(), _READABLE)
