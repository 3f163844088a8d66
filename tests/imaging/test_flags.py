from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fedseg.imaging.cleanup import Cleaned
from fedseg.imaging.flags import flags_of
from fedseg.imaging.grid_flags import Flag
from fedseg.imaging.growth import KCL_PARENCHYMA
from fedseg.imaging.made_up_fingerprint import T2_MADE_UP
from fedseg.imaging.nifti import Volume
from fedseg.imaging.symmetry import symmetry
from fedseg.imaging.synthesis import make_subject
from fedseg.imaging.synthesis_contrast import style_of_site
from fedseg.labels import BRAIN_MASK, FETA

Labels = NDArray[np.uint8]

SPACING = 1.4
WEEKS = 30.0


def scan_of(
    data: NDArray[np.generic], affine: NDArray[np.float64] | None = None, spacing: tuple[float, ...] = (SPACING,) * 3
) -> Volume:
    own = np.diag([*spacing, 1.0]) if affine is None else affine
    sizes = (spacing[0], spacing[1], spacing[2])
    return Volume(data, own, sizes, "scan.nii", data.shape, 1, 1, "float32")


@pytest.fixture(scope="module")
def person() -> tuple[Volume, Labels]:
    made = make_subject(
        np.random.default_rng(4), weeks=WEEKS, pathology="neurotypical", style=style_of_site(0), spacing_mm=SPACING
    )
    image, labels, affine = made
    return scan_of(image, affine), labels


def flags(labels: Labels, scan: Volume, **known: Any) -> list[Flag]:
    settings: dict[str, Any] = {"gestational_age_weeks": WEEKS, "uncertainty": 0.1}
    return flags_of(labels, scan, FETA, **(settings | known))


def kinds(found: list[Flag], *severities: str) -> set[str]:
    return {flag.kind for flag in found if flag.severity in (severities or ("error", "warning"))}


def the(found: list[Flag], kind: str) -> Flag:
    (flag,) = (each for each in found if each.kind == kind and each.severity != "note")
    return flag


def test_a_whole_brain_has_no_flag_and_says_what_was_not_compared(person: tuple[Volume, Labels]) -> None:
    found = flags(person[1], person[0], fingerprint=T2_MADE_UP)
    assert kinds(found) == set()
    (note,) = found
    assert asdict(note) == {
        "kind": "volume",
        "severity": "note",
        "what": "tissues one by one not compared with the age: the reference draws their borders by another protocol "
        "(King's College London, Multi-BOUNTI report for fetal MRI, total parenchyma)",
        "hint": "",
    }


def test_no_brain(person: tuple[Volume, Labels]) -> None:
    found = flags(np.zeros_like(person[1]), person[0])
    assert the(found, "empty").severity == "error"
    assert "nothing else was checked" in found[-1].what


def half(labels: Labels, axis: int, *, upper: bool) -> Labels:
    left = labels.copy()
    middle = labels.shape[axis] // 2
    left[(slice(None),) * axis + (slice(middle, None) if upper else slice(0, middle),)] = 0
    return left


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_half_a_brain_is_partial(person: tuple[Volume, Labels], axis: int) -> None:
    found = flags(half(person[1], axis, upper=axis != 2), person[0])
    assert "a flat face of" in the(found, "partial").what
    if axis == 0:
        assert "no plane parts the brain into two like sides" in the(found, "asymmetry").what


@pytest.mark.parametrize(("axis", "by"), [(0, 30), (1, 25), (2, -30)])
def test_a_brain_out_of_the_field_of_view_is_cut(person: tuple[Volume, Labels], axis: int, by: int) -> None:
    scan, labels = person
    shifted = slice(by, None) if by > 0 else slice(None, by)
    part = (slice(None),) * axis + (shifted,)
    found = flags(np.ascontiguousarray(labels[part]), replace(scan, data=scan.data[part]))
    cut = the(found, "cut")
    assert cut.severity == "error"
    area = int(cut.what.split()[-2])
    face = labels.take(by - 0 if by > 0 else labels.shape[axis] + by - 1, axis=axis)
    assert area == pytest.approx(np.count_nonzero(face) * SPACING**2, abs=1)


def test_a_brain_that_only_touches_the_edge_is_a_warning(person: tuple[Volume, Labels]) -> None:
    scan, labels = person
    start = int(np.argwhere(labels > 0)[:, 1].min())
    part = (slice(None), slice(start, None))
    found = flags(np.ascontiguousarray(labels[part]), replace(scan, data=scan.data[part]))
    assert the(found, "cut").severity == "warning"


@pytest.mark.parametrize("tissue", FETA.tissues)
def test_a_tissue_that_is_not_there(person: tuple[Volume, Labels], tissue: str) -> None:
    labels = person[1].copy()
    labels[labels == FETA.index(tissue)] = FETA.index("white_matter") if tissue != "white_matter" else 1
    missing = [flag for flag in flags(labels, person[0]) if flag.kind == "missing_tissue"]
    assert [flag.what.split(" of ")[0] for flag in missing] == ["no voxel"]
    large = tissue in ("cortical_grey_matter", "white_matter", "deep_grey_matter")
    assert missing[0].severity == ("error" if large else "warning")


def test_a_millilitre_of_external_fluid_is_real_and_of_cerebellum_is_not(person: tuple[Volume, Labels]) -> None:
    def little(tissue: str) -> list[str]:
        labels = person[1].copy()
        rest = np.flatnonzero(labels == FETA.index(tissue))[int(0.5 * 1000 / SPACING**3) :]
        labels.reshape(-1)[rest] = FETA.index("white_matter") if tissue != "external_csf" else 0
        return [flag.what for flag in flags(labels, person[0]) if flag.kind == "missing_tissue"]

    assert little("external_csf") == []
    assert little("cerebellum")[0].startswith("hardly any cerebellum: 0.5 mL of ")


def test_islands_and_holes(person: tuple[Volume, Labels]) -> None:
    labels = person[1].copy()
    labels[0:6, 0:6, 0:6] = 2
    centre = tuple(slice(size // 2 - 3, size // 2 + 3) for size in labels.shape)
    labels[centre] = 0
    found = flags(labels, person[0])
    assert "1 piece apart from the brain, 0.59 mL" in the(found, "components").what
    assert "holes in the brain, 0.59 mL" in the(found, "holes").what


def test_what_a_clean_up_took_away_is_said(person: tuple[Volume, Labels]) -> None:
    found = flags(person[1], person[0], cleaned=Cleaned(3.2, 1.1))
    assert the(found, "components").what == "the clean-up removed 3.2 mL apart from the brain"
    assert the(found, "holes").what == "the clean-up filled holes of 1.1 mL"
    assert kinds(flags(person[1], person[0], cleaned=Cleaned(0.1, 0.0))) == set()


@pytest.mark.parametrize("weeks", [WEEKS - 8, WEEKS + 8])
def test_an_age_wrong_by_eight_weeks(person: tuple[Volume, Labels], weeks: float) -> None:
    what = the(flags(person[1], person[0], gestational_age_weeks=weeks), "volume").what
    assert f"at {weeks:g} weeks is what the reference has at" in what
    assert "King's College London" in what


@pytest.mark.parametrize(
    ("weeks", "why"), [(None, "no gestational age is known"), (19.0, "19 weeks, and the reference covers 20 to 40")]
)
def test_an_age_that_nothing_can_be_compared_with(person: tuple[Volume, Labels], weeks: float | None, why: str) -> None:
    (note,) = (flag for flag in flags(person[1], person[0], gestational_age_weeks=weeks) if flag.kind == "volume")
    assert note.severity == "note"
    assert why in note.what


def test_brain_masks_are_compared_with_no_reference(person: tuple[Volume, Labels]) -> None:
    mask = (person[1] > 0).astype(np.uint8)
    found = flags_of(mask, person[0], BRAIN_MASK, gestational_age_weeks=WEEKS, fingerprint=T2_MADE_UP)
    assert kinds(found) == set()
    assert {"volume", "asymmetry", "missing_tissue", "uncertainty", "intensities"} == kinds(found, "note")
    (note,) = (each for each in found if each.kind == "intensities")
    assert note.what == (
        "not compared with the images that the model knows: fluid against white matter, cortex against white matter "
        "(the labels, the fingerprint or this version do not have them)"
    )


@pytest.mark.parametrize(("factor", "words"), [(1e-3, "impossible voxel size"), (0.1, "odd voxel size")])
def test_metres_for_millimetres(person: tuple[Volume, Labels], factor: float, words: str) -> None:
    scan, labels = person
    size = SPACING * factor
    found = flags(labels, scan_of(scan.data, np.diag([size, size, size, 1.0]), (size,) * 3))
    assert words in the(found, "spacing").what
    assert the(found, "partial").severity == "error"


def test_grids_that_are_odd(person: tuple[Volume, Labels]) -> None:
    scan, labels = person
    angle = np.radians(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn @ scan.affine[:3, :3]
    found = flags(labels, replace(scan, affine=oblique, forms_agree=False))
    assert sorted(flag.what[:21] for flag in found if flag.kind == "axes") == [
        "qform and sform place",
        "the axes are oblique ",
    ]
    thick = replace(scan, spacing_mm=(SPACING, SPACING, 2.1))
    assert "voxels are not cubes: 1.4 x 1.4 x 2.1 mm" in the(flags(labels, thick), "spacing").what


def mirrored(labels: Labels) -> Labels:
    copied = labels.copy()
    middle = labels.shape[0] // 2
    copied[labels.shape[0] - middle :] = labels[:middle][::-1]
    return copied


def flipped_back_to_front(labels: Labels) -> Labels:
    wrong = labels.copy()
    middle = labels.shape[0] // 2
    wrong[middle:] = wrong[middle:, ::-1]
    return wrong


def emptied_on_one_side(labels: Labels) -> Labels:
    wrong = labels.copy()
    middle = labels.shape[0] // 2
    side = wrong[middle:]
    side[(side == 2) | (side == 3)] = 1
    return wrong


@pytest.mark.parametrize(
    ("broken", "severity", "words"),
    [
        (mirrored, "note", "left and right are mirror images"),
        (flipped_back_to_front, "warning", "no plane parts the brain"),
        (emptied_on_one_side, "warning", "one side holds "),
    ],
)
def test_one_side_is_wrong(
    person: tuple[Volume, Labels], broken: Callable[[Labels], Labels], severity: str, words: str
) -> None:
    (flag,) = (each for each in flags(broken(person[1]), person[0]) if each.kind == "asymmetry")
    assert flag.severity == severity
    assert words in flag.what


@pytest.mark.parametrize("angle", [25, 60])
def test_the_middle_is_found_in_any_orientation(person: tuple[Volume, Labels], angle: int) -> None:
    room = np.pad(person[1], 15)
    turned = ndimage.rotate(room, angle, axes=(0, 2), order=0, reshape=False)
    turned = ndimage.rotate(turned, angle / 2, axes=(0, 1), order=0, reshape=False).transpose(2, 0, 1)
    found = symmetry(turned, (SPACING,) * 3, FETA.classes, joined=(1, 2, 3))
    assert found is not None
    assert found.agreement > 0.91
    assert max(abs(found.imbalance[index]) for index in (2, 3, 6)) < 0.1


def test_too_little_brain_has_no_middle() -> None:
    speck = np.zeros((20, 20, 20), np.uint8)
    speck[:4, :4, :4] = 2
    assert symmetry(speck, (SPACING,) * 3, FETA.classes, joined=(1, 2, 3)) is None


def test_an_unsure_model(person: tuple[Volume, Labels]) -> None:
    assert "a mean entropy of 0.20" in the(flags(person[1], person[0], uncertainty=0.2), "uncertainty").what
    assert "uncertainty" in kinds(flags(person[1], person[0], uncertainty=None), "note")


def test_a_contrast_that_the_model_does_not_know(person: tuple[Volume, Labels]) -> None:
    scan, labels = person
    grey = np.asarray(scan.data, np.float32)
    inverted = np.where(labels > 0, 1.05 * grey.max() - grey, 0).astype(np.float32)
    flag = the(flags(labels, replace(scan, data=inverted), fingerprint=T2_MADE_UP), "intensities")
    assert "mostly bright tissue" in flag.what
    assert "darker fluid" in flag.what
    assert "32 made-up brains" in flag.what
    noise = np.random.default_rng(0).normal(0, 0.5 * np.percentile(grey, 99), grey.shape)
    noisy = np.where(labels > 0, np.abs(grey + noise), 0).astype(np.float32)
    assert "noisier" in the(flags(labels, replace(scan, data=noisy), fingerprint=T2_MADE_UP), "intensities").what
    (note,) = (each for each in flags(labels, scan) if each.kind == "intensities")
    assert (note.severity, "has no fingerprint" in note.what) == ("note", True)


def test_the_reference_goes_both_ways() -> None:
    for weeks in (20.0, 28.5, 40.0):
        assert KCL_PARENCHYMA.weeks_of(KCL_PARENCHYMA.mean_ml(weeks)) == pytest.approx(weeks)
    # Printed by the source's own formula at 28 weeks: 0.358001106623485 * 784 - 5.21711385459465 * 28 - 14.5840861.
    assert KCL_PARENCHYMA.mean_ml(28.0) == pytest.approx(120.01, abs=0.01)
    assert KCL_PARENCHYMA.weeks_of(0.0) < KCL_PARENCHYMA.weeks[0]


def test_axes_off_right_angles_are_flagged_and_volumes_are_what_they_enclose(person: tuple[Volume, Labels]) -> None:
    scan, labels = person
    angle = np.radians(15)
    shear = np.array([[1, np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = SPACING * shear
    (flag,) = (each for each in flags(labels, replace(scan, affine=affine)) if each.kind == "axes")
    assert (flag.severity, flag.what) == ("warning", "the axes are not at right angles, but off by 15.0 degrees")
    assert "resample the scan to a grid with right angles" in flag.hint
    ball = np.zeros((20, 20, 20), np.uint8)
    ball[4:14, 4:14, 4:14] = 1
    small = replace(scan_of(ball, affine), data=ball.astype(np.float32))
    too_small = next(each for each in flags_of(ball, small, BRAIN_MASK) if each.severity == "error")
    volume = 1000 * SPACING**3 * np.cos(angle) / 1000
    assert f"all that is labelled measures {volume:.3g} mL, fluid included; no fetus" in too_small.what
