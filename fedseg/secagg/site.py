"""The site's side: one type a phase, each step used once, every check before the first secret moves.

A step that finds anything wrong raises, and its state is spent all the same: the attempt is over for this site and
nothing more can be had from it. States hold bytes and names only, so that a later journal can keep them.
The consistency round will stand between `Masked` and its `unmask`.
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
    Envelopes,
    MaskedInput,
    Phase,
    SessionHeader,
    Shares,
    input_digest,
    seed_commitment,
    sid,
)
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


def advertise(header: SessionHeader, site: str, entropy: Entropy) -> tuple[Advertised, Advertisement]:
    """Step 1: draw fresh keys and a self-mask seed for this attempt.

    Args:
        header: What the site itself holds the session to be (`SessionHeader.check_offer`).
        site: Its name in the roster.
        entropy: `entropy(k)` gives k fresh random bytes.

    Raises:
        ProtocolError: The roster doesn't name the site, or the session is a plain one.
    """
    header.index(site)
    if not header.thresholds.secure:
        raise ProtocolError("this session sums in the clear, no keys are needed", where=str(Phase.ADVERTISE_KEYS))
    keys = Keys(draw(entropy, KEY_SIZE), draw(entropy, KEY_SIZE), draw(entropy, KEY_SIZE))
    commitment = seed_commitment(header, site, keys.seed)
    message = Advertisement(site, public_key(keys.envelope), public_key(keys.mask), commitment)
    return Advertised(header, site, keys, message), message


@dataclass(frozen=True, eq=False)
class Advertised:
    """After step 1: the site waits for U1."""

    header: SessionHeader
    site: str
    keys: Keys = field(repr=False)
    own: Advertisement
    _once: Once = field(default_factory=Once, init=False, repr=False)

    def share_keys(self, advertisements: Sequence[Advertisement], entropy: Entropy) -> tuple[Shared, Envelopes]:
        """Step 2: share seed and mask key among the roster, and seal the shares for the others of U1.

        Args:
            advertisements: U1 as the server relays it, in any order.
            entropy: `entropy(k)` gives k fresh random bytes.

        Raises:
            ProtocolError: Too few sites, one twice, one that the roster doesn't name, this site's own
                advertisement missing or altered.
            SiteFault: A key that another site advertised too.
        """
        self._once.spend(Phase.SHARE_KEYS)
        u1 = {each.site: each for each in advertisements}
        _check_list([each.site for each in advertisements], self.header.sites, self, Phase.SHARE_KEYS)
        if u1[self.site].to_bytes() != self.own.to_bytes():
            raise _server_fault(Phase.SHARE_KEYS, f"it altered the advertisement of {self.site}")
        _check_repeats(u1)
        session = sid(self.header, advertisements)
        seed_shares, key_shares = self._split(entropy)
        sealed: dict[str, bytes] = {}
        for peer in sorted(u1.keys() - {self.site}):
            place = self.header.index(peer) - 1
            agreed = agree(self.keys.envelope, u1[peer].envelope_key)
            sealed[peer] = seal(
                agreed,
                session,
                sender=self.site,
                receiver=peer,
                seed_share=seed_shares[place],
                key_share=key_shares[place],
            )
        place = self.header.index(self.site) - 1
        own = Held(seed_shares[place], key_shares[place])
        return Shared(self.header, self.site, self.keys, session, u1, own), Envelopes(self.site, sealed)

    def _split(self, entropy: Entropy) -> tuple[tuple[Share, ...], tuple[Share, ...]]:
        numbers = self.header.thresholds
        return (
            split(self.keys.seed, numbers.t, numbers.n, entropy),
            split(self.keys.mask, numbers.t, numbers.n, entropy),
        )


@dataclass(frozen=True, eq=False)
class Shared:
    """After step 2: the site waits for U2 and its envelopes."""

    header: SessionHeader
    site: str
    keys: Keys = field(repr=False)
    sid: bytes
    u1: Mapping[str, Advertisement]
    own: Held = field(repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False)

    def mask(
        self, incoming: Mapping[str, bytes], u2: Sequence[str], x: NDArray[np.uint32]
    ) -> tuple[Masked, MaskedInput, NDArray[np.uint32]]:
        """Step 3: open every envelope, then mask the input. `x` is left as it is, for a second attempt.

        Args:
            incoming: The envelope of each other site of U2.
            u2: The sites that shared their keys.
            x: uint32[dimension + 1], from `Encoding.encode`.

        Returns:
            The next state, the message, and `y = x + own mask + sum of +-pair masks` modulo 2^32.

        Raises:
            ProtocolError: U2 too small, not within U1, or without this site; envelopes missing or to spare; an `x`
                of another type or shape.
            SiteFault: A peer's envelope that fails to open, or holds shares of another index.
        """
        self._once.spend(Phase.MASKED_INPUT)
        survivors = _check_list(u2, tuple(self.u1), self, Phase.MASKED_INPUT)
        if set(incoming) != set(survivors) - {self.site}:
            raise _server_fault(Phase.MASKED_INPUT, "the envelopes are not exactly one from each other site of U2")
        if x.dtype != np.uint32 or x.shape != (self.header.length,):
            raise ProtocolError(f"an input is uint32[{self.header.length}], not {x.dtype} of {x.shape}")
        held = {peer: self._open(peer, incoming[peer]) for peer in survivors if peer != self.site}
        y = x.copy()
        add_mask(y, self_mask_key(self.keys.seed, self.sid, self.site), 1)
        for peer in held:
            agreed = agree(self.keys.mask, self.u1[peer].mask_key)
            add_mask(y, pair_mask_key(agreed, self.sid, self.site, peer), pair_sign(self.site, peer))
        message = MaskedInput(self.site, input_digest(self.sid, self.site, survivors, y))
        state = Masked(self.header, self.site, self.sid, survivors, {**held, self.site: self.own})
        return state, message, y

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
    site: str
    sid: bytes
    u2: tuple[str, ...]
    held: Mapping[str, Held] = field(repr=False)
    _once: Once = field(default_factory=Once, init=False, repr=False)

    def unmask(self, u3: Sequence[str]) -> tuple[Unmasked, Shares]:
        """Step 5: release one share a site; the server names one list, which kind follows from it.

        Args:
            u3: The sites whose input is in the sum.

        Raises:
            ProtocolError: U3 too small, not within U2, with repeats, or without this site.
        """
        self._once.spend(Phase.UNMASKING)
        survivors = _check_list(u3, self.u2, self, Phase.UNMASKING)
        seeds = {peer: self.held[peer].seed_share.to_bytes() for peer in survivors}
        keys = {peer: self.held[peer].key_share.to_bytes() for peer in self.u2 if peer not in survivors}
        return Unmasked(self.header, self.site, self.sid, self.u2, survivors), Shares(self.site, seeds, keys)


@dataclass(frozen=True)
class Unmasked:
    """After step 5: no secret is left. The site checks the published sum and goes on."""

    header: SessionHeader
    site: str
    sid: bytes
    u2: tuple[str, ...]
    u3: tuple[str, ...]


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
