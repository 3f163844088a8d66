from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedseg.errors import ProtocolError
from fedseg.federation.exchange import Finished, Head, Instruction, Join, Paused, ShareKeys, Submit, Unmask, Wait
from fedseg.rpc import codec
from fedseg.rpc._pb import federation_pb2 as pb
from fedseg.secagg.messages import Advertisement
from fedseg.secagg.site import advertise
from tests.secagg.helpers import entropy, session

HEADER = session()
HASHES = st.binary(min_size=32, max_size=32)
NAMES = st.sets(st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True), max_size=6).map(
    lambda names: tuple(sorted(names))
)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=50)
HEADS = st.builds(Head, HASHES.map(bytes.hex), st.integers(0, 2**32 - 1), HASHES.map(bytes.hex))
ADVERTISEMENTS = st.lists(
    st.sampled_from([advertise(HEADER, site, entropy(site))[1] for site in HEADER.sites]), max_size=4
)
HISTORY = st.lists(st.tuples(st.integers(0, 2**32 - 1), NAMES), max_size=4).map(tuple)
INSTRUCTIONS: st.SearchStrategy[Instruction] = st.one_of(
    st.builds(Wait, TEXT),
    st.builds(Paused, TEXT),
    st.builds(Join, st.just(HEADER), HEADS),
    st.builds(ShareKeys, HASHES, ADVERTISEMENTS.map(tuple)),
    NAMES.flatmap(lambda names: st.builds(
        Submit, HASHES, st.just(names), st.fixed_dictionaries({name: st.binary(max_size=20) for name in names}))
    ),
    st.builds(Unmask, HASHES, NAMES),
    st.builds(Finished, HEADS, HISTORY),
)  # fmt: skip


@given(INSTRUCTIONS)
def test_every_instruction_survives_the_wire(instruction: Instruction) -> None:
    sent = codec.encode_instruction(instruction).SerializeToString()
    assert codec.decode_instruction(pb.PollReply.FromString(sent)) == instruction


@given(st.binary(max_size=300))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    try:
        reply = pb.PollReply.FromString(data)
    except DecodeError:
        return
    try:
        instruction = codec.decode_instruction(reply)
    except ProtocolError:
        return
    assert isinstance(instruction, Instruction)


@given(INSTRUCTIONS, st.data())
def test_a_damaged_reply_is_read_or_refused(instruction: Instruction, data: st.DataObject) -> None:
    sent = bytearray(codec.encode_instruction(instruction).SerializeToString())
    if sent:
        place = data.draw(st.integers(0, len(sent) - 1))
        sent[place] ^= data.draw(st.integers(1, 255))
    with suppress(ProtocolError, DecodeError):
        codec.decode_instruction(pb.PollReply.FromString(bytes(sent)))


GOOD = bytes(32)
HEAD = pb.Head(model_hash=GOOD, base_model=GOOD)


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
            pb.PollReply(unmask=pb.UnmaskInstruction(session=GOOD, contributors=["A"])),
            "contributors: not names of sites",
        ),
        (
            pb.PollReply(unmask=pb.UnmaskInstruction(session=GOOD, contributors=[f"s{i:03}" for i in range(101)])),
            "contributors: not a sorted list of sites",
        ),
        (
            pb.PollReply(finished=pb.Finished(head=HEAD, history=[pb.ClosedRound(round=1, contributors=["b", "a"])])),
            "contributors: not a sorted list of sites",
        ),
    ],
)
def test_replies_that_are_refused(reply: pb.PollReply, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.decode_instruction(reply)
    assert says in str(caught.value)


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


VECTORS = hnp.arrays(np.uint32, st.integers(0, 40)) | hnp.arrays(np.float32, st.integers(0, 40))


@given(VECTORS, st.integers(1, 17))
def test_vectors_travel_in_pieces(vector: NDArray[np.uint32], piece: int) -> None:
    whole = vector.tobytes()
    parts = [whole[start : start + piece] for start in range(0, len(whole), piece)]
    told: list[int] = []
    assert codec.collect(parts, len(whole), told.append) == whole
    assert told == sorted(told)
    assert told[-1:] == ([len(whole)] if whole else [])
    assert b"".join(codec.chunks(vector)) == whole
    assert codec.digest_of(vector) == hashlib.sha256(whole).digest()


def test_pieces_are_of_a_mebibyte_and_little_endian() -> None:
    vector = np.arange(600_000, dtype=np.uint32)
    pieces = list(codec.chunks(vector))
    assert [len(piece) for piece in pieces] == [1 << 20, 1 << 20, 4 * 600_000 - (2 << 20)]
    swapped = vector.astype(">u4")
    assert list(codec.chunks(swapped)) == pieces
    assert codec.digest_of(swapped) == codec.digest_of(vector)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([], "a transfer was cut short: 0 of 10 bytes"),
        ([b"12345", b"1234"], "a transfer was cut short: 9 of 10 bytes"),
        ([b"12345", b"123456"], "a transfer of 10 bytes brought more"),
        ([b"1234567890", b"", b"1"], "a transfer of 10 bytes brought more"),
    ],
)
def test_transfers_of_a_wrong_size(parts: Iterable[bytes], says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        codec.collect(parts, 10, lambda _: None)


def test_a_piece_too_large_is_refused() -> None:
    with pytest.raises(ProtocolError, match="brought more"):
        codec.collect([bytes(codec.CHUNK_BYTES + 1)], 4 * codec.CHUNK_BYTES, lambda _: None)


@given(st.binary(max_size=80))
def test_an_advertisement_of_any_bytes_is_refused_or_itself(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Advertisement.from_bytes(data)
