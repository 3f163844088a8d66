"""A site's rounds under its study's strategy: between its trainer, its disk and secure aggregation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg.errors import ProtocolError
from fedseg.federation.parts import Steps, Turn, part_of
from fedseg.federation.strategy import State, Strategy
from fedseg.federation.vector import Layout, Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime.ports import Arrays, Entropy, KeptMemory, OnStep, ShouldStop, Trainer
from fedseg.secagg.encoding import Encoded, Encoding


@dataclass(frozen=True)
class Trained:
    """A round that has been trained and is not yet sent.

    Attributes:
        turn: The round.
        whole: float32[P], what the steps made of all weights.
        update: float32[d], what of it is sent.
        steps: To train once more.
    """

    turn: Turn
    whole: Weights
    update: Weights
    steps: Steps


class LocalRounds:
    """What a site's rounds start from, make and keep.

    Args:
        manifest: The study.
        trainer: Local training.
        layout: Order of the network's arrays in the flat vector.
        memory: Where what stays at this site is kept.
    """

    def __init__(self, manifest: Manifest, trainer: Trainer, layout: Layout, memory: KeptMemory) -> None:
        self._manifest, self._trainer, self._layout, self._memory = manifest, trainer, layout, memory
        self._strategy = Strategy.of(manifest)
        self._part = part_of(manifest.plan, self._strategy)
        self._sent = layout.within(layout.names_in(manifest.trained))

    def turn(self, number: int, closed: int, state: State) -> Turn:
        """A round at this site.

        Args:
            number: Of the round.
            closed: The newest closed round: what was kept of a later one is of no sum.
            state: The study's.
        """
        return Turn(number, closed, state, self._memory.kept(closed))

    def start(self, turn: Turn) -> Arrays:
        """What the round trains from, and scores."""
        return self._layout.unflatten(self._part.start(turn))

    def train(self, turn: Turn, *, entropy: Entropy, on_step: OnStep, should_stop: ShouldStop) -> Trained:
        """Train one round.

        Raises:
            Interrupted: `should_stop` said so; nothing is kept.
            ProtocolError: The trainer's update is of another network, or what the strategy needs is missing here.
        """
        twice = self._manifest.plan.strategy.name == "ditto"
        done_before = 0

        def told(done: int, steps: int) -> None:
            on_step(done_before + done, 2 * steps if twice else steps)

        def steps(start: Weights, *, correction: Weights | None = None, towards: Weights | None = None) -> Weights:
            nonlocal done_before
            named = {"correction": correction, "towards": towards}
            more: dict[str, Any] = {
                name: self._layout.unflatten(value) for name, value in named.items() if value is not None
            }
            update = self._trainer.update(
                self._layout.unflatten(start),
                turn.number,
                entropy=entropy,
                on_step=told,
                should_stop=should_stop,
                **more,
            )
            done_before += self._manifest.plan.training.steps
            return self._flat(update)

        whole = steps(self._part.start(turn), correction=self._part.correction(turn))
        return Trained(turn, whole, self._strategy.chosen(whole), steps)

    def keep(self, trained: Trained, sent: Weights) -> None:
        """Write down what stays at this site of a round, before its update is.

        Args:
            trained: The round.
            sent: float32[d], what the sum will hold of its update (`as_sent`).

        Raises:
            Interrupted: The strategy trains once more, and was stopped.
        """
        kept = self._part.keep(trained.turn, trained.whole, sent, trained.steps)
        if kept is not None:
            self._memory.save_kept(trained.turn.number, trained.turn.closed, kept)

    def personal(self, released: Weights, closed: int) -> Weights | None:
        """float32[P]: this site's own model after `closed` rounds; None where its strategy, or this site, has none."""
        return self._part.personal(released, self._memory.kept(closed))

    def finish(self, closed: int) -> None:
        """Forget what only training needed, once the study is complete and its models are written.

        Args:
            closed: The newest closed round, from which an extension would go on.
        """
        self._memory.finish(closed if self._part.outlives else None)

    def _flat(self, update: Mapping[str, Any]) -> Weights:
        """float32[P], 0 where nothing trains."""
        if missing := {name for name, _ in self._sent.entries} - update.keys():
            raise ProtocolError(f"the trainer's update lacks {len(missing)} of the layers that the plan trains")
        still = {name: np.zeros(shape, dtype=np.float32) for name, shape in self._layout.entries if name not in update}
        return self._layout.flatten({**still, **update})


def as_sent(code: Encoding, encoded: Encoded, weight: int) -> Weights:
    """float32[d]: the update as a sum holds it, clipped and rounded.

    Args:
        code: The study's.
        encoded: The update's.
        weight: Of this site.
    """
    whole_steps = encoded.vector[: code.dimension].view(np.int32).astype(np.float64)
    return (whole_steps / (code.scale * weight)).astype(np.float32)
