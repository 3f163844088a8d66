"""A site's end of the wire: `federation.exchange.Link` over gRPC, and enrolment.

Lengths, names and digests are checked here; what is signed, and whether it is believed, is for whoever asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TypeVar

import grpc
import numpy as np

from fedseg.errors import FedsegError, InviteError, LedgerError, LinkError, ProtocolError, StaleSession, Unreachable
from fedseg.federation.exchange import (
    Countersigned,
    Enrolled,
    Instruction,
    LedgerClaim,
    Progress,
    Published,
    RingVector,
    WithdrawReason,
)
from fedseg.federation.vector import Weights
from fedseg.rpc import codec, transfer
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc._pb import federation_pb2_grpc as pb_grpc
from fedseg.rpc.credentials import channel
from fedseg.rpc.failures import explain
from fedseg.rpc.pki import KeyPair
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, Shares

CALL_S = 60.0
MANIFEST_S = 20.0
"""It is the first thing asked, by a site that may have to go on without an answer."""
TRANSFER_S = 3600.0
MAX_MANIFEST = 1 << 20

REFUSALS: dict[grpc.StatusCode, type[FedsegError]] = {
    grpc.StatusCode.ABORTED: StaleSession,
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.FAILED_PRECONDITION: LedgerError,
    grpc.StatusCode.PERMISSION_DENIED: InviteError,
    grpc.StatusCode.UNAUTHENTICATED: LinkError,
}
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
BUSY = "Concurrent RPC limit exceeded"
"""What gRPC says where all threads of a server are taken; the status is that of a message too large."""

T = TypeVar("T")


class RemoteStudy:
    """A connection to a study's server; use it as a context manager.

    Args:
        address: HOST:PORT.
        ca_cert_pem: The study's CA: only a server that it signed is spoken to.
        identity: The site's certificate and key, or those of its invite.
        parameters: Numbers of the study's state, once the manifest is known: the size of a model's download.
        length: Coordinates of an encoded vector (`Encoding.length`), once the manifest is known: the size of a sum's
            download. Downloads of another size are refused before room is made for them.
        statistics: The same of an evaluation (`StatisticsCode.length`).
    """

    def __init__(
        self,
        address: str,
        ca_cert_pem: bytes,
        identity: KeyPair,
        *,
        parameters: int = 0,
        length: int = 0,
        statistics: int = 0,
    ) -> None:
        self._address, self._identity = address, identity
        self._model_bytes, self._sum_bytes, self._evaluation_bytes = 4 * parameters, 4 * length, 4 * statistics
        self._channel = channel(address, ca_cert_pem, identity)
        self._stub = pb_grpc.FederationStub(self._channel)

    def __enter__(self) -> RemoteStudy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def enrol(self, certificate_request: bytes, protocol_key: bytes) -> bytes:
        """Trade the invite for a certificate (PEM).

        Raises:
            InviteError: if the invite was used, has expired or is unknown.
            LinkError: if the server cannot be reached or trusted.
        """
        request = pb.EnrolRequest(certificate_request=certificate_request, protocol_key=protocol_key)
        return bytes(self._call(lambda: self._stub.Enrol(request, timeout=CALL_S)).certificate)

    def manifest(self, plan_hash: str | None = None) -> bytes:
        """See `federation.exchange.Link`."""
        request = pb.GetManifestRequest(plan_hash=bytes.fromhex(plan_hash or ""))
        data = self._call(lambda: self._stub.GetManifest(request, timeout=MANIFEST_S)).manifest
        if len(data) > MAX_MANIFEST:
            raise ProtocolError("the study's manifest is too large")
        return bytes(data)

    def roster(self) -> Enrolled:
        """See `federation.exchange.Link`."""
        request = pb.GetRosterRequest()
        return codec.decode_enrolled(self._call(lambda: self._stub.GetRoster(request, timeout=CALL_S)))

    def poll(self, session: bytes | None) -> Instruction:
        """See `federation.exchange.Link`."""
        request = pb.PollRequest(session=session or b"")
        return codec.decode_instruction(self._call(lambda: self._stub.Poll(request, timeout=CALL_S)))

    def advertise(self, session: bytes, advertisement: Advertisement | None) -> None:
        """See `federation.exchange.Link`."""
        sent = b"" if advertisement is None else advertisement.to_bytes()
        request = pb.AdvertiseKeysRequest(session=session, advertisement=sent)
        self._call(lambda: self._stub.AdvertiseKeys(request, timeout=CALL_S))

    def share_keys(self, session: bytes, envelopes: Envelopes) -> None:
        """See `federation.exchange.Link`."""
        request = pb.ShareKeysRequest(session=session, envelopes=envelopes.to_bytes())
        self._call(lambda: self._stub.ShareKeys(request, timeout=CALL_S))

    def upload(self, session: bytes, message: MaskedInput, vector: RingVector, progress: Progress) -> None:
        """See `federation.exchange.Link`."""
        header = codec.encode_upload(session, message, vector.nbytes)

        def parts() -> Iterator[pb.UploadPart]:
            yield pb.UploadPart(header=header)
            done = 0
            for piece in transfer.chunks(vector):
                yield pb.UploadPart(chunk=piece)
                done += len(piece)
                progress(done, vector.nbytes)

        self._call(lambda: self._stub.UploadMaskedInput(parts(), timeout=TRANSFER_S))

    def confirm(self, session: bytes, message: Consistency) -> None:
        """See `federation.exchange.Link`."""
        request = pb.ConfirmContributorsRequest(session=session, consistency=message.to_bytes())
        self._call(lambda: self._stub.ConfirmContributors(request, timeout=CALL_S))

    def unmask(self, session: bytes, shares: Shares) -> None:
        """See `federation.exchange.Link`."""
        request = pb.UnmaskRequest(session=session, shares=shares.to_bytes())
        self._call(lambda: self._stub.Unmask(request, timeout=CALL_S))

    def withdraw(self, session: bytes, reason: WithdrawReason) -> None:
        """See `federation.exchange.Link`."""
        request = pb.WithdrawRequest(session=session, reason=codec.encode_reason(reason))
        self._call(lambda: self._stub.Withdraw(request, timeout=CALL_S))

    def claim(self, claim: LedgerClaim) -> Countersigned:
        """See `federation.exchange.Link`."""
        request = codec.encode_claim(claim)
        reply = self._call(lambda: self._stub.ClaimLedger(request, timeout=CALL_S))
        return codec.decode_countersigned(reply.countersigned)

    def countersigned(self) -> Countersigned | None:
        """See `federation.exchange.Link`."""
        reply = self._call(lambda: self._stub.GetCountersigned(pb.GetCountersignedRequest(), timeout=CALL_S))
        return codec.decode_countersigned(reply.countersigned) if reply.HasField("countersigned") else None

    def model(self, model_hash: str, progress: Progress) -> Weights:
        """See `federation.exchange.Link`."""
        request = pb.DownloadModelRequest(model_hash=bytes.fromhex(model_hash))
        size = self._model_bytes
        _, data = self._call(
            lambda: _download(iter(self._stub.DownloadModel(request, timeout=TRANSFER_S)), size, "model", progress)
        )
        return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)

    def published(self, round_number: int, progress: Progress) -> Published:
        """See `federation.exchange.Link`."""
        return self._sum(round_number, self._sum_bytes, progress)

    def evaluated(self, round_number: int, progress: Progress) -> Published:
        """See `federation.exchange.Link`."""
        return self._sum(round_number, self._evaluation_bytes, progress)

    def _sum(self, round_number: int, size: int, progress: Progress) -> Published:
        request = pb.DownloadSumRequest(round=round_number)
        header, data = self._call(
            lambda: _download(iter(self._stub.DownloadSum(request, timeout=TRANSFER_S)), size, "sum", progress)
        )
        if header.round != round_number:
            raise ProtocolError(f"the server sent the sum of round {header.round} instead of {round_number}")
        return codec.decode_published(header, np.frombuffer(data, dtype="<u4").astype(np.uint32, copy=False))

    def holds(self, model_hash: str) -> None:
        """See `federation.exchange.Link`."""
        request = pb.HoldModelRequest(model_hash=bytes.fromhex(model_hash))
        self._call(lambda: self._stub.HoldModel(request, timeout=CALL_S))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            answer = call()
        except grpc.RpcError as error:
            raise self._translate(error) from error
        if answer is None:  # what gRPC makes of a success without a message
            raise ProtocolError("the server answered with nothing", where=self._address)
        return answer

    def _translate(self, error: grpc.RpcError) -> FedsegError:
        # grpc's own classes of RpcError are Calls too, which its stubs do not say.
        code = error.code() if isinstance(error, grpc.Call) else None
        details = (error.details() or "") if isinstance(error, grpc.Call) else ""
        refusal = REFUSALS.get(code) if code is not None else None
        if refusal is not None:
            # Another's words are shown as such, on one line: advice in fedseg's own voice would be believed.
            said = codec.screen_text("; ".join(details.splitlines()))
            return refusal(f"the server says: {said}", where=self._address)
        if BUSY in details:
            return Unreachable("the server is busy", where=self._address, hint="try again later")
        explained = explain(error, self._address, cert_pem=self._identity.cert_pem, now=time.time())
        if code in PASSING and isinstance(explained, LinkError):
            return Unreachable(explained.what, where=explained.where, hint=explained.hint)
        return explained


def _download(
    parts: Iterator[pb.DownloadPart], size: int, what: str, progress: Progress
) -> tuple[pb.DownloadHeader, bytearray]:
    """Collect a download whose size is known beforehand, and check its digest."""
    header = next(parts, pb.DownloadPart()).header
    if header.size != size:
        raise ProtocolError(f"the server offers {header.size} bytes where a {what} of this study has {size}")
    data = transfer.collect(parts, size, lambda done: progress(done, size))
    if hashlib.sha256(data).digest() != header.digest:
        raise ProtocolError("a download does not fit its own digest")
    return header, data
