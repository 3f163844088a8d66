"""A server that may send anything to anyone, holds the keys of its helpers, and forgets no share that it has seen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from fedseg.errors import ProtocolError
from fedseg.secagg.masking import add_mask, pair_mask_key, pair_sign, self_mask_key
from fedseg.secagg.messages import Advertisement, Consistency, Phase, SessionHeader, seed_commitment
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.sealing import agree, open_envelope, public_key, seal
from fedseg.secagg.shamir import Share, combine, split
from fedseg.secagg.site import Keys, Masked, Shared, Signed

from .helpers import Vector, entropy, key, ring_sum
from .sites import PowerCut, Site

T = TypeVar("T")
U1 = list[Advertisement]
U2 = tuple[list[str], dict[str, bytes]]
Signatures = dict[str, bytes]


@dataclass
class Part:
    """What one honest site has sent in one session, and what the server has learned of its two secrets."""

    header: SessionHeader
    advertisement: Advertisement
    sid: bytes = b""
    u1: Mapping[str, Advertisement] = field(default_factory=dict)
    envelopes: Mapping[str, bytes] = field(default_factory=dict)
    u2: tuple[str, ...] = ()
    y: Vector | None = None
    sets: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    signature: bytes = b""
    seed_shares: dict[int, Share] = field(default_factory=dict)
    key_shares: dict[int, Share] = field(default_factory=dict)


class Server:
    """Knows everything that was sent, and every secret of its helpers."""

    def __init__(self, roster: Roster, helpers: Collection[str], expected: Callable[..., SessionHeader]) -> None:
        self.roster, self.helpers = roster, tuple(sorted(helpers))
        self.header = expected
        self.sites = {name: Site(name, roster, expected) for name in roster.sites if name not in self.helpers}
        self.parts: dict[tuple[str, bytes], Part] = {}
        self.sent: dict[tuple[str, bytes, str], set[bytes]] = {}
        self.refusals: list[ProtocolError] = []
        self._helper_keys: dict[tuple[str, bytes, int], tuple[Keys, Advertisement]] = {}

    def fork(self) -> Server:
        """The same world, whose future is its own: to try one lie after another from one place."""
        twin = copy(self)
        twin.sites = {name: site.fork() for name, site in self.sites.items()}
        twin.parts = {
            place: replace(part, seed_shares=dict(part.seed_shares), key_shares=dict(part.key_shares))
            for place, part in self.parts.items()
        }
        twin.sent = {place: set(messages) for place, messages in self.sent.items()}
        twin.refusals = []
        return twin

    # What it sends.

    def offer(self, name: str, header: SessionHeader, show_model: bool = True) -> None:
        """Step 0: give the site the model of the header, and offer the session."""
        site = self.sites[name]
        site.model = header.model_hash if show_model else site.model
        answer = self._ask(site, lambda: site.join(header))
        if answer is not None:
            self._keep(name, header.sid0(), Phase.ADVERTISE_KEYS, answer)
            self.parts.setdefault((name, header.sid0()), Part(header, Advertisement.from_bytes(answer)))

    def send_u1(self, name: str, session: bytes, u1: Sequence[Advertisement]) -> None:
        """Step 2."""
        site = self.sites[name]
        answer = self._ask(site, lambda: site.at_work.share_keys(session, u1))
        state, part = site.state, self.parts[name, session]
        if isinstance(state, Shared) and state.header == part.header:
            part.sid, part.u1 = state.sid, state.u1
        if answer is None:
            return
        self._keep(name, session, Phase.SHARE_KEYS, answer.to_bytes())
        part.envelopes = answer.sealed
        for helper in set(self.helpers) & set(part.u1):
            self._learn(name, session, *self._open(part, name, helper))

    def send_u2(self, name: str, session: bytes, u2: Sequence[str], envelopes: Mapping[str, bytes]) -> None:
        """Step 3."""
        site, part = self.sites[name], self.parts[name, session]
        answer = self._ask(site, lambda: site.at_work.submit(session, u2, envelopes, lambda: site.x(part.header)))
        if answer is None:
            return
        message, y = answer
        self._keep(name, session, Phase.MASKED_INPUT, message.to_bytes() + y.tobytes())
        part.u2, part.y = _as(Masked, site.state).u2, y.copy()

    def send_u3(self, name: str, session: bytes, u3: Sequence[str]) -> None:
        """Step 4."""
        site, part = self.sites[name], self.parts[name, session]
        answer = self._ask(site, lambda: site.at_work.confirm(session, u3))
        if answer is None:
            return
        self._keep(name, session, Phase.CONSISTENCY, answer.to_bytes())
        state = _as(Signed, site.state)
        part.sets, part.signature = (state.u2, state.u3), answer.signature

    def send_signatures(self, name: str, session: bytes, signatures: Mapping[str, bytes]) -> None:
        """Step 5."""
        site = self.sites[name]
        answer = self._ask(site, lambda: site.at_work.unmask(session, signatures))
        if answer is None:
            return
        self._keep(name, session, Phase.UNMASKING, answer.to_bytes())
        for owner in answer.seed_shares.keys() - set(self.helpers):
            self._learn(owner, session, Share.from_bytes(answer.seed_shares[owner]), None)
        for owner in answer.key_shares.keys() - set(self.helpers):
            self._learn(owner, session, None, Share.from_bytes(answer.key_shares[owner]))

    def _ask(self, site: Site, call: Callable[[], T]) -> T | None:
        """What the site answers. One that refuses loses its power before it has written down that it left.

        So it can be asked again: as bad as it gets.
        """
        try:
            return call()
        except ProtocolError as error:
            self.refusals.append(error)
        except PowerCut:
            pass
        site.restart()
        return None

    # What it makes up.

    def advertisement(self, helper: str, header: SessionHeader, variant: int = 0) -> Advertisement:
        """One of the advertisements of a helper, which is free to sign many."""
        return self._helper(helper, header, variant)[1]

    def envelope(self, helper: str, to: str, session: bytes, index: int | None = None) -> bytes:
        """What a helper would have sealed for an honest site, under the keys that this site was shown."""
        part = self.parts[to, session]
        keys, (n, t) = self._keys_behind(helper, part.u1[helper]), (part.header.thresholds.n, part.header.t)
        place = (index or part.header.index(to)) - 1
        seed, mask = (split(secret, t, n, entropy(helper))[place] for secret in (keys.seed, keys.mask))
        agreed = agree(keys.envelope, part.advertisement.envelope_key)
        return seal(agreed, part.sid, sender=helper, receiver=to, seed_share=seed, key_share=mask)

    def helper_signature(self, helper: str, sid: bytes, sets: tuple[tuple[str, ...], tuple[str, ...]]) -> bytes:
        """A helper signs anything."""
        return Consistency.signed(sid, Identity(helper, key(helper), self.roster), *sets).signature

    def _helper(self, helper: str, header: SessionHeader, variant: int) -> tuple[Keys, Advertisement]:
        place = (helper, header.sid0(), variant)
        if place not in self._helper_keys:
            draw = entropy(f"{helper}/{header.sid0().hex()}/{variant}")
            keys = Keys(draw(32), draw(32), draw(32))
            who, commitment = Identity(helper, key(helper), self.roster), seed_commitment(header, helper, keys.seed)
            advertisement = Advertisement.signed(
                header, who, public_key(keys.envelope), public_key(keys.mask), commitment
            )
            self._helper_keys[place] = keys, advertisement
        return self._helper_keys[place]

    # What it knows.

    def check(self) -> list[frozenset[str]]:
        """See that it knows too little, whatever it has sent; gives the sets of honest sites whose sum it can read."""
        assert all(len(messages) == 1 for messages in self.sent.values())
        assert not any(self.knows_seed(part) and self.knows_key(part) for part in self.parts.values())
        summed: dict[bytes, set[frozenset[str]]] = {}
        for places in self.bared():
            header = self.parts[next(iter(places))].header
            assert len(places) >= header.thresholds.quorum - len(self.helpers) >= header.t - header.c
            inputs = [self.sites[name].x(header) for name, _ in places]
            np.testing.assert_array_equal(self.unmask(places), ring_sum(inputs))
            summed.setdefault(header.model_hash, set()).add(frozenset(name for name, _ in places))
        assert all(len(sums) == 1 for sums in summed.values())
        return [names for sums in summed.values() for names in sums]

    def _keep(self, name: str, session: bytes, phase: Phase, message: bytes) -> None:
        self.sent.setdefault((name, session, phase), set()).add(message)

    def _learn(self, owner: str, session: bytes, seed: Share | None, mask: Share | None) -> None:
        part = self.parts[owner, session]
        for share, known in ((seed, part.seed_shares), (mask, part.key_shares)):
            if share is not None:
                known[share.index] = share

    def _open(self, part: Part, name: str, helper: str) -> tuple[Share, Share]:
        keys = self._keys_behind(helper, part.u1[helper])
        agreed = agree(keys.envelope, part.advertisement.envelope_key)
        return open_envelope(agreed, part.sid, name, helper, part.envelopes[helper])

    def _keys_behind(self, helper: str, advertised: Advertisement) -> Keys:
        return next(keys for keys, each in self._helper_keys.values() if each == advertised)

    def knows_seed(self, part: Part) -> bool:
        return len(part.seed_shares) >= part.header.t

    def knows_key(self, part: Part) -> bool:
        return len(part.key_shares) >= part.header.t

    def bared(self) -> Iterator[frozenset[tuple[str, bytes]]]:
        """Every least set of masked inputs whose sum the server can free of all masks, by site and session.

        An input counts where its own mask is known. A mask that it shares with an honest site is known where the mask
        key of one of the two is; or else it cancels, where the other's input is in the same set and was masked with
        it; or else it stays, and with it all that it is tied to is out of reach.
        """
        ties = {
            place: self._tied(place)
            for place, part in self.parts.items()
            if part.y is not None and self.knows_seed(part)
        }
        while stuck := [place for place, peers in ties.items() if peers is None or not peers <= ties.keys()]:
            for place in stuck:
                del ties[place]
        while ties:
            reached = {next(iter(ties))}
            while more := set().union(*(ties[place] or () for place in reached)) - reached:
                reached |= more
            for place in reached:
                del ties[place]
            yield frozenset(reached)

    def _tied(self, place: tuple[str, bytes]) -> set[tuple[str, bytes]] | None:
        """The inputs that must be added for this one's unknown pair masks to cancel; None where none can."""
        (name, session), part, peers = place, self.parts[place], set()
        for peer in set(part.u2) - {name, *self.helpers}:
            other = self.parts[peer, session]
            if self.knows_key(part) or self.knows_key(other):
                continue
            if other.sid != part.sid or name not in other.u2:
                return None
            peers.add((peer, session))
        return peers

    def unmask(self, places: Collection[tuple[str, bytes]]) -> Vector:
        """The sum of the inputs of a set that `bared` names, computed from nothing but what the server knows."""
        total = ring_sum([vector for place in places if (vector := self.parts[place].y) is not None])
        for name, session in places:
            part = self.parts[name, session]
            seed = combine(list(part.seed_shares.values()), part.header.t)
            add_mask(total, self_mask_key(seed, part.sid, name), -1)
            for peer in set(part.u2) - {name}:
                agreed = self._agreed(name, peer, session)
                if agreed is not None:
                    add_mask(total, pair_mask_key(agreed, part.sid, name, peer), -pair_sign(name, peer))
        return total

    def _agreed(self, name: str, peer: str, session: bytes) -> bytes | None:
        part = self.parts[name, session]
        if peer in self.helpers:
            return agree(self._keys_behind(peer, part.u1[peer]).mask, part.advertisement.mask_key)
        other = self.parts[peer, session]
        for mine, yours in ((part, other), (other, part)):
            if self.knows_key(mine):
                secret = combine(list(mine.key_shares.values()), mine.header.t)
                return agree(secret, yours.advertisement.mask_key)
        return None


def _as(kind: type[T], state: object) -> T:
    assert isinstance(state, kind)
    return state
