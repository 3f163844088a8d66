"""Local training at one site: weights in, update out.

The trainer satisfies the runtime's protocol: it knows nothing of networks, files or rounds but the round's number.
Where privacy is on, its steps are those of `dpsgd` (one subject a backward pass, noise from the operating system);
where it is off, every random choice is a function of the plan's seed, the round and the site's name, so the same
number of threads on the same machine gives the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedseg.errors import DataError, Interrupted, PlanError
from fedseg.federation.schedule import learning_rate
from fedseg.plan.study import StudyPlan
from fedseg.training.augmentation import Image, Labels
from fedseg.training.compute import reproducible, training_cast
from fedseg.training.correction import Correction
from fedseg.training.losses import subject_loss
from fedseg.training.network import (
    Array,
    choose_layers,
    from_architecture,
    load_arrays,
    trained_arrays,
)
from fedseg.training.patches import SubjectVolumes

if TYPE_CHECKING:
    from fedseg.imaging.transforms import Prepared
    from fedseg.privacy.distributed import NoiseShare

MAX_PLAIN_GRAD_NORM = 12.0


class LocalTrainer:
    """One site's training: its subjects, its network, and `update` once a round (`gradient_sum` where noise is shared).

    Attributes:
        subjects: The sampling frame: ids of all training subjects, sorted. They never leave the site.
        plan: What all parties agreed on.
        model: The network; its weights are those that were given last, and what was learned since.
    """

    def __init__(
        self,
        plan: StudyPlan,
        site: str,
        subjects: Mapping[str, Sequence[Prepared]],
        *,
        architecture: Mapping[str, Any],
        noise_multiplier: float | None = None,
        validation: Mapping[str, Sequence[Prepared]] | None = None,
    ) -> None:
        """Build the network and index every subject's tissues.

        Args:
            plan: What all parties agreed on.
            site: This site's name in the plan.
            subjects: Prepared volumes of each training subject, at the plan's spacing.
            architecture: What rebuilds the network, as the manifest and the model file say it.
            noise_multiplier: Calibrated sigma; needed where privacy is on.
            validation: Prepared volumes of the subjects that `score` looks at; none of them is trained on.

        Raises:
            DataError: No subject, or a subject without a usable volume, or a label that the network has no class for.
            PlanError: The site is not in the plan, or a private plan comes without its noise.
        """
        if site not in plan.sites:
            raise PlanError(f"site {site!r} is not in the plan", hint=f"known: {', '.join(plan.site_names)}")
        if plan.private and noise_multiplier is None:
            raise PlanError("a private plan needs its calibrated noise multiplier", hint="train from the manifest")
        if not subjects:
            raise DataError("there is no subject to train on", hint="check the split column of participants.tsv")
        self.subjects = tuple(sorted(subjects))
        self.plan, self._site, self._noise_multiplier = plan, site, noise_multiplier
        self._volumes = tuple(SubjectVolumes(subjects[subject]) for subject in self.subjects)
        self._validation = {name: [_labelled(each) for each in volumes] for name, volumes in (validation or {}).items()}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = from_architecture(architecture).to(self._device)
        choose_layers(self.model, plan.training.layers)
        self._refuse_unknown_labels()

    def update(
        self,
        weights: Mapping[str, npt.NDArray[np.float32]],
        round_number: int,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        correction: Mapping[str, npt.NDArray[np.float32]] | None = None,
        towards: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> dict[str, Array]:
        """Train for one round's steps.

        Args:
            weights: What the steps start from, by parameter name.
            round_number: From 1; with the seed and the site it determines a round where privacy is off.
            entropy: Bytes from the operating system; privacy's noise, sampling and patches come from it.
            on_step: Called with (steps done, steps in all).
            should_stop: Asked between steps.
            correction: Added to every step's gradient, by parameter name (`training.correction`).
            towards: What the plan's proximal term pulls to, where it is another model than `weights`.

        Returns:
            Weights after minus weights before of the layers that train, float32, by parameter name.

        Raises:
            Interrupted: `should_stop` said so; nothing is returned and the trainer can be used again.
            ModelError: `weights` don't fit the network.
            PlanError: The plan is distributed: its noise protects a pooled sum, and no site's update.
        """
        if self.plan.distributed:
            raise PlanError("a plan of distributed noise has no updates of single sites, only gradient sums")
        load_arrays(self.model, weights)
        self.model.train()
        steps = self.plan.training.steps
        done = partial(_report, on_step, steps)
        optimiser = make_optimiser(self.model, self.plan, learning_rate(self.plan, round_number))
        Correction.of(self.plan, weights, correction, towards).attach(optimiser, self.model)
        with reproducible(self.plan.training.threads):
            if self.plan.private:
                self._private_steps(optimiser, entropy, done, should_stop)
            else:
                self._plain_steps(optimiser, round_number, done, should_stop)
        after = trained_arrays(self.model)
        return {name: value - weights[name].astype(np.float32, copy=False) for name, value in after.items()}

    def gradient_sum(
        self,
        weights: Mapping[str, npt.NDArray[np.float32]],
        share: NoiseShare,
        *,
        entropy: Callable[[int], bytes],
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> dict[str, npt.NDArray[np.int64]]:
        """This site's part of one pooled private step (`dpsgd.private_sum`).

        Args:
            weights: The global model, by parameter name.
            share: How gradients are scaled, and this site's share of the noise.
            entropy: Bytes from the operating system; sampling, patches and noise come from it.
            on_step: Called with (1, 1) at the end.
            should_stop: Asked before each subject.

        Returns:
            The clipped, scaled, truncated and noised sum over the subjects drawn, of the layers that train.

        Raises:
            Interrupted: `should_stop` said so; nothing is returned and the trainer can be used again.
            ModelError: `weights` don't fit the network.
            PlanError: The plan is not distributed, or the share doesn't fit it.
        """
        from fedseg.training.dpsgd import private_sum  # noqa: PLC0415  # opacus takes a second, and RAM, to import

        plan = self.plan
        if not plan.distributed:
            raise PlanError("only a plan of distributed noise has gradient sums")
        load_arrays(self.model, weights)
        with reproducible(plan.training.threads):
            total = private_sum(
                self.model.train(),
                self._private_losses(entropy),
                share=share,
                sampling_rate=plan.privacy.sampling_rate,
                entropy=entropy,
                should_stop=should_stop,
            )
        on_step(1, 1)
        return total

    def score(self, weights: Mapping[str, npt.NDArray[np.float32]], *, should_stop: Callable[[], bool]) -> float | None:
        """Mean Dice of the tissues of `weights` over this site's validation subjects (`validation.mean_dice`), 0 to 1.

        It draws nothing at random, so updates are the same bits with it or without. Not while `update` runs: they share
        the network.

        Args:
            weights: The global model, by parameter name.
            should_stop: Asked between scans.

        Returns:
            None where the site has no validation subject.

        Raises:
            Interrupted: `should_stop` said so; the trainer can be used again.
            ModelError: `weights` don't fit the network.
        """
        from fedseg.training.validation import mean_dice  # noqa: PLC0415  # it needs `autocast` from here

        training = self.plan.training
        load_arrays(self.model, weights)
        with reproducible(training.threads):
            return mean_dice(
                self.model.eval(),
                self._validation,
                self.plan.image.patch,
                precision=training.precision,
                should_stop=should_stop,
            )

    def _plain_steps(
        self,
        optimiser: torch.optim.Optimizer,
        round_number: int,
        done: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        training = self.plan.training
        rng = np.random.default_rng(round_seed(self.plan.seed, round_number, self._site))
        drawn = _shuffled(rng, len(self._volumes))
        count = min(training.subjects_per_step, len(self._volumes))
        for step in range(training.steps):
            if should_stop():
                raise Interrupted("training was stopped between two steps", hint="join again to go on")
            self.plain_step([next(drawn) for _ in range(count)], rng, optimiser)
            done(step + 1)

    def plain_step(self, chosen: Sequence[int], rng: np.random.Generator, optimiser: torch.optim.Optimizer) -> None:
        """One step without privacy; none where the gradient is not finite.

        Args:
            chosen: The step's subjects, as indices into `subjects`.
            rng: Of the patches.
            optimiser: Of the model's parameters.
        """
        images, labels = zip(*(self._batch(subject, rng) for subject in chosen), strict=True)
        logits = self._logits(torch.cat(images))
        losses = [subject_loss(*pair) for pair in zip(logits.chunk(len(chosen)), labels, strict=True)]
        optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), MAX_PLAIN_GRAD_NORM)
        if math.isfinite(float(norm)):
            optimiser.step()

    def _private_steps(
        self,
        optimiser: torch.optim.Optimizer,
        entropy: Callable[[int], bytes],
        done: Callable[[int], None],
        should_stop: Callable[[], bool],
    ) -> None:
        from fedseg.training.dpsgd import private_steps  # noqa: PLC0415  # opacus takes a second, and RAM, to import

        plan, sigma = self.plan, self._noise_multiplier
        if sigma is None:
            raise PlanError("a private plan needs its calibrated noise multiplier")
        private_steps(
            self.model,
            optimiser,
            self._private_losses(entropy),
            noise_multiplier=sigma,
            max_grad_norm=plan.privacy.max_grad_norm,
            sampling_rate=plan.privacy.sampling_rate,
            public_subjects=plan.sites[self._site].public_subjects,
            steps=plan.training.steps,
            entropy=entropy,
            on_step=done,
            should_stop=should_stop,
        )

    def _private_losses(self, entropy: Callable[[int], bytes]) -> list[Callable[[], torch.Tensor]]:
        """One callable a subject: it reads the volumes of that subject, and no loss ever sees two."""
        rng = np.random.default_rng(int.from_bytes(entropy(16), "big"))
        return [partial(self._private_loss, index, rng) for index in range(len(self._volumes))]

    def _private_loss(self, subject: int, rng: np.random.Generator) -> torch.Tensor:
        images, labels = self._batch(subject, rng)
        return subject_loss(self._logits(images), labels)

    def _batch(self, subject: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """K patches of one subject: images float32 [K, 1, X, Y, Z] and labels uint8 [K, X, Y, Z]."""
        volumes, patch, training = self._volumes[subject], self.plan.image.patch, self.plan.training
        augment: str = training.augment
        if training.made_up and rng.random() < training.made_up:
            volumes, augment = volumes.made_up(rng, self.plan.image.spacing_mm), "none"
        draws = [volumes.draw(rng, patch, augment=augment) for _ in range(training.patches_per_subject)]
        images, labels = zip(*(volumes.cut(draw, patch) for draw in draws), strict=True)
        return (
            torch.from_numpy(np.stack(images))[:, None].to(self._device),
            torch.from_numpy(np.stack(labels)).to(self._device),
        )

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with training_cast(self.model, images, self.plan.training.precision):
            logits: torch.Tensor = self.model(images)
        return logits

    def _refuse_unknown_labels(self) -> None:
        truths = [labels for volumes in self._validation.values() for _, labels in volumes]
        highest = {
            "training": max(subject.highest_label for subject in self._volumes),
            "validation": max((int(labels.max()) for labels in truths), default=0),
        }
        for kind, label in highest.items():
            if label >= self.model.classes:
                last = self.model.classes - 1
                raise DataError(f"a {kind} label {label}, where the network has classes 0 to {last}")


def make_optimiser(model: nn.Module, plan: StudyPlan, rate: float) -> torch.optim.Optimizer:
    """The plan's optimiser with a fresh state: AdamW (decoupled decay), or SGD with momentum."""
    training, parameters = plan.training, [p for p in model.parameters() if p.requires_grad]
    if training.optimiser == "adam":
        return torch.optim.AdamW(parameters, rate, betas=(training.momentum, 0.999), weight_decay=training.weight_decay)
    nesterov = training.momentum > 0
    return torch.optim.SGD(
        parameters, rate, momentum=training.momentum, nesterov=nesterov, weight_decay=training.weight_decay
    )


def round_seed(seed: int, round_number: int, site: str) -> int:
    """128 bits that differ by study seed, round and site; only for training without privacy."""
    text = f"fedseg local training|{seed}|{round_number}|{site}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _labelled(volume: Prepared) -> tuple[Image, Labels]:
    if volume.labels is None:
        raise DataError("a validation volume has no labels")
    return volume.image, volume.labels


def _shuffled(rng: np.random.Generator, count: int) -> Iterator[int]:
    """Endless shuffles of 0..count-1: every subject is drawn equally often, to within one."""
    while True:
        yield from (int(i) for i in rng.permutation(count))


def _report(on_step: Callable[[int, int], None], steps: int, done: int) -> None:
    on_step(done, steps)
