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
from fedseg.secagg.sealing import ENVELOPE_SIZE, KEY_SIZE, check_public_key
from fedseg.secagg.session import DOMAIN, HASH_SIZE, Phase, SessionHeader, check_hash
from fedseg.secagg.shamir import SHARE_SIZE, Share
from fedseg.secagg.thresholds import MAX_SITES
from fedseg.secagg.wire import Reader, Writer, check_name

__all__ = [
    "Advertisement",
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
    """Step 1: a site's two fresh public keys and a commitment to its self-mask seed.

    Raises:
        SiteFault: Keys that are malformed, of low order, or one and the same; a commitment that is no hash.
    """

    site: str
    envelope_key: bytes
    mask_key: bytes
    seed_commitment: bytes

    def __post_init__(self) -> None:
        """Check the points, so that no later exchange can fail or be predicted."""
        check_name(self.site)
        try:
            check_public_key(self.envelope_key)
            check_public_key(self.mask_key)
            check_hash(self.seed_commitment, "seed commitment")
        except ProtocolError as error:
            raise SiteFault(self.site, Phase.ADVERTISE_KEYS, error.what) from error
        if self.envelope_key == self.mask_key:
            raise SiteFault(self.site, Phase.ADVERTISE_KEYS, "its two keys are one and the same")

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        writer = Writer(DOMAIN + b"advertisement\0").text(self.site).raw(self.envelope_key)
        return writer.raw(self.mask_key).raw(self.seed_commitment).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Advertisement:
        """The advertisement in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"advertisement\0", "advertisement", cap=1024)
        parts = reader.text(), reader.raw(KEY_SIZE), reader.raw(KEY_SIZE), reader.raw(HASH_SIZE)
        reader.done()
        return cls(*parts)


@dataclass(frozen=True)
class Envelopes:
    """Step 2: for every other site of U1, the sealed shares of the sender's seed and mask key.

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
    """Step 3, beside the vector itself: the hash of session, sender, U2 and vector (see `input_digest`)."""

    site: str
    digest: bytes

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_name(self.site)
        check_hash(self.digest, "digest of a masked input")

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        return Writer(DOMAIN + b"masked-input\0").text(self.site).raw(self.digest).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskedInput:
        """The message in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"masked-input\0", "masked input", cap=1024)
        site, digest = reader.text(), reader.raw(HASH_SIZE)
        reader.done()
        return cls(site, digest)


@dataclass(frozen=True)
class Shares:
    """Step 5: the shares that one site held for others, of one kind for each.

    Args:
        site: The responder.
        seed_shares: For each site of U3, itself included, the share of its self-mask seed.
        key_shares: For each site of U2 that is not in U3, the share of its mask key.

    Raises:
        SiteFault: Both kinds for one site (it would bare that site's update), or shares of several holders.
    """

    site: str
    seed_shares: Mapping[str, bytes] = field(repr=False)
    key_shares: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        """Sort and freeze the maps; refuse both kinds for one site."""
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
        return Writer(DOMAIN + b"shares\0").text(self.site).table(self.seed_shares).table(self.key_shares).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Shares:
        """The shares in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, DOMAIN + b"shares\0", "message of shares", cap=32_768)
        site, seed_shares = reader.text(), reader.table(SHARE_SIZE, MAX_SITES)
        key_shares = reader.table(SHARE_SIZE, MAX_SITES)
        reader.done()
        return cls(site, seed_shares, key_shares)


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
    prefix = Writer(DOMAIN + b"input\0").raw(session).text(site).table(dict.fromkeys(u2, b""))
    state = hashlib.sha256(prefix.uint(vector.size, 4).done())
    state.update(np.ascontiguousarray(vector, dtype="<u4").view(np.uint8).data)
    return state.digest()


def _table(site: str, phase: Phase, entries: Mapping[str, bytes], size: int) -> Mapping[str, bytes]:
    check_name(site)
    for name, data in entries.items():
        check_name(name)
        if len(data) != size:
            raise SiteFault(site, phase, f"{len(data)} bytes for {name} instead of {size}")
    return MappingProxyType(dict(sorted(entries.items())))
