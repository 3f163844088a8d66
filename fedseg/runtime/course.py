"""The course of a study: which attempt is under way, when its phases end, when the study pauses or is over.

It decides by `federation.round` and has the `Register` write down. It knows no site's connection and no thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import Enum

from fedseg.errors import BelowQuorum, LedgerError, ProtocolError, StorageError
from fedseg.federation.exchange import Enrolled, Finished, Instruction, Paused, Wait, WithdrawReason
from fedseg.federation.round import Attendance, Event, Phase, decide
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import Archive
from fedseg.runtime.attempt import ATTEMPTS, Attempt
from fedseg.runtime.presence import Presence
from fedseg.runtime.register import Register
from fedseg.runtime.session import roster_of

VOID_ROUNDS = 3


class StudyState(Enum):
    """Where a study stands."""

    GATHERING = "gathering"
    RUNNING = "running"
    COMPLETE = "complete"
    PAUSED = "paused"


class Course:
    """A study as it goes on: by time, and by what sites have answered. Called by one thread at a time.

    Args:
        manifest: The resolved plan.
        archive: Where the study is kept.
        register: Its rounds.
        presence: Who is there.
        enrolled: Who has enrolled, and the server's public key.
        clock: Seconds, monotonic.
        notify: Told what happens.
        changed: Called when sites may be asked for something else than before.
        evaluate: Another evaluation was asked for, of the model of a study that is over.

    Attributes:
        state: Where the study stands.
        reason: Why it is paused, or what it waits for.
        attempt: The one under way.
    """

    def __init__(
        self,
        manifest: Manifest,
        archive: Archive,
        register: Register,
        presence: Presence,
        *,
        enrolled: Callable[[], Enrolled],
        clock: Callable[[], float],
        notify: events.Notify,
        changed: Callable[[], None],
        evaluate: bool,
    ) -> None:
        self._manifest, self._archive, self._register, self._presence = manifest, archive, register, presence
        self._enrolled, self._clock, self._notify, self._changed = enrolled, clock, notify, changed
        self._spent: set[str] = set()
        self.attempt: Attempt | None = None
        self.reason = ""
        self.state = self._recalled(evaluate)
        self._end_if_over()

    def _recalled(self, evaluate: bool) -> StudyState:
        if self._archive.ended(self._manifest.plan_hash):
            return StudyState.COMPLETE
        if evaluate and self._register.is_trained:
            # Who comes late could be in no other evaluation of this model: wait for all that may come.
            return StudyState.GATHERING
        parent = self._manifest.parent
        if any(row.round > (parent.last_round if parent else 0) for row in self._register.rounds):
            return StudyState.RUNNING
        # Under a version of the plan of which no round has begun, every site has yet to agree.
        return StudyState.GATHERING

    def instruction(self, site: str) -> Instruction:
        """What a site should do."""
        if self.state is StudyState.COMPLETE:
            return Finished(self._register.head, self._register.history, self._register.evaluation)
        if self.state is StudyState.PAUSED:
            return Paused(self.reason)
        if self.attempt is None:
            return Wait(self.reason or "the next round")
        return self.attempt.instruction(site, self._register.head)

    def advance(self) -> None:
        """Let time, and what has arrived, act on the study."""
        with self.kept_or_paused():
            self._move()

    def pause(self, reason: str) -> None:
        """Stop for now, unless the study is over. The attempt under way is abandoned."""
        with self.kept_or_paused():
            if self.state is StudyState.COMPLETE:
                return
            self._abandon(reason)
            self.state, self.reason = StudyState.PAUSED, reason
            self._changed()

    @contextmanager
    def kept_or_paused(self) -> Iterator[None]:
        """What cannot be kept must not be heard of: nothing goes on before the disk is mended."""
        try:
            yield
        except (StorageError, LedgerError) as error:
            self.attempt, self.state, self.reason = None, StudyState.PAUSED, str(error)
            self._changed()

    def lose(self, attempt: Attempt, site: str, why: str) -> None:
        """A site is out of the attempt: nobody waits for it."""
        if site in attempt.left:
            return
        attempt.left[site] = f"{why} in {attempt.phase.value}"
        self._notify(events.SiteLost(attempt.row.round, site, attempt.left[site], attempt.row.evaluation))

    def withdraw(self, attempt: Attempt, site: str, reason: WithdrawReason) -> None:
        """A site leaves the attempt by its own word."""
        self.lose(attempt, site, f"withdrew ({reason})")
        if reason == "budget" and self._manifest.plan.private:
            self._spent.add(site)
            with self.kept_or_paused():
                self._end_on_budget()
        self.advance()

    # Until a round may begin.

    def _gather(self) -> None:
        missing = self._presence.unheard(self._manifest.plan.site_names)
        reason = _waiting_for(missing, self._enrolled().keys if missing else {})
        if not missing or self._is_late(missing):
            self.state, reason = StudyState.RUNNING, ""
            self._changed()
        if reason and reason != self.reason:
            self._notify(events.Waiting(reason))
        self.reason = reason

    def _is_late(self, missing: Collection[str]) -> bool:
        """Whether an evaluation of a study that is over goes on without some sites."""
        overdue = self._presence.waited_s > self._manifest.plan.schedule.deadline_s
        enough = len(self._manifest.plan.sites) - len(missing) >= self._manifest.quorum
        return overdue and enough and self._register.evaluation_is_due

    # An attempt, from phase to phase.

    def _move(self) -> None:
        if self.state is StudyState.GATHERING:
            self._gather()
        while self.state is StudyState.RUNNING:
            attempt = self.attempt or self._open()
            event = decide(self._attendance(attempt))
            if event is None:
                self._name_absent(attempt)
                return
            self._step(attempt, event)

    def _open(self) -> Attempt:
        attempt = self._register.open(roster_of(self._manifest, self._enrolled()), self._clock())
        self.attempt = attempt
        rounds, row = self._manifest.plan.schedule.rounds, attempt.row
        started = events.RoundStarted(row.round, rounds, row.attempt, len(self._register.history))
        self._notify(events.EvaluationStarted(row.round, row.attempt) if row.evaluation else started)
        if row.evaluation:
            for site in sorted(attempt.expected - self._register.evaluators):
                self.lose(attempt, site, "was not in the study's earlier evaluation, so is not asked")
        self._changed()
        return attempt

    def _attendance(self, attempt: Attempt) -> Attendance:
        overdue = self._clock() - attempt.since > self._manifest.plan.schedule.deadline_s
        absent = self._presence.absent(attempt.expected)
        return attempt.attendance(absent, quorum=self._manifest.quorum, overdue=overdue)

    def _name_absent(self, attempt: Attempt) -> None:
        """Say whom the attempt waits for in vain, once for each such set of sites."""
        absent = tuple(sorted(self._presence.absent(attempt.waiting)))
        if absent and absent != attempt.named_absent:
            attempt.named_absent = absent
            self._notify(events.Waiting(f"{attempt.title}: no sign of life from {', '.join(absent)}"))

    def _step(self, attempt: Attempt, event: Event) -> None:
        following = attempt.table[attempt.phase, event]
        # A site that left by its own word is there, and may join the next attempt; one that never came is not.
        gathering = attempt.phase is Phase.ADVERTISE_KEYS and not attempt.left
        attendance = self._attendance(attempt)
        for site in sorted(attempt.waiting):
            # Where the loss of another ends a phase before its deadline, a site at work is not to blame.
            if site in attendance.lost or attendance.overdue or event is Event.COMPLETE:
                late = attendance.overdue and site not in attendance.lost
                self.lose(attempt, site, "did not answer" if late else "no sign of life")
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
        asked = tuple(sorted(attempt.expected))
        self._notify(events.PhaseStarted(attempt.row.round, phase.value, asked, attempt.row.evaluation))
        self._changed()

    # How an attempt ends, and a study.

    def _close(self, attempt: Attempt) -> None:
        told = self._close_evaluation(attempt) if attempt.row.evaluation else self._close_training(attempt)
        self.attempt = None
        for each in told:
            self._notify(each)
        self._end_if_over()
        self._changed()

    def _close_training(self, attempt: Attempt) -> list[events.Event]:
        closing, rounds = self._register.close(attempt), self._manifest.plan.schedule.rounds
        row = attempt.row
        seconds = (row.ended_at or 0) - row.started_at
        closed = events.RoundClosed(row.round, rounds, row.contributors, row.lost, seconds)
        back = events.Note(f"round {row.round}: the validation Dice collapsed; back to the best model")
        return [closed, back] if closing.back else [closed]

    def _close_evaluation(self, attempt: Attempt) -> list[events.Event]:
        aggregate = self._register.close_evaluation(attempt)
        row = attempt.row
        return [events.Evaluated(row.round, row.contributors, aggregate.subjects, aggregate.dice.mean)]

    def _abandon(self, why: str) -> None:
        attempt = self.attempt
        if attempt is None:
            return
        self._register.abandon(attempt, why)
        row = attempt.row
        self._notify(events.RoundAbandoned(row.round, row.attempt, why, row.evaluation))
        self.attempt = None
        self._changed()

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
        self._archive.save_end(self._manifest.plan_hash, why)
        self.state = StudyState.COMPLETE

    def _end_if_over(self) -> None:
        if self._register.is_over and self._register.closed is None:
            self.pause("no round could be closed within the privacy budget")
        elif self._register.is_over:
            self.state = StudyState.COMPLETE


def _waiting_for(missing: Collection[str], enrolled: Collection[str]) -> str:
    """What a study waits for before it begins; empty where nobody is missing."""
    strangers = [site for site in missing if site not in enrolled]
    known = [site for site in missing if site in enrolled]
    waiting = {"to enrol": strangers, "to confirm the roster and join": known}
    return "; ".join(f"{', '.join(sites)} {what}" for what, sites in waiting.items() if sites)
