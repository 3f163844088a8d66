from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedseg.imaging.bids import load_dataset
from fedseg.imaging.quality import Finding, check
from fedseg.labels import BRAIN_MASK, FETA, LabelScheme
from tests.conftest import FIDON_TSV, tiny_head

Make = Callable[..., Path]


def findings(root: Path, scheme: LabelScheme = FETA) -> list[Finding]:
    return check(load_dataset(root, scheme=scheme, strict=False), scheme=scheme, spacing_mm=1.2)


def errors(root: Path) -> list[tuple[str, str]]:
    return [(finding.subject, finding.what) for finding in findings(root) if finding.severity == "error"]


def warnings(root: Path) -> str:
    return "\n".join(f"{found.subject}: {found.what}" for found in findings(root) if found.severity == "warning")


def paths(root: Path, subject: str) -> tuple[Path, Path]:
    stem = f"{subject}/anat/{subject}_rec-srr"
    return root / f"{stem}_T2w.nii.gz", root / f"derivatives/manual/{stem}_dseg.nii.gz"


def test_good_data_has_no_findings(make_bids: Make) -> None:
    assert findings(make_bids(2)) == []
    assert findings(make_bids(2, masks=True, name="masks"), BRAIN_MASK) == []


def test_every_fault_is_listed_and_none_stops_the_rest(make_bids: Make, save: Make) -> None:
    root = make_bids(7)
    image, labels = tiny_head()
    first, _ = paths(root, "sub-01")
    first.write_bytes(first.read_bytes()[:3000])
    save(paths(root, "sub-02")[0], np.where(image > 1000, np.nan, image))
    save(paths(root, "sub-03")[1], labels[:, :, :-2])
    flipped = np.diag([-0.8, 0.8, 0.8, 1])
    both = labels.copy()
    both[11, 13, 10] = 77
    save(paths(root, "sub-04")[1], both, flipped)
    save(paths(root, "sub-05")[1], np.zeros_like(labels))
    paths(root, "sub-06")[1].unlink()
    found = errors(root)
    assert [subject for subject, _ in found] == ["01", "02", "03", "04", "04", "05", "06"]
    texts = [what for _, what in found]
    assert "cannot be read to the end" in texts[0]
    assert "NaN" in texts[1]
    assert "differ in shape" in texts[2]
    assert any("differ in affine" in text for text in texts[3:5])
    assert any("label index 77 is not in the label table" in text for text in texts[3:5])
    assert "empty" in texts[5]
    assert "no labels" in texts[6]
    assert findings(root)[0].hint == "the file is cut short or damaged: copy or export it again"


def test_fault_of_the_table_is_listed_once(make_bids: Make) -> None:
    root = make_bids(3, tsv=FIDON_TSV.replace("brainstem", "brainsteem"))
    assert len({what for _, what in errors(root)}) == 1


def test_warnings(make_bids: Make, save: Make) -> None:
    table = "participant_id\tgestational_age\tsplit\nsub-01\t180\ttest\nsub-02\t30\ttest\nsub-03\t\ttest\n"
    root = make_bids(3, participants=table + "sub-04\t\ttest\nsub-05\t30\ttrain\n")
    image, labels = tiny_head()
    shutil.copy(*[paths(root, subject)[0] for subject in ("sub-01", "sub-02")])
    save(paths(root, "sub-03")[0], (image + 5).astype(np.float32), np.diag([-0.8, 0.8, 1.2, 1]))
    save(paths(root, "sub-03")[1], np.where(labels == 7, 0, labels).astype(np.uint8), np.diag([-0.8, 0.8, 1.2, 1]))
    text = warnings(root)
    assert errors(root) == []
    for expected in (
        ": scans have different axes: RAS (2), LAS (1)",
        ": no subject is in the training split",
        "01: gestational age of 180 weeks",
        "02: the same scan as subject '01', byte for byte",
        "03: voxels are not cubes: 0.8 x 0.8 x 1.2 mm",
        "03: the background is 5, not 0",
        "03: no voxel of brainstem",
        "05: participants.tsv lists this subject, which has no scan",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("turn", "expected"),
    [(0.0, ""), (0.6, "the axes are oblique by 34 degrees")],
)
def test_oblique(make_bids: Make, save: Make, turn: float, expected: str) -> None:
    root = make_bids(1)
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    affine[:2, :2] = 0.8 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    image, labels = tiny_head()
    save(paths(root, "sub-01")[0], image, affine)
    save(paths(root, "sub-01")[1], labels, affine)
    assert warnings(root) == (f"01: {expected}" if expected else "")


def test_normalised_noisy_large_and_cut_off_scans(make_bids: Make, save: Make) -> None:
    root = make_bids(4)
    image, labels = tiny_head()
    normalised = np.where(image > 0, (image - 900) / 400, 0).astype(np.float32)
    save(paths(root, "sub-01")[0], normalised)
    noisy = image + np.abs(np.random.default_rng(0).normal(0, 40, image.shape)).astype(np.float32)
    save(paths(root, "sub-02")[0], noisy)
    big = np.diag([2.0, 2.0, 2.0, 1])
    save(paths(root, "sub-03")[0], image, big)
    save(paths(root, "sub-03")[1], labels, big)
    save(paths(root, "sub-04")[0], image[6:])
    save(paths(root, "sub-04")[1], labels[6:])
    text = warnings(root)
    assert "01: tissue lies on both sides of the background's grey value" in text
    assert "02: the background is not one value" in text
    assert "03: odd voxel size: 2 x 2 x 2 mm" in text
    assert "04: labels reach the edge of the field of view" in text


def test_labels_outside_the_foreground(make_bids: Make, save: Make) -> None:
    root = make_bids(1)
    image, labels = (np.pad(part, ((0, 0), (0, 0), (0, 40))) for part in tiny_head())
    save(paths(root, "sub-01")[0], image)
    save(paths(root, "sub-01")[1], labels + np.roll(labels, 35, axis=2))
    assert "of the labels lie in the foreground" in warnings(root)


def test_stack_is_an_error_for_tissues(make_bids: Make, save: Make) -> None:
    root = make_bids(1)
    stack = np.random.default_rng(0).integers(1, 500, (24, 24, 8)).astype(np.int16)
    save(paths(root, "sub-01")[0], stack, np.diag([1.1, 1.1, 3.3, 1]))
    assert any("raw stack of thick slices" in what for _, what in errors(root))
