"""Made-up fetal brains in BIDS: for the demo, the tests, and a first look, never for a claim about real brains.

`make_subject` is the pure kernel; `synthesize` writes a data set as a site would send it, with the differences that
real sites have: label numbers, axes, header transforms, intensity scale, storage type, voxel size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel
import numpy as np
from numpy.typing import NDArray

from fedseg import __version__
from fedseg.errors import StorageError, UsageError
from fedseg.imaging.label_tables import TABLES, class_map
from fedseg.imaging.synthesis_anatomy import Anatomy, build_anatomy, growth
from fedseg.imaging.synthesis_contrast import SiteStyle, render, style_of_site
from fedseg.imaging.synthesis_fields import Field
from fedseg.labels import FETA

nib: Any = nibabel  # only half of it is typed

NEUROTYPICAL = "neurotypical"
VENTRICULOMEGALY = "ventriculomegaly"
PATHOLOGIES = (NEUROTYPICAL, VENTRICULOMEGALY)

_WEEKS = (20.0, 38.0)
_SPACINGS_MM = (0.4, 4.0)
_MOST_SUBJECTS = 999
_MOST_STYLES = 99
_TEST_SHARE = 0.2
_FEWEST_FOR_TEST = 4
_GOLDEN, _SILVER = 0.6180339887498949, 0.4142135623730951
_MANUAL = Path("derivatives", "manual")
_CALLOSUM = "corpus callosum"
_BIDS_VERSION = "1.10.0"

Affine = NDArray[np.float64]
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class Subject:
    """Who a made-up subject is: its name, age, pathology and split, as in `participants.tsv`."""

    name: str
    weeks: float
    pathology: str
    split: str


def synthesize(
    out: Path,
    *,
    subjects: int,
    seed: int,
    site_style: int = 0,
    spacing_mm: float | None = None,
    on_subject: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a BIDS data set of made-up brains with manual-like labels and brain masks.

    A subject's scan depends on the seed, the style and its own number only: asking for more adds subjects and changes
    none. The data set appears whole or not at all. The last fifth of the subjects are the split `test` where there are
    at least four.

    Args:
        out: Folder to make; it may exist, if empty.
        subjects: How many, 1 to 999.
        seed: 0 or more.
        site_style: Which hospital's habits, 0 to 99: see `synthesis_contrast.style_of_site`.
        spacing_mm: Voxel edge, 0.4 to 4 mm; the style's own by default.
        on_subject: Called with the number of subjects finished, after each.

    Raises:
        UsageError: A number is out of its range.
        StorageError: The folder isn't empty, or can't be written.
    """
    _check_numbers(subjects, seed, site_style, spacing_mm)
    out = out.resolve()
    style = style_of_site(site_style)
    spacing = style.spacing_mm if spacing_mm is None else spacing_mm
    people = [_person(seed, site_style, index, subjects) for index in range(subjects)]
    try:
        _check_vacant(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as workshop:
            root = Path(workshop) / "dataset"
            _write_tables(root, people, style)
            for index, person in enumerate(people):
                rng = np.random.default_rng([seed, site_style, index])
                image, anatomy = _make(rng, person.weeks, person.pathology, style, spacing)
                _write_subject(root, person.name, image, anatomy, style)
                on_subject(index + 1)
            root.replace(out)
    except OSError as problem:
        raise StorageError(
            f"the made-up brains could not be written: {problem.strerror or problem}",
            where=str(out),
            hint="choose a folder that you may write to, on a disk with room",
        ) from problem


def make_subject(
    rng: np.random.Generator, *, weeks: float, pathology: str, style: SiteStyle, spacing_mm: float
) -> tuple[Field, NDArray[np.uint8], Affine]:
    """Make one head.

    Args:
        rng: Source of everything that differs between subjects.
        weeks: Gestational age, 20 to 38.
        pathology: One of `PATHOLOGIES`.
        style: The site's scanner and storage habits.
        spacing_mm: Edge of a voxel.

    Returns:
        The T2w image (float32, the style's units), labels in FeTA's order (uint8, 0 to 7), both (i, j, k) in the
        style's axes, and the affine from voxels to millimetres in RAS.

    Raises:
        UsageError: An age, pathology or spacing that cannot be made.
    """
    image, anatomy = _make(rng, weeks, pathology, style, spacing_mm)
    labels, affine = _orient(anatomy.labels, spacing_mm, style.axes)
    return _orient(image, spacing_mm, style.axes)[0], labels, affine


def _make(
    rng: np.random.Generator, weeks: float, pathology: str, style: SiteStyle, spacing_mm: float
) -> tuple[Field, Anatomy]:
    """Image and anatomy, both in RAS order."""
    if not _WEEKS[0] <= weeks <= _WEEKS[1]:
        raise UsageError(f"a brain of {weeks:g} weeks cannot be made up", hint="choose 20 to 38 gestational weeks")
    if pathology not in PATHOLOGIES:
        raise UsageError(f"unknown pathology {pathology!r}", hint=f"known: {', '.join(PATHOLOGIES)}")
    _check_spacing(spacing_mm)
    shape = growth(rng, weeks, ventriculomegaly=pathology == VENTRICULOMEGALY)
    anatomy = build_anatomy(rng, shape, spacing_mm)
    return render(rng, anatomy, weeks, style), anatomy


def _check_numbers(subjects: int, seed: int, style: int, spacing_mm: float | None) -> None:
    if not 1 <= subjects <= _MOST_SUBJECTS:
        raise UsageError(f"{subjects} subjects cannot be made up", where="--subjects", hint="choose 1 to 999")
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", where="--seed", hint="choose 0 or more")
    if not 0 <= style <= _MOST_STYLES:
        raise UsageError(f"there is no site style {style}", where="--site-style", hint="choose 0 to 99")
    if spacing_mm is not None:
        _check_spacing(spacing_mm)


def _check_spacing(spacing_mm: float) -> None:
    if not _SPACINGS_MM[0] <= spacing_mm <= _SPACINGS_MM[1]:
        raise UsageError(f"a spacing of {spacing_mm:g} mm cannot be made up", hint="choose 0.4 to 4 mm")


def _check_vacant(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        raise StorageError(
            "the folder is not empty" if out.is_dir() else "this is not a folder",
            where=str(out),
            hint="choose a new folder; nothing is overwritten",
        )


def _person(seed: int, style_index: int, index: int, subjects: int) -> Subject:
    """Ages and pathologies by additive recurrence (Kronecker), so that any few subjects spread over both."""
    first, second = np.random.default_rng([seed, style_index]).random(2)
    weeks = _WEEKS[0] + 0.5 + (_WEEKS[1] - _WEEKS[0] - 1.0) * ((first + index * _GOLDEN) % 1.0)
    ill = (second + index * _SILVER) % 1.0 < 0.25
    held = max(1, round(_TEST_SHARE * subjects)) if subjects >= _FEWEST_FOR_TEST else 0
    return Subject(
        name=f"sub-{index + 1:03d}",
        weeks=round(float(weeks), 1),
        pathology=VENTRICULOMEGALY if ill else NEUROTYPICAL,
        split="test" if index >= subjects - held else "train",
    )


def _write_tables(root: Path, people: list[Subject], style: SiteStyle) -> None:
    manual = root / _MANUAL
    manual.mkdir(parents=True)
    rows = ["participant_id\tgestational_age\tpathology\tsplit"]
    rows += [f"{each.name}\t{each.weeks:g}\t{each.pathology}\t{each.split}" for each in people]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    table = ["index\tname"] + [f"{index}\t{name}" for index, name in TABLES[style.numbering].items()]
    (manual / "dseg.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    _write_description(root, "Made-up fetal brains", "raw")
    _write_description(manual, "Made-up fetal brains: labels", "derivative")


def _write_description(folder: Path, name: str, kind: str) -> None:
    description = {
        "Name": name,
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": kind,
        "License": "CC0",
        "GeneratedBy": [{"Name": "fedseg data synthesize", "Version": __version__}],
    }
    (folder / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _write_subject(root: Path, name: str, image: Field, anatomy: Anatomy, style: SiteStyle) -> None:
    scans, truths = root / name / "anat", root / _MANUAL / name / "anat"
    scans.mkdir(parents=True)
    truths.mkdir(parents=True)
    stem = f"{name}_rec-srr"
    numbered = _site_numbers(anatomy, style.numbering)
    mask = (anatomy.labels > 0).astype(np.uint8)
    _save(scans / f"{stem}_T2w.nii.gz", image.astype(style.dtype), anatomy.spacing_mm, style)
    _save(truths / f"{stem}_dseg.nii.gz", numbered, anatomy.spacing_mm, style)
    _save(truths / f"{stem}_desc-brain_mask.nii.gz", mask, anatomy.spacing_mm, style)


def _site_numbers(anatomy: Anatomy, numbering: str) -> NDArray[np.uint8]:
    """Labels in the site's own numbers, with the corpus callosum apart where its table has one."""
    table = TABLES[numbering]
    classes = class_map(table, FETA, f"table {numbering}")
    number = {classes[index]: index for index, name in table.items() if name != _CALLOSUM}
    lookup = np.array([number[each] for each in range(FETA.classes)], np.uint8)
    numbered: NDArray[np.uint8] = lookup[anatomy.labels]
    for index, name in table.items():
        if name == _CALLOSUM:
            numbered[anatomy.callosum] = index
    return numbered


def _save(path: Path, array: NDArray[np.generic], spacing_mm: float, style: SiteStyle) -> None:
    oriented, affine = _orient(array, spacing_mm, style.axes)
    image = nib.Nifti1Image(oriented, affine)
    image.set_qform(affine, code=0 if style.header == "sform" else 1)
    image.set_sform(affine, code=0 if style.header == "qform" else 2)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _orient(array: NDArray[Kind], spacing_mm: float, axes: str) -> tuple[NDArray[Kind], Affine]:
    """An RAS array in other axes, with an affine that puts the head at the scanner's centre."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -0.5 * spacing_mm * (np.array(array.shape) - 1)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(array, turn))
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
