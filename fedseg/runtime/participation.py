"""A site's part in sessions of secure aggregation: each state is on its disk before the message that it holds leaves.

What was sent once is sent again after a restart, or nothing is: keys, shares, masks and signatures of a session are
never made twice. Every message that could count against somebody is in the site's own log before it leaves, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fedseg.errors import ProtocolError, StorageError
from fedseg.federation.exchange import Published, RingVector
from fedseg.runtime.evidence import aborted_entry, append_once, session_entry
from fedseg.runtime.ports import Entropy, Evidence, SessionMemory
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
        may_reuse: Whether a second sum over a used model may have other contributors than the first.

    Raises:
        ProtocolError: The state on disk is damaged, or another site's.
    """

    def __init__(
        self, identity: Identity, memory: SessionMemory, evidence: Evidence, *, entropy: Entropy, may_reuse: bool
    ) -> None:
        self._identity, self._memory, self._evidence = identity, memory, evidence
        self._entropy, self._may_reuse = entropy, may_reuse
        self._logged: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._headers: dict[str, SessionHeader] = {}
        self._signed: dict[str, tuple[str, ...]] = {}
        self._used: dict[tuple[bytes, bool], dict[int, tuple[str, ...]]] = {}
        for kind, body in evidence.entries():
            self._note(kind, body)
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
        if not self._headers:
            return state
        newest = next(reversed(self._headers))
        steps = [kind for kind in _AFTER if (kind, newest) in self._logged]
        current = None if state is None else session_of(state).hex()
        behind = current == newest and any(isinstance(state, _AFTER[kind]) for kind in steps)
        if not behind and (current == newest or (current is not None and current not in self._headers)):
            return state
        return end_of(self._headers[newest], answered="unmask" in steps)

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

    def base_of(self, round_number: int) -> str | None:
        """The model from which a round that this site took part in started, in hex."""
        models = [header.model_hash.hex() for header in self._headers.values() if header.round == round_number]
        return models[-1] if models else None

    @property
    def evaluations(self) -> frozenset[int]:
        """The evaluations to which this site has given its scores, by round."""
        given = (self._headers[session] for kind, session in self._logged if kind == "masked")
        return frozenset(header.round for header in given if header.evaluation)

    def denies(self, published: Published) -> bool:
        """Whether the sum can't be one: of others than this site has signed for, or of an attempt too many.

        Once step 5 was asked for, a round has no other attempt.
        """
        sid = published.session.hex()
        if sid in self._signed:
            return self._signed[sid] != published.contributors
        answered = [session for kind, session in self._logged if kind == "unmask"]
        return published.round in [self._headers[session].round for session in answered if session in self._headers]

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
            self._log("unmask", session, {**_sets(state), "signatures": given})
            return unmasked

        return self._step(session, Signed, Unmasked, release).message

    def end(self, why: str | None) -> None:
        """Forget every secret of the session; `why` it brought no sum, or None."""
        state = self._state
        if state is None or isinstance(state, Ended):
            return
        if why is not None:
            session = state.header.sid0()
            self._log("aborted", session, aborted_entry(session.hex(), why))
        self._erase()

    @property
    def _left(self) -> Ended | None:
        """What must be remembered of the session if it ends here; the log may be a step ahead of the state."""
        if self._state is None:
            return None
        left = ended(self._state)
        return replace(left, answered=left.answered or ("unmask", left.session.hex()) in self._logged)

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
        logged = any((kind, sid.hex()) in self._logged for kind in ("closed", "evaluated"))
        logged = logged or ("aborted", session.hex()) in self._logged
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
        self._log("session", session, session_entry(state.header))
        if isinstance(state, Masked):
            self._log_input(session, state.message, state.u2, state.sid)
        if isinstance(state, Signed):
            self._log("confirmed", session, {**_sets(state), "signature": state.message.signature.hex()})

    def _log_input(self, session: bytes, message: MaskedInput, u2: Sequence[str], sid: bytes | None = None) -> None:
        said = {"digest": message.digest.hex(), "signature": message.signature.hex()}
        self._log("masked", session, {"sid": (sid or session).hex(), "u2": list(u2), **said})

    def _log(self, kind: str, session: bytes, body: Mapping[str, object]) -> None:
        """Append to the log what is not in it yet.

        Raises:
            ProtocolError: This site has signed something else there: whatever was about to leave must not.
        """
        entry = {"session": session.hex(), **body}
        said = self._logged.get((kind, session.hex()))
        if said is None:
            self._evidence.append(kind, entry)
            self._note(kind, entry)
        elif said.get("signature") != entry.get("signature"):
            raise ProtocolError(f"this site has said something else in this session ({kind})", hint="nothing was sent")

    def _note(self, kind: str, body: Mapping[str, Any]) -> None:
        session = str(body.get("session"))
        self._logged.setdefault((kind, session), body)
        if kind == "session":
            self._headers[session] = SessionHeader.from_bytes(bytes.fromhex(body["header"]))
        if kind == "confirmed" and session in self._headers:
            header, members = self._headers[session], tuple(body["u3"])
            self._used.setdefault((header.model_hash, header.evaluation), {})[header.round] = members
            self._signed[body["sid"]] = members

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
        adds the same statistics each time (`_input`), and is never accepted of others.
        """
        chosen, used = tuple(sorted(contributors)), dict(self._used.get((header.model_hash, header.evaluation), {}))
        used.pop(header.round, None)
        others = [earlier for earlier, members in used.items() if members != chosen]
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
        for earlier, members in used.items():
            u3 = {"u3": list(chosen), "earlier_u3": list(members)}
            body = {"model": header.model_hash.hex(), "round": header.round, "earlier_round": earlier, **u3}
            append_once(self._evidence, "reused", body)


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
