"""A site's part in sessions of secure aggregation: each state is on its disk before the message that it holds leaves.

What was sent once is sent again after a restart, or nothing is: keys, shares, masks and signatures of a session are
never made twice. Every message that could count against somebody is in the site's own log (`Said`) before it leaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from fedseg.errors import ProtocolError, StorageError
from fedseg.federation.exchange import RingVector
from fedseg.runtime.evidence import aborted_entry, append_once, session_entry
from fedseg.runtime.ports import Entropy, Evidence, SessionMemory
from fedseg.runtime.said import Said
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from fedseg.secagg.roster import Identity
from fedseg.secagg.site import Advertised, Masked, Shared, Signed, Unmasked, advertise, contribute
from fedseg.secagg.state import Ended, Joined, State, dump, end_of, ended, load, may_join, session_of

Before = TypeVar("Before", Advertised, Shared, Masked, Signed)
After = TypeVar("After", Shared, Masked, Signed, Unmasked)
New = TypeVar("New", Advertised, Shared, Masked, Signed, Unmasked, Joined)


class Participation:
    """One site's sessions, one after another.

    Args:
        identity: The site and the roster that its operator has confirmed.
        memory: Where the state of the newest session is kept.
        evidence: The site's log.
        entropy: Random bytes from the operating system.
        may_reuse: Whether a second sum over a used model, or an evaluation of another model, may have other
            contributors than the first.

    Raises:
        ProtocolError: The state on disk is damaged, or another site's.

    Attributes:
        said: What this site has said in its sessions, this one and those before.
    """

    def __init__(
        self, identity: Identity, memory: SessionMemory, evidence: Evidence, *, entropy: Entropy, may_reuse: bool
    ) -> None:
        self._identity, self._memory, self._evidence = identity, memory, evidence
        self._entropy, self._may_reuse = entropy, may_reuse
        self.said = Said(evidence)
        kept = memory.session()
        self._state: State | None = self._forward(None if kept is None else load(kept, identity))
        if self._is_over():
            # Of another roster, or over by the log when the machine stopped: what was written down of it goes now.
            self._erase()
        self._witness()

    def _forward(self, state: State | None) -> State | None:
        """The state, unless the log has gone past it: then it was set back or lost, and its session is over.

        A state is written down before the log says so, but for step 5: what the log has and the state lacks was said.
        """
        newest = self.said.newest
        if newest is None:
            return state
        session = newest.sid0()
        steps = [kind for kind in _AFTER if self.said.has(kind, session)]
        current = None if state is None else session_of(state)
        behind = current == session and any(isinstance(state, _AFTER[kind]) for kind in steps)
        if not behind and (current == session or (current is not None and not self.said.has("session", current))):
            return state
        return end_of(newest, answered="unmask" in steps)

    @property
    def header(self) -> SessionHeader | None:
        """The session that this site takes part in."""
        return None if self._state is None or isinstance(self._state, Ended) else self._state.header

    @property
    def session(self) -> bytes | None:
        """sid0 of that session."""
        return None if self.header is None else self.header.sid0()

    @property
    def awaits_input(self) -> bool:
        """Whether the session still needs an update to mask."""
        return isinstance(self._state, Advertised | Shared | Joined)

    def may_join(self, header: SessionHeader) -> bool:
        """Whether this session may be joined, or joined still, after what this site has done before."""
        return self._rejoins(header) or may_join(self._left, header)

    def may_give(self, header: SessionHeader, vector: RingVector) -> bool:
        """Whether this may be masked: to evaluations of one model a site gives the same statistics, or nothing."""
        given = self._memory.scored(header.model_hash.hex()) if header.evaluation else None
        return given in (None, _digest(vector))

    def join(self, header: SessionHeader) -> Advertisement | None:
        """Step 1; None in plain mode. The session before is ended, and its keys are gone, before this one has any.

        The same bytes if asked again before step 2.

        Raises:
            ProtocolError: The session is not one of this site's roster, or one that it may not join.
        """
        if not self.may_join(header):
            raise ProtocolError(f"this site has gone past round {header.round}, attempt {header.attempt}")
        if not self._rejoins(header):
            self.end("another session began")
            self._identity.roster.check_header(header)
            if header.thresholds.secure:
                self._go(advertise(header, self._identity, self._entropy))
            else:
                self._go(Joined(header))
        self._witness()
        return self._state.message if isinstance(self._state, Advertised) else None

    def share_keys(self, session: bytes, advertisements: Sequence[Advertisement]) -> Envelopes:
        """Step 2, once; the same bytes if asked again."""
        return self._step(
            session, Advertised, Shared, lambda state: state.share_keys(advertisements, self._entropy)
        ).message

    def submit(
        self, session: bytes, sharers: Sequence[str], envelopes: Mapping[str, bytes], x: Callable[[], RingVector]
    ) -> tuple[MaskedInput, RingVector]:
        """Step 3: the message and the vector to send, the same ones whenever it is asked.

        Args:
            session: sid0.
            sharers: U2; in plain mode the sites that joined.
            envelopes: For this site, by sender.
            x: Gives the encoded update; only asked where it is not masked yet.

        Raises:
            ProtocolError: These are other scores of a model than this site has given before.
        """
        state = self._state
        if isinstance(state, Joined) and session == self.session:
            vector = self._input(state.header, x())
            message = contribute(state.header, self._identity, sharers, vector)
            self._log_input(session, message, sorted(sharers))
            return message, vector

        def mask(state: Shared) -> Masked:
            masked, y = state.mask(envelopes, sharers, self._input(state.header, x()))
            self._memory.save_masked(session, y)
            return masked

        masked = self._step(session, Shared, Masked, mask)
        kept = self._memory.masked(session)
        if kept is None:
            raise StorageError("the masked update of this session is gone from this site's folder")
        return masked.message, kept

    def confirm(self, session: bytes, contributors: Sequence[str]) -> Consistency:
        """Step 4: one signature a session.

        Raises:
            ProtocolError: The contributors cannot be, or are others than those of an earlier sum over this model.
        """

        def sign(state: Masked) -> Signed:
            self._check_reuse(state.header, contributors)
            return state.confirm(contributors)

        return self._step(session, Masked, Signed, sign).message

    def unmask(self, session: bytes, signatures: Mapping[str, bytes]) -> Shares:
        """Step 5, once; the same bytes if asked again."""

        def release(state: Signed) -> Unmasked:
            unmasked = state.unmask(signatures)
            given = {site: signatures[site].hex() for site in sorted(signatures)}
            self.said.say("unmask", session, {**_sets(state), "signatures": given})
            return unmasked

        return self._step(session, Signed, Unmasked, release).message

    def end(self, why: str | None) -> None:
        """Forget every secret of the session; `why` it brought no sum, or None."""
        state = self._state
        if state is None or isinstance(state, Ended):
            return
        if why is not None:
            session = state.header.sid0()
            self.said.say("aborted", session, aborted_entry(session.hex(), why))
        self._erase()

    @property
    def _left(self) -> Ended | None:
        """What must be remembered of the session if it ends here; the log may be a step ahead of the state."""
        if self._state is None:
            return None
        left = ended(self._state)
        return replace(left, answered=left.answered or self.said.has("unmask", left.session))

    def _erase(self) -> None:
        self._state = self._left
        if self._state is not None:
            self._memory.save_session(dump(self._state))

    def _rejoins(self, header: SessionHeader) -> bool:
        return isinstance(self._state, Advertised | Joined) and self._state.header == header

    def _is_over(self) -> bool:
        state = self._state
        if state is None or isinstance(state, Ended):
            return state is not None
        session = state.header.sid0()
        sid = state.sid if isinstance(state, Shared | Masked | Signed | Unmasked) else session
        logged = any(self.said.has(kind, sid) for kind in ("closed", "evaluated")) or self.said.has("aborted", session)
        return logged or state.header.roster != self._identity.roster.fingerprint

    def _step(self, session: bytes, before: type[Before], after: type[After], take: Callable[[Before], After]) -> After:
        self._witness()
        state = self._state
        if session == self.session and isinstance(state, after):
            return state
        if session != self.session or not isinstance(state, before):
            raise ProtocolError("the server asks for a step out of order", hint="this site released nothing")
        return self._go(take(state))

    def _go(self, state: New) -> New:
        self._memory.save_session(dump(state))
        self._state = state
        self._witness()
        return state

    def _witness(self) -> None:
        """See that the log holds what the state says: a crash may have come between the two."""
        state = self._state
        if state is None or isinstance(state, Ended):
            return
        session = state.header.sid0()
        self.said.say("session", session, session_entry(state.header))
        if isinstance(state, Masked):
            self._log_input(session, state.message, state.u2, state.sid)
        if isinstance(state, Signed):
            self.said.say("confirmed", session, {**_sets(state), "signature": state.message.signature.hex()})

    def _log_input(self, session: bytes, message: MaskedInput, u2: Sequence[str], sid: bytes | None = None) -> None:
        said = {"digest": message.digest.hex(), "signature": message.signature.hex()}
        self.said.say("masked", session, {"sid": (sid or session).hex(), "u2": list(u2), **said})

    def _input(self, header: SessionHeader, vector: RingVector) -> RingVector:
        """What is masked, once it is written down what an evaluation gets."""
        if not self.may_give(header, vector):
            raise ProtocolError(
                f"round {header.round} would be a second evaluation of one model, and this site's scores of it are "
                "others than those that it has given: its test subjects have changed, or how it computes",
                hint="what the two differ by can be one subject's scores: nothing was sent; evaluate here with: "
                "fedseg evaluate",
            )
        if header.evaluation:
            self._memory.save_scored(header.model_hash.hex(), _digest(vector))
        return vector

    def _check_reuse(self, header: SessionHeader, contributors: Sequence[str]) -> None:
        """Two sums over one model differ by an update where their contributors do: refuse that, or write it down.

        Signing, not unmasking, is what uses a model: from then on others may have given the sum away. Another attempt
        at one round adds the same updates again, and 2t > n + c keeps the two from both being unmasked. An evaluation
        of one model adds the same statistics each time (`_input`), and is never accepted of others. Evaluations of two
        models differ by other scores, but by the same number of test subjects.
        """
        chosen, used = tuple(sorted(contributors)), self.said.earlier_sums(header)
        measured = self.said.other_evaluations(header)
        apart = {earlier: members for earlier, members in measured.items() if members != chosen}
        self._refuse_others(header, [earlier for earlier, members in used.items() if members != chosen], list(apart))
        for earlier, members in (used | apart).items():
            u3 = {"u3": list(chosen), "earlier_u3": list(members)}
            body = {"model": header.model_hash.hex(), "round": header.round, "earlier_round": earlier, **u3}
            append_once(self._evidence, "reused", body)

    def _refuse_others(self, header: SessionHeader, others: Sequence[int], apart: Sequence[int]) -> None:
        """Refuse a sum of other contributors than those of earlier rounds.

        Args:
            header: The session.
            others: Rounds over its model.
            apart: Evaluations of other models, where it is one.
        """
        if others and header.evaluation:
            raise ProtocolError(
                f"round {header.round} would be a second evaluation of the model of round {others[-1]}, of other "
                "contributors",
                hint="what the two differ by are the scores of single sites: nothing was sent",
            )
        if others and not self._may_reuse:
            raise ProtocolError(
                f"round {header.round} would be a second sum over the model of round {others[-1]}, "
                "of other contributors",
                hint="two such sums can give an update away; a policy with allow_reused_models: true accepts it",
            )
        if apart and not self._may_reuse:
            raise ProtocolError(
                f"round {header.round} would be an evaluation of other contributors than that of round {apart[-1]}",
                hint="what the two differ by can be how many test subjects a site has: nothing was sent; a policy with "
                "allow_reused_models: true accepts it",
            )


# What a state can't be any more once the log holds a record of that kind. (In plain mode Joined stays, and repeats.)
_AFTER: Mapping[str, tuple[type, ...]] = {
    "masked": (Advertised, Shared),
    "confirmed": (Advertised, Shared, Masked),
    "unmask": (Advertised, Shared, Masked),
}


def _digest(vector: RingVector) -> str:
    return hashlib.sha256(vector.astype("<u4").tobytes()).hexdigest()


def _sets(state: Signed) -> dict[str, object]:
    return {"sid": state.sid.hex(), "u2": list(state.u2), "u3": list(state.u3)}
