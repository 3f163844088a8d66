"""What counts in a folder: hidden files never, links like what they lead to, and our own results never as truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedseg.imaging.nifti import SUFFIXES, stem

OWN_RESULTS = "fedseg"
"""What the program calls itself in a derivative's description; folder below `derivatives`, and entity `seg`, of its
segmentations."""

DESCRIPTION = "dataset_description.json"

_APART = ("derivatives", "sourcedata")


def entities(path: Path) -> dict[str, str]:
    """BIDS entities of a file name: `sub-01_rec-srr_dseg.nii.gz` gives sub and rec; other parts don't count."""
    parts = (part.partition("-") for part in stem(path).split("_") if "-" in part)
    return {key: value for key, _, value in parts}


def niftis_in(folder: Path, suffix: str = "") -> list[Path]:
    """The NIfTI files of a folder, sorted; those of a BIDS suffix where one is given (`T2w`, `dseg`, `mask`).

    Hidden files are left out: macOS puts a `._sub-01_T2w.nii.gz` beside each file on a foreign disk.
    """
    ends = tuple(f"_{suffix}{extension}" for extension in SUFFIXES) if suffix else SUFFIXES
    return sorted(path for path in folder.iterdir() if path.name.endswith(ends) and not path.name.startswith("."))


def niftis_below(folder: Path, suffix: str) -> list[Path]:
    """The NIfTI files of a BIDS suffix in a folder and below, sorted.

    Folders that are links count like others. Hidden ones, `derivatives` and `sourcedata` are not looked into.
    """
    return sorted(path for each in _folders(folder, frozenset()) for path in niftis_in(each, suffix))


def _folders(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """The folder and all below; a link to a folder that it lies in is not followed."""
    real = folder.resolve()
    if real in above:
        return
    yield folder
    for each in sorted(folder.iterdir()):
        if each.is_dir() and not each.name.startswith(".") and each.name not in _APART:
            yield from _folders(each, above | {real})


def generators(folder: Path) -> tuple[str, ...] | None:
    """Who made a data set, as `GeneratedBy` of its description says; None where it has no description.

    A description that cannot be read, or that names nobody, names an empty tuple.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    about = description(folder)
    made = about.get("GeneratedBy")
    entries = made if isinstance(made, list) else []
    return tuple(str(entry.get("Name")) for entry in entries if isinstance(entry, dict))


def description(folder: Path) -> dict[str, Any]:
    """The content of a folder's dataset_description.json; empty where there is none that can be read."""
    try:
        about = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def is_own_folder(folder: Path) -> bool:
    """Whether a folder holds segmentations of this program, alone or beside others', by its description."""
    return OWN_RESULTS in (generators(folder) or ())


def is_own(path: Path, root: Path) -> bool:
    """Whether a file is a result of this program: never truth to learn from or to score against.

    So says its entity `seg`, the name of a folder below the root that it lies in, or the nearest description there.

    Args:
        path: The file, in the root or below.
        root: The data set's folder, which is not asked.
    """
    if entities(path).get("seg") == OWN_RESULTS:
        return True
    inside = path.relative_to(root).parents[:-1]
    if any(folder.name == OWN_RESULTS for folder in inside):
        return True
    described = (generators(root / folder) for folder in inside)
    return OWN_RESULTS in next((made for made in described if made is not None), ())
