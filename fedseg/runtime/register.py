"""The rounds of a study as the server writes them down: in its archive before any site hears of them, and its log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fedseg.errors import StaleSession
from fedseg.federation.closing import Closing, close_round
from fedseg.federation.evaluation import Aggregate, aggregate_of
from fedseg.federation.exchange import CLOSE, SERVER, Best, Head, Published, RingVector
from fedseg.federation.robust import combine
from fedseg.federation.rollback import judge
from fedseg.federation.strategy import Strategy
from fedseg.federation.vector import Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime.archive import Archive
from fedseg.runtime.attempt import ATTEMPTS, Attempt, without_sum
from fedseg.runtime.evaluations import is_due, published_of
from fedseg.runtime.evidence import (
    aborted_entry,
    closed_entry,
    evaluated_entry,
    logged_roster,
    roster_entry,
    session_entry,
)
from fedseg.runtime.ports import Evidence
from fedseg.runtime.session import encoding_of, evaluation_code, header_of
from fedseg.secagg.aggregator import Rule
from fedseg.secagg.roster import Roster
from fedseg.secagg.signing import sign
from fedseg.store.study_db import RoundRow

STOPPED = "server stopped"


class Register:
    """A study's rounds and models; it knows no site and no clock.

    Args:
        manifest: The study.
        archive: Where it is kept; what was open there when a server stopped has ended.
        key: The server's private Ed25519 key.
        evidence: The server's log.
        now: Seconds since 1970.
        evaluate: Whether another evaluation was asked for: those that have failed do not count.
    """

    def __init__(
        self,
        manifest: Manifest,
        archive: Archive,
        key: bytes,
        evidence: Evidence,
        now: Callable[[], float],
        *,
        evaluate: bool = False,
    ) -> None:
        self._manifest, self._archive, self._key = manifest, archive, key
        self._evidence, self._now = evidence, now
        self._encoding, self._strategy = encoding_of(manifest), Strategy.of(manifest)
        self._end_open()
        closed = self._trained()
        self._forgiven = len(archive.rounds()) if evaluate else 0
        self.closed = closed[-1] if closed else None
        self.state = archive.load_model(self.closed.round if self.closed else 0)
        self.hash = model_hash(self.state)
        self._best = self._replay(closed)
        self._newest: Published | None = None
        self._complete_log(closed)

    @property
    def released(self) -> Weights:
        """float32[P]: what the study gives away as it stands."""
        return self._strategy.released(self.state)

    @property
    def rounds(self) -> list[RoundRow]:
        """All attempts at all rounds, in order."""
        return self._archive.rounds()

    @property
    def history(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """(round, contributors) of every closed round that trained."""
        return tuple((row.round, row.contributors) for row in self._trained())

    @property
    def head(self) -> Head:
        """The newest model, and how it came to be."""
        if self.closed is None:
            return Head(self.hash, 0, self.hash)
        return Head(self.hash, self.closed.round, self.closed.model_hash, self._best)

    @property
    def without_sum(self) -> int:
        """How many attempts in a row have brought no sum, up to the newest; those to train alone."""
        ended = [row.state in ("abandoned", "void") for row in reversed(self.rounds) if not row.evaluation]
        return ended.index(False) if False in ended else len(ended)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train or to evaluate."""
        return self.is_trained and not self.evaluation_is_due

    @property
    def evaluation_is_due(self) -> bool:
        """Whether the model that the rounds have made is to be evaluated."""
        if not self.is_trained or self.closed is None:
            return False
        return is_due(self._manifest, self.rounds, self.hash, self._forgiven)

    @property
    def evaluation(self) -> int:
        """The round of the newest evaluation of the newest model; 0 where there is none."""
        return max((row.round for row in self._evaluated() if row.model_hash == self.hash), default=0)

    @property
    def evaluators(self) -> frozenset[str]:
        """The only sites with which those that were in it sign another evaluation: the newest's; all before the first.

        Hospitals may allow others (`allow_reused_models`); a server can't know, and asks for no more than all accept.
        """
        evaluated = self._evaluated()
        return frozenset(evaluated[-1].contributors if evaluated else self._manifest.plan.sites)

    @property
    def is_trained(self) -> bool:
        """Whether all rounds are closed, or no other may be trained."""
        rows, plan = self.rounds, self._manifest.plan
        ended = bool(rows) and (rows[-1].state in ("closed", "void") or rows[-1].attempt == ATTEMPTS)
        # The noise is calibrated to so many rounds: beyond them no site may train.
        spent = plan.private and ended and rows[-1].round >= plan.schedule.rounds + plan.privacy.reserve_rounds
        return len(self.history) >= plan.schedule.rounds or spent

    def model(self, wanted: str) -> Weights:
        """The newest model or the best one, whichever has that hash.

        Raises:
            StaleSession: Neither has.
        """
        if wanted == self.hash:
            return self.state
        if self._best is not None and wanted == self._best.model_hash:
            return self._archive.load_best(wanted)
        raise StaleSession("the server no longer has that model", hint="ask again what to do")

    def published(self, round_number: int) -> Published:
        """The sum of the newest closed round, or of an evaluation.

        Raises:
            StaleSession: It is another round.
        """
        evaluated = [row for row in self._evaluated() if row.round == round_number]
        if evaluated:
            return published_of(evaluated[0])
        if self.closed is None or round_number != self.closed.round:
            raise StaleSession("the server no longer has the sum of that round", hint="ask again what to do")
        if self._newest is None or self._newest.round != round_number:
            # One copy, however many sites ask for it.
            self._newest = self._published(self.closed)
        return self._newest

    def open(self, roster: Roster, clock: float) -> Attempt:
        """Begin the next attempt: the second at a round that brought no sum, else the first at the next round.

        A round that trains where one is left, else one that evaluates.
        """
        known, evaluation = logged_roster(self._evidence.entries()), self.evaluation_is_due
        changed = known is not None and known != roster.fingerprint.hex()
        number, attempt = self._next(changed, evaluation)
        header = header_of(self._manifest, roster, number, attempt, self.hash, evaluation=evaluation)
        scored = model_hash(self.released) if evaluation else None
        row = RoundRow(number, attempt, "open", self.hash, (), {}, None, self._now(), None, 0, released=scored)
        self._archive.save_round(row)
        if known is None or changed:
            self._evidence.append("roster", roster_entry(roster, self._manifest.plan.schedule.rounds))
        self._evidence.append("session", session_entry(header))
        return Attempt(header, roster, row, clock, None if evaluation else self._rule())

    def inputs_closed(self, attempt: Attempt) -> None:
        """Write down whose inputs are in the sum, as they signed them."""
        inputs = attempt.aggregator.inputs.items()
        said = {site: {"digest": each.digest.hex(), "signature": each.signature.hex()} for site, each in inputs}
        self._evidence.append("received", {**_sets(attempt), "inputs": said})

    def unmasking(self, attempt: Attempt) -> None:
        """From here on sites may have released their shares: no other attempt at this round, not even after a crash."""
        attempt.row = replace(attempt.row, state="unmasking")
        self._archive.save_round(attempt.row)
        given = {site: each.hex() for site, each in attempt.signatures.items()}
        self._evidence.append("unmask", {**_sets(attempt), "u3": list(attempt.contributors), "signatures": given})

    def close(self, attempt: Attempt) -> Closing:
        """Take the masks off, make the next model, sign and keep it.

        Raises:
            ProtocolError: The sum cannot be had, or is none that its contributors can make.
        """
        total = attempt.aggregator.close_unmask()
        closing = self._judge(total, attempt.contributors, self.hash, self._best)
        state = self._strategy.move(self.state, closing.mean.update, attempt.row.round)
        if closing.back and closing.best is not None:
            state = self._archive.load_best(closing.best.model_hash)
        unsigned = Published(attempt.row.round, attempt.contributors, total, attempt.sid, model_hash(state))
        row = self._signed(attempt, unsigned)
        row = replace(row, relative_error=closing.mean.relative_error, score=closing.mean.score)
        self._archive.save_model(row.round, state, total)
        if closing.best is not None and closing.best.model_hash == self.hash:
            self._archive.save_best(self.state, self.hash)
        self._archive.save_round(row)
        published = replace(unsigned, signature=row.signature)
        self._evidence.append("closed", closed_entry(published, closing, self.hash))
        attempt.row, self.closed, self.state, self.hash = row, row, state, unsigned.next_model
        self._best = closing.best
        return closing

    def close_evaluation(self, attempt: Attempt) -> Aggregate:
        """Take the masks off, sign and keep the sum; the model stays as it is.

        Raises:
            ProtocolError: The sum cannot be had, or is none that its contributors can make.
        """
        total = attempt.aggregator.close_unmask()
        aggregate = aggregate_of(evaluation_code(self._manifest), total, len(attempt.contributors))
        unsigned = Published(attempt.row.round, attempt.contributors, total, attempt.sid, self.hash)
        row = replace(self._signed(attempt, unsigned), total=total.astype("<u4").tobytes())
        self._archive.save_round(row)
        self._log_evaluation(row)
        attempt.row = row
        return aggregate

    def _signed(self, attempt: Attempt, unsigned: Published) -> RoundRow:
        """The row of an attempt that has brought a sum, with the server's signature of it."""
        return replace(
            attempt.row, state="closed", contributors=unsigned.contributors, next_model=unsigned.next_model,
            lost={site: why for site, why in attempt.left.items() if site not in unsigned.contributors},
            ended_at=self._now(), session=unsigned.session,
            signature=sign(self._key, CLOSE, unsigned.session, SERVER, unsigned.statement),
        )  # fmt: skip

    def _log_evaluation(self, row: RoundRow) -> None:
        self._evidence.append("evaluated", evaluated_entry(published_of(row), row.released or ""))

    def abandon(self, attempt: Attempt, why: str) -> None:
        """End an attempt without a sum."""
        row = replace(attempt.row, state=without_sum(attempt.row), lost=dict(attempt.left), ended_at=self._now())
        self._archive.save_round(row)
        self._evidence.append("aborted", aborted_entry(attempt.session.hex(), why))

    def _trained(self) -> list[RoundRow]:
        """Closed rounds that trained."""
        return [row for row in self._archive.rounds() if row.state == "closed" and not row.evaluation]

    def _evaluated(self) -> list[RoundRow]:
        """Closed rounds that evaluated."""
        return [row for row in self._archive.rounds() if row.state == "closed" and row.evaluation]

    def _next(self, roster_changed: bool, evaluation: bool) -> tuple[int, int]:
        """A second attempt only under the roster of the first: who enrolled anew has forgotten what it answered."""
        rows = self.rounds
        if not rows:
            return 1, 1
        last = rows[-1]
        again = last.state == "abandoned" and last.attempt < ATTEMPTS and last.evaluation == evaluation
        if again and not roster_changed:
            return last.round, last.attempt + 1
        return last.round + 1, 1

    def _rule(self) -> Rule | None:
        """What plain mode publishes in place of the sum."""
        chosen, dimension = self._manifest.plan.aggregation, self._manifest.dimension
        if chosen.rule == "mean":
            return None
        rule = chosen.rule
        return lambda vectors: combine(rule, vectors, dimension, chosen.liars)

    def _judge(self, total: RingVector, contributors: tuple[str, ...], base: str, best: Best | None) -> Closing:
        return close_round(self._manifest, self._encoding, total, contributors, base_model=base, best=best)

    def _published(self, row: RoundRow) -> Published:
        total = self._archive.load_total(row.round)
        return Published(row.round, row.contributors, total, row.session, row.next_model or "", row.signature)

    # After a stop.

    def _end_open(self) -> None:
        for row in self._archive.rounds():
            if row.state in ("open", "unmasking"):
                ended = replace(row, state=without_sum(row), ended_at=self._now(), lost={"*": STOPPED})
                self._archive.save_round(ended)

    def _replay(self, closed: list[RoundRow]) -> Best | None:
        """The best model so far, from the scores of closed rounds."""
        rollback, best = self._manifest.plan.aggregation.rollback, None
        if rollback is not None:
            for row in closed:
                best = judge(best, row.model_hash, row.score, rollback.drop).best
        return best

    def _complete_log(self, closed: list[RoundRow]) -> None:
        """A crash may have come between the archive and the log: write what the log lacks of the newest session."""
        entries = self._evidence.entries()
        sessions = [body["session"] for kind, body in entries if kind == "session"]
        if not sessions:
            return
        after = [kind for kind, _ in entries[max(i for i, each in enumerate(entries) if each[0] == "session") :]]
        if {"closed", "evaluated", "aborted"} & set(after):
            return
        written = [kind for kind, _ in entries]
        if len(evaluated := self._evaluated()) > written.count("evaluated"):
            self._log_evaluation(evaluated[-1])
        elif len(closed) > written.count("closed"):
            row = closed[-1]
            published = self._published(row)
            closing = self._judge(published.total, row.contributors, row.model_hash, self._replay(closed[:-1]))
            self._evidence.append("closed", closed_entry(published, closing, row.model_hash))
        else:
            self._evidence.append("aborted", aborted_entry(sessions[-1], STOPPED))


def _sets(attempt: Attempt) -> dict[str, object]:
    return {"session": attempt.session.hex(), "sid": attempt.sid.hex(), "u2": list(attempt.sharers)}
