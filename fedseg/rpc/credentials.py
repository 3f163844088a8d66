"""Mutual TLS over gRPC: the two ends of a connection, and who is at the other one.

The server always requires a client certificate (`require_client_auth=False` never even asks for one in grpc-python, and
foreign ones pass). A peer is known by the certificate it presents, never by the name in it: an invite's CA could mint
any name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from fedseg.errors import LinkError
from fedseg.rpc.addresses import is_loopback, split_address
from fedseg.rpc.certificates import fingerprint, require_valid
from fedseg.rpc.pki import KeyPair, is_issued_by, load_certificate

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
KEEPALIVE_MS = 60_000

Options = list[tuple[str, int]]

SERVER_OPTIONS: Options = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Without these two the server takes the client's keepalive for an attack (GOAWAY, too_many_pings).
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 2 * KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 20_000),
    # A second server on the same port must fail, not share it.
    ("grpc.so_reuseport", 0),
]

CLIENT_OPTIONS: Options = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    # Two sites in one process never share a connection, hence never an identity.
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True)
class ServerTls:
    """What a server needs for one handshake.

    Args:
        certificate_pem: The server's certificate, signed by the study's CA.
        key_pem: Its private key.
        client_roots_pem: The CAs whose clients may connect: the study's own, then that of every invite ever made
            (used and expired ones too, so that Enrol can say so), one PEM after the other.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    client_roots_pem: bytes = field(repr=False)


@dataclass(frozen=True)
class InvitePeer:
    """A peer that holds an invite: it may call Enrol and nothing else."""

    invite: str


@dataclass(frozen=True)
class CertifiedPeer:
    """A peer that holds a certificate of the study's CA; whose it is, and whether it counts, the study's books say."""

    fingerprint: str


def server_credentials(get_tls: Callable[[], ServerTls]) -> grpc.ServerCredentials:
    """Credentials that ask `get_tls` before each handshake, so that an invite counts without a restart.

    `get_tls` is called from gRPC's threads and must be quick. If it raises, gRPC logs that and keeps the last roots:
    taking a root away is no way to lock a peer out; that is decided in every call, by its fingerprint.

    Raises:
        LinkError: The server's certificate or key cannot be read.
    """
    current = get_tls()
    load_certificate(current.certificate_pem)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal current
        latest = get_tls()
        if latest == current:
            return None
        current = latest
        return _configuration(latest)

    # The stub forgets that the fetcher may answer None, "as before".
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], changed)
    return grpc.dynamic_ssl_server_credentials(_configuration(current), fetcher, require_client_authentication=True)


def listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Bind a server that was built with `SERVER_OPTIONS`; port 0 takes any free one.

    Returns:
        The port.

    Raises:
        LinkError: The port is in use, or the address is not this machine's.
    """
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise LinkError(
            "the server cannot listen here: the port is in use, or the address is not this machine's",
            where=address,
            hint="stop the other server or choose another port with --bind HOST:PORT",
        )
    return port


def channel(address: str, ca_cert_pem: bytes, identity: KeyPair, *, options: Options | None = None) -> grpc.Channel:
    """Open a channel to the server at HOST:PORT; nothing is sent before the first call.

    Args:
        address: HOST:PORT; the server's certificate must bear this host.
        ca_cert_pem: The study's CA; only a server that it has signed is spoken to.
        identity: The site's certificate and key, or those of its invite.
        options: More gRPC channel arguments.

    Raises:
        UsageError: The address is malformed.
    """
    host, _ = split_address(address)
    # A proxy in the environment is for the way out; nobody means it for this machine itself.
    direct: Options = [("grpc.enable_http_proxy", 0)] if is_loopback(host) else []
    credentials = grpc.ssl_channel_credentials(ca_cert_pem, identity.key_pem, identity.cert_pem)
    return grpc.secure_channel(address, credentials, [*CLIENT_OPTIONS, *direct, *(options or [])])


def peer_certificate(context: grpc.ServicerContext) -> bytes:
    """The certificate (PEM) that the peer of a call has presented and proven to hold.

    Raises:
        LinkError: There is none: the port is not the one of `server_credentials`.
    """
    # The stub says bytes; grpc gives the values of a property as an iterable of bytes.
    properties = cast(Mapping[str, Iterable[bytes]], context.auth_context())
    presented = list(properties.get("x509_pem_cert", ()))
    if len(presented) != 1:
        raise LinkError("the peer has presented no certificate")
    return presented[0]


def peer_fingerprint(context: grpc.ServicerContext) -> str:
    """The SHA-256 of the peer's certificate: what every call is authorised by.

    Raises:
        LinkError: The peer has presented no certificate.
    """
    return fingerprint(peer_certificate(context))


def classify_peer(
    cert_pem: bytes, study_ca_pem: bytes, invites: Mapping[str, bytes], *, now: float
) -> InvitePeer | CertifiedPeer:
    """Say by which CA a peer is here; names in its certificate are not read.

    TLS alone is not enough. It checks a certificate's time once a connection, and gRPC does not hold a root to its path
    length: a CA that an invite's CA has signed passes it. Here each certificate must be signed by the root itself.

    Args:
        cert_pem: What `peer_certificate` returned.
        study_ca_pem: The study's CA.
        invites: The CA certificate (PEM) of each invite, by the invite's identifier.
        now: The time.

    Raises:
        LinkError: The certificate is of neither, or not valid at this time.
    """
    cert = load_certificate(cert_pem)
    require_valid(cert_pem, now=now, where="the peer's certificate")
    if is_issued_by(cert, load_certificate(study_ca_pem)):
        return CertifiedPeer(fingerprint(cert_pem))
    for identifier, invite_ca_pem in invites.items():
        if is_issued_by(cert, load_certificate(invite_ca_pem)):
            return InvitePeer(identifier)
    raise LinkError("the peer's certificate is neither of this study nor of one of its invites")


def _configuration(tls: ServerTls) -> grpc.ServerCertificateConfiguration:
    pair: Any = (tls.key_pem, tls.certificate_pem)
    return grpc.ssl_server_certificate_configuration([pair], tls.client_roots_pem)
