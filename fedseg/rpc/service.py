"""The server's end of the wire: says who calls, decodes, hands on, and turns errors into statuses.

Peers are known by the SHA-256 of the certificate they present, in every call, and a site may only speak for itself.
Signatures are not looked at here: the study's aggregator verifies them. No message of a failure that the server did not
foresee leaves it. What a peer can make the server hold, `rpc.turns` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from fedseg.errors import (
    FedsegError,
    InviteError,
    LedgerError,
    LinkError,
    ProtocolError,
    StaleSession,
    StorageError,
    Unreachable,
)
from fedseg.federation.exchange import Link
from fedseg.rpc import codec, transfer
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc._pb import federation_pb2_grpc as pb_grpc
from fedseg.rpc.credentials import (
    CertifiedPeer,
    InvitePeer,
    ServerTls,
    classify_peer,
    listen,
    peer_certificate,
    server_credentials,
)
from fedseg.rpc.staging import stage
from fedseg.rpc.turns import CALLS_A_SITE, Turns, bounded_options
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, Shares
from fedseg.secagg.signing import SIGNING_KEY_SIZE

log = logging.getLogger(__name__)

MAX_CERTIFICATE_REQUEST = 16 * 1024
SPARE_THREADS = 4

STATUS: tuple[tuple[type[FedsegError], grpc.StatusCode], ...] = (
    (StaleSession, grpc.StatusCode.ABORTED),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (LedgerError, grpc.StatusCode.FAILED_PRECONDITION),
    (InviteError, grpc.StatusCode.PERMISSION_DENIED),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (LinkError, grpc.StatusCode.UNAUTHENTICATED),
)

Call = TypeVar("Call", bound=Callable[..., Any])


class Signed(Protocol):
    """A canonical message that names its sender."""

    @property
    def site(self) -> str:
        """Who sends it."""


Message = TypeVar("Message", bound=Signed)


@dataclass(frozen=True)
class Desk:
    """What the service asks of the study, so that it decides nothing itself.

    Attributes:
        link: A site's end of the study, by its name.
        alive: Told that a site is at work.
        site_of: The enrolled site whose certificate has this fingerprint, or None.
        enrol: (invite, certificate request, protocol key) to a certificate; raises `InviteError`.
        study_ca: The study's CA in PEM.
        invites: CA certificate (PEM) of every invite by its identifier.
        now: Seconds since 1970.
        staging: The folder in which an upload lies until it is whole; on a disk with room for one a site.
        expect_upload: Bytes of an upload in this session; `StaleSession` where nobody asked this site for one.
    """

    link: Callable[[str], Link]
    alive: Callable[[str], None]
    site_of: Callable[[str], str | None]
    enrol: Callable[[str, bytes, bytes], bytes]
    study_ca: bytes
    invites: Callable[[], dict[str, bytes]] = field(repr=False)
    now: Callable[[], float]
    staging: Path
    expect_upload: Callable[[str, bytes], int]


def _unary(call: Call) -> Call:
    @wraps(call)
    def guarded(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(self, request, context)
        except Exception as error:
            _abort(context, error)

    return guarded  # type: ignore[return-value]  # wraps keeps the signature, which mypy cannot see


def _streaming(call: Call) -> Call:
    @wraps(call)
    def guarded(self: Any, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from call(self, request, context)
        except Exception as error:
            _abort(context, error)

    return guarded  # type: ignore[return-value]  # wraps keeps the signature, which mypy cannot see


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, grpc.RpcError):
        # The caller has gone in mid-transfer: no failure of this server's, and nobody to tell.
        raise error
    if isinstance(error, StorageError):
        log.error("%s", error)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server cannot store what it is sent; its log says why")
    for kind, status in STATUS:
        if isinstance(error, kind):
            context.abort(status, error.what if error.hint is None else f"{error.what}\n{error.hint}")
    log.error("a call failed", exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says why")
    raise error


class FederationService(pb_grpc.FederationServicer):
    """Implements `protos/fedseg/v1/federation.proto` for one study."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._turns = Turns()

    def _peer(self, context: grpc.ServicerContext) -> InvitePeer | CertifiedPeer:
        desk = self._desk
        return classify_peer(peer_certificate(context), desk.study_ca, desk.invites(), now=desk.now())

    def _site(self, context: grpc.ServicerContext) -> str:
        peer = self._peer(context)
        site = self._desk.site_of(peer.fingerprint) if isinstance(peer, CertifiedPeer) else None
        if site is None:
            raise LinkError("this certificate is not that of an enrolled site", hint="enrol with an invite first")
        return site

    @contextmanager
    def _call(self, context: grpc.ServicerContext) -> Iterator[tuple[str, Link]]:
        site = self._site(context)
        with self._turns.call(site):
            yield site, self._desk.link(site)

    @contextmanager
    def _transfer(self, context: grpc.ServicerContext) -> Iterator[tuple[str, Link]]:
        site = self._site(context)
        with self._turns.transfer(site, context.cancel):
            yield site, self._desk.link(site)

    @_unary
    def Enrol(self, request: pb.EnrolRequest, context: grpc.ServicerContext) -> pb.EnrolReply:
        """See the protocol file."""
        peer = self._peer(context)
        if not isinstance(peer, InvitePeer):
            raise InviteError("this site is enrolled already")
        if len(request.certificate_request) > MAX_CERTIFICATE_REQUEST:
            raise ProtocolError("the certificate request is too large")
        codec.sized(request.protocol_key, SIGNING_KEY_SIZE, "the protocol key")
        certificate = self._desk.enrol(peer.invite, request.certificate_request, request.protocol_key)
        return pb.EnrolReply(certificate=certificate)

    @_unary
    def GetManifest(self, request: pb.GetManifestRequest, context: grpc.ServicerContext) -> pb.GetManifestReply:
        """See the protocol file."""
        with self._call(context) as (_, link):
            wanted = codec.hash_bytes(request.plan_hash, "a plan's hash").hex() if request.plan_hash else None
            return pb.GetManifestReply(manifest=link.manifest(wanted))

    @_unary
    def GetRoster(self, request: pb.GetRosterRequest, context: grpc.ServicerContext) -> pb.GetRosterReply:
        """See the protocol file."""
        with self._call(context) as (_, link):
            return codec.encode_enrolled(link.roster())

    @_unary
    def Poll(self, request: pb.PollRequest, context: grpc.ServicerContext) -> pb.PollReply:
        """See the protocol file."""
        with self._call(context) as (_, link):
            session = _session(request) if request.session else None
            return codec.encode_instruction(link.poll(session))

    @_unary
    def AdvertiseKeys(self, request: pb.AdvertiseKeysRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (site, link):
            sent = request.advertisement
            link.advertise(_session(request), _own(Advertisement.from_bytes(sent), site) if sent else None)
        return pb.Ack()

    @_unary
    def ShareKeys(self, request: pb.ShareKeysRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (site, link):
            link.share_keys(_session(request), _own(Envelopes.from_bytes(request.envelopes), site))
        return pb.Ack()

    @_unary
    def UploadMaskedInput(self, request_iterator: Iterator[pb.UploadPart], context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._transfer(context) as (site, link):
            header = next(request_iterator, pb.UploadPart()).header
            message = codec.decode_upload(header, site)
            size = self._desk.expect_upload(site, _session(header))
            if header.size != size:
                raise ProtocolError(f"an upload has {size} bytes here, not {header.size}")
            vector = stage(self._desk.staging, self._sent(site, request_iterator, size), size)
            link.upload(header.session, message, vector, lambda _done, _size: None)
        return pb.Ack()

    def _sent(self, site: str, parts: Iterator[pb.UploadPart], size: int) -> Iterator[bytes]:
        for piece in transfer.pieces(parts, size):
            self._desk.alive(site)
            yield piece

    @_unary
    def ConfirmContributors(self, request: pb.ConfirmContributorsRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (site, link):
            link.confirm(_session(request), _own(Consistency.from_bytes(request.consistency), site))
        return pb.Ack()

    @_unary
    def Unmask(self, request: pb.UnmaskRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (site, link):
            link.unmask(_session(request), _own(Shares.from_bytes(request.shares), site))
        return pb.Ack()

    @_unary
    def Withdraw(self, request: pb.WithdrawRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (_, link):
            link.withdraw(_session(request), codec.decode_reason(request.reason))
        return pb.Ack()

    @_unary
    def ClaimLedger(self, request: pb.ClaimLedgerRequest, context: grpc.ServicerContext) -> pb.ClaimLedgerReply:
        """See the protocol file."""
        with self._call(context) as (_, link):
            signed = link.claim(codec.decode_claim(request))
        return pb.ClaimLedgerReply(countersigned=codec.encode_countersigned(signed))

    @_unary
    def GetCountersigned(
        self, request: pb.GetCountersignedRequest, context: grpc.ServicerContext
    ) -> pb.GetCountersignedReply:
        """See the protocol file."""
        with self._call(context) as (_, link):
            signed = link.countersigned()
        return pb.GetCountersignedReply(countersigned=None if signed is None else codec.encode_countersigned(signed))

    @_streaming
    def DownloadModel(
        self, request: pb.DownloadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DownloadPart]:
        """See the protocol file."""
        with self._transfer(context) as (site, link):
            weights = link.model(_model(request), lambda _done, _size: None)
            header = pb.DownloadHeader(size=weights.nbytes, digest=transfer.digest_of(weights))
            yield from self._parts(site, header, transfer.chunks(weights))

    @_streaming
    def DownloadSum(self, request: pb.DownloadSumRequest, context: grpc.ServicerContext) -> Iterator[pb.DownloadPart]:
        """See the protocol file."""
        with self._transfer(context) as (site, link):
            published = link.published(request.round, lambda _done, _size: None)
            yield from self._parts(site, codec.encode_published(published), transfer.chunks(published.total))

    def _parts(self, site: str, header: pb.DownloadHeader, pieces: Iterator[bytes]) -> Iterator[pb.DownloadPart]:
        yield pb.DownloadPart(header=header)
        for piece in pieces:
            self._desk.alive(site)
            yield pb.DownloadPart(chunk=piece)

    @_unary
    def HoldModel(self, request: pb.HoldModelRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        with self._call(context) as (_, link):
            link.holds(_model(request))
        return pb.Ack()


class _InSession(Protocol):
    @property
    def session(self) -> bytes: ...


def _session(request: _InSession) -> bytes:
    return codec.hash_bytes(request.session, "a session")


def _model(request: pb.DownloadModelRequest | pb.HoldModelRequest) -> str:
    return codec.hash_bytes(request.model_hash, "a model's hash").hex()


def _own(message: Message, site: str) -> Message:
    """A message of the site that has authenticated itself; another site's is refused."""
    if message.site != site:
        raise ProtocolError(f"{site} sent a message in another site's name")
    return message


def start_server(desk: Desk, bind: str, tls: Callable[[], ServerTls], *, sites: int) -> tuple[grpc.Server, int]:
    """Listen on `bind` (port 0: any free one).

    Args:
        desk: The study.
        bind: HOST:PORT.
        tls: The server's certificate and key, and the CAs whose clients may connect.
        sites: Sites of the study, each of which may hold `CALLS_A_SITE` threads.

    Returns:
        The server, started, and its port.

    Raises:
        LinkError: if the port is in use or the address is not this machine's.
    """
    threads = CALLS_A_SITE * sites + SPARE_THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
    server = grpc.server(pool, options=bounded_options(), maximum_concurrent_rpcs=threads)
    pb_grpc.add_FederationServicer_to_server(FederationService(desk), server)
    port = listen(server, bind, server_credentials(tls))
    server.start()
    return server, port
