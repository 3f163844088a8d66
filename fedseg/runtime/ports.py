"""What a site's part in a study is given: its trainer, its memory, its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.exchange import LedgerClaim, RingVector
from fedseg.federation.vector import Weights

Entropy = Callable[[int], bytes]
Arrays = Mapping[str, NDArray[np.float32]]


class Trainer(Protocol):
    """Local training: weights in, update out."""

    def update(
        self,
        weights: Arrays,
        round_number: int,
        *,
        entropy: Entropy,
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> Arrays:
        """Weights after minus weights before one round's steps; `Interrupted` where `should_stop` said so."""


@dataclass(frozen=True, order=True)
class Standing:
    """How far a site has gone: it only ever goes forward.

    Attributes:
        round: The newest round that it joined, 0 before the first.
        attempt: The newest attempt at it.
        unmasked: It has released shares in that attempt, so no other attempt at the round may use the same update.
    """

    round: int = 0
    attempt: int = 0
    unmasked: bool = False

    def allows(self, round_number: int, attempt: int) -> bool:
        """Whether an attempt may be joined: a later round, or a later attempt at one that was never unmasked."""
        if round_number == self.round:
            return attempt > self.attempt and not self.unmasked
        return round_number > self.round


class Memory(Protocol):
    """What a site keeps on its own disk between messages."""

    def weights(self) -> Weights | None:
        """The newest model it holds."""

    def save_weights(self, weights: Weights) -> None:
        """Keep the newest model."""

    def contribution(self, round_number: int, model: str) -> RingVector | None:
        """The encoded update of that round and model, where it was computed."""

    def save_contribution(self, round_number: int, model: str, vector: RingVector) -> None:
        """Keep it, fsynced, before it is masked for the first time."""

    def standing(self) -> Standing:
        """How far this site has gone in the protocol."""

    def save_standing(self, standing: Standing) -> None:
        """Keep it, fsynced, before the message that it speaks of leaves."""


class Charger(Protocol):
    """The site's privacy ledger, as one study uses it."""

    def charge(self, round_number: int, attempt: int, model: str) -> bool:
        """Charge a whole round before its first gradient.

        Returns:
            False where this attempt was charged before: its gradients may have been computed, so never again.

        Raises:
            BudgetError: if a budget would be exceeded.
            LedgerError: if the ledger cannot be trusted.
        """

    def commit(self, round_number: int, attempt: int) -> None:
        """Note that the round was trained to its end."""

    def claim(self) -> LedgerClaim:
        """What the study is told."""
