"""X.509 in small pieces: names, keys, signatures and PEM, for `certificates` and `invites`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedseg.errors import LinkError, UsageError

DAY = 86_400
CLOCK_SKEW = DAY
MAX_PEM = 16_384

Extensions = Sequence[tuple[x509.ExtensionType, bool]]


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, both PEM; the key is unencrypted PKCS #8 and never in a repr."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class Issuer:
    """Who signs: the subject name of a CA certificate and its key."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def common_name_of(text: str) -> x509.Name:
    """The X.509 name that is this common name and nothing else.

    Raises:
        UsageError: It is empty, longer than 64 characters or not printable.
    """
    if not (1 <= len(text) <= 64 and text.isprintable()):
        raise UsageError(f"a certificate's name is 1 to 64 printable characters, not {text[:80]!r}")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def sign_certificate(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    validity: tuple[float, float],
    extensions: Extensions,
) -> x509.Certificate:
    """Sign a certificate; subject and authority key identifiers are those of the two keys, validity is (from, to)."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(validity[0]), UTC))
        .not_valid_after(datetime.fromtimestamp(int(validity[1]), UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if subject != issuer.name:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(authority, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer.key, hashes.SHA256())


def is_issued_by(cert: x509.Certificate, ca: x509.Certificate) -> bool:
    """Whether `ca` itself signed `cert`, which also carries its name; validity is not looked at."""
    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def load_certificate(pem: bytes) -> x509.Certificate:
    """Read the one certificate of a PEM text.

    Raises:
        LinkError: There is none, more than one, or it is malformed.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem) if len(pem) <= MAX_PEM else []
    except ValueError:
        certificates = []
    if len(certificates) != 1:
        raise LinkError("this is not one PEM certificate")
    return certificates[0]


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read an unencrypted P-256 private key; no error shows any of it.

    Raises:
        LinkError: It is malformed, or another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise LinkError("this is not an unencrypted P-256 private key in PEM") from None
    return key


def is_p256(key: object) -> bool:
    """Whether a public key is on P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def to_pem(cert: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return cert.public_bytes(serialization.Encoding.PEM)


def to_der(cert: x509.Certificate) -> bytes:
    """The certificate in DER."""
    return cert.public_bytes(serialization.Encoding.DER)


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as unencrypted PKCS #8 in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _usage(purpose: x509.ObjectIdentifier) -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage([purpose]), False


CA_EXTENSIONS: Extensions = (
    (x509.BasicConstraints(ca=True, path_length=0), True),
    (_key_usage(signs_certificates=True), True),
)
_LEAF_EXTENSIONS: Extensions = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (_key_usage(signs_certificates=False), True),
)
SERVER_EXTENSIONS: Extensions = (*_LEAF_EXTENSIONS, _usage(ExtendedKeyUsageOID.SERVER_AUTH))
CLIENT_EXTENSIONS: Extensions = (*_LEAF_EXTENSIONS, _usage(ExtendedKeyUsageOID.CLIENT_AUTH))
