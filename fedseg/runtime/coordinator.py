"""The server's side of a study: what sites ask and send, one at a time.

What follows from it is the `Course`'s; what must survive is kept in an `Archive`. It knows no wire: `rpc.service` and
`runtime.simulation` call the same methods.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from fedseg.errors import ProtocolError, SiteFault, StaleSession, Unreachable
from fedseg.federation.evaluation import aggregate_of
from fedseg.federation.exchange import (
    Countersigned,
    Enrolled,
    Instruction,
    LedgerClaim,
    Paused,
    Published,
    RingVector,
    Wait,
    WithdrawReason,
)
from fedseg.federation.round import Phase
from fedseg.federation.vector import Weights
from fedseg.plan.manifest import Manifest
from fedseg.runtime import events
from fedseg.runtime.archive import Archive
from fedseg.runtime.attempt import Attempt
from fedseg.runtime.countersigning import Countersigner
from fedseg.runtime.course import Course, StudyState
from fedseg.runtime.ports import Evidence
from fedseg.runtime.presence import Presence
from fedseg.runtime.register import Register
from fedseg.runtime.session import encoding_of, evaluation_code
from fedseg.secagg.aggregator import PlainAggregator
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares

POLL_HOLD_S = 5.0

Clock = Callable[[], float]


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
        self._manifest, self._archive = manifest, archive
        self._plan = manifest.plan_hash
        self._enrolled, self._clock = enrolled, clock
        self._register = Register(manifest, archive, key, evidence, now, evaluate=evaluate)
        self._asked_to_evaluate = evaluate
        self._countersigner = Countersigner(manifest, archive, key, evidence)
        self._encoding = encoding_of(manifest)
        self._presence = Presence(clock, manifest.plan.schedule.absent_after_s)
        self._told: set[str] = set()
        self._changed = threading.Condition(threading.RLock())
        with self._changed:
            self._course = Course(
                manifest,
                archive,
                self._register,
                self._presence,
                enrolled=enrolled,
                clock=clock,
                notify=notify,
                changed=self._changed.notify_all,
                evaluate=evaluate,
            )

    # What the outside may know.

    @property
    def state(self) -> StudyState:
        """Where the study stands."""
        return self._course.state

    @property
    def reason(self) -> str:
        """Why the study is paused, or what it waits for."""
        return self._course.reason

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
            self._course.advance()
            if self.state in (StudyState.GATHERING, StudyState.RUNNING):
                self._changed.wait(timeout_s)
            return self.state

    def without_model(self) -> tuple[str, ...]:
        """Sites that have not fetched the final model."""
        return tuple(sorted(set(self._manifest.plan.site_names) - self._archive.finished(self._plan)))

    def all_told(self) -> bool:
        """Whether every site that is there has heard of the end; of completion by holding the final model."""
        with self._changed:
            told = self._told
            if self.state is StudyState.COMPLETE and not self._asked_to_evaluate:
                told = told | self._archive.finished(self._plan)
            return all(site in told for site in self._presence.there())

    def pause(self, reason: str) -> None:
        """Stop for now: every site that asks is told so. The attempt under way is abandoned."""
        with self._changed:
            self._course.pause(reason)

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
        self._presence.alive(site)

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
                self._course.advance()
                instruction = self._course.instruction(site)
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
            attempt.advertise(site, advertisement)
            self._arrived(attempt, site)

    def share_keys(self, site: str, session: bytes, envelopes: Envelopes) -> None:
        """Step 2."""
        with self._changed:
            attempt = self._require(site, session, Phase.SHARE_KEYS)
            attempt.share_keys(site, envelopes)
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
            attempt.mask(message, vector)
            self._arrived(attempt, site)

    def confirm(self, site: str, session: bytes, message: Consistency) -> None:
        """Step 4."""
        with self._changed:
            attempt = self._require(site, session, Phase.CONSISTENCY)
            attempt.confirm(site, message)
            self._arrived(attempt, site)

    def unmask(self, site: str, session: bytes, shares: Shares) -> None:
        """Step 5."""
        with self._changed:
            attempt = self._require(site, session, Phase.UNMASK)
            attempt.unmask(site, shares)
            self._arrived(attempt, site)

    def withdraw(self, site: str, session: bytes, reason: WithdrawReason) -> None:
        """A site leaves the attempt: nobody waits for it."""
        with self._changed:
            attempt = self._course.attempt
            if attempt is not None and attempt.session == session:
                self._course.withdraw(attempt, site, reason)

    def claim(self, site: str, claim: LedgerClaim) -> Countersigned:
        """What a site says of its privacy ledger; the server's signature, where it goes on from what it signed last.

        Raises:
            LedgerError: It doesn't: the site's ledger was set back or copied.
        """
        with self._changed:
            self.alive(site)
            signed = self._countersigner.judge(site, claim)
            with self._course.kept_or_paused():
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
            if self.state is not StudyState.COMPLETE or model != self._register.hash:
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

    # What they may say when.

    def _require(self, site: str, session: bytes, phase: Phase) -> Attempt:
        attempt = self._course.attempt
        if attempt is None or attempt.session != session or attempt.phase is not phase or site in attempt.left:
            raise StaleSession("that session has moved on", hint="ask again what to do")
        return attempt

    def _arrived(self, attempt: Attempt, site: str) -> None:
        attempt.arrived.add(site)
        self.alive(site)
        self._course.advance()
        self._changed.notify_all()

    def _forgotten(self, site: str, session: bytes | None) -> None:
        attempt = self._course.attempt
        if attempt and site in attempt.joined and site not in attempt.left and session != attempt.session:
            self._course.lose(attempt, site, "restarted during the round")

    def _check_alone(self, attempt: Attempt, site: str, vector: RingVector) -> None:
        """In plain mode every update can be held to the clip by itself; a site that breaks it is out, by name."""
        try:
            if attempt.row.evaluation:
                aggregate_of(evaluation_code(self._manifest), vector, 1)
            else:
                self._encoding.decode(vector, [self._manifest.plan.sites[site].weight])
        except ProtocolError as error:
            reason = "sent an update that breaks the plan's clip, its weight or the range of scores"
            self._course.lose(attempt, site, reason)
            self._course.advance()
            raise SiteFault(site, Phase.MASKED_INPUT.value, reason) from error
