from __future__ import annotations

import pytest

from fedseg.errors import PlanError
from fedseg.secagg.thresholds import Thresholds


@pytest.mark.parametrize(
    ("n", "c", "t", "m"), [(3, 0, 2, 3), (4, 1, 3, 3), (5, 1, 4, 3), (10, 3, 7, 5), (30, 9, 20, 11)]
)
def test_defaults_are_those_of_the_design(n: int, c: int, t: int, m: int) -> None:
    assert Thresholds.of(n) == Thresholds(n, c, t, m)
    assert Thresholds.of(n).quorum == max(t, m)


def test_every_possible_roster_has_possible_thresholds() -> None:
    for n in range(3, 101):
        for c in range(n - 1):
            numbers = Thresholds.of(n, c)
            assert 2 * numbers.t > n + c
            assert c + 2 <= numbers.m
            assert 3 <= numbers.quorum <= n
            assert n - numbers.t + c < numbers.t, "two attempts over one update could both be unmasked"


@pytest.mark.parametrize(
    ("n", "c", "message"),
    [
        (0, None, "needs at least 3 sites, this study has 0"),
        (1, None, "needs at least 3 sites, this study has 1"),
        (2, None, "needs at least 3 sites, this study has 2"),
        (101, None, "at most 100 sites, this study has 101"),
        (3, 2, "collusion 2 is impossible with 3 sites"),
        (5, -1, "collusion -1 is impossible"),
    ],
)
def test_impossible_rosters_are_refused(n: int, c: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Thresholds.of(n, c)


def test_two_contributors_only_with_three_honest_sites() -> None:
    assert Thresholds.of(3, 0, accept_two=True) == Thresholds(3, 0, 2, 2)
    for n, c in ((3, 1), (4, 0), (4, 1), (10, 0)):
        with pytest.raises(PlanError, match="two contributors can be accepted only with 3 sites and collusion 0"):
            Thresholds.of(n, c, accept_two=True)


@pytest.mark.parametrize(
    "numbers", [(3, 0, 1, 3), (3, 0, 2, 1), (5, 1, 3, 3), (10, 3, 7, 3), (4, 0, 3, 2), (5, 1, -1, 3)]
)
def test_thresholds_that_nobody_derives_cannot_be_built(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(PlanError, match=r"thresholds t = |two contributors"):
        Thresholds(*numbers)


def test_plain_mode_shares_nothing_and_needs_its_quorum() -> None:
    numbers = Thresholds.plain(1, 1)
    assert (numbers.secure, numbers.quorum) == (False, 1)
    with pytest.raises(PlanError, match="quorum 3 is impossible with 2 sites"):
        Thresholds.plain(2, 3)
    with pytest.raises(PlanError, match="a plain sum takes 1 to 10000 sites, not 0"):
        Thresholds.plain(0, 0)
    with pytest.raises(PlanError, match="quorum 2 is impossible with 3 sites"):
        Thresholds(3, 1, 0, 2)
    for n in (1, 10_000):
        assert Thresholds.plain(n, n).quorum == n


@pytest.mark.parametrize("numbers", [(2, 0, 2, 3), (101, 33, 68, 35)])
def test_sizes_of_rosters_hold_for_numbers_off_the_wire_too(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(PlanError, match="sites, this study has"):
        Thresholds(*numbers)


def test_a_plan_may_ask_for_more_contributors_but_never_for_fewer() -> None:
    assert Thresholds.of(6, quorum=6) == Thresholds(6, 1, 4, 6)
    assert Thresholds.of(6, quorum=6).quorum == 6
    assert Thresholds.of(6, quorum=4) == Thresholds.of(6, quorum=1) == Thresholds.of(6)
    with pytest.raises(PlanError, match="t = 4, m = 7 are not those of 6 sites"):
        Thresholds.of(6, quorum=7)
