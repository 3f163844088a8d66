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
    LinkError,
    ProtocolError,
    StaleSession,
)
from fedseg.federation.exchange import (
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
from fedseg.federation.strategy import fed_avg
from fedseg.federation.vector import Layout, Weights, model_hash
from fedseg.plan import Manifest
from fedseg.runtime import events
from fedseg.runtime.patience import patiently
from fedseg.runtime.ports import Charger, Entropy, Memory, Standing, Trainer
from fedseg.runtime.session import encoding_of, header_of
from fedseg.secagg.aggregator import plain_input
from fedseg.secagg.encoding import rounding_seed
from fedseg.secagg.messages import MaskedInput, SessionHeader
from fedseg.secagg.site import Advertised, Masked, Shared, advertise

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
    result: Future[RingVector]


class SiteRunner:
    """Takes part in a study until it ends.

    Args:
        site: This site's name.
        manifest: The study, as the operator accepted it.
        link: The connection to the server.
        trainer: Local training.
        layout: Order of the network's arrays in the flat vector.
        memory: The site's disk.
        charger: The privacy ledger; None in a study without privacy.
        entropy: Random bytes from the operating system.
        notify: Told what happens; may be called from the training thread.
        stop: Set by Ctrl-C.
        patience_s: Seconds for which an unreachable server is tried again.
    """

    def __init__(
        self,
        site: str,
        manifest: Manifest,
        link: Link,
        trainer: Trainer,
        layout: Layout,
        memory: Memory,
        *,
        charger: Charger | None,
        entropy: Entropy,
        notify: events.Notify,
        stop: threading.Event,
        patience_s: float = 900.0,
    ) -> None:
        if manifest.plan.private != (charger is not None):
            raise ProtocolError("a private study needs a ledger, and only a private study does")
        self._site, self._manifest, self._link = site, manifest, link
        self._trainer, self._layout, self._memory, self._charger = trainer, layout, memory, charger
        self._entropy, self._notify, self._stop, self._patience_s = entropy, notify, stop, patience_s
        self._encoding = encoding_of(manifest)
        self._weights = memory.weights()
        self._header: SessionHeader | None = None
        self._keys: Advertised | Shared | Masked | None = None
        self._work: Work | None = None
        self._sent: tuple[MaskedInput, RingVector] | None = None
        self._offered: bytes | None = None
        self._refusals = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")

    @property
    def weights(self) -> Weights | None:
        """The newest model that this site holds."""
        return self._weights

    def run(self) -> Finished:
        """Take part until the study is complete.

        Raises:
            BelowQuorum: if the server paused the study.
            Interrupted: if `stop` was set; everything needed to go on is kept.
            FedsegError: whatever ended the site's part.
        """
        reason: WithdrawReason = "failed"
        try:
            while True:
                if self._stop.is_set():
                    raise Interrupted("this site has left the study for now; nothing is lost")
                finished = self._obey(self._patiently(lambda: self._link.poll(self._session)))
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

    def say_goodbye(self) -> None:
        """Let the server know that this site holds the final model: a courtesy, so once and without patience."""
        with suppress(LinkError):
            self._link.poll(None)

    @property
    def _session(self) -> bytes | None:
        return self._header.sid0() if self._header is not None else None

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
        session, self._header, self._keys, self._sent = self._session or self._offered, None, None, None
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
            case ShareKeys():
                self._share_keys(instruction)
            case Submit():
                self._submit(instruction)
            case Unmask():
                self._unmask(instruction)
            case Paused():
                self._header = None
                raise BelowQuorum(
                    f"the study is paused: {instruction.reason}", hint="go on with: fedseg client join --state DIR"
                )
            case Finished():
                self._catch_up(instruction.head)
                self._header = None
                return instruction
        return None

    def _join(self, instruction: Join) -> None:
        offered = instruction.header
        self._offered, self._header, self._sent = offered.sid0(), None, None
        self._catch_up(instruction.head)
        header_of(self._manifest, offered.round, offered.attempt, instruction.head.model_hash).check_offer(offered)
        session = offered.sid0()
        if not self._memory.standing().allows(offered.round, offered.attempt):
            self._patiently(lambda: self._link.withdraw(session, "refused"))
            return
        try:
            ready = self._prepare(offered, instruction.head.model_hash)
        except BudgetError:
            self._patiently(lambda: self._link.withdraw(session, "budget"))
            raise
        if not ready:
            self._patiently(lambda: self._link.withdraw(session, "interrupted"))
            return
        self._memory.save_standing(Standing(offered.round, offered.attempt))
        # Keys of an earlier attempt are gone before those of this one exist.
        self._keys, message = None, None
        if offered.thresholds.secure:
            self._keys, message = advertise(offered, self._site, self._entropy)
        self._header = offered
        self._notify(events.RoundStarted(offered.round, self._manifest.plan.schedule.rounds, offered.attempt))
        self._patiently(lambda: self._link.advertise(session, message))

    def _share_keys(self, instruction: ShareKeys) -> None:
        keys = self._expect(instruction.session, Advertised)
        self._keys, envelopes = keys.share_keys(instruction.advertisements, self._entropy)
        self._patiently(lambda: self._link.share_keys(instruction.session, envelopes))

    def _submit(self, instruction: Submit) -> None:
        if self._header is None or instruction.session != self._session:
            raise ProtocolError("the server asks for the update of another session")
        if self._sent is None:
            vector = self._contribution()
            if vector is None:
                return
            self._sent = self._masked(self._header, instruction, vector)
        message, sent = self._sent
        progress = self._transfer("sending the update")
        self._patiently(lambda: self._link.upload(instruction.session, message, sent, progress))

    def _masked(self, header: SessionHeader, instruction: Submit, vector: RingVector) -> tuple[MaskedInput, RingVector]:
        """What is sent in this session, made once: an upload that failed is sent again with the same bytes."""
        if not header.thresholds.secure:
            return plain_input(header, self._site, instruction.sharers, vector), vector
        keys = self._expect(instruction.session, Shared)
        self._keys, message, sent = keys.mask(instruction.envelopes, instruction.sharers, vector)
        return message, sent

    def _unmask(self, instruction: Unmask) -> None:
        keys = self._expect(instruction.session, Masked)
        _, shares = keys.unmask(instruction.contributors)
        self._memory.save_standing(replace(self._memory.standing(), unmasked=True))
        self._keys = self._sent = None
        self._patiently(lambda: self._link.unmask(instruction.session, shares))

    def _expect(self, session: bytes, phase: type[T]) -> T:
        if session != self._session or not isinstance(self._keys, phase):
            raise ProtocolError("the server asks for a step out of order", hint="this site released nothing")
        return self._keys

    def _catch_up(self, head: Head) -> None:
        """Hold the study's newest model: from the published sum where possible, else by download."""
        own = None if self._weights is None else model_hash(self._weights)
        if own == head.model_hash:
            return
        if own is not None and head.closed_round and own == head.base_model:
            weights = self._apply(self._weights, head)
        else:
            weights = self._download(head)
        if head.closed_round == 0 and head.model_hash != self._manifest.initial_model:
            raise ProtocolError("the study's first model is not the one that the plan names")
        self._weights, self._refusals = weights, 0
        self._memory.save_weights(weights)

    def _download(self, head: Head) -> Weights:
        progress = self._transfer("fetching the model")
        weights = self._patiently(lambda: self._link.model(head.model_hash, progress))
        if weights.size != self._manifest.parameters or model_hash(weights) != head.model_hash:
            raise ProtocolError("the model that the server sent is not the one it named")
        return weights

    def _apply(self, weights: Weights | None, head: Head) -> Weights:
        progress = self._transfer("fetching the sum")
        published = self._patiently(lambda: self._link.published(head.closed_round, progress))
        mean, _ = self._encoding.decode(published.total, len(published.contributors))
        if weights is None or len(published.contributors) < self._manifest.quorum:
            raise ProtocolError(f"round {head.closed_round} was closed below the quorum")
        following = fed_avg(weights, mean)
        if model_hash(following) != head.model_hash:
            raise ProtocolError(
                f"the server names model {head.model_hash[:16]} where its own sum gives {model_hash(following)[:16]}",
                hint="stop and talk to the coordinator: the server is broken, or lies",
            )
        return following

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
        if self._charger is not None:
            if not self._charger.charge(header.round, header.attempt, model):
                return False
            claim = self._charger.claim()
            self._patiently(lambda: self._link.claim(claim))
        stop = threading.Event()
        result = self._pool.submit(self._train, header.round, model, stop)
        self._work = Work(header.round, header.attempt, model, stop, result)
        return True

    def _train(self, round_number: int, model: str, stop: threading.Event) -> RingVector:
        if self._weights is None:
            raise ProtocolError("there is no model to train")
        update = self._trainer.update(
            self._layout.unflatten(self._weights),
            round_number,
            entropy=self._entropy,
            on_step=lambda done, steps: self._notify(events.Training(round_number, done, steps)),
            should_stop=lambda: stop.is_set() or self._stop.is_set(),
        )
        plan = self._manifest.plan
        seed = rounding_seed(plan.seed, round_number, self._site)
        encoded = self._encoding.encode(self._layout.flatten(update), plan.sites[self._site].weight, seed)
        if encoded.rescaled:
            self._notify(
                events.Note(
                    f"round {round_number}: the update's norm {encoded.norm:.3g} was brought down to the plan's clip"
                )
            )
        self._memory.save_contribution(round_number, model, encoded.vector)
        return encoded.vector

    def _contribution(self) -> RingVector | None:
        """The contribution to this session; None while it is being computed."""
        if self._work is not None:
            try:
                vector = self._work.result.result(HEARTBEAT_S)
            except FutureTimeout:
                return None
            if self._charger is not None:
                self._charger.commit(self._work.round, self._work.attempt)
            self._work = None
            return vector
        kept = None
        if self._header is not None:
            kept = self._memory.contribution(self._header.round, self._header.model_hash.hex())
        if kept is None:
            raise ProtocolError("the server asks for an update that this site never computed")
        return kept

    def _check_work(self) -> None:
        if self._work is not None and self._work.result.done():
            self._work.result.result()

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
        session = self._session
        if session is not None:
            try:
                self._link.withdraw(session, reason)
            except (LinkError, ProtocolError):
                self._notify(events.Note("the server could not be told that this site leaves"))

    # The link.

    def _transfer(self, what: str) -> Callable[[int, int], None]:
        return lambda done, size: self._notify(events.Transfer(what, done, size))

    def _patiently(self, call: Callable[[], T]) -> T:
        return patiently(call, self._patience_s, notify=self._notify, stop=self._stop)
