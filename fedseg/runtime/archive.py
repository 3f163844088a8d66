"""What a coordinator keeps of a study: rounds, claims, the newest model and the newest sum."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.vector import Weights
from fedseg.store.study_db import ClaimRow, RoundRow

RingVector = NDArray[np.uint32]


class Archive(Protocol):
    """Where a coordinator keeps a study. A closed round is kept before any site hears of it."""

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's latest ledger claim."""

    def save_finished(self, site: str) -> None:
        """Note that a site holds the final model."""

    def finished(self) -> set[str]:
        """Sites that hold the final model."""

    def save_end(self, why: str) -> None:
        """Note that the study ended before its last round."""

    def ended(self) -> str | None:
        """Why the study ended before its last round, if it did."""

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        """Keep the model that a round made and the sum that it was made from; 0 and None for the initial model."""

    def load_model(self, closed_round: int) -> Weights:
        """The model that a round made."""

    def load_total(self, closed_round: int) -> RingVector:
        """The sum of a round."""

    def save_best(self, weights: Weights, model: str) -> None:
        """Keep the best model so far, of that hash, in place of the one before."""

    def load_best(self, model: str) -> Weights:
        """The best model so far, which has that hash."""


class MemoryArchive:
    """An archive without a disk, for simulation."""

    def __init__(self) -> None:
        self._rounds: dict[tuple[int, int], RoundRow] = {}
        self._models: dict[int, Weights] = {}
        self._totals: dict[int, RingVector] = {}
        self._finished: set[str] = set()
        self._ended: str | None = None
        self._best: dict[str, Weights] = {}
        self.claims: dict[str, ClaimRow] = {}

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        return [self._rounds[key] for key in sorted(self._rounds)]

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""
        self._rounds[row.round, row.attempt] = row

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's latest ledger claim."""
        self.claims[claim.site] = claim

    def save_finished(self, site: str) -> None:
        """Note that a site holds the final model."""
        self._finished.add(site)

    def finished(self) -> set[str]:
        """Sites that hold the final model."""
        return set(self._finished)

    def save_end(self, why: str) -> None:
        """Note that the study ended before its last round."""
        self._ended = why

    def ended(self) -> str | None:
        """Why the study ended before its last round, if it did."""
        return self._ended

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        """Keep the newest model and sum; older ones are dropped."""
        self._models = {closed_round: weights}
        self._totals = {} if total is None else {closed_round: total}

    def load_model(self, closed_round: int) -> Weights:
        """The model that a round made."""
        return self._models[closed_round]

    def load_total(self, closed_round: int) -> RingVector:
        """The sum of a round."""
        return self._totals[closed_round]

    def save_best(self, weights: Weights, model: str) -> None:
        """Keep the best model so far."""
        self._best = {model: weights}

    def load_best(self, model: str) -> Weights:
        """The best model so far."""
        return self._best[model]
