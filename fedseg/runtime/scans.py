"""Scans to segment: named one by one, in folders, or in BIDS trees."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.folders import DESCRIPTION, entities, niftis_below, niftis_in
from fedseg.imaging.nifti import SUFFIXES, stem
from fedseg.imaging.participants import People, read_participants
from fedseg.imaging.tables import Tell, refuse

SEG = "seg-fedseg"
MASK = "desc-brain_mask"
PARTICIPANTS = "participants.tsv"


@dataclass(frozen=True)
class Scan:
    """A scan to segment.

    Args:
        image: The file.
        name: What its results are named after, with the folder below the output: `sub-01/anat/sub-01_rec-srr`.
        root: The BIDS tree that it lies in, else the folder that was given; None of a file in no tree.
        gestational_age_weeks: As that tree's tables say of the subject, or of its session; None where they do not.
    """

    image: Path
    name: Path
    root: Path | None = None
    gestational_age_weeks: float | None = None


def find_scans(inputs: Sequence[Path], tell: Tell = refuse) -> list[Scan]:
    """All scans of the inputs.

    In a folder these are `*_T2w.nii[.gz]` in it and below (`folders.niftis_below`); where there is none, every NIfTI
    file in it that is not a result of this program. Of a scan that lies in a BIDS tree, ages come from the tree's
    participants.tsv and sessions.tsv, whatever part of the tree was given.

    Args:
        inputs: Files and folders.
        tell: Told of each fault of those tables, in the order in which they are read. Where it returns, what is wrong
            counts as not said.

    Raises:
        DataError: if an input is not there or holds no scan, or two scans would be written to one file. And from
            `tell`.
    """
    people: dict[Path, People] = {}
    scans = [scan for path in inputs for scan in _scans_of(path, people, tell)]
    names = [scan.name for scan in scans]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"two inputs would both be written to {name}_{SEG}*", hint="segment them into different folders"
            )
    return scans


def _scans_of(path: Path, people: dict[Path, People], tell: Tell) -> Iterator[Scan]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError("this is no NIfTI file", where=str(path), hint="give .nii or .nii.gz files, or a folder")
        images, below = [path], {path: Path()}
    elif path.is_dir():
        images = _in_folder(path)
        below = {image: image.relative_to(path).parent for image in images}
    else:
        raise DataError("there is no such file or folder", where=str(path), hint="check the path")
    given = path if path.is_dir() else None
    roots = {image: _tree_of(image) or given for image in images}
    for image, root in roots.items():
        if root is not None and root not in people:
            people[root] = read_participants(root / PARTICIPANTS, tell)
        named = entities(image)
        known = people[root] if root is not None else People()
        age = known.of(named.get("sub", ""), named.get("ses")).gestational_age_weeks
        yield Scan(image, _name(image, below[image]), root, age)


def _tree_of(image: Path) -> Path | None:
    """The BIDS tree of a scan: what lists subjects above its subject's folder, else what describes a data set there.

    A reconstruction may lie in a derivative of the tree that lists its subject. Links are not followed: the scans of a
    tree may be links to a store of files.
    """
    subject = entities(image).get("sub")
    own = [folder for folder in Path(os.path.normpath(image.absolute())).parents if folder.name == f"sub-{subject}"]
    if not own:
        return None
    tree = own[-1].parent
    trees = [tree, *(each.parent for each in (tree, *tree.parents) if each.name == "derivatives")]
    signs = [folder / sign for sign in (PARTICIPANTS, DESCRIPTION) for folder in trees]
    return next((sign.parent for sign in signs if sign.is_file()), None)


def _in_folder(path: Path) -> list[Path]:
    found = niftis_below(path, "T2w") or [scan for scan in niftis_in(path) if not _ours(scan)]
    if not found:
        raise DataError(
            "the folder holds no scan",
            where=str(path),
            hint="looked for *_T2w.nii[.gz] in it and below, and for *.nii[.gz] in it",
        )
    return found


def _ours(path: Path) -> bool:
    return f"_{SEG}_" in path.name or f"_{MASK}." in path.name


def _name(scan: Path, below: Path) -> Path:
    """Where results go: by the scan's BIDS name where it has one, else where it lay below the input.

    A result has a `desc` of its own, so that the scan's is left out.
    """
    named = entities(scan)
    if "sub" in named:
        session = (f"ses-{named['ses']}",) if "ses" in named else ()
        below = Path(f"sub-{named['sub']}", *session, "anat")
    return below / re.sub(r"_desc-[^_]*", "", stem(scan)).removesuffix("_T2w")
