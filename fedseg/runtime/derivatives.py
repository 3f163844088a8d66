"""The files that segmentations become: a BIDS derivative for its owner's eyes, each file whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from fedseg import __version__
from fedseg.imaging.folders import DESCRIPTION, OWN_RESULTS, description
from fedseg.imaging.maps import restore_map, write_labels_like, write_maps_like
from fedseg.labels import BRAIN_MASK, LabelScheme, dseg_tsv
from fedseg.runtime.out_folder import make_private, refuse_others, refuse_unwritable
from fedseg.runtime.prediction import Segmentation
from fedseg.runtime.scans import MASK, SEG, Scan
from fedseg.store.checkpoints import ModelCard
from fedseg.store.files import write_atomic
from fedseg.training.inference import uncertainty

RESEARCH = "For research use only."
_IGNORE, _NOT_IN_BIDS = ".bidsignore", "*_uncertainty.*"


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
        out: Made with the first file, where it is missing, and closed to others then; so are those in it.
        cards: Of the models.
        scans: All that will be segmented.
        outputs: What is wanted beside the segmentations.

    Raises:
        StorageError: if the folder cannot be made or written.
        UsageError: if it is somebody else's: see `out_folder.refuse_others`.
    """

    def __init__(self, out: Path, cards: Sequence[ModelCard], scans: Sequence[Scan], outputs: Outputs) -> None:
        self._out = out
        self._cards = cards
        self._scheme = LabelScheme(cards[0].task, cards[0].tissues)
        self._outputs = outputs
        refuse_unwritable(out)
        refuse_others(out, (self._path(scan, name) for scan in scans for name in self._names().values()))
        self._before = description(out)
        self._links = self._linked(sorted({scan.root for scan in scans if scan.root is not None}))

    def describe(self) -> None:
        """Write what all results share: dataset_description.json, and dseg.tsv. What is there is added to."""
        self._text(DESCRIPTION, json.dumps(self._description(), indent=2))
        if self._scheme != BRAIN_MASK:
            self._text("dseg.tsv", dseg_tsv(self._scheme))
        if self._outputs.uncertainty:
            ignored = (self._out / _IGNORE).read_text() if (self._out / _IGNORE).is_file() else ""
            if _NOT_IN_BIDS not in ignored.splitlines():
                self._text(_IGNORE, f"{ignored.rstrip()}\n{_NOT_IN_BIDS}\n".lstrip())

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
        savers = self._savers(scan, found)
        for kind, name in self._names().items():
            files[kind] = self._path(scan, name)
            make_private(files[kind].parent)
            savers[kind](files[kind])
            about = self._about(kind, scan) | (facts if kind == "segmentation" else {})
            self._text(f"{scan.name}_{name}.json", json.dumps(about, indent=2))
        return files

    def _path(self, scan: Scan, name: str) -> Path:
        return self._out / f"{scan.name}_{name}.nii.gz"

    def _names(self) -> dict[str, str]:
        """What is written of each scan, with the end of the file's name."""
        mask_task = self._scheme == BRAIN_MASK
        names = {"segmentation": MASK if mask_task else f"{SEG}_dseg"}
        if self._outputs.brain_mask and not mask_task:
            names["brain_mask"] = MASK
        if self._outputs.probseg:
            names["probseg"] = f"{SEG}_probseg"
        if self._outputs.uncertainty:
            names["uncertainty"] = f"{SEG}_uncertainty"
        return names

    def _savers(self, scan: Scan, found: Segmentation) -> dict[str, Callable[[Path], None]]:
        """How each kind is written."""

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

        return {"segmentation": labels, "brain_mask": mask, "probseg": probabilities, "uncertainty": doubt}

    def _about(self, kind: str, scan: Scan) -> dict[str, Any]:
        """A sidecar. Local folders are not named in it: results travel."""
        source = scan.image.name
        if scan.root is not None:
            within = os.path.relpath(scan.image, scan.root)
            source = f"bids:{self._links[scan.root]}:{Path(within).as_posix()}"
        models = [{"Study": card.study, "ModelHash": card.model_hash} for card in self._cards]
        about: dict[str, Any] = {"Sources": [source], "Models": models}
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
        made = {"Name": OWN_RESULTS, "Version": __version__, "Description": models}
        before = self._before.get("GeneratedBy", [])
        links = self._links_before() | {name: self._relative(root) for root, name in self._links.items()}
        return {
            "Name": "fedseg segmentations (for research use only)",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [*(each for each in before if each != made), made],
        } | ({"DatasetLinks": links} if links else {})

    def _linked(self, roots: Sequence[Path]) -> dict[Path, str]:
        """What each tree is called in `Sources`: as before, where results of it are there, else by a free name."""
        names = {where: name for name, where in self._links_before().items()}
        free = (name for number in count() if (name := f"raw{number or ''}") not in self._links_before())
        return {root: names.get(self._relative(root)) or next(free) for root in roots}

    def _links_before(self) -> dict[str, str]:
        links = self._before.get("DatasetLinks")
        return dict(links) if isinstance(links, dict) else {}

    def _relative(self, root: Path) -> str:
        return os.path.relpath(root.resolve(), self._out.resolve())

    def _text(self, name: str, text: str) -> None:
        make_private(self._out)
        write_atomic(self._out / name, text.encode())
