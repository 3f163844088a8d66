"""The real engine under audit: made-up subjects, made-up canaries, and all that its steps release.

Whatever is asked here runs `dpsgd.private_steps` on a small network of the layers that studies train, and looks at
what the engine hands to the optimiser: the noised, scaled gradient of each step. The rest of training is computed from
that. Where noise is distributed it runs `dpsgd.private_sum` once for each of h sites, of which one has subjects, and
looks at the pooled sum.

A canary is a subject whose gradient is known: one coordinate, far above the clip (the gradient-space or Dirac canary of
Nasr et al. 2021, 2101.04535, and 2023, 2302.07956), so that each is seen in a coordinate of its own and one run judges
hundreds of them (Steinke et al. 2023, 2305.08846).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from fedseg.imaging.synthesis import NEUROTYPICAL, make_subject
from fedseg.imaging.synthesis_contrast import style_of_site
from fedseg.labels import FETA
from fedseg.privacy.auditing import Rates
from fedseg.privacy.distributed import NoiseShare
from fedseg.privacy.events import Event
from fedseg.training import dpsgd
from fedseg.training.augmentation import Image, Labels
from fedseg.training.compute import reproducible
from fedseg.training.losses import subject_loss
from fedseg.training.network import GROUPS, HEAD_CHANNELS

Entropy = Callable[[int], bytes]
Loss = Callable[[], Tensor]
Frame = Callable[[nn.Module], Sequence[Loss]]
"""From a network to the subjects of its sampling frame."""

DIMENSION = 7507
"""Parameters of `audit_net`."""

SIDE = 16
SPACING_MM = 4.0
LOUD = 1e6
"""How far above the clip a canary's gradient is."""

CANARIES_A_RUN = 500
SUBJECTS_A_RUN = 2
_SEED = 1
_DARK = 0.05


@dataclass(frozen=True)
class Claim:
    """What the engine is said to do.

    Args:
        noise_multiplier: sigma.
        sampling_rate: q.
        max_grad_norm: C.
        public_subjects: N0.
        steps: T, of one run of the audit.
        honest: h, the sites whose shares make up the noise; None where each site's noise stands alone.
    """

    noise_multiplier: float = 2.5
    sampling_rate: float = 0.5
    max_grad_norm: float = 1.0
    public_subjects: int = 10
    steps: int = 16
    honest: int | None = None

    @property
    def gaussian(self) -> Event:
        """As the accountant takes it; with distributed noise, as if Skellam noise were normal, which it nearly is."""
        return Event(self.noise_multiplier, self.sampling_rate, self.steps)

    @property
    def event(self) -> Event:
        """As the accountant takes it."""
        return self.gaussian if self.honest is None else self.gaussian._replace(skellam=self.share.noise)

    @property
    def share(self) -> NoiseShare:
        """What each of h sites adds, for `audit_net`."""
        honest = self.honest or 1
        return NoiseShare.of(
            self.noise_multiplier,
            self.max_grad_norm,
            honest=honest,
            dimension=DIMENSION,
            sites=honest,
            subjects=CANARIES_A_RUN,
        )


@dataclass(frozen=True, eq=False)
class MadeUp:
    """A made-up head, cut to one patch: image float32 and labels uint8, both of `SIDE` cubed."""

    image: Image
    labels: Labels


class AuditNet(nn.Module):
    """The layers of the presets (`network.SegmentationNet`) at the smallest size: two levels of 8 channels."""

    def __init__(self, classes: int) -> None:
        """Lay out the layers, with torch's default weights."""
        super().__init__()
        norm = ("GROUP", {"num_groups": GROUPS})
        self.body = UNet(3, 1, HEAD_CHANNELS, (GROUPS, GROUPS), (2,), num_res_units=1, norm=norm)
        self.head = nn.Conv3d(HEAD_CHANNELS, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes, X, Y, Z] of images [N, 1, X, Y, Z]; sides are even."""
        logits: Tensor = self.head(self.body(image))
        return logits


class Recorder(torch.optim.SGD):
    """SGD that keeps what each step was given, all that ever leaves the engine, and leaves the weights as they are."""

    def __init__(self, model: nn.Module, seen: list[Tensor], units: float) -> None:
        """Add each step's gradient times `units` to `seen`."""
        super().__init__(model.parameters(), lr=0.0)
        self._seen, self._units = seen, units

    def step(self, closure: Any = None) -> Any:
        """Keep the gradient, then step."""
        parts = [p.grad for group in self.param_groups for p in group["params"]]
        self._seen.append(torch.cat([part.detach().flatten().double() for part in parts]) * self._units)
        return super().step(closure)


def audit_net() -> AuditNet:
    """A network of the same weights each time, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return AuditNet(FETA.classes).train()


def made_up(count: int) -> list[MadeUp]:
    """The same made-up heads each time, at 4 mm, cut to the middle and normalised as prepared scans are."""
    return [_head(number) for number in range(count)]


@lru_cache(maxsize=8)
def _head(number: int) -> MadeUp:
    image, labels, _ = make_subject(
        np.random.default_rng([_SEED, number]),
        weeks=24.0 + 2 * (number % 7),
        pathology=NEUROTYPICAL,
        style=style_of_site(number % 3),
        spacing_mm=SPACING_MM,
    )
    middle = tuple(slice((side - SIDE) // 2, (side - SIDE) // 2 + SIDE) for side in labels.shape)
    inside = image[image > _DARK * image.max()]
    normal = (np.clip(image, 0, np.percentile(inside, 99.5))[middle] - inside.mean()) / inside.std()
    return MadeUp(normal.astype(np.float32), np.ascontiguousarray(labels[middle]))


def segmenting(model: nn.Module, subject: MadeUp, factor: float = 1.0) -> Loss:
    """A made-up subject as studies train on it: the loss of two equal patches, times `factor`."""
    images = torch.from_numpy(np.stack([subject.image] * 2))[:, None]
    labels = torch.from_numpy(np.stack([subject.labels] * 2))
    return lambda: subject_loss(model(images), labels) * factor


def along(model: nn.Module, direction: Tensor) -> Loss:
    """A canary whose gradient is `direction` (float64, flat), wherever the weights are."""
    parameters = list(model.parameters())
    parts = torch.split(direction.float(), [p.numel() for p in parameters])
    pairs = [(p, part.view(p.shape)) for p, part in zip(parameters, parts, strict=True)]
    return lambda: torch.stack([(p * part).sum() for p, part in pairs]).sum()


def dirac(model: nn.Module, coordinate: int, length: float) -> Loss:
    """A canary whose gradient is `length` in one coordinate of the flat vector of all parameters."""
    for parameter in model.parameters():
        if coordinate < parameter.numel():
            return lambda: parameter.view(-1)[coordinate] * length
        coordinate -= parameter.numel()
    raise IndexError("the network has no such coordinate")


def replayed(seed: bytes) -> Entropy:
    """Entropy that repeats itself, so that two runs differ in nothing but a subject.

    A shorter request gets the first bytes of what a longer one would: the coins of the first n subjects stay.
    """
    calls = iter(range(2**62))

    def draw(count: int) -> bytes:
        return hashlib.shake_256(seed + next(calls).to_bytes(8, "big")).digest(count)

    return draw


def released(claim: Claim, frame: Frame, entropy: Entropy) -> NDArray[np.float64]:
    """What the engine releases in T steps: noised sums in units of C, [T, d].

    Args:
        claim: The constants that the engine is given.
        frame: The subjects.
        entropy: The engine's source of randomness.
    """
    model, seen = audit_net(), list[Tensor]()
    run_engine(claim, model, frame(model), entropy, seen)
    return torch.stack(seen).numpy() if seen else np.zeros((0, DIMENSION))


def run_engine(claim: Claim, model: nn.Module, subjects: Sequence[Loss], entropy: Entropy, seen: list[Tensor]) -> None:
    """The real engine, with the claim's constants, on one thread and at a learning rate of 0: weights stay.

    Args:
        claim: The constants.
        model: Any network; with distributed noise, `audit_net`.
        subjects: The sampling frame.
        entropy: The engine's source of randomness.
        seen: Gets the noised sum of each step in units of C, float64 [d].
    """
    with reproducible(1):
        if claim.honest is not None:
            seen.extend(_pooled(claim, model, subjects, entropy) for _ in range(claim.steps))
            return
        units = claim.sampling_rate * claim.public_subjects / claim.max_grad_norm
        dpsgd.private_steps(
            model,
            Recorder(model, seen, units),
            subjects,
            noise_multiplier=claim.noise_multiplier,
            max_grad_norm=claim.max_grad_norm,
            sampling_rate=claim.sampling_rate,
            public_subjects=claim.public_subjects,
            steps=claim.steps,
            entropy=entropy,
            on_step=lambda _: None,
            should_stop=lambda: False,
        )


def _pooled(claim: Claim, model: nn.Module, subjects: Sequence[Loss], entropy: Entropy) -> Tensor:
    total, share = torch.zeros(DIMENSION, dtype=torch.int64), claim.share
    for site in range(claim.honest or 1):
        sums = dpsgd.private_sum(
            model,
            subjects if site == 0 else [],
            share=share,
            sampling_rate=claim.sampling_rate,
            entropy=entropy,
            should_stop=lambda: False,
        )
        total += torch.cat([torch.from_numpy(sums[name]).flatten() for name, _ in model.named_parameters()])
    return total.double() / share.sensitivity


@dataclass(frozen=True, eq=False)
class Game:
    """What an attacker learned of canaries that took part or not.

    Args:
        scores: Log-odds that each took part, as an attacker reckons who knows the claim. [m]
        present: Whether it did. [m]
        draws: How often each that took part was drawn in each step, one array a run, [canaries, T].
    """

    scores: NDArray[np.float64]
    present: NDArray[np.bool_]
    draws: tuple[NDArray[np.int64], ...]

    @property
    def rates(self) -> Rates:
        """With the threshold that favours neither side: log-odds 0, fixed before anything is seen."""
        above = self.scores > 0
        return Rates(
            int(above[self.present].sum()),
            int(self.present.sum()),
            int(above[~self.present].sum()),
            int((~self.present).sum()),
        )


def play(claim: Claim, canaries: int, entropy: Entropy, on_run: Callable[[int, int], None]) -> Game:
    """Hide canaries in runs of the engine, each by its own fair coin, and look for them in what is released.

    Args:
        claim: The constants.
        canaries: How many in all; `CANARIES_A_RUN` in each run, beside `SUBJECTS_A_RUN` made-up subjects.
        entropy: Of the engine, the coins and the choice of coordinates.
        on_run: Called with (runs done, runs in all).
    """
    sizes = [len(part) for part in np.array_split(np.arange(canaries), math.ceil(canaries / CANARIES_A_RUN))]
    subjects = made_up(SUBJECTS_A_RUN)
    games = []
    for done, size in enumerate(sizes, 1):
        games.append(_one_run(claim, size, subjects, entropy))
        on_run(done, len(sizes))
    scores, present, draws = zip(*games, strict=True)
    return Game(np.concatenate(scores), np.concatenate(present), tuple(draws))


def _one_run(
    claim: Claim, canaries: int, subjects: Sequence[MadeUp], entropy: Entropy
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    model, seen = audit_net(), list[Tensor]()
    rng = np.random.default_rng(int.from_bytes(entropy(32), "big"))
    coordinates = rng.choice(DIMENSION, canaries, replace=False)
    present = rng.random(canaries) < 0.5
    draws = np.zeros((canaries, claim.steps), dtype=np.int64)

    def watched(number: int) -> Loss:
        loss = dirac(model, int(coordinates[number]), LOUD * claim.max_grad_norm)

        def counted() -> Tensor:
            draws[number, min(len(seen), claim.steps - 1)] += 1
            return loss()

        return counted

    frame = [segmenting(model, subject) for subject in subjects]
    frame += [watched(number) for number in np.flatnonzero(present).tolist()]
    run_engine(claim, model, frame, entropy, seen)
    return log_odds(torch.stack(seen).numpy()[:, coordinates], claim), present, draws[present]


def log_odds(seen: NDArray[np.float64], claim: Claim) -> NDArray[np.float64]:
    """Log-likelihood ratio of a canary's coordinate under the claim, the best score there is (Neyman and Pearson).

    Args:
        seen: Noised sums in units of C, [T, m].
        claim: Each step adds 1 with chance q, and normal noise of standard deviation sigma.

    Returns:
        [m]; above 0 where taking part is the likelier of the two.
    """
    q, sigma = claim.sampling_rate, claim.noise_multiplier
    drawn = math.log(q) + (2 * seen - 1) / (2 * sigma**2)
    each = np.logaddexp(math.log1p(-q), drawn) if q < 1 else drawn
    total: NDArray[np.float64] = each.sum(axis=0)
    return total
