"""Federated evaluations as a coordinator's book of rounds has them: which are due, which are published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg.errors import UsageError
from fedseg.federation.evaluation import MOST_EVALUATIONS, Aggregate, aggregate_of
from fedseg.federation.exchange import CLOSE, SERVER, Published
from fedseg.labels import scheme
from fedseg.plan.manifest import Manifest
from fedseg.runtime.attempt import ATTEMPTS
from fedseg.runtime.session import evaluation_code
from fedseg.secagg.signing import verify
from fedseg.store.study_db import RoundRow


def is_due(manifest: Manifest, book: Sequence[RoundRow], model: str, forgiven: int) -> bool:
    """Whether a study whose rounds are over has its model yet to evaluate.

    An evaluation that failed in all its attempts, or once shares were asked for, is not tried again by itself: a study
    is complete without one.

    Args:
        manifest: The study.
        book: All attempts at all rounds, in order.
        model: The hash of the newest state.
        forgiven: How many attempts, from the first on, do not count as failed: another evaluation was asked for.
    """
    if not manifest.plan.evaluation.federated or begun(book) >= MOST_EVALUATIONS:
        return False
    own = [(number, row) for number, row in enumerate(book) if row.evaluation and row.model_hash == model]
    if any(row.state == "closed" for _, row in own):
        return False
    tried = [row for number, row in own if number >= forgiven]
    return not tried or (tried[-1].state == "abandoned" and tried[-1].attempt < ATTEMPTS)


def begun(book: Sequence[RoundRow]) -> int:
    """How many evaluations any site has given its scores to."""
    return len({row.round for row in book if row.evaluation and (row.bytes_received or row.state == "void")})


def refuse_demand(manifest: Manifest, book: Sequence[RoundRow], folder: str) -> None:
    """Refuse to open an evaluation on demand where there can be none.

    Raises:
        UsageError: The plan has none, the newest model is evaluated already, or there were too many.
    """
    if not manifest.plan.evaluation.federated:
        raise _without(manifest, folder)
    newest = [row.next_model for row in book if row.state == "closed"][-1:]
    done = [row.model_hash for row in book if row.state == "closed" and row.evaluation]
    if newest and newest[0] in done:
        raise UsageError(
            "the study's newest model is evaluated already: a second evaluation of it would say the same, or by what "
            "it differs tell of one site",
            where=folder,
            hint=f"to see it: fedseg evaluate --federated {folder}",
        )
    if begun(book) >= MOST_EVALUATIONS:
        raise UsageError(
            f"sites take part in {MOST_EVALUATIONS} evaluations of one study, and so many have begun", where=folder
        )


def _without(manifest: Manifest, folder: str) -> UsageError:
    if manifest.plan.private:
        return UsageError(
            "this study is private: no scores leave its sites",
            where=folder,
            hint="each site can score the model on its own subjects: fedseg evaluate MODEL --data BIDS_DIR --out DIR",
        )
    return UsageError(
        "this study's plan has no federated evaluation (evaluation.federated)",
        where=folder,
        hint=f"extend the study by one, to which every site must agree: fedseg study extend {folder} --rounds 0 "
        "--evaluate",
    )


@dataclass(frozen=True)
class Evaluation:
    """One published evaluation.

    Attributes:
        round: Its number, in one row with those that trained.
        trained: How many rounds had been closed before: of which model it is.
        model_hash: The weights that were scored: those of the model file.
        contributors: Whose subjects are in it.
        lost: Site to the phase and reason it was lost with.
        ended_at: Seconds since 1970.
        aggregate: What the sum says.
    """

    round: int
    trained: int
    model_hash: str
    contributors: tuple[str, ...]
    lost: dict[str, str]
    ended_at: float
    aggregate: Aggregate

    def to_json(self, tissues: Sequence[str]) -> dict[str, Any]:
        """For `fedseg evaluate --federated --json`."""
        return {
            "round": self.round,
            "rounds_trained": self.trained,
            "model_hash": self.model_hash,
            "contributors": list(self.contributors),
            "sites": len(self.contributors),
            "ended_at": self.ended_at,
            **self.aggregate.to_json(tissues),
        }


def evaluations_of(manifest: Manifest, book: Sequence[RoundRow], server_key: bytes) -> list[Evaluation]:
    """All published evaluations of a study, oldest first.

    Args:
        manifest: Of the version in force: sites and tissues are those of all versions.
        book: All attempts at all rounds, in order.
        server_key: The server's public Ed25519 key, with which each is signed.

    Raises:
        ProtocolError: One was changed after it was signed.
    """
    closed, code = [row for row in book if row.state == "closed"], evaluation_code(manifest)
    found = []
    for row in (row for row in closed if row.evaluation):
        published = published_of(row)
        verify(server_key, CLOSE, published.session, SERVER, published.statement, published.signature)
        trained = sum(not each.evaluation and each.round < row.round for each in closed)
        aggregate = aggregate_of(code, published.total, len(row.contributors))
        ended, scored = row.ended_at or 0.0, row.released or ""
        found.append(Evaluation(row.round, trained, scored, row.contributors, row.lost, ended, aggregate))
    return found


def newest_of(manifest: Manifest, book: Sequence[RoundRow], server_key: bytes) -> Evaluation | None:
    """The newest evaluation of a study's newest model, to which a rollback may have led back; None where it has none.

    Arguments and errors as `evaluations_of`.
    """
    closed = [row for row in book if row.state == "closed"]
    rounds = {row.round for row in closed if row.evaluation and row.model_hash == closed[-1].next_model}
    found = [each for each in evaluations_of(manifest, book, server_key) if each.round in rounds]
    return found[-1] if found else None


def published_of(row: RoundRow) -> Published:
    """What the server has published of an evaluation with a sum."""
    total = np.frombuffer(row.total, dtype="<u4").astype(np.uint32)
    return Published(row.round, row.contributors, total, row.session, row.next_model or "", row.signature)


def tissues_of(manifest: Manifest) -> tuple[str, ...]:
    """The tissues that a study's evaluations tell of, in order."""
    return tuple(scheme(manifest.plan.task).tissues)
