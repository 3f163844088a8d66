from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedseg.imaging.dataset import Case
from fedseg.imaging.foreground import find_foreground
from fedseg.imaging.nifti import Volume
from fedseg.imaging.quality.finding import Finding, Severity
from fedseg.imaging.quality.scan import Scan
from fedseg.labels import FETA, color
from fedseg.report.contact_sheet import SIDE, ContactSheet, slices
from tests.imaging.test_transforms import ORDERS, turned


def case(name: str) -> Case:
    return Case(name, None, None, Path(f"sub-{name}_T2w.nii.gz"), None, None, None, 28.0, None, "train")


def scan(name: str = "01", image: Volume | None = None, classes: NDArray[np.uint8] | None = None) -> Scan:
    found = None if image is None else find_foreground(np.asarray(image.data, dtype=np.float32))
    return Scan(case(name), FETA, image=image, foreground=found, classes=classes)


def volume() -> Volume:
    """Anterior half bright, with a bright corner on the right, above."""
    grey = np.zeros((30, 40, 20), np.float32)
    grey[5:25, 5:35, 5:15] = 100
    grey[5:25, 20:35, 5:15] = 200
    grey[15:25, 20:35, 10:15] = 300
    return Volume(grey, np.diag([1.0, 1, 2, 1]), (1.0, 1.0, 2.0), "s", grey.shape, 0, 1, "float32")


def finding(severity: Severity, what: str) -> Finding:
    return Finding("kind", severity, what, detail="9 mL")


def test_slices_stand_upright_whatever_the_axes() -> None:
    image = volume()
    classes = (np.asarray(image.data) >= 200).astype(np.uint8)
    expected = slices(scan(image=image, classes=classes), FETA)
    assert expected.shape == (SIDE, 3 * SIDE, 3)
    for axes, flips in ORDERS[::5]:
        one = turned(image, axes, flips)
        other = turned(Volume(classes, image.affine, image.spacing_mm, "l", classes.shape, 0, 1, "uint8"), axes, flips)
        got = slices(scan(image=one, classes=other.data.astype(np.uint8)), FETA)
        assert np.mean(got != expected) < 0.1


def test_anterior_is_up_right_is_left_and_superior_is_up() -> None:
    axial, coronal, sagittal = np.split(slices(scan(image=volume()), FETA)[..., 0].astype(int), 3, axis=1)
    half = SIDE // 2
    assert axial[:half].mean() > 1.2 * axial[half:].mean()
    assert axial[:half, :half].mean() > 1.2 * axial[:half, half:].mean()
    assert coronal[:half, :half].mean() > 1.2 * coronal[half:, :half].mean()
    assert sagittal[:, :half].mean() > 1.2 * sagittal[:, half:].mean()


def test_labels_are_outlined_in_their_colours() -> None:
    image = volume()
    classes = np.zeros(image.data.shape, np.uint8)
    classes[8:22, 10:30, 7:13] = FETA.index("white_matter")
    picture = slices(scan(image=image, classes=classes), FETA)
    line = (picture == np.array(list(bytes.fromhex(color("white_matter")[1:])))).all(axis=2)
    assert 300 < line.sum() < 3000
    assert np.ptp(picture[~line], axis=1).max() == 0


def test_labels_on_another_grid_are_left_out() -> None:
    picture = slices(scan(image=volume(), classes=np.ones((3, 3, 3), np.uint8)), FETA)
    assert np.ptp(picture, axis=2).max() == 0


def test_a_scan_without_voxels_has_no_slices() -> None:
    with pytest.raises(ValueError, match="without an image"):
        slices(scan(), FETA)


def test_the_page_shows_the_worst_first_and_loads_nothing() -> None:
    sheet = ContactSheet("a <site>", FETA)
    sheet.add(scan("fine", volume()), [finding("note", "a trifle")])
    sheet.add(scan("odd", volume()), [finding("warning", "look <here>"), finding("warning", "look <here>")])
    sheet.add(scan("bad"), [finding("error", "cannot be read"), finding("warning", "and odd")])
    page = sheet.html()
    assert [re.sub(r"\s", "", each) for each in re.findall(r"<h2>(.*?)</h2>", page)] == [
        "sub-bad",
        "sub-odd",
        "sub-fine",
    ]
    assert page.count("look &lt;here&gt; (9 mL)") == 1
    assert "a trifle" not in page
    assert "<site>" not in page
    assert page.count("data:image/png;base64,") == 2
    assert "For research use only. Patient data: this page stays on this machine." in page
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)
    assert "default-src 'none'" in page
    assert "RAS, 30 x 40 x 20 voxels of 1 x 1 x 2 mm, 28 weeks" in page
