"""Invites: one line that lets one hospital enrol once.

An invite carries a 128-bit secret. From it (HKDF-SHA256, RFC 5869) both ends derive the P-256 key of a small CA that
is good for this invite only. The server keeps that CA's certificate among its client roots, the site presents a leaf
that the same key has signed: so even enrolment runs over TLS with a client certificate. Address, site, expiry and the
study's CA go into the derivation: an invite in which anything was changed derives another key, and TLS refuses it.

The text is `fedseg1.` and base64url without padding of: length of all that follows (2 bytes), expiry (8), secret (16),
length and text of the address (1 + n), of the site (1 + n), the CA certificate (DER), and the first six bytes of the
SHA-256 of everything before. Integers are big-endian.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedseg.errors import FedsegError, InviteError
from fedseg.rpc.addresses import split_address
from fedseg.rpc.certificates import require_site_name
from fedseg.rpc.pki import (
    CA_EXTENSIONS,
    CLIENT_EXTENSIONS,
    DAY,
    Issuer,
    KeyPair,
    common_name_of,
    is_p256,
    key_to_pem,
    load_certificate,
    new_key,
    sign_certificate,
    to_der,
    to_pem,
)

PREFIX = "fedseg1."
INVITE_HOURS = 72
SECRET_BYTES = 16
MAX_TEXT = 4096
CHECKSUM_BYTES = 6
# An old invite must still pass TLS, so that Enrol can answer "used" or "expired" instead of a handshake that fails.
CA_MARGIN = 365 * DAY
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_ASK = "copy the whole line again, or ask the study's coordinator for a new invite"


@dataclass(frozen=True)
class Invite:
    """What one hospital needs in order to enrol; valid once built.

    Args:
        address: HOST:PORT of the server.
        site: The name under which the hospital takes part; the invite is good for no other.
        expires_at: Seconds since 1970; the server's clock decides.
        secret: 16 random bytes.
        ca_cert_pem: The study's CA, to know the server by.

    Raises:
        UsageError: Address or site name is malformed.
        InviteError: Expiry, secret or CA are not what they should be.
    """

    address: str
    site: str
    expires_at: int
    secret: bytes = field(repr=False)
    ca_cert_pem: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what could not enrol."""
        split_address(self.address)
        require_site_name(self.site)
        if len(self.secret) != SECRET_BYTES:
            raise InviteError(f"an invite's secret has {SECRET_BYTES} bytes, not {len(self.secret)}")
        if not 0 < self.expires_at < 2**33:
            raise InviteError("an invite's expiry is not a time")
        require_ca(load_certificate(self.ca_cert_pem))

    @classmethod
    def create(cls, address: str, site: str, ca_cert_pem: bytes, *, now: float, hours: int = INVITE_HOURS) -> Invite:
        """Make a new invite, with a secret from the operating system."""
        return cls(address, site, int(now) + hours * 3600, secrets.token_bytes(SECRET_BYTES), ca_cert_pem)

    @classmethod
    def decode(cls, text: str) -> Invite:
        """Read an invite; white space and line breaks, which mail programs add, don't matter.

        Raises:
            InviteError: It is no invite, is cut short, or a letter is wrong.
        """
        fields = _Reader(_payload(text))
        expires_at, secret = int.from_bytes(fields.take(8)), fields.take(SECRET_BYTES)
        address, site = fields.text(), fields.text()
        try:
            ca = x509.load_der_x509_certificate(fields.rest())
            return cls(address, site, expires_at, secret, to_pem(ca))
        except (ValueError, FedsegError) as error:
            raise InviteError(f"this invite makes no sense: {_reason(error)}", hint=_ASK) from None

    @property
    def identifier(self) -> str:
        """What the server stores instead of the secret: a hash of it, 32 hexadecimal digits. Not secret."""
        return hashlib.sha256(b"fedseg invite identifier v1\0" + self.secret).hexdigest()[:32]

    def encode(self) -> str:
        """The invite as one line of about 550 to 700 characters. It is a secret until it is used."""
        body = self.expires_at.to_bytes(8) + self.secret + self._public_part()
        framed = (len(body) + CHECKSUM_BYTES).to_bytes(2) + body
        return PREFIX + _base64url(framed + _checksum(framed))

    def require_unexpired(self, now: float) -> None:
        """Refuse an invite whose time is over.

        Raises:
            InviteError: It is.
        """
        if now > self.expires_at:
            ended = datetime.fromtimestamp(self.expires_at, UTC)
            raise InviteError(
                f"the invite for {self.site} expired on {ended:%Y-%m-%d %H:%M} UTC",
                hint="ask the study's coordinator for a new one",
            )

    def enrolment_identity(self, *, now: float) -> KeyPair:
        """A leaf certificate of the invite's CA, over a fresh key, with which the site may call Enrol for two days."""
        key = new_key()
        validity = (now - DAY, now + DAY)
        leaf = sign_certificate(
            common_name_of(self.site), key.public_key(), self._issuer(), validity, CLIENT_EXTENSIONS
        )
        return KeyPair(to_pem(leaf), key_to_pem(key))

    def ca_certificate(self) -> bytes:
        """The certificate (PEM, public) of the invite's CA, which the server adds to its client roots.

        Name and key are the same each time, the bytes are not: ECDSA signatures and serial numbers are random.
        """
        issuer = self._issuer()
        validity = (self.expires_at - CA_MARGIN, self.expires_at + CA_MARGIN)
        return to_pem(sign_certificate(issuer.name, issuer.key.public_key(), issuer, validity, CA_EXTENSIONS))

    def _issuer(self) -> Issuer:
        context = b"fedseg invite CA v1\0" + self.expires_at.to_bytes(8) + self._public_part()
        drawn = HKDF(hashes.SHA256(), length=48, salt=None, info=context).derive(self.secret)
        # 384 bits folded into the order, as in FIPS 186-5 A.2.1: the bias is below 2^-128.
        scalar = int.from_bytes(drawn) % (_P256_ORDER - 1) + 1
        name = common_name_of(f"fedseg invite {self.identifier}")
        return Issuer(name, ec.derive_private_key(scalar, ec.SECP256R1()))

    def _public_part(self) -> bytes:
        return _short(self.address) + _short(self.site) + to_der(load_certificate(self.ca_cert_pem))


class _Reader:
    """Takes a byte string apart, and never reads past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise InviteError("this invite makes no sense: it ends too early", hint=_ASK)
        self._at += count
        return piece

    def text(self) -> str:
        try:
            return self.take(self.take(1)[0]).decode("ascii")
        except UnicodeDecodeError:
            raise InviteError("this invite makes no sense: a name in it is not plain text", hint=_ASK) from None

    def rest(self) -> bytes:
        return self._data[self._at :]


def require_ca(cert: x509.Certificate) -> None:
    """Refuse a certificate that is not a P-256 CA.

    Raises:
        InviteError: It isn't.
    """
    try:
        is_ca = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usable = is_ca and is_p256(cert.public_key())
    except (x509.ExtensionNotFound, ValueError):
        usable = False
    if not usable:
        raise InviteError("the certificate in the invite is not a study's CA")


def _payload(text: str) -> bytes:
    """The bytes between length and checksum."""
    letters = _letters(text)
    framed = _unbase64url(letters)
    expected = int.from_bytes(framed[:2]) + 2
    if len(framed) < expected:
        raise InviteError(f"this invite is cut short: {len(framed)} of {expected} bytes are there", hint=_ASK)
    if len(framed) > expected:
        raise InviteError(f"this invite is too long: {len(framed) - expected} bytes follow its end", hint=_ASK)
    if _base64url(framed) != letters:
        raise InviteError("the last letter of this invite is wrong", hint=_ASK)
    if not secrets.compare_digest(_checksum(framed[:-CHECKSUM_BYTES]), framed[-CHECKSUM_BYTES:]):
        raise InviteError("a letter of this invite is wrong: its checksum doesn't match", hint=_ASK)
    return framed[2:-CHECKSUM_BYTES]


def _letters(text: str) -> str:
    """What follows the prefix, without white space."""
    if len(text) > MAX_TEXT:
        raise InviteError(f"this is no invite: it has {len(text)} characters", hint=_ASK)
    joined = "".join(text.split())
    if not joined:
        raise InviteError("the invite is empty", hint=_ASK)
    if not joined.startswith(PREFIX):
        if re.match(r"fedseg\d+\.", joined):
            raise InviteError("this invite was made by another version of fedseg", hint="update fedseg at this site")
        raise InviteError(f"this is no invite: it doesn't begin with {PREFIX}", hint=_ASK)
    return joined[len(PREFIX) :]


def _unbase64url(letters: str) -> bytes:
    wrong = re.search(r"[^A-Za-z0-9_-]", letters)
    if wrong:
        position = len(PREFIX) + wrong.start() + 1
        raise InviteError(f"character {position} of this invite is wrong: {wrong[0]!r} doesn't occur in one", hint=_ASK)
    try:
        framed = base64.urlsafe_b64decode(letters + "=" * (-len(letters) % 4))
    except binascii.Error:
        framed = b""
    if len(framed) <= 2 + CHECKSUM_BYTES:
        raise InviteError(f"this invite is cut short: only {len(letters)} letters are there", hint=_ASK)
    return framed


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _checksum(framed: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + framed).digest()[:CHECKSUM_BYTES]


def _short(text: str) -> bytes:
    encoded = text.encode("ascii")
    return bytes([len(encoded)]) + encoded


def _reason(error: Exception) -> str:
    return error.what if isinstance(error, FedsegError) else "its certificate cannot be read"
