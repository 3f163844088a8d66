"""What sites and aggregator say to each other, and the hashes that bind it to one session.

Every type refuses what can't be meant when it is built, and every `from_bytes` is strict: one spelling, no leftovers.
Masked vectors travel apart from their `MaskedInput`, as little-endian uint32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError, SiteFault
from fedseg.secagg.roster import Identity, Roster
from fedseg.secagg.sealing import ENVELOPE_SIZE, KEY_SIZE, check_public_key
from fedseg.secagg.session import DOMAIN, HASH_SIZE, Phase, SessionHeader, check_hash
from fedseg.secagg.shamir import SHARE_SIZE, Share
from fedseg.secagg.signing import SIGNATURE_SIZE, verify
from fedseg.secagg.thresholds import MAX_SITES
from fedseg.secagg.wire import Reader, Writer, check_name

__all__ = [
    "Advertisement",
    "Consistency",
    "Envelopes",
    "MaskedInput",
    "Phase",
    "SessionHeader",
    "Shares",
    "input_digest",
    "seed_commitment",
    "sid",
]


@dataclass(frozen=True)
class Advertisement:
    """Step 1: a site's two fresh public keys and a commitment to its self-mask seed, signed over sid0.

    Raises:
        SiteFault: Keys that are malformed, of low order, or one and the same; a commitment that is no hash.
    """

    site: str
    envelope_key: bytes
    mask_key: bytes
    seed_commitment: bytes
    signature: bytes

    @classmethod
    def signed(
        cls, header: SessionHeader, identity: Identity, envelope_key: bytes, mask_key: bytes, commitment: bytes
    ) -> Advertisement:
        """A site's own advertisement."""
        content = envelope_key + mask_key + commitment
        signature = identity.sign(Phase.ADVERTISE_KEYS, header.sid0(), content)
        return cls(identity.site, envelope_key, mask_key, commitment, signature)

    def verify(self, header: SessionHeader, roster: Roster) -> None:
        """Refuse keys that the site in the roster didn't sign for this session.

        Raises:
            SiteFault: It didn't, or the roster doesn't name it.
        """
        content = self.envelope_key + self.mask_key + self.seed_commitment
        _verify(roster, Phase.ADVERTISE_KEYS, header.sid0(), self.site, content, self.signature)

    def __post_init__(self) -> None:
        """Check the points, so that no later exchange can fail or be predicted."""
        check_name(self.site)
        try:
            check_public_key(self.envelope_key)
            check_public_key(self.mask_key)
            check_hash(self.seed_commitment, "seed commitment")
            _check_signature(self.signature)
        except ProtocolError as error:
            raise SiteFault(self.site, Phase.ADVERTISE_KEYS, error.what) from error
        if self.envelope_key == self.mask_key:
            raise SiteFault(self.site, Phase.ADVERTISE_KEYS, "its two keys are one and the same")

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        writer = Writer(DOMAIN + b"advertisement\0").text(self.site).raw(self.envelope_key)
        return writer.raw(self.mask_key).raw(self.seed_commitment).raw(self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Advertisement:
        """The advertisement in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"advertisement\0", "advertisement", cap=1024)
        site, envelope_key, mask_key = reader.text(), reader.raw(KEY_SIZE), reader.raw(KEY_SIZE)
        commitment, signature = reader.raw(HASH_SIZE), reader.raw(SIGNATURE_SIZE)
        reader.done()
        return cls(site, envelope_key, mask_key, commitment, signature)


@dataclass(frozen=True)
class Envelopes:
    """Step 2: for every other site of U1, the sealed shares of the sender's seed and mask key.

    It bears no signature: each envelope is authenticated under a key that only the two holders of signed
    advertisements can derive, for this session and direction.

    Raises:
        SiteFault: An envelope to itself, or one of a wrong size.
    """

    site: str
    sealed: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Sort and freeze the map."""
        object.__setattr__(self, "sealed", _table(self.site, Phase.SHARE_KEYS, self.sealed, ENVELOPE_SIZE))
        if self.site in self.sealed:
            raise SiteFault(self.site, Phase.SHARE_KEYS, "it addressed an envelope to itself")

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return Writer(DOMAIN + b"envelopes\0").text(self.site).table(self.sealed).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelopes:
        """The envelopes in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"envelopes\0", "message of envelopes", cap=32_768)
        site, sealed = reader.text(), reader.table(ENVELOPE_SIZE, MAX_SITES)
        reader.done()
        return cls(site, sealed)


@dataclass(frozen=True)
class MaskedInput:
    """Step 3, beside the vector itself: the signed hash of session, sender, U2 and vector (see `input_digest`).

    In plain mode the session is sid0, and U2 the sites that joined.
    """

    site: str
    digest: bytes
    signature: bytes

    @classmethod
    def signed(cls, session: bytes, identity: Identity, digest: bytes) -> MaskedInput:
        """A site's own message; `session` is sid, or sid0 in plain mode."""
        return cls(identity.site, digest, identity.sign(Phase.MASKED_INPUT, session, digest))

    def verify(self, session: bytes, roster: Roster) -> None:
        """Refuse a hash that the site in the roster didn't sign for this session.

        Raises:
            SiteFault: It didn't, or the roster doesn't name it.
        """
        _verify(roster, Phase.MASKED_INPUT, session, self.site, self.digest, self.signature)

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_name(self.site)
        check_hash(self.digest, "digest of a masked input")
        _check_signature(self.signature)

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return Writer(DOMAIN + b"masked-input\0").text(self.site).raw(self.digest).raw(self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskedInput:
        """The message in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"masked-input\0", "masked input", cap=1024)
        site, digest, signature = reader.text(), reader.raw(HASH_SIZE), reader.raw(SIGNATURE_SIZE)
        reader.done()
        return cls(site, digest, signature)


@dataclass(frozen=True)
class Consistency:
    """Step 4: one site's signature over (sid, U2, U3), which it gives exactly once in a session."""

    site: str
    signature: bytes

    @classmethod
    def signed(cls, session: bytes, identity: Identity, u2: Sequence[str], u3: Sequence[str]) -> Consistency:
        """A site's own signature; `session` is sid."""
        return cls(identity.site, identity.sign(Phase.CONSISTENCY, session, _sets(u2, u3)))

    def verify(self, session: bytes, roster: Roster, u2: Sequence[str], u3: Sequence[str]) -> None:
        """Refuse a signature that isn't the site's over exactly these two sets of this session.

        Raises:
            SiteFault: It isn't, or the roster doesn't name the site.
        """
        _verify(roster, Phase.CONSISTENCY, session, self.site, _sets(u2, u3), self.signature)

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_name(self.site)
        _check_signature(self.signature)

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return Writer(DOMAIN + b"consistency\0").text(self.site).raw(self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Consistency:
        """The message in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"consistency\0", "consistency signature", cap=1024)
        site, signature = reader.text(), reader.raw(SIGNATURE_SIZE)
        reader.done()
        return cls(site, signature)


@dataclass(frozen=True)
class Shares:
    """Step 5: the shares that one site held for others, of one kind for each, signed over sid.

    Args:
        site: The responder.
        seed_shares: For each site of U3, itself included, the share of its self-mask seed.
        key_shares: For each site of U2 that is not in U3, the share of its mask key.
        signature: So that a wrong share can be laid at its sender's door.

    Raises:
        SiteFault: Both kinds for one site (it would bare that site's update), or shares of several holders.
    """

    site: str
    seed_shares: Mapping[str, bytes] = field(repr=False)
    key_shares: Mapping[str, bytes] = field(repr=False)
    signature: bytes

    @classmethod
    def signed(
        cls, session: bytes, identity: Identity, seed_shares: Mapping[str, bytes], key_shares: Mapping[str, bytes]
    ) -> Shares:
        """A site's own answer; `session` is sid."""
        signature = identity.sign(Phase.UNMASKING, session, _tables(seed_shares, key_shares))
        return cls(identity.site, seed_shares, key_shares, signature)

    def verify(self, session: bytes, roster: Roster) -> None:
        """Refuse shares that the site in the roster didn't sign for this session.

        Raises:
            SiteFault: It didn't, or the roster doesn't name it.
        """
        content = _tables(self.seed_shares, self.key_shares)
        _verify(roster, Phase.UNMASKING, session, self.site, content, self.signature)

    def __post_init__(self) -> None:
        """Sort and freeze the maps; refuse both kinds for one site."""
        _check_signature(self.signature)
        object.__setattr__(self, "seed_shares", _table(self.site, Phase.UNMASKING, self.seed_shares, SHARE_SIZE))
        object.__setattr__(self, "key_shares", _table(self.site, Phase.UNMASKING, self.key_shares, SHARE_SIZE))
        both = sorted(self.seed_shares.keys() & self.key_shares.keys())
        if both:
            raise SiteFault(self.site, Phase.UNMASKING, f"both kinds of share for {', '.join(both)}")
        shares = [*self.seed_shares.values(), *self.key_shares.values()]
        if len({Share.from_bytes(share).index for share in shares}) > 1:
            raise SiteFault(self.site, Phase.UNMASKING, "shares of more than one holder")

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        content = _tables(self.seed_shares, self.key_shares)
        return Writer(DOMAIN + b"shares\0").text(self.site).raw(content).raw(self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Shares:
        """The shares in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"shares\0", "message of shares", cap=32_768)
        site, seed_shares = reader.text(), reader.table(SHARE_SIZE, MAX_SITES)
        key_shares, signature = reader.table(SHARE_SIZE, MAX_SITES), reader.raw(SIGNATURE_SIZE)
        reader.done()
        return cls(site, seed_shares, key_shares, signature)


def sid(header: SessionHeader, advertisements: Sequence[Advertisement]) -> bytes:
    """The session: the hash of its header and, sorted by site, of all advertisements of U1."""
    state = hashlib.sha256(DOMAIN + b"sid\0" + header.sid0())
    for data in (each.to_bytes() for each in sorted(advertisements, key=lambda each: each.site)):
        state.update(len(data).to_bytes(4, "big") + data)
    return state.digest()


def seed_commitment(header: SessionHeader, site: str, seed: bytes) -> bytes:
    """The hash by which a site commits to its self-mask seed; 256 random bits keep it hidden."""
    return hashlib.sha256(DOMAIN + b"seed\0" + header.sid0() + site.encode() + b"\0" + seed).digest()


def input_digest(session: bytes, site: str, u2: Sequence[str], vector: NDArray[np.uint32]) -> bytes:
    """The hash of a contribution: of its session, sender, U2 (sorted) and vector.

    In plain mode `session` is sid0, and `u2` the sites that joined.
    """
    prefix = Writer(DOMAIN + b"input\0").raw(session).text(site).names(u2)
    state = hashlib.sha256(prefix.uint(vector.size, 4).done())
    state.update(np.ascontiguousarray(vector, dtype="<u4").view(np.uint8).data)
    return state.digest()


def _sets(u2: Sequence[str], u3: Sequence[str]) -> bytes:
    return Writer(b"").names(u2).names(u3).done()


def _tables(seed_shares: Mapping[str, bytes], key_shares: Mapping[str, bytes]) -> bytes:
    return Writer(b"").table(seed_shares).table(key_shares).done()


def _check_signature(signature: bytes) -> None:
    if len(signature) != SIGNATURE_SIZE:
        raise ProtocolError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")


def _verify(roster: Roster, phase: Phase, session: bytes, site: str, content: bytes, signature: bytes) -> None:
    key = roster.keys.get(site)
    if key is None:
        raise SiteFault(site, phase, "the roster does not name it")
    try:
        verify(key, phase, session, site, content, signature)
    except ProtocolError as error:
        raise SiteFault(site, phase, error.what) from error


def _table(site: str, phase: Phase, entries: Mapping[str, bytes], size: int) -> Mapping[str, bytes]:
    check_name(site)
    for name, data in entries.items():
        check_name(name)
        if len(data) != size:
            raise SiteFault(site, phase, f"{len(data)} bytes for {name} instead of {size}")
    return MappingProxyType(dict(sorted(entries.items())))
