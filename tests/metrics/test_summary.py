from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedseg.errors import DataError
from fedseg.metrics.intervals import RESAMPLES
from fedseg.metrics.scores import METRICS
from fedseg.metrics.summary import summarise, to_json
from tests.metrics.subjects import TISSUES, scores


def test_the_format_of_the_document() -> None:
    document = to_json({"study": "x"}, [scores("sub-1", 0.5, 0.7, 0.9, site="leuven", hd=None)])
    assert list(document) == ["model", "subjects", "summary"]
    facts = ["subject", "site", "gestational_age_weeks", "pathology"]
    assert list(document["subjects"][0]) == [*facts, *METRICS, "reference_volume_ml"]
    assert document["subjects"][0]["hd95_mm"] == {"white_matter": 1.0, "ventricles": None, "brainstem": 1.0}
    summary = document["summary"]
    groups = ["by_site", "by_pathology", "by_age"]
    assert list(summary) == [*METRICS, "intervals", "bootstrap", *groups, "worst", "missing"]
    assert summary["hd95_mm"] == {"mean": 1.0, "white_matter": 1.0, "ventricles": None, "brainstem": 1.0}
    assert summary["missing"]["hd95_mm"] == {"white_matter": 0, "ventricles": 1, "brainstem": 0}
    assert summary["missing"]["dice"] == dict.fromkeys(TISSUES, 0)
    assert list(summary["by_site"]["leuven"]) == [*METRICS, "subjects"]
    assert summary["bootstrap"]["resamples"] == RESAMPLES
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_every_subject_weighs_the_same_whatever_its_number_of_scans() -> None:
    found = [
        scores("sub-1", 0.2, run="run-1"),
        scores("sub-1", 0.4, run="run-2", hd=None),
        scores("sub-2", 0.9, 0.9, 0.6, hd=5.0),
    ]
    summary = summarise(found)
    assert summary["dice"]["mean"] == pytest.approx((0.3 + 0.8) / 2)
    assert summary["dice"]["white_matter"] == pytest.approx((0.3 + 0.9) / 2)
    assert summary["hd95_mm"]["ventricles"] == pytest.approx((2.0 + 5.0) / 2), "the scan without one is left out"
    assert summary["missing"]["hd95_mm"]["ventricles"] == 1
    assert [row.get("run") for row in to_json({}, found)["subjects"]] == ["run-1", "run-2", None]


def test_sites_are_apart_and_one_id_at_two_of_them_is_two_people() -> None:
    found = summarise(
        [
            scores("sub-1", 0.6, site="zurich"),
            scores("sub-1", 0.2, site="leuven"),
            scores("sub-2", 0.6, site="zurich"),
            scores("sub-9", 1.0),
        ]
    )
    assert list(found["by_site"]) == ["leuven", "zurich"]
    assert found["by_site"]["zurich"]["dice"]["mean"] == pytest.approx(0.6)
    assert [means["subjects"] for means in found["by_site"].values()] == [1, 2]
    assert found["dice"]["mean"] == pytest.approx(0.6)


def test_pathologies_are_apart() -> None:
    found = summarise(
        [scores("sub-1", 0.9), scores("sub-2", 0.5, pathology="spina bifida"), scores("sub-3", 0.1, pathology=None)]
    )
    assert {name: means["dice"]["mean"] for name, means in found["by_pathology"].items()} == {
        "neurotypical": pytest.approx(0.9),
        "spina bifida": pytest.approx(0.5),
    }


def test_ages_are_in_bands_of_four_weeks_and_a_band_has_its_first_day_not_its_last() -> None:
    ages = (23.9, 24.0, 27.99, 28.0, None)
    found = summarise([scores(f"sub-{place}", place / 10, age=age) for place, age in enumerate(ages)])
    assert {band: means["subjects"] for band, means in found["by_age"].items()} == {"20-24": 1, "24-28": 2, "28-32": 1}
    assert found["by_age"]["24-28"]["dice"]["mean"] == pytest.approx(0.15)


def test_one_subject_seen_at_two_ages_counts_once_in_each_band() -> None:
    found = summarise([scores("sub-1", 0.2, age=22, run="ses-1"), scores("sub-1", 0.4, age=30, run="ses-2")])
    assert {band: means["subjects"] for band, means in found["by_age"].items()} == {"20-24": 1, "28-32": 1}


def test_the_worst_subject_and_the_worst_site_are_those_of_the_lowest_mean_dice() -> None:
    found = summarise(
        [
            scores("sub-1", 0.9, 0.9, 0.0, site="zurich"),
            scores("sub-2", 0.5, site="zurich", run="run-1"),
            scores("sub-2", 0.7, site="zurich", run="run-2"),
            scores("sub-3", 0.58, 0.6, 0.6, site="leuven"),
        ]
    )["worst"]
    assert found["subject"] == {"subject": "sub-3", "site": "leuven", "dice": pytest.approx(1.78 / 3)}
    assert found["site"] == {"site": "leuven", "dice": pytest.approx(1.78 / 3)}


@pytest.mark.parametrize("site", ["zurich", None])
def test_one_site_is_not_the_worst(site: str | None) -> None:
    found = summarise([scores("sub-1", 0.9, site=site), scores("sub-2", 0.5, site=site)])["worst"]
    assert found["site"] is None
    assert found["subject"]["subject"] == "sub-2"


def test_intervals_hold_the_means_and_are_of_subjects_not_of_scans() -> None:
    found = [scores(f"sub-{place}", 0.5 + place / 50, 0.9, 0.9) for place in range(8)]
    summary = summarise(found)
    for column in ("mean", "white_matter"):
        low, high = summary["intervals"]["dice"][column]
        assert low < summary["dice"][column] < high
    assert summary["intervals"]["dice"]["brainstem"] == pytest.approx([0.9, 0.9])
    twice = [replace(each, run=run) for each in found for run in ("run-1", "run-2")]
    assert summarise(twice)["intervals"] == summary["intervals"]
    assert set(summary["intervals"]) == set(METRICS)


def test_no_subject_has_no_mean() -> None:
    found = summarise([])
    assert found["dice"] == {"mean": None}
    assert found["worst"] == {"subject": None, "site": None}
    assert found["by_age"] == {}


def test_label_schemes_are_not_mixed() -> None:
    one = {metric: {"brain": 1.0} for metric in (*METRICS, "reference_volume_ml")}
    other = replace(scores("sub-2", 0.5), **one)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="different label schemes"):
        summarise([scores("sub-1", 0.1, 0.2, 0.3), other])
