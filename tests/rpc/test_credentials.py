from __future__ import annotations

import logging
from concurrent import futures
from dataclasses import replace

import grpc
import pytest
from cryptography import x509

from fedseg.errors import LinkError, UsageError
from fedseg.rpc import certificates, credentials
from fedseg.rpc.addresses import is_loopback, split_address
from fedseg.rpc.credentials import CertifiedPeer, InvitePeer, ServerTls, classify_peer
from fedseg.rpc.failures import explain
from fedseg.rpc.invites import Invite
from fedseg.rpc.pki import (
    CA_EXTENSIONS,
    CLIENT_EXTENSIONS,
    Issuer,
    KeyPair,
    common_name_of,
    is_issued_by,
    key_to_pem,
    load_certificate,
    load_key,
    new_key,
    sign_certificate,
    to_pem,
)

from .loopback import DAY, NOW, as_is, ask, enrolled, server_tls, serving

CA = certificates.create_study_ca("atlas", now=NOW)
FOREIGN_CA = certificates.create_study_ca("atlas", now=NOW)
INVITE = Invite.create("127.0.0.1:8443", "leuven", CA.cert_pem, now=NOW)
INVITES = {INVITE.identifier: INVITE.ca_certificate()}


@pytest.fixture(scope="module")
def address():  # type: ignore[no-untyped-def]  # a generator fixture
    tls = server_tls(CA, more_roots=INVITES[INVITE.identifier])
    with serving(lambda: tls) as at:
        yield at


def _leaf(issuer: Issuer, name: str = "lyon") -> KeyPair:
    key = new_key()
    validity = (NOW - DAY, NOW + DAY)
    return KeyPair(
        to_pem(sign_certificate(common_name_of(name), key.public_key(), issuer, validity, CLIENT_EXTENSIONS)),
        key_to_pem(key),
    )


def _turned_away(address: str, identity: KeyPair) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, CA.cert_pem, identity)
    return str(explain(caught.value, address, cert_pem=identity.cert_pem, now=NOW))


def test_an_enrolled_site_gets_in_and_is_known_by_its_fingerprint(address: str) -> None:
    site = enrolled(CA)
    assert ask(address, CA.cert_pem, site) == certificates.fingerprint(site.cert_pem)
    assert ask(address.replace("127.0.0.1", "localhost"), CA.cert_pem, site) == certificates.fingerprint(site.cert_pem)


def test_an_invite_gets_in_as_an_invite(address: str) -> None:
    leaf = INVITE.enrolment_identity(now=NOW)
    assert ask(address, CA.cert_pem, leaf) == certificates.fingerprint(leaf.cert_pem)
    assert classify_peer(leaf.cert_pem, CA.cert_pem, INVITES, now=NOW) == InvitePeer(INVITE.identifier)


def test_an_invite_long_past_its_time_still_reaches_the_server() -> None:
    old = Invite.create("127.0.0.1:8443", "leuven", CA.cert_pem, now=NOW - 100 * DAY)
    tls = server_tls(CA, more_roots=old.ca_certificate())
    with serving(lambda: tls) as at:
        assert ask(at, CA.cert_pem, old.enrolment_identity(now=NOW))


def test_the_name_in_a_certificate_gains_nothing() -> None:
    real = enrolled(CA, "lyon")
    minted = _leaf(INVITE._issuer(), "lyon")
    assert load_certificate(minted.cert_pem).subject == load_certificate(real.cert_pem).subject
    assert classify_peer(minted.cert_pem, CA.cert_pem, INVITES, now=NOW) == InvitePeer(INVITE.identifier)
    assert classify_peer(real.cert_pem, CA.cert_pem, INVITES, now=NOW) == CertifiedPeer(
        certificates.fingerprint(real.cert_pem)
    )


def test_an_invite_cannot_sign_in_the_study_ca_s_name(address: str) -> None:
    forged = _leaf(Issuer(load_certificate(CA.cert_pem).subject, INVITE._issuer().key))
    with pytest.raises(LinkError, match="neither of this study nor of one of its invites"):
        classify_peer(forged.cert_pem, CA.cert_pem, INVITES, now=NOW)
    assert "doesn't accept this site's certificate" in _turned_away(address, forged)


def test_an_invite_cannot_make_a_ca_below_it() -> None:
    """gRPC's TLS lets this chain through, whatever the path length: no call may rely on TLS alone."""
    below = new_key()
    name = common_name_of("below")
    validity = (NOW - DAY, NOW + DAY)
    middle = sign_certificate(name, below.public_key(), INVITE._issuer(), validity, CA_EXTENSIONS)
    assert is_issued_by(middle, load_certificate(INVITE.ca_certificate()))
    with pytest.raises(LinkError, match="neither of this study"):
        classify_peer(_leaf(Issuer(name, below)).cert_pem, CA.cert_pem, INVITES, now=NOW)


def test_a_site_s_certificate_signs_nothing(address: str) -> None:
    site = enrolled(CA)
    leaf = _leaf(Issuer(load_certificate(site.cert_pem).subject, load_key(site.key_pem)))
    with pytest.raises(grpc.RpcError) as caught:
        ask(address, CA.cert_pem, KeyPair(leaf.cert_pem + site.cert_pem, leaf.key_pem))
    assert "doesn't accept" in str(explain(caught.value, address))
    with pytest.raises(LinkError, match="neither of this study"):
        classify_peer(leaf.cert_pem, CA.cert_pem, INVITES, now=NOW)


@pytest.mark.parametrize(
    "identity",
    [
        enrolled(FOREIGN_CA),
        Invite.create("127.0.0.1:8443", "leuven", CA.cert_pem, now=NOW).enrolment_identity(now=NOW),
        replace(INVITE, site="lyon").enrolment_identity(now=NOW),
        certificates.issue_server_certificate(CA, ["localhost"], now=NOW),
    ],
    ids=["foreign CA of the same name", "invite never made", "invite rewritten", "server certificate"],
)
def test_strangers_are_refused(address: str, identity: KeyPair) -> None:
    message = _turned_away(address, identity)
    assert message.startswith(f"{address}: the server closed the connection: it doesn't accept this site's certificate")
    assert "ask the study's coordinator for a new invite" in message


def test_a_client_without_a_certificate_is_refused(address: str) -> None:
    anonymous = grpc.ssl_channel_credentials(CA.cert_pem)
    with grpc.secure_channel(address, anonymous) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Test/Ask", as_is, as_is)(b"", timeout=10)
    assert "doesn't accept this site's certificate" in str(explain(caught.value, address))


def test_an_expired_site_certificate_is_refused_and_named() -> None:
    ca = certificates.create_study_ca("old", now=NOW - 300 * DAY)
    tls = server_tls(ca)
    expired = enrolled(ca, now=NOW - 100 * DAY)
    with serving(lambda: tls) as at:
        assert ask(at, ca.cert_pem, enrolled(ca))
        with pytest.raises(grpc.RpcError) as caught:
            ask(at, ca.cert_pem, expired)
    message = str(explain(caught.value, at, cert_pem=expired.cert_pem, now=NOW))
    assert message.startswith("this site's certificate: it expired on ")
    assert "ask the study's coordinator for a new invite" in message
    with pytest.raises(LinkError, match="the peer's certificate: it expired on"):
        classify_peer(expired.cert_pem, ca.cert_pem, {}, now=NOW)


def test_a_new_invite_counts_without_a_restart() -> None:
    current = [server_tls(CA)]
    with serving(lambda: current[0]) as at:
        assert ask(at, CA.cert_pem, enrolled(CA))
        invited = INVITE.enrolment_identity(now=NOW)
        assert "doesn't accept" in _turned_away(at, invited)
        current[0] = replace(current[0], client_roots_pem=CA.cert_pem + INVITE.ca_certificate())
        assert ask(at, CA.cert_pem, invited) == certificates.fingerprint(invited.cert_pem)
        assert ask(at, CA.cert_pem, enrolled(CA))


def test_roots_that_cannot_be_read_leave_the_last_ones(caplog: pytest.LogCaptureFixture) -> None:
    tls = server_tls(CA)
    broken: list[OSError] = []

    def get_tls() -> ServerTls:
        if broken:
            raise broken[0]
        return tls

    with serving(get_tls) as at, caplog.at_level(logging.CRITICAL):
        broken.append(OSError("disk gone"))
        assert ask(at, CA.cert_pem, enrolled(CA))
        assert "doesn't accept" in _turned_away(at, enrolled(FOREIGN_CA))


def test_a_broken_server_certificate_is_refused_at_the_start() -> None:
    with pytest.raises(LinkError, match="not one PEM certificate"):
        credentials.server_credentials(lambda: ServerTls(b"nonsense", b"", CA.cert_pem))


def test_a_port_in_use_says_so(address: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1), options=credentials.SERVER_OPTIONS)
    tls = server_tls(CA)
    with pytest.raises(LinkError, match=r"the port is in use.*--bind HOST:PORT") as caught:
        credentials.listen(server, address, credentials.server_credentials(lambda: tls))
    assert caught.value.where == address
    server.stop(None)


def test_server_keys_don_t_show() -> None:
    assert "PRIVATE" not in repr(server_tls(CA))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:1", ("localhost", 1)),
        ("fed.example.org:65535", ("fed.example.org", 65535)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "not an address"),
        ("host", "not an address.*HOST:PORT"),
        ("2001:db8::1:443", "not an address"),
        ("unix:///tmp/x:1", "not an address"),
        ("host:1\n", "not an address"),
        ("a" * 300 + ":1", "not an address"),
        ("[1:2]:443", "not an IPv6 address"),
        ("[127.0.0.1]:443", "not an IPv6 address"),
        ("host:0", "there is no port 0"),
        ("host:70000", "there is no port 70000"),
    ],
)
def test_wrong_addresses(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_address(address)


def test_loopback_is_known() -> None:
    assert [is_loopback(h) for h in ("localhost", "127.0.0.2", "::1", "192.0.2.1", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_the_peer_without_a_certificate_has_no_fingerprint() -> None:
    class Plain:
        def auth_context(self) -> dict[str, list[bytes]]:
            return {"transport_security_type": [b"insecure"]}

    with pytest.raises(LinkError, match="has presented no certificate"):
        credentials.peer_fingerprint(Plain())  # type: ignore[arg-type]  # as much of a context as is read


def test_certificates_carry_their_ca_s_key_identifier() -> None:
    authority = load_certificate(enrolled(CA).cert_pem).extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    own = load_certificate(CA.cert_pem).extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert authority.value.key_identifier == own.value.digest
