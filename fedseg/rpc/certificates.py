"""The study's certificates and the keys they stand for.

TLS runs on P-256: gRPC refuses Ed25519 leaf certificates (NO_COMMON_SIGNATURE_ALGORITHMS). A site's Ed25519 protocol
key is apart from its TLS key; what it signs does not depend on the CA. Every time is an argument, in seconds since 1970
(UTC).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedseg.errors import LinkError, ProtocolError, UsageError
from fedseg.plan.sections import SITE_NAME
from fedseg.rpc.pki import (
    CA_EXTENSIONS,
    CLIENT_EXTENSIONS,
    CLOCK_SKEW,
    DAY,
    MAX_PEM,
    SERVER_EXTENSIONS,
    Extensions,
    Issuer,
    KeyPair,
    common_name_of,
    is_issued_by,
    is_p256,
    key_to_pem,
    load_certificate,
    load_key,
    new_key,
    sign_certificate,
    to_der,
    to_pem,
)

CA_DAYS = 5 * 365
SERVER_DAYS = 365
SITE_DAYS = 60
SITE_DAYS_ALLOWED = range(30, 91)
_DNS_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


def create_study_ca(common_name: str, *, now: float, days: int = CA_DAYS) -> KeyPair:
    """Make the CA of one study: P-256, may sign leaves only (path length 0).

    Args:
        common_name: 1 to 64 printable characters; it is part of every invite, so short is better.
        now: The time.
        days: How long it lives: longer than the study.

    Raises:
        UsageError: The name is empty, too long or not printable.
    """
    name = common_name_of(common_name)
    key = new_key()
    cert = sign_certificate(
        name, key.public_key(), Issuer(name, key), (now - CLOCK_SKEW, now + days * DAY), CA_EXTENSIONS
    )
    return KeyPair(to_pem(cert), key_to_pem(key))


def issue_server_certificate(ca: KeyPair, hosts: Sequence[str], *, now: float, days: int = SERVER_DAYS) -> KeyPair:
    """Make the server's key and certificate; serverAuth only, so that it opens no door as a client.

    Args:
        ca: The study's CA.
        hosts: DNS names and IP addresses (without brackets or port) under which sites reach the server;
            localhost, 127.0.0.1 and ::1 are always added.
        now: The time.
        days: How long it lives, at most as long as the CA.

    Raises:
        UsageError: No host, or one that is neither name nor address.
        LinkError: The CA has expired.
    """
    if not hosts:
        raise UsageError("a server certificate needs the name or address under which sites reach it")
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"]))
    alternatives = x509.SubjectAlternativeName([_general_name(host) for host in names])
    key = new_key()
    extensions = [*SERVER_EXTENSIONS, (alternatives, False)]
    cert = _issue(ca, common_name_of("fedseg server"), key.public_key(), extensions, now=now, days=days)
    return KeyPair(to_pem(cert), key_to_pem(key))


def new_site_key() -> bytes:
    """Make a site's TLS key (P-256, PEM). It never leaves the site."""
    return key_to_pem(new_key())


def certificate_request(key_pem: bytes, site: str) -> bytes:
    """The CSR (PEM) with which a site asks for a certificate for its key.

    Raises:
        UsageError: This is no site's name.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name_of(require_site_name(site)))
    return builder.sign(load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue_site_certificate(ca: KeyPair, csr_pem: bytes, site: str, *, now: float, days: int = SITE_DAYS) -> bytes:
    """Answer a CSR with a clientAuth certificate (PEM).

    Only the key is taken from the CSR; the subject is `site`, whatever the CSR says, and no extension is copied.

    Raises:
        ProtocolError: The CSR is malformed, its key is not P-256, or it is not signed by that key.
        UsageError: `days` is outside 30 to 90, or this is no site's name.
        LinkError: The CA has expired.
    """
    if days not in SITE_DAYS_ALLOWED:
        raise UsageError(f"a site's certificate lives 30 to 90 days, not {days}")
    name = common_name_of(require_site_name(site))
    key = _requested_key(csr_pem)
    return to_pem(_issue(ca, name, key, CLIENT_EXTENSIONS, now=now, days=days))


def require_issued(cert_pem: bytes, key_pem: bytes, ca_cert_pem: bytes, site: str, *, now: float) -> None:
    """Check, at the site, the certificate that the server sent back, before it is kept.

    Raises:
        LinkError: It is for another key, another site, from another CA, or not valid at this time.
    """
    cert = load_certificate(cert_pem)
    where = f"the certificate for {site}"
    if cert.public_key() != load_key(key_pem).public_key():
        raise LinkError("the server sent a certificate for another key than this site's", where=where)
    if cert.subject != common_name_of(require_site_name(site)):
        raise LinkError("the server sent a certificate for another site", where=where)
    if not is_issued_by(cert, load_certificate(ca_cert_pem)):
        raise LinkError("the certificate is not signed by the CA that the invite names", where=where)
    require_valid(cert_pem, now=now, where=where)


def require_valid(cert_pem: bytes, *, now: float, where: str, hint: str | None = None) -> None:
    """Check that a certificate is in its time of validity.

    Raises:
        LinkError: It has expired, or is not valid yet.
    """
    cert = load_certificate(cert_pem)
    if now > cert.not_valid_after_utc.timestamp():
        raise LinkError(f"it expired on {cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", where=where, hint=hint)
    if now < cert.not_valid_before_utc.timestamp():
        raise LinkError(
            f"it is valid only from {cert.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            where=where,
            hint="is this machine's clock right?",
        )


def fingerprint(cert_pem: bytes) -> str:
    """SHA-256 of the certificate's DER, as 64 hexadecimal digits: what a peer is authorised by."""
    return hashlib.sha256(to_der(load_certificate(cert_pem))).hexdigest()


def expires_at(cert_pem: bytes) -> int:
    """When the certificate ends, in seconds since 1970."""
    return int(load_certificate(cert_pem).not_valid_after_utc.timestamp())


def new_protocol_key() -> bytes:
    """Make a site's Ed25519 private key (32 bytes raw), with which it will sign its part of secure aggregation."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def protocol_public_key(private: bytes) -> bytes:
    """The public half (32 bytes raw) of `new_protocol_key`, which enrolment sends.

    Raises:
        UsageError: It is not 32 bytes long.
    """
    if len(private) != 32:
        raise UsageError(f"an Ed25519 private key has 32 bytes, not {len(private)}")
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def require_site_name(site: str) -> str:
    """Return a site's name, or refuse it.

    Raises:
        UsageError: It is not 1 to 32 of a-z, 0-9 and '-', beginning with a letter or digit.
    """
    if not SITE_NAME.fullmatch(site):
        raise UsageError(f"a site's name is 1 to 32 of a-z, 0-9 and '-', not {site[:64]!r}")
    return site


def _issue(
    ca: KeyPair,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    extensions: Extensions,
    *,
    now: float,
    days: int,
) -> x509.Certificate:
    require_valid(ca.cert_pem, now=now, where="the study's CA", hint="a study past its CA's end needs a new one")
    issuer = Issuer(load_certificate(ca.cert_pem).subject, load_key(ca.key_pem))
    end = min(now + days * DAY, expires_at(ca.cert_pem))
    return sign_certificate(subject, key, issuer, (now - CLOCK_SKEW, end), extensions)


def _requested_key(csr_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(csr_pem) if len(csr_pem) <= MAX_PEM else None
        key = request.public_key() if request else None
    except ValueError:
        request = key = None
    if request is None:
        raise ProtocolError("this is not a PEM certificate request")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise ProtocolError("a site's TLS key must be on P-256")
    if not request.is_signature_valid:
        raise ProtocolError("the certificate request is not signed by the key it names")
    return key


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host):
        raise UsageError("this is neither a host name nor an IP address", where=repr(host[:255]))
    return x509.DNSName(host)
