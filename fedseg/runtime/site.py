"""A site's side of a study: polls, has its part computed, answers every step of secure aggregation.

It runs the same over gRPC and in one process; its trainer, its link, its memory and its ledger are arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from fedseg.errors import (
    BelowQuorum,
    BudgetError,
    Interrupted,
    LedgerError,
    LinkError,
    PlanError,
    ProtocolError,
    StaleSession,
)
from fedseg.federation.exchange import (
    Confirm,
    Enrolled,
    Finished,
    Head,
    Instruction,
    Join,
    Link,
    Paused,
    RingVector,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
    WithdrawReason,
)
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.contribution import Contributor
from fedseg.runtime.countersigning import WitnessedLedger
from fedseg.runtime.evidence import logged_roster, roster_entry
from fedseg.runtime.following import Follower, known_rounds
from fedseg.runtime.local_round import LocalRounds
from fedseg.runtime.measuring import Evaluator
from fedseg.runtime.participation import Participation
from fedseg.runtime.patience import patiently
from fedseg.runtime.ports import Charger, Entropy, Evidence, Memory, Scorer, Trainer
from fedseg.runtime.session import header_of
from fedseg.runtime.work import Worker
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Identity, Roster

T = TypeVar("T")

MOST_REFUSALS = 3


class SiteRunner:
    """Takes part in a study until it ends.

    Args:
        identity: This site, and the roster that its operator has confirmed.
        manifest: The study, as the operator accepted it.
        link: The connection to the server.
        trainer: Local training.
        layout: Order of the network's arrays in the flat vector.
        memory: The site's disk.
        evidence: The site's log.
        confirm: Judges a roster that differs; raises unless the operator has approved it.
        may_reuse: Whether a second sum over a used model, or an evaluation of another model, may have other
            contributors than the first.
        charger: The privacy ledger; None in a study without privacy.
        scorer: Scores on kept-back subjects; None in a study without federated evaluation.
        entropy: Random bytes from the operating system.
        notify: Told what happens; may be called from the training thread.
        stop: Set by Ctrl-C.
        patience_s: Seconds for which an unreachable server is tried again.
    """

    def __init__(
        self,
        identity: Identity,
        manifest: Manifest,
        link: Link,
        trainer: Trainer,
        layout: Layout,
        memory: Memory,
        *,
        evidence: Evidence,
        confirm: Callable[[Enrolled], Roster],
        may_reuse: bool,
        charger: Charger | None,
        scorer: Scorer | None = None,
        entropy: Entropy,
        notify: events.Notify,
        stop: threading.Event,
        patience_s: float = 900.0,
    ) -> None:
        if manifest.plan.private != (charger is not None):
            raise ProtocolError("a private study needs a ledger, and only a private study does")
        self._site, self._manifest, self._link = identity.site, manifest, link
        self._identity, self._confirm_roster, self._may_reuse = identity, confirm, may_reuse
        self._memory, self._evidence = memory, evidence
        self._entropy, self._notify, self._stop, self._patience_s = entropy, notify, stop, patience_s
        self._model = Follower(manifest, link, memory, evidence, notify=notify, patiently=self._patiently)
        self._rounds = LocalRounds(manifest, trainer, layout, memory)
        self._evaluator = Evaluator(manifest, scorer, link, evidence, notify=notify, patiently=self._patiently)
        self._unscored: set[str] = set()
        self._ledger = None if charger is None else self._witnessed(charger)
        contributor = Contributor(
            manifest, identity.site, trainer, layout, self._rounds, self._model, self._evaluator,
            entropy=entropy, notify=notify,
        )  # fmt: skip
        self._worker = Worker(contributor.contribute, memory, self._ledger, stop)
        self._part = self._participation()
        self._offered: bytes | None = None
        self._refusals = 0

    @property
    def released(self) -> Weights | None:
        """What the study gives away as it stands: the newest model that this site holds, or the averaged one."""
        return self._model.released

    @property
    def personal(self) -> Weights | None:
        """This site's own model beside it, where the plan's strategy makes one; it is never sent."""
        released = self._model.released
        return None if released is None else self._rounds.personal(released, self._model.closed_round)

    def run(self) -> Finished:
        """Take part until the study is complete.

        Raises:
            BelowQuorum: if the server paused the study.
            LedgerError: if the privacy ledger lacks what the server has countersigned.
            Interrupted: if `stop` was set; everything needed to go on is kept.
            FedsegError: whatever ended the site's part.
        """
        reason: WithdrawReason = "failed"
        try:
            if self._ledger is not None:
                self._ledger.check(self._identity.roster.server_key)
            self._resume()
            while True:
                if self._stop.is_set():
                    raise Interrupted("this site has left the study for now; nothing is lost")
                finished = self._obey(self._patiently(lambda: self._link.poll(self._part.session)))
                if finished is not None:
                    return finished
                self._sit_out_unscored()
        except Interrupted:
            reason = "interrupted"
            raise
        except BudgetError as error:
            reason = "budget"
            return self._end_on(error)
        finally:
            self._leave(reason)

    def _end_on(self, error: BudgetError) -> Finished:
        """The study may end with the rounds that are closed when a budget ends; otherwise the error passes."""
        instruction = self._patiently(lambda: self._link.poll(None))
        finished = self._dispatch(instruction) if isinstance(instruction, Finished) else None
        if finished is None:
            raise error
        self._notify(events.Note(f"the study ends here: {error.what}"))
        return finished

    def say_goodbye(self, finished: Finished) -> None:
        """Once the final model is stored: forget what only training needed, and let the server know.

        That is a courtesy, so it is said once and without patience.

        Raises:
            StorageError: The disk is failing; the server knows nonetheless.
        """
        with suppress(LinkError, ProtocolError, StaleSession):
            self._link.holds(finished.head.model_hash)
        self._rounds.finish(self._model.closed_round)

    def _witnessed(self, charger: Charger) -> WitnessedLedger:
        return WitnessedLedger(charger, self._manifest, self._site, self._link, self._evidence, self._patiently)

    def _participation(self) -> Participation:
        if self._identity.roster.fingerprint.hex() != logged_roster(self._evidence.entries()):
            rounds = self._manifest.plan.schedule.rounds
            self._evidence.append("roster", roster_entry(self._identity.roster, rounds))
        # A private round over a used model has fresh sampling and noise, and is charged anew.
        reuse = self._may_reuse or self._manifest.plan.private
        return Participation(self._identity, self._memory, self._evidence, entropy=self._entropy, may_reuse=reuse)

    def _resume(self) -> None:
        """Go on with the session that a crash cut short, if what it needs is there: nothing is trained for it again."""
        header = self._part.header
        if header is None or not self._part.awaits_input:
            return
        if self._memory.contribution(header.round, header.model_hash.hex()) is None:
            session = header.sid0()
            self._part.end("the site restarted before its update was computed")
            with suppress(StaleSession, ProtocolError):
                self._withdraw(session, "interrupted")

    def _obey(self, instruction: Instruction) -> Finished | None:
        try:
            finished = self._dispatch(instruction)
        except StaleSession:
            # The session moved on while this site answered; the next poll says where to.
            return None
        except ProtocolError as error:
            self._refuse(error)
            return None
        self._refusals = 0 if isinstance(instruction, Unmask) else self._refusals
        return finished

    def _refuse(self, error: ProtocolError) -> None:
        """Leave a session in which something is wrong, releasing nothing; give up where it keeps happening."""
        self._refusals += 1
        session = self._part.session or self._offered
        self._part.end(error.what)
        self._notify(events.Note(f"this site leaves the attempt: {error}"))
        if session is not None:
            with suppress(ProtocolError):
                self._withdraw(session, "refused")
        if self._refusals > MOST_REFUSALS:
            raise error

    def _dispatch(self, instruction: Instruction) -> Finished | None:
        match instruction:
            case Wait():
                self._notify(events.Waiting(instruction.reason))
            case Join():
                self._join(instruction)
            case ShareKeys() | Submit() | Confirm() | Unmask():
                self._answer(instruction)
            case Paused():
                self._part.end("the study was paused")
                raise BelowQuorum(
                    f"the study is paused: {instruction.reason}", hint="go on with: fedseg client join --state DIR"
                )
            case Finished():
                self._catch_up(instruction.head)
                self._model.check_history(instruction.history)
                self._follow_evaluation(instruction.evaluation)
                self._part.end("the study ended")
                return instruction
        return None

    def _answer(self, asked: ShareKeys | Submit | Confirm | Unmask) -> None:
        part, link = self._part, self._link
        match asked:
            case ShareKeys():
                envelopes = part.share_keys(asked.session, asked.advertisements)
                self._patiently(lambda: link.share_keys(asked.session, envelopes))
            case Submit():
                self._submit(asked)
            case Confirm():
                signature = part.confirm(asked.session, asked.contributors)
                self._patiently(lambda: link.confirm(asked.session, signature))
            case Unmask():
                shares = part.unmask(asked.session, asked.signatures)
                self._patiently(lambda: link.unmask(asked.session, shares))

    def _join(self, instruction: Join) -> None:
        offered = instruction.header
        self._offered = session = offered.sid0()
        self._check_plan(offered)
        self._follow_roster(offered)
        self._catch_up(instruction.head)
        if offered.evaluation:
            self._evaluator.check(offered, instruction.head, self._part)
        else:
            self._check_rounds()
        self._expected_header(offered, instruction.head).check_offer(offered)
        if instruction.head.model_hash in self._unscored or not self._part.may_join(offered):
            self._withdraw(session, "refused")
            return
        try:
            ready = self._worker.prepare(offered, self._identity.roster.server_key)
        except (BudgetError, LedgerError) as error:
            reason: WithdrawReason = "budget" if isinstance(error, BudgetError) else "failed"
            self._withdraw(session, reason)
            raise
        if not ready:
            self._withdraw(session, "interrupted")
            return
        message = self._part.join(offered)
        self._notify(self._started(offered))
        self._patiently(lambda: self._link.advertise(session, message))

    def _started(self, offered: SessionHeader) -> events.Event:
        if offered.evaluation:
            return events.EvaluationStarted(offered.round, offered.attempt)
        missed = any(kind == "fetched" for kind, _ in self._evidence.entries())
        closed = None if missed else len(known_rounds(self._evidence))
        return events.RoundStarted(offered.round, self._manifest.plan.schedule.rounds, offered.attempt, closed)

    def _check_plan(self, offered: SessionHeader) -> None:
        """A version of the plan that nobody here has agreed to is no lie, and ends this process."""
        if offered.plan_hash.hex() == self._manifest.plan_hash:
            return
        self._withdraw(offered.sid0(), "refused")
        raise PlanError(
            f"the study goes on under another plan, {offered.plan_hash.hex()[:16]}, than this site has agreed to, "
            f"{self._manifest.plan_hash[:16]}",
            hint="nothing was sent; to see what changes, and agree: fedseg client join --state DIR",
        )

    def _check_rounds(self) -> None:
        """A study has the rounds of its plan: no server may train on and on."""
        rounds = self._manifest.plan.schedule.rounds
        if len(known_rounds(self._evidence)) >= rounds:
            raise ProtocolError(
                f"the server opens another round, though the {rounds} of the plan are closed",
                hint="nothing was sent; talk to the coordinator",
            )

    def _expected_header(self, offered: SessionHeader, head: Head) -> SessionHeader:
        """The session as this site puts it together: from its own manifest, its own roster, the weights it holds."""
        roster = self._identity.roster
        return header_of(
            self._manifest, roster, offered.round, offered.attempt, head.model_hash, evaluation=offered.evaluation
        )

    def _follow_roster(self, offered: SessionHeader) -> None:
        """Go on under another roster only where this site's operator has approved it."""
        if offered.roster == self._identity.roster.fingerprint:
            return
        roster = self._confirm_roster(self._patiently(self._link.roster))
        if roster != self._identity.roster:
            self._part.end("another roster was approved")
            self._identity = replace(self._identity, roster=roster)
            self._part = self._participation()

    def _submit(self, instruction: Submit) -> None:
        if instruction.session != self._part.session:
            raise ProtocolError("the server asks for the update of another session")
        if self._part.awaits_input and not self._worker.done():
            return
        message, sent = self._part.submit(
            instruction.session, instruction.sharers, instruction.envelopes, self._contribution
        )
        progress = self._transfer("sending the update")
        self._patiently(lambda: self._link.upload(instruction.session, message, sent, progress))

    def _catch_up(self, head: Head) -> None:
        if self._model.catch_up(head, self._part, self._identity.roster.server_key):
            self._refusals = 0

    def _contribution(self) -> RingVector:
        """The contribution to this session, as it was written down when it was computed."""
        header = self._part.header
        kept = None if header is None else self._memory.contribution(header.round, header.model_hash.hex())
        if header is None or kept is None:
            raise ProtocolError("the server asks for an update that this site never computed")
        if not self._part.may_give(header, kept):
            # Where it would be masked it is refused, and any other attempt would end the same way.
            self._unscored.add(header.model_hash.hex())
        return kept

    def _sit_out_unscored(self) -> None:
        """Leave an evaluation for which this site has no scores."""
        model, session = self._worker.given_up(), self._part.session
        if model is None:
            return
        self._unscored.add(model)
        self._part.end("this site's subjects cannot be scored")
        if session is not None:
            with suppress(StaleSession, ProtocolError):
                self._withdraw(session, "failed")

    def _follow_evaluation(self, round_number: int) -> None:
        """Take in what was published of the study's newest evaluation, if there is one."""
        state, released = self._model.state, self._model.released
        if state is not None and released is not None:
            key = self._identity.roster.server_key
            self._evaluator.follow(round_number, model_hash(state), model_hash(released), self._part, key)

    def _leave(self, reason: WithdrawReason) -> None:
        self._worker.close()
        session = self._part.session
        if session is not None:
            self._part.end(f"this site left ({reason})")
            try:
                self._link.withdraw(session, reason)
            except (LinkError, ProtocolError):
                self._notify(events.Note("the server could not be told that this site leaves"))

    # The link.

    def _withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        self._patiently(lambda: self._link.withdraw(session, reason))

    def _transfer(self, what: str) -> Callable[[int, int], None]:
        return lambda done, size: self._notify(events.Transfer(what, done, size))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self._patience_s, notify=self._notify, stop=self._stop)
