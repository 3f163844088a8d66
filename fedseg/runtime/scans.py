"""Scans to segment: named one by one, in folders, or in BIDS trees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import DataError
from fedseg.imaging.bids import entities
from fedseg.imaging.tables import read_participants

SUFFIXES = (".nii", ".nii.gz")
SEG = "seg-fedseg"
MASK = "desc-brain_mask"


@dataclass(frozen=True)
class Scan:
    """A scan to segment.

    Args:
        image: The file.
        name: What its results are named after, with the folder below the output: `sub-01/anat/sub-01_rec-srr`.
        root: The folder that was given, where one was.
        gestational_age_weeks: As in that folder's participants.tsv; None where it does not say.
    """

    image: Path
    name: Path
    root: Path | None = None
    gestational_age_weeks: float | None = None


def find_scans(inputs: Sequence[Path]) -> list[Scan]:
    """All scans of the inputs.

    In a folder these are `*_T2w.nii[.gz]` in it and below, derivatives left out; where there is none, every NIfTI file
    in it that is not a result of this program.

    Raises:
        DataError: if an input is not there or holds no scan, two scans would be written to one file, or a
            participants.tsv cannot be read.
    """
    scans = [scan for path in inputs for scan in _scans_of(path)]
    names = [scan.name for scan in scans]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"two inputs would both be written to {name}_{SEG}*", hint="segment them into different folders"
            )
    return scans


def _scans_of(path: Path) -> Iterator[Scan]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise DataError("this is no NIfTI file", where=str(path), hint="give .nii or .nii.gz files, or a folder")
        yield Scan(path, _name(path, Path()))
        return
    if not path.is_dir():
        raise DataError("there is no such file or folder", where=str(path), hint="check the path")
    people = read_participants(path / "participants.tsv")
    for image in _in_folder(path):
        person = people.get(entities(image).get("sub", ""))
        age = person.gestational_age_weeks if person else None
        yield Scan(image, _name(image, image.relative_to(path).parent), path, age)


def _in_folder(path: Path) -> list[Path]:
    scans = (scan for scan in path.rglob("*_T2w.nii*") if "derivatives" not in scan.relative_to(path).parts)
    found = sorted(scan for scan in scans if scan.name.endswith(SUFFIXES))
    found = found or sorted(scan for scan in path.iterdir() if scan.name.endswith(SUFFIXES) and not _ours(scan))
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
    """Where results go: by the scan's BIDS name where it has one, else where it lay below the input."""
    named = entities(scan)
    if "sub" in named:
        session = (f"ses-{named['ses']}",) if "ses" in named else ()
        below = Path(f"sub-{named['sub']}", *session, "anat")
    return below / scan.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_T2w")
