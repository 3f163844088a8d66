"""Epsilon of a history of charges.

Headline: privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022, connect-the-dots) as `dp_accounting`
computes them, for the Poisson-subsampled Gaussian under add-or-remove-one adjacency, rounded pessimistically.
Cross-check at every computation: Renyi DP (Mironov et al. 2019), which must not be below it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

from fedseg.errors import LedgerError
from fedseg.privacy.events import RoundCharge

Event = tuple[float, float, int]
"""(noise multiplier, sampling rate, steps)."""

History = tuple[Event, ...]
"""Merged and sorted: at most one event for each (noise multiplier, sampling rate)."""

ADJACENCY = "add or remove one subject with all its scans, sessions and patches"
ACCOUNTANT = "PLD"
"""dp_accounting's privacy loss distributions, cross-checked by its Renyi accountant."""

# Whole orders only: dp_accounting's series for fractional orders does not always converge.
_ORDERS = (*range(2, 65), *range(72, 257, 8), *range(320, 1025, 64))
# Rounding privacy losses up costs about this much at epsilons near 0, where RDP is as tight as PLD.
_TOLERANCE = 5e-3
# Nothing is protected up there and PLD's tails overflow, so RDP's bound stands in for it.
_HOPELESS = 300.0


def delta_cap(public_subjects: int) -> float:
    """The largest delta that may be claimed for a site of N0 subjects: min(1e-3, 1 / (10 N0))."""
    return min(1e-3, 1 / (10 * public_subjects))


def merge(events: Iterable[Event | RoundCharge]) -> History:
    """Equal mechanisms as one event with their steps added; composition does not care about order."""
    steps: defaultdict[tuple[float, float], int] = defaultdict(int)
    for event in events:
        sigma, rate, count = _as_event(event)
        steps[sigma, rate] += count
    return tuple((sigma, rate, count) for (sigma, rate), count in sorted(steps.items()) if count)


def epsilon(events: Iterable[Event | RoundCharge], delta: float) -> float:
    """Epsilon at `delta` of a history that all fell on the same subject; 0 for an empty one.

    Raises:
        LedgerError: An event or delta is out of range, or the cross-check fails.
    """
    return _epsilon(merge(events), _checked_delta(delta))


def cross_check(events: Iterable[Event | RoundCharge], delta: float) -> float:
    """Epsilon of the same history by Renyi DP: looser, and by other code.

    Raises:
        LedgerError: It is below the PLD's, so one of the two is wrong.
    """
    history, delta = merge(events), _checked_delta(delta)
    _epsilon(history, delta)
    return rdp_epsilon(history, delta)


def per_subject(charges: Iterable[RoundCharge], delta: float) -> Mapping[str, float]:
    """Epsilon of each subject: all charges whose sampling frame names it, composed.

    Args:
        charges: Charges of one hospital, so that the keyed hashes agree.
        delta: Of each subject's guarantee.

    Returns:
        Subject key to epsilon. Subjects with one history cost one computation.
    """
    histories: defaultdict[str, list[Event]] = defaultdict(list)
    for charge in charges:
        for subject in charge.subjects:
            histories[subject].append(_as_event(charge))
    return {subject: epsilon(history, delta) for subject, history in histories.items()}


def site_epsilon(charges: Iterable[RoundCharge], delta: float) -> float:
    """The largest epsilon of any subject of the hospital; 0 when nothing was charged."""
    return max(per_subject(charges, delta).values(), default=0.0)


@lru_cache(maxsize=1024)
def rdp_epsilon(history: History, delta: float) -> float:
    """Epsilon of a merged history by Renyi DP at whole orders from 2 to 1024."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent  # noqa: PLC0415  # takes a second to load
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415  # takes a second to load

    accountant = RdpAccountant(_ORDERS)
    for sigma, rate, steps in history:
        gaussian = GaussianDpEvent(sigma)
        accountant.compose(PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian, steps)
    return float(accountant.get_epsilon(delta)) if history else 0.0


@lru_cache(maxsize=1024)
def _epsilon(history: History, delta: float) -> float:
    if not history:
        return 0.0
    bound = rdp_epsilon(history, delta)
    if bound > _HOPELESS:
        return bound
    value = _pld_epsilon(history, delta, bound)
    if not value <= bound * 1.001 + _TOLERANCE:
        raise LedgerError(
            f"the two privacy accountants contradict each other: PLD says epsilon {value:.4f}, RDP {bound:.4f}",
            hint="do not train on; report this with the ledger's numbers",
        )
    return value


def _pld_epsilon(history: History, delta: float, bound: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415  # takes a second to load

    interval = _interval(history, bound)
    total = pld.identity(value_discretization_interval=interval)
    for sigma, rate, steps in history:
        if rate == 1:
            event = pld.from_gaussian_mechanism(sigma / math.sqrt(steps), value_discretization_interval=interval)
        else:
            single = pld.from_gaussian_mechanism(sigma, value_discretization_interval=interval, sampling_prob=rate)
            event = single.self_compose(steps)
        total = total.compose(event)
    return float(total.get_epsilon_for_delta(delta))


def _interval(history: History, bound: float) -> float:
    """Grid of the privacy loss: 3e-4 (golden values to 5e-4, under half a second), coarser where epsilon is large.

    Rounding adds up over steps, so the grid is also kept well below the spread of one step's loss.
    """
    sampled = [event for event in history if event[1] < 1]
    variance = sum(steps * _loss_deviation(sigma, rate) ** 2 for sigma, rate, steps in sampled)
    steps = sum(event[2] for event in sampled)
    spread = math.sqrt(variance / steps) if steps else math.inf
    return min(3e-4 * max(1.0, bound / 4), 0.1 * spread)


def _loss_deviation(sigma: float, rate: float) -> float:
    """Rough standard deviation of one step's privacy loss: q sqrt(exp(1 / sigma^2) - 1), at most 1 / sigma."""
    return min(rate * math.sqrt(math.expm1(min(sigma**-2, 50.0))), 1 / sigma)


def _as_event(event: Event | RoundCharge) -> Event:
    if isinstance(event, RoundCharge):
        return float(event.noise_multiplier), float(event.sampling_rate), event.steps
    sigma, rate, steps = event
    if not (0 < sigma < math.inf and 0 < rate <= 1 and steps >= 0):
        raise LedgerError(f"no privacy for noise multiplier {sigma}, sampling rate {rate}, {steps} steps")
    return float(sigma), float(rate), int(steps)


def _checked_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise LedgerError(f"delta must lie between 0 and 1, not {delta}")
    return float(delta)
