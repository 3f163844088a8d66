from __future__ import annotations

import pytest

from fedseg.errors import PlanError
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.calibration import LEAST, noise_multiplier


@pytest.mark.parametrize(
    ("budget", "delta", "rate", "steps"),
    [(8.0, 1e-5, 1.0, 100), (8.0, 1e-5, 0.1, 100), (1.0, 1e-4, 0.25, 300), (0.1, 1e-5, 0.05, 10)],
)
def test_least_noise_within_budget(budget: float, delta: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier(budget, delta, rate, steps)
    assert sigma == float(f"{sigma:.4g}")
    assert epsilon([(sigma, rate, steps)], delta) <= budget < epsilon([(sigma * 0.998, rate, steps)], delta)


def test_a_generous_budget_gets_the_least_noise() -> None:
    assert noise_multiplier(1e5, 1e-5, 0.1, 1) == LEAST


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1e-5, 0.1, 10), "budget epsilon must be a finite number above 0, not 0.0"),
        ((float("inf"), 1e-5, 0.1, 10), "budget epsilon must be a finite number above 0, not inf"),
        ((8.0, 1.0, 0.1, 10), "delta must lie between 0 and 1, not 1.0"),
        ((8.0, 1e-5, 0.0, 10), "sampling rate must lie above 0 and be at most 1, not 0.0"),
        ((8.0, 1e-5, 0.1, 0), "needs at least one step, not 0"),
        (
            (1e-3, 1e-9, 1.0, 10**6),
            "no noise multiplier up to 10000 keeps 1000000 steps at rate 1 within epsilon 0.001",
        ),
    ],
)
def test_impossible_budgets(arguments: tuple[float, float, float, int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        noise_multiplier(*arguments)


def test_the_hint_says_what_to_change() -> None:
    with pytest.raises(PlanError, match="raise epsilon or delta, or plan fewer rounds"):
        noise_multiplier(1e-3, 1e-9, 1.0, 10**6)
