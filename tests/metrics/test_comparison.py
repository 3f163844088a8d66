from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedseg.errors import DataError
from fedseg.metrics import comparison
from fedseg.metrics.comparison import compare, holm
from fedseg.metrics.scores import METRICS, SubjectScores
from fedseg.metrics.summary import summarise
from tests.metrics.subjects import TISSUES, scores

DIFFERENCES = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 1.0, 2.0, 7.0]), min_size=2, max_size=9)


def sign_flip_p(differences: list[float]) -> float:
    return float(comparison.sign_flip_p(np.array([differences]).T)[0])


def _models(*gains: float) -> tuple[list[SubjectScores], list[SubjectScores]]:
    first = [scores(f"sub-{place}", 0.5 + place / 100) for place in range(len(gains))]
    second = [scores(f"sub-{place}", 0.5 + place / 100 + gain) for place, gain in enumerate(gains)]
    return first, second


@given(DIFFERENCES)
def test_exact_p_values_are_those_of_scipy(differences: list[float]) -> None:
    theirs = stats.permutation_test(
        [np.array(differences)], np.sum, permutation_type="samples", n_resamples=10_000, vectorized=True
    )
    assert sign_flip_p(differences) == pytest.approx(min(1.0, theirs.pvalue))


def test_drawn_p_values_come_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = list(np.random.default_rng(2).normal(0.4, 1, size=13))
    exact = sign_flip_p(differences)
    monkeypatch.setattr(comparison, "EXACT_UP_TO", 12)
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p(differences) == sign_flip_p(differences)


@pytest.mark.parametrize("subjects", [7, 20])
def test_columns_are_tested_apart_and_a_subject_without_a_value_changes_nothing(subjects: int) -> None:
    random = np.random.default_rng(4)
    table = random.normal(0.3, 1, size=(subjects, 3))
    table[5:, 1] = 0.0
    found = comparison.sign_flip_p(table)
    assert found[0] == sign_flip_p(list(table[:, 0]))
    assert found[1] == pytest.approx(sign_flip_p(list(table[:5, 1])), abs=0.0 if subjects == 7 else 0.006)


def test_a_drawn_p_value_is_never_nothing() -> None:
    assert sign_flip_p([1.0] * 60) == pytest.approx(1e-5)
    assert sign_flip_p([0.0] * 60) == 1.0


@pytest.mark.parametrize(("subjects", "smallest"), [(1, 1.0), (5, 0.0625), (6, 0.03125), (14, 2 / 2**14)])
def test_the_smallest_p_value_is_when_all_differences_point_one_way(subjects: int, smallest: float) -> None:
    assert sign_flip_p([0.1] * subjects) == smallest
    assert sign_flip_p([-0.1] * subjects) == smallest


def test_how_often_models_that_do_not_differ_are_called_different() -> None:
    random = np.random.default_rng(7)
    called = np.mean([sign_flip_p(list(random.standard_t(3, size=9))) <= 0.05 for _ in range(800)])
    assert 0.03 < called < 0.07


def test_holm_as_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == pytest.approx([0.03, 0.06, None, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_better_second_model_has_positive_differences_of_dice() -> None:
    first, second = _models(*(0.01, 0.02, 0.03, 0.02, 0.04, 0.01, 0.05, 0.02))
    found = compare(first, second)
    assert found.subjects == 8
    dice = found.metrics["dice"]["mean"]
    assert dice.difference == pytest.approx(0.025)
    assert dice.difference == pytest.approx(summarise(second)["dice"]["mean"] - summarise(first)["dice"]["mean"])
    assert dice.interval is not None
    assert 0.01 < dice.interval[0] < 0.025 < dice.interval[1] < 0.05
    assert dice.p == 2 / 2**8
    assert dice.p_holm is None
    assert found.metrics["dice"]["ventricles"].p_holm == pytest.approx(3 * 2 / 2**8)
    assert found.metrics["euler_difference"]["mean"].p == 1.0
    back = compare(second, first).metrics["dice"]["mean"]
    assert back.difference == pytest.approx(-0.025)
    assert back.p == dice.p


def test_subjects_are_paired_by_name_not_by_place() -> None:
    first, second = _models(0.1, 0.1, 0.1, 0.1)
    found = compare(first, second[::-1]).metrics["dice"]["mean"]
    assert found.difference == pytest.approx(0.1)
    assert found.interval == pytest.approx([0.1, 0.1])


def test_a_value_that_one_model_lacks_counts_for_neither() -> None:
    first, second = _models(0.0, 0.0, 0.0)
    second = [replace(second[0], hd95_mm=dict.fromkeys(TISSUES)), *second[1:]]
    first = [first[0], scores("sub-1", 0.51, hd=6.0), *first[2:]]
    found = compare(first, second).metrics["hd95_mm"]
    assert found["ventricles"].n == found["mean"].n == 2
    assert found["ventricles"].difference == pytest.approx((2.0 - 6.0) / 2)
    assert found["mean"].difference == pytest.approx((2.0 - 6.0) / 3 / 2)
    assert found["ventricles"].interval is None


def test_scans_of_one_subject_count_as_one() -> None:
    first, second = _models(0.1, 0.2)
    again = [replace(each, subject="sub-0", run="run-2") for each in (first[1], second[1])]
    found = compare([*first, again[0]], [*second, again[1]])
    assert found.subjects == 2
    assert found.metrics["dice"]["mean"].difference == pytest.approx(((0.1 + 0.2) / 2 + 0.2) / 2)


def test_a_value_nobody_has_has_no_test() -> None:
    first = [scores("sub-1", 0.5, hd=None)]
    found = compare(first, first).metrics["hd95_mm"]["ventricles"]
    assert (found.difference, found.interval, found.p, found.p_holm, found.n) == (None, None, None, None, 0)


@pytest.mark.parametrize(
    ("subjects", "said"),
    [
        (1, ["p cannot fall below 1", "p_holm cannot fall below 1"]),
        (5, ["p cannot fall below 0.062", "p_holm cannot fall below 0.19"]),
        (6, ["p_holm cannot fall below 0.094"]),
        (7, []),
        (20, []),
    ],
)
def test_too_few_subjects_are_said(subjects: int, said: list[str]) -> None:
    found = compare(*_models(*[0.1] * subjects))
    assert "not corrected over the metrics" in found.notes[0]
    assert found.notes[1:] == tuple(f"with {subjects} subjects {each}, whatever the models do" for each in said)
    least = found.metrics["dice"]["ventricles"]
    assert [(least.p or 0) < 0.05, (least.p_holm or 0) < 0.05].count(False) == len(said)


def test_nobody_compared_is_no_comparison() -> None:
    found = compare([], [])
    assert found.subjects == 0
    assert found.metrics["dice"] == {}
    assert "with 0 subjects p cannot fall below 1" in found.notes[1]


def test_json_has_every_metric_and_says_how_it_was_made() -> None:
    document = compare(*_models(0.1, 0.0, 0.2)).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert list(document) == ["subjects", "test", "bootstrap", "notes", "metrics"]
    assert list(document["metrics"]) == list(METRICS)
    assert list(document["metrics"]["nsd"]) == ["mean", *TISSUES]
    assert list(document["metrics"]["nsd"]["mean"]) == ["difference", "interval", "p", "p_holm", "n"]
    assert "sign-flip" in document["test"]


def test_other_scans_are_refused_and_named() -> None:
    first = [scores("sub-1", 0.5, site="leuven"), scores("sub-2", 0.5)]
    second = [scores("sub-2", 0.5), scores("sub-3", 0.5, run="run-1")]
    message = r"same scans: 1 only in the first \(leuven sub-1\); 1 only in the second \(sub-3 run-1\)"
    with pytest.raises(DataError, match=message):
        compare(first, second)


def test_other_tissues_are_refused() -> None:
    one = {metric: {"brain": 1.0} for metric in (*METRICS, "reference_volume_ml")}
    first = [scores("sub-1", 0.5)]
    with pytest.raises(DataError, match="different label schemes cannot be compared"):
        compare(first, [replace(first[0], **one)])  # type: ignore[arg-type]
