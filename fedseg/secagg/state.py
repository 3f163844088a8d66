"""A site's state as bytes, and back: what it writes down before a message leaves.

The states of a session only go forward: Advertised, Shared, Masked, Signed, Unmasked, and at last `Ended`, in which no
secret is left. (Idle is no record at all; `Joined` stands for all of them in plain mode, which has no secrets.)
Whoever reads a record back finds the message that the state had sent or was about to send, and can send nothing else.
All but `Ended` and `Joined` are secret.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedseg.errors import ProtocolError
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares, sid
from fedseg.secagg.roster import Identity
from fedseg.secagg.sealing import KEY_SIZE
from fedseg.secagg.session import DOMAIN, HASH_SIZE, check_hash
from fedseg.secagg.shamir import SHARE_SIZE, Share
from fedseg.secagg.site import Advertised, Held, Keys, Masked, Shared, Signed, Unmasked
from fedseg.secagg.thresholds import MAX_SITES
from fedseg.secagg.wire import Reader, Writer

_TAG = DOMAIN + b"state\0"


@dataclass(frozen=True)
class Joined:
    """In plain mode: the site has said that it will contribute to this session."""

    header: SessionHeader


@dataclass(frozen=True)
class Ended:
    """Done or aborted: what must be remembered of a session for good.

    Attributes:
        round: Its round.
        attempt: Its attempt.
        answered: Whether step 5 was, or may have been, answered: then no other attempt at the round may be joined.
        session: sid0.
        roster: The fingerprint of the roster that it was under.
    """

    round: int
    attempt: int
    answered: bool
    session: bytes
    roster: bytes

    def __post_init__(self) -> None:
        """Check the hashes."""
        check_hash(self.session, "session")
        check_hash(self.roster, "roster's fingerprint")


Live = Advertised | Shared | Masked | Signed | Unmasked
State = Live | Joined | Ended


def session_of(state: State) -> bytes:
    """sid0 of the session that a state belongs to."""
    return state.session if isinstance(state, Ended) else state.header.sid0()


def ended(state: State) -> Ended:
    """What is left of a state when its session is over, however it ended."""
    if isinstance(state, Ended):
        return state
    header = state.header
    return end_of(header, answered=isinstance(state, Unmasked))


def end_of(header: SessionHeader, *, answered: bool) -> Ended:
    """What is left of a session."""
    return Ended(header.round, header.attempt, answered, header.sid0(), header.roster)


def may_join(state: State | None, header: SessionHeader) -> bool:
    """Whether a site whose last session stands at `state` may join another one.

    A later round always; a later attempt at the same round unless step 5 was answered in an earlier one, or the roster
    has changed since: a site that enrolled anew has forgotten what it answered, so that two attempts over the same
    updates could both be unmasked, and bare the update by which they differ.
    """
    if state is None:
        return True
    last = ended(state)
    if header.round == last.round:
        return header.attempt > last.attempt and not last.answered and header.roster == last.roster
    return header.round > last.round


def dump(state: State) -> bytes:
    """The canonical bytes of a state. They are secret, as the state is."""
    writer = Writer(_TAG).text(type(state).__name__)
    if isinstance(state, Ended):
        writer.uint(state.round, 4).uint(state.attempt, 1).uint(int(state.answered), 1).raw(state.session)
        writer.raw(state.roster)
        return writer.done()
    writer.blob(state.header.to_bytes())
    if isinstance(state, Joined):
        return writer.done()
    _write(writer.blob(state.message.to_bytes()), state)
    return writer.done()


def load(data: bytes, identity: Identity) -> State:
    """The state in exactly these bytes.

    Args:
        data: From `dump`.
        identity: The site. A session of another roster than its own has ended: only that is left of it.

    Raises:
        ProtocolError: Anything else, or another site's state.
    """
    reader = Reader(data, _TAG, "state of a session")
    kind = reader.text("kind of state")
    if kind == Ended.__name__:
        last = Ended(reader.uint(4), reader.uint(1), reader.flag(), reader.raw(HASH_SIZE), reader.raw(HASH_SIZE))
        reader.done()
        return last
    if kind != Joined.__name__ and kind not in _LOADERS:
        raise ProtocolError(f"there is no state of a session called {kind}")
    header = SessionHeader.from_bytes(reader.blob())
    if header.roster != identity.roster.fingerprint:
        return end_of(header, answered=kind == Unmasked.__name__)
    if kind == Joined.__name__:
        reader.done()
        return Joined(header)
    state = _LOADERS[kind](reader, header, identity, reader.blob())
    reader.done()
    if state.message.site != identity.site:
        raise ProtocolError("this state of a session is another site's")
    if dump(state) != data or not _fits(state):
        raise ProtocolError("this state of a session is damaged: its parts do not fit each other")
    return state


def _fits(state: Live) -> bool:
    """Whether the site is in each list, each list within the one before, and a share held for each site of U2."""
    match state:
        case Shared():
            return state.site in state.u1 and sid(state.header, list(state.u1.values())) == state.sid
        case Masked():
            return state.held.keys() == set(state.u2) and {state.site} <= set(state.u2) <= set(state.header.sites)
        case Signed():
            nested = {state.site} <= set(state.u3) <= set(state.u2) <= set(state.header.sites)
            return state.held.keys() == set(state.u2) and nested
    return True


def _write(writer: Writer, state: Live) -> None:
    match state:
        case Advertised():
            _write_keys(writer, state.keys)
        case Shared():
            _write_keys(writer, state.keys).raw(state.sid).raw(_shares(state.own)).uint(len(state.u1), 2)
            for site in sorted(state.u1):
                writer.blob(state.u1[site].to_bytes())
        case Masked():
            _write_held(writer.raw(state.sid).names(state.u2), state.held)
        case Signed():
            _write_held(writer.raw(state.sid).names(state.u2).names(state.u3), state.held)
        case Unmasked():
            writer.raw(state.sid).names(state.u2).names(state.u3)


def _advertised(reader: Reader, header: SessionHeader, identity: Identity, message: bytes) -> Advertised:
    return Advertised(header, identity, _read_keys(reader), Advertisement.from_bytes(message))


def _shared(reader: Reader, header: SessionHeader, identity: Identity, message: bytes) -> Shared:
    keys, sid, own = _read_keys(reader), reader.raw(HASH_SIZE), _held(reader.raw(2 * SHARE_SIZE))
    advertisements = [Advertisement.from_bytes(reader.blob()) for _ in range(reader.count(MAX_SITES))]
    u1 = {each.site: each for each in advertisements}
    return Shared(header, identity, keys, Envelopes.from_bytes(message), sid, u1, own)


def _masked(reader: Reader, header: SessionHeader, identity: Identity, message: bytes) -> Masked:
    sid, u2 = reader.raw(HASH_SIZE), reader.names(MAX_SITES)
    return Masked(header, identity, MaskedInput.from_bytes(message), sid, u2, _read_held(reader))


def _signed(reader: Reader, header: SessionHeader, identity: Identity, message: bytes) -> Signed:
    sid, u2, u3 = reader.raw(HASH_SIZE), reader.names(MAX_SITES), reader.names(MAX_SITES)
    return Signed(header, identity, Consistency.from_bytes(message), sid, u2, u3, _read_held(reader))


def _unmasked(reader: Reader, header: SessionHeader, identity: Identity, message: bytes) -> Unmasked:
    sid, u2, u3 = reader.raw(HASH_SIZE), reader.names(MAX_SITES), reader.names(MAX_SITES)
    return Unmasked(header, identity, Shares.from_bytes(message), sid, u2, u3)


_LOADERS: Mapping[str, Callable[[Reader, SessionHeader, Identity, bytes], Live]] = {
    "Advertised": _advertised,
    "Shared": _shared,
    "Masked": _masked,
    "Signed": _signed,
    "Unmasked": _unmasked,
}


def _shares(held: Held) -> bytes:
    return held.seed_share.to_bytes() + held.key_share.to_bytes()


def _held(data: bytes) -> Held:
    return Held(Share.from_bytes(data[:SHARE_SIZE]), Share.from_bytes(data[SHARE_SIZE:]))


def _write_held(writer: Writer, held: Mapping[str, Held]) -> None:
    writer.table({site: _shares(shares) for site, shares in held.items()})


def _read_held(reader: Reader) -> dict[str, Held]:
    return {site: _held(data) for site, data in reader.table(2 * SHARE_SIZE, MAX_SITES).items()}


def _write_keys(writer: Writer, keys: Keys) -> Writer:
    return writer.raw(keys.envelope).raw(keys.mask).raw(keys.seed)


def _read_keys(reader: Reader) -> Keys:
    return Keys(reader.raw(KEY_SIZE), reader.raw(KEY_SIZE), reader.raw(KEY_SIZE))
