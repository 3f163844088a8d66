"""The site's side: one type a phase, each step used once, every check before the first secret moves.

A step takes a state and returns the next, which holds the message to send. A step that finds anything wrong raises,
and its state is spent all the same: the attempt is over for this site and nothing more can be had from it. States hold
bytes and names only: `secagg.state` writes them down, so that a restart sends the same bytes or none.

Bonawitz et al. 2017, Figure 4: the variant against an active server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.masking import add_mask, pair_mask_key, pair_sign, self_mask_key
from fedseg.secagg.messages import (
    Advertisement,
    Consistency,
    Envelopes,
    MaskedInput,
    Phase,
    SessionHeader,
    Shares,
    input_digest,
    seed_commitment,
    sid,
)
from fedseg.secagg.roster import Identity
from fedseg.secagg.sealing import KEY_SIZE, agree, open_envelope, public_key, seal
from fedseg.secagg.shamir import Entropy, Share, draw, split


class Once:
    """A latch: its first `spend` passes, every other raises. `list.pop` is atomic, so two threads can't both pass."""

    def __init__(self) -> None:
        """Begin unspent."""
        self._left = [True]

    def spend(self, phase: Phase) -> None:
        """Pass once.

        Raises:
            ProtocolError: It was spent before.
        """
        try:
            self._left.pop()
        except IndexError:
            raise ProtocolError(
                f"this site has taken the step {phase} of this attempt already",
                hint="send the bytes of the first time again; a second set could bare the update",
            ) from None


@dataclass(frozen=True)
class Held:
    """What a site keeps for a peer until it knows whether that peer's input is in the sum."""

    seed_share: Share = field(repr=False)
    key_share: Share = field(repr=False)


@dataclass(frozen=True)
class Keys:
    """A site's secrets for one attempt, 32 bytes each."""

    envelope: bytes = field(repr=False)
    mask: bytes = field(repr=False)
    seed: bytes = field(repr=False)


def advertise(header: SessionHeader, identity: Identity, entropy: Entropy) -> Advertised:
    """Step 1: draw fresh keys and a self-mask seed for this attempt.

    Args:
        header: What the site itself holds the session to be (`SessionHeader.check_offer`).
        identity: The site, with the roster that its operator has confirmed.
        entropy: `entropy(k)` gives k fresh random bytes.

    Raises:
        ProtocolError: The session is not one of that roster, or a plain one.
    """
    identity.roster.check_header(header)
    if not header.thresholds.secure:
        raise ProtocolError("this session sums in the clear, no keys are needed", where=str(Phase.ADVERTISE_KEYS))
    keys = Keys(draw(entropy, KEY_SIZE), draw(entropy, KEY_SIZE), draw(entropy, KEY_SIZE))
    commitment = seed_commitment(header, identity.site, keys.seed)
    message = Advertisement.signed(header, identity, public_key(keys.envelope), public_key(keys.mask), commitment)
    return Advertised(header, identity, keys, message)


@dataclass(frozen=True, eq=False)
class Advertised:
    """After step 1: the site waits for U1."""

    header: SessionHeader
    identity: Identity
    keys: Keys = field(repr=False)
    message: Advertisement
    _once: Once = field(default_factory=Once, init=False, repr=False)

    @property
    def site(self) -> str:
        """This site's name."""
        return self.identity.site

    def share_keys(self, advertisements: Sequence[Advertisement], entropy: Entropy) -> Shared:
        """Step 2: share seed and mask key among the roster, and seal the shares for the others of U1.

        Args:
            advertisements: U1 as the server relays it, in any order.
            entropy: `entropy(k)` gives k fresh random bytes.

        Raises:
            ProtocolError: Too few sites, one twice, one that the roster doesn't name, this site's own
                advertisement missing or altered.
            SiteFault: An advertisement that its site didn't sign, or a key that another site advertised too.
        """
        self._once.spend(Phase.SHARE_KEYS)
        u1 = {each.site: each for each in advertisements}
        _check_list([each.site for each in advertisements], self.header.sites, self, Phase.SHARE_KEYS)
        if u1[self.site].to_bytes() != self.message.to_bytes():
            raise _server_fault(Phase.SHARE_KEYS, f"it altered the advertisement of {self.site}")
        for each in advertisements:
            each.verify(self.header, self.identity.roster)
        _check_repeats(u1)
        session = sid(self.header, advertisements)
        shares = self._split(entropy)
        sealed = {peer: self._seal(u1[peer], session, shares[peer]) for peer in sorted(u1.keys() - {self.site})}
        envelopes = Envelopes(self.site, sealed)
        return Shared(self.header, self.identity, self.keys, envelopes, session, u1, shares[self.site])

    def _split(self, entropy: Entropy) -> dict[str, Held]:
        """One share of each secret for every site of the roster, at its place there."""
        numbers = self.header.thresholds
        seeds = split(self.keys.seed, numbers.t, numbers.n, entropy)
        keys = split(self.keys.mask, numbers.t, numbers.n, entropy)
        return {site: Held(*pair) for site, *pair in zip(self.header.sites, seeds, keys, strict=True)}

    def _seal(self, peer: Advertisement, session: bytes, shares: Held) -> bytes:
        return seal(
            agree(self.keys.envelope, peer.envelope_key),
            session,
            sender=self.site,
            receiver=peer.site,
            seed_share=shares.seed_share,
            key_share=shares.key_share,
        )


@dataclass(frozen=True, eq=False)
class Shared:
    """After step 2: the site waits for U2 and its envelopes."""

    header: SessionHeader
    identity: Identity
    keys: Keys = field(repr=False)
    message: Envelopes
    sid: bytes
    u1: Mapping[str, Advertisement]
    own: Held = field(repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False)

    @property
    def site(self) -> str:
        """This site's name."""
        return self.identity.site

    def mask(
        self, incoming: Mapping[str, bytes], u2: Sequence[str], x: NDArray[np.uint32]
    ) -> tuple[Masked, NDArray[np.uint32]]:
        """Step 3: open every envelope, then mask the input. `x` is left as it is, for a second attempt.

        Args:
            incoming: The envelope of each other site of U2.
            u2: The sites that shared their keys.
            x: uint32[length], from `Encoding.encode`.

        Returns:
            The next state, and `y = x + own mask + sum of +-pair masks` modulo 2^32.

        Raises:
            ProtocolError: U2 too small, not within U1, or without this site; envelopes missing or to spare; an `x`
                of another type or shape.
            SiteFault: A peer's envelope that fails to open, or holds shares of another index.
        """
        self._once.spend(Phase.MASKED_INPUT)
        survivors = _check_list(u2, tuple(self.u1), self, Phase.MASKED_INPUT)
        if set(incoming) != set(survivors) - {self.site}:
            raise _server_fault(Phase.MASKED_INPUT, "the envelopes are not exactly one from each other site of U2")
        _check_input(self.header, x)
        held = {peer: self._open(peer, incoming[peer]) for peer in survivors if peer != self.site}
        y = np.array(x, dtype=np.uint32)
        add_mask(y, self_mask_key(self.keys.seed, self.sid, self.site), 1)
        for peer in held:
            agreed = agree(self.keys.mask, self.u1[peer].mask_key)
            add_mask(y, pair_mask_key(agreed, self.sid, self.site, peer), pair_sign(self.site, peer))
        message = MaskedInput.signed(self.sid, self.identity, input_digest(self.sid, self.site, survivors, y))
        return Masked(self.header, self.identity, message, self.sid, survivors, {**held, self.site: self.own}), y

    def _open(self, sender: str, sealed: bytes) -> Held:
        agreed = agree(self.keys.envelope, self.u1[sender].envelope_key)
        try:
            held = Held(*open_envelope(agreed, self.sid, sender, self.site, sealed))
        except ProtocolError as error:
            raise SiteFault(sender, Phase.SHARE_KEYS, error.what) from error
        if {held.seed_share.index, held.key_share.index} != {self.header.index(self.site)}:
            raise SiteFault(sender, Phase.SHARE_KEYS, f"envelope holds shares that are not {self.site}'s")
        return held


@dataclass(frozen=True, eq=False)
class Masked:
    """After step 3: the site waits for U3. It holds shares of others, and no key of its own any more."""

    header: SessionHeader
    identity: Identity
    message: MaskedInput
    sid: bytes
    u2: tuple[str, ...]
    held: Mapping[str, Held] = field(repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False)

    @property
    def site(self) -> str:
        """This site's name."""
        return self.identity.site

    def confirm(self, u3: Sequence[str]) -> Signed:
        """Step 4: sign the two sets, once in a session.

        U2 is the one of step 3, never the server's. So whoever gathers t signatures on (U2, U3) can't gather them on
        another pair: each honest site signs one, and 2t > n + c.

        Args:
            u3: The sites whose input is in the sum.

        Raises:
            ProtocolError: U3 too small, not within U2, with repeats, or without this site.
        """
        self._once.spend(Phase.CONSISTENCY)
        survivors = _check_list(u3, self.u2, self, Phase.CONSISTENCY)
        message = Consistency.signed(self.sid, self.identity, self.u2, survivors)
        return Signed(self.header, self.identity, message, self.sid, self.u2, survivors, self.held)


@dataclass(frozen=True, eq=False)
class Signed:
    """After step 4: the site waits for the signatures of others on the same sets."""

    header: SessionHeader
    identity: Identity
    message: Consistency
    sid: bytes
    u2: tuple[str, ...]
    u3: tuple[str, ...]
    held: Mapping[str, Held] = field(repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False)

    @property
    def site(self) -> str:
        """This site's name."""
        return self.identity.site

    def unmask(self, signatures: Mapping[str, bytes]) -> Unmasked:
        """Step 5: release one share a site. Of which kind follows from U2 and U3; the server names no list.

        Args:
            signatures: Of step 4, by site.

        Raises:
            ProtocolError: Fewer than t signers, one outside U3, or this site's own signature missing or another.
            SiteFault: A signature that isn't its site's over the very sets that this site signed.
        """
        self._once.spend(Phase.UNMASKING)
        strangers = sorted(set(signatures) - set(self.u3))
        if strangers:
            raise _server_fault(Phase.UNMASKING, f"{', '.join(strangers)} cannot have signed")
        if signatures.get(self.site) != self.message.signature:
            raise _server_fault(Phase.UNMASKING, f"it left out or altered the signature of {self.site}")
        if len(signatures) < self.header.t:
            raise _server_fault(Phase.UNMASKING, f"{len(signatures)} signatures are fewer than {self.header.t}")
        for site, signature in signatures.items():
            Consistency(site, signature).verify(self.sid, self.identity.roster, self.u2, self.u3)
        seeds = {peer: self.held[peer].seed_share.to_bytes() for peer in self.u3}
        keys = {peer: self.held[peer].key_share.to_bytes() for peer in self.u2 if peer not in self.u3}
        message = Shares.signed(self.sid, self.identity, seeds, keys)
        return Unmasked(self.header, self.identity, message, self.sid, self.u2, self.u3)


@dataclass(frozen=True, eq=False)
class Unmasked:
    """After step 5: the site waits for the published sum. What it holds of others is on its way to the server."""

    header: SessionHeader
    identity: Identity
    message: Shares
    sid: bytes
    u2: tuple[str, ...]
    u3: tuple[str, ...]

    @property
    def site(self) -> str:
        """This site's name."""
        return self.identity.site


def contribute(header: SessionHeader, identity: Identity, joined: Sequence[str], x: NDArray[np.uint32]) -> MaskedInput:
    """In plain mode, in place of steps 1 to 3: the signed hash of an input that is sent in the clear.

    Raises:
        ProtocolError: The session is not one of this site's roster, or a secure one, in which nothing goes in the
            clear; or an `x` of another type or shape.
    """
    identity.roster.check_header(header)
    if header.thresholds.secure:
        raise ProtocolError("this session is a secure one: nothing goes out in the clear")
    _check_input(header, x)
    session = header.sid0()
    return MaskedInput.signed(session, identity, input_digest(session, identity.site, sorted(joined), x))


def _check_input(header: SessionHeader, x: NDArray[np.uint32]) -> None:
    if x.dtype != np.uint32 or x.shape != (header.length,):
        raise ProtocolError(f"an input is uint32[{header.length}], not {x.dtype} of {x.shape}")


def _server_fault(phase: Phase, reason: str) -> ProtocolError:
    return ProtocolError(
        f"the server broke the protocol: {reason}",
        where=str(phase),
        hint="this site has left the attempt and released nothing; tell the coordinator",
    )


def _check_list(
    names: Sequence[str], within: tuple[str, ...], state: Advertised | Shared | Masked, phase: Phase
) -> tuple[str, ...]:
    """The list, sorted, if it names each site once, only sites of the step before, this one, and enough of them."""
    chosen = set(names)
    if len(chosen) != len(names):
        raise _server_fault(phase, "it named a site twice")
    strangers = sorted(chosen - set(within))
    if strangers:
        raise _server_fault(phase, f"{', '.join(strangers)} was not in the step before")
    if state.site not in chosen:
        raise _server_fault(phase, f"it left out {state.site}, which it asked")
    if len(chosen) < state.header.thresholds.quorum:
        raise _server_fault(phase, f"{len(chosen)} sites are fewer than {state.header.thresholds.quorum}")
    return tuple(sorted(chosen))


def _check_repeats(u1: Mapping[str, Advertisement]) -> None:
    seen: dict[bytes, str] = {}
    for site in sorted(u1):
        for key in (u1[site].envelope_key, u1[site].mask_key):
            if key in seen:
                raise SiteFault(site, Phase.ADVERTISE_KEYS, f"its key is the same as that of {seen[key]}")
            seen[key] = site
