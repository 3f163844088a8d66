"""Wire messages to typed values and back: strict and total.

Whatever arrives is either turned into a value that cannot be wrong, or refused with a `ProtocolError`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import (
    Finished,
    Head,
    Instruction,
    Join,
    Paused,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
    WithdrawReason,
)
from fedseg.plan import MAX_SITES, SITE_NAME
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.secagg.messages import Advertisement, SessionHeader

CHUNK_BYTES = 1 << 20
HASH_BYTES = 32
MAX_TEXT = 500

REASONS: tuple[WithdrawReason, ...] = get_args(WithdrawReason)


def hash_bytes(data: bytes, what: str) -> bytes:
    """32 bytes, or a `ProtocolError` that names what they should have been."""
    if len(data) != HASH_BYTES:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {HASH_BYTES}")
    return data


def names(listed: Iterable[str], what: str) -> tuple[str, ...]:
    """Site names: sorted, each once, at most as many as a study may have."""
    found = tuple(listed)
    if list(found) != sorted(set(found)) or len(found) > MAX_SITES:
        raise ProtocolError(f"{what}: not a sorted list of sites")
    if not all(SITE_NAME.fullmatch(name) for name in found):
        raise ProtocolError(f"{what}: not names of sites")
    return found


def screen_text(text: str) -> str:
    """Text from the other end for a person's screen: short, printable, on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_TEXT])


def encode_instruction(instruction: Instruction) -> pb.PollReply:
    """An instruction as the wire carries it."""
    match instruction:
        case Wait():
            return pb.PollReply(wait=pb.Wait(reason=instruction.reason))
        case Join():
            return pb.PollReply(join=pb.Join(header=instruction.header.to_bytes(), head=_encode_head(instruction.head)))
        case ShareKeys():
            sent = [each.to_bytes() for each in instruction.advertisements]
            return pb.PollReply(share_keys=pb.ShareKeysInstruction(session=instruction.session, advertisements=sent))
        case Submit():
            submit = pb.Submit(
                session=instruction.session, sharers=instruction.sharers, envelopes=instruction.envelopes
            )
            return pb.PollReply(submit=submit)
        case Unmask():
            unmask = pb.UnmaskInstruction(session=instruction.session, contributors=instruction.contributors)
            return pb.PollReply(unmask=unmask)
        case Finished():
            history = [pb.ClosedRound(round=number, contributors=sites) for number, sites in instruction.history]
            return pb.PollReply(finished=pb.Finished(head=_encode_head(instruction.head), history=history))
        case Paused():
            return pb.PollReply(paused=pb.Paused(reason=instruction.reason))


def decode_instruction(reply: pb.PollReply) -> Instruction:
    """The instruction in a reply.

    Raises:
        ProtocolError: if there is none, or it is malformed.
    """
    kind = reply.WhichOneof("instruction")
    if kind is None or kind not in _DECODERS:
        raise ProtocolError("the server gave no instruction that this version knows")
    return _DECODERS[kind](reply)


def _encode_head(head: Head) -> pb.Head:
    return pb.Head(
        model_hash=bytes.fromhex(head.model_hash),
        closed_round=head.closed_round,
        base_model=bytes.fromhex(head.base_model),
    )


def _head(message: pb.Head) -> Head:
    model = hash_bytes(message.model_hash, "a model's hash").hex()
    return Head(model, message.closed_round, hash_bytes(message.base_model, "a model's hash").hex())


def _share_keys(message: pb.ShareKeysInstruction) -> ShareKeys:
    if len(message.advertisements) > MAX_SITES:
        raise ProtocolError("more advertisements than a study has sites")
    sent = tuple(Advertisement.from_bytes(data) for data in message.advertisements)
    return ShareKeys(hash_bytes(message.session, "a session"), sent)


def _submit(message: pb.Submit) -> Submit:
    envelopes = dict(message.envelopes)
    names(sorted(envelopes), "envelopes")
    return Submit(hash_bytes(message.session, "a session"), names(message.sharers, "sharers"), envelopes)


def _unmask(message: pb.UnmaskInstruction) -> Unmask:
    return Unmask(hash_bytes(message.session, "a session"), names(message.contributors, "contributors"))


def _finished(message: pb.Finished) -> Finished:
    history = tuple((closed.round, names(closed.contributors, "contributors")) for closed in message.history)
    return Finished(_head(message.head), history)


_DECODERS: dict[str, Callable[[pb.PollReply], Instruction]] = {
    "wait": lambda reply: Wait(screen_text(reply.wait.reason)),
    "join": lambda reply: Join(SessionHeader.from_bytes(reply.join.header), _head(reply.join.head)),
    "share_keys": lambda reply: _share_keys(reply.share_keys),
    "submit": lambda reply: _submit(reply.submit),
    "unmask": lambda reply: _unmask(reply.unmask),
    "finished": lambda reply: _finished(reply.finished),
    "paused": lambda reply: Paused(screen_text(reply.paused.reason)),
}


def encode_reason(reason: WithdrawReason) -> pb.WithdrawReason.ValueType:
    """A reason's number on the wire."""
    return pb.WithdrawReason.Value(f"WITHDRAW_REASON_{reason.upper()}")


def decode_reason(number: int) -> WithdrawReason:
    """A reason by its number on the wire.

    Raises:
        ProtocolError: if there is no such reason.
    """
    for reason in REASONS:
        if encode_reason(reason) == number:
            return reason
    raise ProtocolError(f"there is no reason {number} to withdraw")


def digest_of(vector: NDArray[np.uint32] | NDArray[np.float32]) -> bytes:
    """SHA-256 of a vector's little-endian bytes."""
    return hashlib.sha256(_little_endian(vector)).digest()


def chunks(vector: NDArray[np.uint32] | NDArray[np.float32]) -> Iterator[bytes]:
    """A vector's little-endian bytes, 1 MiB at a time."""
    view = _little_endian(vector)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


def collect(parts: Iterable[bytes], size: int, on_bytes: Callable[[int], None]) -> bytearray:
    """Join chunks into one buffer of `size` bytes, which the caller has bounded.

    Raises:
        ProtocolError: if there are more or fewer bytes, or a chunk is larger than 1 MiB.
    """
    buffer, filled = bytearray(size), 0
    for part in parts:
        if len(part) > CHUNK_BYTES or filled + len(part) > size:
            raise ProtocolError(f"a transfer of {size} bytes brought more")
        buffer[filled : filled + len(part)] = part
        filled += len(part)
        on_bytes(filled)
    if filled != size:
        raise ProtocolError(f"a transfer was cut short: {filled} of {size} bytes")
    return buffer


def _little_endian(vector: NDArray[np.uint32] | NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(vector, dtype=vector.dtype.newbyteorder("<")).view(np.uint8).data
