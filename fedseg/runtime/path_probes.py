"""Questions to the whole path from a study's manifest to its engine: does a round do what it charges?

`training.probes` hands the engine its constants itself, and so can't see that a study hands it others. Here they go
the study's own way: `StudyCharger` charges a round to a ledger that is thrown away, `make_trainer` makes the trainer,
`noise_share` its share of the noise, and rounds are trained on made-up subjects. All is the study's but the patch,
which is as small as its network allows, and whatever the trainer does is measured in units of what was charged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import BudgetError, Interrupted, LedgerError
from fedseg.imaging.grids import Geometry
from fedseg.imaging.transforms import Prepared
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.plan.study import DOWNSAMPLING
from fedseg.policy import SitePolicy
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.auditing import Probe, count_p_value
from fedseg.privacy.events import RoundCharge
from fedseg.privacy.identity import Subject
from fedseg.runtime.charging import StudyCharger
from fedseg.runtime.preparation import make_trainer
from fedseg.runtime.resolution import past_events, steps_in_all
from fedseg.runtime.session import noise_share, thresholds_of
from fedseg.store.privacy_ledger import HospitalLedger
from fedseg.training.canaries import Entropy
from fedseg.training.listening import Layers, listening
from fedseg.training.local import LocalTrainer
from fedseg.training.network import Array, arrays, build_network
from fedseg.training.probes import LEVEL, correlation_chance, spread_chance

CHARGE, STEPS, NOISE = "charged as planned", "trainer's steps as charged", "trainer's noise as charged"
FRESH, SAMPLING, CLIP = "trainer's noise is fresh", "trainer's sampling as charged", "trainer's clip as charged"

OnStep = Callable[[int, int], None]

_ROUNDS = 2
_DRAWN = 100
"""Subjects that are drawn in all rounds together, about: twice the rate would be 10 standard deviations away."""

_SAMPLE = 4096
_ROUNDING = 0.01
_LOUDER = 30.0
_SEED = 1


def path(manifest: Manifest, site: str, entropy: Entropy, on_step: OnStep) -> list[Probe]:
    """Ask whether the rounds of a study at one site do what they charge.

    Args:
        manifest: Of a private study, of fedseg's own networks.
        site: A site of it.
        entropy: `os.urandom`.
        on_step: Called with (steps trained, in all).
    """
    try:
        charge = _charge(manifest, site)
    except (BudgetError, LedgerError) as refusal:
        return [Probe(CHARGE, False, f"the ledger refuses the first round: {refusal.what}")]
    trained = _Path(_with_smallest_patch(manifest), site, charge)
    count = math.ceil(_DRAWN / (charge.sampling_rate * charge.steps * _ROUNDS))
    rounds = _train(trained, count, entropy, on_step)
    return [_planned(manifest, charge), *_kept(charge, trained.spread, rounds, count), _clip(trained)]


@dataclass(frozen=True)
class _Path:
    manifest: Manifest
    site: str
    charge: RoundCharge

    @property
    def unit(self) -> float:
        """C in what the optimiser is handed; D2 in a pooled sum. As charged."""
        charge = self.charge
        if charge.mechanism == "skellam":
            return charge.sensitivity
        return charge.max_grad_norm / (charge.sampling_rate * charge.public_subjects)

    @property
    def spread(self) -> float:
        """Standard deviation that the charge stands for, of the noise of this site alone."""
        honest = _honest(self.manifest)
        return self.charge.noise_multiplier * self.unit / math.sqrt(honest or 1)

    def trainer(self, subjects: Mapping[str, list[Prepared]]) -> LocalTrainer:
        """As a site makes it."""
        return make_trainer(self.manifest, self.site, subjects)


@dataclass(eq=False)
class _Round:
    """What one round showed: forward passes, the first sum, and of each step its layers' squares and a sample."""

    passes: int = 0
    first: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    layers: list[list[tuple[float, int]]] = field(default_factory=list)
    samples: list[NDArray[np.float64]] = field(default_factory=list)

    def on_pass(self) -> None:
        """One subject."""
        self.passes += 1

    def on_gradient(self, parts: Layers) -> None:
        """One step."""
        whole = np.concatenate(parts)
        self.first = self.first if self.layers else whole
        self.layers.append([(float(part @ part), part.size) for part in parts])
        self.samples.append(whole[:: max(1, whole.size // _SAMPLE)])


def _charge(manifest: Manifest, site: str) -> RoundCharge:
    """What the ledger holds after a site charged the first round."""
    subjects, parent = [Subject(("made-up",), None, ())], manifest.parent
    with TemporaryDirectory(prefix="fedseg-audit-") as folder:
        ledger = HospitalLedger.create(Path(folder) / "ledger")
        charger = StudyCharger(ledger, manifest, site, policy=SitePolicy(), frame=subjects, notify=lambda _: None)
        charger.charge(1 + (parent.last_round if parent else 0), 1, manifest.initial_model)
        (charge,) = ledger.ledger.charges(manifest.study)
    return charge


def _planned(manifest: Manifest, charge: RoundCharge) -> Probe:
    """Whether the charge is the plan's, and all rounds together keep its budget."""
    plan, share, honest = manifest.plan, noise_share(manifest), _honest(manifest)
    pairs: dict[str, tuple[object, object]] = {
        "noise multiplier": (charge.noise_multiplier, manifest.noise_multiplier),
        "sampling rate": (charge.sampling_rate, plan.privacy.sampling_rate),
        "steps": (charge.steps, plan.training.steps),
        "clip": (charge.max_grad_norm, plan.privacy.max_grad_norm),
        "mechanism": (charge.mechanism, "skellam" if plan.distributed else "gaussian"),
        "parameters": (charge.dimension, manifest.dimension if plan.distributed else 0),
        "honest others": (share.honest if share else None, honest),
    }
    wrong = [f"{name} {ours}, the plan's {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    whole = charge.event._replace(steps=steps_in_all(plan, manifest.parent))
    spent, budget = epsilon([*past_events(manifest.parent), whole], plan.privacy.delta), plan.privacy.epsilon or 0.0
    told = f"all rounds at this charge cost epsilon {spent:.3f} of {budget:g}"
    return Probe(CHARGE, not wrong and spent <= budget, "; ".join([*wrong, told]))


def _honest(manifest: Manifest) -> int | None:
    """As h is defined: the fewest contributors of a sum, less the attackers or at least the one who looks on."""
    if not manifest.plan.distributed:
        return None
    numbers = thresholds_of(manifest.plan, manifest.quorum)
    return max(numbers.t, numbers.m) - max(numbers.c, 1)


def _train(trained: _Path, count: int, entropy: Entropy, on_step: OnStep) -> list[_Round]:
    """Rounds over `count` subjects whose gradients are not numbers, so count as zero: they release noise alone."""
    nothing = _volume(trained.manifest, np.nan)
    trainer = trained.trainer({f"{number:06d}": [nothing] for number in range(count)})
    weights, steps = _weights(trained.manifest), trained.charge.steps

    def one(before: int) -> _Round:
        seen = _Round()

        def told(done: int, _of: int) -> None:
            on_step(before * steps + min(done, steps), _ROUNDS * steps)

        _run(trained, trainer, weights, before + 1, seen, entropy=entropy, on_step=told, should_stop=lambda: False)
        return seen

    return [one(before) for before in range(_ROUNDS)]


def _run(
    trained: _Path, trainer: LocalTrainer, weights: Mapping[str, Array], number: int, seen: _Round, **names: Any
) -> None:
    """One round as `runtime.site` has it trained."""
    share = noise_share(trained.manifest)
    if share is not None:
        with listening(seen.on_pass, lambda _: None):
            sums = trainer.gradient_sum(weights, share, **names)
        seen.on_gradient([part.astype(np.float64).ravel() for part in sums.values()])
        return
    with listening(seen.on_pass, seen.on_gradient):
        trainer.update(weights, number, **names)


def _kept(charge: RoundCharge, spread: float, rounds: Sequence[_Round], count: int) -> list[Probe]:
    steps = [len(each.layers) for each in rounds]
    told = f"{' and '.join(map(str, steps))} steps in {len(rounds)} rounds, {charge.steps} a round charged"
    answer = Probe(STEPS, all(found == charge.steps for found in steps), told)
    if not all(steps):
        return [answer]
    return [answer, _noise(spread, rounds), _fresh(rounds), _sampling(charge, rounds, count)]


def _noise(spread: float, rounds: Sequence[_Round]) -> Probe:
    """Squares of every step and of every layer."""
    steps = np.array([step for each in rounds for step in each.layers]) / [spread**2, 1]
    pieces = [*steps.sum(axis=1), *steps.sum(axis=0)]
    chance = spread_chance([(float(squares), int(size)) for squares, size in pieces])
    squares, size = steps.sum(axis=(0, 1))
    detail = f"standard deviation {math.sqrt(squares / size):.4f} of the charged over {size:.0f} numbers"
    return Probe(NOISE, chance >= LEVEL, f"{detail}; p = {chance:.2g}")


def _fresh(rounds: Sequence[_Round]) -> Probe:
    """Correlations between steps that follow each other, and between the same step of two rounds."""
    samples = [np.array(each.samples) for each in rounds]
    shortest = min(map(len, samples))
    together = np.concatenate(samples)
    pairs = [(together[1:], together[:-1]), (samples[0][:shortest], samples[1][:shortest])]
    worst, chance = correlation_chance(np.concatenate([_correlations(*pair) for pair in pairs]))
    return Probe(FRESH, chance >= LEVEL, f"largest correlation {worst:.2f} standard deviations; p = {chance:.2g}")


def _correlations(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row with its counterpart, in standard deviations: [rows]."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: NDArray[np.float64] = (one * other).sum(axis=1) / lengths * math.sqrt(one.shape[1])
    return found


def _sampling(charge: RoundCharge, rounds: Sequence[_Round], count: int) -> Probe:
    """One forward pass a subject: more would be patches that count as subjects."""
    passes, coins = sum(each.passes for each in rounds), count * sum(len(each.layers) for each in rounds)
    chance = count_p_value(passes, coins, charge.sampling_rate) if passes <= coins else 0.0
    told = f"{passes} of {coins} drawn, {passes / coins:.4f}; charged {charge.sampling_rate:g}; p = {chance:.2g}"
    return Probe(SAMPLING, chance >= LEVEL, told)


def _clip(trained: _Path) -> Probe:
    """Whether a subject with a large gradient moves the first sum of a round by no more than what is charged."""
    nothing, head = _volume(trained.manifest, np.nan), _volume(trained.manifest, 1.0)
    without = _first_sum(trained, {"a": [nothing]})
    beside = _first_sum(trained, {"a": [nothing], "b": [head, head]})
    moved = float(np.linalg.norm(beside - without)) / trained.unit if without.size == beside.size else math.inf
    detail = f"one subject with a large gradient moves a sum by {moved:.4f} of the charged bound"
    return Probe(CLIP, 0 < moved <= 1 + _ROUNDING, detail)


def _first_sum(trained: _Path, subjects: Mapping[str, list[Prepared]]) -> NDArray[np.float64]:
    """A flat vector, with entropy of zeros, which draws everybody and gives each run the same noise."""
    seen, weights = _Round(), {name: _LOUDER * array for name, array in _weights(trained.manifest).items()}
    with suppress(Interrupted):
        _run(
            trained, trained.trainer(subjects), weights, 1, seen,
            entropy=bytes, on_step=lambda _done, _of: None, should_stop=lambda: bool(seen.layers),
        )  # fmt: skip
    return seen.first


def _weights(manifest: Manifest) -> dict[str, Array]:
    """Of the network before any training, from a seed of its own: none of them matters to what is asked."""
    return arrays(build_network(manifest.plan.network.preset, scheme(manifest.plan.task).classes, _SEED))


def _with_smallest_patch(manifest: Manifest) -> Manifest:
    plan = manifest.plan
    side = DOWNSAMPLING[plan.network.preset]
    image = plan.image.model_copy(update={"patch": (side, side, side)})
    return manifest.model_copy(update={"plan": plan.model_copy(update={"image": image})})


def _volume(manifest: Manifest, scale: float) -> Prepared:
    """One made-up patch: white noise times `scale`, with labels of every class."""
    shape, classes = manifest.plan.image.patch, scheme(manifest.plan.task).classes
    rng, spacing = np.random.default_rng(_SEED), manifest.plan.image.spacing_mm
    image = (rng.standard_normal(shape) * scale).astype(np.float32)
    where = Geometry(shape, (0, 1, 2), (False,) * 3, (spacing,) * 3, spacing, shape, (0, 0, 0), shape)
    return Prepared(image, rng.integers(0, classes, shape).astype(np.uint8), where)
