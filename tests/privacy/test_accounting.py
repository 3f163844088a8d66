from __future__ import annotations

import math

import pytest

from fedseg.errors import LedgerError
from fedseg.privacy import accounting
from fedseg.privacy.accounting import cross_check, delta_cap, epsilon, merge, per_subject, site_epsilon
from tests.privacy.charges import charge, key

GOLDEN = [
    (0.1, 1.0, 500, 1e-3, 12.460),
    (0.25, 3.0, 1000, 1e-3, 11.364),
    (0.004, 1.1, 15000, 1e-5, 2.296),
    (1.0, 10.0, 100, 1e-4, 3.804),
    (0.01, 4.0, 100, 1e-5, 0.080),
]


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "expected"), GOLDEN)
def test_golden_values(rate: float, sigma: float, steps: int, delta: float, expected: float) -> None:
    value = epsilon([(sigma, rate, steps)], delta)
    assert value == pytest.approx(expected, abs=0.005)
    assert value <= cross_check([(sigma, rate, steps)], delta) < value * 1.2


def test_the_plain_gaussian_equals_its_closed_form() -> None:
    # Balle and Wang 2018, theorem 8: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s), here with s = 10 / sqrt(100).
    value, s = epsilon([(10.0, 1.0, 100)], 1e-4), 1.0
    normal = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (0.5 / s - value * s, -0.5 / s - value * s)]
    assert normal[0] - math.exp(value) * normal[1] == pytest.approx(1e-4, rel=5e-3)


def test_opacus_renyi_accountant_agrees() -> None:
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    theirs.history = [(3.0, 0.25, 100)]
    assert cross_check([(3.0, 0.25, 100)], 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=0.02)


def test_equal_events_merge_and_nothing_costs_nothing() -> None:
    assert merge([(4.0, 0.1, 2), (3.0, 0.1, 1), (4.0, 0.1, 3)]) == ((3.0, 0.1, 1), (4.0, 0.1, 5))
    assert epsilon([(4.0, 0.5, 1)] * 30, 1e-5) == epsilon([(4.0, 0.5, 30)], 1e-5)
    assert epsilon([], 1e-5) == 0 == site_epsilon([], 1e-5)


def test_different_events_cost_more_than_either_and_less_than_their_sum() -> None:
    first, second = [(4.0, 0.2, 50)], [(6.0, 1.0, 5)]
    alone = epsilon(first, 1e-5), epsilon(second, 1e-5)
    assert max(alone) < epsilon(first + second, 1e-5) < sum(alone)


@pytest.mark.parametrize("event", [(3.0, 1e-4, 100_000), (50.0, 0.001, 100_000), (0.3, 0.7, 100_000), (10.0, 1e-3, 1)])
def test_extremes_stay_consistent(event: tuple[float, float, int]) -> None:
    assert 0 <= epsilon([event], 1e-5) <= cross_check([event], 1e-5) + 0.005


def test_overlapping_studies_compose_per_subject() -> None:
    first = charge(subjects="AB", steps=40)
    second = charge(subjects="BC", steps=40, study="another", plan_hash="q" * 64)
    spent = per_subject([first, second], 1e-5)
    assert spent[key("A")] == spent[key("C")] == epsilon([first], 1e-5)
    assert spent[key("B")] == epsilon([first, second], 1e-5) > 1.3 * spent[key("A")]
    assert site_epsilon([first, second], 1e-5) == spent[key("B")]


def test_one_history_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    actual = accounting._pld_epsilon
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda *a: computed.append(a) or actual(*a))  # type: ignore[func-returns-value]
    names = tuple(key(str(i)) for i in range(50))
    rounds = [charge(i, noise_multiplier=7.7, subjects=names) for i in range(10)]
    assert len(per_subject(rounds, 1e-5)) == 50
    assert len(computed) == 1


def test_contradicting_accountants_stop_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_pld_epsilon", lambda *_: 99.0)
    with pytest.raises(LedgerError, match=r"contradict each other: PLD says epsilon 99\.0000, RDP 1\.\d+"):
        epsilon([(7.123, 1.0, 5)], 1e-5)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(LedgerError, match=r"no privacy for noise multiplier 0\.0, sampling rate 0\.5, 3 steps"):
        epsilon([(0.0, 0.5, 3)], 1e-5)
    with pytest.raises(LedgerError, match="delta must lie between 0 and 1, not 0"):
        epsilon([(1.0, 0.5, 3)], 0)


def test_delta_cap() -> None:
    assert (delta_cap(10), delta_cap(1000)) == (1e-3, 1e-4)
