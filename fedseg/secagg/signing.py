"""Signatures by a site's protocol key: Ed25519 (RFC 8032).

A signature covers the step, the session and the sender beside the content, each framed, so that none made for one
purpose, session or name is good for another. Ed25519 is deterministic: signing the same again gives the same bytes.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedseg.errors import ProtocolError
from fedseg.secagg.wire import Writer

SIGNATURE_SIZE = 64
SIGNING_KEY_SIZE = 32
_DOMAIN = b"fedseg/secagg/v1/signature\0"
_FIELD_PRIME = 2**255 - 19
# The y coordinates of the points of order 1, 2, 4 and 8 (RFC 8032's curve): with such a key anybody can sign.
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_LOW_ORDER = frozenset({0, 1, _FIELD_PRIME - 1, _ORDER_8, _FIELD_PRIME - _ORDER_8})


def public_half(private: bytes) -> bytes:
    """The public key, 32 bytes, of a private one.

    Raises:
        ProtocolError: Not 32 bytes.
    """
    return _private(private).public_key().public_bytes_raw()


def check_signing_key(public: bytes) -> None:
    """Refuse what no honest Ed25519 key looks like: a second spelling, or a point of low order.

    Raises:
        ProtocolError: Not 32 bytes, not canonical, or a key under which anybody can sign.
    """
    if len(public) != SIGNING_KEY_SIZE:
        raise ProtocolError(f"a protocol key has {SIGNING_KEY_SIZE} bytes, not {len(public)}")
    y = int.from_bytes(public, "little") % 2**255
    if y >= _FIELD_PRIME:
        raise ProtocolError("a protocol key is not in canonical form")
    if y in _LOW_ORDER:
        raise ProtocolError("a protocol key is a point of low order, under which anybody can sign")


def sign(private: bytes, step: str, session: bytes, site: str, content: bytes) -> bytes:
    """The signature, 64 bytes, of `content` by `site` in a step of a session.

    Args:
        private: The site's Ed25519 key, 32 bytes.
        step: What is signed, such as a `Phase`.
        session: sid0 or sid, 32 bytes.
        site: Who signs.
        content: What the step says.
    """
    return _private(private).sign(_statement(step, session, site, content))


def verify(public: bytes, step: str, session: bytes, site: str, content: bytes, signature: bytes) -> None:
    """Refuse a signature that `sign` with the other half of `public` didn't make of exactly this.

    Raises:
        ProtocolError: It didn't, or `public` is no key.
    """
    check_signing_key(public)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _statement(step, session, site, content))
    except InvalidSignature:
        raise ProtocolError(f"the signature of {site} in {step} does not verify") from None


def _private(private: bytes) -> Ed25519PrivateKey:
    if len(private) != SIGNING_KEY_SIZE:
        raise ProtocolError(f"a protocol key has {SIGNING_KEY_SIZE} bytes, not {len(private)}")
    return Ed25519PrivateKey.from_private_bytes(private)


def _statement(step: str, session: bytes, site: str, content: bytes) -> bytes:
    if len(session) != 32:
        raise ProtocolError(f"a session has 32 bytes, not {len(session)}")
    return Writer(_DOMAIN).text(str(step)).raw(session).text(site).raw(content).done()
