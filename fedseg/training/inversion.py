"""Gradient inversion shown on a made-up subject: what one step's gradient gives away, and what privacy leaves of it.

Geiping et al. 2020 (2003.14053) look for the image whose gradient has the direction of the one that was sent (cosine
similarity, total variation as the prior, Adam); Ziller et al. 2021 (2107.02586) did so for the segmentation of scans.
Here the attacker is given the best chances: an untrained two-layer network, one patch, one step, the labels known. It
is a demonstration, no bound: a failed attack proves nothing, which is what the accountant is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedseg.labels import FETA
from fedseg.training.canaries import Claim, Entropy, MadeUp, made_up, run_engine
from fedseg.training.compute import reproducible
from fedseg.training.losses import subject_loss

ITERATIONS = 400

_WIDTH = 64
_SMOOTHNESS = 0.002
_RATE = 0.1
_ALMOST_NONE = 1e-9
_TIGHT = 0.1


@dataclass(frozen=True, eq=False)
class Attempt:
    """One reconstruction.

    Attributes:
        name: Which gradient the attacker had.
        image: float32 [X, Y, Z].
        correlation: Pearson's with the original, inside the head only: its outline follows from the labels already.
        psnr_db: Peak signal-to-noise ratio there, the original's range as the peak.
    """

    name: str
    image: NDArray[np.float32]
    correlation: float
    psnr_db: float


@dataclass(frozen=True, eq=False)
class Inversion:
    """The demonstration: a made-up patch and what was reconstructed of it.

    Attributes:
        original: float32 [X, Y, Z].
        attempts: Without privacy, with the clip only, with clip and noise.
        labels_alone: Correlation of the labels, each painted in its true mean, with the original: what an attacker
            could have who knew no gradient.
        noise_multiplier: sigma of the last attempt.
    """

    original: NDArray[np.float32]
    attempts: tuple[Attempt, ...]
    labels_alone: float
    noise_multiplier: float


def demonstrate(
    noise_multiplier: float,
    entropy: Entropy,
    on_step: Callable[[int, int], None] = lambda _done, _of: None,
    *,
    iterations: int = ITERATIONS,
) -> Inversion:
    """Attack one gradient of a made-up subject three times; clip and noise are those of the real engine.

    Args:
        noise_multiplier: sigma of the private gradient.
        entropy: Of the engine's noise.
        on_step: Called with (iterations done, iterations in all).
        iterations: Of each attack.
    """
    subject = made_up(1)[0]
    private = Claim(noise_multiplier, sampling_rate=1.0, max_grad_norm=_TIGHT, public_subjects=1, steps=1)
    with reproducible(1):
        gradients = {
            "without privacy": _gradient(subject),
            "clipped only": _sent(subject, replace(private, noise_multiplier=_ALMOST_NONE), entropy),
            "clipped and noised": _sent(subject, private, entropy),
        }
        attempts = []
        for number, (name, gradient) in enumerate(gradients.items()):
            told = partial(_tell, on_step, number * iterations, len(gradients) * iterations)
            image = _invert(gradient, subject, iterations, told)
            attempts.append(Attempt(name, image, *_likeness(image, subject)))
    painted = np.zeros_like(subject.image)
    for tissue in np.unique(subject.labels):
        painted[subject.labels == tissue] = subject.image[subject.labels == tissue].mean()
    return Inversion(subject.image, tuple(attempts), _likeness(painted, subject)[0], noise_multiplier)


def victim() -> nn.Sequential:
    """An untrained network that sees 8 cubed voxels at a time and gives logits of every class; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv3d(1, _WIDTH, 8, stride=4, padding=2),
            nn.Tanh(),
            nn.ConvTranspose3d(_WIDTH, FETA.classes, 4, stride=4),
        )


def _tell(on_step: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    on_step(before + done, total)


def _gradient(subject: MadeUp) -> Tensor:
    model, (image, labels) = victim(), _batch(subject)
    return torch.cat([part.flatten() for part in _derive(model, image, labels, further=False)])


def _sent(subject: MadeUp, claim: Claim, entropy: Entropy) -> Tensor:
    """What the real engine gives the optimiser for this subject alone."""
    model, (image, labels) = victim(), _batch(subject)
    seen: list[Tensor] = []
    run_engine(claim, model.train(), [lambda: subject_loss(model(image), labels)], entropy, seen)
    return seen[0].float()


def _invert(gradient: Tensor, subject: MadeUp, iterations: int, on_step: Callable[[int], None]) -> NDArray[np.float32]:
    """The image whose gradient has the direction of `gradient`, as far as so many steps of Adam find it."""
    model, (image, labels) = victim(), _batch(subject)
    guess = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for done in range(iterations):
        optimizer.zero_grad()
        own = torch.cat([part.flatten() for part in _derive(model, guess, labels, further=True)])
        loss = 1 - torch.cosine_similarity(own, gradient, dim=0) + _SMOOTHNESS * _variation(guess)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        schedule.step()
        on_step(done + 1)
    return np.asarray(guess.detach()[0, 0].numpy(), dtype=np.float32)


def _derive(model: nn.Module, image: Tensor, labels: Tensor, *, further: bool) -> Sequence[Tensor]:
    loss = subject_loss(model(image), labels)
    return torch.autograd.grad(loss, list(model.parameters()), create_graph=further)


def _variation(image: Tensor) -> Tensor:
    return torch.stack([image.diff(dim=axis).abs().mean() for axis in (2, 3, 4)]).sum()


def _batch(subject: MadeUp) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(subject.image)[None, None], torch.from_numpy(subject.labels)[None]


def _likeness(image: NDArray[np.float32], subject: MadeUp) -> tuple[float, float]:
    """Correlation and PSNR in dB, inside the head."""
    inside = subject.labels > 0
    guess, truth = image[inside].astype(np.float64), subject.image[inside].astype(np.float64)
    error = max(float(np.mean((guess - truth) ** 2)), 1e-12)
    return float(np.corrcoef(guess, truth)[0, 1]), float(10 * np.log10(float(np.ptp(truth)) ** 2 / error))
