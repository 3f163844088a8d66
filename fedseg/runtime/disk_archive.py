"""A study's rounds, models and sums on the coordinator's disk."""

from __future__ import annotations

from pathlib import Path

from fedseg.federation.exchange import RingVector
from fedseg.federation.vector import Weights
from fedseg.runtime.versions import earlier_versions
from fedseg.store.study_db import ClaimRow, RoundRow, StudyDb
from fedseg.store.vectors import load_model_vector, load_ring_vector, save_vector

KEPT = 2


class DiskArchive:
    """`runtime.archive.Archive` in a study's folder: first and best model, newest model and sum and those before.

    Args:
        root: The study's folder.
        db: Its book.
    """

    def __init__(self, root: Path, db: StudyDb) -> None:
        self._root, self._rounds, self._db = root, root / "rounds", db

    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        return self._db.rounds()

    def save_round(self, row: RoundRow) -> None:
        """Write or rewrite one attempt."""
        self._db.save_round(row)

    def save_claim(self, claim: ClaimRow) -> None:
        """Keep a site's countersigned claim."""
        self._db.save_claim(claim)

    def newest_claim(self, site: str) -> ClaimRow | None:
        """The newest claim of a site."""
        return self._db.claims().get(site)

    def save_finished(self, site: str, plan: str) -> None:
        """Note that a site holds the final model of a version of the plan."""
        self._db.save_finished(site, plan)

    def finished(self, plan: str) -> set[str]:
        """Sites that hold the final model of a version of the plan."""
        return self._db.finished(plan)

    def save_end(self, plan: str, why: str) -> None:
        """Note that a version of the plan ended before its last round."""
        self._db.save_end(plan, why)

    def ended(self, plan: str) -> str | None:
        """Why a version of the plan ended before its last round, if it did."""
        return self._db.ended(plan)

    def earlier_manifest(self, plan: str) -> bytes | None:
        """The manifest of an earlier version of the plan."""
        found = [each.to_json() for each in earlier_versions(self._root) if each.plan_hash == plan]
        return found[0] if found else None

    def save_model(self, closed_round: int, weights: Weights, total: RingVector | None) -> None:
        """Keep a round's model and sum, fsynced; then drop what is older, but for the first model.

        The newest round that is written down as closed keeps its own, however often a later one fails to be.
        """
        if total is not None:
            save_vector(self._path("sum", closed_round), total)
        save_vector(self._path("model", closed_round), weights)
        closed = [row.round for row in self._db.rounds() if row.state == "closed" and not row.evaluation][-1:]
        for kind in ("model", "sum"):
            kept = {self._path(kind, number) for number in (0, *closed)}
            # The names sort by round; void rounds leave gaps, so the newest two are counted, not computed.
            for path in sorted(self._rounds.glob(f"{kind}-*.npy"))[:-KEPT]:
                if path not in kept:
                    path.unlink()

    def load_model(self, closed_round: int) -> Weights:
        """The model that a round made."""
        return load_model_vector(self._path("model", closed_round))

    def load_total(self, closed_round: int) -> RingVector:
        """The sum of a round."""
        return load_ring_vector(self._path("sum", closed_round))

    def save_best(self, weights: Weights, model: str) -> None:
        """Keep the best model, of that hash, fsynced, and the one before: its round may yet fail to be written down."""
        save_vector(self._best(model), weights)
        for path in sorted(self._rounds.glob("best-*.npy"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            path.unlink()

    def load_best(self, model: str) -> Weights:
        """The best model, or the one before, by its hash."""
        return load_model_vector(self._best(model))

    def _best(self, model: str) -> Path:
        return self._rounds / f"best-{model[:16]}.npy"

    def _path(self, kind: str, closed_round: int) -> Path:
        return self._rounds / f"{kind}-{closed_round:05d}.npy"
