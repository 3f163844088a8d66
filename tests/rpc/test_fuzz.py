"""Whatever arrives becomes a value or a `ProtocolError`, and makes no room for more than arrived."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedseg.errors import FedsegError, ProtocolError
from fedseg.federation.exchange import Countersigned, LedgerClaim, Published
from fedseg.rpc import codec, transfer
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.rpc.certificates import create_study_ca
from fedseg.rpc.channel import RemoteStudy
from fedseg.secagg.messages import Advertisement, Consistency, Envelopes, MaskedInput, SessionHeader, Shares
from tests.rpc.fake_study import KEYS, LENGTH, NOW, PARAMETERS, SESSION, SIZE, Wire
from tests.rpc.loopback import as_is, enrolled, server_tls, serving
from tests.secagg import helpers

HEADER = helpers.session()
SITE = HEADER.sites[0]
INPUTS = helpers.inputs_of(HEADER)
ADVERTISED = helpers.after_advertise(HEADER)[1]
SHARED = helpers.after_share(HEADER)[1]
SIGNED = helpers.after_confirm(HEADER, INPUTS)[1]
SHARES = helpers.after_unmask(HEADER, INPUTS)[1][SITE].message
HASH, SIGNATURE, TOTAL = bytes(range(32)), bytes(range(64)), np.arange(LENGTH, dtype=np.uint32)
BEST = pb.Best(model_hash=HASH, score=0.75)
HEAD = pb.Head(model_hash=HASH, closed_round=3, base_model=HASH, best=BEST)
SPARE = 1 << 18
"""Bytes that reading a short message may take beyond a multiple of its length: Python's own objects."""

Decode = Callable[[bytes], object]


def of(kind: type[Any], read: Callable[[Any], object]) -> Decode:
    """Reads a message of protobuf and then its meaning; what protobuf itself refuses is refused."""

    def decode(data: bytes) -> object:
        try:
            message = kind.FromString(data)
        except DecodeError as error:
            raise ProtocolError("not a message") from error
        return read(message)

    return decode


instruction = of(pb.PollReply, codec.decode_instruction)
SAID: list[tuple[Decode, bytes]] = [
    *(
        (instruction, reply.SerializeToString())
        for reply in (
            pb.PollReply(wait=pb.Wait(reason="brno to join")),
            pb.PollReply(paused=pb.Paused(reason="stopped")),
            pb.PollReply(join=pb.Join(header=HEADER.to_bytes(), head=HEAD)),
            pb.PollReply(
                share_keys=pb.ShareKeysInstruction(
                    session=SESSION, advertisements=[state.message.to_bytes() for state in ADVERTISED.values()]
                )
            ),
            pb.PollReply(
                submit=pb.Submit(session=SESSION, sharers=HEADER.sites, envelopes=SHARED[SITE].message.sealed)
            ),
            pb.PollReply(confirm=pb.ConfirmInstruction(session=SESSION, contributors=HEADER.sites)),
            pb.PollReply(unmask=pb.UnmaskInstruction(session=SESSION, signatures=dict.fromkeys(KEYS, SIGNATURE))),
            pb.PollReply(finished=pb.Finished(head=HEAD, history=[pb.ClosedRound(round=1, contributors=HEADER.sites)])),
        )
    ),
    (
        of(pb.GetRosterReply, codec.decode_enrolled),
        pb.GetRosterReply(server_key=HASH, keys=KEYS).SerializeToString(),
    ),
    (
        of(pb.UploadHeader, lambda header: codec.decode_upload(header, SITE)),
        pb.UploadHeader(session=SESSION, digest=HASH, size=SIZE, signature=SIGNATURE).SerializeToString(),
    ),
    (
        of(pb.DownloadHeader, lambda header: codec.decode_published(header, TOTAL)),
        codec.encode_published(Published(3, HEADER.sites, TOTAL, SESSION, HASH.hex(), SIGNATURE)).SerializeToString(),
    ),
    (
        of(pb.ClaimLedgerRequest, codec.decode_claim),
        codec.encode_claim(LedgerClaim(3, 30, HASH.hex(), HASH.hex(), 3, 1)).SerializeToString(),
    ),
    (
        of(pb.Countersigned, codec.decode_countersigned),
        codec.encode_countersigned(Countersigned(HASH.hex(), 3, 30, HASH.hex(), 3, 1, SIGNATURE)).SerializeToString(),
    ),
    (
        of(pb.WithdrawRequest, lambda request: codec.decode_reason(request.reason)),
        pb.WithdrawRequest(session=SESSION, reason=pb.WITHDRAW_REASON_FAILED).SerializeToString(),
    ),
    (SessionHeader.from_bytes, HEADER.to_bytes()),
    (Advertisement.from_bytes, ADVERTISED[SITE].message.to_bytes()),
    (Envelopes.from_bytes, SHARED[SITE].message.to_bytes()),
    (MaskedInput.from_bytes, MaskedInput(SITE, HASH, SIGNATURE).to_bytes()),
    (Consistency.from_bytes, SIGNED[SITE].message.to_bytes()),
    (Shares.from_bytes, SHARES.to_bytes()),
]


def read_or_refused(decode: Decode, data: bytes) -> None:
    tracemalloc.start()
    try:
        with suppress(ProtocolError):
            assert decode(data) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= SPARE + 32 * len(data)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """A valid message in which bytes were changed, cut out, doubled or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        put = draw(st.binary(max_size=12) | st.just(bytes(data[start:stop]) * 2))
        data[start:stop] = put
    return bytes(data)


def test_what_is_damaged_below_was_whole() -> None:
    for decode, valid in SAID:
        assert decode(valid) is not None


@given(st.sampled_from(SAID).flatmap(lambda said: st.tuples(st.just(said[0]), damaged(said[1]))))
@settings(max_examples=600)
def test_a_damaged_message_is_read_or_refused(said: tuple[Decode, bytes]) -> None:
    read_or_refused(*said)


@given(st.sampled_from(SAID), st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(said: tuple[Decode, bytes], data: bytes) -> None:
    read_or_refused(said[0], data)


NAMES = st.sampled_from(["amiens", "brno", "cluj", "", "A", "x" * 33, "../etc", "a\n"])
BYTES = st.sampled_from([b"", HASH, SIGNATURE, bytes(31), *(valid for _, valid in SAID)]) | st.binary(max_size=90)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_STRING: NAMES,
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
}


def value_of(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    inner = field.message_type
    if inner is None:
        one = SCALARS[field.type]
    elif inner.GetOptions().map_entry:
        return st.dictionaries(
            value_of(inner.fields_by_name["key"]), value_of(inner.fields_by_name["value"]), max_size=4
        )
    else:
        one = messages(inner)
    many = st.lists(one, max_size=4) | one.map(lambda value: [value] * 120)
    return many if field.is_repeated else one


def messages(kind: Descriptor) -> st.SearchStrategy[Message]:
    """Messages of a kind with any values in their fields: what damage rarely reaches."""
    fields = {field.name: value_of(field) for field in kind.fields}
    filled = st.fixed_dictionaries({}, optional=fields)
    return filled.map(lambda values: GetMessageClass(kind)(**values))


@given(messages(pb.PollReply.DESCRIPTOR))
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
def test_a_reply_with_any_values_is_read_or_refused(reply: Message) -> None:
    read_or_refused(instruction, reply.SerializeToString())


@given(
    messages(pb.GetRosterReply.DESCRIPTOR), messages(pb.UploadHeader.DESCRIPTOR), messages(pb.DownloadHeader.DESCRIPTOR)
)
def test_headers_with_any_values_are_read_or_refused(reply: Message, upload: Message, download: Message) -> None:
    read_or_refused(of(pb.GetRosterReply, codec.decode_enrolled), reply.SerializeToString())
    read_or_refused(of(pb.UploadHeader, lambda it: codec.decode_upload(it, SITE)), upload.SerializeToString())
    read_or_refused(of(pb.DownloadHeader, lambda it: codec.decode_published(it, TOTAL)), download.SerializeToString())


PIECES = st.lists(
    st.binary(max_size=12).map(lambda data: pb.DownloadPart(chunk=data)) | messages(pb.DownloadPart.DESCRIPTOR),
    max_size=5,
)


@given(PIECES, st.integers(0, 30), st.integers(1, 12))
def test_a_transfer_of_any_pieces_is_whole_or_refused(parts: list[pb.DownloadPart], size: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch, suppress(ProtocolError):
        patch.setattr(transfer, "CHUNK_BYTES", piece)
        assert len(transfer.collect(parts, size, lambda _: None)) == size
        assert sum(len(part.chunk) for part in parts) == size


# The same at the ends of a real connection.

FEDERATION = pb.DESCRIPTOR.services_by_name["Federation"]
CALLS = sorted(FEDERATION.methods_by_name)
FORESEEN = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.PERMISSION_DENIED,
}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(tmp_path_factory.mktemp("staging"))
    yield wire
    wire.server.stop(0).wait()


def answer(channel: grpc.Channel, name: str, sent: list[bytes]) -> tuple[grpc.StatusCode, str]:
    call = channel.stream_stream(f"/{FEDERATION.full_name}/{name}", as_is, as_is)(iter(sent), timeout=10)
    with suppress(grpc.RpcError):
        list(call)
    return call.code(), call.details() or ""


def requests(name: str) -> st.SearchStrategy[bytes]:
    kind = FEDERATION.methods_by_name[name].input_type
    return messages(kind).map(lambda message: message.SerializeToString()) | st.binary(max_size=60)


@given(
    st.sampled_from(CALLS).flatmap(
        lambda name: st.tuples(st.just(name), st.lists(requests(name), min_size=1, max_size=3))
    )
)
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_service_foresees_any_request(wire: Wire, said: tuple[str, list[bytes]]) -> None:
    name, sent = said
    if not FEDERATION.methods_by_name[name].client_streaming:
        sent = sent[:1]
    with wire.as_channel(SITE) as channel:
        code, details = answer(channel, name, sent)
    assert code in FORESEEN or details == "Exception deserializing request!", (code, details)


class Liar(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # takes arguments in its stub only
    """A server that answers every call with what it was told to."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.stream_stream_rpc_method_handler(lambda _request, _context: iter(self.answers), as_is, as_is)


@pytest.fixture(scope="module")
def lied_to() -> Iterator[tuple[Liar, RemoteStudy]]:
    ca, liar = create_study_ca("atlas", now=NOW), Liar()
    tls = server_tls(ca)
    with serving(lambda: tls, liar) as address:
        identity = enrolled(ca, SITE)
        with RemoteStudy(address, ca.cert_pem, identity, parameters=PARAMETERS, length=LENGTH) as remote:
            yield liar, remote


def asked(remote: RemoteStudy) -> dict[str, Callable[[], object]]:
    quiet = partial(lambda _done, _size: None)
    message = MaskedInput(SITE, HASH, SIGNATURE)
    return {
        "EnrolReply": lambda: remote.enrol(b"", HASH),
        "GetManifestReply": remote.manifest,
        "GetRosterReply": remote.roster,
        "PollReply": lambda: remote.poll(None),
        "Ack": lambda: remote.holds(HASH.hex()),
        "ClaimLedgerReply": lambda: remote.claim(LedgerClaim(1, 1, HASH.hex())),
        "GetCountersignedReply": remote.countersigned,
        "DownloadPart": lambda: (remote.model(HASH.hex(), quiet), remote.published(3, quiet)),
        "UploadPart": lambda: remote.upload(SESSION, message, TOTAL, quiet),
    }


@given(st.data())
@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_site_foresees_any_answer(lied_to: tuple[Liar, RemoteStudy], data: st.DataObject) -> None:
    liar, remote = lied_to
    name, ask = data.draw(st.sampled_from(sorted(asked(remote).items(), key=lambda item: item[0])))
    answers = messages(pb.DESCRIPTOR.message_types_by_name[name]).map(lambda message: message.SerializeToString())
    # gRPC waits out its deadline where a call that has one answer gets two: that is as good as none.
    liar.answers = data.draw(st.lists(answers | st.binary(max_size=60), max_size=3 if name == "DownloadPart" else 1))
    with suppress(FedsegError):
        ask()
