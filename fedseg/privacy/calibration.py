"""The least noise that keeps a whole study within its budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from fedseg.errors import PlanError
from fedseg.privacy.accounting import epsilon as pld_epsilon
from fedseg.privacy.accounting import rdp_epsilon

LEAST, MOST = 0.1, 1e4
"""Noise multipliers are looked for between these."""

_DIGITS = 4
_CLOSE = 3e-4


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Smallest noise multiplier, rounded up to four digits, with which `steps` steps cost at most `epsilon`.

    Args:
        epsilon: The budget at `delta`.
        delta: Between 0 and 1.
        sampling_rate: Poisson rate of one step, in (0, 1].
        steps: All steps of the study, its reserve rounds included.

    Returns:
        sigma within about 0.1% of the smallest; `LEAST` when even that little noise is enough.

    Raises:
        PlanError: The budget is no budget, or no noise multiplier up to `MOST` keeps it.
    """
    _check(epsilon, delta, sampling_rate, steps)

    def excess(sigma: float) -> float:
        """Above 0 where sigma spends more than the budget."""
        return pld_epsilon([(sigma, sampling_rate, steps)], delta) - epsilon

    enough = _enough_by_rdp(epsilon, delta, sampling_rate, steps)
    sigma = _round_up(_root(excess, enough))
    while excess(sigma) > 0:
        sigma = _round_up(sigma * (1 + _CLOSE))
    return sigma


def _check(epsilon: float, delta: float, sampling_rate: float, steps: int) -> None:
    if not 0 < epsilon < math.inf:
        raise PlanError(f"the privacy budget epsilon must be a finite number above 0, not {epsilon}")
    if not 0 < delta < 1:
        raise PlanError(f"delta must lie between 0 and 1, not {delta}", hint="1e-5 is usual")
    if not 0 < sampling_rate <= 1:
        raise PlanError(f"the sampling rate must lie above 0 and be at most 1, not {sampling_rate}")
    if steps < 1:
        raise PlanError(f"a study needs at least one step, not {steps}")


def _enough_by_rdp(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """A sigma that RDP proves to be enough: cheap, and never too little, since RDP is the looser bound."""
    low, high = LEAST, LEAST
    while rdp_epsilon(((high, sampling_rate, steps),), delta) > epsilon:
        low, high = high, high * 2
        if high > MOST:
            raise PlanError(
                f"no noise multiplier up to {MOST:g} keeps {steps} steps at rate {sampling_rate:g} within "
                f"epsilon {epsilon:g} at delta {delta:g}",
                hint="raise epsilon or delta, or plan fewer rounds, fewer steps or a lower sampling rate",
            )
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        if rdp_epsilon(((middle, sampling_rate, steps),), delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


def _root(excess: Callable[[float], float], enough: float) -> float:
    """Where `excess` crosses 0, between `LEAST` and `enough`: a bracket, then Brent's method on log sigma."""
    from scipy.optimize import brentq  # noqa: PLC0415  # slow to load, and rarely needed

    high = low = math.log(enough)
    while excess(math.exp(low)) <= 0:
        high, low = low, low - 0.15
        if low < math.log(LEAST):
            return LEAST
    return math.exp(float(brentq(lambda x: excess(math.exp(x)), low, high, xtol=_CLOSE)))


def _round_up(sigma: float) -> float:
    step = 10.0 ** (math.floor(math.log10(sigma)) - _DIGITS + 1)
    return float(f"{math.ceil(sigma / step - 1e-9) * step:.{_DIGITS}g}")
