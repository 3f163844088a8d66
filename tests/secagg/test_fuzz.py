"""Bytes from somebody else: read as they should be or refused as they should be, at the cost of their own length."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedseg.errors import ModelError, ProtocolError, StorageError
from fedseg.plan.study import parse_plan
from fedseg.policy import parse_policy
from fedseg.rpc.invites import Invite
from fedseg.secagg.state import dump, load
from fedseg.store.checkpoints import load_model
from fedseg.store.vectors import load_ring_vector
from tests.fuzz import corpus
from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("plan", "policy")
FILES = ("model-vector", "ring-vector", "model-file", "audit-log")
LINES = ("record", "audit-body")
READERS: dict[str, Callable[[str], object]] = {
    "plan": lambda text: parse_plan(text, "plan.yaml"),
    "policy": lambda text: parse_policy(text, "policy.yaml"),
    "invite": Invite.decode,
}
Argument = TypeVar("Argument")
ODD = (b"", b"\0", b"\xff", b"\xff\xff", b"\xff" * 4, b"\xff" * 8, b"\x80", b"\0" * 32, b"[[[[", b"{", b"1e999", b"NaN")
"""What lies about lengths, breaks text, or opens what nobody closes."""
ROOM = 256 * 1024
"""Far more than any message here needs, far less than what a length that lies asks for."""


@st.composite
def spoiled(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A valid message with some stretches replaced by others: cut, repeated, moved, overwritten."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        start, removed = draw(st.integers(0, len(data))), draw(st.integers(0, 8) | st.integers(0, len(data)))
        other = draw(st.sampled_from(samples))
        begin, length = draw(st.integers(0, len(other))), draw(st.integers(0, 100))
        put = draw(st.sampled_from(ODD) | st.binary(max_size=8) | st.just(other[begin : begin + length]))
        data[start : start + removed] = put
    return bytes(data)


def examples(target: Target) -> int:
    return 40 if target.name in (*DOCUMENTS, *FILES) else 200


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_valid_is_read_and_written_as_it_was(name: str) -> None:
    target = TARGETS[name]
    for sample in target.corpus():
        assert target.check(sample)
        if target.write is not None:
            assert target.write(target.read(sample)) == sample


@pytest.mark.parametrize("name", TARGETS)
def test_anything_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    samples = target.corpus()

    @settings(max_examples=examples(target), derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(spoiled(samples) | st.binary(max_size=300))
    def run(data: bytes) -> None:
        target.check(data)

    run()


def cut_and_odd(sample: bytes) -> list[bytes]:
    """Every place where a length may stand, made to lie; and every place where a message may end."""
    lies = [sample[:at] + b"\xff" * size + sample[at + size :] for at in range(len(sample)) for size in (1, 2, 4, 8)]
    return [*lies, *(sample[:at] for at in range(len(sample)))]


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in (*DOCUMENTS, *FILES)])
def test_lengths_that_lie_make_no_room(name: str) -> None:
    target = TARGETS[name]
    sample = min(target.corpus(), key=len)
    target.check(sample)
    for data in cut_and_odd(sample):
        assert peak(target.check, data) < ROOM


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in (*DOCUMENTS, *FILES, *LINES, "invite")])
def test_what_is_too_long_is_refused_before_it_is_copied(name: str) -> None:
    target = TARGETS[name]
    for data in (b"\xff" * (8 << 20), b"[" * (8 << 20), target.corpus()[0] + bytes(8 << 20)):
        assert peak(target.check, data) < ROOM
        assert not target.check(data)


@pytest.mark.parametrize("name", ["plan", "policy", "invite"])
def test_a_text_that_is_too_long_is_refused_before_it_is_copied(name: str) -> None:
    target = TARGETS[name]
    for text in ("\xff" * (8 << 20), "[" * (8 << 20), target.corpus()[0].decode() + " " * (8 << 20)):

        def read(text: str) -> None:
            with pytest.raises(target.errors):
                READERS[name](text)

        assert peak(read, text) < ROOM


@pytest.mark.parametrize(
    "shape", ["(2147483647,)", "(4611686018427387904,)", "(-1,)", "(True,)", "(65536, 65536)", "()"]
)
def test_a_vector_whose_header_lies_makes_no_room(tmp_path: Path, shape: str) -> None:
    path = tmp_path / "vector"
    sample = TARGETS["ring-vector"].corpus()[0]
    path.write_bytes(sample.replace(b"(5,)", shape.encode()).replace(b" " * (len(shape) - 4) + b"\n", b"\n", 1))

    def read(path: Path) -> None:
        with pytest.raises(StorageError):
            load_ring_vector(path)

    assert peak(read, path) < ROOM


def test_a_model_file_whose_header_lies_makes_no_room(tmp_path: Path) -> None:
    sample = TARGETS["model-file"].corpus()[0]
    lies = [
        (2**62).to_bytes(8, "little") + sample[8:],
        (4 << 20).to_bytes(8, "little") + sample[8:],
        sample.replace(b'"data_offsets":[0,', b'"data_offsets":[%d,' % 10, 1),
        sample.replace(b'"shape":[2,3]', b'"shape":[2,9]', 1),
    ]
    for lie in lies:
        assert lie != sample
        path = tmp_path / "model.safetensors"
        path.write_bytes(lie)

        def read(path: Path) -> None:
            with pytest.raises(ModelError):
                load_model(path)

        assert peak(read, path) < ROOM


def test_a_state_that_no_site_was_in_is_refused() -> None:
    """A disk's error: it must not come to light as a KeyError in the midst of a session."""
    shared, signed = corpus.states_of("Shared"), corpus.states_of("Signed")
    advertisements = [each.to_bytes() for each in shared.u1.values()]
    blobs = [len(each).to_bytes(4, "big") + each for each in advertisements]
    whole, tail = dump(shared), b"".join(blobs)
    assert whole.endswith(tail)
    damaged = {
        "advertisements out of order": whole.removesuffix(tail) + b"".join([blobs[1], blobs[0], blobs[2]]),
        "one advertisement twice": whole.removesuffix(tail) + b"".join([blobs[0], blobs[0], blobs[2]]),
        "its own advertisement gone": dump(replace(shared, u1={"amiens": shared.u1["amiens"]})),
        "a share gone": dump(replace(signed, held={"brno": signed.held["brno"]})),
        "a survivor that did not share": dump(replace(signed, u2=("amiens", "brno"), u3=("amiens", "brno", "cluj"))),
        "itself not among the survivors": dump(replace(signed, u3=("amiens",))),
    }
    read = []
    for what, data in damaged.items():
        with suppress(ProtocolError):
            load(data, corpus.identity_of_states())
            read.append(what)
    assert read == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_by_coverage_finds_nothing(name: str, tmp_path: Path) -> None:
    """The input that it stops at is in what it prints, and is left in the folder."""
    limits = ["-runs=30000", "-max_total_time=10"]
    command = [sys.executable, "-m", "tests.fuzz", name, str(tmp_path), *limits]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done " in done.stderr


def peak(read: Callable[[Argument], object], argument: Argument) -> int:
    """The most memory, in bytes, that reading takes beside what is read."""
    tracemalloc.start()
    try:
        read(argument)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
