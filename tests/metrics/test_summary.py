from __future__ import annotations

import json
import math
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedseg.errors import DataError
from fedseg.metrics.overlap import dice
from fedseg.metrics.summary import METRICS, SubjectScores, score, summarise, to_json
from fedseg.metrics.surface import hd95
from fedseg.metrics.volumes import volume_ml

TISSUES = ("white_matter", "ventricles", "brainstem")
SPACING = (0.5, 0.8, 2.0)
LABELS = hnp.arrays(np.uint8, (4, 3, 5), elements=st.integers(0, len(TISSUES)))


def _scores(subject: str, site: str | None, *values: float, hd: float | None = 2.0, run: str | None = None) -> Any:
    named = dict(zip(TISSUES, values, strict=True))
    distances = dict.fromkeys(TISSUES, 1.0) | {"ventricles": hd}
    return SubjectScores(subject, site, 24.0, "neurotypical", named, distances, named, named, run)


@given(LABELS, LABELS)
def test_scores_are_those_of_each_mask_and_json_has_them_all(pred: Any, ref: Any) -> None:
    found = score(pred, ref, SPACING, TISSUES, subject="sub-1")
    for index, tissue in enumerate(TISSUES, start=1):
        assert found.dice[tissue] == dice(pred == index, ref == index)
        distance = hd95(pred == index, ref == index, SPACING)
        assert found.hd95_mm[tissue] == (None if math.isinf(distance) else pytest.approx(distance))
        assert found.volume_ml[tissue] == volume_ml(pred == index, SPACING)
    document = to_json({"study": "x"}, [found])
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_format_of_the_document() -> None:
    document = to_json({"study": "x"}, [_scores("sub-1", "leuven", 0.5, 0.7, 0.9, hd=None)])
    assert list(document) == ["model", "subjects", "summary"]
    assert list(document["subjects"][0]) == ["subject", "site", "gestational_age_weeks", "pathology", *METRICS]
    assert document["subjects"][0]["hd95_mm"] == {"white_matter": 1.0, "ventricles": None, "brainstem": 1.0}
    assert list(document["summary"]) == [*METRICS, "by_site", "missing"]
    assert document["summary"]["hd95_mm"] == {"mean": 1.0, "white_matter": 1.0, "ventricles": None, "brainstem": 1.0}
    assert document["summary"]["missing"]["hd95_mm"] == {"white_matter": 0, "ventricles": 1, "brainstem": 0}
    assert document["summary"]["missing"]["dice"] == dict.fromkeys(TISSUES, 0)


def test_every_subject_weighs_the_same_whatever_its_number_of_scans() -> None:
    scores = [
        _scores("sub-1", "leuven", 0.2, 0.2, 0.2, run="run-1"),
        _scores("sub-1", "leuven", 0.4, 0.4, 0.4, run="run-2", hd=None),
        _scores("sub-2", "leuven", 0.9, 0.9, 0.6, hd=5.0),
    ]
    found = summarise(scores)
    assert found["dice"]["mean"] == pytest.approx((0.3 + 0.8) / 2)
    assert found["dice"]["white_matter"] == pytest.approx((0.3 + 0.9) / 2)
    assert found["hd95_mm"]["ventricles"] == pytest.approx((2.0 + 5.0) / 2), "the scan without one is left out"
    assert found["missing"]["hd95_mm"]["ventricles"] == 1
    assert [row.get("run") for row in to_json({}, scores)["subjects"]] == ["run-1", "run-2", None]


def test_sites_are_apart_and_one_id_at_two_of_them_is_two_people() -> None:
    found = summarise(
        [
            _scores("sub-1", "leuven", 0.2, 0.2, 0.2),
            _scores("sub-1", "zurich", 0.6, 0.6, 0.6),
            _scores("sub-2", "zurich", 0.6, 0.6, 0.6),
            _scores("sub-9", None, 1.0, 1.0, 1.0),
        ]
    )
    assert list(found["by_site"]) == ["leuven", "zurich"]
    assert found["by_site"]["zurich"]["dice"]["mean"] == pytest.approx(0.6)
    assert found["dice"]["mean"] == pytest.approx(0.6)


def test_empty_masks_and_a_tissue_only_one_has() -> None:
    ref = np.zeros((3, 3, 3), dtype=np.uint8)
    pred = ref.copy()
    pred[0, 0, 0] = 1
    found = score(pred, ref, (1.0, 1.0, 1.0), TISSUES, subject="sub-1")
    assert (found.dice["white_matter"], found.hd95_mm["white_matter"]) == (0.0, None)
    assert found.volume_ml["white_matter"] == pytest.approx(0.001)
    assert (found.dice["ventricles"], found.hd95_mm["ventricles"]) == (1.0, 0.0)


def test_no_subject_has_no_mean() -> None:
    assert summarise([])["dice"] == {"mean": None}


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
        _scores("sub-1", None, 0.1, 0.2, 0.3, hd=math.inf)


def test_label_schemes_are_not_mixed() -> None:
    other = SubjectScores("sub-2", None, None, None, {"brain": 1.0}, {"brain": 0.0}, {"brain": 1.0}, {"brain": 1.0})
    with pytest.raises(DataError, match="different label schemes"):
        summarise([_scores("sub-1", None, 0.1, 0.2, 0.3), other])
    with pytest.raises(DataError, match="sub-2: hd95_mm has other tissues than dice"):
        SubjectScores("sub-2", None, None, None, {"brain": 1.0}, {"head": 0.0}, {"brain": 1.0}, {"brain": 1.0})


@pytest.mark.realdata
def test_two_real_brains_take_seconds(real_data: Path) -> None:
    from nibabel.nifti1 import Nifti1Image

    from fedseg.labels import FETA, class_map, named_table

    table = np.zeros(256, np.uint8)
    for index, label in class_map(named_table("fidon"), FETA, "dseg.tsv").items():
        table[index] = label
    folder = real_data / "site-crl" / "derivatives" / "manual"
    found = [folder / f"sub-crl{week}" / "anat" / f"sub-crl{week}_rec-srr_dseg.nii.gz" for week in (24, 25)]
    pred, ref = (table[np.asarray(Nifti1Image.from_filename(path).dataobj).astype(np.uint8)] for path in found)
    started = perf_counter()
    scores = score(pred, ref, (0.8, 0.8, 0.8), FETA.tissues, subject="sub-crl24")
    assert perf_counter() - started < 10, "0.7 s on the machine it was written on"
    # Made with surface-distance 0.1, as in test_surface.
    assert scores.hd95_mm["external_csf"] == pytest.approx(4.3817804600413295)
    assert scores.hd95_mm["ventricles"] == pytest.approx(3.7523326078587442)
    assert scores.hd95_mm["brainstem"] == pytest.approx(2.65329983228432)
