"""The server's side of a study: rounds, one after another, driven by what sites send and by the clock.

It decides by `federation.round`, sums by `secagg.aggregator`, and keeps what must survive in an `Archive`. It knows no
wire: `rpc.service` and `runtime.simulation` call the same methods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum

from fedseg.errors import (
    BelowQuorum,
    LedgerError,
    ProtocolError,
    SiteFault,
    StaleSession,
    StorageError,
    Unreachable,
)
from fedseg.federation.evaluation import aggregate_of
from fedseg.federation.exchange import (
    Confirm,
    Countersigned,
    Enrolled,
    Finished,
    Instruction,
    Join,
    LedgerClaim,
    Paused,
    Published,
    RingVector,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
    WithdrawReason,
)
from fedseg.federation.round import Attendance, Event, Phase, decide
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import Archive
from fedseg.runtime.attempt import ATTEMPTS, Attempt
from fedseg.runtime.countersigning import Countersigner
from fedseg.runtime.ports import Evidence
from fedseg.runtime.register import Register
from fedseg.runtime.session import encoding_of, evaluation_code, roster_of
from fedseg.secagg.aggregator import PlainAggregator, SecureAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares

POLL_HOLD_S = 5.0
VOID_ROUNDS = 3

Clock = Callable[[], float]


class StudyState(Enum):
    """Where a study stands."""

    GATHERING = "gathering"
    RUNNING = "running"
    COMPLETE = "complete"
    PAUSED = "paused"


class Coordinator:
    """Runs a study; every public method may be called from any thread.

    Args:
        manifest: The resolved plan.
        archive: Where the study is kept; with earlier rounds in it, the study goes on after them.
        enrolled: Who has enrolled, and the server's public key.
        key: The server's private Ed25519 key, with which it signs what it publishes.
        evidence: The server's own log.
        notify: Told what happens, under the lock: it must not call back.
        clock: Seconds, monotonic.
        now: Seconds since 1970, for records.
        evaluate: Open an evaluation of the model of a study that is over, though earlier ones may have failed.
    """

    def __init__(
        self,
        manifest: Manifest,
        archive: Archive,
        *,
        enrolled: Callable[[], Enrolled],
        key: bytes,
        evidence: Evidence,
        notify: events.Notify,
        clock: Clock = time.monotonic,
        now: Clock = time.time,
        evaluate: bool = False,
    ) -> None:
        self._manifest, self._archive, self._notify = manifest, archive, notify
        self._plan = manifest.plan_hash
        self._enrolled, self._clock = enrolled, clock
        self._register = Register(manifest, archive, key, evidence, now, evaluate=evaluate)
        self._asked_to_evaluate = evaluate
        self._countersigner = Countersigner(manifest, archive, key, evidence)
        self._encoding = encoding_of(manifest)
        self._changed = threading.Condition(threading.RLock())
        self._seen: dict[str, float] = {}
        self._told: set[str] = set()
        self._spent: set[str] = set()
        self._born = clock()
        self._attempt: Attempt | None = None
        self._reason = ""
        self._state = StudyState.GATHERING
        self._recall()

    # What the outside may know.

    @property
    def state(self) -> StudyState:
        """Where the study stands."""
        return self._state

    @property
    def reason(self) -> str:
        """Why the study is paused, or what it waits for."""
        return self._reason

    @property
    def weights(self) -> Weights:
        """What the study gives away as it stands: the newest model, or the averaged one."""
        return self._register.released

    @property
    def history(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """(round, contributors) of every closed round."""
        return self._register.history

    def wait(self, timeout_s: float) -> StudyState:
        """Let time act on the study, then sleep until something changes or `timeout_s` is over."""
        with self._changed:
            self._advance()
            if self._state in (StudyState.GATHERING, StudyState.RUNNING):
                self._changed.wait(timeout_s)
            return self._state

    def without_model(self) -> tuple[str, ...]:
        """Sites that have not fetched the final model."""
        return tuple(sorted(set(self._manifest.plan.site_names) - self._archive.finished(self._plan)))

    def all_told(self) -> bool:
        """Whether every site that is there has heard of the end; of completion by holding the final model."""
        oldest = self._clock() - self._manifest.plan.schedule.absent_after_s
        with self._changed:
            told = self._told
            if self._state is StudyState.COMPLETE and not self._asked_to_evaluate:
                told = told | self._archive.finished(self._plan)
            return all(site in told for site, seen in self._seen.items() if seen > oldest)

    def pause(self, reason: str) -> None:
        """Stop for now: every site that asks is told so. The attempt under way is abandoned."""
        with self._changed, self._kept_or_paused():
            if self._state is StudyState.COMPLETE:
                return
            if self._attempt is not None:
                self._abandon(reason)
            self._attempt, self._state, self._reason = None, StudyState.PAUSED, reason
            self._changed.notify_all()

    # What sites call; `site` comes from the wire's authentication, never from a message.

    def manifest(self, plan_hash: str | None = None) -> bytes:
        """The manifest, canonical JSON; or that of an earlier version of the plan."""
        if plan_hash in (None, self._plan):
            return self._manifest.to_json()
        earlier = self._archive.earlier_manifest(plan_hash)
        if earlier is None:
            raise ProtocolError("this study has no such version of its plan")
        return earlier

    def roster(self) -> Enrolled:
        """Who has enrolled, and the server's key."""
        return self._enrolled()

    def alive(self, site: str) -> None:
        """A sign of life, while a long transfer goes on."""
        self._seen[site] = self._clock()

    def poll(self, site: str, session: bytes | None, hold_s: float = POLL_HOLD_S) -> Instruction:
        """What `site` should do; waits up to `hold_s` where that is nothing.

        Args:
            site: Who asks.
            session: The session it holds keys for. One that has forgotten its keys is out of the attempt.
            hold_s: How long to hold an answer that says to wait.
        """
        until = self._clock() + hold_s
        with self._changed:
            self._forgotten(site, session)
            while True:
                self.alive(site)
                self._advance()
                instruction = self._instruction(site)
                if isinstance(instruction, Paused):
                    self._told.add(site)
                left = until - self._clock()
                if not isinstance(instruction, Wait) or left <= 0:
                    return instruction
                self._changed.wait(min(left, 1.0))

    def advertise(self, site: str, session: bytes, advertisement: Advertisement | None) -> None:
        """Step 1."""
        with self._changed:
            attempt = self._require(site, session, Phase.ADVERTISE_KEYS)
            if isinstance(attempt.aggregator, PlainAggregator):
                attempt.aggregator.join(site)
            elif advertisement is None or advertisement.site != site:
                raise SiteFault(site, attempt.phase.value, "the advertisement is missing or another site's")
            else:
                attempt.aggregator.advertise(advertisement)
            attempt.joined.add(site)
            self._arrived(attempt, site)

    def share_keys(self, site: str, session: bytes, envelopes: Envelopes) -> None:
        """Step 2."""
        with self._changed:
            attempt = self._require(site, session, Phase.SHARE_KEYS)
            _secure(attempt, site, envelopes).share(envelopes)
            self._arrived(attempt, site)

    def expect_upload(self, site: str, session: bytes) -> int:
        """How many bytes an upload has in this session; one that nobody asked for is refused before room is made."""
        with self._changed:
            return 4 * self._require(site, session, Phase.MASKED_INPUT).header.length

    def upload(self, site: str, session: bytes, message: MaskedInput, vector: RingVector) -> None:
        """Step 3: added to the sum once it is whole. The same upload again is answered as before."""
        with self._changed:
            attempt = self._require(site, session, Phase.MASKED_INPUT)
            if message.site != site:
                raise SiteFault(site, attempt.phase.value, "an upload in another site's name")
            if isinstance(attempt.aggregator, PlainAggregator):
                self._check_alone(attempt, site, vector)
            if attempt.aggregator.mask(message, vector):
                attempt.row = replace(attempt.row, bytes_received=attempt.row.bytes_received + vector.nbytes)
            self._arrived(attempt, site)

    def confirm(self, site: str, session: bytes, message: Consistency) -> None:
        """Step 4."""
        with self._changed:
            attempt = self._require(site, session, Phase.CONSISTENCY)
            _secure(attempt, site, message).consistency(message)
            self._arrived(attempt, site)

    def unmask(self, site: str, session: bytes, shares: Shares) -> None:
        """Step 5."""
        with self._changed:
            attempt = self._require(site, session, Phase.UNMASK)
            _secure(attempt, site, shares).shares(shares)
            self._arrived(attempt, site)

    def withdraw(self, site: str, session: bytes, reason: WithdrawReason) -> None:
        """A site leaves the attempt: nobody waits for it."""
        with self._changed:
            attempt = self._attempt
            if attempt is not None and attempt.session == session:
                self._lose(attempt, site, f"withdrew ({reason})")
                if reason == "budget" and self._manifest.plan.private:
                    self._spent.add(site)
                    with self._kept_or_paused():
                        self._end_on_budget()
                self._advance()

    def claim(self, site: str, claim: LedgerClaim) -> Countersigned:
        """What a site says of its privacy ledger; the server's signature, where it goes on from what it signed last.

        Raises:
            LedgerError: It doesn't: the site's ledger was set back or copied.
        """
        with self._changed:
            self.alive(site)
            signed = self._countersigner.judge(site, claim)
            with self._kept_or_paused():
                self._countersigner.keep(site, signed)
                return signed
        raise Unreachable("the server cannot store what it is sent; its log says why")

    def countersigned(self, site: str) -> Countersigned | None:
        """The newest countersigned claim of a site."""
        with self._changed:
            return self._countersigner.newest(site)

    def holds(self, site: str, model: str) -> None:
        """A site says that it has stored the final model."""
        with self._changed:
            if self._state is not StudyState.COMPLETE or model != self._register.hash:
                raise StaleSession("that is not the study's final model", hint="ask again what to do")
            self._archive.save_finished(site, self._plan)
            self._told.add(site)

    def model(self, wanted: str) -> Weights:
        """The newest model or the best one, whichever has that hash."""
        with self._changed:
            return self._register.model(wanted)

    def published(self, round_number: int) -> Published:
        """The sum of the newest closed round, or of an evaluation."""
        with self._changed:
            return self._register.published(round_number)

    # How a study moves.

    def _recall(self) -> None:
        parent = self._manifest.parent
        if any(row.round > (parent.last_round if parent else 0) for row in self._register.rounds):
            # Under a version of the plan of which no round has begun, every site has yet to agree.
            self._state = StudyState.RUNNING
        if self._asked_to_evaluate and self._register.is_trained:
            # Who comes late could be in no other evaluation of this model: wait for all that may come.
            self._state = StudyState.GATHERING
        if self._archive.ended(self._plan):
            self._state = StudyState.COMPLETE
        self._end_if_over()

    def _advance(self) -> None:
        with self._kept_or_paused():
            self._move()

    @contextmanager
    def _kept_or_paused(self) -> Iterator[None]:
        """What cannot be kept must not be heard of: nothing goes on before the disk is mended."""
        try:
            yield
        except (StorageError, LedgerError) as error:
            self._attempt, self._state, self._reason = None, StudyState.PAUSED, str(error)
            self._changed.notify_all()

    def _move(self) -> None:
        if self._state is StudyState.GATHERING:
            self._gather()
        while self._state is StudyState.RUNNING:
            if self._attempt is None:
                self._open()
            attempt = self._attempt
            event = None if attempt is None else decide(self._attendance(attempt))
            if attempt is None or event is None:
                self._name_absent(attempt)
                return
            self._step(attempt, event)

    def _gather(self) -> None:
        missing = [site for site in self._manifest.plan.site_names if site not in self._seen]
        enrolled = self._enrolled().keys if missing else {}
        strangers = [site for site in missing if site not in enrolled]
        known = [site for site in missing if site in enrolled]
        waiting = {"to enrol": strangers, "to confirm the roster and join": known}
        reason = "; ".join(f"{', '.join(sites)} {what}" for what, sites in waiting.items() if sites)
        if not missing or self._is_late(missing):
            self._state, reason = StudyState.RUNNING, ""
            self._changed.notify_all()
        if reason and reason != self._reason:
            self._notify(events.Waiting(reason))
        self._reason = reason

    def _is_late(self, missing: list[str]) -> bool:
        """Whether an evaluation of a study that is over goes on without some sites."""
        overdue = self._clock() - self._born > self._manifest.plan.schedule.deadline_s
        enough = len(self._manifest.plan.sites) - len(missing) >= self._manifest.quorum
        return overdue and enough and self._register.evaluation_is_due

    def _open(self) -> None:
        attempt = self._register.open(roster_of(self._manifest, self._enrolled()), self._clock())
        self._attempt = attempt
        rounds, row = self._manifest.plan.schedule.rounds, attempt.row
        started = events.RoundStarted(row.round, rounds, row.attempt)
        self._notify(events.EvaluationStarted(row.round, row.attempt) if row.evaluation else started)
        self._changed.notify_all()

    def _attendance(self, attempt: Attempt) -> Attendance:
        now, schedule = self._clock(), self._manifest.plan.schedule
        return Attendance(
            expected=attempt.expected,
            arrived=frozenset(attempt.arrived),
            lost=frozenset(self._absent(attempt) | attempt.left.keys()) & attempt.expected,
            need=attempt.need,
            overdue=now - attempt.since > schedule.deadline_s,
            # Nothing is at stake before keys are shared; a site that left the attempt comes back only in the next.
            patient=attempt.phase is Phase.ADVERTISE_KEYS
            and len(attempt.expected - attempt.left.keys()) >= self._manifest.quorum,
        )

    def _name_absent(self, attempt: Attempt | None) -> None:
        """Say whom the attempt waits for in vain, once for each such set of sites."""
        absent = () if attempt is None else tuple(sorted(self._absent(attempt) - attempt.arrived - attempt.left.keys()))
        if attempt is not None and absent and absent != attempt.named_absent:
            attempt.named_absent = absent
            self._notify(events.Waiting(f"round {attempt.row.round}: no sign of life from {', '.join(absent)}"))

    def _absent(self, attempt: Attempt) -> set[str]:
        oldest = self._clock() - self._manifest.plan.schedule.absent_after_s
        return {site for site in attempt.expected if self._seen.get(site, self._born) < oldest}

    def _step(self, attempt: Attempt, event: Event) -> None:
        following = attempt.table[attempt.phase, event]
        # A site that left by its own word is there, and may join the next attempt; one that never came is not.
        gathering = attempt.phase is Phase.ADVERTISE_KEYS and not attempt.left
        attendance = self._attendance(attempt)
        for site in sorted(attempt.expected - attempt.arrived - attempt.left.keys()):
            # Where the loss of another ends a phase before its deadline, a site at work is not to blame.
            if site in attendance.lost or attendance.overdue or event is Event.COMPLETE:
                late = attendance.overdue and site not in attendance.lost
                self._lose(attempt, site, "did not answer" if late else "no sign of life")
        if following is Phase.ABANDONED:
            self._abandon(f"{len(attempt.arrived)} of {attempt.need} sites in {attempt.phase.value}")
            self._after_abandoned(gathering)
            return
        try:
            self._enter(attempt, following)
        except (BelowQuorum, ProtocolError) as error:
            self._abandon(str(error))
            self._after_abandoned(gathering=False, why=error.what)

    def _enter(self, attempt: Attempt, phase: Phase) -> None:
        ends_inputs = attempt.phase is Phase.MASKED_INPUT
        attempt.enter(phase, self._clock())
        if ends_inputs:
            self._register.inputs_closed(attempt)
        if phase is Phase.CLOSED:
            self._close(attempt)
            return
        if phase is Phase.UNMASK:
            self._register.unmasking(attempt)
        self._notify(events.PhaseStarted(attempt.row.round, phase.value, tuple(sorted(attempt.expected))))
        self._changed.notify_all()

    def _close(self, attempt: Attempt) -> None:
        if attempt.row.evaluation:
            self._close_evaluation(attempt)
            return
        closing = self._register.close(attempt)
        self._attempt, row = None, attempt.row
        rounds, seconds = self._manifest.plan.schedule.rounds, (row.ended_at or 0) - row.started_at
        self._notify(events.RoundClosed(row.round, rounds, row.contributors, row.lost, seconds))
        if closing.back:
            self._notify(events.Note(f"round {row.round}: the validation Dice collapsed; back to the best model"))
        self._end_if_over()
        self._changed.notify_all()

    def _close_evaluation(self, attempt: Attempt) -> None:
        aggregate = self._register.close_evaluation(attempt)
        self._attempt, row = None, attempt.row
        self._notify(events.Evaluated(row.round, row.contributors, aggregate.subjects, aggregate.dice.mean))
        self._end_if_over()
        self._changed.notify_all()

    def _abandon(self, why: str) -> None:
        attempt = self._attempt
        if attempt is None:
            return
        self._register.abandon(attempt, why)
        self._notify(events.RoundAbandoned(attempt.row.round, attempt.row.attempt, why))
        self._attempt = None
        self._changed.notify_all()

    def _after_abandoned(self, gathering: bool, why: str | None = None) -> None:
        """Go on, or pause where that is hopeless; `why` sites that did answer made no sum."""
        if self._register.rounds[-1].evaluation:
            self._end_if_over()
        elif gathering or self._register.without_sum >= VOID_ROUNDS * ATTEMPTS:
            number = self._register.rounds[-1].round
            few = f"fewer than {self._manifest.quorum} sites could finish round {number}"
            self.pause(few if why is None else f"round {number} brought no sum: {why}")
        else:
            self._end_if_over()

    def _end_on_budget(self) -> None:
        """End with the rounds that are closed, if any, once no round can have its quorum any more."""
        if len(self._manifest.plan.sites) - len(self._spent) >= self._manifest.quorum:
            return
        why = f"the privacy budget is used up at {', '.join(sorted(self._spent))}"
        if self._register.closed is None:
            self.pause(why)
            return
        self._abandon(why)
        self._archive.save_end(self._plan, why)
        self._state = StudyState.COMPLETE

    def _end_if_over(self) -> None:
        if self._register.is_over and self._register.closed is None:
            self.pause("no round could be closed within the privacy budget")
        elif self._register.is_over:
            self._state = StudyState.COMPLETE

    def _check_alone(self, attempt: Attempt, site: str, vector: RingVector) -> None:
        """In plain mode every update can be held to the clip by itself; a site that breaks it is out, by name."""
        try:
            if attempt.row.evaluation:
                aggregate_of(evaluation_code(self._manifest), vector, 1)
            else:
                self._encoding.decode(vector, [self._manifest.plan.sites[site].weight])
        except ProtocolError as error:
            reason = "sent an update that breaks the plan's clip, its weight or the range of scores"
            self._lose(attempt, site, reason)
            self._advance()
            raise SiteFault(site, Phase.MASKED_INPUT.value, reason) from error

    # Small things.

    def _instruction(self, site: str) -> Instruction:
        if self._state is StudyState.COMPLETE:
            return Finished(self._register.head, self.history, self._register.evaluation)
        if self._state is StudyState.PAUSED:
            return Paused(self._reason)
        attempt = self._attempt
        if attempt is None:
            return Wait(self._reason or "the next round")
        if site in attempt.left:
            return Wait(f"the next round: this site {attempt.left[site]}")
        if site in attempt.arrived or site not in attempt.expected:
            waiting = sorted(attempt.expected - attempt.arrived - attempt.left.keys())
            return Wait(f"round {attempt.row.round}, {attempt.phase.value}: {', '.join(waiting) or 'the server'}")
        return self._asked(attempt, site)

    def _asked(self, attempt: Attempt, site: str) -> Instruction:
        aggregator = attempt.aggregator
        if attempt.phase is Phase.ADVERTISE_KEYS:
            return Join(attempt.header, self._register.head)
        if isinstance(aggregator, PlainAggregator):
            return Submit(attempt.session, attempt.sharers, {})
        if attempt.phase is Phase.SHARE_KEYS:
            return ShareKeys(attempt.session, attempt.advertisements)
        if attempt.phase is Phase.MASKED_INPUT:
            return Submit(attempt.session, attempt.sharers, aggregator.envelopes_for(site))
        if attempt.phase is Phase.CONSISTENCY:
            return Confirm(attempt.session, attempt.contributors)
        if attempt.phase is Phase.UNMASK:
            return Unmask(attempt.session, attempt.signatures)
        return Wait("the next round")

    def _require(self, site: str, session: bytes, phase: Phase) -> Attempt:
        attempt = self._attempt
        if attempt is None or attempt.session != session or attempt.phase is not phase or site in attempt.left:
            raise StaleSession("that session has moved on", hint="ask again what to do")
        return attempt

    def _arrived(self, attempt: Attempt, site: str) -> None:
        attempt.arrived.add(site)
        self.alive(site)
        self._advance()
        self._changed.notify_all()

    def _forgotten(self, site: str, session: bytes | None) -> None:
        attempt = self._attempt
        if attempt and site in attempt.joined and site not in attempt.left and session != attempt.session:
            self._lose(attempt, site, "restarted during the round")

    def _lose(self, attempt: Attempt, site: str, why: str) -> None:
        if site in attempt.left:
            return
        attempt.left[site] = f"{why} in {attempt.phase.value}"
        self._notify(events.SiteLost(attempt.row.round, site, attempt.left[site]))


def _secure(attempt: Attempt, site: str, message: Envelopes | Consistency | Shares) -> SecureAggregator:
    """The aggregator of masked vectors, for a message that is the caller's own."""
    if message.site != site or not isinstance(attempt.aggregator, SecureAggregator):
        raise SiteFault(site, attempt.phase.value, "a message of another site, or in plain mode")
    return attempt.aggregator
