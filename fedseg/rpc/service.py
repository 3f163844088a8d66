"""The server's end of the wire: says who calls, decodes, hands on, and turns errors into statuses.

Peers are known by the SHA-256 of the certificate they present, in every call. No message of a failure that the server
did not foresee leaves it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np

from fedseg.errors import FedsegError, InviteError, LinkError, ProtocolError, StaleSession
from fedseg.federation.exchange import LedgerClaim, Link
from fedseg.rpc import codec
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc._pb import federation_pb2_grpc as pb_grpc
from fedseg.rpc.credentials import (
    SERVER_OPTIONS,
    CertifiedPeer,
    InvitePeer,
    ServerTls,
    classify_peer,
    listen,
    peer_certificate,
    server_credentials,
)
from fedseg.secagg.messages import Advertisement, Envelopes, MaskedInput, Shares

log = logging.getLogger(__name__)

MAX_CERTIFICATE_REQUEST = 16 * 1024
THREADS_A_SITE = 3

STATUS: tuple[tuple[type[FedsegError], grpc.StatusCode], ...] = (
    (StaleSession, grpc.StatusCode.ABORTED),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (InviteError, grpc.StatusCode.PERMISSION_DENIED),
    (LinkError, grpc.StatusCode.UNAUTHENTICATED),
)

Call = TypeVar("Call", bound=Callable[..., Any])


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
        vector_bytes: Size of an upload.
        expect_upload: Raises `StaleSession` where nobody asked this site for an upload in this session.
    """

    link: Callable[[str], Link]
    alive: Callable[[str], None]
    site_of: Callable[[str], str | None]
    enrol: Callable[[str, bytes, bytes], bytes]
    study_ca: bytes
    invites: Callable[[], dict[str, bytes]] = field(repr=False)
    now: Callable[[], float]
    vector_bytes: int
    expect_upload: Callable[[str, bytes], None]


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
        self._uploads: dict[str, grpc.ServicerContext] = {}

    def _peer(self, context: grpc.ServicerContext) -> InvitePeer | CertifiedPeer:
        desk = self._desk
        return classify_peer(peer_certificate(context), desk.study_ca, desk.invites(), now=desk.now())

    def _site(self, context: grpc.ServicerContext) -> str:
        peer = self._peer(context)
        site = self._desk.site_of(peer.fingerprint) if isinstance(peer, CertifiedPeer) else None
        if site is None:
            raise LinkError("this certificate is not that of an enrolled site", hint="enrol with an invite first")
        return site

    def _link(self, context: grpc.ServicerContext) -> Link:
        return self._desk.link(self._site(context))

    @_unary
    def Enrol(self, request: pb.EnrolRequest, context: grpc.ServicerContext) -> pb.EnrolReply:
        """See the protocol file."""
        peer = self._peer(context)
        if not isinstance(peer, InvitePeer):
            raise InviteError("this site is enrolled already", hint="go on with: fedseg client join --state DIR")
        if len(request.certificate_request) > MAX_CERTIFICATE_REQUEST:
            raise ProtocolError("the certificate request is too large")
        codec.hash_bytes(request.protocol_key, "the protocol key")
        certificate = self._desk.enrol(peer.invite, request.certificate_request, request.protocol_key)
        return pb.EnrolReply(certificate=certificate)

    @_unary
    def GetManifest(self, request: pb.GetManifestRequest, context: grpc.ServicerContext) -> pb.GetManifestReply:
        """See the protocol file."""
        return pb.GetManifestReply(manifest=self._link(context).manifest())

    @_unary
    def Poll(self, request: pb.PollRequest, context: grpc.ServicerContext) -> pb.PollReply:
        """See the protocol file."""
        session = codec.hash_bytes(request.session, "a session") if request.session else None
        return codec.encode_instruction(self._link(context).poll(session))

    @_unary
    def AdvertiseKeys(self, request: pb.AdvertiseKeysRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        sent = request.advertisement
        self._link(context).advertise(request.session, Advertisement.from_bytes(sent) if sent else None)
        return pb.Ack()

    @_unary
    def ShareKeys(self, request: pb.ShareKeysRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        self._link(context).share_keys(request.session, Envelopes.from_bytes(request.envelopes))
        return pb.Ack()

    @_unary
    def UploadMaskedInput(self, request_iterator: Iterator[pb.UploadPart], context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        site = self._site(context)
        header = next(request_iterator, pb.UploadPart()).header
        if header.size != self._desk.vector_bytes:
            raise ProtocolError(f"an upload has {self._desk.vector_bytes} bytes here, not {header.size}")
        self._desk.expect_upload(site, header.session)
        # One upload a site: a new one ends one that hangs, so that no site can hold more than a thread and a buffer.
        earlier, self._uploads[site] = self._uploads.get(site), context
        if earlier is not None:
            earlier.cancel()  # type: ignore[no-untyped-call]  # grpc's stubs leave it untyped
        message = MaskedInput(site, codec.hash_bytes(header.digest, "a digest"))
        parts = (part.chunk for part in request_iterator)
        buffer = codec.collect(parts, header.size, lambda _: self._desk.alive(site))
        vector = np.frombuffer(buffer, dtype="<u4").astype(np.uint32, copy=False)
        self._desk.link(site).upload(header.session, message, vector, lambda _done, _size: None)
        return pb.Ack()

    @_unary
    def Unmask(self, request: pb.UnmaskRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        self._link(context).unmask(request.session, Shares.from_bytes(request.shares))
        return pb.Ack()

    @_unary
    def Withdraw(self, request: pb.WithdrawRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        self._link(context).withdraw(request.session, codec.decode_reason(request.reason))
        return pb.Ack()

    @_unary
    def ClaimLedger(self, request: pb.ClaimLedgerRequest, context: grpc.ServicerContext) -> pb.Ack:
        """See the protocol file."""
        head = codec.hash_bytes(request.head, "a ledger's head").hex()
        self._link(context).claim(LedgerClaim(request.rounds, request.steps, head))
        return pb.Ack()

    @_streaming
    def DownloadModel(
        self, request: pb.DownloadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DownloadPart]:
        """See the protocol file."""
        site = self._site(context)
        wanted = codec.hash_bytes(request.model_hash, "a model's hash").hex()
        weights = self._desk.link(site).model(wanted, lambda _done, _size: None)
        header = pb.DownloadHeader(size=weights.nbytes, digest=codec.digest_of(weights))
        yield from self._parts(site, header, codec.chunks(weights))

    @_streaming
    def DownloadSum(self, request: pb.DownloadSumRequest, context: grpc.ServicerContext) -> Iterator[pb.DownloadPart]:
        """See the protocol file."""
        site = self._site(context)
        published = self._desk.link(site).published(request.round, lambda _done, _size: None)
        total = published.total
        header = pb.DownloadHeader(
            size=total.nbytes, digest=codec.digest_of(total), contributors=published.contributors
        )
        yield from self._parts(site, header, codec.chunks(total))

    def _parts(self, site: str, header: pb.DownloadHeader, pieces: Iterator[bytes]) -> Iterator[pb.DownloadPart]:
        yield pb.DownloadPart(header=header)
        for piece in pieces:
            self._desk.alive(site)
            yield pb.DownloadPart(chunk=piece)


def start_server(desk: Desk, bind: str, tls: Callable[[], ServerTls], *, sites: int) -> tuple[grpc.Server, int]:
    """Listen on `bind` (port 0: any free one).

    Args:
        desk: The study.
        bind: HOST:PORT.
        tls: The server's certificate and key, and the CAs whose clients may connect.
        sites: Sites of the study; each may hold one poll, one transfer and one short call.

    Returns:
        The server, started, and its port.

    Raises:
        LinkError: if the port is in use or the address is not this machine's.
    """
    pool = ThreadPoolExecutor(THREADS_A_SITE * sites + 4, thread_name_prefix="rpc")
    server = grpc.server(pool, options=SERVER_OPTIONS)
    pb_grpc.add_FederationServicer_to_server(FederationService(desk), server)
    port = listen(server, bind, server_credentials(tls))
    server.start()
    return server, port
