"""What a coordinator keeps of a study: rounds, claims, the newest model and the newest sum."""

from __future__ import annotations

from typing import Protocol

from fedseg.federation.exchange import RingVector
from fedseg.federation.vector import Weights
from fedseg.store.study_db import ClaimRow, RoundRow


class Archive(Protocol):
    """Where a coordinator keeps a study. A closed round is kept before any site hears of it."""

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's countersigned claim, before the site hears of it."""

    def newest_claim(self, site: str) -> ClaimRow | None:
        """The newest claim of a site, by its name."""

    def save_finished(self, site: str, plan: str) -> None:
        """Note that a site holds the final model of a version of the plan, by its hash."""

    def finished(self, plan: str) -> set[str]:
        """Sites that hold the final model of a version of the plan."""

    def save_end(self, plan: str, why: str) -> None:
        """Note that a version of the plan ended before its last round."""

    def ended(self, plan: str) -> str | None:
        """Why a version of the plan ended before its last round, if it did."""

    def earlier_manifest(self, plan: str) -> bytes | None:
        """The manifest of an earlier version of the plan, canonical JSON, by its hash."""

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
        self._finished: set[tuple[str, str]] = set()
        self._ended: dict[str, str] = {}
        self._best: dict[str, Weights] = {}
        self.claims: dict[str, ClaimRow] = {}

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        return [self._rounds[key] for key in sorted(self._rounds)]

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""
        self._rounds[row.round, row.attempt] = row

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's newest claim."""
        self.claims[claim.site] = claim

    def newest_claim(self, site: str) -> ClaimRow | None:
        """The newest claim of a site."""
        return self.claims.get(site)

    def save_finished(self, site: str, plan: str) -> None:
        """Note that a site holds the final model."""
        self._finished.add((site, plan))

    def finished(self, plan: str) -> set[str]:
        """Sites that hold the final model."""
        return {site for site, version in self._finished if version == plan}

    def save_end(self, plan: str, why: str) -> None:
        """Note that a version of the plan ended before its last round."""
        self._ended[plan] = why

    def ended(self, plan: str) -> str | None:
        """Why it ended before its last round, if it did."""
        return self._ended.get(plan)

    def earlier_manifest(self, plan: str) -> bytes | None:
        """None: a study in memory has one plan."""
        return None

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
