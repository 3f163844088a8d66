from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.federation.evaluation import (
    LONGEST_MM,
    MOST_SUBJECTS,
    Aggregate,
    Measured,
    aggregate_of,
    statistics_code,
    statistics_of,
)
from fedseg.secagg.statistics import StatisticsCode
from tests.secagg.helpers import ring_sum

TISSUES = ("a", "b", "c")
CODE = statistics_code(4, len(TISSUES))
share = st.floats(0, 1)
distance = st.one_of(st.none(), st.floats(0, 150))


def three(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.tuples(values, values, values)


subjects = st.builds(Measured, three(share), three(distance), three(share))


def summed(sites: list[list[Measured]]) -> Aggregate:
    return aggregate_of(CODE, ring_sum([statistics_of(CODE, each) for each in sites]), len(sites))


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def near(found: float | None, expected: float | None, unit: float, count: int) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == pytest.approx(expected, abs=unit * 4 / (2 * CODE.scale * max(count, 1)) + 1e-9)


@pytest.mark.parametrize("dimension", range(1, 61))
def test_only_as_many_statistics_as_a_label_scheme_has_are_an_evaluation(dimension: int) -> None:
    code = StatisticsCode(3, dimension, MOST_SUBJECTS, LONGEST_MM)
    total = ring_sum([code.encode([0.0] * dimension)] * 3)
    possible = {statistics_code(3, tissues).dimension for tissues in range(1, 10)}
    if dimension in possible:
        assert aggregate_of(code, total, 3).subjects == 0
    else:
        with pytest.raises(ProtocolError, match=f"an evaluation of {dimension} statistics, which no label scheme has"):
            aggregate_of(code, total, 3)


@given(st.lists(st.lists(subjects, max_size=4), min_size=1, max_size=4))
def test_the_aggregate_is_that_of_all_subjects_together(sites: list[list[Measured]]) -> None:
    found, every = summed(sites), [each for site in sites for each in site]
    assert found.subjects == len(every)
    for metric, unit in (("dice", 1.0), ("hd95_mm", LONGEST_MM), ("volume_similarity", 1.0)):
        told, rows = getattr(found, metric), [getattr(each, metric) for each in every]
        rows = [[None if value is None else min(value, unit) for value in row] for row in rows]
        means = [mean([value for value in row if value is not None]) for row in rows]
        there = [value for value in means if value is not None]
        near(told.mean, mean(there), unit, len(there))
        assert told.missing[0] == means.count(None)
        for place in range(3):
            column = [row[place] for row in rows if row[place] is not None]
            near(told.tissues[place], mean(column), unit, len(column))
            assert told.missing[1 + place] == len(every) - len(column)
        if len(there) > 1:
            # A square root: an error of the scale's becomes one of its root where the deviation is near 0.
            assert told.deviation == pytest.approx(np.std(there, ddof=1), abs=unit * 0.01)
        else:
            assert told.deviation is None


def test_sites_without_subjects_add_nothing() -> None:
    one = Measured((0.5, 0.25, 0.75), (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    assert summed([[one], [], []]) == summed([[one]])
    nobody = summed([[], []])
    assert nobody.subjects == 0
    assert nobody.dice.mean is None
    assert json.dumps(nobody.to_json(TISSUES))


def test_a_longer_distance_counts_as_the_longest() -> None:
    far = Measured((0.0,) * 3, (LONGEST_MM * 9, None, 50.0), (0.0,) * 3)
    found = summed([[far]])
    assert found.hd95_mm.tissues == (LONGEST_MM, None, 50.0)
    assert found.hd95_mm.mean == 75.0
    assert found.hd95_mm.missing == (0, 0, 1, 0)


def test_the_document_names_metrics_and_tissues() -> None:
    one = Measured((0.5, 0.25, 0.75), (1.0, None, 3.0), (1.0, 1.0, 1.0))
    document = summed([[one]]).to_json(TISSUES)
    assert document["subjects"] == 1
    assert document["dice"] == {
        "mean": 0.5,
        "deviation": None,
        "tissues": {"a": 0.5, "b": 0.25, "c": 0.75},
        "missing": {"mean": 0, "a": 0, "b": 0, "c": 0},
    }
    assert document["hd95_mm"]["tissues"]["b"] is None
    assert document["hd95_mm"]["missing"] == {"mean": 0, "a": 0, "b": 1, "c": 0}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Measured((1.5, 0.0, 0.0), (1.0,) * 3, (0.0,) * 3), "a score is out of its range"),
        (Measured((0.0,) * 3, (-1.0, 1.0, 1.0), (0.0,) * 3), "a score is out of its range"),
        (Measured((0.0,) * 3, (1.0,) * 3, (float("nan"), 0.0, 0.0)), "a score is out of its range"),
        (Measured((0.0,) * 2, (1.0,) * 2, (0.0,) * 2), "an evaluation has 28 statistics, not 22"),
    ],
)
def test_scores_that_cannot_be_are_not_summed(wrong: Measured, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        statistics_of(CODE, [wrong])


def test_more_subjects_than_a_site_may_have_are_refused() -> None:
    one = Measured((0.0,) * 3, (1.0,) * 3, (0.0,) * 3)
    with pytest.raises(ProtocolError, match="a statistic is not within 0 to 1000"):
        statistics_of(CODE, [one] * (MOST_SUBJECTS + 1))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1.5),  # half a subject
        (1, 3.0),  # a mean Dice above 1
        (2, 1.9),  # squares above the values
        (4, 3.0),  # a tissue's Dice above 1
        (6, 0.5),  # half a missing value
        (6, 3.0),  # more missing than there are
    ],
)
def test_a_sum_that_no_honest_sites_make_is_refused(place: int, value: float) -> None:
    one = Measured((0.5,) * 3, (10.0,) * 3, (0.5,) * 3)
    total = ring_sum([statistics_of(CODE, [one])] * 2)
    assert aggregate_of(CODE, total, 2).dice.mean == 0.5
    total[place] = int(value * CODE.scale)
    with pytest.raises(ProtocolError, match="none that honest sites can make"):
        aggregate_of(CODE, total, 2)
