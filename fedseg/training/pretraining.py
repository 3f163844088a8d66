"""Training on images that are made up of label maps: nobody's privacy is at stake, so there is neither clip nor noise.

A step is a function of the seed and its number, and what is kept is an average that knows no last step: the weights
after N steps are the same bits however often training was stopped, and however long it was meant to last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedseg.errors import ModelError
from fedseg.imaging.generation import draw_recipe, generate
from fedseg.imaging.womb import draw_stack, generate_stack
from fedseg.labels import BRAIN_MASK
from fedseg.plan.study import StudyPlan
from fedseg.training.augmentation import Labels
from fedseg.training.compute import reproducible, training_cast
from fedseg.training.losses import subject_loss
from fedseg.training.network import Array, arrays, from_architecture, load_arrays
from fedseg.training.patches import MadeUp, SubjectVolumes

LEARNING_RATE = 3e-3
BRAINS_PER_STEP = 2
WARM_UP = 50
STACK_CHANCE = 0.8
"""Of an image for the brain mask task being a raw stack; else a reconstruction, with or without what is around."""

AVERAGED = 8.0
"""Of the polynomial average (Shamir and Zhang 2013): the last tenth of the steps makes most of it."""


class Pretrainer:
    """A network in training on made-up images.

    Attributes:
        step: Steps done.
    """

    def __init__(
        self,
        plan: StudyPlan,
        label_maps: Sequence[Labels],
        *,
        architecture: Mapping[str, Any],
        first: Mapping[str, Array],
        seed: int,
    ) -> None:
        """Start from `first`.

        Args:
            plan: Names task, network, spacing, patch, patches of a subject, precision and threads.
            label_maps: uint8 [X, Y, Z] each, at the plan's spacing, FeTA's tissues whatever the task.
            architecture: What rebuilds the network.
            first: Weights to start from.
            seed: Everything drawn is a function of it and the step.
        """
        self.step = 0
        self._plan, self._label_maps, self._seed = plan, tuple(label_maps), seed
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = from_architecture(architecture).to(self._device)
        load_arrays(self._model, first)
        self._average = arrays(self._model)
        self._optimiser = torch.optim.AdamW(self._model.parameters(), LEARNING_RATE, weight_decay=0.0)

    def run(self, go_on: Callable[[int], bool]) -> None:
        """Take steps for as long as `go_on`, given the number done, says so."""
        self._model.train()
        with reproducible(self._plan.training.threads):
            while go_on(self.step):
                self._take_step(np.random.default_rng([self._seed, self.step]))

    @property
    def weights(self) -> dict[str, Array]:
        """The averaged weights."""
        return {name: values.copy() for name, values in self._average.items()}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that going on needs, by name."""
        kept: dict[str, npt.NDArray[Any]] = {"step": np.array(self.step)}
        kept |= {f"average/{name}": values for name, values in self._average.items()}
        kept |= {f"weights/{name}": values for name, values in arrays(self._model).items()}
        for name, moments in self._moments().items():
            kept |= {f"{moment}/{name}": values.cpu().numpy() for moment, values in moments.items()}
        return kept

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from a `state`.

        Raises:
            ModelError: It is of another network.
        """
        try:
            average = {name: state[f"average/{name}"] for name in self._average}
            load_arrays(self._model, {name: state[f"weights/{name}"] for name in self._average})
            for name, parameter in self._model.named_parameters():
                moments = {key: torch.from_numpy(state[f"{key}/{name}"]) for key in ("exp_avg", "exp_avg_sq")}
                on_device = {key: values.to(self._device) for key, values in moments.items()}
                self._optimiser.state[parameter] = {"step": torch.tensor(float(state["step"])), **on_device}
        except KeyError as missing:
            raise ModelError(f"this is the state of another network: {missing} is not in it") from None
        self._average, self.step = average, int(state["step"])

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Adam's two moments of each parameter; zero before the first step."""
        states = {name: (p, self._optimiser.state.get(p, {})) for name, p in self._model.named_parameters()}
        return {
            name: {key: state.get(key, torch.zeros_like(p)) for key in ("exp_avg", "exp_avg_sq")}
            for name, (p, state) in states.items()
        }

    def _take_step(self, rng: np.random.Generator) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.step + 1) / WARM_UP)
        self._optimiser.zero_grad(set_to_none=True)
        for _ in range(BRAINS_PER_STEP):
            images, labels = self._batch(rng)
            with training_cast(self._model, images, self._plan.training.precision):
                logits = self._model(images)
            loss = subject_loss(logits, labels) / BRAINS_PER_STEP
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        if math.isfinite(float(norm)):
            self._optimiser.step()
        self.step += 1
        share = np.float32((AVERAGED + 1) / (self.step + AVERAGED))
        for name, values in arrays(self._model).items():
            self._average[name] += share * (values - self._average[name])

    def _batch(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """K patches of one made-up image, as `LocalTrainer` cuts those of one subject."""
        labels = self._label_maps[int(rng.integers(len(self._label_maps)))]
        brain = SubjectVolumes([made_up(labels, self._plan, rng)])
        patch = self._plan.image.patch
        draws = [brain.draw(rng, patch, augment="none") for _ in range(self._plan.training.patches_per_subject)]
        images, truths = zip(*(brain.cut(draw, patch) for draw in draws), strict=True)
        return (
            torch.from_numpy(np.stack(images))[:, None].to(self._device),
            torch.from_numpy(np.stack(truths)).to(self._device),
        )


def made_up(labels: Labels, plan: StudyPlan, rng: np.random.Generator) -> MadeUp:
    """One made-up image of a label map, with the classes of the plan's task: for masks mostly a raw stack."""
    if plan.task != BRAIN_MASK.name:
        return MadeUp(*generate(labels, plan.image.spacing_mm, draw_recipe(rng)))
    if rng.random() < STACK_CHANCE:
        return MadeUp(*generate_stack(labels, plan.image.spacing_mm, draw_stack(rng)))
    image, truth = generate(labels, plan.image.spacing_mm, draw_recipe(rng))
    return MadeUp(image, (truth > 0).astype(np.uint8))
