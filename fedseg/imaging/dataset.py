"""A site's data set: subjects, their scans, and what belongs to each.

One `subject` is one patient: all its sessions and runs stand under one id. The unit of privacy is one pregnancy: the
subject, or all subjects with the same `subject_key`.

Brain masks hold external CSF: in the atlases the `_desc-brain_mask` files are all that has a tissue label (they agree
with "label is not 0" to better than 0.5 per cent of the voxels); the hand-drawn masks of the thick-slice stacks
(`site-chuv`) are looser and take in a rim of skull as well. Where a case has no mask file, the mask task takes what
isn't background in its label map.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.label_tables import TABLES, LabelTable, class_map
from fedseg.imaging.nifti import stem
from fedseg.labels import BRAIN_MASK, LabelScheme

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Case:
    """One scan of one subject, and what belongs to it.

    Args:
        subject: The patient's id, without `sub-`. Never leaves the site.
        session: BIDS session, or None.
        run: BIDS run, or None.
        image: The T2w volume.
        labels: Its label map, or None.
        mask: Its brain mask, or None.
        site: Column `site` of participants.tsv, or None.
        gestational_age_weeks: Weeks, or None.
        pathology: As written, or None.
        split: `train`, `validation` or `test`.
        table: What the indices in `labels` mean; None where there is no table.
        subject_key: Column `subject_key`: the same for all ids of one pregnancy; None where there is one id.
    """

    subject: str
    session: str | None
    run: str | None
    image: Path
    labels: Path | None
    mask: Path | None
    site: str | None
    gestational_age_weeks: float | None
    pathology: str | None
    split: str
    table: LabelTable | None = None
    subject_key: str | None = None

    @property
    def unit(self) -> str:
        """The unit of privacy: the subject_key, else the subject."""
        return self.subject if self.subject_key is None else self.subject_key

    @property
    def name(self) -> str:
        """The file's name without `_T2w` and extension: `sub-01_rec-srr`; what outputs are named after."""
        return re.sub(r"_T2w$", "", stem(self.image))


@dataclass(frozen=True, eq=False)
class Dataset:
    """All the cases of a site.

    Args:
        root: Its folder (of a CSV: the folder that holds it).
        cases: By subject, then file name.
        scheme: The scheme that the labels are read for.
        problems: What is wrong with single cases and cells; empty after `load_dataset` with `strict`.
        absent: Subjects that participants.tsv lists and that have no scan.
    """

    root: Path
    cases: tuple[Case, ...]
    scheme: LabelScheme
    problems: tuple[DataError, ...] = ()
    absent: tuple[str, ...] = ()

    def subjects(self, split: str | None = None) -> dict[str, tuple[Case, ...]]:
        """Cases of each subject of a split (of all, for None), subjects sorted."""
        chosen = [case for case in self.cases if split in (None, case.split)]
        return {
            subject: tuple(case for case in chosen if case.subject == subject)
            for subject in sorted({case.subject for case in chosen})
        }

    def units(self, split: str | None = None) -> dict[str, tuple[Case, ...]]:
        """Cases of each unit of privacy in a split (in all, for None), units sorted.

        Whatever samples, clips or charges goes by these, never by `subjects`.
        """
        chosen = [case for case in self.cases if split in (None, case.split)]
        return {
            unit: tuple(case for case in chosen if case.unit == unit) for unit in sorted({case.unit for case in chosen})
        }

    def target(self, case: Case) -> Path | None:
        """The file to learn from: the label map, or for the brain mask task the mask where there is one."""
        if self.scheme == BRAIN_MASK and case.mask is not None:
            return case.mask
        return case.labels

    def class_map(self, case: Case) -> dict[int, int] | None:
        """Class of each index in `target(case)`; None for a mask, where what isn't 0 is 1.

        Raises:
            DataError: No label table, or one that doesn't map onto the scheme.
        """
        if self.scheme == BRAIN_MASK and (case.mask is not None or case.table is None):
            return None
        if case.table is None:
            raise DataError(
                "no dseg.tsv says what the label numbers mean",
                where=str(case.labels or case.image),
                hint=f"put one beside the labels or at the data set's root, or give --labels {'|'.join(TABLES)}|FILE",
            )
        return class_map(case.table.names, self.scheme, case.table.source)
