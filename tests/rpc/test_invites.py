from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import FedsegError, InviteError, UsageError
from fedseg.rpc import certificates
from fedseg.rpc.invites import PREFIX, Invite
from fedseg.rpc.pki import is_issued_by, load_certificate, to_der

from .loopback import DAY, NOW, enrolled

CA = certificates.create_study_ca("atlas", now=NOW)
INVITE = Invite.create("fed.example.org:8443", "leuven", CA.cert_pem, now=NOW)
TEXT = INVITE.encode()
FROZEN_CA = b"""-----BEGIN CERTIFICATE-----
MIIBaTCCAQ+gAwIBAgIUFJcQCFT+dWhagK4PnbVshV1upWQwCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGZnJvemVuMB4XDTI1MDYxNDE1MDY0MFoXDTMwMDYxNDE1MDY0
MFowETEPMA0GA1UEAwwGZnJvemVuMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
v6fY9vyhiIXMV8eV0ktIyTdFb830i02gd7wfgqWVAdZHEC9PmW9CGKdtxazX98Z0
X81ncr/MTx26XCHwrix5pqNFMEMwHQYDVR0OBBYEFCwGXGxrPYCzSVm0rNCMq57R
hCAiMBIGA1UdEwEB/wQIMAYBAf8CAQAwDgYDVR0PAQH/BAQDAgIEMAoGCCqGSM49
BAMCA0gAMEUCIQDQmgZsus2sFsC+chncoXIHjyTESNk3kvF3OUAkTjNjGwIgL6BC
BPnULAHiZ1cMXLQwGNJ83kmrZWaQWFj6HCp5ohk=
-----END CERTIFICATE-----
"""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _framed(body: bytes) -> str:
    """An invite text with a right length and checksum around any body."""
    framed = (len(body) + 6).to_bytes(2) + body
    framed += hashlib.sha256(PREFIX.encode() + framed).digest()[:6]
    return PREFIX + base64.urlsafe_b64encode(framed).decode().rstrip("=")


@settings(max_examples=30)
@given(
    site=st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True),
    port=st.integers(1, 65535),
    host=st.sampled_from(["fed.example.org", "192.0.2.1", "[2001:db8::1]"]),
    expires_at=st.integers(1, 2**33 - 1),
    secret=st.binary(min_size=16, max_size=16),
)
def test_round_trip(site: str, port: int, host: str, expires_at: int, secret: bytes) -> None:
    invite = Invite(f"{host}:{port}", site, expires_at, secret, CA.cert_pem)
    text = invite.encode()
    assert Invite.decode(text) == invite
    assert "\n" not in text and 500 < len(text) < 700


def test_white_space_from_a_mail_program_does_not_matter() -> None:
    wrapped = "  " + "\r\n ".join(TEXT[at : at + 60] for at in range(0, len(TEXT), 60)) + "\n"
    assert Invite.decode(wrapped) == INVITE


@given(st.integers(0, len(TEXT) - 1), st.sampled_from(LETTERS + ".=!é"))
def test_no_changed_letter_passes(at: int, letter: str) -> None:
    changed = TEXT[:at] + letter + TEXT[at + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(InviteError, match=r"copy the whole line again|update fedseg"):
        Invite.decode(changed)


@given(st.integers(0, len(TEXT) - 1))
def test_no_cut_invite_passes(end: int) -> None:
    with pytest.raises(InviteError, match=r"cut short|no invite|is empty|last letter|another version"):
        Invite.decode(TEXT[:end])


@given(st.text(max_size=60) | st.text(max_size=60).map(lambda t: PREFIX + t) | st.binary(max_size=60).map(_framed))
def test_the_decoder_is_total(text: str) -> None:
    with pytest.raises(InviteError):
        Invite.decode(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the invite is empty"),
        ("hello", "it doesn't begin with fedseg1."),
        ("fedseg2." + TEXT[8:], "made by another version of fedseg"),
        (TEXT[:300], r"cut short: 219 of \d+ bytes are there"),
        (PREFIX + "AAAA", "cut short: only 4 letters"),
        (TEXT + TEXT[8:], "too long|last letter"),
        (TEXT + "AAAA", "too long: 3 bytes follow"),
        (TEXT[:20] + "ö" + TEXT[21:], "character 21 of this invite is wrong"),
        (TEXT[:99] + ("A" if TEXT[99] != "A" else "B") + TEXT[100:], "its checksum doesn't match"),
        ("x" * 5000, "it has 5000 characters"),
    ],
)
def test_messages(text: str, message: str) -> None:
    with pytest.raises(InviteError, match=message):
        Invite.decode(text)


_HEAD = NOW.to_bytes(8) + b"s" * 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_HEAD + b"\x04host\x01a" + to_der(load_certificate(CA.cert_pem)), "not an address"),
        (_HEAD + b"\x06host:1\x01A", "certificate cannot be read"),
        (_HEAD + b"\xffhost:1", "it ends too early"),
        (_HEAD + b"\x01\xff\x01a", "not plain text"),
        (_HEAD + b"\x0aunix:/a:12\x01a" + to_der(load_certificate(CA.cert_pem)), "not an address"),
        (
            _HEAD + b"\x06host:1\x01a" + to_der(load_certificate(enrolled(CA).cert_pem)),
            "not a study's CA",
        ),
        (_HEAD + b"\x06host:1\x01a" + to_der(load_certificate(CA.cert_pem)) + b"\0", "cannot be read"),
    ],
    ids=["port", "certificate", "cut", "text", "socket", "site", "leftover"],
)
def test_a_well_framed_invite_is_checked_too(body: bytes, message: str) -> None:
    with pytest.raises(InviteError, match=message):
        Invite.decode(_framed(body))


def test_an_invite_cannot_be_built_wrong() -> None:
    for change, kind, message in [
        ({"site": "Leuven"}, UsageError, "a site's name is"),
        ({"address": "nowhere"}, UsageError, "not an address"),
        ({"secret": b"short"}, InviteError, "has 16 bytes, not 5"),
        ({"expires_at": 0}, InviteError, "not a time"),
        ({"ca_cert_pem": enrolled(CA).cert_pem}, InviteError, "not a study's CA"),
    ]:
        with pytest.raises(kind, match=message):
            replace(INVITE, **change)  # type: ignore[arg-type]  # the fields differ in type


def test_expiry() -> None:
    assert INVITE.expires_at == NOW + 72 * 3600
    INVITE.require_unexpired(INVITE.expires_at)
    with pytest.raises(InviteError, match=r"the invite for leuven expired on .* UTC .*ask the study's coordinator"):
        INVITE.require_unexpired(INVITE.expires_at + 1)


def test_both_ends_derive_the_same_ca() -> None:
    at_server = load_certificate(INVITE.ca_certificate())
    leaf = load_certificate(Invite.decode(TEXT).enrolment_identity(now=NOW).cert_pem)
    assert is_issued_by(leaf, at_server)
    key = at_server.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == key.digest
    constraints = at_server.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca and constraints.path_length == 0


@pytest.mark.parametrize(
    "change",
    [
        {"site": "lyon"},
        {"address": "evil.example.org:8443"},
        {"expires_at": INVITE.expires_at + DAY},
        {"secret": bytes(16)},
        {"ca_cert_pem": certificates.create_study_ca("atlas", now=NOW).cert_pem},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_rewritten_invite_derives_another_key(change: dict[str, object]) -> None:
    forged = replace(INVITE, **change)  # type: ignore[arg-type]  # the fields differ in type
    leaf = load_certificate(forged.enrolment_identity(now=NOW).cert_pem)
    assert not is_issued_by(leaf, load_certificate(INVITE.ca_certificate()))


def test_a_frozen_vector() -> None:
    """The derivation must not drift: invites made by one release are read by the next."""
    # The CA certificate goes into the derivation, so a fixed one is needed.
    invite = Invite("h.example:1", "a", 2_000_000_000, bytes(range(16)), FROZEN_CA)
    assert invite.identifier == "b4b9a2bb7201bf2aa2319f2c4ad07b9a"
    public = load_certificate(invite.ca_certificate()).public_key().public_numbers()  # type: ignore[union-attr]
    assert f"{public.x:064x}" == "b8d3ed4b5ed0bae5ab28a134192bbab14a05edbd890b3f40345d3f03cc36ac7a"  # type: ignore[union-attr]


def test_no_secret_in_any_repr() -> None:
    identity = INVITE.enrolment_identity(now=NOW)
    shown = repr(INVITE) + str(INVITE) + repr(identity) + repr(INVITE.ca_certificate())
    assert repr(INVITE.secret) not in shown and INVITE.secret.hex() not in shown
    assert "PRIVATE" not in shown
    assert INVITE.secret.hex() not in INVITE.identifier
    for text in (TEXT[:-3], TEXT[:50] + "!" + TEXT[51:]):
        with pytest.raises(FedsegError) as caught:
            Invite.decode(text)
        assert TEXT[20:40] not in str(caught.value)
