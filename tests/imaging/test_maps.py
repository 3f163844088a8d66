"""Fractions on a scan's own grid, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from fedseg.imaging.maps import restore_map, write_maps_like
from fedseg.imaging.nifti import read_image
from fedseg.imaging.transforms import prepare, restore
from fedseg.labels import FETA
from tests.conftest import Save, tiny_head

nib: Any = nibabel

LIP = np.array([[-0.8, 0, 0, 5], [0, 0, 0.8, -3], [0, -0.8, 0, 7], [0, 0, 0, 1.0]])


@pytest.fixture
def scan(tmp_path: Path, save: Save) -> Path:
    return save(tmp_path / "a_T2w.nii.gz", tiny_head()[0], LIP, qform=1, sform=0)


def test_a_map_lies_where_the_labels_lie_and_outside_is_as_told(scan: Path) -> None:
    geometry = prepare(read_image(scan), None, None, spacing_mm=1.0, scheme=FETA).geometry
    chances = np.zeros((2, *geometry.crop_shape), np.float32)
    chances[1, :6, 2:, :4] = 1
    chances[0] = 1 - chances[1]
    labels, of_one = restore(chances, geometry), restore_map(chances[1], geometry)
    assert of_one.shape == labels.shape and of_one.dtype == np.uint8
    assert ((of_one > 127) == (labels == 1)).mean() > 0.99
    assert restore_map(chances[0], geometry, outside=1.0)[labels == 0].min() >= 127
    np.testing.assert_allclose(of_one.astype(int) + restore_map(chances[0], geometry, outside=1.0), 255, atol=1)


@pytest.mark.parametrize("count", [1, 3])
def test_files_hold_fractions_on_the_scans_grid_with_its_form_codes(scan: Path, tmp_path: Path, count: int) -> None:
    maps = [np.full((22, 26, 20), step, np.uint8) for step in (255, 51, 0)[:count]]
    maps[0][0, 1, 2] = 102
    out = tmp_path / "map.nii.gz"
    write_maps_like(maps, scan, out)
    made, source = nib.load(out), nib.load(scan)
    values = made.get_fdata().reshape(22, 26, 20, count)
    assert values[0, 1, 2, 0] == pytest.approx(0.4, abs=1e-6) and values[1, 1, 1, 0] == pytest.approx(1)
    assert count == 1 or values[0, 0, 0, 1] == pytest.approx(0.2, abs=1e-6)
    assert made.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(made.affine, source.affine)
    assert [int(made.header[name]) for name in ("qform_code", "sform_code")] == [1, 0]
    assert made.shape == ((22, 26, 20) if count == 1 else (22, 26, 20, 3))
    assert list(out.parent.glob(".tmp-*")) == []
