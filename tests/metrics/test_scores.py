from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import DataError
from fedseg.metrics.overlap import dice, volume_similarity
from fedseg.metrics.scores import METRICS, score
from fedseg.metrics.summary import to_json
from fedseg.metrics.surface import asd_mm, hd95, nsd, surfaces
from fedseg.metrics.topology import euler_difference
from fedseg.metrics.volumes import volume_ml
from tests.metrics.subjects import TISSUES, scores

SPACING = (0.5, 0.8, 2.0)
LABELS = hnp.arrays(np.uint8, (4, 3, 5), elements=st.integers(0, len(TISSUES)))


def _finite(value: float) -> Any:
    return pytest.approx(value) if math.isfinite(value) else None


@given(LABELS, LABELS)
def test_scores_are_those_of_each_mask_and_json_has_them_all(pred: Any, ref: Any) -> None:
    found = score(pred, ref, SPACING, TISSUES, subject="sub-1")
    for index, tissue in enumerate(TISSUES, start=1):
        masks = pred == index, ref == index
        distances = surfaces(*masks, SPACING)
        assert found.dice[tissue] == dice(*masks)
        assert found.hd95_mm[tissue] == _finite(hd95(distances))
        assert found.volume_similarity[tissue] == volume_similarity(*masks)
        assert found.euler_difference[tissue] == euler_difference(*masks)
        assert found.asd_mm[tissue] == _finite(asd_mm(distances))
        assert found.nsd[tissue] == pytest.approx(nsd(distances))
        assert found.volume_ml[tissue] == volume_ml(masks[0], math.prod(SPACING))
        assert found.reference_volume_ml[tissue] == volume_ml(masks[1], math.prod(SPACING))
    document = to_json({"study": "x"}, [found])
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert set(document["subjects"][0]) >= {*METRICS, "reference_volume_ml"}


def test_empty_masks_and_a_tissue_only_one_has() -> None:
    ref = np.zeros((3, 3, 3), dtype=np.uint8)
    pred = ref.copy()
    pred[0, 0, 0] = 1
    found = score(pred, ref, (1.0, 1.0, 1.0), TISSUES, subject="sub-1")
    only, neither = ([found.of(metric)[tissue] for metric in METRICS] for tissue in TISSUES[:2])
    assert only == [0.0, None, 0.0, 1, None, 0.0, pytest.approx(0.001)]
    assert neither == [1.0, 0.0, 1.0, 0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("pred", "message"),
    [
        (np.full((2, 2, 2), 4, np.uint8), "sub-1: the prediction has a class 4; known are 0 to 3"),
        (np.full((2, 2, 2), -1, np.int16), "the prediction has a class -1"),
        (np.zeros((2, 2, 2), np.float32), "the prediction has float32 voxels"),
        (np.zeros((2, 2, 3), np.uint8), "not volumes of one shape"),
    ],
)
def test_what_cannot_be_scored(pred: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(pred, np.zeros((2, 2, 2), np.uint8), SPACING, TISSUES, subject="sub-1")


def test_infinity_never_gets_in() -> None:
    with pytest.raises(DataError, match="sub-1: hd95_mm is not finite"):
        scores("sub-1", 0.1, 0.2, 0.3, hd=math.inf)


@pytest.mark.parametrize("metric", [*METRICS[1:], "reference_volume_ml"])
def test_metrics_of_other_tissues_are_refused(metric: str) -> None:
    with pytest.raises(DataError, match=f"sub-1: {metric} has other tissues than dice"):
        replace(scores("sub-1", 0.1, 0.2, 0.3), **{metric: {"head": 0.0}})  # type: ignore[arg-type]


@pytest.mark.realdata
def test_two_real_brains_take_seconds(real_data: Path) -> None:
    from nibabel.nifti1 import Nifti1Image

    from fedseg.imaging.label_tables import class_map, named_table
    from fedseg.labels import FETA

    table = np.zeros(256, np.uint8)
    for index, label in class_map(named_table("fidon"), FETA, "dseg.tsv").items():
        table[index] = label
    folder = real_data / "site-crl" / "derivatives" / "manual"
    paths = [folder / f"sub-crl{week}" / "anat" / f"sub-crl{week}_rec-srr_dseg.nii.gz" for week in (24, 25)]
    pred, ref = (table[np.asarray(Nifti1Image.from_filename(path).dataobj).astype(np.uint8)] for path in paths)
    started = perf_counter()
    scores = score(pred, ref, (0.8, 0.8, 0.8), FETA.tissues, subject="sub-crl24")
    assert perf_counter() - started < 10, "0.7 s of one core where it was written"
    # Made with surface-distance 0.1 and scikit-image 0.26.
    made = {
        "external_csf": (4.3817804600413295, 1.590842185947414, 0.4180148148007047, 8),
        "ventricles": (3.7523326078587442, 0.9861043695839272, 0.6397076946723128, 0),
        "brainstem": (2.65329983228432, 0.9336965589388783, 0.6089260881092147, 1),
    }
    for tissue, expected in made.items():
        found = [scores.of(metric)[tissue] for metric in ("hd95_mm", "asd_mm", "nsd", "euler_difference")]
        assert found == pytest.approx(expected)


def test_volumes_go_by_the_volume_of_a_voxel() -> None:
    labels = np.ones((2, 2, 2), np.uint8)
    found = score(labels, labels, (1.0, 1.0, 1.0), ("brain",), subject="1", voxel_mm3=0.9)
    assert found.volume_ml["brain"] == found.reference_volume_ml["brain"] == pytest.approx(8 * 0.9 / 1000)
    with pytest.raises(DataError, match="a voxel of 0 mm3 has no volume"):
        volume_ml(labels > 0, 0.0)
