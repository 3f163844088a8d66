from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedseg.errors import LedgerError
from fedseg.privacy import accounting
from fedseg.privacy.accounting import (
    accountant_name,
    attacker_curve,
    cross_check,
    delta_cap,
    epsilon,
    epsilon_at,
    merge,
    per_subject,
    site_epsilon,
)
from fedseg.privacy.events import Event, SkellamNoise
from tests.privacy.charges import charge, key

GOLDEN = [
    (0.1, 1.0, 500, 1e-3, 12.460),
    (0.25, 3.0, 1000, 1e-3, 11.364),
    (0.004, 1.1, 15000, 1e-5, 2.296),
    (1.0, 10.0, 100, 1e-4, 3.804),
    (0.01, 4.0, 100, 1e-5, 0.080),
]
NOISE = SkellamNoise(2.0**17, 300_000)
POOLED = Event(6.0, 1.0, 100, NOISE)


@pytest.mark.parametrize(("rate", "sigma", "steps", "delta", "expected"), GOLDEN)
def test_golden_values(rate: float, sigma: float, steps: int, delta: float, expected: float) -> None:
    value = epsilon([Event(sigma, rate, steps)], delta)
    assert value == pytest.approx(expected, abs=0.005)
    assert value <= cross_check([Event(sigma, rate, steps)], delta) < value * 1.2


def test_the_plain_gaussian_equals_its_closed_form() -> None:
    # Balle and Wang 2018, theorem 8: delta = Phi(1/2s - e s) - exp(e) Phi(-1/2s - e s), here with s = 10 / sqrt(100).
    value, s = epsilon([Event(10.0, 1.0, 100)], 1e-4), 1.0
    normal = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (0.5 / s - value * s, -0.5 / s - value * s)]
    assert normal[0] - math.exp(value) * normal[1] == pytest.approx(1e-4, rel=5e-3)


def test_opacus_renyi_accountant_agrees() -> None:
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    theirs.history = [(3.0, 0.25, 100)]
    assert cross_check([Event(3.0, 0.25, 100)], 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=0.02)


def test_equal_events_merge_and_nothing_costs_nothing() -> None:
    merged = merge([Event(4.0, 0.1, 2), Event(3.0, 0.1, 1), POOLED, Event(4.0, 0.1, 3), Event(5.0, 0.1, 0), POOLED])
    assert merged == (Event(3.0, 0.1, 1), Event(4.0, 0.1, 5), POOLED._replace(steps=2 * POOLED.steps))
    assert epsilon([Event(4.0, 0.5, 1)] * 30, 1e-5) == epsilon([Event(4.0, 0.5, 30)], 1e-5)
    assert epsilon([], 1e-5) == 0 == site_epsilon([], 1e-5)


def test_different_events_cost_more_than_either_and_less_than_their_sum() -> None:
    first, second = [Event(4.0, 0.2, 50)], [Event(6.0, 1.0, 5)]
    alone = epsilon(first, 1e-5), epsilon(second, 1e-5)
    assert max(alone) < epsilon(first + second, 1e-5) < sum(alone)


@pytest.mark.parametrize("event", [(3.0, 1e-4, 100_000), (50.0, 0.001, 100_000), (0.3, 0.7, 100_000), (10.0, 1e-3, 1)])
def test_extremes_stay_consistent(event: tuple[float, float, int]) -> None:
    assert 0 <= epsilon([Event(*event)], 1e-5) <= cross_check([Event(*event)], 1e-5) + 0.005


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
        epsilon([Event(7.123, 1.0, 5)], 1e-5)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(LedgerError, match=r"no privacy for noise multiplier 0\.0, sampling rate 0\.5, 3 steps"):
        epsilon([Event(0.0, 0.5, 3)], 1e-5)
    with pytest.raises(LedgerError, match="delta must lie between 0 and 1, not 0"):
        epsilon([Event(1.0, 0.5, 3)], 0)


def test_delta_cap() -> None:
    assert (delta_cap(10), delta_cap(1000)) == (1e-3, 1e-4)


def _by_hand(moments: list[tuple[float, int]], delta: float) -> float:
    """Renyi composition of plain Gaussians (sigma, steps), and Canonne et al. 2020, proposition 12, at whole orders."""
    rate = sum(steps / (2 * sigma**2) for sigma, steps in moments)
    return min(a * rate + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in range(2, 65))


def test_a_history_with_skellam_noise_is_composed_in_rdp() -> None:
    assert epsilon([POOLED], 1e-5) == pytest.approx(_by_hand([(6.0, 100)], 1e-5), rel=1e-4)
    mixed = [POOLED, Event(10.0, 1.0, 40)]
    assert epsilon(mixed, 1e-5) == pytest.approx(_by_hand([(6.0, 100), (10.0, 40)], 1e-5), rel=1e-4)
    assert epsilon(mixed, 1e-5) == cross_check(mixed, 1e-5)
    assert (
        accountant_name(mixed) == accountant_name([charge(mechanism="skellam", sensitivity=8.0, dimension=5)]) == "RDP"
    )
    assert accountant_name([mixed[1]]) == accountant_name([charge()]) == accountant_name([]) == "PLD"


def test_skellam_noise_costs_more_than_gaussian_noise_and_sampling_is_never_a_loss() -> None:
    assert epsilon([POOLED], 1e-5) > epsilon([POOLED._replace(skellam=None)], 1e-5)
    half, tenth = (epsilon([POOLED._replace(sampling_rate=rate)], 1e-5) for rate in (0.5, 0.1))
    assert tenth < half <= epsilon([POOLED], 1e-5)
    # The factor 3 of the general bound: what is known of a sampled Gaussian does not hold here.
    assert tenth > cross_check([Event(6.0, 0.1, 100)], 1e-5) * 1.05


def test_epsilon_at_several_deltas() -> None:
    events, deltas = [Event(4.0, 0.5, 30)], [1e-6, 1e-5, 1e-3]
    assert epsilon_at(events, deltas) == [epsilon(events, delta) for delta in deltas]
    assert epsilon_at(events, deltas) == sorted(epsilon_at(events, deltas), reverse=True)
    with pytest.raises(LedgerError, match="delta must lie between 0 and 1, not 1"):
        epsilon_at(events, [1.0])


def test_noise_that_protects_nobody_costs_everything() -> None:
    assert epsilon([Event(1e-200, 1.0, 1)], 1e-5) == math.inf
    assert epsilon([Event(1e-3, 1.0, 1, NOISE)], 1e-5) > 1e5


def test_linked_keys_have_one_history() -> None:
    first, second, third = charge(1, "AB"), charge(2, "CD", steps=20), charge(3, "BX")
    groups = {key("A"): key("A"), key("C"): key("A"), key("E"): key("A")}
    spent = per_subject([first, second, third], 1e-5, groups)
    assert spent[key("A")] == spent[key("C")] == spent[key("E")] == epsilon([first, second], 1e-5)
    assert spent[key("B")] == epsilon([first, third], 1e-5)
    assert spent[key("D")] == epsilon([second], 1e-5)
    assert site_epsilon([first, second, third], 1e-5, groups) == spent[key("A")] > site_epsilon([first, second], 1e-5)
    assert per_subject([third], 1e-5, groups).keys() == {key("B"), key("X")}


def test_a_subject_twice_in_one_frame_has_twice_the_sensitivity() -> None:
    groups = {key("A"): key("A"), key("B"): key("A"), key("C"): key("A")}
    full = charge(1, "ABX", sampling_rate=1.0)
    spent = per_subject([full], 1e-5, groups)
    assert spent[key("A")] == spent[key("B")] == epsilon([Event(2.0, 1.0, 5)], 1e-5)
    assert spent[key("X")] == epsilon([full], 1e-5)
    sampled = charge(1, "ABC", sampling_rate=0.25)
    expected = epsilon([Event(4.0 / 3, 1 - 0.75**3, 5)], 1e-5)
    assert site_epsilon([sampled], 1e-5, groups) == pytest.approx(expected, rel=1e-6)
    pooled = charge(1, "AB", mechanism="skellam", sensitivity=2.0**17, dimension=300_000)
    doubled = epsilon([Event(2.0, 1.0, 5, SkellamNoise(2.0**18, 300_000))], 1e-5)
    assert site_epsilon([pooled], 1e-5, groups) == doubled


def _epsilon_of_several_keys(sigma: float, rate: float, times: int, delta: float) -> float:
    """One Gaussian step in which each of a subject's keys is drawn on its own, by numerical integration.

    The subject moves the sum by 0, C, ... or `times` C: a mixture of Gaussians.
    """
    x = np.linspace(-30, 40, 200_001)
    absent = norm.pdf(x, 0, sigma)
    chances = [math.comb(times, j) * rate**j * (1 - rate) ** (times - j) for j in range(times + 1)]
    present = sum((chance * norm.pdf(x, j, sigma) for j, chance in enumerate(chances)), np.zeros_like(x))

    def excess(eps: float) -> float:
        ways = (present - math.exp(eps) * absent, absent - math.exp(eps) * present)
        return max(float(np.clip(way, 0, None).sum()) * float(x[1] - x[0]) for way in ways) - delta

    return float(brentq(excess, 0.0, 30.0))


@pytest.mark.parametrize(("sigma", "rate", "times"), [(1.0, 0.3, 2), (2.0, 0.1, 3), (0.7, 0.6, 2), (0.15, 6e-4, 2)])
def test_the_charge_of_a_subject_with_several_keys_covers_the_truth(sigma: float, rate: float, times: int) -> None:
    frame = charge(1, "ABC"[:times], noise_multiplier=sigma, sampling_rate=rate, steps=1)
    claimed = site_epsilon([frame], 1e-3, {key(name): key("A") for name in "ABC"})
    assert _epsilon_of_several_keys(sigma, rate, times, 1e-3) <= claimed + 1e-3


def test_the_chance_of_one_key_would_promise_too_much() -> None:
    assert epsilon([Event(0.15 / 2, 6e-4, 1)], 1e-3) == 0
    assert _epsilon_of_several_keys(0.15, 6e-4, 2, 1e-3) > 1


@pytest.mark.parametrize("shift", [0.2, 1.0, 2.5])
def test_the_best_attacker_against_a_gaussian_is_that_of_neyman_and_pearson(shift: float) -> None:
    rates = [0.0, 1e-4, 0.01, 0.1, 0.5, 0.9, 1.0]
    exact = norm.cdf(norm.ppf(rates) + shift)
    curve = np.array(attacker_curve([Event(10 / shift, 1.0, 100)], rates))
    assert curve == pytest.approx(exact, abs=2e-3)
    assert (curve >= exact - 1e-9).all()


def test_the_best_attacker_at_one_percent_false_positives_as_an_identity_of_dp() -> None:
    # Pure epsilon-DP would allow e^epsilon FPR; the curve is never above what one of its points allows.
    event = Event(4.0, 0.5, 30)
    [rate] = attacker_curve([event], [0.01])
    assert 0.01 < rate <= math.exp(epsilon([event], 1e-5)) * 0.01 + 1e-5


def test_the_curve_of_skellam_noise_lies_above_the_gaussians() -> None:
    rates = [0.001, 0.01, 0.1, 0.5]
    skellam, gaussian = (attacker_curve([event], rates) for event in (POOLED, POOLED._replace(skellam=None)))
    assert all(0.0 < low <= high <= 1.0 for low, high in zip(gaussian, skellam, strict=True))
    assert skellam[0] < 1.0


@given(false=st.lists(st.floats(0, 1), min_size=1, max_size=20), event=st.sampled_from([POOLED, Event(0.8, 0.2, 50)]))
def test_the_curve_is_one_of_a_guesser(false: list[float], event: Event) -> None:
    true = attacker_curve([event], sorted(false))
    assert all(low <= high <= 1 for low, high in zip(sorted(false), true, strict=True))
    assert true == sorted(true)


def test_the_curves_of_nothing_and_of_no_noise() -> None:
    assert attacker_curve([], [0.0, 0.01, 1.0]) == [0.0, 0.01, 1.0]
    assert attacker_curve([Event(1e-3, 1.0, 100)], [0.0, 0.01]) == [1.0, 1.0]
    assert attacker_curve([Event(1e-200, 1.0, 1)], [0.0, 0.01]) == [1.0, 1.0]
    with pytest.raises(LedgerError, match="a false-positive rate lies between 0 and 1"):
        attacker_curve([], [1.01])
