from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedseg.errors import LinkError, ProtocolError, UsageError
from fedseg.rpc import certificates as c
from fedseg.rpc.pki import KeyPair, common_name_of, load_certificate, load_key

from .loopback import DAY, NOW, enrolled


@pytest.fixture(scope="module")
def ca() -> KeyPair:
    return c.create_study_ca("atlas", now=NOW)


def test_the_ca_signs_leaves_only(ca: KeyPair) -> None:
    cert = load_certificate(ca.cert_pem)
    basic = cert.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert isinstance(cert.public_key(), ec.EllipticCurvePublicKey)
    assert cert.subject == cert.issuer == common_name_of("atlas")


@pytest.mark.parametrize("name", ["", "a" * 65, "two\nlines"])
def test_a_ca_needs_a_name(name: str) -> None:
    with pytest.raises(UsageError, match="1 to 64 printable characters"):
        c.create_study_ca(name, now=NOW)


def test_the_subject_is_the_site_whatever_the_request_says(ca: KeyPair) -> None:
    key = load_key(c.new_site_key())
    wish = x509.SubjectAlternativeName([x509.DNSName("server.example.org")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name_of("coordinator"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(wish, critical=False)
        .sign(key, hashes.SHA256())
    )
    cert = load_certificate(
        c.issue_site_certificate(ca, request.public_bytes(serialization.Encoding.PEM), "leuven", now=NOW)
    )
    assert cert.subject == common_name_of("leuven")
    assert cert.public_key() == key.public_key()
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    with pytest.raises(x509.ExtensionNotFound):
        cert.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def _request(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(common_name_of("leuven"))
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def _badly_signed() -> bytes:
    der = bytearray(
        x509.load_pem_x509_csr(_request(ec.generate_private_key(ec.SECP256R1()))).public_bytes(
            serialization.Encoding.DER
        )
    )
    at = der.index(b"leuven")
    der[at] = ord("L")
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("request_pem", "message"),
    [
        (b"", "not a PEM certificate request"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "not a PEM certificate"),
        (b"x" * 20_000, "not a PEM certificate request"),
        (_request(ec.generate_private_key(ec.SECP384R1())), "must be on P-256"),
        (_request(ed25519.Ed25519PrivateKey.generate()), "must be on P-256"),
        (_badly_signed(), "not signed by the key it names"),
    ],
    ids=["empty", "malformed", "huge", "P-384", "Ed25519", "other signature"],
)
def test_a_bad_request_is_refused(ca: KeyPair, request_pem: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        c.issue_site_certificate(ca, request_pem, "leuven", now=NOW)


@pytest.mark.parametrize("days", [0, 29, 91, 3650])
def test_site_certificates_live_30_to_90_days(ca: KeyPair, days: int) -> None:
    request = c.certificate_request(c.new_site_key(), "leuven")
    with pytest.raises(UsageError, match=f"30 to 90 days, not {days}"):
        c.issue_site_certificate(ca, request, "leuven", now=NOW, days=days)
    assert c.expires_at(c.issue_site_certificate(ca, request, "leuven", now=NOW, days=30)) == NOW + 30 * DAY


@pytest.mark.parametrize("site", ["", "Leuven", "-x", "a" * 33, "a_b", "a\n"])
def test_a_site_has_a_proper_name(ca: KeyPair, site: str) -> None:
    with pytest.raises(UsageError, match="a site's name is 1 to 32"):
        c.certificate_request(c.new_site_key(), site)


def test_no_certificate_outlives_its_ca() -> None:
    ca = c.create_study_ca("short", now=NOW, days=40)
    assert c.expires_at(enrolled(ca).cert_pem) == NOW + 40 * DAY
    with pytest.raises(LinkError, match="the study's CA: it expired on"):
        enrolled(ca, now=NOW + 41 * DAY)


def test_a_server_certificate_bears_its_hosts(ca: KeyPair) -> None:
    made = c.issue_server_certificate(ca, ["fed.example.org", "192.0.2.7", "localhost"], now=NOW)
    cert = load_certificate(made.cert_pem)
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1", "::1"]
    assert list(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize(("hosts", "message"), [([], "name or address"), (["bad host"], "neither a host name nor")])
def test_a_server_certificate_needs_real_hosts(ca: KeyPair, hosts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        c.issue_server_certificate(ca, hosts, now=NOW)


def test_a_site_checks_what_the_server_sends_back(ca: KeyPair) -> None:
    site = enrolled(ca)
    c.require_issued(site.cert_pem, site.key_pem, ca.cert_pem, "leuven", now=NOW)
    other_ca = c.create_study_ca("atlas", now=NOW)
    for cert, key, by, name, now, message in [
        (site.cert_pem, c.new_site_key(), ca, "leuven", NOW, "for another key"),
        (site.cert_pem, site.key_pem, ca, "lyon", NOW, "for another site"),
        (site.cert_pem, site.key_pem, other_ca, "leuven", NOW, "not signed by the CA"),
        (site.cert_pem, site.key_pem, ca, "leuven", NOW + 61 * DAY, "it expired on"),
        (site.cert_pem, site.key_pem, ca, "leuven", NOW - 2 * DAY, "is this machine's clock right"),
        (b"", site.key_pem, ca, "leuven", NOW, "not one PEM certificate"),
        (site.cert_pem * 2, site.key_pem, ca, "leuven", NOW, "not one PEM certificate"),
    ]:
        with pytest.raises(LinkError, match=message):
            c.require_issued(cert, key, by.cert_pem, name, now=now)


def test_the_fingerprint_is_that_of_the_der(ca: KeyPair) -> None:
    digest = load_certificate(ca.cert_pem).fingerprint(hashes.SHA256()).hex()
    assert c.fingerprint(ca.cert_pem) == digest
    assert c.fingerprint(b"a comment\n" + ca.cert_pem) == digest


def test_the_protocol_key_is_ed25519() -> None:
    # RFC 8032, section 7.1, test 1.
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert c.protocol_public_key(private).hex() == public
    assert len(c.new_protocol_key()) == 32
    assert c.new_protocol_key() != c.new_protocol_key()
    with pytest.raises(UsageError, match="has 32 bytes, not 31"):
        c.protocol_public_key(private[1:])


def test_keys_don_t_show(ca: KeyPair) -> None:
    assert "PRIVATE KEY" not in repr(ca)
    assert "CERTIFICATE" in repr(ca)
    with pytest.raises(LinkError, match="not an unencrypted P-256 private key") as caught:
        load_key(ca.key_pem[:-60])
    assert caught.value.__suppress_context__
