"""Names of scans that may be a person's: outputs and reports are named after scans, and travel further than planned."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from fedseg.imaging.folders import entities
from fedseg.imaging.quality.identifying import check_name

_PLAIN = frozenset(
    """
    anat anon atlas axial axi axis brain case cor coronal crop cropped dicom fetal fetus final foetal foetus haste image
    img input iso masked mri nesvor nifti niftymic nii orig output patient raw rec recon reconstruction register
    registered run sag sagittal scan series session site srr stack stripped study sub subject svr svrtk test trufi
    truefisp tse volume
    """.split()  # noqa: SIM905
)
"""Words that scans are called by and that name nobody."""


def may_name_a_person(file: str, subject: str | None = None) -> bool:
    """Whether the data check's rule finds a date or a name, or a word without a digit that may be one.

    Args:
        file: The file's name.
        subject: The id that a table gives; None: the name's `sub-`, or where it has none, each word of the name.
    """
    subject = subject or entities(Path(file)).get("sub")
    stem = file.removesuffix(".gz").removesuffix(".nii")
    words = [subject] if subject else [word for word in re.split(r"[\W_]+", stem) if word.lower() not in _PLAIN]
    return any(remark for word in words or [""] for remark in check_name(word, file))


def naming_warning(files: Iterable[tuple[str, str | None]]) -> str | None:
    """A sentence that counts the scans whose names may name a person, and quotes none; None where there is none.

    Args:
        files: Name and, where a table gives it, subject of each scan.
    """
    names = list(files)
    odd = sum(may_name_a_person(*each) for each in names)
    if not odd:
        return None
    which = "the scan's name holds" if len(names) == 1 else f"the names of {odd} of {len(names)} scans hold"
    return (
        f"{which} a date, or a word that may be a person's name. Results and reports are named after scans: if it is "
        "one, rename before you hand anything on."
    )
