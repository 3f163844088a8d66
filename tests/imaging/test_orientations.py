"""One scan, stored in every axis order, turned, and resampled: one result.

The way to the network's grid gives the same bits for all 48 orders, and the way back puts every label where it
belongs; whatever lies between sees no difference. So the segmentation is the same voxel by voxel, without
interpolation. A physical turn by an angle that is no multiple of 90 degrees is not undone (nothing is resampled for
it): what the network sees is then the turned brain.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fedseg.imaging.bids import load_dataset
from fedseg.imaging.cache import prepare_case
from fedseg.imaging.dataset import Case
from fedseg.imaging.grids import nearest_axes
from fedseg.imaging.maps import write_labels_like
from fedseg.imaging.nifti import Volume, read_image, read_labels
from fedseg.imaging.transforms import Prepared, prepare, restore, restore_labels
from fedseg.labels import FETA, LabelScheme
from tests.conftest import tiny_head
from tests.imaging.test_transforms import ORDERS, turned

nib: Any = nibabel
TEN = (
    *(("crl", name) for name in ("crl21", "crl25", "crl31", "crl37")),
    *(("wu", name) for name in ("wu22", "wu30", "wu34")),
    *(("sba", name) for name in ("sba22", "sba28op", "sba34op")),
)


def same(first: Prepared, second: Prepared) -> bool:
    return np.array_equal(first.image, second.image) and first.geometry.crop == second.geometry.crop


def ready(image: Volume, *, n4: bool = False) -> Prepared:
    return prepare(image, None, None, spacing_mm=1.5, scheme=FETA, n4=n4)


def oblique(angles: tuple[float, float, float], spacing: tuple[float, float, float]) -> Volume:
    """A small head in a scanner that it lies askew in; the header holds float32, as on disk."""
    data, _ = tiny_head((12, 14, 10))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine = affine.astype(np.float32).astype(np.float64)
    sizes = nib.affines.voxel_sizes(affine)
    exact = (round(sizes[0], 6), round(sizes[1], 6), round(sizes[2], 6))
    return Volume(data, affine, exact, "s", data.shape, 0, 1, "float32")


@settings(max_examples=25)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(1.2, 2.0)] * 3),
    order=st.sampled_from(ORDERS),
)
def test_an_oblique_scan_gives_the_same_bits_in_every_axis_order(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], order: Any
) -> None:
    image = oblique(angles, spacing)
    cosines = np.abs(image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0))
    sums = sorted(sum(cosines[way, axes[way]] for way in range(3)) for axes in itertools.permutations(range(3)))
    if sums[-1] - sums[-2] < 1e-6:
        return
    expected, got = ready(image), ready(turned(image, *order))
    assert same(got, expected)
    scores = np.random.default_rng(0).normal(size=(3, *expected.image.shape)).astype(np.float32)
    home = turned(replace(image, data=restore(scores, expected.geometry)), *order).data
    assert np.array_equal(restore(scores, got.geometry), home)


@given(angles=st.tuples(*[st.floats(-29, 29)] * 3))
def test_axes_near_their_own_are_kept(angles: tuple[float, float, float]) -> None:
    assert nearest_axes(oblique(angles, (1.5, 1.5, 1.5)).affine) in {((0, 1, 2), (False, False, False))}


def test_assignment_takes_each_axis_once_where_the_nearest_would_take_one_twice() -> None:
    for angles in itertools.product((0, 40, 50, 130), repeat=3):
        axes, _ = nearest_axes(oblique((float(angles[0]), float(angles[1]), float(angles[2])), (1.5, 1.5, 1.5)).affine)
        assert sorted(axes) == [0, 1, 2]


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_files_of_both_forms_give_the_same_bits_in_every_axis_order(form: str, tmp_path: Path) -> None:
    image = oblique((12.0, -7.0, 20.0), (1.5, 1.4, 1.6))
    results = []
    for axes, flips in ORDERS[::3]:
        one = turned(image, axes, flips)
        stored = nib.Nifti1Image(one.data, None)
        stored.set_sform(one.affine if form == "sform" else None, int(form == "sform"))
        stored.set_qform(one.affine if form == "qform" else None, int(form == "qform"))
        stored.to_filename(tmp_path / "scan.nii")
        results.append(ready(read_image(tmp_path / "scan.nii")))
    assert all(same(each, results[0]) for each in results)


def test_n4_gives_the_same_bits_too() -> None:
    data, _ = tiny_head((22, 26, 20))
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    image = Volume(data, affine, (1.5, 1.5, 1.5), "s", data.shape, 0, 1, "float32")
    expected = ready(image, n4=True)
    assert not np.array_equal(expected.image, ready(image).image)
    for axes, flips in ORDERS[5::14]:
        assert same(ready(turned(image, axes, flips), n4=True), expected)


def _case(real_data: Path, site: str, subject: str) -> tuple[Any, Case]:
    dataset = load_dataset(real_data / f"site-{site}", scheme=FETA)
    return dataset, dataset.subjects()[subject][0]


def _thin(image: Volume) -> Volume:
    """Every third voxel, so that 480 volumes take seconds."""
    data = np.ascontiguousarray(image.data[::3, ::3, ::3])
    affine = image.affine @ np.diag([3.0, 3.0, 3.0, 1.0])
    first, second, third = image.spacing_mm
    return replace(image, data=data, affine=affine, spacing_mm=(3 * first, 3 * second, 3 * third))


@pytest.mark.realdata
@pytest.mark.parametrize("scans", [TEN[:1], pytest.param(TEN, marks=pytest.mark.slow)], ids=["one", "ten"])
def test_real_volumes_in_48_axis_orders(scans: tuple[tuple[str, str], ...], real_data: Path) -> None:
    for site, subject in scans:
        dataset, case = _case(real_data, site, subject)
        assert case.labels is not None
        image, labels = _thin(read_image(case.image)), _thin(read_labels(case.labels))
        classes = dataset.class_map(case)

        def both(one: Volume, two: Volume, classes: dict[int, int] = classes) -> Prepared:
            return prepare(one, two, classes, spacing_mm=2.0, scheme=FETA)

        expected = both(image, labels)
        assert expected.labels is not None
        home = restore_labels(expected.labels, expected.geometry, FETA.classes)
        for axes, flips in ORDERS:
            got = both(turned(image, axes, flips), turned(labels, axes, flips))
            assert got.labels is not None
            assert same(got, expected)
            assert np.array_equal(got.labels, expected.labels)
            back = restore_labels(got.labels, got.geometry, FETA.classes)
            assert np.array_equal(back, turned(replace(image, data=home), axes, flips).data)


@pytest.mark.realdata
@pytest.mark.slow
def test_whole_volumes_from_disk_in_a_few_axis_orders(real_data: Path, tmp_path: Path) -> None:
    for place, (site, subject) in enumerate(TEN[::3]):
        dataset, case = _case(real_data, site, subject)
        image = read_image(case.image)
        expected = prepare_case(dataset, case, spacing_mm=0.8)
        axes, flips = ORDERS[(11 * place + 17) % 48]
        one = turned(image, axes, flips)
        nib.Nifti1Image(one.data, one.affine).to_filename(tmp_path / "scan.nii")
        got = prepare(read_image(tmp_path / "scan.nii"), None, None, spacing_mm=0.8, scheme=FETA)
        assert same(got, expected)


@pytest.mark.realdata
def test_a_random_network_segments_a_volume_the_same_in_other_axis_orders(real_data: Path, tmp_path: Path) -> None:
    from fedseg.runtime.prediction import Segmenter

    _, case = _case(real_data, "crl", "crl21")
    image, segmenter = _thin(read_image(case.image)), Segmenter([_random_model(tmp_path, FETA)])
    expected = segmenter(image)
    assert len(np.unique(expected.labels)) > 2
    assert expected.cleaned.filled_ml > 0
    for axes, flips in (ORDERS[47], ORDERS[22], ORDERS[9]):
        one = turned(image, axes, flips)
        segmentation = segmenter(one)
        found = segmentation.labels
        assert np.array_equal(found, turned(replace(image, data=expected.labels), axes, flips).data)
        assert segmentation.cleaned == expected.cleaned
        nib.Nifti1Image(one.data, one.affine).to_filename(tmp_path / "scan.nii")
        write_labels_like(found, tmp_path / "scan.nii", tmp_path / "out.nii")
        assert np.array_equal(nib.load(tmp_path / "out.nii").affine, nib.load(tmp_path / "scan.nii").affine)


def _random_model(folder: Path, scheme: LabelScheme) -> Path:
    from fedseg.store.checkpoints import ModelCard, save_model
    from fedseg.training.network import architecture, arrays, build_network

    weights = arrays(build_network("small", scheme.classes, 0))
    card = ModelCard(
        architecture=architecture("small", scheme.classes), task="feta", tissues=scheme.tissues, spacing_mm=2.4,
        patch=(32, 32, 32), normalisation={"n4": False}, study="none", plan_hash="0" * 64, rounds=0, contributors=(),
        privacy={"mode": "off", "epsilon": None}, code_version="0",
    )  # fmt: skip
    save_model(folder / "model.safetensors", weights, card)
    return folder / "model.safetensors"
