"""Who takes part in a study, and the keys that they sign with: what each site pins before it sends anything.

Whoever runs the server also runs the study's CA, and could mint a site to take the place of a hospital. So keys are
not believed because the server relays them: the operators compare the roster's fingerprint by a way that isn't the
server's, and a site speaks only under the roster that its own operator has confirmed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from fedseg.errors import ProtocolError
from fedseg.secagg.session import DOMAIN, HASH_SIZE, MAX_STUDY_NAME, SessionHeader, check_hash
from fedseg.secagg.signing import SIGNING_KEY_SIZE, check_signing_key, public_half, sign
from fedseg.secagg.thresholds import MAX_PLAIN_SITES
from fedseg.secagg.wire import Reader, Writer, check_name

_TAG = DOMAIN + b"roster\0"


@dataclass(frozen=True)
class Roster:
    """The sites of a study and their Ed25519 protocol keys; an instance that exists is well-formed.

    Args:
        study: The study's identifier.
        plan_hash: SHA-256 of the resolved plan: who compares fingerprints compares plans too.
        server_key: The Ed25519 key with which the server signs what it publishes.
        keys: By site, 32 bytes each.

    Raises:
        ProtocolError: A name, hash or key that cannot be; one key for two parties.
    """

    study: str
    plan_hash: bytes
    server_key: bytes
    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        """Check every key, sort and freeze the map."""
        check_name(self.study, "study name", MAX_STUDY_NAME)
        check_hash(self.plan_hash, "plan hash")
        if not 1 <= len(self.keys) <= MAX_PLAIN_SITES:
            raise ProtocolError(f"a roster has 1 to {MAX_PLAIN_SITES} sites, not {len(self.keys)}")
        for name in self.keys:
            check_name(name)
        parties = [self.server_key, *self.keys.values()]
        for key in parties:
            check_signing_key(key)
        if len(set(parties)) != len(parties):
            raise ProtocolError("two parties of the roster have one key")
        object.__setattr__(self, "keys", MappingProxyType(dict(sorted(self.keys.items()))))

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites, sorted."""
        return tuple(self.keys)

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that stand for everything in the roster: what operators compare, and sessions name."""
        return hashlib.sha256(_TAG + b"fingerprint\0" + self.to_bytes()).digest()

    def check_header(self, header: SessionHeader) -> None:
        """Refuse a session that isn't one of this roster: n, and with it every threshold, is the roster's.

        Raises:
            ProtocolError: The header names another roster, study, plan or list of sites.
        """
        named = (header.roster, header.study, header.plan_hash, header.sites)
        if named != (self.fingerprint, self.study, self.plan_hash, self.sites):
            raise ProtocolError(
                "the session is not one of the roster that this site has confirmed",
                where="session header",
                hint="compare the roster's words with the coordinator again; nothing was sent",
            )

    def differences(self, other: Roster) -> list[str]:
        """How `other` differs from this roster, one phrase a difference."""
        found = [] if self.study == other.study else ["it is another study's"]
        if self.plan_hash != other.plan_hash:
            found.append("the plan is another one")
        if self.server_key != other.server_key:
            found.append("the server has another key")
        found += [f"{site} is gone" for site in self.keys if site not in other.keys]
        found += [f"{site} was added" for site in other.keys if site not in self.keys]
        both = [site for site in self.keys if site in other.keys]
        return found + [f"{site} has another key" for site in both if self.keys[site] != other.keys[site]]

    def to_bytes(self) -> bytes:
        """The canonical encoding."""
        writer = Writer(_TAG).text(self.study).raw(self.plan_hash).raw(self.server_key)
        return writer.table(self.keys).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """The roster in exactly these bytes.

        Raises:
            ProtocolError: Anything else.
        """
        reader = Reader(data, _TAG, "roster")
        study, plan_hash = reader.text("study name", MAX_STUDY_NAME), reader.raw(HASH_SIZE)
        server_key, keys = reader.raw(SIGNING_KEY_SIZE), reader.table(SIGNING_KEY_SIZE, MAX_PLAIN_SITES)
        reader.done()
        return cls(study, plan_hash, server_key, keys)


@dataclass(frozen=True)
class Identity:
    """One site: its name, the key that it signs with, and the roster that its operator has confirmed.

    Raises:
        ProtocolError: The roster doesn't name the site, or has another key for it.
    """

    site: str
    key: bytes = field(repr=False)
    roster: Roster

    def __post_init__(self) -> None:
        """Refuse a roster in which this site couldn't be heard, or somebody else would speak in its name."""
        if self.roster.keys.get(self.site) != public_half(self.key):
            raise ProtocolError(f"the roster does not hold the key of {self.site}")

    def sign(self, step: str, session: bytes, content: bytes) -> bytes:
        """See `signing.sign`."""
        return sign(self.key, step, session, self.site, content)
