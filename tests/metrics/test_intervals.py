from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedseg.metrics.intervals import RESAMPLES, bootstrap, method

VALUES = np.random.default_rng(3).beta(8, 2, size=12)


def _rows(*columns: Any) -> list[dict[str, float | None]]:
    return [{f"c{place}": value for place, value in enumerate(row)} for row in zip(*columns, strict=True)]


def test_as_scipy_bootstraps() -> None:
    (found,) = bootstrap({"dice": _rows(VALUES)})["dice"].values()
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=50_000, method="percentile", random_state=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found == pytest.approx(list(theirs.confidence_interval), abs=0.03 * width)


def test_the_same_values_have_the_same_interval_whatever_stands_beside_them() -> None:
    alone = bootstrap({"dice": _rows(VALUES)})
    beside = bootstrap({"nsd": _rows(VALUES[::-1]), "dice": _rows(VALUES, VALUES + 1)})
    assert beside["dice"]["c0"] == pytest.approx(alone["dice"]["c0"])
    assert beside["dice"]["c1"] == pytest.approx([value + 1 for value in alone["dice"]["c0"] or []])


@pytest.mark.parametrize(("values", "some"), [((0.1, 0.9), False), ((0.1, None, 0.9, None), False), ((1, 1, 1), True)])
def test_fewer_than_three_values_have_no_interval(values: tuple[float | None, ...], some: bool) -> None:
    assert (bootstrap({"dice": _rows(values)})["dice"]["c0"] is not None) == some


def test_values_that_are_missing_are_left_out_of_every_draw() -> None:
    (found,) = bootstrap({"hd95_mm": _rows([None] * 9 + [4.0] * 3)})["hd95_mm"].values()
    assert found == [4.0, 4.0]


def test_nobody_has_no_interval() -> None:
    assert bootstrap({"dice": []}) == {"dice": {}}


def test_the_method_says_how_many_draws_and_how_sure() -> None:
    assert method() == {
        "method": "percentile bootstrap over subjects",
        "level": 0.95,
        "resamples": RESAMPLES,
        "seed": method()["seed"],
    }
    assert RESAMPLES >= 1000
