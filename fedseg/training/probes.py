"""Questions to the real engine that an honest one answers in one way only, or nearly always in one way.

Exact ones compare two runs on the same entropy that differ in one subject. Statistical ones have a p-value, and fail
below `ALARM` divided by their number: an honest engine fails the whole audit less than once in a million times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import nn

from fedseg.labels import FETA
from fedseg.plan.study import StudyPlan
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.auditing import Probe, count_p_value, normal_p_value, one_run_p_value, refutes, spread_p_value
from fedseg.privacy.distributed import NoiseShare
from fedseg.training.canaries import (
    LOUD,
    SIDE,
    SPACING_MM,
    Claim,
    Entropy,
    Frame,
    Game,
    Loss,
    MadeUp,
    along,
    audit_net,
    made_up,
    released,
    replayed,
    segmenting,
)
from fedseg.training.local import LocalTrainer
from fedseg.training.network import architecture, arrays, build_network

ALARM = 1e-6
STATISTICAL = 8
LEVEL = ALARM / STATISTICAL
STRICT_DELTA = 1e-10

_ROUNDING = 1e-3
_STILL = 1e-4
_UPDATE_ROUNDING = 0.01
_TIGHT = 0.01
_SEED = 1
_FEWEST_ALIKE = 200
_FEWEST_DRAWN = 25.0


def noise(claim: Claim, entropy: Entropy) -> tuple[Probe, Probe]:
    """Whether the noise is what is charged, in every layer and step, and fresh each time.

    The one subject of the frame has a gradient of zero, so that some steps draw it and others nobody, and all release
    noise alone.
    """
    runs = [released(claim, _still_frame, entropy) for _ in range(2)]
    if any(len(run) != claim.steps for run in runs):
        counts = " and ".join(str(len(run)) for run in runs)
        missing = f"{claim.steps} steps released {counts} gradients: empty batches must release noise too"
        return Probe("noise as charged", False, missing), Probe("noise is fresh", False, missing)
    found = np.concatenate(runs) / claim.noise_multiplier
    return _amount(found), _freshness(found)


def one_subject(claim: Claim, entropy: Entropy) -> Probe:
    """Whether one subject moves a step's sum by more than C, whatever its gradient is."""
    claim = _plain(claim)
    seed, heads = entropy(32), made_up(3)

    def others(model: nn.Module) -> list[Loss]:
        return [segmenting(model, head) for head in heads[:2]]

    def with_one(subject: Frame) -> Frame:
        return lambda model: [*others(model), *subject(model)]

    without = released(claim, others, replayed(seed))
    pull = torch.from_numpy(without[0] - released(claim, lambda _: [], replayed(seed))[0])
    moved = {
        name: _largest_move(without, released(claim, with_one(subject), replayed(seed)))
        for name, subject in _troublemakers(heads[2], pull, LOUD * claim.max_grad_norm).items()
    }
    name, largest = max(moved.items(), key=lambda pair: pair[1])
    detail = f"at most {largest:.4f} C ({name}); an honest engine's bound is 1"
    return Probe("one subject's pull is bounded", largest <= 1 + _ROUNDING, detail)


def patches(claim: Claim, entropy: Entropy) -> Probe:
    """Whether a subject with three scans and four patches a scan moves a site's whole update by more than C.

    The only question to the trainer as studies run it (`local.LocalTrainer`). Each scan is one patch in size, so that
    whatever is drawn is the same patch.
    """
    heads, seed = made_up(3), entropy(32)
    frame: dict[str, list[MadeUp]] = {"a": [heads[0]], "b": [heads[1]]}
    without = _update(claim, frame, replayed(seed))
    moved = float(np.linalg.norm(_update(claim, frame | {"c": [heads[2]] * 3}, replayed(seed)) - without))
    detail = f"12 patches of one subject move a site's update by {moved:.3f} C; an honest engine's bound is 1"
    return Probe("patches of one subject count once", moved <= 1 + _UPDATE_ROUNDING, detail)


def divisor(claim: Claim, entropy: Entropy) -> Probe:
    """Whether the number of subjects drawn changes anything: a subject whose gradient is zero must not."""
    claim, seed, heads = _plain(claim), entropy(32), made_up(2)

    def others(model: nn.Module) -> list[Loss]:
        return [segmenting(model, head) for head in heads]

    without = released(claim, others, replayed(seed))
    beside = released(claim, lambda model: [*others(model), *_still_frame(model)], replayed(seed))
    change = float(np.abs(beside - without).max()) if beside.shape == without.shape else np.inf
    detail = f"a subject with a gradient of zero changes what is released by {change:.1e} C at most; it must be 0"
    return Probe("divisor is a constant", change <= _STILL, detail)


def sampling(claim: Claim, game: Game) -> Probe:
    """Whether canaries were drawn at the rate that is charged, each by its own coin and once a step at most."""
    draws = np.concatenate(game.draws)
    total, most = int(draws.sum()), int(draws.max(initial=0))
    detail = f"drawn {total} of {draws.size} times, {total / max(draws.size, 1):.4f}; charged {claim.sampling_rate:g}"
    if most > 1:
        return Probe("sampling as charged", False, f"one subject was counted {most} times in one step; {detail}")
    chance = min(count_p_value(total, draws.size, claim.sampling_rate), _dispersion(claim.sampling_rate, game.draws))
    return Probe("sampling as charged", chance >= LEVEL / 2, f"{detail}; p = {chance:.2g}")


def canaries(claim: Claim, game: Game) -> tuple[Probe, Probe]:
    """Whether canaries are found more often than the claimed epsilon, or the claimed noise, allows.

    A delta lets a mechanism fail in full with that chance, so no test is surer than it. The first probe therefore takes
    the claim at `STRICT_DELTA`, which any claim holds at with a larger epsilon.
    """
    rates, strict = game.rates, epsilon([claim.event], STRICT_DELTA)
    chance = one_run_p_value(game.scores, game.present, strict, STRICT_DELTA)
    told = f"{rates.hits} of {rates.present} found, {rates.false_alarms} of {rates.absent} taken for one"
    allowed = f"at epsilon {strict:.3f}, delta {STRICT_DELTA:g}"
    return (
        Probe("canaries, any mechanism", chance >= LEVEL, f"{told}; p = {chance:.2g} {allowed}"),
        Probe(
            "canaries, Gaussian noise",
            not refutes(rates, claim.gaussian, 1 - LEVEL),
            f"{told}; as claimed where no attacker could find more, but for chance",
        ),
    )


def spread_chance(pieces: Sequence[tuple[float, int]]) -> float:
    """Chance that any of some sums of squared standard normal numbers lies so far out; NaN where one is no number.

    Args:
        pieces: (sum of squares, how many numbers); a number may be in several.
    """
    return float(np.minimum(1.0, len(pieces) * np.min([spread_p_value(*piece) for piece in pieces])))


def correlation_chance(found: NDArray[np.float64]) -> tuple[float, float]:
    """The largest of some correlations, in standard deviations, and the chance of one as large; NaN as above."""
    worst = np.abs(found).max()
    return float(worst), float(np.minimum(1.0, 2 * len(found) * special.ndtr(-worst)))


def _update(claim: Claim, frame: Mapping[str, Any], entropy: Entropy) -> NDArray[np.float64]:
    """One step of a trainer over `frame`, all of which is drawn, in units of C."""
    plan = _plan(claim)
    weights = arrays(build_network(plan.network.preset, FETA.classes, _SEED))
    trainer = LocalTrainer(
        plan, "a", frame, architecture=architecture(plan.network.preset, FETA.classes), noise_multiplier=1.0
    )
    quiet: dict[str, Any] = {"entropy": entropy, "on_step": lambda _done, _of: None, "should_stop": lambda: False}
    parts: Mapping[str, NDArray[Any]]
    if claim.honest is None:
        parts, unit = trainer.update(weights, 1, **quiet), -1.0
    else:
        size = sum(each.size for each in weights.values())
        share = NoiseShare.of(1.0, _TIGHT, honest=claim.honest, dimension=size, sites=claim.honest, subjects=len(frame))
        parts, unit = trainer.gradient_sum(weights, share, **quiet), share.sensitivity
    return np.concatenate([parts[name].ravel() for name in sorted(parts)]).astype(np.float64) / unit


def _plan(claim: Claim) -> StudyPlan:
    """One step at which everybody is drawn, with a rate that makes an update the noised sum in units of C."""
    count = 10
    training = {"steps": 1, "patches_per_subject": 4, "optimiser": "sgd", "momentum": 0.0, "augment": "none"}
    training |= {"learning_rate": count / _TIGHT, "precision": "float32", "threads": 1}
    mode = "local" if claim.honest is None else "distributed"
    return StudyPlan.model_validate(
        {
            "name": "audit",
            "image": {"spacing_mm": SPACING_MM, "patch": (SIDE, SIDE, SIDE)},
            "network": {"preset": "small"},
            "training": training,
            "privacy": {"mode": mode, "epsilon": 1.0, "max_grad_norm": _TIGHT, "sampling_rate": 1.0},
            "schedule": {"rounds": 1},
            "sites": {name: {"public_subjects": count} for name in ("a", "b", "c")},
        }
    )


def _still_frame(model: nn.Module) -> list[Loss]:
    parameters = list(model.parameters())
    return [lambda: torch.stack([(p * 0.0).sum() for p in parameters]).sum()]


def _plain(claim: Claim) -> Claim:
    """Everybody drawn, little noise: what is compared here does not depend on either, and rounding is smallest."""
    return replace(claim, sampling_rate=1.0, noise_multiplier=1.0, steps=2)


def _troublemakers(head: MadeUp, pull: torch.Tensor, length: float) -> dict[str, Frame]:
    """Subjects that try to move the sum further than the clip allows, by name.

    Args:
        head: A made-up head.
        pull: What the other subjects add up to, [d].
        length: Of the gradients that are given rather than computed.
    """
    spike = torch.zeros_like(pull)
    spike[len(pull) // 2] = length
    against = -length * pull / torch.linalg.vector_norm(pull)
    return {
        "a made-up head, its loss times a million": lambda model: [segmenting(model, head, LOUD)],
        "a gradient against all others": lambda model: [along(model, against)],
        "one huge coordinate": lambda model: [along(model, spike)],
        "a gradient of NaN": lambda model: [along(model, torch.full_like(pull, torch.nan))],
        "an infinite gradient": lambda model: [along(model, torch.full_like(pull, torch.inf))],
    }


def _largest_move(without: NDArray[np.float64], beside: NDArray[np.float64]) -> float:
    if without.shape != beside.shape:
        return float("inf")
    largest = float(np.linalg.norm(beside - without, axis=1).max())
    return largest if np.isfinite(largest) else float("inf")


def _amount(found: NDArray[np.float64]) -> Probe:
    """`found`: noise in units of its charged standard deviation, [steps, d]."""
    pieces = [(float((part**2).sum()), part.size) for part in (*_layers(found), *found)]
    chance = min(1.0, 2 * min(normal_p_value(found.ravel()), spread_chance(pieces)))
    spread = float(np.sqrt(np.mean(found**2)))
    detail = f"standard deviation {spread:.4f} of the charged over {found.size} numbers; p = {chance:.2g}"
    return Probe("noise as charged", chance >= LEVEL, detail)


def _freshness(found: NDArray[np.float64]) -> Probe:
    """Correlations between any two steps of either run, and between the starts of any two layers."""
    size = found.shape[1]
    lengths = np.linalg.norm(found, axis=1)
    between = (found @ found.T / np.outer(lengths, lengths))[np.triu_indices(len(found), 1)] * np.sqrt(size)
    layers = [part for part in _layers(found) if part.shape[1] >= _FEWEST_ALIKE]
    starts = [_start_correlation(one, other) for one, other in combinations(layers, 2)]
    worst, chance = correlation_chance(np.concatenate([between, starts]))
    detail = f"largest correlation between steps, runs and layers {worst:.2f} standard deviations; p = {chance:.2g}"
    return Probe("noise is fresh", chance >= LEVEL, detail)


def _start_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    size = min(one.shape[1], other.shape[1])
    products = (one[:, :size] * other[:, :size]).sum()
    lengths = np.linalg.norm(one[:, :size]) * np.linalg.norm(other[:, :size])
    return float(products / lengths * np.sqrt(one[:, :size].size))


def _layers(found: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    sizes = [p.numel() for p in audit_net().parameters()]
    return np.split(found, np.cumsum(sizes)[:-1], axis=1)


def _dispersion(rate: float, draws: Sequence[NDArray[np.int64]]) -> float:
    """p-value of the spread of batch sizes: coins of their own give a binomial, a fixed batch size gives none."""
    known = [each for each in draws if len(each) * rate * (1 - rate) >= _FEWEST_DRAWN]
    if not known:
        return 1.0
    squares = sum(
        float(((each.sum(axis=0) - len(each) * rate) ** 2).sum() / (len(each) * rate * (1 - rate))) for each in known
    )
    return spread_p_value(squares, sum(each.shape[1] for each in known))
