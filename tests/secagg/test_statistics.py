from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import PlanError, ProtocolError
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.statistics import LEAST_SCALE, StatisticsCode
from tests.secagg.helpers import ring_sum, session

CODE = StatisticsCode(3, 4, 1000, 100.0)


@given(st.integers(1, 4000), st.integers(1, 1000))
def test_the_largest_sum_never_wraps_and_twice_the_scale_would(sites: int, most: int) -> None:
    code = StatisticsCode(sites, 2, most, 100.0)
    for largest, scale in ((sites * most, int(code.scale)), (sites, code.site_scale)):
        assert largest * scale < 2**32 <= 2 * largest * scale
    fullest = code.encode([most, most])
    assert sites * int(fullest.max()) < 2**32


@given(st.lists(st.lists(st.floats(0, 1000), min_size=4, max_size=4), min_size=1, max_size=3))
def test_the_sum_is_off_by_half_a_unit_a_site_at_most(sites: list[list[float]]) -> None:
    total = ring_sum([CODE.encode(each) for each in sites])
    found = CODE.decode(total, len(sites))
    assert np.all(np.abs(found - np.sum(sites, axis=0)) <= len(sites) / (2 * CODE.scale) + 1e-9)


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=3))
def test_counts_come_back_exactly(sites: list[list[int]]) -> None:
    total = ring_sum([CODE.encode(each) for each in sites])
    assert CODE.decode(total, len(sites)).tolist() == np.sum(sites, axis=0).tolist()


@given(st.integers(1, 2**32 - 1), st.integers(1, 3))
def test_what_a_left_over_mask_does_shows_itself_in_the_tail(mask: int, many: int) -> None:
    total = ring_sum([CODE.encode([1.0, 2.0, 3.0, 4.0])] * many)
    total[-1:] += np.uint32(mask)  # of an array, where numpy wraps without a warning
    with pytest.raises(ProtocolError, match=f"the sum is not that of {many} contributors: masks did not cancel"):
        CODE.decode(total, many)


@pytest.mark.parametrize("value", [-1e-9, 1000.001, float("nan"), float("inf")])
def test_a_statistic_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match="a statistic is not within 0 to 1000, the most subjects of a site"):
        CODE.encode([1.0, value, 0.0, 0.0])


def test_other_shapes_and_sums_are_refused() -> None:
    with pytest.raises(ProtocolError, match="an evaluation has 4 statistics, not 3"):
        CODE.encode([0.0] * 3)
    total = CODE.encode([0.0] * 4)
    with pytest.raises(ProtocolError, match=r"a sum is uint32 of shape \(5,\), not int64 of \(5,\)"):
        CODE.decode(total.astype(np.int64), 1)
    for many in (0, 4):
        with pytest.raises(ProtocolError, match=f"a sum is of 1 to 3 contributors, not {many}"):
            CODE.decode(total, many)
    total[0] = 1001 * int(CODE.scale)
    with pytest.raises(ProtocolError, match="the sum is out of the range of 1 contributors"):
        CODE.decode(total, 1)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((5000, 2, 1000, 100.0), "5000 sites of 1000 subjects leave too few of the ring's 32 bits"),
        ((2**20, 2, 2**20, 100.0), "leave too few of the ring's 32 bits"),
        ((0, 2, 1000, 100.0), "2 statistics of 0 sites cannot be summed"),
        ((3, 0, 1000, 100.0), "0 statistics of 3 sites cannot be summed"),
        ((3, 2, 0, 100.0), "2 statistics of 3 sites cannot be summed"),
        ((3, 2, 1000, 0.0), "0.0 mm is no usable bound on a distance"),
    ],
)
def test_a_code_that_cannot_be_is_refused(numbers: tuple[int, int, int, float], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        StatisticsCode(*numbers)


def test_a_hundred_sites_keep_a_scale_that_tells_a_thousandth() -> None:
    assert StatisticsCode(100, 52, 1000, 100.0).scale >= 32 * LEAST_SCALE


def test_a_header_says_that_statistics_are_summed() -> None:
    header = session(encoding=CODE)
    again = SessionHeader.from_bytes(header.to_bytes())
    assert again == header
    assert again.encoding == CODE
    assert again.evaluation
    assert header.length == 5
    assert header.sid0() != session().sid0()
