"""Keys of two kinds and the envelopes in which shares travel: X25519 (RFC 7748), AES-256-GCM (SP 800-38D)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedseg.errors import ProtocolError
from fedseg.secagg.masking import derive
from fedseg.secagg.shamir import SHARE_SIZE, Share

KEY_SIZE = 32
ENVELOPE_SIZE = 2 * SHARE_SIZE + 16
_FIELD_PRIME = 2**255 - 19
_PROBE = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def public_key(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def check_public_key(public: bytes) -> None:
    """Refuse what no honest X25519 key looks like.

    A second spelling of a point (bit 255 set, or a coordinate of at least 2^255 - 19) would slip past a comparison of
    bytes; a point of low order gives a secret that everybody knows. Whether a point has low order doesn't depend on
    the private key, as those are multiples of the cofactor: one fixed probe finds out.

    Raises:
        ProtocolError: Not 32 bytes, not the canonical spelling, or a low-order point.
    """
    if len(public) != KEY_SIZE:
        raise ProtocolError(f"a public key has {KEY_SIZE} bytes, not {len(public)}")
    if int.from_bytes(public, "little") >= _FIELD_PRIME:
        raise ProtocolError("a public key is not in canonical form")
    _exchange(_PROBE, public)


def agree(private: bytes, public: bytes) -> bytes:
    """The 32 bytes that two key pairs share.

    Raises:
        ProtocolError: `public` is a point of low order, so that the secret would be zero.
    """
    return _exchange(X25519PrivateKey.from_private_bytes(private), public)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError("a public key is a point of low order") from error


def seal(agreed: bytes, sid: bytes, *, sender: str, receiver: str, seed_share: Share, key_share: Share) -> bytes:
    """The envelope of 86 bytes in which `sender` gives `receiver` a share of its seed and one of its mask key.

    Key and nonce come from the pair's secret, the session and the direction; one envelope goes each way in a session,
    so the pair of them is used once. Names and session are authenticated too.

    Args:
        agreed: X25519 of the two envelope keys.
        sid: The session.
        sender: Whose secrets are shared.
        receiver: Who holds the shares.
        seed_share: Of the sender's self-mask seed.
        key_share: Of the sender's private mask key.
    """
    key, nonce, context = _envelope_key(agreed, sid, sender, receiver)
    return AESGCM(key).encrypt(nonce, seed_share.to_bytes() + key_share.to_bytes(), context)


def open_envelope(agreed: bytes, sid: bytes, sender: str, receiver: str, sealed: bytes) -> tuple[Share, Share]:
    """What `seal` sealed: the share of the sender's seed and that of its mask key.

    Raises:
        ProtocolError: Wrong length, tampered with, for somebody else, of another session, or not two shares.
    """
    key, nonce, context = _envelope_key(agreed, sid, sender, receiver)
    try:
        shares = AESGCM(key).decrypt(nonce, sealed, context)
    except InvalidTag as error:
        raise ProtocolError("envelope failed to open") from error
    return Share.from_bytes(shares[:SHARE_SIZE]), Share.from_bytes(shares[SHARE_SIZE:])


def _envelope_key(agreed: bytes, sid: bytes, sender: str, receiver: str) -> tuple[bytes, bytes, bytes]:
    material = derive(agreed, sid, b"envelope", sender, receiver, length=44)
    context = b"\0".join((sid, sender.encode(), receiver.encode()))
    return material[:32], material[32:], context
