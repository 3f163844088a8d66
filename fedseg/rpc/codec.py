"""Wire messages to typed values and back: strict and total.

Whatever arrives is either turned into a value that cannot be wrong, or refused with a `ProtocolError`. Lengths and
counts are compared with what a study can have before anything is copied or made room for; what protobuf has parsed by
then is bounded by the size of one message (`credentials.MAX_MESSAGE_BYTES`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import get_args

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import (
    Best,
    Confirm,
    Countersigned,
    Enrolled,
    Finished,
    Head,
    Instruction,
    Join,
    LedgerClaim,
    Paused,
    Published,
    RingVector,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
    WithdrawReason,
)
from fedseg.plan.sections import MAX_SITES, SITE_NAME
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.secagg.messages import Advertisement, MaskedInput, SessionHeader
from fedseg.secagg.sealing import ENVELOPE_SIZE
from fedseg.secagg.signing import SIGNATURE_SIZE, SIGNING_KEY_SIZE

HASH_BYTES = 32
MAX_TEXT = 500
MAX_ROUNDS = 10_000
"""As many as a plan's schedule may have."""

REASONS: tuple[WithdrawReason, ...] = get_args(WithdrawReason)


def sized(data: bytes, size: int, what: str) -> bytes:
    """Exactly `size` bytes, or a `ProtocolError` that names what they should have been."""
    if len(data) != size:
        raise ProtocolError(f"{what} has {len(data)} bytes instead of {size}")
    return data


def hash_bytes(data: bytes, what: str) -> bytes:
    """32 bytes, or a `ProtocolError` that names what they should have been."""
    return sized(data, HASH_BYTES, what)


def names(listed: Collection[str], what: str) -> tuple[str, ...]:
    """Site names: sorted, each once, at most as many as a study may have."""
    if len(listed) > MAX_SITES:
        raise ProtocolError(f"{what}: more than a study has sites")
    found = tuple(listed)
    if list(found) != sorted(set(found)):
        raise ProtocolError(f"{what}: not a sorted list of sites")
    if not all(SITE_NAME.fullmatch(name) for name in found):
        raise ProtocolError(f"{what}: not names of sites")
    return found


def table(entries: Mapping[str, bytes], size: int, what: str) -> dict[str, bytes]:
    """By site, sorted: `size` bytes each; at most as many as a study may have sites."""
    if len(entries) > MAX_SITES:
        raise ProtocolError(f"{what}: more than a study has sites")
    return {name: sized(entries[name], size, f"{what}: that of {name}") for name in names(sorted(entries), what)}


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
        case Finished():
            history = [pb.ClosedRound(round=number, contributors=sites) for number, sites in instruction.history]
            head, evaluation = _encode_head(instruction.head), instruction.evaluation
            return pb.PollReply(finished=pb.Finished(head=head, history=history, evaluation=evaluation))
        case Paused():
            return pb.PollReply(paused=pb.Paused(reason=instruction.reason))
        case _:
            return _encode_step(instruction)


def _encode_step(step: ShareKeys | Submit | Confirm | Unmask) -> pb.PollReply:
    session = step.session
    match step:
        case ShareKeys():
            sent = [each.to_bytes() for each in step.advertisements]
            return pb.PollReply(share_keys=pb.ShareKeysInstruction(session=session, advertisements=sent))
        case Submit():
            return pb.PollReply(submit=pb.Submit(session=session, sharers=step.sharers, envelopes=step.envelopes))
        case Confirm():
            return pb.PollReply(confirm=pb.ConfirmInstruction(session=session, contributors=step.contributors))
        case Unmask():
            return pb.PollReply(unmask=pb.UnmaskInstruction(session=session, signatures=step.signatures))


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
    best = None
    if head.best is not None:
        best = pb.Best(model_hash=bytes.fromhex(head.best.model_hash), score=head.best.score)
    return pb.Head(
        model_hash=bytes.fromhex(head.model_hash),
        closed_round=head.closed_round,
        base_model=bytes.fromhex(head.base_model),
        best=best,
    )


def _head(message: pb.Head) -> Head:
    model = hash_bytes(message.model_hash, "a model's hash").hex()
    base = hash_bytes(message.base_model, "a model's hash").hex()
    return Head(model, message.closed_round, base, _best(message.best) if message.HasField("best") else None)


def _best(message: pb.Best) -> Best:
    # Written so that NaN is refused too.
    if not 0 <= message.score <= 1:
        raise ProtocolError("the best model's score is not within 0 to 1")
    return Best(hash_bytes(message.model_hash, "a model's hash").hex(), message.score)


def _share_keys(message: pb.ShareKeysInstruction) -> ShareKeys:
    if len(message.advertisements) > MAX_SITES:
        raise ProtocolError("more advertisements than a study has sites")
    sent = tuple(Advertisement.from_bytes(data) for data in message.advertisements)
    return ShareKeys(hash_bytes(message.session, "a session"), sent)


def _submit(message: pb.Submit) -> Submit:
    envelopes = table(message.envelopes, ENVELOPE_SIZE, "envelopes")
    return Submit(hash_bytes(message.session, "a session"), names(message.sharers, "sharers"), envelopes)


def _confirm(message: pb.ConfirmInstruction) -> Confirm:
    return Confirm(hash_bytes(message.session, "a session"), names(message.contributors, "contributors"))


def _unmask(message: pb.UnmaskInstruction) -> Unmask:
    return Unmask(
        hash_bytes(message.session, "a session"), table(message.signatures, SIGNATURE_SIZE, "signatures of step 4")
    )


def _finished(message: pb.Finished) -> Finished:
    if len(message.history) > MAX_ROUNDS:
        raise ProtocolError("a history of more rounds than a study may have")
    history = tuple((closed.round, names(closed.contributors, "contributors")) for closed in message.history)
    if any(first >= second for (first, _), (second, _) in pairwise(history)):
        raise ProtocolError("a history whose rounds are not in order")
    return Finished(_head(message.head), history, message.evaluation)


_DECODERS: dict[str, Callable[[pb.PollReply], Instruction]] = {
    "wait": lambda reply: Wait(screen_text(reply.wait.reason)),
    "join": lambda reply: Join(SessionHeader.from_bytes(reply.join.header), _head(reply.join.head)),
    "share_keys": lambda reply: _share_keys(reply.share_keys),
    "submit": lambda reply: _submit(reply.submit),
    "confirm": lambda reply: _confirm(reply.confirm),
    "unmask": lambda reply: _unmask(reply.unmask),
    "finished": lambda reply: _finished(reply.finished),
    "paused": lambda reply: Paused(screen_text(reply.paused.reason)),
}


def encode_enrolled(enrolled: Enrolled) -> pb.GetRosterReply:
    """Who has enrolled, as the wire carries it."""
    return pb.GetRosterReply(server_key=enrolled.server_key, keys=enrolled.keys)


def decode_enrolled(reply: pb.GetRosterReply) -> Enrolled:
    """Who has enrolled. Whether the keys are keys, and whose, is for the roster that is made of them to say.

    Raises:
        ProtocolError: if a name or a length is wrong, or there are more than a study may have.
    """
    server_key = sized(reply.server_key, SIGNING_KEY_SIZE, "the server's key")
    return Enrolled(server_key, table(reply.keys, SIGNING_KEY_SIZE, "protocol keys"))


def encode_upload(session: bytes, message: MaskedInput, size: int) -> pb.UploadHeader:
    """What goes ahead of a vector of `size` bytes."""
    return pb.UploadHeader(session=session, digest=message.digest, size=size, signature=message.signature)


def decode_upload(header: pb.UploadHeader, site: str) -> MaskedInput:
    """The message of step 3 that an upload's header carries, in the name of the site that has authenticated itself.

    Raises:
        ProtocolError: if digest or signature are of a wrong length.
    """
    digest = hash_bytes(header.digest, "a digest")
    return MaskedInput(site, digest, sized(header.signature, SIGNATURE_SIZE, "a signature"))


def encode_published(published: Published) -> pb.DownloadHeader:
    """What goes ahead of a closed round's sum."""
    return pb.DownloadHeader(
        size=published.total.nbytes,
        digest=published.digest,
        contributors=published.contributors,
        round=published.round,
        session=published.session,
        next_model=bytes.fromhex(published.next_model),
        signature=published.signature,
    )


def decode_published(header: pb.DownloadHeader, total: RingVector) -> Published:
    """A closed round's sum, from what went ahead of it and the sum itself; the signature is for the caller to verify.

    Raises:
        ProtocolError: if a name or a length is wrong.
    """
    return Published(
        round=header.round,
        contributors=names(header.contributors, "contributors"),
        total=total,
        session=hash_bytes(header.session, "a session"),
        next_model=hash_bytes(header.next_model, "a model's hash").hex(),
        signature=sized(header.signature, SIGNATURE_SIZE, "the server's signature"),
    )


def encode_claim(claim: LedgerClaim) -> pb.ClaimLedgerRequest:
    """A claim as the wire carries it."""
    return pb.ClaimLedgerRequest(
        rounds=claim.rounds,
        steps=claim.steps,
        head=bytes.fromhex(claim.head),
        previous=bytes.fromhex(claim.previous or ""),
        round=claim.round,
        attempt=claim.attempt,
    )


def decode_claim(request: pb.ClaimLedgerRequest) -> LedgerClaim:
    """What a site says of its ledger.

    Raises:
        ProtocolError: if a hash has a wrong length.
    """
    previous = hash_bytes(request.previous, "a ledger's head").hex() if request.previous else None
    head = hash_bytes(request.head, "a ledger's head").hex()
    return LedgerClaim(request.rounds, request.steps, head, previous, request.round, request.attempt)


def encode_countersigned(signed: Countersigned) -> pb.Countersigned:
    """A countersigned claim as the wire carries it."""
    return pb.Countersigned(
        plan_hash=bytes.fromhex(signed.plan_hash),
        rounds=signed.rounds,
        steps=signed.steps,
        head=bytes.fromhex(signed.head),
        round=signed.round,
        attempt=signed.attempt,
        signature=signed.signature,
    )


def decode_countersigned(message: pb.Countersigned) -> Countersigned:
    """A countersigned claim; the signature is for the caller to verify.

    Raises:
        ProtocolError: if a length is wrong.
    """
    return Countersigned(
        hash_bytes(message.plan_hash, "a plan's hash").hex(),
        message.rounds,
        message.steps,
        hash_bytes(message.head, "a ledger's head").hex(),
        message.round,
        message.attempt,
        sized(message.signature, SIGNATURE_SIZE, "the server's signature"),
    )


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
