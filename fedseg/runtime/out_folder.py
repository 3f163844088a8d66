"""Folders for results: of patients, so closed to others; and made only once there is something to write."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedseg.errors import StorageError, UsageError
from fedseg.imaging.folders import DESCRIPTION, OWN_RESULTS, generators
from fedseg.store.files import storage_errors

_DERIVATIVES = "derivatives"
_TABLES = ("dseg.tsv", "participants.tsv")


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, closed to others; what is there stays as it is.

    Raises:
        StorageError: if one cannot be made, or a file is in its place.
    """
    with storage_errors(folder):
        for each in _missing(folder):
            each.mkdir(mode=0o700)
    if not folder.is_dir():
        raise StorageError("this is a file, not a folder", where=str(folder), hint="name a folder with --out")


def refuse_unwritable(folder: Path) -> None:
    """Try whether results can be written, before the hours of work; nothing is left of it.

    Raises:
        StorageError: saying why not.
    """
    made = _missing(folder)
    try:
        make_private(folder)
        with storage_errors(folder), tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for each in reversed(made):
            with suppress(OSError):
                each.rmdir()


def refuse_others(folder: Path, files: Iterable[Path]) -> None:
    """Refuse a folder where segmentations would stand among, or instead of, what others have made.

    A label table that is replaced, or that is nearer to other labels than their own, would change what these mean.

    Args:
        folder: Where segmentations are to go; it need not be there.
        files: What would be written into it.

    Raises:
        UsageError: saying whose it is, with a folder to take instead.
    """
    folder = Path(os.path.normpath(folder.absolute()))
    if why := _taken(folder, files):
        hint = f"segmentations go into a folder of their own, such as {_vacant(folder)}"
        raise UsageError(why, where=str(folder), hint=hint)


def _taken(folder: Path, files: Iterable[Path]) -> str | None:
    """Why a folder is none for segmentations; None where it is."""
    if folder.name == _DERIVATIVES:
        return "this folder is for the derivatives of all tools, each in its own"
    made = generators(folder)
    if made is not None and set(made) != {OWN_RESULTS}:
        return f"another data set is in this folder: its {DESCRIPTION} does not say that fedseg alone made it"
    if made is None:
        if table := next((name for name in _TABLES if (folder / name).exists()), None):
            return f"another data set is in this folder: it has a {table}, and no {DESCRIPTION} of fedseg"
        if any(folder.glob("sub-*")):
            return f"another data set is in this folder: it has subjects, and no {DESCRIPTION} of fedseg"
        if there := next((path for path in files if path.exists()), None):
            return f"{there.name} is in this folder, which has no {DESCRIPTION} of fedseg: it would be replaced"
    below = next((each for each in _folders_in(folder) if _is_others(each)), None)
    return None if below is None else f"this folder holds another data set, {below.name}"


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that may be read."""
    if not (folder.is_dir() and os.access(folder, os.R_OK)):
        return []
    return sorted(each for each in folder.iterdir() if each.is_dir() and os.access(each, os.R_OK | os.X_OK))


def _is_others(folder: Path) -> bool:
    """Whether a folder is a data set that somebody else has made."""
    made = generators(folder)
    tables = any((folder / name).exists() for name in _TABLES)
    return tables if made is None else set(made) != {OWN_RESULTS}


def _vacant(folder: Path) -> Path:
    """A folder to take instead, below the `derivatives` that the given one lies in or could have."""
    above = next((each for each in (folder, *folder.parents) if each.name == _DERIVATIVES), folder / _DERIVATIVES)
    return above / (OWN_RESULTS if above / OWN_RESULTS != folder else "segmentations")


def _missing(folder: Path) -> list[Path]:
    """The folders that are not there, the outermost first."""
    return [each for each in reversed((folder, *folder.parents)) if not each.exists()]
