"""A site's side of a study: polls, trains in the background, answers every step of secure aggregation.

It runs the same over gRPC and in one process; its trainer, its link, its memory and its ledger are arguments.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, replace
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
from fedseg.federation.parts import Turn
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.countersigning import WitnessedLedger
from fedseg.runtime.evidence import logged_roster, roster_entry
from fedseg.runtime.following import Follower
from fedseg.runtime.local_round import LocalRounds, as_sent
from fedseg.runtime.measuring import Evaluator
from fedseg.runtime.participation import Participation
from fedseg.runtime.patience import patiently
from fedseg.runtime.ports import Arrays, Charger, Entropy, Evidence, Memory, OnStep, Scorer, ShouldStop, Trainer
from fedseg.runtime.session import encoding_of, header_of, noise_share
from fedseg.secagg.encoding import Encoding, rounding_seed
from fedseg.secagg.integers import IntegerCode
from fedseg.secagg.messages import SessionHeader
from fedseg.secagg.roster import Identity, Roster

T = TypeVar("T")

HEARTBEAT_S = 1.0
MOST_REFUSALS = 3


@dataclass
class Work:
    """Training for one round, in the background."""

    round: int
    attempt: int
    model: str
    stop: threading.Event
    result: Future[RingVector | None]


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
        may_reuse: Whether a second sum over a used model may have other contributors than the first.
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
        self._trainer, self._layout, self._memory, self._evidence = trainer, layout, memory, evidence
        self._entropy, self._notify, self._stop, self._patience_s = entropy, notify, stop, patience_s
        self._encoding = encoding_of(manifest)
        self._sent = layout.within(layout.names_in(manifest.trained))
        self._model = Follower(manifest, link, memory, evidence, notify=notify, patiently=self._patiently)
        self._rounds = LocalRounds(manifest, trainer, layout, memory)
        self._evaluator = Evaluator(manifest, scorer, link, evidence, notify=notify, patiently=self._patiently)
        self._unscored: set[str] = set()
        self._ledger = None if charger is None else self._witnessed(charger)
        self._work: Work | None = None
        self._part = self._participation()
        self._offered: bytes | None = None
        self._refusals = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")

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
                self._check_work()
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
        """Let the server know that this site holds the final model: a courtesy, so once and without patience."""
        with suppress(LinkError, ProtocolError, StaleSession):
            self._link.holds(finished.head.model_hash)

    def _witnessed(self, charger: Charger) -> WitnessedLedger:
        return WitnessedLedger(charger, self._manifest, self._site, self._link, self._evidence, self._patiently)

    def _participation(self) -> Participation:
        if self._identity.roster.fingerprint.hex() != logged_roster(self._evidence.entries()):
            self._evidence.append("roster", roster_entry(self._identity.roster))
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
                self._patiently(lambda: self._link.withdraw(session, "interrupted"))

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
                self._patiently(lambda: self._link.withdraw(session, "refused"))
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
            self._patiently(lambda: self._link.withdraw(session, "refused"))
            return
        try:
            ready = self._prepare(offered, instruction.head.model_hash)
        except (BudgetError, LedgerError) as error:
            reason: WithdrawReason = "budget" if isinstance(error, BudgetError) else "failed"
            self._patiently(lambda: self._link.withdraw(session, reason))
            raise
        if not ready:
            self._patiently(lambda: self._link.withdraw(session, "interrupted"))
            return
        message = self._part.join(offered)
        started = events.RoundStarted(offered.round, self._manifest.plan.schedule.rounds, offered.attempt)
        self._notify(events.EvaluationStarted(offered.round, offered.attempt) if offered.evaluation else started)
        self._patiently(lambda: self._link.advertise(session, message))

    def _check_plan(self, offered: SessionHeader) -> None:
        """A version of the plan that nobody here has agreed to is no lie, and ends this process."""
        if offered.plan_hash.hex() == self._manifest.plan_hash:
            return
        self._patiently(lambda: self._link.withdraw(offered.sid0(), "refused"))
        raise PlanError(
            f"the study goes on under another plan, {offered.plan_hash.hex()[:16]}, than this site has agreed to, "
            f"{self._manifest.plan_hash[:16]}",
            hint="nothing was sent; to see what changes, and agree: fedseg client join --state DIR",
        )

    def _check_rounds(self) -> None:
        """A study has the rounds of its plan: no server may train on and on."""
        rounds = self._manifest.plan.schedule.rounds
        if len({body["round"] for kind, body in self._evidence.entries() if kind == "closed"}) >= rounds:
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
        if self._part.awaits_input and not self._trained():
            return
        message, sent = self._part.submit(
            instruction.session, instruction.sharers, instruction.envelopes, self._contribution
        )
        progress = self._transfer("sending the update")
        self._patiently(lambda: self._link.upload(instruction.session, message, sent, progress))

    def _catch_up(self, head: Head) -> None:
        if self._model.catch_up(head, self._part, self._identity.roster.server_key):
            self._refusals = 0

    # Training.

    def _prepare(self, header: SessionHeader, model: str) -> bool:
        """See that the round's contribution exists or is being computed.

        Returns:
            False where it was charged before, but never finished: this site sits the attempt out.
        """
        work = self._work
        if work is not None and (work.round, work.model) == (header.round, model):
            return True
        self._drop_work()
        if self._memory.contribution(header.round, model) is not None:
            return True
        key = self._identity.roster.server_key
        if self._ledger is not None and not self._ledger.charge(header.round, header.attempt, model, key):
            return False
        stop = threading.Event()
        result = self._pool.submit(self._measure if header.evaluation else self._train, header.round, model, stop)
        self._work = Work(header.round, header.attempt, model, stop, result)
        return True

    def _measure(self, round_number: int, model: str, stop: threading.Event) -> RingVector | None:
        """This site's scores of the model that the study gives away, as they are summed; None where it has none."""
        if (released := self._model.released) is None:
            raise ProtocolError("there is no model to evaluate")
        weights = self._layout.unflatten(released)
        vector = self._evaluator.contribution(weights, lambda: stop.is_set() or self._stop.is_set())
        if vector is not None:
            self._memory.save_contribution(round_number, model, vector)
        return vector

    def _train(self, round_number: int, model: str, stop: threading.Event) -> RingVector:
        if (state := self._model.state) is None:
            raise ProtocolError("there is no model to train")
        turn = self._rounds.turn(round_number, self._model.closed_round, state)

        def should_stop() -> bool:
            return stop.is_set() or self._stop.is_set()

        def on_step(done: int, steps: int) -> None:
            self._notify(events.Training(round_number, done, steps))

        if isinstance(self._encoding, IntegerCode):
            vector = self._summed(self._encoding, self._rounds.start(turn), on_step, should_stop)
        else:
            vector = self._updated(self._encoding, turn, on_step, should_stop)
        self._memory.save_contribution(round_number, model, vector)
        return vector

    def _updated(self, code: Encoding, turn: Turn, on_step: OnStep, should_stop: ShouldStop) -> RingVector:
        """A round of training of this site's own, as it is sent; what stays here is kept."""
        plan, rounds = self._manifest.plan, self._rounds
        score = self._trainer.score(rounds.start(turn), should_stop=should_stop) if code.scored else None
        trained = rounds.train(turn, entropy=self._entropy, on_step=on_step, should_stop=should_stop)
        weight = plan.sites[self._site].weight
        encoded = code.encode(trained.update, weight, rounding_seed(plan.seed, turn.number, self._site), score)
        self._notify(events.Encoded(turn.number, encoded.norm, plan.aggregation.clip, encoded.relative_error))
        rounds.keep(trained, as_sent(code, encoded, weight))
        return encoded.vector

    def _summed(self, code: IntegerCode, weights: Arrays, on_step: OnStep, should_stop: ShouldStop) -> RingVector:
        """This site's part of one pooled step: integers that hold its share of the noise already."""
        share = noise_share(self._manifest)
        if share is None:
            raise ProtocolError("a pooled step without its noise")
        summed = self._trainer.gradient_sum(
            weights, share, entropy=self._entropy, on_step=on_step, should_stop=should_stop
        )
        return code.encode(self._sent.flatten(summed))

    def _trained(self) -> bool:
        """Whether the contribution to this session is there; waits for it as long as a heartbeat."""
        if self._work is not None:
            try:
                done = self._work.result.result(HEARTBEAT_S)
            except FutureTimeout:
                return False
            if done is None:
                self._sit_out(self._work)
                return False
            if self._ledger is not None:
                self._ledger.commit(self._work.round, self._work.attempt)
            self._work = None
        return True

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

    def _check_work(self) -> None:
        if self._work is not None and self._work.result.done() and self._work.result.result() is None:
            self._sit_out(self._work)

    def _sit_out(self, work: Work) -> None:
        """Leave an evaluation for which this site has no scores."""
        self._work, session = None, self._part.session
        self._unscored.add(work.model)
        self._part.end("this site's subjects cannot be scored")
        if session is not None:
            with suppress(StaleSession, ProtocolError):
                self._patiently(lambda: self._link.withdraw(session, "failed"))

    def _follow_evaluation(self, round_number: int) -> None:
        """Take in what was published of the study's newest evaluation, if there is one."""
        state, released = self._model.state, self._model.released
        if state is not None and released is not None:
            key = self._identity.roster.server_key
            self._evaluator.follow(round_number, model_hash(state), model_hash(released), self._part, key)

    def _drop_work(self) -> None:
        if self._work is not None:
            self._work.stop.set()
            try:
                self._work.result.result()
            except Interrupted:
                pass
            finally:
                self._work = None

    def _leave(self, reason: WithdrawReason) -> None:
        if self._work is not None:
            self._work.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        session = self._part.session
        if session is not None:
            self._part.end(f"this site left ({reason})")
            try:
                self._link.withdraw(session, reason)
            except (LinkError, ProtocolError):
                self._notify(events.Note("the server could not be told that this site leaves"))

    # The link.

    def _transfer(self, what: str) -> Callable[[int, int], None]:
        return lambda done, size: self._notify(events.Transfer(what, done, size))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self._patience_s, notify=self._notify, stop=self._stop)
