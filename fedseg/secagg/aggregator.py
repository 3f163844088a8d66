"""The server's side: it relays keys, envelopes and signatures, sums masked vectors, and takes off what masks remain.

No site trusts it. What it checks here, it checks so that a site's fault ends that site's part and not the attempt.

`SecureAggregator` and `PlainAggregator` have one outer shape, and give the same sum bit for bit.
A message that comes a second time with the same bytes changes nothing (a site may have lost the answer); with other
bytes it is the site's fault. `close_*` ends a phase: who has not answered by then is a dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import BelowQuorum, ProtocolError, SiteFault
from fedseg.secagg.masking import add_mask, pair_mask_key, pair_sign, self_mask_key
from fedseg.secagg.messages import (
    Advertisement,
    Consistency,
    Envelopes,
    MaskedInput,
    Phase,
    SessionHeader,
    Shares,
    seed_commitment,
    sid,
)
from fedseg.secagg.recovery import reconstruct
from fedseg.secagg.ringsum import RingSum, check_member, check_repeat
from fedseg.secagg.roster import Roster
from fedseg.secagg.sealing import agree, public_key
from fedseg.secagg.shamir import Share

Rule = Callable[[Sequence[NDArray[np.uint32]]], NDArray[np.uint32]]


class SecureAggregator:
    """One attempt at one sum of masked vectors.

    Args:
        header: The session.
        roster: The study's.

    Raises:
        ProtocolError: The header is that of a plain session, or of another roster; or, from any method, a call out
            of order.
    """

    def __init__(self, header: SessionHeader, roster: Roster) -> None:
        """Begin with AdvertiseKeys."""
        if not header.thresholds.secure:
            raise ProtocolError("a plain session needs a PlainAggregator")
        roster.check_header(header)
        self.header, self._roster = header, roster
        self._phase: Phase | None = Phase.ADVERTISE_KEYS
        self._advertised: dict[str, Advertisement] = {}
        self._envelopes: dict[str, Envelopes] = {}
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, Shares] = {}
        self._u2: tuple[str, ...] = ()
        self._sid = b""
        self._sum: RingSum | None = None

    @property
    def phase(self) -> Phase | None:
        """The phase whose messages are awaited; None when the sum is out."""
        return self._phase

    @property
    def sid(self) -> bytes:
        """The session's name once U1 is closed; empty before."""
        return self._sid

    @property
    def inputs(self) -> Mapping[str, MaskedInput]:
        """The signed digests of the vectors in the sum, by site."""
        return self._ring().inputs

    @property
    def answered(self) -> tuple[str, ...]:
        """The sites that have answered in the phase that is open, sorted."""
        collected: Mapping[Phase | None, Collection[str]] = {
            Phase.ADVERTISE_KEYS: self._advertised,
            Phase.SHARE_KEYS: self._envelopes,
            Phase.MASKED_INPUT: self._sum.contributors if self._sum else (),
            Phase.CONSISTENCY: self._signatures,
            Phase.UNMASKING: self._shares,
        }
        return tuple(sorted(collected.get(self._phase, ())))

    def advertise(self, message: Advertisement) -> None:
        """Step 1.

        Raises:
            SiteFault: Not in the roster or not signed by it, a second advertisement that differs, or a key that
                another site has.
        """
        self._expect(Phase.ADVERTISE_KEYS)
        message.verify(self.header, self._roster)
        earlier = self._advertised.get(message.site)
        check_repeat(message.site, Phase.ADVERTISE_KEYS, earlier in (None, message))
        taken = {key for other in self._advertised.values() if other.site != message.site for key in _keys(other)}
        if taken & _keys(message):
            raise SiteFault(message.site, Phase.ADVERTISE_KEYS, "its key is the same as that of another site")
        self._advertised[message.site] = message

    def close_advertise(self) -> tuple[Advertisement, ...]:
        """U1: the advertisements that every site of it is sent.

        Raises:
            BelowQuorum: Too few.
        """
        self._close(Phase.ADVERTISE_KEYS, self._advertised, self.header.thresholds.quorum, Phase.SHARE_KEYS)
        u1 = tuple(self._advertised[site] for site in sorted(self._advertised))
        self._sid = sid(self.header, u1)
        return u1

    def share(self, message: Envelopes) -> None:
        """Step 2.

        Raises:
            SiteFault: Not in U1, a second message that differs, or envelopes not to exactly the others of U1.
        """
        self._expect(Phase.SHARE_KEYS)
        check_member(message.site, self._advertised, Phase.SHARE_KEYS)
        check_repeat(message.site, Phase.SHARE_KEYS, self._envelopes.get(message.site) in (None, message))
        if message.sealed.keys() != self._advertised.keys() - {message.site}:
            raise SiteFault(message.site, Phase.SHARE_KEYS, "its envelopes are not one to each other site of U1")
        self._envelopes[message.site] = message

    def close_share(self) -> tuple[str, ...]:
        """U2: the sites that every site of it masks against.

        Raises:
            BelowQuorum: Too few.
        """
        self._close(Phase.SHARE_KEYS, self._envelopes, self.header.thresholds.quorum, Phase.MASKED_INPUT)
        self._u2 = tuple(sorted(self._envelopes))
        self._sum = RingSum(self.header, self._sid, self._u2, self._roster)
        return self._u2

    def envelopes_for(self, site: str) -> Mapping[str, bytes]:
        """What the other sites of U2 sealed for `site`, by sender.

        Raises:
            SiteFault: `site` is not in U2.
        """
        check_member(site, self._u2, Phase.SHARE_KEYS)
        return {sender: self._envelopes[sender].sealed[site] for sender in self._u2 if sender != site}

    def mask(self, message: MaskedInput, vector: NDArray[np.uint32]) -> bool:
        """Step 3: see `RingSum.add`."""
        self._expect(Phase.MASKED_INPUT)
        return self._ring().add(message, vector)

    def close_mask(self) -> tuple[str, ...]:
        """U3: the sites whose vectors are in the sum.

        Raises:
            BelowQuorum: Too few.
        """
        u3 = self._ring().contributors
        self._close(Phase.MASKED_INPUT, u3, self.header.thresholds.quorum, Phase.CONSISTENCY)
        return u3

    def consistency(self, message: Consistency) -> None:
        """Step 4.

        Raises:
            SiteFault: Not in U3, or no signature of it over the sets of this session.
        """
        self._expect(Phase.CONSISTENCY)
        u3 = self._ring().contributors
        check_member(message.site, u3, Phase.CONSISTENCY)
        message.verify(self._sid, self._roster, self._u2, u3)
        self._signatures[message.site] = message.signature

    def close_consistency(self) -> Mapping[str, bytes]:
        """The signatures that every signer is sent, by site.

        Raises:
            BelowQuorum: Fewer than t signers.
        """
        self._close(Phase.CONSISTENCY, self._signatures, self.header.t, Phase.UNMASKING)
        return dict(sorted(self._signatures.items()))

    def shares(self, message: Shares) -> None:
        """Step 5.

        Raises:
            SiteFault: Not among the signers, not signed, a second message that differs, not exactly the shares that
                are due, or shares of another holder.
        """
        self._expect(Phase.UNMASKING)
        u3 = self._ring().contributors
        check_member(message.site, self._signatures, Phase.UNMASKING)
        message.verify(self._sid, self._roster)
        check_repeat(message.site, Phase.UNMASKING, self._shares.get(message.site) in (None, message))
        if (set(message.seed_shares), set(message.key_shares)) != (set(u3), set(self._u2) - set(u3)):
            raise SiteFault(message.site, Phase.UNMASKING, "its shares are not those that U2 and U3 call for")
        if Share.from_bytes(message.seed_shares[message.site]).index != self.header.index(message.site):
            raise SiteFault(message.site, Phase.UNMASKING, "its shares are those of another holder")
        self._shares[message.site] = message

    def close_unmask(self) -> NDArray[np.uint32]:
        """The sum of the inputs of U3, uint32[length]; the masks are taken off in place.

        Raises:
            BelowQuorum: Fewer than t responders.
            ProtocolError: A secret that can't be reconstructed; its owner and the responders are suspects.
        """
        self._close(Phase.UNMASKING, self._shares, self.header.t, None)
        ring = self._ring()
        u3 = ring.contributors
        seeds = {site: self._seed(site) for site in u3}
        lost_keys = {site: self._mask_key(site) for site in self._u2 if site not in u3}
        for site, seed in seeds.items():
            add_mask(ring.total, self_mask_key(seed, self._sid, site), -1)
        for lost, private in lost_keys.items():
            for site in u3:
                agreed = agree(private, self._advertised[site].mask_key)
                add_mask(ring.total, pair_mask_key(agreed, self._sid, site, lost), -pair_sign(site, lost))
        return ring.total

    def _seed(self, site: str) -> bytes:
        held = {name: Share.from_bytes(message.seed_shares[site]) for name, message in self._shares.items()}
        commitment = self._advertised[site].seed_commitment
        return reconstruct(
            site, "seed", held, self.header.t, lambda seed: seed_commitment(self.header, site, seed) == commitment
        )

    def _mask_key(self, site: str) -> bytes:
        held = {name: Share.from_bytes(message.key_shares[site]) for name, message in self._shares.items()}
        advertised = self._advertised[site].mask_key
        return reconstruct(site, "mask key", held, self.header.t, lambda key: public_key(key) == advertised)

    def _ring(self) -> RingSum:
        if self._sum is None:
            raise ProtocolError(f"no input can be taken during {self._phase}")
        return self._sum

    def _expect(self, phase: Phase) -> None:
        if self._phase is not phase:
            raise ProtocolError(f"{phase} is not open: this attempt is at {self._phase or 'its end'}")

    def _close(self, phase: Phase, answered: Collection[str], needed: int, following: Phase | None) -> None:
        self._expect(phase)
        _check_quorum(phase, answered, needed, self.header)
        self._phase = following


class PlainAggregator:
    """The same sum in the clear: the server sees every vector.

    Args:
        header: A session of either mode.
        roster: The study's.
        quorum: The fewest contributors; the header's when left out.
        rule: What is published in place of the sum, from the vectors in order of their sites (`federation.robust`);
            with one, every vector is kept until the end.

    Raises:
        ProtocolError: The header is that of another roster; or, from any method, a call out of order.
    """

    def __init__(
        self, header: SessionHeader, roster: Roster, quorum: int | None = None, rule: Rule | None = None
    ) -> None:
        """Begin with joining."""
        roster.check_header(header)
        self.header, self._roster, self._rule = header, roster, rule
        self._vectors: dict[str, NDArray[np.uint32]] = {}
        self._quorum = header.thresholds.quorum if quorum is None else quorum
        self._joined: set[str] = set()
        self._sum: RingSum | None = None
        self._closed = False

    @property
    def answered(self) -> tuple[str, ...]:
        """The sites that have answered in the phase that is open, sorted."""
        return tuple(sorted(self._joined)) if self._sum is None else self._sum.contributors

    def join(self, site: str) -> None:
        """In place of steps 1 and 2: say that an input will follow.

        Raises:
            SiteFault: Not in the roster.
            ProtocolError: Joining is over.
        """
        if self._sum is not None:
            raise ProtocolError(f"{site} is too late to join this attempt")
        check_member(site, self.header.sites, Phase.ADVERTISE_KEYS)
        self._joined.add(site)

    def close_join(self) -> tuple[str, ...]:
        """The sites that may contribute, sorted.

        Raises:
            BelowQuorum: Too few.
        """
        _check_quorum(Phase.ADVERTISE_KEYS, self._joined, self._quorum, self.header)
        joined = tuple(sorted(self._joined))
        self._sum = self._sum or RingSum(self.header, self.header.sid0(), joined, self._roster)
        return joined

    def mask(self, message: MaskedInput, vector: NDArray[np.uint32]) -> bool:
        """An input in the clear, its digest over sid0 and the joined sites: see `RingSum.add`."""
        if self._sum is None or self._closed:
            raise ProtocolError("no input can be taken before joining is closed, or after the sum")
        added = self._sum.add(message, vector)
        if added and self._rule is not None:
            self._vectors[message.site] = vector
        return added

    @property
    def inputs(self) -> Mapping[str, MaskedInput]:
        """The signed digests of the vectors in the sum, by site."""
        return self._sum.inputs if self._sum else {}

    def close_mask(self) -> tuple[str, ...]:
        """The sites whose vectors are in the sum.

        Raises:
            BelowQuorum: Too few.
            ProtocolError: Joining is still open.
        """
        if self._sum is None:
            raise ProtocolError("joining is still open")
        _check_quorum(Phase.MASKED_INPUT, self._sum.contributors, self._quorum, self.header)
        self._closed = True
        return self._sum.contributors

    def close_unmask(self) -> NDArray[np.uint32]:
        """The sum, uint32[length], or what the rule makes of the vectors.

        Raises:
            ProtocolError: `close_mask` has not been called.
        """
        if self._sum is None or not self._closed:
            raise ProtocolError("inputs are still being taken")
        if self._rule is not None:
            return self._rule([self._vectors[site] for site in self._sum.contributors])
        return self._sum.total


def _keys(message: Advertisement) -> set[bytes]:
    return {message.envelope_key, message.mask_key}


def _check_quorum(phase: Phase, answered: Collection[str], needed: int, header: SessionHeader) -> None:
    if len(answered) < needed:
        missing = [site for site in header.sites if site not in answered]
        raise BelowQuorum(
            f"{len(answered)} of {len(header.sites)} sites finished {phase}, {needed} are needed",
            where=f"round {header.round}, attempt {header.attempt}",
            hint=f"missing: {', '.join(missing)}",
        )
