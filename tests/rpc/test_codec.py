from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import (
    Best,
    Confirm,
    Enrolled,
    Finished,
    Head,
    Instruction,
    Join,
    Paused,
    Published,
    ShareKeys,
    Submit,
    Unmask,
    Wait,
)
from fedseg.plan.sections import Schedule
from fedseg.rpc import codec
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.secagg.messages import MaskedInput
from fedseg.secagg.sealing import ENVELOPE_SIZE
from tests.secagg.helpers import after_advertise, session

HEADER = session()
HASHES = st.binary(min_size=32, max_size=32)
NAMES = st.sets(st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True), max_size=6).map(
    lambda names: tuple(sorted(names))
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=50)
SIGNATURES = st.binary(min_size=64, max_size=64)
MODELS = HASHES.map(bytes.hex)
HEADS = st.builds(Head, MODELS, st.integers(0, 2**32 - 1), MODELS, st.none() | st.builds(Best, MODELS, st.floats(0, 1)))
ADVERTISEMENTS = st.lists(
    st.sampled_from([state.message for state in after_advertise(HEADER)[1].values()]), max_size=4
)  # fmt: skip
HISTORY = st.dictionaries(st.integers(0, 2**32 - 1), NAMES, max_size=4).map(
    lambda rounds: tuple(sorted(rounds.items()))
)


def tables(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    return NAMES.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, values)))


INSTRUCTIONS: st.SearchStrategy[Instruction] = st.one_of(
    st.builds(Wait, TEXT),
    st.builds(Paused, TEXT),
    st.builds(Join, st.just(HEADER), HEADS),
    st.builds(ShareKeys, HASHES, ADVERTISEMENTS.map(tuple)),
    st.builds(Submit, HASHES, NAMES, tables(st.binary(min_size=ENVELOPE_SIZE, max_size=ENVELOPE_SIZE))),
    st.builds(Confirm, HASHES, NAMES),
    st.builds(Unmask, HASHES, tables(SIGNATURES)),
    st.builds(Finished, HEADS, HISTORY, st.integers(0, 2**32 - 1)),
)  # fmt: skip


@given(INSTRUCTIONS)
def test_every_instruction_survives_the_wire(instruction: Instruction) -> None:
    sent = codec.encode_instruction(instruction).SerializeToString()
    assert codec.decode_instruction(pb.PollReply.FromString(sent)) == instruction


@given(st.builds(Enrolled, HASHES, tables(HASHES)))
def test_who_has_enrolled_survives_the_wire(enrolled: Enrolled) -> None:
    sent = codec.encode_enrolled(enrolled).SerializeToString()
    assert codec.decode_enrolled(pb.GetRosterReply.FromString(sent)) == enrolled


@given(HASHES, HASHES, SIGNATURES, st.integers(0, 2**64 - 1))
def test_what_goes_ahead_of_an_upload_survives_the_wire(
    session: bytes, digest: bytes, signature: bytes, size: int
) -> None:
    message = MaskedInput("brno", digest, signature)
    header = pb.UploadHeader.FromString(codec.encode_upload(session, message, size).SerializeToString())
    assert codec.decode_upload(header, "brno") == message
    assert (header.session, header.size) == (session, size)


@given(st.integers(0, 2**32 - 1), NAMES, HASHES, MODELS, SIGNATURES)
def test_what_goes_ahead_of_a_sum_survives_the_wire(
    number: int, contributors: tuple[str, ...], session: bytes, model: str, signature: bytes
) -> None:
    total = np.arange(5, dtype=np.uint32)
    published = Published(number, contributors, total, session, model, signature)
    header = pb.DownloadHeader.FromString(codec.encode_published(published).SerializeToString())
    received = codec.decode_published(header, total.copy())
    assert replace(received, total=total) == published
    assert (header.size, header.digest) == (20, hashlib.sha256(total.tobytes()).digest())


GOOD = bytes(32)
HEAD = pb.Head(model_hash=GOOD, base_model=GOOD)
CROWD = [f"s{number:03}" for number in range(101)]


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (pb.PollReply(), "the server gave no instruction that this version knows"),
        (pb.PollReply(join=pb.Join(header=HEADER.to_bytes())), "a model's hash has 0 bytes instead of 32"),
        (pb.PollReply(join=pb.Join(header=HEADER.to_bytes() + b"x", head=HEAD)), "followed by bytes that don't belong"),
        (pb.PollReply(join=pb.Join(head=HEAD)), "this session header is cut short"),
        (pb.PollReply(share_keys=pb.ShareKeysInstruction(session=GOOD[1:])), "a session has 31 bytes instead of 32"),
        (
            pb.PollReply(share_keys=pb.ShareKeysInstruction(session=GOOD, advertisements=[b""] * 101)),
            "more advertisements than a study has sites",
        ),
        (
            pb.PollReply(share_keys=pb.ShareKeysInstruction(session=GOOD, advertisements=[b"x"])),
            "this advertisement is",
        ),
        (pb.PollReply(submit=pb.Submit(session=GOOD, sharers=["b", "a"])), "sharers: not a sorted list of sites"),
        (pb.PollReply(submit=pb.Submit(session=GOOD, sharers=["a", "a"])), "sharers: not a sorted list of sites"),
        (pb.PollReply(submit=pb.Submit(session=GOOD, envelopes={"../x": b""})), "envelopes: not names of sites"),
        (
            pb.PollReply(submit=pb.Submit(session=GOOD, envelopes={"a": b"x"})),
            f"envelopes: that of a has 1 bytes instead of {ENVELOPE_SIZE}",
        ),
        (
            pb.PollReply(submit=pb.Submit(session=GOOD, envelopes=dict.fromkeys(CROWD, b""))),
            "envelopes: more than a study has sites",
        ),
        (
            pb.PollReply(confirm=pb.ConfirmInstruction(session=GOOD, contributors=["A"])),
            "contributors: not names of sites",
        ),
        (
            pb.PollReply(confirm=pb.ConfirmInstruction(session=GOOD, contributors=CROWD)),
            "contributors: more than a study has sites",
        ),
        (pb.PollReply(confirm=pb.ConfirmInstruction(contributors=["a"])), "a session has 0 bytes instead of 32"),
        (
            pb.PollReply(unmask=pb.UnmaskInstruction(session=GOOD, signatures={"a": bytes(63)})),
            "signatures of step 4: that of a has 63 bytes instead of 64",
        ),
        (
            pb.PollReply(unmask=pb.UnmaskInstruction(session=GOOD, signatures={"a\n": bytes(64)})),
            "signatures of step 4: not names of sites",
        ),
        (
            pb.PollReply(unmask=pb.UnmaskInstruction(session=GOOD, signatures=dict.fromkeys(CROWD, bytes(64)))),
            "signatures of step 4: more than a study has sites",
        ),
        (
            pb.PollReply(finished=pb.Finished(head=HEAD, history=[pb.ClosedRound(round=1, contributors=["b", "a"])])),
            "contributors: not a sorted list of sites",
        ),
        (
            pb.PollReply(finished=pb.Finished(head=HEAD, history=[pb.ClosedRound(round=2), pb.ClosedRound(round=2)])),
            "a history whose rounds are not in order",
        ),
        (
            pb.PollReply(finished=pb.Finished(head=HEAD, history=[pb.ClosedRound()] * 10_001)),
            "a history of more rounds than a study may have",
        ),
    ],
)
def test_replies_that_are_refused(reply: pb.PollReply, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode_instruction(reply)
    assert says in str(caught.value)


@pytest.mark.parametrize("score", [-0.001, 1.001, float("nan"), float("inf"), float("-inf")])
def test_a_score_is_within_0_to_1(score: float) -> None:
    head = pb.Head(model_hash=GOOD, base_model=GOOD, best=pb.Best(model_hash=GOOD, score=score))
    with pytest.raises(ProtocolError, match="the best model's score is not within 0 to 1"):
        codec.decode_instruction(pb.PollReply(join=pb.Join(header=HEADER.to_bytes(), head=head)))


def test_a_best_model_has_a_hash() -> None:
    head = pb.Head(model_hash=GOOD, base_model=GOOD, best=pb.Best(score=0.5))
    with pytest.raises(ProtocolError, match="a model's hash has 0 bytes instead of 32"):
        codec.decode_instruction(pb.PollReply(finished=pb.Finished(head=head)))


def test_a_history_may_be_as_long_as_a_schedule() -> None:
    [most] = [bound.le for bound in Schedule.model_fields["rounds"].metadata if hasattr(bound, "le")]
    assert most == codec.MAX_ROUNDS


def test_what_the_other_end_says_cannot_steer_a_terminal() -> None:
    reply = pb.PollReply(wait=pb.Wait(reason="one\x1b[2Jtwo\nthree\u202efour" + "x" * 1000))
    instruction = codec.decode_instruction(reply)
    assert isinstance(instruction, Wait)
    assert instruction.reason.startswith("one [2Jtwo three fourx")
    assert len(instruction.reason) == codec.MAX_TEXT


def test_reasons_survive_the_wire_and_strange_ones_are_refused() -> None:
    assert [codec.decode_reason(codec.encode_reason(reason)) for reason in codec.REASONS] == list(codec.REASONS)
    assert set(codec.REASONS) == {"budget", "interrupted", "refused", "failed"}
    for number in (0, 5, -1):
        with pytest.raises(ProtocolError, match=f"there is no reason {number} to withdraw"):
            codec.decode_reason(number)
