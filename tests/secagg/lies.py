"""What an honest server would send to a site, and what this one sends.

Each lie makes of what is honest something that no site may accept, whatever came before. Beside each stands what a
site answers that is told it in the midst of an honest run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

from fedseg.secagg.encoding import Encoding
from fedseg.secagg.messages import Advertisement, Consistency, Phase, SessionHeader
from fedseg.secagg.roster import Identity
from fedseg.secagg.sealing import public_key
from fedseg.secagg.signing import sign
from fedseg.secagg.thresholds import Thresholds

from .adversary import Server
from .helpers import NAMES, key, roster, session

U1 = list[Advertisement]
U2 = tuple[list[str], dict[str, bytes]]
Signatures = dict[str, bytes]
Sent = TypeVar("Sent")


@dataclass(frozen=True)
class Lie(Generic[Sent]):
    """Makes what is sent to a site out of what would be honest; and the site's answer, as a regular expression."""

    of: Callable[[Server, str, Sent], Sent]
    answer: str


def world(n: int, c: int | None = None, helpers: Collection[str] = ()) -> Server:
    def header(round_number: int, attempt: int, model: bytes) -> SessionHeader:
        return session(n, c, dimension=2, round=round_number, attempt=attempt, model_hash=model)

    return Server(roster(n), helpers, header)


def model(number: int) -> bytes:
    return bytes([number]) * 32


# What an honest server would send, to one site, had only these sites answered.


def u1_for(server: Server, name: str, without: Collection[str] = (), variant: int = 0) -> U1:
    header = server.parts[name, now(server, name)].header
    honest = [part.advertisement for (_, session), part in sorted(server.parts.items()) if session == header.sid0()]
    helpers = [server.advertisement(helper, header, variant) for helper in server.helpers]
    return [each for each in [*honest, *helpers] if each.site not in without]


def u2_for(server: Server, name: str, without: Collection[str] = ()) -> U2:
    session = now(server, name)
    u2 = [peer for peer in sorted(server.parts[name, session].u1) if peer not in without]
    return u2, {peer: envelope(server, peer, name, session) for peer in u2 if peer != name}


def envelope(server: Server, sender: str, receiver: str, session: bytes) -> bytes:
    if sender in server.helpers:
        return server.envelope(sender, receiver, session)
    part = server.parts.get((sender, session))
    return part.envelopes.get(receiver, bytes(86)) if part else bytes(86)


def u3_for(server: Server, name: str, without: Collection[str] = ()) -> list[str]:
    return [peer for peer in server.parts[name, now(server, name)].u2 if peer not in without]


def signatures_for(server: Server, name: str, without: Collection[str] = ()) -> Signatures:
    session = now(server, name)
    mine = server.parts[name, session]
    if mine.sets is None:
        return {}
    agreeing = {
        peer: part.signature
        for (peer, its), part in server.parts.items()
        if (its, part.sid, part.sets) == (session, mine.sid, mine.sets)
    }
    helpers = set(server.helpers) & set(mine.sets[1])
    agreeing |= {helper: server.helper_signature(helper, mine.sid, mine.sets) for helper in helpers}
    return {peer: signature for peer, signature in agreeing.items() if peer not in without}


def now(server: Server, name: str) -> bytes:
    found = server.sites[name].at_work.session
    return b"" if found is None else found


def advance(server: Server, *, without: Collection[str] = (), silent: Collection[str] = ()) -> None:
    """Ask every site that is not silent for its next step, as if the sites in `without` had not answered."""
    for name in sorted(server.sites.keys() - set(silent) - set(without)):
        step(server, name, without=without)


def step(server: Server, name: str, *, without: Collection[str] = (), variant: int = 0) -> None:
    """Ask one site for what the server lacks of it."""
    sid0 = now(server, name)
    part = server.parts[name, sid0]
    if not part.envelopes:
        server.send_u1(name, sid0, u1_for(server, name, without, variant))
    elif part.y is None:
        server.send_u2(name, sid0, *u2_for(server, name, without))
    elif part.sets is None:
        server.send_u3(name, sid0, u3_for(server, name, without))
    else:
        server.send_signatures(name, sid0, signatures_for(server, name, without))


def honest_peer(server: Server, name: str, listed: Sequence[str]) -> str:
    return next(peer for peer in listed if peer != name and peer not in server.helpers)


def in_place_of(u1: U1, changed: Advertisement) -> U1:
    return [changed if each.site == changed.site else each for each in u1]


def minted(server: Server, name: str, u1: U1, private: bytes) -> U1:
    """Keys of the server's own in the name of an honest peer, signed with another key than that peer's."""
    header = server.parts[name, now(server, name)].header
    peer = honest_peer(server, name, [each.site for each in u1])
    envelope_key, mask_key, commitment = public_key(b"E" * 32), public_key(b"M" * 32), bytes(32)
    signature = sign(private, Phase.ADVERTISE_KEYS, header.sid0(), peer, envelope_key + mask_key + commitment)
    return in_place_of(u1, Advertisement(peer, envelope_key, mask_key, commitment, signature))


def own_altered(_server: Server, name: str, u1: U1) -> U1:
    return [replace(each, seed_commitment=bytes(32)) if each.site == name else each for each in u1]


def swapped_key(server: Server, name: str, u1: U1) -> U1:
    peer = honest_peer(server, name, [each.site for each in u1])
    honest = next(each for each in u1 if each.site == peer)
    return in_place_of(u1, replace(honest, envelope_key=public_key(b"E" * 32)))


def old_advertisement(server: Server, name: str, u1: U1) -> U1:
    session = now(server, name)
    listed = {each.site for each in u1} - {name}
    older = [part.advertisement for (peer, its), part in server.parts.items() if peer in listed and its != session]
    return in_place_of(u1, older[0]) if older else [*u1, u1[0]]


def copied_key(server: Server, name: str, u1: U1) -> U1:
    """A helper advertises the mask key of an honest site as its own."""
    helper = next((each for each in server.helpers if any(ad.site == each for ad in u1)), None)
    if helper is None:
        return [*u1, u1[0]]
    part = server.parts[name, now(server, name)]
    victim, own = part.advertisement, server.advertisement(helper, part.header)
    who = Identity(helper, key(helper), server.roster)
    copy = Advertisement.signed(part.header, who, own.envelope_key, victim.mask_key, own.seed_commitment)
    return in_place_of(u1, copy)


def stranger(server: Server, name: str, u1: U1) -> U1:
    header = server.parts[name, now(server, name)].header
    keys = public_key(b"E" * 32), public_key(b"M" * 32), bytes(32)
    signature = sign(key("oslo"), Phase.ADVERTISE_KEYS, header.sid0(), "oslo", b"".join(keys))
    return [*u1, Advertisement("oslo", *keys, signature)]


_TWICE, _OSLO = "it named a site twice", "oslo was not in the step before"
_UNSIGNED = "site cluj at AdvertiseKeys: the signature of cluj in AdvertiseKeys does not verify"

U1_LIES: Mapping[str, Lie[U1]] = {
    "a repeat": Lie(lambda _, __, u1: [*u1, u1[0]], _TWICE),
    "one for all": Lie(lambda _, __, u1: [u1[0]] * len(u1), _TWICE),
    "without it": Lie(lambda _, name, u1: [ad for ad in u1 if ad.site != name], "it left out brno, which it asked"),
    "its own altered": Lie(own_altered, "it altered the advertisement of brno"),
    "a peer's key swapped": Lie(swapped_key, _UNSIGNED),
    "a peer's keys of the server": Lie(lambda server, name, u1: minted(server, name, u1, key("server")), _UNSIGNED),
    "a peer's keys of a helper": Lie(
        lambda server, name, u1: minted(server, name, u1, key((*server.helpers, "oslo")[0])), _UNSIGNED
    ),
    "an old advertisement": Lie(old_advertisement, _UNSIGNED),
    "a copied key": Lie(copied_key, "site brno at AdvertiseKeys: its key is the same as that of amiens"),
    "a stranger": Lie(stranger, _OSLO),
}


def other_envelope(choose: Callable[[Server, str, str, bytes], bytes]) -> Callable[[Server, str, U2], U2]:
    def lie(server: Server, name: str, honest: U2) -> U2:
        peer = honest_peer(server, name, honest[0])
        return honest[0], honest[1] | {peer: choose(server, name, peer, now(server, name))}

    return lie


def old_envelope(server: Server, name: str, peer: str, session: bytes) -> bytes:
    found = [part.envelopes for (site, its), part in server.parts.items() if site == peer and its != session]
    return next((sealed[name] for sealed in found if name in sealed), bytes(86))


def third_envelope(server: Server, name: str, peer: str, session: bytes) -> bytes:
    sealed = server.parts[peer, session].envelopes
    return next((sealed[other] for other in sealed if other != name), bytes(86))


def tampered(server: Server, name: str, peer: str, session: bytes) -> bytes:
    honest = envelope(server, peer, name, session)
    return honest[:-1] + bytes([honest[-1] ^ 1])


def anothers_shares(server: Server, name: str, honest: U2) -> U2:
    """An envelope of a helper's that opens, and holds what belongs to another site."""
    helper = next((peer for peer in honest[0] if peer in server.helpers), None)
    if helper is None:
        return [*honest[0], honest[0][0]], honest[1]
    session = now(server, name)
    index = server.parts[name, session].header.index(name) % len(server.roster.sites) + 1
    return honest[0], {**honest[1], helper: server.envelope(helper, name, session, index)}


_LEFT_OUT, _NOT_ONE_EACH = "it left out brno", "the envelopes are not exactly one from each other site of U2"
_SEALED = "site cluj at ShareKeys: envelope failed to open"

U2_LIES: Mapping[str, Lie[U2]] = {
    "a repeat": Lie(lambda _, __, honest: ([*honest[0], honest[0][0]], honest[1]), _TWICE),
    "one for all": Lie(lambda _, name, honest: ([name] * len(honest[0]), honest[1]), _TWICE),
    "without it": Lie(lambda _, name, honest: ([peer for peer in honest[0] if peer != name], honest[1]), _LEFT_OUT),
    "a stranger": Lie(lambda _, __, honest: ([*honest[0], "oslo"], {**honest[1], "oslo": bytes(86)}), _OSLO),
    "an envelope short": Lie(lambda _, __, honest: (honest[0], dict(list(honest[1].items())[1:])), _NOT_ONE_EACH),
    "an envelope to spare": Lie(lambda _, name, honest: (honest[0], {**honest[1], name: bytes(86)}), _NOT_ONE_EACH),
    "a tampered envelope": Lie(other_envelope(tampered), _SEALED),
    "a reflected envelope": Lie(other_envelope(envelope), _SEALED),
    "an envelope of another session": Lie(other_envelope(old_envelope), _SEALED),
    "another site's envelope": Lie(other_envelope(third_envelope), _SEALED),
    "another site's shares": Lie(
        anothers_shares, "site amiens at ShareKeys: envelope holds shares that are not brno's"
    ),
}

U3_LIES: Mapping[str, Lie[list[str]]] = {
    "a repeat": Lie(lambda _, __, u3: [*u3, u3[0]], _TWICE),
    "one for all": Lie(lambda _, name, u3: [name] * len(u3), _TWICE),
    "without it": Lie(lambda _, name, u3: [peer for peer in u3 if peer != name], _LEFT_OUT),
    "a stranger": Lie(lambda _, __, u3: [*u3, "oslo"], _OSLO),
    "nobody": Lie(lambda _, __, ___: [], _LEFT_OUT),
}


def replaced(server: Server, name: str, honest: Signatures, make: Callable[[bytes, str], bytes]) -> Signatures:
    peer = next((each for each in honest if each != name), None)
    return {} if peer is None else honest | {peer: make(server.parts[name, now(server, name)].sid, peer)}


def over_other_sets(server: Server, name: str, honest: Signatures, *, u2: slice, u3: slice) -> Signatures:
    """Even a true signature counts for nothing where it is over other sets."""
    sets = server.parts[name, now(server, name)].sets or ((), ())

    def make(sid: bytes, peer: str) -> bytes:
        who = Identity(peer, key(peer), server.roster)
        return Consistency.signed(sid, who, sets[0][u2], sets[1][u3]).signature

    return replaced(server, name, honest, make)


def of_step_3(server: Server, name: str, honest: Signatures) -> Signatures:
    return replaced(server, name, honest, lambda sid, peer: sign(key(peer), Phase.MASKED_INPUT, sid, peer, b""))


def of_the_first_peer(server: Server, name: str, honest: Signatures) -> Signatures:
    return replaced(server, name, honest, lambda _, __: honest[name])


def forged(server: Server, name: str, honest: Signatures) -> Signatures:
    return replaced(server, name, honest, lambda _, __: bytes(64))


_FORGED = "site cluj at ConsistencyCheck: the signature of cluj in ConsistencyCheck does not verify"
_OWN = "it left out or altered the signature of brno"

SIGNATURE_LIES: Mapping[str, Lie[Signatures]] = {
    "none": Lie(lambda _, __, ___: {}, _OWN),
    "its own alone": Lie(
        lambda _, name, honest: {peer: honest[peer] for peer in honest if peer == name}, "1 signatures are fewer than 4"
    ),
    "without its own": Lie(lambda _, name, honest: {peer: honest[peer] for peer in honest if peer != name}, _OWN),
    "its own for a peer": Lie(of_the_first_peer, _FORGED),
    "a forgery": Lie(forged, _FORGED),
    "over another U2": Lie(partial(over_other_sets, u2=slice(1, None), u3=slice(None)), _FORGED),
    "over another U3": Lie(partial(over_other_sets, u2=slice(None), u3=slice(1, None)), _FORGED),
    "of another step": Lie(of_step_3, _FORGED),
    "a stranger": Lie(lambda _, __, honest: {**honest, "oslo": bytes(64)}, "oslo cannot have signed"),
}


def header_lie(field: str, **changes: Callable[[SessionHeader], object]) -> Lie[SessionHeader]:
    def lie(_server: Server, _name: str, honest: SessionHeader) -> SessionHeader:
        values: dict[str, Any] = {"round": honest.round, "attempt": honest.attempt, "model_hash": honest.model_hash}
        values |= {name: change(honest) for name, change in changes.items()}
        return session(len(honest.sites), honest.c, honest.dimension, **values)

    return Lie(lie, f"the session's {field} is not the one this site expects")


def cohort(honest: SessionHeader) -> tuple[str, ...]:
    """One site fewer; of three, one changed for another, as fewer cannot be."""
    return NAMES[1 : max(4, len(honest.sites))]


HEADER_LIES: Mapping[str, Lie[SessionHeader]] = {
    "another model": header_lie("model hash", model_hash=lambda _: model(99)),
    "another plan": header_lie("plan hash", plan_hash=lambda _: bytes(32)),
    "another study": header_lie("study", study=lambda _: "other"),
    "another roster": header_lie("roster", roster=lambda _: bytes(32)),
    "another clip": header_lie("scale", encoding=lambda header: Encoding(len(header.sites), 1.0, 10, 2)),
    "another collusion": header_lie("c", thresholds=lambda header: Thresholds.of(len(header.sites), int(not header.c))),
    "a plain session": header_lie("c", thresholds=lambda header: Thresholds.plain(len(header.sites), 1)),
    "a chosen cohort": header_lie(
        "sites",
        sites=cohort,
        encoding=lambda header: replace(header.encoding, sites=len(cohort(header))),
        thresholds=lambda header: Thresholds.of(len(cohort(header))),
    ),
}
